//! The open holds of this node, and what a request has of one.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{RedisLedger, wire};
use crate::{
    domain::{
        feature::FeatureKey,
        ids::{KeyId, ReservationId, TenantId},
        limit::{LimitStates, Violation},
        quantity::Quantity,
        time::Timestamp,
        usage::{Quantities, UsageEvent},
    },
    ledger::{HoldInfo, Settled},
    store::usage::Seq,
};

/// What one request of this node holds.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) id: ReservationId,
    pub(super) tenant: TenantId,
    pub(super) key: Option<KeyId>,
    pub(super) user: String,
    pub(super) request_id: String,
    pub(super) admitted_at: Timestamp,
    pub(super) granted: Quantities,
    pub(super) is_detached: AtomicBool,
}

impl Open {
    pub(super) fn wire(&self, node: &str) -> wire::Held {
        let rest = (node, self.key, &*self.user, &*self.request_id);
        wire::Held::new(self.id, self.admitted_at, &self.granted, rest)
    }

    pub(super) fn info(&self) -> HoldInfo {
        HoldInfo {
            id: self.id,
            tenant: self.tenant,
            request_id: self.request_id.clone(),
            quantities: self.granted.clone(),
            since: self.admitted_at,
            is_detached: self.is_detached.load(Ordering::Relaxed),
        }
    }
}

/// Every open hold of this node. Calls that concern one are put into their lane under this lock, so that a hold which
/// ends is never held again by a renewal that was collected before.
#[derive(Debug, Default)]
pub(super) struct Holds(Mutex<HashMap<ReservationId, Arc<Open>>>);

impl Holds {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<ReservationId, Arc<Open>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn remove(&self, id: ReservationId) -> Option<Arc<Open>> {
        self.lock().remove(&id)
    }
}

/// What one request in flight may still use, held in Redis. Settled, it becomes usage; dropped, it gives everything back.
pub struct RedisHold {
    pub(super) ledger: Weak<RedisLedger>,
    pub(super) open: Arc<Open>,
    pub(super) states: LimitStates,
    pub(super) violations: Vec<Violation>,
    /// The limits of `states`, as scripts name them.
    pub(super) limits: Vec<wire::Limit>,
    pub(super) is_ended: bool,
}

impl RedisHold {
    pub(in crate::ledger) fn id(&self) -> ReservationId {
        self.open.id
    }

    pub(in crate::ledger) fn admitted_at(&self) -> Timestamp {
        self.open.admitted_at
    }

    pub(in crate::ledger) fn granted(&self, feature: &FeatureKey) -> Quantity {
        self.open.granted.of(feature)
    }

    pub(in crate::ledger) fn states(&self) -> &LimitStates {
        &self.states
    }

    pub(in crate::ledger) fn violations(&self) -> &[Violation] {
        &self.violations
    }

    pub(in crate::ledger) fn mark_detached(&self) {
        self.open.is_detached.store(true, Ordering::Relaxed);
    }

    pub(in crate::ledger) async fn settle(mut self, seq: Seq, event: &UsageEvent) -> Settled {
        self.is_ended = true;
        match self.ledger.upgrade() {
            Some(ledger) => ledger.settle(&mut self, seq, event).await,
            None => Settled::default(),
        }
    }
}

impl Drop for RedisHold {
    fn drop(&mut self) {
        if self.is_ended {
            return;
        }
        if let Some(ledger) = self.ledger.upgrade() {
            ledger.give_back(&self.open);
        }
    }
}

impl fmt::Debug for RedisHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisHold")
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}
