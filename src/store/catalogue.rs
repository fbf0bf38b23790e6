//! Plans, tenants, subscriptions, overrides and grants.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::StoreResult;
use crate::domain::{
    administrator::Actor,
    feature::FeatureKey,
    grant::Grant,
    ids::{GrantId, KeyId, TenantId},
    limit::Override,
    names::{DisplayName, PlanCode, Slug},
    plan::Plan,
    reset::Reset,
    subscription::{Subscription, SubscriptionStatus},
    tenant::{Tenant, TenantRef},
    time::Timestamp,
};

/// How soon a change is seen that did not come through this server, which sees its own at once: well within the second
/// that is promised.
pub const LOOK_EVERY: Duration = Duration::from_millis(500);

/// One thing of the catalogue that changed; caches drop it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    Plan(PlanCode),
    /// The tenant, its subscription, overrides or grants.
    Tenant(TenantId),
    Key(KeyId),
    /// More changed than can be told apart: drop all.
    Everything,
}

/// What changed after a version, and the version reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    pub version: i64,
    pub changed: Vec<Changed>,
}

/// What decides on a tenant's requests, all as of one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantPolicy {
    pub tenant: Tenant,
    /// The plan of its subscription; `None` without one, or where the plan is not defined.
    pub plan: Option<Plan>,
    /// All of its grants, ended ones included, oldest first.
    pub grants: Vec<Grant>,
    /// All of its resets, oldest first.
    pub resets: Vec<Reset>,
}

/// Which tenants are looked for; what is not named lets all through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantSearch {
    /// Somewhere in slug or name; case does not matter for the letters A to Z.
    pub text: Option<String>,
    pub plan: Option<PlanCode>,
    pub status: Option<SubscriptionStatus>,
}

/// Every write adds an audit row (who, what, old → new) in its own transaction, and a row to the change feed
/// (by trigger, so that no writer can forget it).
pub trait CatalogueStore: Send + Sync {
    fn find_plan<'a>(&'a self, code: &'a PlanCode) -> BoxFuture<'a, StoreResult<Option<Plan>>>;
    /// All plans by code.
    fn list_plans(&self) -> BoxFuture<'_, StoreResult<Vec<Plan>>>;
    /// # Errors
    /// `AlreadyExists`.
    fn create_plan<'a>(&'a self, plan: &'a Plan, by: &'a Actor) -> BoxFuture<'a, StoreResult<()>>;
    /// Replaces name, models and features whole, adds one to the version, and gives the new version.
    ///
    /// # Errors
    /// `NotFound`; `VersionConflict` unless the stored version is `plan.version`.
    fn update_plan<'a>(&'a self, plan: &'a Plan, by: &'a Actor) -> BoxFuture<'a, StoreResult<i64>>;
    /// Writes several plans, all or none: one of version 0 is made, any other replaces the stored one as
    /// [`update_plan`](Self::update_plan) does.
    ///
    /// # Errors
    /// `AlreadyExists`; `NotFound`; `VersionConflict`.
    fn put_plans<'a>(&'a self, plans: &'a [Plan], by: &'a Actor) -> BoxFuture<'a, StoreResult<()>>;
    /// # Errors
    /// `NotFound`; `PlanInUse` while a tenant is subscribed to it; `VersionConflict` if `expected_version` is given
    /// and not the stored one.
    fn delete_plan<'a>(
        &'a self,
        code: &'a PlanCode,
        expected_version: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>>;

    /// The tenant with its subscription and overrides (those that have ended included).
    fn find_tenant<'a>(
        &'a self,
        tenant: &'a TenantRef,
    ) -> BoxFuture<'a, StoreResult<Option<Tenant>>>;
    /// What decides on the tenant's requests.
    fn find_policy(&self, tenant: TenantId) -> BoxFuture<'_, StoreResult<Option<TenantPolicy>>>;
    /// A tenant that was deleted, with what it was subscribed to last, its grants and its resets.
    fn find_former<'a>(
        &'a self,
        tenant: &'a TenantRef,
    ) -> BoxFuture<'a, StoreResult<Option<TenantPolicy>>>;
    /// Tenants by slug, after the slug `after`, at most `limit`.
    fn list_tenants<'a>(
        &'a self,
        after: Option<&'a Slug>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Tenant>>>;
    /// Tenants that were deleted, and when, in the same way; without their overrides.
    fn list_former<'a>(
        &'a self,
        after: Option<&'a Slug>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<(Tenant, Timestamp)>>>;
    /// Tenants by slug, after the slug `after`, at most `limit`, that `search` lets through.
    fn search_tenants<'a>(
        &'a self,
        search: &'a TenantSearch,
        after: Option<&'a Slug>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Tenant>>>;
    /// With its subscription and overrides.
    ///
    /// # Errors
    /// `AlreadyExists` for a slug that is, or was, taken; `NotFound` for a subscription's plan that is not there.
    fn create_tenant<'a>(
        &'a self,
        tenant: &'a Tenant,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>>;
    /// With `expected`, here and below: only if that is still the version ([`versions`](super::versions)).
    ///
    /// # Errors
    /// `NotFound`; `VersionConflict`.
    fn rename_tenant<'a>(
        &'a self,
        tenant: TenantId,
        name: &'a DisplayName,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>>;
    /// Hides the tenant from everything but its history: keys are revoked, its subscription ends, its slug stays
    /// taken. What it was subscribed to is kept for what is known of its usage only later.
    ///
    /// # Errors
    /// `NotFound`, also for one that is deleted already; `VersionConflict`.
    fn delete_tenant<'a>(
        &'a self,
        tenant: TenantId,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>>;
    /// Sets or replaces the tenant's one current subscription.
    ///
    /// # Errors
    /// `NotFound` for the tenant or the plan; `VersionConflict` of the tenant.
    fn set_subscription<'a>(
        &'a self,
        tenant: TenantId,
        subscription: &'a Subscription,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>>;
    /// Replaces the tenant's override of one feature whole.
    ///
    /// # Errors
    /// `NotFound` for the tenant, or for an override that is expected and not there; `VersionConflict` of the
    /// override, also of one that is expected to be [`ABSENT`](super::versions::ABSENT).
    fn set_override<'a>(
        &'a self,
        tenant: TenantId,
        limits: &'a Override,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>>;
    /// Whether there was one.
    ///
    /// # Errors
    /// `VersionConflict` of the override.
    fn remove_override<'a>(
        &'a self,
        tenant: TenantId,
        feature: &'a FeatureKey,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<bool>>;

    /// # Errors
    /// `NotFound` for the tenant; `AlreadyExists`.
    fn add_grant<'a>(&'a self, grant: &'a Grant, by: &'a Actor) -> BoxFuture<'a, StoreResult<()>>;
    /// How many tenants there are.
    fn count_tenants(&self) -> BoxFuture<'_, StoreResult<u64>>;
    /// The grants of several tenants, in the order asked, each as [`list_grants`](Self::list_grants) gives them.
    fn list_grants_of(&self, tenants: Vec<TenantId>)
    -> BoxFuture<'_, StoreResult<Vec<Vec<Grant>>>>;
    /// All grants of a tenant, ended ones included, oldest first.
    fn list_grants(&self, tenant: TenantId) -> BoxFuture<'_, StoreResult<Vec<Grant>>>;
    /// Ends a grant at `by.at`, and gives it; one that is revoked already stays as it is.
    ///
    /// # Errors
    /// `NotFound`.
    fn revoke_grant<'a>(
        &'a self,
        grant: GrantId,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<Grant>>;

    /// Adds a reset: from `reset.at` on limits of its feature count anew.
    ///
    /// # Errors
    /// `NotFound` for the tenant; `AlreadyExists` for one of the same instant.
    fn add_reset<'a>(
        &'a self,
        tenant: TenantId,
        reset: &'a Reset,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>>;
    /// All resets of several tenants, in the order asked, of each the oldest first.
    fn list_resets_of(&self, tenants: Vec<TenantId>)
    -> BoxFuture<'_, StoreResult<Vec<Vec<Reset>>>>;

    /// What changed after `version`, up to now; `Everything` if the feed no longer reaches back that far.
    /// Call with 0 and ignore what changed to learn the present version.
    fn changes_since(&self, version: i64) -> BoxFuture<'_, StoreResult<Changes>>;
    /// Comes back when something may have changed since the last call, at most [`LOOK_EVERY`] after it did.
    fn changed(&self) -> BoxFuture<'_, ()>;
    /// Shortens the change feed from its beginning, up to the first change at or after `before`, by at most `limit`
    /// rows; says by how many.
    fn prune_changes(&self, before: Timestamp, limit: usize) -> BoxFuture<'_, StoreResult<u64>>;
}
