//! The whole program, built from its settings: every part once, wired in one place.

mod backend;
mod cores;
pub mod data_dir;
mod dev;
mod operation;
mod ops;
mod serve;
pub mod tasks;
mod workers;

pub use backend::{Local, open_local};
pub use serve::{Start, serve};

use std::{ops::Deref, path::Path, sync::Arc};

use anyhow::Context;

use crate::{
    analytics,
    answers::Answers,
    billing::stripe::{MeterSender, Metering, Stripe, StripeParts},
    clock::{Clock, SharedClock},
    config::{CacheBackend, Config, Database, Durability, ProviderKind, StripeUsage},
    domain::time::Timestamp,
    journal::Journal,
    ledger::{LEASE, Ledger, RedisSettings},
    provider::{self, Provider, SharedProvider, openai},
    services::{
        administrators::Administrators,
        catalogue::Catalogue,
        chat::Chat,
        explain::Explanations,
        guard::Guard,
        in_flight::InFlight,
        notices::{CheckSender, NoticeParts, NoticeSender, Notices},
        onward::{Onward, Told},
        outbox::{Outbox, Progress, Senders},
        overview::Overview,
        prices::Prices,
        recorder::{KeepTotals, Recorder, Totals},
        reporting::Reporting,
        reports::Reports,
        reservations::{ReservationParts, Reservations},
        sessions::Sessions,
        statement::Statements,
    },
    store::{SharedStore, outbox::Kind, postgres::PostgresStore, sqlite::SqliteStore},
    telemetry::metrics::Metrics,
    web::Poster,
};

/// The name of the file that keeps answers for their repeats.
const ANSWERS_FILE: &str = "answers.redb";

/// Everything a request may need; cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// What the program stands on. [`App::open`] opens it by the settings; who needs another ground brings it.
pub struct Ground {
    pub store: SharedStore,
    pub journal: Journal,
    pub provider: SharedProvider,
}

pub struct Parts {
    pub config: Arc<Config>,
    pub clock: Clock,
    pub started_at: Timestamp,
    pub metrics: Arc<Metrics>,
    pub store: SharedStore,
    pub recorder: Arc<Recorder>,
    pub administrators: Administrators,
    pub sessions: Sessions,
    pub catalogue: Arc<Catalogue>,
    pub prices: Arc<Prices>,
    pub guard: Arc<Guard>,
    pub chat: Arc<Chat>,
    pub reports: Reports,
    pub overview: Arc<Overview>,
    pub reporting: Reporting,
    pub reservations: Arc<Reservations>,
    pub in_flight: Arc<InFlight>,
    pub explanations: Explanations,
    pub statements: Statements,
    pub answers: Answers,
    pub outbox: Outbox,
    pub senders: Senders,
    /// `None` if no notices are wanted.
    pub notices: Option<Arc<Notices>>,
    /// `None` if Stripe is off.
    pub stripe: Option<Arc<Stripe>>,
    pub provider: Arc<dyn Provider>,
    pub tasks: tasks::Tasks,
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl App {
    /// Opens store and journal in the data dir, which the caller has locked, and builds the rest on them.
    ///
    /// # Errors
    /// One line that says which part can't be opened, and why.
    pub async fn open(config: Config, clock: Clock) -> anyhow::Result<Self> {
        let ground = Ground {
            store: open_store(&config.database).await?,
            journal: open_journal(&config.data_dir, config.durability, clock.clone())?,
            provider: provider::from_settings(provider_settings(&config), clock.clone())?,
        };
        Self::open_on(ground, config, clock).await
    }

    /// Builds the program on `ground`; of the settings, those that say where store, journal and provider are don't
    /// count.
    ///
    /// # Errors
    /// One line: the journal can't be read.
    pub async fn open_on(ground: Ground, config: Config, clock: Clock) -> anyhow::Result<Self> {
        let config = Arc::new(config);
        let is_shared = config.cache_backend == CacheBackend::Redis;
        let clock = match clock {
            // Replicas go by one clock.
            Clock::System if is_shared => Clock::Shared(SharedClock::new()),
            clock => clock,
        };
        let Ground {
            store,
            journal,
            provider,
        } = ground;
        let metrics = Arc::new(Metrics::new(config.cache_backend.as_str()));
        let measured = Arc::clone(&metrics);
        store.measure_with(Arc::new(move |it| measured.transacted(it)));
        let prices = Prices::open(config.prices.as_deref(), &config.data_dir)
            .context("the price list can't be taken (TOLLGATE_PRICES)")?;
        metrics.list_models(prices.list().patterns().map(str::to_owned));
        let tasks = tasks::Tasks::new(config.max_detached, config.max_in_flight);
        let totals = match config.cache_backend {
            CacheBackend::Redb => Totals::Here(KeepTotals::InJournal),
            CacheBackend::Memory => Totals::Here(KeepTotals::Rebuild),
            CacheBackend::Redis => Totals::Shared(redis_settings(&config, &clock)?),
        };
        let recorder = Recorder::open(
            journal,
            Arc::clone(&store),
            Arc::clone(&metrics),
            totals,
            clock.clone(),
        )
        .await?;
        let catalogue = Arc::new(Catalogue::new(
            Arc::clone(&store),
            Arc::clone(&recorder),
            clock.clone(),
            Arc::clone(&metrics),
            config.cache_ttl,
        ));
        let set = config.admin_token.as_ref();
        let administrators = Administrators::open(Arc::clone(&store), set, clock.now())
            .await
            .with_context(|| format!("administrators can't be read from {}", config.database))?;
        let outbox = Outbox {
            store: Arc::clone(&store),
            clock: clock.clone(),
            metrics: Arc::clone(&metrics),
            lease: crate::services::outbox::LEASE,
            jitter: crate::services::outbox::jittered,
        };
        let Outgoing {
            notices,
            stripe,
            senders,
        } = outgoing(&config, &outbox, &catalogue, &recorder)?;
        let guard = Guard::new(
            Arc::clone(&config),
            Arc::clone(&catalogue),
            Arc::clone(&prices),
            Arc::clone(&recorder),
            clock.clone(),
            Arc::clone(&metrics),
            notices.clone(),
        );
        let chat = Arc::new(Chat {
            config: Arc::clone(&config),
            clock: clock.clone(),
            store: Arc::clone(&store),
            guard: Arc::clone(&guard),
            provider: Arc::clone(&provider),
            tasks: tasks.clone(),
        });
        let reports = Reports {
            store: Arc::clone(&store),
            catalogue: Arc::clone(&catalogue),
            recorder: Arc::clone(&recorder),
            clock: clock.clone(),
        };
        let reporting = Reporting::new(
            Arc::clone(&store),
            Arc::clone(&catalogue),
            Arc::clone(&recorder),
            Arc::clone(&metrics),
            config.retention,
        );
        let reservations = Reservations::open(ReservationParts {
            store: Arc::clone(&store),
            guard: Arc::clone(&guard),
            catalogue: Arc::clone(&catalogue),
            recorder: Arc::clone(&recorder),
            metrics: Arc::clone(&metrics),
            clock: clock.clone(),
            tasks: tasks.clone(),
            node: node_name(),
        })
        .await
        .with_context(|| format!("reservations can't be read from {}", config.database))?;
        let in_flight = Arc::new(InFlight {
            store: Arc::clone(&store),
            recorder: Arc::clone(&recorder),
            reservations: Arc::clone(&reservations),
            tasks: tasks.clone(),
            clock: clock.clone(),
        });
        let explanations = Explanations {
            store: Arc::clone(&store),
            catalogue: Arc::clone(&catalogue),
            recorder: Arc::clone(&recorder),
            guard: Arc::clone(&guard),
        };
        let statements = Statements {
            store: Arc::clone(&store),
            reports: reports.clone(),
            recorder: Arc::clone(&recorder),
            clock: clock.clone(),
        };
        let overview = Arc::new(Overview::new(
            Arc::clone(&store),
            reports.clone(),
            Arc::clone(&metrics),
            clock.clone(),
        ));
        let answers = match recorder.ledger() {
            Ledger::Local(_) => Answers::new(&config.data_dir.join(ANSWERS_FILE), clock.clone()),
            Ledger::Redis(redis) => Answers::in_redis(Arc::clone(redis)),
        };
        Ok(Self(Arc::new(Parts {
            config,
            started_at: clock.now().to_whole_second(),
            clock,
            metrics,
            recorder,
            sessions: Sessions::new(Arc::clone(&store), administrators.clone()),
            administrators,
            store,
            catalogue,
            prices,
            guard,
            chat,
            reports,
            overview,
            reporting,
            reservations,
            in_flight,
            explanations,
            statements,
            answers,
            outbox,
            senders,
            notices,
            stripe,
            provider,
            tasks,
        })))
    }

    /// Ends what is left: waits for runs, moves the journal to the store as far as it goes, and closes it.
    pub async fn close(&self) {
        self.tasks.finish().await;
        if let Err(error) = self.recorder.flush().await {
            tracing::warn!(%error, "usage waits in the journal until the next start");
        }
        self.write_last_files().await;
        self.answers.close().await;
        self.recorder.journal().close().await;
    }
}

impl App {
    /// What was used just before the end is in analytics' files too; a collector waits for the next start.
    async fn write_last_files(&self) {
        let sink = self.config.analytics_sink.as_deref().unwrap_or_default();
        if !sink.starts_with("file:") {
            return;
        }
        let senders = self.senders.iter();
        for sender in senders.filter(|it| it.kind() == Kind::AnalyticsBatch) {
            while let Ok(Progress::Moved { is_more: true }) =
                self.outbox.step(sender.as_ref()).await
            {}
        }
    }
}

/// Opens the store that the settings name, and brings its schema up to date.
async fn open_store(database: &Database) -> anyhow::Result<SharedStore> {
    let failed = || format!("{database} can't be opened");
    Ok(match database {
        Database::Sqlite(path) => Arc::new(SqliteStore::open(path).with_context(failed)?),
        Database::Postgres(url) => Arc::new(PostgresStore::open(url).await.with_context(failed)?),
    })
}

/// Who tells others, as the settings say.
#[derive(Default)]
struct Outgoing {
    notices: Option<Arc<Notices>>,
    stripe: Option<Arc<Stripe>>,
    senders: Senders,
}

/// Makes those who tell others, and has the recorder say what there is to tell.
fn outgoing(
    config: &Config,
    outbox: &Outbox,
    catalogue: &Arc<Catalogue>,
    recorder: &Arc<Recorder>,
) -> anyhow::Result<Outgoing> {
    let mut outgoing = Outgoing::default();
    let tells_stripe = config.stripe_usage == StripeUsage::On;
    let has_replicas = matches!(recorder.ledger(), Ledger::Redis(_));
    let tells_others =
        !config.webhook_urls.is_empty() || config.analytics_sink.is_some() || tells_stripe;
    if !tells_others && !has_replicas {
        return Ok(outgoing);
    }
    let (store, clock) = (&outbox.store, &outbox.clock);
    let poster = Arc::new(Poster::new(&config.webhook_secrets)?);
    if let Some(setting) = &config.analytics_sink {
        outgoing.senders.push(analytics::sink(setting, &poster));
    }
    if !config.webhook_urls.is_empty() {
        let made = Notices::new(NoticeParts {
            store: Arc::clone(store),
            catalogue: Arc::clone(catalogue),
            recorder: Arc::clone(recorder),
            poster,
            clock: clock.clone(),
            thresholds: config.alert_thresholds.clone(),
            addresses: config.webhook_urls.clone(),
        });
        let senders = &mut outgoing.senders;
        senders.push(Arc::new(CheckSender(Arc::clone(&made))));
        senders.push(Arc::new(NoticeSender(Arc::clone(&made))));
        outgoing.notices = Some(made);
    }
    if tells_stripe {
        let parts = StripeParts {
            store: Arc::clone(store),
            catalogue: Arc::clone(catalogue),
            recorder: Arc::clone(recorder),
            outbox: outbox.clone(),
            notices: outgoing.notices.clone(),
            metrics: Arc::clone(&outbox.metrics),
            clock: clock.clone(),
        };
        let made = Stripe::new(config, parts)?;
        outgoing
            .senders
            .push(Arc::new(MeterSender(Arc::clone(&made))));
        outgoing.stripe = Some(made);
    }
    let told = |is_there: bool| if is_there { Told::Yes } else { Told::No };
    recorder.tell_with(Arc::new(Onward {
        catalogue: Arc::downgrade(catalogue),
        clock: clock.clone(),
        analytics: told(config.analytics_sink.is_some()),
        notices: told(outgoing.notices.is_some()),
        metering: tells_stripe.then_some(Metering {
            interval: config.stripe_push_interval,
        }),
        replicas: told(has_replicas),
    }));
    Ok(outgoing)
}

/// The journal of a data dir that the caller has locked; `None` if there is none.
///
/// # Errors
/// One line that says why it can't be opened.
pub fn open_existing_journal(config: &Config) -> anyhow::Result<Option<Journal>> {
    if !data_dir::journal_path(&config.data_dir).exists() {
        return Ok(None);
    }
    open_journal(&config.data_dir, config.durability, Clock::System).map(Some)
}

/// What this node is called among others: the host's name, as operators know it.
fn node_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}

fn redis_settings(config: &Config, clock: &Clock) -> anyhow::Result<RedisSettings> {
    anyhow::ensure!(
        !config.redis_urls.is_empty(),
        "USAGE_GUARDRAIL_CACHE_BACKEND is redis, but no address is given; set USAGE_GUARDRAIL_REDIS_URL or REDIS_URL"
    );
    Ok(RedisSettings {
        urls: config.redis_urls.clone(),
        clock: clock.clone(),
        lease: LEASE,
        node: node_name(),
    })
}

fn open_journal(data_dir: &Path, durability: Durability, clock: Clock) -> anyhow::Result<Journal> {
    let path = data_dir::journal_path(data_dir);
    Journal::open(&path, durability, clock)
        .with_context(|| format!("the journal {} can't be opened", path.display()))
}

fn provider_settings(config: &Config) -> provider::Settings {
    match config.provider {
        ProviderKind::Simulated => provider::Settings::Simulated {
            timeout: config.upstream_timeout,
        },
        ProviderKind::OpenAi => provider::Settings::OpenAi(openai::Settings {
            base_url: config.openai_base_url.clone(),
            api_key: config.openai_api_key.clone(),
            stream_usage: config.stream_usage,
            timeout: config.upstream_timeout,
            roots: provider::tls::Roots::Environment,
        }),
    }
}
