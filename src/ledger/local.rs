//! The ledger of one node: counters in this process, exact by one short lock a tenant.
//!
//! Locks are taken in this order, and none is held across an await: a shard of the tenants' map, a tenant, the list
//! of changes for the next drain.

use uuid::Uuid;

use super::{
    BaseTotals, Hold, LedgerAsk, LedgerError, Reserved, Settled, Since,
    counter::CounterKey,
    drain::Drainage,
    hold::{LocalHold, id_of_hold},
    load::{Load, wait_for},
    subjects::{IdMap, Who},
    sync::{Arc, AtomicI64, Mutex, Ordering, PoisonError, RwLock, Weak},
    tenant::{Changes, DATED_AHEAD, Decided, Missing, Tally, Tenant, TenantCounters, Usage},
};
use crate::{
    clock,
    domain::{
        feature::FeatureKey,
        ids::{KeyId, ReservationId, TenantId},
        limit::{ActiveLimit, LimitState, LimitStates},
        quantity::Quantity,
        time::Timestamp,
        usage::{Quantities, UsageEvent},
    },
    store::usage::Seq,
};

/// How many keys and users of one tenant have counters in memory.
const MAX_MEMBERS: usize = 10_000;

/// Tenants are spread over at most this many maps, each with its own lock.
const MAX_SHARDS: usize = 64;

type Shard = RwLock<IdMap<TenantId, Arc<Tenant>>>;

pub struct LocalLedger {
    pub(super) this: Weak<Self>,
    base: Arc<dyn BaseTotals>,
    pub(super) shards: Vec<Shard>,
    /// The most tenants a shard.
    shard_capacity: usize,
    pub(super) max_members: usize,
    /// No event lies after this, in µs, but those that tenants in memory have seen since they are there.
    latest_elsewhere: AtomicI64,
    pub(super) changes: Arc<Changes>,
    pub(super) drainage: Mutex<Drainage>,
    /// Random bits of this ledger, for the ids of holds.
    seed: Uuid,
    pub(super) tally: Arc<Tally>,
}

impl LocalLedger {
    /// At most `capacity` tenants stay in memory (those in use aside), and 10,000 keys and users of each.
    #[must_use]
    pub fn new(base: Arc<dyn BaseTotals>, capacity: usize) -> Arc<Self> {
        Self::with_members(base, capacity, MAX_MEMBERS)
    }

    /// As [`new`](Self::new), with at most `max_members` keys and users of a tenant.
    #[must_use]
    pub fn with_members(
        base: Arc<dyn BaseTotals>,
        capacity: usize,
        max_members: usize,
    ) -> Arc<Self> {
        // A shard of a few tenants would throw out some that the whole has room for.
        let shards = (capacity / 16).clamp(1, MAX_SHARDS);
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            base,
            shards: (0..shards).map(|_| Shard::default()).collect(),
            shard_capacity: (capacity / shards).max(1),
            max_members,
            latest_elsewhere: AtomicI64::new(i64::MIN),
            changes: Arc::default(),
            drainage: Mutex::default(),
            seed: clock::new_id(),
            tally: Arc::default(),
        })
    }

    fn shard(&self, tenant: TenantId) -> &Shard {
        let [.., high, low] = tenant.uuid().into_bytes(); // random in every version of UUID
        let index = usize::from(u16::from_be_bytes([high, low])) % self.shards.len();
        &self.shards[index]
    }

    /// The tenant, if it is in memory.
    pub(super) fn find(&self, tenant: TenantId) -> Option<Arc<Tenant>> {
        let shard = self.shard(tenant).read();
        let shard = shard.unwrap_or_else(PoisonError::into_inner);
        shard.get(&tenant).map(Arc::clone)
    }

    pub(super) fn find_or_add(&self, tenant: TenantId, now: Timestamp) -> Arc<Tenant> {
        if let Some(found) = self.find(tenant) {
            found.touch(now);
            return found;
        }
        let shard = self.shard(tenant).write();
        let mut shard = shard.unwrap_or_else(PoisonError::into_inner);
        if !shard.contains_key(&tenant) && shard.len() >= self.shard_capacity {
            self.evict_from(&mut shard);
        }
        let found = shard
            .entry(tenant)
            .or_insert_with(|| Arc::new(self.new_tenant(tenant, now)));
        Arc::clone(found)
    }

    fn new_tenant(&self, tenant: TenantId, now: Timestamp) -> Tenant {
        self.note_elsewhere(now.plus(DATED_AHEAD));
        let latest_event_at = Timestamp::from_micros(self.latest_elsewhere.load(Ordering::SeqCst));
        Tenant::new(tenant, self, latest_event_at, now)
    }

    /// Notes that an event may exist which a tenant that is added from now on has not seen. The clock may have been
    /// set back since then, so that the present says nothing of it.
    pub(super) fn note_elsewhere(&self, at: Timestamp) {
        self.latest_elsewhere
            .fetch_max(at.micros(), Ordering::SeqCst);
    }

    /// Adds a tenant if there is room for it without throwing out another.
    pub(super) fn add_if_room(&self, tenant: TenantId, now: Timestamp) -> Option<Arc<Tenant>> {
        let shard = self.shard(tenant).write();
        let mut shard = shard.unwrap_or_else(PoisonError::into_inner);
        if !shard.contains_key(&tenant) && shard.len() >= self.shard_capacity {
            return None;
        }
        let found = shard
            .entry(tenant)
            .or_insert_with(|| Arc::new(self.new_tenant(tenant, now)));
        Some(Arc::clone(found))
    }

    /// Throws out tenants that nobody uses, the longest unused first: a few at once, so that not every newcomer
    /// has to look through all of them.
    fn evict_from(&self, shard: &mut IdMap<TenantId, Arc<Tenant>>) {
        let over = (shard.len() + 1).saturating_sub(self.shard_capacity);
        let mut to_go = over.max(self.shard_capacity / 16);
        let mut oldest: Vec<(i64, TenantId)> = shard
            .values()
            .map(|tenant| (tenant.used_at(), tenant.id))
            .collect();
        oldest.sort_unstable();
        for (_, id) in oldest {
            if to_go == 0 {
                break;
            }
            let evicted = shard.get(&id).and_then(|tenant| tenant.lock().evict());
            if let Some(latest_event_at) = evicted {
                self.note_elsewhere(latest_event_at);
                shard.remove(&id);
                to_go -= 1;
            }
        }
    }

    /// Waits until what was missing is there, or should be looked for again.
    async fn provide(&self, tenant: Arc<Tenant>, missing: Missing) -> Result<(), LedgerError> {
        match missing {
            Missing::Nothing => Ok(()),
            Missing::Wait(end) => wait_for(end).await,
            Missing::Load(counters, failure) => {
                Load::new(tenant, counters, failure).run(&*self.base).await
            }
        }
    }

    pub(super) async fn forget_user(&self, tenant: TenantId, user: &str) -> Vec<CounterKey> {
        let Some(found) = self.find(tenant) else {
            return Vec::new();
        };
        loop {
            // A sum that is being read may be from before the user was forgotten: it has to arrive first.
            let loading = match found.lock().forget_user(user) {
                Ok(rows) => return rows,
                Err(loading) => loading,
            };
            // Whether it worked is the reader's to know.
            drop(wait_for(loading).await);
        }
    }

    pub(super) async fn states(
        &self,
        tenant: TenantId,
        key: Option<KeyId>,
        user: &str,
        limits: &Arc<[ActiveLimit]>,
        now: Timestamp,
    ) -> Result<Vec<LimitState>, LedgerError> {
        let who = Who { key, user };
        loop {
            let found = self.find_or_add(tenant, now);
            let missing = match found.lock().look(who, limits, now) {
                Ok(states) => return Ok(states.to_vec()),
                Err(missing) => missing,
            };
            self.provide(found, missing).await?;
        }
    }

    pub(super) async fn reserve(&self, ask: &LedgerAsk<'_>) -> Result<Reserved, LedgerError> {
        debug_assert!(
            ask.limits.iter().all(|it| it.window.contains(ask.now)),
            "limits must be those of the request's own time"
        );
        loop {
            let tenant = self.find_or_add(ask.tenant, ask.now);
            let decided = tenant.lock().reserve(ask, || self.new_id(ask.now));
            let missing = match decided {
                Ok(Decided::Held { held, slot }) => {
                    let hold = LocalHold::new(held, tenant, slot);
                    return Ok(Reserved::Held(Hold::Local(hold)));
                }
                Ok(Decided::Over(over)) => return Ok(Reserved::Over(over)),
                Err(missing) => missing,
            };
            self.provide(tenant, missing).await?;
        }
    }

    fn new_id(&self, now: Timestamp) -> ReservationId {
        let number = self.tally.opened.fetch_add(1, Ordering::Relaxed);
        id_of_hold(now, self.seed, number)
    }

    pub(super) fn record(&self, seq: Seq, event: &UsageEvent, since: Since<'_>) -> Settled {
        Settled {
            states: LimitStates::default(),
            overshoot: self.add(event.tenant_id, seq, event.into(), since),
        }
    }

    /// Runs `act` on a tenant's counters if they are in memory, on behalf of an event admitted at `at`.
    pub(super) fn with_resident(
        &self,
        tenant: TenantId,
        at: Timestamp,
        act: impl FnOnce(&mut TenantCounters),
    ) {
        loop {
            let Some(found) = self.find(tenant) else {
                self.note_elsewhere(at);
                if self.find(tenant).is_none() {
                    return;
                }
                continue; // added before the note: it does not know of this event
            };
            let mut counters = found.lock();
            if !counters.is_evicted() {
                return act(&mut counters);
            }
        }
    }

    /// Adds a durable event to the tenant's counters in memory; those that are not will be read with it.
    pub(super) fn add(
        &self,
        tenant: TenantId,
        seq: Seq,
        usage: Usage<'_>,
        since: Since<'_>,
    ) -> Quantities {
        let mut judged = Judged::new();
        self.with_resident(tenant, usage.at, |counters| {
            judged = judged_settle(counters, seq, usage, since);
        });
        overshoot_of(usage.quantities, &judged)
    }
}

/// Feature, settled use, and hard limit of counters that an event was added to.
pub(super) type Judged = Vec<(FeatureKey, Quantity, Quantity)>;

/// Adds an event, and says where that leaves the counters whose hard limit was seen before.
pub(super) fn judged_settle(
    counters: &mut TenantCounters,
    seq: Seq,
    usage: Usage<'_>,
    since: Since<'_>,
) -> Judged {
    let mut judged = Judged::new();
    counters.settle(seq, usage, |counter| {
        let is_reset = since(&counter.feature).is_some_and(|at| counter.window.start() < at);
        if let Some(hard) = counter.hard.filter(|_| !counter.is_loading() && !is_reset) {
            judged.push((counter.feature.clone(), counter.settled(), hard));
        }
    });
    judged
}

pub(super) fn overshoot_of(used: &Quantities, judged: &Judged) -> Quantities {
    overshoot(used, || {
        judged
            .iter()
            .map(|(feature, settled, hard)| (feature, *settled, *hard))
    })
}

/// Per feature, how much of `used` lies above a hard limit: `judged` gives feature, settled use with it, hard limit.
pub(super) fn overshoot<'a, I>(used: &Quantities, judged: impl Fn() -> I) -> Quantities
where
    I: Iterator<Item = (&'a FeatureKey, Quantity, Quantity)>,
{
    if judged().all(|(_, settled, hard)| settled <= hard) {
        return Quantities::default();
    }
    let past = |feature: &FeatureKey, used: Quantity| {
        judged()
            .filter(|(of, _, _)| *of == feature)
            .map(|(_, settled, hard)| settled.minus(hard).at_least_zero().min(used))
            .max()
            .unwrap_or(Quantity::ZERO)
            .at_least_zero()
    };
    used.iter()
        .map(|(feature, used)| (feature.clone(), past(feature, used)))
        .collect()
}

#[cfg(test)]
mod tests;
