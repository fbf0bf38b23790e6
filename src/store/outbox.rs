//! What is to be told to others, from the transaction that brings it about until the other side has it.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::StoreResult;
use crate::domain::{
    administrator::Actor, feature::FeatureKey, ids::TenantId, quantity::Quantity, time::Timestamp,
};

/// Who sends an entry, and what its payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Usage events for the analytics sink, as CloudEvents, one a line.
    AnalyticsBatch,
    /// A notice to one address.
    Notice,
    /// Limits that are to be looked at, since usage was recorded: internal, and forgotten once done.
    NoticeCheck,
    /// Usage for one of Stripe's meters.
    StripeMeterEvent,
}

impl Kind {
    pub const ALL: [Self; 4] = [
        Self::AnalyticsBatch,
        Self::Notice,
        Self::NoticeCheck,
        Self::StripeMeterEvent,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AnalyticsBatch => "analytics.batch",
            Self::Notice => "notice",
            Self::NoticeCheck => "notice.check",
            Self::StripeMeterEvent => "stripe.meter_event",
        }
    }
}

/// How far an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// To be sent, or being sent.
    Pending,
    /// The other side has it.
    Sent,
    /// The other side shows that it has it.
    Confirmed,
    /// Whether the other side has it can't be told; it is not sent again by itself.
    Uncertain,
    /// Given up; `last_error` says why.
    Dead,
}

impl Status {
    pub const ALL: [Self; 5] = [
        Self::Pending,
        Self::Sent,
        Self::Confirmed,
        Self::Uncertain,
        Self::Dead,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sent => "sent",
            Self::Confirmed => "confirmed",
            Self::Uncertain => "uncertain",
            Self::Dead => "dead",
        }
    }
}

/// When what is told of was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    pub at: Timestamp,
    /// Of the billing period that it counts in; at most `at`.
    pub period_start: Timestamp,
}

/// Something to be sent, due at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// Visible ASCII without `/`; the same one again adds nothing.
    pub identifier: String,
    pub kind: Kind,
    /// What of its kind it is.
    pub topic: Option<String>,
    pub tenant: Option<TenantId>,
    pub feature: Option<FeatureKey>,
    /// How much, as the kind defines it.
    pub value: Option<Quantity>,
    /// Entries of one kind and lane are sent one at a time, the oldest first.
    pub lane: Option<String>,
    /// Given, what was sent is summed for [`told`](super::stripe::StripeStore::told).
    pub about: Option<About>,
    pub payload: String,
    pub created_at: Timestamp,
}

/// An entry, without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxEntry {
    pub identifier: String,
    pub kind: Kind,
    pub topic: Option<String>,
    pub tenant: Option<TenantId>,
    /// `None` also where the tenant is not there any more.
    pub tenant_slug: Option<String>,
    pub feature: Option<FeatureKey>,
    pub value: Option<Quantity>,
    pub status: Status,
    pub attempts: u32,
    pub last_error: Option<String>,
    /// When what it tells of was used.
    pub about_at: Option<Timestamp>,
    /// Not to be tried before; while an attempt runs, when it counts as lost.
    pub next_attempt_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

/// An entry that is the caller's to send until its lease ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leased {
    pub identifier: String,
    pub topic: Option<String>,
    pub tenant: Option<TenantId>,
    pub feature: Option<FeatureKey>,
    pub value: Option<Quantity>,
    pub lane: Option<String>,
    pub about_at: Option<Timestamp>,
    /// This attempt included.
    pub attempts: u32,
    /// When the first of those attempts was made of which it is not known whether they arrived; an attempt of which
    /// nothing was heard before its lease ended is one of them.
    pub doubt_since: Option<Timestamp>,
    pub created_at: Timestamp,
    pub payload: String,
}

/// A call for entries to send.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    pub kind: Kind,
    pub now: Timestamp,
    /// From here on they are due again, should nothing be heard of them.
    pub until: Timestamp,
    pub limit: usize,
}

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    Sent,
    /// Nothing of it is kept.
    Forgotten,
    Retry {
        at: Timestamp,
        error: String,
    },
    Uncertain {
        error: String,
    },
    Dead {
        error: String,
    },
}

/// An attempt that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    pub identifier: String,
    /// As leased: an attempt whose lease was lost to another changes nothing.
    pub attempts: u32,
    /// As [`Leased::doubt_since`], this attempt included.
    pub doubt_since: Option<Timestamp>,
    pub ending: Ending,
    /// What others are to be told of this ending; added if it is written down.
    pub tell: Vec<NewEntry>,
}

/// Which entries are asked for; what is `None` does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutboxFilter {
    pub kind: Option<Kind>,
    pub status: Option<Status>,
    pub tenant: Option<TenantId>,
}

/// What became of a call to send something again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replaying {
    /// It is pending again, with all its attempts before it anew.
    Replayed(OutboxEntry),
    /// It is neither dead nor uncertain; nothing changed.
    NotEnded(OutboxEntry),
    NotFound,
}

pub trait OutboxStore: Send + Sync {
    /// Adds entries in one transaction; an identifier that is there adds nothing. How many are new.
    fn enqueue<'a>(&'a self, entries: &'a [NewEntry]) -> BoxFuture<'a, StoreResult<u64>>;

    /// Takes entries that are due, those due longest first, in one transaction: nobody else gets them before the lease
    /// ends. Given oldest first. Of a lane only its oldest pending entry is ever due.
    fn lease(&self, lease: Lease) -> BoxFuture<'_, StoreResult<Vec<Leased>>>;

    /// Has the leases of these end at `until`, in one transaction, unless they were lost to another. Those of entries in
    /// lanes stay as they are: what is replayed waits for them ([`replay`](Self::replay)).
    fn renew<'a>(
        &'a self,
        leased: &'a [Leased],
        until: Timestamp,
    ) -> BoxFuture<'a, StoreResult<()>>;

    /// Writes down how attempts ended, in one transaction.
    fn finish<'a>(
        &'a self,
        finished: &'a [Finished],
        now: Timestamp,
    ) -> BoxFuture<'a, StoreResult<()>>;

    /// Newest first, older than `before`, at most `limit`.
    fn list_outbox<'a>(
        &'a self,
        filter: &'a OutboxFilter,
        before: Option<(Timestamp, String)>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<OutboxEntry>>>;

    /// Makes a dead or uncertain entry pending and due, its attempts counted anew; audited.
    ///
    /// A newer one of its lane may be on its way at this moment: whatever of the lane is to be tried again within
    /// `longest_lease` may be leased, and the entry is due when the last of those is. Nothing newer is leased from
    /// here on.
    fn replay<'a>(
        &'a self,
        identifier: &'a str,
        longest_lease: Duration,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<Replaying>>;

    /// How many entries there are of each kind and status that has any.
    fn count_outbox(&self) -> BoxFuture<'_, StoreResult<Vec<(Kind, Status, u64)>>>;

    /// Forgets what was sent before `before`, at most `limit`; what is dead or uncertain stays.
    fn prune_outbox(&self, before: Timestamp, limit: usize) -> BoxFuture<'_, StoreResult<u64>>;
}
