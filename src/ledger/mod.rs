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

use async_trait::async_trait;

use self::sync::Arc;
pub use self::{counter::CounterKey, hold::Hold, local::LocalLedger, reopen::Granted};
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
#[derive(Clone)]
pub enum Ledger {
    /// In this process: one node, exact by a short lock a tenant.
    Local(Arc<LocalLedger>),
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
    Over {
        /// The one that resets last first.
        violations: Vec<Violation>,
        /// Every limit that applies, in the order given.
        states: LimitStates,
    },
}

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
}

/// What counters start from: the settled totals of the system of record.
#[async_trait]
pub trait BaseTotals: Send + Sync {
    /// Sums of these counters in the order asked, and the journal's sequence that they cover: an event up to it is in
    /// the sums, a later one is not. Every event of the tenant that was durable when this was called is in them.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`] if they can't be read now.
    async fn load(
        &self,
        tenant: TenantId,
        counters: &[CounterOf],
    ) -> Result<(Vec<Quantity>, Seq), LedgerError>;
}

impl Ledger {
    /// Holds what a request may use: under all of its limits at once, or not at all.
    ///
    /// Waits only to read counters that are not in memory yet. Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`] if such a counter can't be read; nothing is held.
    pub async fn reserve(&self, ask: &LedgerAsk<'_>) -> Result<Reserved, LedgerError> {
        match self {
            Self::Local(local) => local.reserve(ask).await,
        }
    }

    /// Holds again what was granted before a restart, whatever the limits say by now. To be called before the first
    /// request is decided.
    #[must_use]
    pub fn reopen(&self, granted: Granted<'_>, now: Timestamp) -> Hold {
        match self {
            Self::Local(local) => local.reopen(granted, now),
        }
    }

    /// Adds durable usage that had no hold (reported by hand or as CloudEvents, a correction), whatever the limits say.
    ///
    /// Its overshoot is measured by the hard limits last seen of counters in memory.
    pub fn record(&self, seq: Seq, event: &UsageEvent) -> Settled {
        match self {
            Self::Local(local) => local.record(seq, event),
        }
    }

    /// Where the limits of a tenant, one of its keys and one of its users stand; in the order given, without those
    /// that do not apply.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`] if a counter is not in memory and can't be read.
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
        }
    }

    /// Takes note that the store has these events, oldest first, and says what that changes in the snapshot, to be
    /// written in the transaction that deletes them from the journal. If that transaction fails, the same events
    /// come again with the next call, and so do their changes.
    pub fn drained(&self, events: &[(Seq, UsageEvent)]) -> Drained {
        match self {
            Self::Local(local) => local.drained(events),
        }
    }

    /// Builds the counters of `snapshot`, whose rows cover the journal up to `covered`, and adds the events after
    /// that. To be called once, before the first request.
    pub fn restore(
        &self,
        snapshot: Vec<(CounterKey, Quantity)>,
        undrained: &[(Seq, UsageEvent)],
        covered: Seq,
        now: Timestamp,
    ) {
        match self {
            Self::Local(local) => local.restore(snapshot, undrained, covered, now),
        }
    }

    /// Gives back what a hold holds, by hand. If its request is settled later, its usage counts all the same.
    /// `None` if there is no such open hold.
    #[must_use]
    pub fn release(&self, id: ReservationId) -> Option<HoldInfo> {
        match self {
            Self::Local(local) => local.release(id),
        }
    }

    /// Drops the counters of an end user, which are read anew when they are needed, and gives the names of their rows
    /// in the snapshot, for the caller to delete. Not beside a drain.
    pub async fn forget_user(&self, tenant: TenantId, user: &str) -> Vec<CounterKey> {
        match self {
            Self::Local(local) => local.forget_user(tenant, user).await,
        }
    }

    #[must_use]
    pub fn in_flight(&self) -> InFlight {
        match self {
            Self::Local(local) => local.in_flight(),
        }
    }

    /// Every open hold, the oldest first.
    #[must_use]
    pub fn list_holds(&self) -> Vec<HoldInfo> {
        match self {
            Self::Local(local) => local.list_holds(),
        }
    }

    /// The tenants whose counters are in memory.
    #[must_use]
    pub fn tenants(&self) -> Vec<TenantId> {
        match self {
            Self::Local(local) => local.tenants(),
        }
    }

    /// The tenant's counters in memory over all events up to `upto`, the drained position; without those for which
    /// that can't be told.
    #[must_use]
    pub fn drained_values(&self, tenant: TenantId, upto: Seq) -> Vec<(CounterKey, Quantity)> {
        match self {
            Self::Local(local) => local.drained_values(tenant, upto),
        }
    }

    #[must_use]
    pub fn ended(&self) -> EndedCounts {
        match self {
            Self::Local(local) => local.ended(),
        }
    }
}
