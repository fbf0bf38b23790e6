//! The live totals that decisions are made on: settled and reserved per tenant, subject, feature and window.
//!
//! A ledger knows nothing of plans, prices or HTTP: limits come in with each request, placed in time. It promises
//! that under any interleaving a reservation is held under *all* its limits or under none, that an event counts once
//! in every counter it belongs to, and that what is held comes back, whichever way a request ends.

mod amounts;
mod counter;
mod drain;
mod gauges;
mod hold;
mod load;
mod local;
mod redis;
mod reopen;
mod subjects;
mod sync;
mod tenant;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod model;
#[cfg(test)]
mod stress;
#[cfg(test)]
mod testing;

use futures_util::future::BoxFuture;

use self::sync::Arc;
pub use self::{
    counter::CounterKey,
    hold::Hold,
    local::LocalLedger,
    redis::{
        Claimed, Keep, LEASE, RedisHold, RedisLedger, RedisSettings, Servers, Shared, SharedBase,
        SumsOfEvents, look_at_servers,
    },
    reopen::Granted,
};
use crate::{
    domain::{
        feature::FeatureKey,
        ids::{KeyId, ReservationId, TenantId},
        limit::{ActiveLimit, LimitState, LimitStates, SoftLimitMode, Violation},
        price::Rates,
        quantity::Quantity,
        time::Timestamp,
        usage::{Quantities, UsageEvent},
    },
    store::usage::{CounterOf, Seq},
};

/// Where the totals are kept.
///
/// What asks Redis is boxed: a call on the network costs more than a box, and a request that has no need of Redis
/// would have room for it.
#[derive(Clone)]
pub enum Ledger {
    /// In this process: one node, exact by a short lock a tenant.
    Local(Arc<LocalLedger>),
    /// Shared by replicas.
    Redis(Arc<RedisLedger>),
}

/// What to do with a request that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnViolation {
    /// Hold nothing.
    Refuse,
    /// Hold all that was asked, lower nothing, and remember what was violated (guardrail mode `observe`).
    Note,
}

/// Who said how long an output may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    ByClient,
    /// The model's own largest output.
    ByDefault,
}

/// How much of a feature a request wants; below zero counts as zero, and zero always fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Amount {
    /// This much or nothing.
    Exact(Quantity),
    /// All of `want`, or what is left if that is at least `floor`.
    UpTo { want: Quantity, floor: Quantity },
    /// `answers` times `per_answer` if that fits, else lowered: to all that is left where the client named the
    /// maximum, else to the larger of `reservation` and a quarter of what is left. What is granted is a multiple of
    /// `answers`, and refused below `floor` for each.
    Output {
        per_answer: Quantity,
        answers: i64,
        named: Named,
        floor: Quantity,
        reservation: Quantity,
    },
    /// What the input and output that the same request gets cost at most; these are lowered to what the limits of
    /// this feature leave, as they are by their own limits. Stands last among the wants.
    Priced(Rates),
}

/// What a request wants of one feature; a request names each feature at most once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    pub feature: FeatureKey,
    pub amount: Amount,
}

/// A request to hold usage. The event that settles it must carry the same tenant, key, user and (`admitted_at`) `now`.
#[derive(Clone, Copy, Debug)]
pub struct LedgerAsk<'a> {
    pub tenant: TenantId,
    /// Without one, limits of scope `key` do not apply.
    pub key: Option<KeyId>,
    /// The end user; `""` if the request names none.
    pub user: &'a str,
    /// All limits of the tenant at `now`: each window contains it.
    pub limits: &'a Arc<[ActiveLimit]>,
    pub wants: &'a [Want],
    pub soft: SoftLimitMode,
    pub on_violation: OnViolation,
    pub request_id: &'a str,
    pub now: Timestamp,
}

/// What became of a request to hold usage.
#[derive(Debug)]
pub enum Reserved {
    Held(Hold),
    /// It does not fit; nothing is held.
    Over(Box<Over>),
    /// It is another time by the clock that decides: nothing is held. To be asked again with the limits of that instant.
    Elsewhen(Timestamp),
}

/// Why a request does not fit.
#[derive(Debug)]
pub struct Over {
    /// The one that resets last first.
    pub violations: Vec<Violation>,
    /// Every limit that applies, in the order given.
    pub states: LimitStates,
}

/// From when on limits of a feature count, where that is later than their windows begin: a reset.
pub type Since<'a> = &'a (dyn Fn(&FeatureKey) -> Option<Timestamp> + Send + Sync);

/// Where limits stand after usage was settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// The limits that the hold was admitted under, in the order given; none for usage without a hold.
    pub states: LimitStates,
    /// Per feature, how much further this usage took settled use past a hard limit. Of several limits the largest.
    pub overshoot: Quantities,
}

/// What changes in the journal's snapshot when events leave the journal; no key is in both lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Rows to write: the counter's value over all events up to the last one drained.
    pub changed: Vec<(CounterKey, Quantity)>,
    /// Rows to delete, if they are there.
    pub removed: Vec<CounterKey>,
}

/// Holds that are open now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    pub held: u64,
    /// Those of `held` whose client has gone.
    pub detached: u64,
    /// When the oldest was admitted.
    pub oldest: Option<Timestamp>,
}

/// How holds ended, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndedCounts {
    pub settled: u64,
    /// Given back unused.
    pub released: u64,
    /// Given back since their node was silent for longer than a lease.
    pub reaped: u64,
    /// Reservations whose time was over, where the ledger itself looks after that.
    pub expired: u64,
}

/// An open hold, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldInfo {
    pub id: ReservationId,
    pub tenant: TenantId,
    pub request_id: String,
    pub quantities: Quantities,
    pub since: Timestamp,
    /// Its client has gone.
    pub is_detached: bool,
}

/// Why a ledger can't decide. Nothing is held; retrying is safe.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum LedgerError {
    #[error("the totals can't be read: {0}")]
    Unavailable(String),
    #[error("the totals can't be read in time")]
    TimedOut,
}

/// A live total that differed from the store's, and was set right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    pub counter: CounterKey,
    pub live: Quantity,
    pub stored: Quantity,
}

/// What counters start from: the settled totals of the system of record.
pub trait BaseTotals: Send + Sync {
    /// Sums of these counters in the order asked, and the journal's sequence that they cover: an event up to it is in
    /// the sums, a later one is not. Every event of the tenant that was durable when this was called is in them.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`] if they can't be read now.
    fn load<'a>(
        &'a self,
        tenant: TenantId,
        counters: &'a [CounterOf],
    ) -> BoxFuture<'a, Result<(Vec<Quantity>, Seq), LedgerError>>;
}

impl Ledger {
    /// Holds what a request may use: under all of its limits at once, or not at all.
    ///
    /// Waits only to read counters that are not in memory yet, or for what is shared. Dropping the future leaves
    /// nothing behind.
    ///
    /// # Errors
    /// [`LedgerError`] if no decision can be made; nothing is held.
    pub async fn reserve(&self, ask: &LedgerAsk<'_>) -> Result<Reserved, LedgerError> {
        match self {
            Self::Local(local) => local.reserve(ask).await,
            Self::Redis(redis) => Box::pin(redis.reserve(ask)).await,
        }
    }

    /// Decides by what this node knows alone, where [`reserve`](Self::reserve) could not.
    ///
    /// # Errors
    /// [`LedgerError`] if it knows nothing of its own.
    pub async fn reserve_apart(&self, ask: &LedgerAsk<'_>) -> Result<Reserved, LedgerError> {
        match self {
            Self::Local(_) => {
                let why = "there is nothing else to decide by";
                Err(LedgerError::Unavailable(why.to_owned()))
            }
            Self::Redis(redis) => redis.reserve_apart(ask).await,
        }
    }

    /// Holds again what was granted before a restart, whatever the limits say by now. To be called before the first
    /// request is decided. `None`: it is still held, since holds outlive the process here.
    #[must_use]
    pub fn reopen(&self, granted: Granted<'_>, now: Timestamp) -> Option<Hold> {
        match self {
            Self::Local(local) => Some(local.reopen(granted, now)),
            Self::Redis(_) => None,
        }
    }

    /// Has a hold of the reservation API last until `deadline`. Where it outlives this process nothing comes back, and
    /// it ends by itself; else the hold itself does, and is to be dropped then.
    ///
    /// # Errors
    /// [`LedgerError`]: nothing is held any more.
    pub async fn keep(&self, hold: Hold, deadline: Timestamp) -> Result<Option<Hold>, LedgerError> {
        match (self, hold) {
            (Self::Redis(redis), Hold::Redis(hold)) => {
                redis.hand_over(hold, deadline).await.map(|()| None)
            }
            (_, hold) => Ok(Some(hold)),
        }
    }

    /// A hold that outlives its process, to be settled or dropped by this one. Whether it is open is not known.
    #[must_use]
    pub fn kept(&self, tenant: TenantId, id: ReservationId) -> Option<Hold> {
        match self {
            Self::Local(_) => None,
            Self::Redis(redis) => Some(redis.take_over(tenant, id)),
        }
    }

    /// Adds durable usage that had no hold (reported by hand or as CloudEvents, a correction), whatever the limits say.
    ///
    /// Its overshoot is measured by the hard limits last seen of counters in memory whose windows begin where `since`
    /// says or later.
    pub async fn record(&self, seq: Seq, event: &UsageEvent, since: Since<'_>) -> Settled {
        match self {
            Self::Local(local) => local.record(seq, event, since),
            Self::Redis(redis) => Box::pin(redis.record(seq, event, since)).await,
        }
    }

    /// Where the limits of a tenant, one of its keys and one of its users stand; in the order given, without those
    /// that do not apply.
    ///
    /// # Errors
    /// [`LedgerError`] if a counter can't be read.
    pub async fn states(
        &self,
        tenant: TenantId,
        key: Option<KeyId>,
        user: &str,
        limits: &Arc<[ActiveLimit]>,
        now: Timestamp,
    ) -> Result<Vec<LimitState>, LedgerError> {
        match self {
            Self::Local(local) => local.states(tenant, key, user, limits, now).await,
            Self::Redis(redis) => Box::pin(redis.states(tenant, key, user, limits, now)).await,
        }
    }

    /// Takes note that the store is about to have these events, none of which it has.
    pub async fn announce(&self, events: &[(Seq, UsageEvent)]) {
        match self {
            Self::Local(_) => {}
            Self::Redis(redis) => redis.announce(events).await,
        }
    }

    /// Takes note that the store has these events, oldest first, and says what that changes in the snapshot, to be
    /// written in the transaction that deletes them from the journal. If that transaction fails, the same events
    /// come again with the next call, and so do their changes.
    pub async fn drained(&self, events: &[(Seq, UsageEvent)]) -> Drained {
        match self {
            Self::Local(local) => local.drained(events),
            Self::Redis(redis) => {
                redis.recorded(events).await;
                Drained::default()
            }
        }
    }

    /// Takes note that the journal has forgotten these events.
    pub async fn forgotten(&self, events: &[(Seq, UsageEvent)]) {
        match self {
            Self::Local(_) => {}
            Self::Redis(redis) => redis.forget(events).await,
        }
    }

    /// Builds the counters of `snapshot`, whose rows cover the journal up to `covered`, and adds the events after
    /// that. To be called once, before the first request. Nothing where counters are not this process's.
    pub fn restore(
        &self,
        snapshot: Vec<(CounterKey, Quantity)>,
        undrained: &[(Seq, UsageEvent)],
        covered: Seq,
        now: Timestamp,
    ) {
        match self {
            Self::Local(local) => local.restore(snapshot, undrained, covered, now),
            Self::Redis(_) => {}
        }
    }

    /// Gives back what a hold holds, by hand; one of another node only if its tenant is named. If its request is
    /// settled later, its usage counts all the same. Whether there was such an open hold.
    pub async fn release(&self, tenant: Option<TenantId>, id: ReservationId) -> bool {
        match self {
            Self::Local(local) => local.release(id).is_some(),
            Self::Redis(redis) => redis.release(tenant, id).await,
        }
    }

    /// Drops the counters of an end user, which are read anew when they are needed, and gives the names of their rows
    /// in the snapshot, for the caller to delete. Not beside a drain.
    pub async fn forget_user(&self, tenant: TenantId, user: &str) -> Vec<CounterKey> {
        match self {
            Self::Local(local) => local.forget_user(tenant, user).await,
            Self::Redis(redis) => {
                redis.forget_user(tenant, user).await;
                Vec::new()
            }
        }
    }

    /// Of this node.
    #[must_use]
    pub fn in_flight(&self) -> InFlight {
        match self {
            Self::Local(local) => local.in_flight(),
            Self::Redis(redis) => redis.in_flight(),
        }
    }

    /// Every open hold of this node, the oldest first.
    #[must_use]
    pub fn list_holds(&self) -> Vec<HoldInfo> {
        match self {
            Self::Local(local) => local.list_holds(),
            Self::Redis(redis) => redis.list_holds(),
        }
    }

    /// The tenants whose counters are in memory, or were asked for lately.
    #[must_use]
    pub fn tenants(&self) -> Vec<TenantId> {
        match self {
            Self::Local(local) => local.tenants(),
            Self::Redis(redis) => redis.tenants(),
        }
    }

    /// The tenant's counters in memory over all events up to `upto`, the drained position; without those for which
    /// that can't be told.
    #[must_use]
    pub fn drained_values(&self, tenant: TenantId, upto: Seq) -> Vec<(CounterKey, Quantity)> {
        match self {
            Self::Local(local) => local.drained_values(tenant, upto),
            Self::Redis(_) => Vec::new(),
        }
    }

    /// Compares the tenant's shared counters with the store and sets right what differs; nothing where they are not
    /// shared. Windows that begin before `pruned_before` are left out.
    ///
    /// # Errors
    /// [`LedgerError`] if they can't be read.
    pub async fn repair(
        &self,
        tenant: TenantId,
        pruned_before: Timestamp,
    ) -> Result<Vec<Repaired>, LedgerError> {
        match self {
            Self::Local(_) => Ok(Vec::new()),
            Self::Redis(redis) => redis.repair(tenant, pruned_before).await,
        }
    }

    /// What is wrong with what is shared, if anything is.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        match self {
            Self::Local(_) => None,
            Self::Redis(redis) => redis.fault(),
        }
    }

    #[must_use]
    pub fn ended(&self) -> EndedCounts {
        match self {
            Self::Local(local) => local.ended(),
            Self::Redis(redis) => redis.ended(),
        }
    }
}
