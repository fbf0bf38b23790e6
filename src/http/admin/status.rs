//! `/status`: how the node that answers does.

use axum::{Json, extract::State};
use serde::Serialize;

use super::access::Viewer;
use crate::{
    app::App,
    billing::stripe::StripeStatus,
    config::Guardrails,
    domain::{quantity::Quantity, time::Timestamp},
    http::{
        error::ApiResult,
        ops::{Ops as _, Parts, Readiness},
        query::Query,
    },
};

/// The node that answers, now.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct StatusBody {
    version: &'static str,
    #[schema(example = "ready")]
    status: &'static str,
    started_at: Timestamp,
    now: Timestamp,
    /// Whether usage is metered and limited.
    guardrails: bool,
    parts: Parts,
    in_flight: InFlightBody,
    /// Usage events that the store does not have yet.
    journal_pending: Quantity,
    /// Null if Stripe is off.
    stripe: Option<StripeStatus>,
}

/// Reservations of requests in flight.
#[derive(Serialize, utoipa::ToSchema)]
struct InFlightBody {
    /// Whose client still waits.
    held: Quantity,
    /// Whose client has gone.
    detached: Quantity,
    /// When the oldest was admitted; null if there is none.
    oldest_at: Option<Timestamp>,
}

/// How the node that answers does.
#[utoipa::path(
    get, path = "/status", tag = "reports", security(("administrator" = ["viewer"])),
    responses((status = 200, description = "The node that answers", body = StatusBody)),
)]
pub(super) async fn show(
    State(app): State<App>,
    _: Viewer,
    query: Query,
) -> ApiResult<Json<StatusBody>> {
    query.finish()?;
    let readiness: Readiness = app.readiness().await;
    let in_flight = app.recorder.ledger().in_flight();
    let count = |count: u64| Quantity::new(i64::try_from(count).unwrap_or(i64::MAX));
    Ok(Json(StatusBody {
        version: env!("CARGO_PKG_VERSION"),
        status: readiness.word(),
        started_at: app.started_at,
        now: app.clock.now().to_whole_second(),
        guardrails: app.config.guardrails == Guardrails::On,
        parts: readiness.parts,
        in_flight: InFlightBody {
            held: count(in_flight.held.saturating_sub(in_flight.detached)),
            detached: count(in_flight.detached),
            oldest_at: in_flight.oldest.map(Timestamp::to_whole_second),
        },
        journal_pending: count(app.recorder.journal().pending()),
        stripe: match &app.stripe {
            Some(stripe) => Some(stripe.status().await?),
            None => None,
        },
    }))
}
