//! What was used and decided by hour, for charts and for the overview.

use futures_util::future::BoxFuture;

use super::StoreResult;
use crate::domain::{
    feature::FeatureKey, ids::TenantId, quantity::Quantity, time::Timestamp, window::Window,
};

/// What was used of one feature in one UTC hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedInHour {
    pub feature: FeatureKey,
    /// The hour's start.
    pub hour: Timestamp,
    /// Whole units of the feature; corrections may make it negative.
    pub quantity: Quantity,
}

/// How the guard decided on so many requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decisions {
    pub allow: u64,
    /// Let by with a warning.
    pub soft_limit: u64,
    /// Refused.
    pub hard_limit: u64,
}

pub trait TrendStore: Send + Sync {
    /// What all tenants used in the hours that begin in `window`: only hours with usage, by feature and hour. Its cost
    /// does not grow with the number of tenants.
    fn used_by_hour(&self, window: Window) -> BoxFuture<'_, StoreResult<Vec<UsedInHour>>>;
    /// The same of one tenant and some features.
    fn tenant_used_by_hour<'a>(
        &'a self,
        tenant: TenantId,
        features: &'a [FeatureKey],
        window: Window,
    ) -> BoxFuture<'a, StoreResult<Vec<UsedInHour>>>;
    /// Adds to what was decided in the hour that begins at `hour`.
    fn add_decisions(&self, hour: Timestamp, more: Decisions) -> BoxFuture<'_, StoreResult<()>>;
    /// What was decided in the hours that begin in `window`: only hours with decisions, in order.
    fn decisions_by_hour(
        &self,
        window: Window,
    ) -> BoxFuture<'_, StoreResult<Vec<(Timestamp, Decisions)>>>;
}
