//! Usage events and their rollups.

use std::{collections::HashSet, ops::Deref, sync::Arc};

use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::{StoreResult, outbox::NewEntry, stripe::MeterUse};
use crate::domain::{
    administrator::Actor,
    feature::FeatureKey,
    ids::{EventId, TenantId},
    limit::Subject,
    quantity::Quantity,
    time::Timestamp,
    usage::UsageEvent,
    window::Window,
};

/// The place of an event in a journal, from 1 on; 0 is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

/// How far a journal has been written to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalPosition {
    pub journal: Uuid,
    pub seq: Seq,
}

/// Events on their way into the store, in order, each with its place in the journal that it comes from. Sharing them costs
/// nothing: a store may write them on a thread of its own.
#[derive(Clone, Debug, Default)]
pub struct Batch(Arc<Vec<(Seq, UsageEvent)>>);

impl Batch {
    pub fn events(&self) -> impl ExactSizeIterator<Item = &UsageEvent> + Clone {
        self.0.iter().map(|(_, event)| event)
    }
}

impl Deref for Batch {
    type Target = [(Seq, UsageEvent)];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl From<Vec<(Seq, UsageEvent)>> for Batch {
    fn from(events: Vec<(Seq, UsageEvent)>) -> Self {
        Self(Arc::new(events))
    }
}

/// Events of no journal that is known: their places count from 1.
impl FromIterator<UsageEvent> for Batch {
    fn from_iter<I: IntoIterator<Item = UsageEvent>>(events: I) -> Self {
        let events: Vec<_> = (1..).map(Seq).zip(events).collect();
        events.into()
    }
}

impl<const N: usize> From<[UsageEvent; N]> for Batch {
    fn from(events: [UsageEvent; N]) -> Self {
        events.into_iter().collect()
    }
}

impl From<&[UsageEvent]> for Batch {
    fn from(events: &[UsageEvent]) -> Self {
        events.iter().cloned().collect()
    }
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    pub inserted: u64,
    /// Events whose id was there already: they added nothing.
    pub duplicates: u64,
}

/// What others are to be told of events: it goes in with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tell {
    pub entries: Vec<NewEntry>,
    /// What counts on Stripe's meters; only that of events which are new is added.
    pub meters: Vec<MeterUse>,
    /// Tenants that used something in a window that is over: it may have burned grants that other servers take for whole,
    /// which are to read them again.
    pub late: Vec<TenantId>,
}

/// One counter of the ledger, as the store can sum it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CounterOf {
    pub subject: Subject,
    pub feature: FeatureKey,
    pub window: Window,
}

/// What totals are broken down by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dimension {
    Key,
    User,
    Model,
}

impl Dimension {
    /// As rollups name it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::User => "user",
            Self::Model => "model",
        }
    }
}

/// A sum of settled usage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Total {
    pub feature: FeatureKey,
    pub quantity: Quantity,
    /// The key's id, the user or the model, where totals were asked by one; `""` for usage that names none.
    pub by: Option<String>,
}

/// Sums of a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals {
    /// The window summed: the one asked, or, where a bound cuts an hour whose events are pruned, widened to
    /// whole hours.
    pub window: Window,
    pub totals: Vec<Total>,
}

/// What a report asks of one tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantAsk {
    pub tenant: TenantId,
    /// Features, each with the window that it is summed in.
    pub features: Vec<(FeatureKey, Window)>,
    /// Every other feature that the tenant ever used is summed in here.
    pub others: Option<Window>,
}

/// What a tenant used of one feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureSum {
    pub feature: FeatureKey,
    pub quantity: Quantity,
    /// The window summed, wider than the one asked where [`Totals::window`] would be.
    pub window: Window,
}

/// Who is asked for: the keys, the end users or the models that used most of something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaviestAsk {
    pub tenant: TenantId,
    pub feature: FeatureKey,
    pub window: Window,
    pub by: Dimension,
    /// Who used less is left out; 1 or more.
    pub at_least: Quantity,
    /// How many there are to be at most.
    pub most: usize,
}

/// The key's id, the user or the model, and what it used.
pub type UsedBy = (String, Quantity);

pub trait UsageStore: Send + Sync {
    /// Adds settled events and their rollups in one transaction, and notes `drained` with them; an event id seen
    /// before adds nothing. What others are to be told of them, `tell`, goes in with them. Durable (fsynced) when it
    /// returns: the journal forgets these events.
    fn record(
        &self,
        batch: Batch,
        drained: JournalPosition,
        tell: Tell,
    ) -> BoxFuture<'_, StoreResult<Recorded>>;

    /// How far `journal` has been recorded; 0 if never.
    fn drained(&self, journal: Uuid) -> BoxFuture<'_, StoreResult<Seq>>;

    /// Sums the settled usage of `tenant` in `window`: one [`Total`] per asked feature, in the order asked; with
    /// `by`, one per feature and value that has any, values in order. Parts add up to the whole: usage that names no
    /// key, user or model is the part `""`.
    ///
    /// Quantities are whole units of the feature, 0 if unused; reservations are the ledger's. Whole hours come
    /// from rollups, cut ones from events (design.md §1).
    ///
    /// # Errors
    /// [`StoreError::Unavailable`](super::StoreError) if others are being summed up for 2 s, or no reader is free for
    /// 250 ms (Postgres: the server does not answer within 250 ms, or no connection is free within 2 s). Nothing
    /// changed; retrying is safe.
    fn totals<'a>(
        &'a self,
        tenant: TenantId,
        features: &'a [FeatureKey],
        window: Window,
        by: Option<Dimension>,
    ) -> BoxFuture<'a, StoreResult<Totals>>;

    /// Sums for many tenants, in the order asked; of each the asked features in the order asked, then others of
    /// which there is any, by name. All of one instant.
    fn tenant_sums(&self, asks: Vec<TenantAsk>)
    -> BoxFuture<'_, StoreResult<Vec<Vec<FeatureSum>>>>;

    /// Of each ask, in the order asked, those who used most, the heaviest first, then by name; all of one instant.
    /// Usage that names no user is that of the user `""`, usage without a key or model is nobody's.
    fn heaviest(&self, asks: Vec<HeaviestAsk>) -> BoxFuture<'_, StoreResult<Vec<Vec<UsedBy>>>>;

    /// Every feature that `tenant` has any usage of, in order.
    fn list_used_features(&self, tenant: TenantId) -> BoxFuture<'_, StoreResult<Vec<FeatureKey>>>;

    /// Sums of single counters in the order asked, and the position of `journal` that they cover: read in one
    /// transaction, so that an event is either in the sums or after the position.
    fn counters<'a>(
        &'a self,
        tenant: TenantId,
        counters: &'a [CounterOf],
        journal: Uuid,
    ) -> BoxFuture<'a, StoreResult<(Vec<Quantity>, Seq)>>;

    /// Whether an event with this id was recorded, and is not pruned.
    fn has_event(&self, event: EventId) -> BoxFuture<'_, StoreResult<bool>>;

    /// Those of `events` that were recorded, and are not pruned.
    fn list_known_events<'a>(
        &'a self,
        events: &'a [EventId],
    ) -> BoxFuture<'a, StoreResult<HashSet<EventId>>>;

    fn find_event(&self, event: EventId) -> BoxFuture<'_, StoreResult<Option<UsageEvent>>>;

    /// A tenant's events, those admitted last first, older than `before`, at most `limit`; quantities in the order
    /// of their features. Of those admitted at the same instant, the one with the larger id is the newer.
    fn list_events(
        &self,
        tenant: TenantId,
        before: Option<(Timestamp, EventId)>,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<UsageEvent>>>;

    /// The events that a request caused, corrections of them included, the first recorded first; at most 100. Those that
    /// no request caused have an empty id, and belong to none.
    fn list_events_of_request<'a>(
        &'a self,
        request_id: &'a str,
    ) -> BoxFuture<'a, StoreResult<Vec<UsageEvent>>>;

    /// Sums the corrections of `tenant` in `window` that are not pruned: one quantity per asked feature, in the order
    /// asked.
    fn corrections<'a>(
        &'a self,
        tenant: TenantId,
        features: &'a [FeatureKey],
        window: Window,
    ) -> BoxFuture<'a, StoreResult<Vec<Quantity>>>;

    /// Deletes events recorded and admitted before `before`, at most `limit`; rollups stay.
    fn prune_events(&self, before: Timestamp, limit: usize) -> BoxFuture<'_, StoreResult<u64>>;

    /// Puts `replacement`, a name that nobody had, in place of an end user in events, rollups and keys. Sums stay as
    /// they are. The audit log says that it was done, and not to whom. How many events and rollups it was.
    ///
    /// Not one transaction but many short ones, between which others write. What is recorded of the user meanwhile
    /// may keep its name; an error leaves it half done, and calling it again does the rest.
    fn forget_user<'a>(
        &'a self,
        tenant: TenantId,
        user: &'a str,
        replacement: &'a str,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<u64>>;

    /// Differences between rollups and events, as lines for people; empty when they agree. For tests and `doctor`.
    fn check_rollups(&self) -> BoxFuture<'_, StoreResult<Vec<String>>>;

    /// Answers when the store can be read.
    fn ping(&self) -> BoxFuture<'_, StoreResult<()>>;
}
