//! What can be seen of open holds, and ending one by hand. Looks through all tenants in memory, so it is for people
//! and scrapes, not for requests.

use super::{
    CounterKey, EndedCounts, HoldInfo, InFlight, LocalLedger,
    sync::{Arc, Ordering, PoisonError},
    tenant::Tenant,
};
use crate::{
    domain::{
        ids::{ReservationId, TenantId},
        quantity::Quantity,
    },
    store::usage::Seq,
};

impl LocalLedger {
    pub(super) fn in_flight(&self) -> InFlight {
        let mut in_flight = InFlight::default();
        if !self.has_open_holds() {
            return in_flight;
        }
        self.visit_tenants(|tenant| {
            for hold in tenant.lock().holds.iter() {
                in_flight.held += 1;
                in_flight.detached += u64::from(hold.is_detached);
                let admitted_at = hold.held.admitted_at;
                let oldest = in_flight.oldest.unwrap_or(admitted_at);
                in_flight.oldest = Some(oldest.min(admitted_at));
            }
        });
        in_flight
    }

    pub(super) fn list_holds(&self) -> Vec<HoldInfo> {
        let mut holds = Vec::new();
        if self.has_open_holds() {
            self.visit_tenants(|tenant| {
                holds.extend(tenant.lock().holds.iter().map(|hold| hold.info(tenant.id)));
            });
        }
        holds.sort_unstable_by_key(|hold| (hold.since, hold.id));
        holds
    }

    pub(super) fn release(&self, id: ReservationId) -> Option<HoldInfo> {
        let mut released = None;
        self.visit_tenants(|tenant| {
            let mut counters = tenant.lock();
            if let Some(slot) = counters.holds.position(id) {
                released = counters.end(slot, id).map(|hold| hold.info(tenant.id));
            }
        });
        if released.is_some() {
            self.tally.released.fetch_add(1, Ordering::Relaxed);
        }
        released
    }

    pub(super) fn ended(&self) -> EndedCounts {
        EndedCounts {
            settled: self.tally.settled.load(Ordering::Relaxed),
            released: self.tally.released.load(Ordering::Relaxed),
            reaped: 0,
            expired: 0,
        }
    }

    pub(super) fn tenants(&self) -> Vec<TenantId> {
        let mut tenants = Vec::new();
        self.visit_tenants(|tenant| tenants.push(tenant.id));
        tenants
    }

    pub(super) fn drained_values(
        &self,
        tenant: TenantId,
        upto: Seq,
    ) -> Vec<(CounterKey, Quantity)> {
        self.find(tenant)
            .map_or_else(Vec::new, |tenant| tenant.lock().rows(upto))
    }

    fn has_open_holds(&self) -> bool {
        let EndedCounts {
            settled, released, ..
        } = self.ended();
        self.tally.opened.load(Ordering::Relaxed) != settled + released
    }

    fn visit_tenants(&self, mut visit: impl FnMut(&Arc<Tenant>)) {
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            shard.values().for_each(&mut visit);
        }
    }
}
