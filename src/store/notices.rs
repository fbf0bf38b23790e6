//! What notices were sent, so that each goes out once, whoever makes it and however often.

use futures_util::future::BoxFuture;

use super::{StoreResult, outbox::NewEntry};
use crate::domain::{
    feature::FeatureKey, ids::TenantId, limit::Subject, quantity::Quantity, time::Timestamp,
    window::WindowKind,
};

/// What a notice is about. There is at most one of each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NoticeKey {
    pub tenant: TenantId,
    pub subject: Subject,
    /// `None`: about no feature.
    pub feature: Option<FeatureKey>,
    pub window: WindowKind,
    pub window_start: Timestamp,
    /// What was reached, such as `threshold:80`.
    pub mark: String,
}

impl NoticeKey {
    /// Whom and what it is about.
    #[must_use]
    pub fn about(&self) -> (TenantId, Option<FeatureKey>) {
        (self.tenant, self.feature.clone())
    }
}

/// A notice that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    pub window_end: Timestamp,
    /// The limit that it was about.
    pub limit: Quantity,
    /// What was used then.
    pub used: Quantity,
    pub at: Timestamp,
}

/// A change from what was seen to something else; where another was faster, nothing changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoticeChange {
    pub key: NoticeKey,
    /// The limit of the row that was seen; `None`: there was none.
    pub seen: Option<Quantity>,
    /// `None`: it may be told again.
    pub becomes: Option<Told>,
    /// What is to be sent, if the change is made.
    pub entries: Vec<NewEntry>,
}

pub trait NoticeStore: Send + Sync {
    /// What was told of a subject in the windows that `at` lies in.
    fn list_told<'a>(
        &'a self,
        tenant: TenantId,
        subject: &'a Subject,
        at: Timestamp,
    ) -> BoxFuture<'a, StoreResult<Vec<(NoticeKey, Told)>>>;

    /// Makes each change, with what is to be sent, in one transaction; whether each was made.
    fn change_told<'a>(
        &'a self,
        changes: &'a [NoticeChange],
    ) -> BoxFuture<'a, StoreResult<Vec<bool>>>;

    /// One row of each limit and window that ended at or before `now`, of which something was told, but not that it
    /// ended; at most `limit`, the first that ended first.
    fn list_ended(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<(NoticeKey, Told)>>>;

    /// Forgets what was told of windows that ended before `before`, at most `limit`.
    fn prune_told(&self, before: Timestamp, limit: usize) -> BoxFuture<'_, StoreResult<u64>>;
}
