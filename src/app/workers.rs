//! The background jobs: one list, one loop that supervises each.
//!
//! A job is a step that its service offers; what is here decides only when it runs again.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::App;
use crate::{
    billing::stripe::Stripe,
    domain::{feature::FeatureKey, ids::TenantId},
    journal::JournalStatus,
    services::{
        outbox::{self, Sender},
        recorder::{Drift, Progress, Recorder},
    },
    store::{
        StoreError,
        catalogue::LOOK_EVERY,
        outbox::{Kind, Status},
        stripe::Which,
    },
    telemetry::{events, metrics::Metrics},
};

/// How soon usage leaves the journal: within the second that is promised, and in batches under load.
const DRAIN_EVERY: Duration = Duration::from_millis(200);
/// How much of what was decided a crash may lose from the overview, where it is shown by the hour.
const KEEP_DECISIONS_EVERY: Duration = Duration::from_secs(5);
const PRUNE_EVERY: Duration = Duration::from_secs(600);
/// How many rows of a kind one pruning deletes at most, so that the writer is free in between.
const PRUNE_BATCH: usize = 5_000;

/// Live totals are compared with the store's a few tenants at a time: each is a read of the store, …
const DRIFT_EVERY: Duration = Duration::from_secs(5);
/// … and of a busy tenant a long one: all events of the hour that its period began in. So it takes no more than a
/// hundredth of a core.
const DRIFT_PAUSE: u32 = 100;
const DRIFT_BATCH: usize = 50;

/// How soon a refusal, or a window's end, becomes a notice.
const NOTICE_EVERY: Duration = Duration::from_millis(500);
/// How soon a slot of usage that is due goes to the outbox.
const HAND_ON_EVERY: Duration = Duration::from_secs(1);
/// How soon an event of Stripe's that could not be applied at once, or is replayed, is looked at.
const WEBHOOKS_EVERY: Duration = Duration::from_millis(500);
const CONFIRM_EVERY: Duration = Duration::from_secs(60);
/// How long events can be seen that came from Stripe; it delivers one again for some days at most.
const WEBHOOKS_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// Where nobody is told anything; an earlier start may have left entries.
const COUNT_RARELY: Duration = Duration::from_secs(60);
/// While the other side takes nothing; each entry has a longer pause of its own.
const FAILING_PAUSE: Duration = Duration::from_secs(2);
/// How long what was sent can still be seen.
const SENT_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

const SECOND: Duration = Duration::from_secs(1);

/// When a job is to run again.
enum Again {
    Now,
    After(Duration),
    /// As it suits: with others that pause so, within half a second of that.
    AfterAbout(Duration),
    /// Once usage has been written down, and a moment to let more of it come together.
    AfterUsage(Duration),
    /// Once the journal may have begun or ceased to fail.
    AfterJournalTurned,
    /// Once the catalogue may have changed.
    OnChange,
    /// Once an application has reserved something.
    AfterReserved,
}

/// Starts all jobs; each ends when the server stops, the drain after a last attempt to move everything.
pub(super) fn start(app: &App) {
    job(app, |app| async move { poll_catalogue(&app).await });
    let drain = Arc::new(tokio::sync::Mutex::new(StoreHealth::default()));
    job(app, move |app| {
        let health = Arc::clone(&drain);
        async move { health.lock().await.drain(&app.recorder, &app.metrics).await }
    });
    let journal = Arc::new(tokio::sync::Mutex::new(JournalHealth::default()));
    job(app, move |app| {
        let health = Arc::clone(&journal);
        async move { health.lock().await.watch(&app) }
    });
    job(app, |app| async move {
        match app.reservations.expire() {
            Some(pause) => Again::After(pause),
            None => Again::AfterReserved,
        }
    });
    job(app, |app| async move { prune(&app).await });
    job(app, |app| async move { keep_decisions(&app).await });
    for sender in &app.senders {
        let sender = Arc::clone(sender);
        job(app, move |app| {
            let sender = Arc::clone(&sender);
            async move { send(&app, sender.as_ref()).await }
        });
    }
    if app.notices.is_some() {
        job(app, |app| async move { notice(&app).await });
    }
    if let Some(stripe) = &app.stripe {
        let (handing, applying, confirming) =
            (Arc::clone(stripe), Arc::clone(stripe), Arc::clone(stripe));
        job(app, move |_| hand_on(Arc::clone(&handing)));
        job(app, move |_| apply_webhooks(Arc::clone(&applying)));
        job(app, move |_| confirm(Arc::clone(&confirming)));
    }
    job(app, |app| async move { count_outbox(&app).await });
    let drift = Arc::new(tokio::sync::Mutex::new(DriftWatch::default()));
    job(app, move |app| {
        let watch = Arc::clone(&drift);
        async move { watch.lock().await.measure(&app).await }
    });
}

/// Runs `step` again and again until the server stops.
fn job<F>(app: &App, step: impl Fn(App) -> F + Send + 'static)
where
    F: Future<Output = Again> + Send + 'static,
{
    let stopping: CancellationToken = app.tasks.stopping();
    let (app, begun) = (app.clone(), Instant::now());
    app.tasks.clone().spawn(async move {
        while !stopping.is_cancelled() {
            let again = step(app.clone()).await;
            let pause = async {
                match again {
                    Again::Now => {}
                    Again::After(pause) => tokio::time::sleep(pause).await,
                    Again::AfterAbout(pause) => {
                        tokio::time::sleep_until(about(pause, begun).into()).await;
                    }
                    Again::OnChange => app.store.changed().await,
                    Again::AfterUsage(pause) => {
                        app.recorder.journal().written().await;
                        tokio::time::sleep(pause).await;
                    }
                    Again::AfterJournalTurned => app.recorder.journal().turned().await,
                    Again::AfterReserved => app.reservations.made().await,
                }
            };
            tokio::select! {
                () = stopping.cancelled() => {}
                () = pause => {}
            }
        }
    });
}

/// About `pause` from now on, whole seconds after the job's begin, as with other jobs: an idle server then wakes up once
/// for all of them.
fn about(pause: Duration, begun: Instant) -> Instant {
    let since = begun.elapsed() + pause + SECOND / 2;
    begun + Duration::from_secs(since.as_secs())
}

async fn poll_catalogue(app: &App) -> Again {
    match app.catalogue.poll().await {
        Ok(_) => Again::OnChange,
        Err(error) => {
            tracing::debug!(%error, "the catalogue's changes can't be read");
            Again::After(LOOK_EVERY)
        }
    }
}

/// Whether the last drain failed: its failure is logged once, not with every attempt.
#[derive(Default)]
struct StoreHealth {
    failing: Option<String>,
}

impl StoreHealth {
    async fn drain(&mut self, recorder: &Recorder, metrics: &Metrics) -> Again {
        match recorder.step().await {
            Ok(progress) => {
                if self.failing.take().is_some() {
                    events::StoreBack {
                        pending: recorder.journal().pending(),
                    }
                    .emit(metrics);
                }
                match progress {
                    Progress::Moved(events) if events >= crate::services::recorder::BATCH => {
                        Again::Now
                    }
                    Progress::Moved(_) => Again::After(DRAIN_EVERY),
                    Progress::Idle => Again::AfterUsage(DRAIN_EVERY),
                }
            }
            Err(error) => {
                let detail = error.to_string();
                if self.failing.as_ref() != Some(&detail) {
                    events::DrainFailed {
                        detail: &detail,
                        pending: recorder.journal().pending(),
                    }
                    .emit(metrics);
                    self.failing = Some(detail);
                }
                Again::After(DRAIN_EVERY)
            }
        }
    }
}

/// Whether the journal was failing at the last look.
#[derive(Default)]
struct JournalHealth {
    is_failing: bool,
}

impl JournalHealth {
    fn watch(&mut self, app: &App) -> Again {
        match (app.recorder.journal().status(), self.is_failing) {
            (JournalStatus::Failing { detail }, false) => {
                events::JournalFailing { detail: &detail }.emit(&app.metrics);
                self.is_failing = true;
            }
            (JournalStatus::Ok, true) => {
                events::JournalBack.emit(&app.metrics);
                self.is_failing = false;
            }
            (JournalStatus::Failing { .. }, true) | (JournalStatus::Ok, false) => {}
        }
        Again::AfterJournalTurned
    }
}

/// Which tenants were compared already, and what was found.
#[derive(Default)]
struct DriftWatch {
    waiting: Vec<TenantId>,
    found: HashMap<TenantId, Vec<Drift>>,
}

impl DriftWatch {
    /// Compares the next few tenants; once through, it begins again.
    async fn measure(&mut self, app: &App) -> Again {
        let begun = Instant::now();
        if self.waiting.is_empty() {
            self.waiting = app.recorder.ledger().tenants();
            let waiting: HashSet<&TenantId> = self.waiting.iter().collect();
            self.found.retain(|tenant, _| waiting.contains(tenant));
        }
        let next = self.waiting.len().saturating_sub(DRIFT_BATCH);
        for tenant in self.waiting.split_off(next) {
            let pruned_before = app.clock.now().minus(app.config.retention);
            match app.recorder.drift_of(tenant, pruned_before).await {
                Ok(drifts) => self.note(tenant, drifts, &app.metrics),
                Err(error) => {
                    tracing::debug!(%error, "live totals can't be compared with the store's");
                    break;
                }
            }
        }
        let mut sums: BTreeMap<&FeatureKey, u64> = BTreeMap::new();
        for drift in self.found.values().flatten() {
            *sums.entry(&drift.counter.feature).or_default() += drift.difference();
        }
        app.metrics.set_drift(sums);
        Again::AfterAbout(DRIFT_EVERY.max(begun.elapsed() * DRIFT_PAUSE))
    }

    /// Each is logged once, not with every look.
    fn note(&mut self, tenant: TenantId, drifts: Vec<Drift>, metrics: &Metrics) {
        if drifts.is_empty() {
            self.found.remove(&tenant);
            return;
        }
        let known = self
            .found
            .insert(tenant, drifts.clone())
            .unwrap_or_default();
        for drift in drifts.iter().filter(|drift| !known.contains(drift)) {
            events::LedgerDrift { drift }.emit(metrics);
        }
    }
}

async fn keep_decisions(app: &App) -> Again {
    if let Err(error) = app.overview.keep_decisions().await {
        tracing::debug!(%error, "what was decided can't be kept; the next step makes up for it");
    }
    Again::AfterAbout(KEEP_DECISIONS_EVERY)
}

async fn send(app: &App, sender: &dyn Sender) -> Again {
    match app.outbox.step(sender).await {
        Ok(outbox::Progress::Moved { is_more: true }) => Again::Now,
        Ok(outbox::Progress::Failing) => Again::After(FAILING_PAUSE.max(sender.pause())),
        Ok(outbox::Progress::Moved { is_more: false } | outbox::Progress::Idle) => {
            Again::After(sender.pause())
        }
        Err(error) => {
            tracing::debug!(%error, "the outbox can't be read or written");
            Again::After(FAILING_PAUSE.max(sender.pause()))
        }
    }
}

async fn notice(app: &App) -> Again {
    if let Some(notices) = &app.notices
        && let Err(error) = notices.step().await
    {
        tracing::debug!(%error, "notices could not be made; they are when the store is back");
    }
    Again::After(NOTICE_EVERY)
}

async fn hand_on(stripe: Arc<Stripe>) -> Again {
    if let Err(error) = stripe.hand_on(Which::Due).await {
        tracing::debug!(%error, "usage for Stripe can't be handed on; it is when the store is back");
    }
    Again::After(HAND_ON_EVERY)
}

async fn apply_webhooks(stripe: Arc<Stripe>) -> Again {
    match stripe.apply_pending().await {
        Ok(true) => Again::Now,
        Ok(false) => Again::After(WEBHOOKS_EVERY),
        Err(error) => {
            tracing::debug!(%error, "Stripe's events can't be read");
            Again::After(FAILING_PAUSE)
        }
    }
}

async fn confirm(stripe: Arc<Stripe>) -> Again {
    if let Err(error) = stripe.confirm_some().await {
        tracing::debug!(%error, "what Stripe was told can't be compared with its sums");
    }
    Again::After(CONFIRM_EVERY)
}

async fn count_outbox(app: &App) -> Again {
    match app.store.count_outbox().await {
        Ok(counts) => {
            app.metrics.set_outbox(&counts);
            count_for_stripe(app, &counts).await;
        }
        Err(error) => tracing::debug!(%error, "the outbox can't be counted"),
    }
    let is_told = !app.senders.is_empty();
    Again::AfterAbout(if is_told { COUNT_EVERY } else { COUNT_RARELY })
}

async fn count_for_stripe(app: &App, counts: &[(Kind, Status, u64)]) {
    let is_pending = |kind, status| kind == Kind::StripeMeterEvent && status == Status::Pending;
    let pending = counts.iter().filter(|it| is_pending(it.0, it.1));
    let pending: u64 = pending.map(|it| it.2).sum();
    match app.store.count_waiting().await {
        Ok((waiting, _)) => app.metrics.set_stripe_pending(pending + waiting),
        Err(error) => tracing::debug!(%error, "what waits for Stripe can't be counted"),
    }
}

async fn prune(app: &App) -> Again {
    let now = app.clock.now();
    let before = now.minus(app.config.retention);
    if let Err(error) = app.answers.expire(now).await {
        tracing::debug!(%error, "old answers could not be forgotten");
    }
    let pruned = async {
        app.store.prune_conversations(now).await?;
        app.store.prune_sessions(now).await?;
        let changes_before = now.minus(PRUNE_EVERY);
        let changes = app.store.prune_changes(changes_before, PRUNE_BATCH).await?;
        let reservations = app.store.prune_reservations(before, PRUNE_BATCH).await?;
        let events = app.store.prune_events(before, PRUNE_BATCH).await?;
        let sent_before = now.minus(SENT_KEPT);
        let sent = app.store.prune_outbox(sent_before, PRUNE_BATCH).await?;
        let told = app.store.prune_told(sent_before, PRUNE_BATCH).await?;
        let webhooks_before = now.minus(WEBHOOKS_KEPT);
        let webhooks = app
            .store
            .prune_webhooks(webhooks_before, PRUNE_BATCH)
            .await?;
        Ok::<u64, StoreError>(
            [changes, reservations, events, sent, told, webhooks]
                .into_iter()
                .fold(0, u64::max),
        )
    };
    match pruned.await {
        Ok(most) if most >= PRUNE_BATCH as u64 => Again::Now,
        Ok(_) => Again::After(PRUNE_EVERY),
        Err(error) => {
            tracing::debug!(%error, "nothing could be pruned");
            Again::After(PRUNE_EVERY)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::{self, Clock, ManualClock},
        config::{Config, sources::Sources},
        domain::{
            administrator::Actor, ids::ConversationId, quantity::Quantity, tenant::TenantRef,
            window::Window,
        },
        services::{ManualRecord, UsageOperations as _},
        store::conversations::{Speaker, Turn},
    };

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn long_pauses_of_all_jobs_end_together() {
        let begun = Instant::now();
        for (seconds, late) in [(1, 0), (5, 300), (60, 450)] {
            let pause = Duration::from_secs(seconds);
            let begun = begun - Duration::from_millis(late);
            assert_eq!(about(pause, begun), begun + pause, "{late} ms");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_is_past_its_days_is_pruned_and_the_sums_stay() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().to_str().unwrap().to_owned();
        let sources = Sources::none()
            .with_flag("TOLLGATE_DATA_DIR", data_dir)
            .with_flag("TOLLGATE_PROVIDER", "simulated".to_owned());
        let config = Config::load(&sources).unwrap().config;
        let begin = "2026-01-01T00:30:00Z".parse().unwrap();
        let clock = ManualClock::at(begin);
        let app = App::open(config, Clock::Manual(Arc::clone(&clock)))
            .await
            .unwrap();
        super::super::dev::seed(&app, &[]).await.unwrap();
        let demo: TenantRef = "demo".parse().unwrap();
        let tenant = app
            .store
            .find_tenant(&demo)
            .await
            .unwrap()
            .unwrap()
            .tenant_id;
        let record = ManualRecord {
            tenant: demo,
            feature: FeatureKey::Messages,
            quantity: Quantity::new(3),
            idempotency_key: "one".to_owned(),
            at: None,
        };
        let by = Actor {
            name: "ada".to_owned(),
            address: None,
            at: begin,
        };
        app.record(&record, &by).await.unwrap();
        app.recorder.flush().await.unwrap();
        let conversation = ConversationId::new(clock::new_id());
        let turn = Turn {
            speaker: Speaker::User,
            text: "hi".to_owned(),
        };
        app.store
            .append_turns(tenant, conversation, &[turn], begin.plus(30 * DAY))
            .await
            .unwrap();

        for (days, events, conversations) in [(29, 1, true), (31, 1, false), (401, 0, false)] {
            clock.set(begin.plus(days * DAY));
            let again = prune(&app).await;
            assert!(
                matches!(again, Again::After(PRUNE_EVERY)),
                "after {days} days"
            );
            let found = app.store.list_events(tenant, None, 9).await.unwrap();
            assert_eq!(found.len(), events, "after {days} days");
            let found = app
                .store
                .find_conversation(tenant, conversation, begin)
                .await;
            assert_eq!(found.unwrap().is_some(), conversations, "after {days} days");
        }
        let window = Window::new("2026-01-01T00:00:00Z".parse().unwrap(), clock.now()).unwrap();
        let totals = app
            .store
            .totals(tenant, &[FeatureKey::Messages], window, None)
            .await
            .unwrap();
        assert_eq!(totals.totals[0].quantity, Quantity::new(3));
        app.close().await;
    }
}
