//! Holding again, after a restart, what was held before it: reservations whose time is not over yet.

use super::{
    Hold, LocalLedger,
    hold::{Held, Holder, LocalHold, RequestId},
    sync::{Arc, Ordering},
};
use crate::domain::{
    ids::{KeyId, ReservationId, TenantId},
    limit::LimitStates,
    time::Timestamp,
    usage::Quantities,
};

/// A hold that was granted before.
#[derive(Clone, Copy, Debug)]
pub struct Granted<'a> {
    pub id: ReservationId,
    pub tenant: TenantId,
    pub key: Option<KeyId>,
    /// The end user; `""` if it names none.
    pub user: &'a str,
    pub quantities: &'a Quantities,
    pub request_id: &'a str,
    pub admitted_at: Timestamp,
}

impl LocalLedger {
    pub(super) fn reopen(self: &Arc<Self>, granted: Granted<'_>, now: Timestamp) -> Hold {
        loop {
            let tenant = self.find_or_add(granted.tenant, now);
            let mut counters = tenant.lock();
            if counters.is_evicted() {
                drop(counters);
                continue;
            }
            let held = Arc::new(Held {
                id: granted.id,
                request_id: RequestId::from_slice(granted.request_id.as_bytes()),
                holder: Holder {
                    key: granted.key,
                    user: counters.user(granted.user),
                },
                admitted_at: granted.admitted_at,
                granted: granted.quantities.clone(),
                states: LimitStates::default(),
                violations: Vec::new(),
            });
            let slot = counters.open(Arc::clone(&held));
            drop(counters);
            self.tally.opened.fetch_add(1, Ordering::Relaxed);
            return Hold::Local(LocalHold::new(held, tenant, slot));
        }
    }
}
