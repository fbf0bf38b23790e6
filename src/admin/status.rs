//! How the node that answers does, and every setting that holds, with where it came from. Nothing is changed here.

use askama::Template;
use axum::extract::State;

use super::{
    assets, format,
    overview::PartRow,
    view::{self, PageResult, View},
};
use crate::{
    app::App,
    billing::stripe::StripeStatus,
    config::{Guardrails, Listed},
    domain::time::Timestamp,
    http::ops::Ops as _,
};

#[derive(Template)]
#[template(path = "status.html")]
struct StatusPage<'a> {
    view: &'a View,
    version: &'static str,
    state: &'static str,
    started_at: Timestamp,
    guardrails_on: bool,
    parts: [PartRow; 4],
    held: u64,
    detached: u64,
    journal_pending: u64,
    stripe: Option<StripeStatus>,
    settings: &'a [Listed],
}

impl StatusPage<'_> {
    fn state_word(&self) -> (&'static str, &'static str) {
        match self.state {
            "ready" => ("good", "ready"),
            "degraded" => ("warn", "degraded: chats are taken"),
            _ => ("bad", "not ready: chats are refused"),
        }
    }
}

/// `GET /admin/status`.
pub(super) async fn show(State(app): State<App>, view: View) -> PageResult {
    let readiness = app.readiness().await;
    let in_flight = app.recorder.ledger().in_flight();
    let stripe = match &app.stripe {
        Some(stripe) => Some(stripe.status().await?),
        None => None,
    };
    view::show(&StatusPage {
        stripe,
        view: &view,
        version: env!("CARGO_PKG_VERSION"),
        state: readiness.word(),
        started_at: app.started_at,
        guardrails_on: app.config.guardrails == Guardrails::On,
        parts: PartRow::all(readiness.parts),
        held: in_flight.held.saturating_sub(in_flight.detached),
        detached: in_flight.detached,
        journal_pending: app.recorder.journal().pending(),
        settings: &app.config.listing,
    })
}
