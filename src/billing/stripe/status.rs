//! How far Stripe is told.

use serde::Serialize;

use super::Stripe;
use crate::{
    domain::{quantity::Quantity, time::Timestamp},
    store::{
        StoreResult,
        outbox::{Kind, Status},
        webhooks::WebhookStatus,
    },
};

/// Usage on its way to Stripe, of all nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct StripeStatus {
    /// Intervals whose usage comes together.
    pub waiting: Quantity,
    /// When the oldest of them began; null if there is none.
    pub waiting_since: Option<Timestamp>,
    /// Meter events that are to be sent.
    pub pending: Quantity,
    pub uncertain: Quantity,
    pub dead: Quantity,
    /// Whether some of Stripe's events are about a tenant or plan that is not known.
    pub has_unmatched_webhooks: bool,
}

impl Stripe {
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn status(&self) -> StoreResult<StripeStatus> {
        let store = &self.parts.store;
        let (waiting, since) = store.count_waiting().await?;
        let counts = store.count_outbox().await?;
        let quantity = |count: u64| Quantity::new(i64::try_from(count).unwrap_or(i64::MAX));
        let of = |asked: Status| {
            let of_status = counts
                .iter()
                .filter(|(kind, status, _)| *kind == Kind::StripeMeterEvent && *status == asked);
            quantity(of_status.map(|(.., count)| count).sum())
        };
        let unmatched = Some(WebhookStatus::Unmatched);
        let unmatched = store.list_webhooks(unmatched, None, 1).await?;
        Ok(StripeStatus {
            waiting: quantity(waiting),
            waiting_since: since.map(Timestamp::to_whole_second),
            pending: of(Status::Pending),
            uncertain: of(Status::Uncertain),
            dead: of(Status::Dead),
            has_unmatched_webhooks: !unmatched.is_empty(),
        })
    }
}
