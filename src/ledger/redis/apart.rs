//! Deciding without Redis: by the totals that this node saw last (fail mode `open`).

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash as _, Hasher as _},
    sync::{Arc, Mutex, Weak},
};

use futures_util::future::BoxFuture;
use quick_cache::sync::Cache;

use super::{
    RedisLedger, lock,
    wire::{self, CounterId},
};
use crate::{
    domain::{ids::TenantId, quantity::Quantity, usage::UsageEvent},
    ledger::{BaseTotals, LedgerAsk, LedgerError, LocalLedger, Reserved},
    store::usage::{CounterOf, Seq},
};

/// How many counters' last totals are remembered.
const COUNTERS: usize = 200_000;
const TENANTS: usize = 100_000;
/// Tenants that may have counters of their own here while Redis is away.
const TENANTS_APART: usize = 10_000;

/// What was seen last, and the ledger that stands on it while Redis is away.
pub(super) struct Apart {
    settled: Cache<(TenantId, u64), Quantity>,
    tenants: Cache<TenantId, ()>,
    ledger: Mutex<Option<Arc<LocalLedger>>>,
}

impl Apart {
    pub(super) fn new() -> Self {
        Self {
            settled: Cache::new(COUNTERS),
            tenants: Cache::new(TENANTS),
            ledger: Mutex::default(),
        }
    }

    /// Remembers what limits stood at.
    pub(super) fn note(&self, tenant: TenantId, limits: &[wire::Limit], states: &[(i64, i64)]) {
        for (limit, (settled, _)) in limits.iter().zip(states) {
            let key = (tenant, hash_of(&limit.counter));
            self.settled.insert(key, Quantity::new(*settled));
        }
        if self.tenants.get(&tenant).is_none() {
            self.tenants.insert(tenant, ());
        }
    }

    fn last_seen(&self, tenant: TenantId, counter: &CounterOf) -> Option<Quantity> {
        let counter = CounterId::of(counter);
        self.settled.get(&(tenant, hash_of(&counter)))
    }

    /// The tenants that were decided on lately.
    pub(super) fn tenants(&self) -> Vec<TenantId> {
        self.tenants.iter().map(|(tenant, ())| tenant).collect()
    }

    /// Counts usage in the ledger that stands in, if one does.
    pub(super) fn record(&self, seq: Seq, event: &UsageEvent) {
        let ledger = lock(&self.ledger).clone();
        if let Some(ledger) = ledger {
            ledger.record(seq, event, &|_| None);
        }
    }

    /// Redis is back: what stood in for it is of the past.
    pub(super) fn end(&self) {
        *lock(&self.ledger) = None;
    }
}

fn hash_of(counter: &CounterId) -> u64 {
    let mut hasher = DefaultHasher::new();
    counter.hash(&mut hasher);
    hasher.finish()
}

impl RedisLedger {
    /// Decides by what this node saw last, and what it was told since.
    pub(in crate::ledger) async fn reserve_apart(
        &self,
        ask: &LedgerAsk<'_>,
    ) -> Result<Reserved, LedgerError> {
        let ledger = {
            let mut ledger = lock(&self.apart.ledger);
            let made = ledger.get_or_insert_with(|| {
                let base = LastSeen(Weak::clone(&self.this));
                LocalLedger::new(Arc::new(base), TENANTS_APART)
            });
            Arc::clone(made)
        };
        ledger.reserve(ask).await
    }
}

/// A counter begins with what was seen last, else with what the store says, else at zero.
struct LastSeen(Weak<RedisLedger>);

impl BaseTotals for LastSeen {
    fn load<'a>(
        &'a self,
        tenant: TenantId,
        counters: &'a [CounterOf],
    ) -> BoxFuture<'a, Result<(Vec<Quantity>, Seq), LedgerError>> {
        Box::pin(async move {
            let Some(ledger) = self.0.upgrade() else {
                return Err(LedgerError::Unavailable("the server stops".to_owned()));
            };
            let covered = ledger.base.last_seq();
            let seen: Vec<Option<Quantity>> = counters
                .iter()
                .map(|counter| ledger.apart.last_seen(tenant, counter))
                .collect();
            let stored = if seen.iter().all(Option::is_some) {
                None
            } else {
                ledger.base.sums(tenant, counters, &[]).await.ok()
            };
            let sums = seen.iter().enumerate().map(|(index, seen)| {
                let stored = || {
                    stored
                        .as_ref()
                        .and_then(|(sums, _)| sums.get(index).copied())
                };
                seen.or_else(stored).unwrap_or(Quantity::ZERO)
            });
            Ok((sums.collect(), covered))
        })
    }
}
