//! The background jobs: one list, one loop that supervises each.
//!
//! A job is a step that its service offers; what is here decides only when it runs again.

use std::{future::Future, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::App;
use crate::{
    journal::JournalStatus,
    services::recorder::{Progress, Recorder},
    telemetry::{events, metrics::Metrics},
};

/// How soon a change in the catalogue is seen: well within the second that is promised.
const POLL_EVERY: Duration = Duration::from_millis(200);
/// How soon usage leaves the journal: within the second that is promised, and in batches under load.
const DRAIN_EVERY: Duration = Duration::from_millis(200);
const WATCH_EVERY: Duration = Duration::from_millis(500);
const PRUNE_EVERY: Duration = Duration::from_secs(600);
/// How many events one pruning deletes at most, so that the writer is free in between.
const PRUNE_BATCH: usize = 5_000;

/// When a job is to run again.
enum Again {
    Now,
    After(Duration),
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
    job(app, |app| async move { prune(&app).await });
}

/// Runs `step` again and again until the server stops.
fn job<F>(app: &App, step: impl Fn(App) -> F + Send + 'static)
where
    F: Future<Output = Again> + Send + 'static,
{
    let stopping: CancellationToken = app.tasks.stopping();
    let app = app.clone();
    app.tasks.clone().spawn(async move {
        while !stopping.is_cancelled() {
            match step(app.clone()).await {
                Again::Now => {}
                Again::After(pause) => {
                    tokio::select! {
                        () = stopping.cancelled() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
    });
}

async fn poll_catalogue(app: &App) -> Again {
    if let Err(error) = app.catalogue.poll().await {
        tracing::debug!(%error, "the catalogue's changes can't be read");
    }
    Again::After(POLL_EVERY)
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
                    Progress::Moved(_) | Progress::Idle => Again::After(DRAIN_EVERY),
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
        Again::After(WATCH_EVERY)
    }
}

async fn prune(app: &App) -> Again {
    let now = app.clock.now();
    let before = now.minus(app.config.retention);
    let pruned = async {
        app.store.prune_conversations(now).await?;
        app.store.prune_changes(now.minus(PRUNE_EVERY)).await?;
        app.store.prune_events(before, PRUNE_BATCH).await
    };
    match pruned.await {
        Ok(events) if events >= PRUNE_BATCH as u64 => Again::Now,
        Ok(_) => Again::After(PRUNE_EVERY),
        Err(error) => {
            tracing::debug!(%error, "nothing could be pruned");
            Again::After(PRUNE_EVERY)
        }
    }
}
