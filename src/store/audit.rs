//! The audit log: who changed what, from what to what.

use futures_util::future::BoxFuture;

use super::StoreResult;
use crate::domain::{administrator::Actor, time::Timestamp};

#[derive(Clone, Debug, PartialEq)]
pub struct AuditEntry {
    pub id: i64,
    pub by: Actor,
    /// Such as `plan.update`.
    pub action: String,
    /// What was changed, by the name that people use: a plan's code, a tenant's slug, a key's id.
    pub target: String,
    /// Never a secret.
    pub before: Option<serde_json::Value>,
    pub after: Option<serde_json::Value>,
}

/// Which entries are asked for; what is `None` does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    pub actor: Option<String>,
    /// Such as `plan.update`, or `plan` for all that begin with `plan.`.
    pub action: Option<String>,
    pub target: Option<String>,
    /// At or after.
    pub since: Option<Timestamp>,
    /// Before.
    pub until: Option<Timestamp>,
}

/// Something done that changes nothing else in the store.
#[derive(Clone, Debug, PartialEq)]
pub struct NewAudit {
    pub by: Actor,
    pub action: &'static str,
    pub target: String,
    /// Never a secret.
    pub before: Option<serde_json::Value>,
    pub after: Option<serde_json::Value>,
}

pub trait AuditStore: Send + Sync {
    /// Newest first, older than the entry `before_id`, at most `limit`.
    fn list_audit(
        &self,
        before_id: Option<i64>,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<AuditEntry>>>;

    /// As [`list_audit`](Self::list_audit), those that `filter` lets through.
    fn search_audit<'a>(
        &'a self,
        filter: &'a AuditFilter,
        before_id: Option<i64>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<AuditEntry>>>;

    /// Adds an entry of something that changes nothing else in the store.
    fn note<'a>(&'a self, entry: &'a NewAudit) -> BoxFuture<'a, StoreResult<()>>;
}
