//! What the operators' routes ask of the program.

use axum::extract::FromRef;
use futures_util::future::BoxFuture;
use secrecy::SecretString;

use super::{App, Parts};
use crate::{
    config::FailMode,
    http::{
        extract::BodyLimit,
        ops::{self, Chats, Ops, Part, Readiness, SharedOps},
    },
    journal::JournalStatus,
    provider::ProviderStatus,
    telemetry::metrics::{Observed, ReservationsEnded},
};

impl FromRef<App> for SharedOps {
    fn from_ref(app: &App) -> Self {
        app.0.clone()
    }
}

impl FromRef<App> for BodyLimit {
    fn from_ref(app: &App) -> Self {
        Self {
            max_bytes: app.config.max_body_bytes,
        }
    }
}

impl Ops for Parts {
    fn readiness(&self) -> BoxFuture<'_, Readiness> {
        Box::pin(async move {
            let store = match (self.store.ping().await, self.recorder.store_fault()) {
                (Ok(()), None) => Part::ok(),
                // Decisions can be made: usage waits in the journal meanwhile.
                (Ok(()), Some(why)) => Part::degraded(why),
                (Err(error), _) => Part::down(error.to_string()),
            };
            let (journal, journal_writes) = match self.recorder.journal().status() {
                JournalStatus::Ok => (Part::ok(), true),
                JournalStatus::Failing { detail } => (Part::down(detail), false),
            };
            let (provider, is_configured) = match self.provider.status() {
                ProviderStatus::Ready => (Part::ok(), true),
                ProviderStatus::Failing(why) => (Part::degraded(why), true),
                ProviderStatus::NotConfigured(what) => (Part::down(what), false),
            };
            let ledger = self
                .recorder
                .ledger()
                .fault()
                .map_or_else(Part::ok, Part::down);
            let is_down = |part: &Part| part.status == ops::PartStatus::Down;
            let is_decided =
                !(is_down(&store) || is_down(&ledger)) || self.config.fail_mode == FailMode::Open;
            let is_taken = (journal_writes || !self.guard.is_on()) && is_configured && is_decided;
            Readiness {
                chats: if is_taken {
                    Chats::Taken
                } else {
                    Chats::Refused
                },
                parts: ops::Parts {
                    store,
                    ledger,
                    journal,
                    provider,
                },
            }
        })
    }

    fn metrics_text(&self) -> String {
        let now = self.clock.now();
        let (in_flight, ended) = (
            self.recorder.ledger().in_flight(),
            self.recorder.ledger().ended(),
        );
        let expired = self.reservations.expired();
        self.metrics.observe(&Observed {
            // `held` by the metric's words are those whose client still waits.
            reservations_held: in_flight.held - in_flight.detached,
            reservations_detached: in_flight.detached,
            oldest_reservation: in_flight.oldest.map(|oldest| now.since(oldest)),
            reservations_ended: ReservationsEnded {
                settled: ended.settled,
                // To the ledger, a reservation whose time is over is one given back.
                released: ended.released.saturating_sub(expired),
                expired: expired + ended.expired,
                reaped: ended.reaped,
            },
            journal_pending: self.recorder.journal().pending(),
        });
        self.metrics.render()
    }

    fn metrics_token(&self) -> Option<&SecretString> {
        self.config.metrics_token.as_ref()
    }

    fn is_admin_token<'a>(&'a self, token: &'a str) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let found = self.administrators.authenticate(token).await;
            found.is_ok_and(|found| found.is_some())
        })
    }
}
