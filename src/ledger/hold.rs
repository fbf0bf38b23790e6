//! A hold: what one request in flight may still use.

use std::fmt;

use smallvec::SmallVec;
use uuid::Uuid;

use super::{
    HoldInfo, RedisHold, Settled,
    local::{judged_settle, overshoot, overshoot_of},
    subjects::{SubjectRef, Who},
    sync::{Arc, Ordering},
    tenant::{Tenant, Usage},
};
use crate::{
    domain::{
        feature::FeatureKey,
        ids::{KeyId, ReservationId, TenantId},
        limit::{LimitStates, Violation},
        quantity::Quantity,
        time::Timestamp,
        usage::{Quantities, UsageEvent},
        window::Window,
    },
    store::usage::Seq,
};

/// What one request in flight may still use. Settled, it becomes usage; dropped, it gives everything back.
#[derive(Debug)]
pub enum Hold {
    Local(LocalHold),
    Redis(Box<RedisHold>),
}

impl Hold {
    #[must_use]
    pub fn id(&self) -> ReservationId {
        match self {
            Self::Local(hold) => hold.id(),
            Self::Redis(hold) => hold.id(),
        }
    }

    #[must_use]
    pub fn admitted_at(&self) -> Timestamp {
        match self {
            Self::Local(hold) => hold.admitted_at(),
            Self::Redis(hold) => hold.admitted_at(),
        }
    }

    /// How much of `feature` is held; zero if none was wanted.
    #[must_use]
    pub fn granted(&self, feature: &FeatureKey) -> Quantity {
        match self {
            Self::Local(hold) => hold.granted(feature),
            Self::Redis(hold) => hold.granted(feature),
        }
    }

    /// Every limit that applied at admission, in the order given, this hold included in `reserved`.
    #[must_use]
    pub fn states(&self) -> &LimitStates {
        match self {
            Self::Local(hold) => hold.states(),
            Self::Redis(hold) => hold.states(),
        }
    }

    /// What should have refused the request, had violations not only been noted; the one that resets last first.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        match self {
            Self::Local(hold) => hold.violations(),
            Self::Redis(hold) => hold.violations(),
        }
    }

    /// Notes that the client has gone while the request still runs.
    pub fn mark_detached(&self) {
        match self {
            Self::Local(hold) => hold.mark_detached(),
            Self::Redis(hold) => hold.mark_detached(),
        }
    }

    /// Replaces what is held by what was used: the event `seq` of the journal, durable by now.
    pub async fn settle(self, seq: Seq, event: &UsageEvent) -> Settled {
        match self {
            Self::Local(hold) => hold.settle(seq, &event.quantities),
            Self::Redis(hold) => Box::pin(hold.settle(seq, event)).await,
        }
    }
}

/// A [`Hold`] in this process: a few words, since it is handed on often. What it holds is given back with it, unless
/// it was settled.
pub struct LocalHold {
    held: Arc<Held>,
    tenant: Arc<Tenant>,
    slot: usize,
    is_settled: bool,
}

/// What is held. The tenant's list of open holds shares it.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) id: ReservationId,
    pub(super) request_id: RequestId,
    pub(super) holder: Holder,
    pub(super) admitted_at: Timestamp,
    pub(super) granted: Quantities,
    /// The limits it was admitted under, as they stood with it.
    pub(super) states: LimitStates,
    pub(super) violations: Vec<Violation>,
}

impl LocalHold {
    /// `slot`: the place of `held` in the tenant's list.
    pub(super) fn new(held: Arc<Held>, tenant: Arc<Tenant>, slot: usize) -> Self {
        Self {
            held,
            tenant,
            slot,
            is_settled: false,
        }
    }

    fn id(&self) -> ReservationId {
        self.held.id
    }

    fn admitted_at(&self) -> Timestamp {
        self.held.admitted_at
    }

    fn granted(&self, feature: &FeatureKey) -> Quantity {
        self.held.granted.of(feature)
    }

    fn states(&self) -> &LimitStates {
        &self.held.states
    }

    fn violations(&self) -> &[Violation] {
        &self.held.violations
    }

    fn mark_detached(&self) {
        let mut counters = self.tenant.lock();
        if let Some(open) = counters.holds.get_mut(self.slot, self.held.id) {
            open.is_detached = true;
        }
    }

    fn settle(mut self, seq: Seq, used: &Quantities) -> Settled {
        self.is_settled = true;
        let tenant = &*self.tenant;
        let mut counters = tenant.lock();
        // The tenant's list shares what is held no longer, so that nothing has to be copied.
        let was_open = counters.holds.remove(self.slot, self.held.id).is_some();
        let held = Arc::make_mut(&mut self.held);
        if was_open {
            tenant.tally.settled.fetch_add(1, Ordering::Relaxed);
        }
        let mut states = std::mem::take(&mut held.states);
        let usage = Usage {
            who: held.holder.who(),
            at: held.admitted_at,
            quantities: used,
        };
        if counters.is_evicted() {
            drop(counters); // released by hand, and its tenant thrown out since
            let ledger = tenant.ledger.upgrade();
            let overshoot = ledger.map(|ledger| ledger.add(tenant.id, seq, usage, &|_| None));
            let overshoot = overshoot.unwrap_or_default();
            return Settled { states, overshoot };
        }
        let granted = was_open.then_some(&held.granted);
        if states.is_empty() {
            // Held again after a restart: judged by the limits last seen, as usage without a hold is.
            if let Some(granted) = granted {
                counters.give_back(usage.who, usage.at, granted);
            }
            let judged = judged_settle(&mut counters, seq, usage, &|_| None);
            drop(counters);
            let overshoot = overshoot_of(used, &judged);
            return Settled { states, overshoot };
        }
        counters.settle_hold(granted, seq, usage, &mut states);
        drop(counters);
        let overshoot = overshoot(used, || {
            states
                .iter()
                .filter_map(|it| Some((&it.limit.feature, it.settled, it.limit.hard?)))
        });
        Settled { states, overshoot }
    }
}

impl Drop for LocalHold {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        let was_open = self.tenant.lock().end(self.slot, self.held.id).is_some(); // unless it was ended by hand
        if was_open {
            self.tenant.tally.released.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for LocalHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalHold")
            .field("id", &self.held.id)
            .field("tenant", &self.tenant.id)
            .field("admitted_at", &self.held.admitted_at)
            .field("granted", &self.held.granted)
            .finish_non_exhaustive()
    }
}

/// A version 7 id (RFC 9562 §5.7) of the time, 42 of a ledger's random bits and a running number: `clock::new_id` asks
/// for random bits each time, which takes longer than the whole decision.
pub(super) fn id_of_hold(now: Timestamp, seed: Uuid, number: u64) -> ReservationId {
    let (_, random) = seed.as_u64_pair();
    let millis = u64::try_from(now.micros() / 1000).unwrap_or(0);
    let high = (millis << 16) | 0x7000 | (random & 0xfff);
    let low = (0b10 << 62) | (((random >> 12) & 0x3fff_ffff) << 32) | (number & 0xffff_ffff);
    ReservationId::new(Uuid::from_u64_pair(high, low))
}

/// Whose hold it is within the tenant.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    pub(super) key: Option<KeyId>,
    /// `None` for the user `""`.
    pub(super) user: Option<Arc<str>>,
}

impl Holder {
    pub(super) fn who(&self) -> Who<'_> {
        Who {
            key: self.key,
            user: self.user.as_deref().unwrap_or(""),
        }
    }
}

/// A request's id, kept without an allocation where it has the usual length of a UUID.
pub(super) type RequestId = SmallVec<[u8; 40]>;

/// What a tenant's counters know of an open hold.
#[derive(Debug)]
pub(super) struct OpenHold {
    pub(super) held: Arc<Held>,
    pub(super) is_detached: bool,
}

impl Held {
    fn counts_in(&self, subject: SubjectRef<'_>, window: Window) -> bool {
        window.contains(self.admitted_at) && self.holder.who().subjects().any(|it| it == subject)
    }
}

impl OpenHold {
    pub(super) fn info(&self, tenant: TenantId) -> HoldInfo {
        HoldInfo {
            id: self.held.id,
            tenant,
            request_id: String::from_utf8_lossy(&self.held.request_id).into_owned(),
            quantities: self.held.granted.clone(),
            since: self.held.admitted_at,
            is_detached: self.is_detached,
        }
    }
}

/// A quiet tenant keeps this many places; a burst's are given back.
const KEPT_SLOTS: usize = 8;

/// The open holds of one tenant. Places are used again, so a hold is found by its place *and* its id. Those of a quiet
/// tenant lie beside its counters: among many tenants each further piece of memory is a wait for it.
#[derive(Debug, Default)]
pub(super) struct OpenHolds {
    slots: SmallVec<[Option<OpenHold>; 2]>,
    free: SmallVec<[usize; 2]>,
}

impl OpenHolds {
    pub(super) fn insert(&mut self, held: Arc<Held>) -> usize {
        let hold = OpenHold {
            held,
            is_detached: false,
        };
        if let Some(slot) = self.free.pop() {
            self.slots[slot] = Some(hold);
            return slot;
        }
        self.slots.push(Some(hold));
        self.slots.len() - 1
    }

    pub(super) fn get_mut(&mut self, slot: usize, id: ReservationId) -> Option<&mut OpenHold> {
        let hold = self.slots.get_mut(slot)?.as_mut()?;
        (hold.held.id == id).then_some(hold)
    }

    pub(super) fn remove(&mut self, slot: usize, id: ReservationId) -> Option<OpenHold> {
        self.get_mut(slot, id)?;
        let hold = self.slots[slot].take();
        self.free.push(slot);
        if self.is_empty() && self.slots.len() > KEPT_SLOTS {
            *self = Self::default();
        }
        hold
    }

    pub(super) fn position(&self, id: ReservationId) -> Option<usize> {
        let is_it = |slot: &Option<OpenHold>| slot.as_ref().is_some_and(|hold| hold.held.id == id);
        self.slots.iter().position(is_it)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &OpenHold> {
        self.slots.iter().flatten()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Calls `add` with what each open hold holds in the counter named.
    pub(super) fn held_in(
        &self,
        subject: SubjectRef<'_>,
        feature: &FeatureKey,
        window: Window,
        add: impl FnMut(Quantity),
    ) {
        self.iter()
            .map(|hold| &*hold.held)
            .filter(|held| held.counts_in(subject, window))
            .map(|held| held.granted.of(feature))
            .for_each(add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_of_version_7_of_its_time_its_ledger_and_its_number() {
        let now = Timestamp::from_seconds(1_800_000_000);
        let seeds = [1, 1 << 41].map(|random| Uuid::from_u64_pair(0, random));
        let ids = seeds.map(|seed| [0, 1, u64::MAX].map(|number| id_of_hold(now, seed, number)));
        let ids: Vec<Uuid> = ids.into_iter().flatten().map(|id| id.uuid()).collect();
        for (place, id) in ids.iter().enumerate() {
            assert_eq!(id.get_version_num(), 7);
            assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
            let (seconds, _) = id.get_timestamp().unwrap().to_unix();
            assert_eq!(seconds, 1_800_000_000);
            assert!(!ids[..place].contains(id));
        }
    }
}
