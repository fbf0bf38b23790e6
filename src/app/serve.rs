//! `tollgate serve`: from an empty directory to a listening server, and back.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use secrecy::ExposeSecret;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use super::{
    App,
    cores::Cores,
    data_dir::{DataDir, DatabaseLock, Share},
    dev, workers,
};
use crate::{
    cli::output,
    clock::Clock,
    config::{CacheBackend, Config, Database, Guardrails, Loaded, Mode, ProviderKind},
    control,
    http::{direct, server},
    provider::ProviderStatus,
    services::doctor,
    telemetry::events,
};

/// For streams to finish once the server is told to stop.
const STOP_TIME: Duration = Duration::from_secs(30);
/// So long before its end those that have not are told to end, each with a frame that says so.
const LAST_FRAMES: Duration = Duration::from_secs(2);

/// What `serve` was asked to do beyond its settings.
#[derive(Debug)]
pub enum Start {
    Normal,
    /// `--dev`: presets and a demo tenant, a directory that goes with the process, and lines that can be pasted.
    Dev {
        /// `None` if a data dir was given.
        directory: Option<tempfile::TempDir>,
        /// Settings that were given and don't count.
        ignored: Vec<&'static str>,
    },
}

/// Runs the server until it is told to stop.
///
/// # Errors
/// One line for people: what could not be opened or bound, and how to mend it.
pub async fn serve(loaded: Loaded, start: Start) -> anyhow::Result<ExitCode> {
    for warning in &loaded.warnings {
        tracing::warn!(code = "unknown_setting", "{warning}");
    }
    let data_dir = DataDir::open_patiently(&loaded.config.data_dir).await?;
    let _database = match &loaded.config.database {
        Database::Sqlite(path) => {
            let share = match loaded.config.cache_backend {
                CacheBackend::Redis => Share::Together,
                CacheBackend::Redb | CacheBackend::Memory => Share::Alone,
            };
            Some(DatabaseLock::take_patiently(path, &data_dir, share).await?)
        }
        Database::Postgres(_) => None,
    };
    let listener = bind(&loaded.config).await?;
    let address = listener.local_addr()?;
    let app = App::open(
        Config {
            data_dir: data_dir.path().to_owned(),
            ..loaded.config
        },
        Clock::System,
    )
    .await?;
    let control = control::bind(data_dir.path()).with_context(|| {
        format!(
            "the control socket in {} can't be made",
            data_dir.path().display()
        )
    })?;

    let made_token = app.administrators.ensure_one(app.clock.now()).await?;
    let dev = match &start {
        Start::Normal => None,
        Start::Dev { ignored, .. } => Some(dev::seed(&app, ignored).await?),
    };
    app.catalogue.poll().await?;
    say_what_is_odd(&app).await;

    let stop = app.tasks.stopping();
    stop_on_signal(&app)?; // before anybody is told that it runs
    workers::start(&app);
    let commands = control::serve(control, Arc::new(app.backend()), stop.clone());
    let commands = app.tasks.spawn(commands);
    announce(&format!("tollgate listening on http://{address}"))?;
    if let Some(token) = &made_token {
        announce(&format!("admin token: {}", token.expose_secret()))?;
    }
    if let Some(dev) = &dev {
        dev.announce(address, data_dir.path(), made_token.as_ref())?;
    }
    tracing::info!(code = "listening", address = %address, data_dir = %data_dir.path().display(), "tollgate listens");

    let routes = direct::Routes::of(&app);
    let cores = Cores::start().context("the threads that answer requests can't be started")?;
    let options = server::ServerOptions {
        cores: cores.handles(),
        tracker: app.tasks.tracker().clone(),
        stop_time: STOP_TIME,
    };
    let last_call = {
        let (stop, tasks) = (stop.clone(), app.tasks.clone());
        async move {
            stop.cancelled().await;
            tokio::select! {
                () = tokio::time::sleep(STOP_TIME.saturating_sub(LAST_FRAMES)) => {}
                () = signalled() => {}
            }
            tasks.last_call().cancel();
            std::future::pending::<()>().await;
        }
    };
    let running = async {
        server::serve(listener, routes, options, stop).await;
        drop(commands.await);
        app.close().await;
    };
    tokio::select! {
        () = Box::pin(running) => {}
        () = last_call => {}
    }
    cores.end(); // nothing runs on them any more
    tracing::info!(code = "stopped", "tollgate has stopped");
    Ok(ExitCode::SUCCESS)
}

async fn bind(config: &Config) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(config.listen).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            bail!(
                "address {} is in use; stop what listens there, or choose another with TOLLGATE_LISTEN",
                config.listen
            )
        }
        Err(error) => bail!(
            "address {} can't be listened on: {error}; choose another with TOLLGATE_LISTEN",
            config.listen
        ),
    }
}

async fn say_what_is_odd(app: &App) {
    if app.config.guardrails == Guardrails::Off {
        tracing::warn!(
            code = "guardrails_off",
            "usage is neither metered nor limited; set ENABLE_USAGE_GUARDRAILS=true to turn that on"
        );
    }
    if app.config.guardrails == Guardrails::Off && app.config.mode == Mode::Observe {
        tracing::warn!(
            code = "guardrails_off",
            "USAGE_GUARDRAIL_MODE=observe has no effect with guardrails off"
        );
    }
    if let ProviderStatus::NotConfigured(missing) = app.provider.status() {
        tracing::warn!(
            code = "provider_not_configured",
            missing,
            "no model can be asked until that is set"
        );
    }
    if app.config.provider == ProviderKind::OpenAi && has_no_path(&app.config.openai_base_url) {
        tracing::warn!(
            code = "base_url_without_path",
            "OPENAI_BASE_URL names a host alone; the base includes /v1, as in http://127.0.0.1:8000/v1"
        );
    }
    if let Some(moved_to) = app.recorder.journal().damaged_moved_to() {
        events::JournalDamaged { moved_to }.emit(&app.metrics);
    }
    app.recorder.note_what_the_store_lacks().await;
    match doctor::untouchable_limits(&app.store, &app.config).await {
        Ok(found) => {
            for (plan, limit) in found {
                events::LimitUntouchable {
                    plan_code: &plan,
                    feature_key: limit.feature.as_str(),
                    why: &limit.why,
                }
                .emit(&app.metrics);
            }
        }
        Err(error) => tracing::debug!(%error, "the plans can't be looked through"),
    }
}

fn has_no_path(address: &str) -> bool {
    reqwest::Url::parse(address).is_ok_and(|url| url.path() == "/")
}

/// SIGTERM and Ctrl-C begin the stop; a second one is the last call.
fn stop_on_signal(app: &App) -> anyhow::Result<()> {
    let stop: CancellationToken = app.tasks.stopping();
    let signalled = next_signal()?;
    app.tasks.clone().spawn(async move {
        tokio::select! {
            () = signalled => {}
            () = stop.cancelled() => {}
        }
        tracing::info!(code = "stopping", "nothing new is taken; what runs may end");
        stop.cancel();
    });
    Ok(())
}

/// SIGTERM or Ctrl-C from now on; never, if they can't be heard.
async fn signalled() {
    match next_signal() {
        Ok(signalled) => signalled.await,
        Err(_) => std::future::pending().await,
    }
}

fn next_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// The address as a client reaches it: a wildcard is no address to call.
pub(super) fn reachable(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        format!("127.0.0.1:{}", address.port())
    } else {
        address.to_string()
    }
}

/// A line on stdout, for who started the server.
pub(super) fn announce(line: &str) -> io::Result<()> {
    output::print(&format!("{line}\n"))
}
