//! A hold: what one request in flight may still use.

use std::fmt;

use smallvec::SmallVec;

use super::{
    HoldInfo, Settled,
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
        usage::Quantities,
        window::Window,
    },
    store::usage::Seq,
};

/// What one request in flight may still use. Settled, it becomes usage; dropped, it gives everything back.
///
/// Boxed: it is handed on many times while its request runs.
pub struct Hold(Box<Held>);

pub(super) struct Held {
    pub(super) tenant: Arc<Tenant>,
    /// Its place among the tenant's open holds.
    pub(super) slot: usize,
    pub(super) id: ReservationId,
    pub(super) holder: Holder,
    pub(super) admitted_at: Timestamp,
    pub(super) granted: Quantities,
    pub(super) states: LimitStates,
    pub(super) violations: Vec<Violation>,
    pub(super) is_settled: bool,
}

impl Hold {
    pub(super) fn new(held: Held) -> Self {
        Self(Box::new(held))
    }

    #[must_use]
    pub fn id(&self) -> ReservationId {
        self.0.id
    }

    #[must_use]
    pub fn admitted_at(&self) -> Timestamp {
        self.0.admitted_at
    }

    /// How much of `feature` is held; zero if none was wanted.
    #[must_use]
    pub fn granted(&self, feature: &FeatureKey) -> Quantity {
        self.0.granted.of(feature)
    }

    /// Every limit that applied at admission, in the order given, this hold included in `reserved`.
    #[must_use]
    pub fn states(&self) -> &LimitStates {
        &self.0.states
    }

    /// What should have refused the request, had violations not only been noted; the one that resets last first.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.0.violations
    }

    /// Notes that the client has gone while the request still runs.
    pub fn mark_detached(&self) {
        let mut counters = self.0.tenant.lock();
        if let Some(open) = counters.holds.get_mut(self.0.slot, self.0.id) {
            open.is_detached = true;
        }
    }

    /// Replaces what is held by what was used: the event `seq` of the journal, durable by now.
    pub fn settle(mut self, seq: Seq, used: &Quantities) -> Settled {
        self.0.is_settled = true;
        let mut states = std::mem::take(&mut self.0.states);
        let held = &*self.0;
        let usage = Usage {
            who: held.holder.who(),
            at: held.admitted_at,
            quantities: used,
        };
        let mut counters = held.tenant.lock();
        if states.is_empty() && !counters.is_evicted() {
            // Held again after a restart: judged by the limits last seen, as usage without a hold is.
            if counters.end(held.slot, held.id).is_some() {
                held.tenant.tally.settled.fetch_add(1, Ordering::Relaxed);
            }
            let judged = judged_settle(&mut counters, seq, usage);
            drop(counters);
            let overshoot = overshoot_of(used, &judged);
            return Settled { states, overshoot };
        }
        if counters.settle_hold(held.slot, held.id, seq, usage) {
            held.tenant.tally.settled.fetch_add(1, Ordering::Relaxed);
        }
        if counters.is_evicted() {
            drop(counters); // released by hand, and its tenant thrown out since
            let ledger = held.tenant.ledger.upgrade();
            let overshoot = ledger.map(|ledger| ledger.add(held.tenant.id, seq, usage));
            let overshoot = overshoot.unwrap_or_default();
            return Settled { states, overshoot };
        }
        counters.refresh(usage.who, &mut states);
        drop(counters);
        let overshoot = overshoot(used, || {
            states
                .iter()
                .filter_map(|it| Some((&it.limit.feature, it.settled, it.limit.hard?)))
        });
        Settled { states, overshoot }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let held = &*self.0;
        if held.is_settled {
            return;
        }
        let was_open = held.tenant.lock().end(held.slot, held.id).is_some(); // unless it was ended by hand
        if was_open {
            held.tenant.tally.released.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold")
            .field("id", &self.0.id)
            .field("tenant", &self.0.tenant.id)
            .field("admitted_at", &self.0.admitted_at)
            .field("granted", &self.0.granted)
            .finish_non_exhaustive()
    }
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
type RequestId = SmallVec<[u8; 40]>;

/// What a tenant's counters know of an open hold.
#[derive(Debug)]
pub(super) struct OpenHold {
    id: ReservationId,
    request_id: RequestId,
    pub(super) holder: Holder,
    pub(super) granted: Quantities,
    pub(super) admitted_at: Timestamp,
    pub(super) is_detached: bool,
}

impl OpenHold {
    pub(super) fn new(
        id: ReservationId,
        request_id: &str,
        holder: Holder,
        granted: Quantities,
        admitted_at: Timestamp,
    ) -> Self {
        Self {
            id,
            request_id: RequestId::from_slice(request_id.as_bytes()),
            holder,
            granted,
            admitted_at,
            is_detached: false,
        }
    }

    fn counts_in(&self, subject: SubjectRef<'_>, window: Window) -> bool {
        window.contains(self.admitted_at) && self.holder.who().subjects().any(|it| it == subject)
    }

    pub(super) fn info(&self, tenant: TenantId) -> HoldInfo {
        HoldInfo {
            id: self.id,
            tenant,
            request_id: String::from_utf8_lossy(&self.request_id).into_owned(),
            quantities: self.granted.clone(),
            since: self.admitted_at,
            is_detached: self.is_detached,
        }
    }
}

/// A quiet tenant keeps this many places; a burst's are given back.
const KEPT_SLOTS: usize = 8;

/// The open holds of one tenant. Places are used again, so a hold is found by its place *and* its id.
#[derive(Debug, Default)]
pub(super) struct OpenHolds {
    slots: Vec<Option<OpenHold>>,
    free: Vec<usize>,
}

impl OpenHolds {
    pub(super) fn insert(&mut self, hold: OpenHold) -> usize {
        if let Some(slot) = self.free.pop() {
            self.slots[slot] = Some(hold);
            return slot;
        }
        self.slots.push(Some(hold));
        self.slots.len() - 1
    }

    pub(super) fn get_mut(&mut self, slot: usize, id: ReservationId) -> Option<&mut OpenHold> {
        let hold = self.slots.get_mut(slot)?.as_mut()?;
        (hold.id == id).then_some(hold)
    }

    pub(super) fn remove(&mut self, slot: usize, id: ReservationId) -> Option<OpenHold> {
        self.get_mut(slot, id)?;
        let hold = self.slots[slot].take();
        self.free(slot);
        hold
    }

    /// Drops what is at `slot`, where a hold has just been found.
    pub(super) fn free(&mut self, slot: usize) {
        self.slots[slot] = None;
        self.free.push(slot);
        if self.is_empty() && self.slots.len() > KEPT_SLOTS {
            *self = Self::default();
        }
    }

    pub(super) fn position(&self, id: ReservationId) -> Option<usize> {
        let is_it = |slot: &Option<OpenHold>| slot.as_ref().is_some_and(|hold| hold.id == id);
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
            .filter(|hold| hold.counts_in(subject, window))
            .map(|hold| hold.granted.of(feature))
            .for_each(add);
    }
}
