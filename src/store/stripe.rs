//! Usage on its way to Stripe's meters: it comes together in slots, leaves as entries of the outbox, and is confirmed.

use std::collections::{BTreeMap, HashSet};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    StoreResult,
    outbox::{About, Kind, NewEntry},
};
use crate::domain::{
    feature::FeatureKey,
    ids::{EventId, TenantId},
    quantity::Quantity,
    time::Timestamp,
    window::Window,
};

/// The topic of an entry that adds its value to a meter.
pub const USAGE: &str = "usage";
/// Of one that takes back an event of before, whole.
pub const CANCEL: &str = "cancel";
/// Of one that was taken back.
pub const CANCELED: &str = "canceled";

/// Stripe lets an event be canceled within 24 hours of receiving it; this leaves time to get there.
pub(super) const CANCELABLE: std::time::Duration = std::time::Duration::from_secs(22 * 3600);
/// Entries of slots that are older than this may be gone, so that they can't number the next one.
const NUMBERED: std::time::Duration = std::time::Duration::from_secs(6 * 24 * 3600);

/// Usage of one event that counts on a meter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterUse {
    /// It counts if this event is new.
    pub event: EventId,
    pub slot: Slot,
    /// From when on the slot is handed to the outbox.
    pub due_at: Timestamp,
    /// Stripe's customer, if one is known.
    pub customer: Option<String>,
    /// Corrections may be negative.
    pub quantity: Quantity,
}

/// What goes to Stripe as one event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    pub tenant: TenantId,
    pub feature: FeatureKey,
    /// Stripe's `event_name`.
    pub meter: String,
    /// Start of the interval that it was used in; at least `period_start`.
    pub start: Timestamp,
    /// Of the billing period that it counts in.
    pub period_start: Timestamp,
}

impl Slot {
    /// When it counts, in whole seconds, as Stripe takes it: within the billing period.
    #[must_use]
    pub fn at(&self) -> Timestamp {
        self.start.up_to_whole_second()
    }

    /// What the identifiers of all entries of this slot begin with.
    pub(super) fn prefix(&self) -> String {
        let digest = Sha256::digest(format!("{}\0{}", self.feature, self.meter));
        let hash: String = digest[..4]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let tenant = self.tenant.uuid().simple();
        format!("{tenant}-{hash}-{}-", self.at().seconds())
    }

    /// The last part of the next identifier, where `entries` of the slot are there. Deterministic, so that a database
    /// that was restored makes the identifiers that Stripe knows already.
    pub(super) fn part(&self, entries: i64, now: Timestamp) -> String {
        if self.start.plus(NUMBERED) < now {
            return format!("r{}", now.seconds());
        }
        entries.to_string()
    }
}

/// What a slot is to be told, as an entry's payload keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeterPayload {
    pub event_name: String,
    pub customer: String,
    /// Seconds since 1970.
    pub timestamp: i64,
    pub value: Quantity,
    /// The identifier of the event that is taken back; `None`: the value is added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancels: Option<String>,
}

/// Calls for one customer and meter go one at a time.
#[must_use]
pub fn lane(customer: &str, meter: &str) -> String {
    format!("{customer}/{meter}")
}

/// The entry that tells Stripe of what came together in a slot; `cancels`: the event of before that it takes back.
pub(super) fn entry(
    slot: &Slot,
    customer: &str,
    value: Quantity,
    identifier: String,
    cancels: Option<String>,
    now: Timestamp,
) -> NewEntry {
    let topic = if cancels.is_some() { CANCEL } else { USAGE };
    let payload = MeterPayload {
        event_name: slot.meter.clone(),
        customer: customer.to_owned(),
        timestamp: slot.at().seconds(),
        value,
        cancels,
    };
    NewEntry {
        identifier,
        kind: Kind::StripeMeterEvent,
        topic: Some(topic.to_owned()),
        tenant: Some(slot.tenant),
        feature: Some(slot.feature.clone()),
        value: Some(value),
        lane: Some(lane(customer, &slot.meter)),
        about: Some(About {
            at: slot.at(),
            period_start: slot.period_start,
        }),
        payload: serde_json::to_string(&payload).expect("a payload is plain strings and numbers"),
        created_at: now,
    }
}

/// What a slot gets of new events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Added {
    pub(super) due_at: Timestamp,
    pub(super) customer: Option<String>,
    pub(super) quantity: Quantity,
}

/// The sums of what counts, in the order of slots, so that two writers take their rows in one order.
pub(super) fn summed(uses: &[MeterUse], new: &HashSet<EventId>) -> BTreeMap<Slot, Added> {
    let mut slots: BTreeMap<Slot, Added> = BTreeMap::new();
    for it in uses.iter().filter(|it| new.contains(&it.event)) {
        let added = slots.entry(it.slot.clone()).or_insert_with(|| Added {
            due_at: it.due_at,
            customer: it.customer.clone(),
            quantity: Quantity::ZERO,
        });
        added.quantity = added.quantity.plus(it.quantity);
        added.due_at = added.due_at.min(it.due_at);
    }
    slots
}

/// Which slots are handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Due,
    /// Whatever was used up to now.
    All,
}

/// What became of slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandedOn {
    /// Entries of the outbox that were made.
    pub entries: u64,
    /// Slots that wait on, since the tenant has no customer at Stripe.
    pub without_customer: u64,
    /// There may be more.
    pub is_more: bool,
}

/// Where usage of a window is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MeterSums {
    /// Not in the outbox yet.
    pub waiting: Quantity,
    pub pending: Quantity,
    pub uncertain: Quantity,
    pub dead: Quantity,
    /// Sent, but not seen in Stripe's summaries yet.
    pub unconfirmed: Quantity,
    /// All that was sent.
    pub told: Quantity,
}

/// What Stripe should have of a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneSums {
    pub sent: Quantity,
    /// Of which it is not known whether it arrived.
    pub doubtful: Quantity,
}

/// What was sent in a lane and is not confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unconfirmed {
    pub lane: String,
    /// When the first and the last of it were used.
    pub first: Timestamp,
    pub last: Timestamp,
}

pub trait StripeStore: Send + Sync {
    /// Hands slots to the outbox, each as one entry, in one transaction; at most `limit`. A slot whose tenant has no
    /// customer is due again at `again`.
    fn hand_on(
        &self,
        which: Which,
        now: Timestamp,
        again: Timestamp,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<HandedOn>>;

    /// What Stripe was told of the usage of a window, in the order of `features`. Exact for billing periods and whole
    /// hours; what was used in an hour that a bound cuts counts at that hour's start.
    fn told<'a>(
        &'a self,
        tenant: TenantId,
        features: &'a [FeatureKey],
        window: Window,
    ) -> BoxFuture<'a, StoreResult<Vec<Quantity>>>;

    /// Where the usage of a window is.
    fn meter_sums<'a>(
        &'a self,
        tenant: TenantId,
        feature: &'a FeatureKey,
        window: Window,
    ) -> BoxFuture<'a, StoreResult<MeterSums>>;

    /// What was sent in a lane of usage of `window`, as far as the outbox still has it; `but`: an entry that is left out.
    fn lane_sums<'a>(
        &'a self,
        lane: &'a str,
        window: Window,
        but: &'a str,
    ) -> BoxFuture<'a, StoreResult<LaneSums>>;

    /// Lanes of which something was sent before `sent_before` and is not confirmed, after the lane `after` in order.
    fn list_unconfirmed<'a>(
        &'a self,
        sent_before: Timestamp,
        after: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Unconfirmed>>>;

    /// Confirms what was sent in a lane before `sent_before` of usage of `window`; how many entries.
    fn confirm<'a>(
        &'a self,
        lane: &'a str,
        window: Window,
        sent_before: Timestamp,
    ) -> BoxFuture<'a, StoreResult<u64>>;

    /// Has Stripe's sums decide on everything that is pending and was used so long ago that Stripe may have forgotten it:
    /// a database that was restored does not know what was sent since. How many entries.
    fn doubt_pending(&self) -> BoxFuture<'_, StoreResult<u64>>;

    /// Makes what is uncertain pending again, so that it is looked at anew; at most `limit`.
    fn look_again(&self, now: Timestamp, limit: usize) -> BoxFuture<'_, StoreResult<u64>>;

    /// How many slots wait, and the start of the oldest.
    fn count_waiting(&self) -> BoxFuture<'_, StoreResult<(u64, Option<Timestamp>)>>;
}
