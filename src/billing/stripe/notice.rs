//! The notice of usage that can't be told to Stripe.

use super::Stripe;
use crate::{
    domain::time::Timestamp,
    services::notices::DeadEntry,
    store::{
        outbox::{Leased, NewEntry},
        stripe::MeterPayload,
    },
};

impl Stripe {
    /// One entry an address; none if nobody wants notices.
    pub(super) async fn dead_notices(
        &self,
        entry: &Leased,
        error: &str,
        now: Timestamp,
    ) -> Vec<NewEntry> {
        let (Some(notices), Some(tenant), Some(feature)) =
            (&self.parts.notices, entry.tenant, &entry.feature)
        else {
            return Vec::new();
        };
        let payload: Option<MeterPayload> = serde_json::from_str(&entry.payload).ok();
        let policy = match self.parts.catalogue.policy_ever(tenant).await {
            Ok(Some(policy)) => policy,
            Ok(None) => return Vec::new(),
            Err(error) => {
                tracing::warn!(%error, identifier = entry.identifier, "nobody is told of an entry that is given up");
                return Vec::new();
            }
        };
        let dead = DeadEntry {
            feature,
            identifier: &entry.identifier,
            meter: payload.as_ref().map_or("", |it| it.event_name.as_str()),
            value: entry.value.unwrap_or_default(),
            used_at: entry.about_at.unwrap_or(entry.created_at),
            error,
        };
        notices.of_dead_entry(&policy, &dead, now)
    }
}
