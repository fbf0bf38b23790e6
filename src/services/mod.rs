//! What every surface calls: the rules, asked for in domain words.
//!
//! Nothing here knows of HTTP, of a terminal or of SQL.

pub mod administrators;
pub mod admitted;
pub mod catalogue;
pub mod chat;
pub mod doctor;
pub mod entitlements;
pub mod error;
pub mod explain;
mod grants;
pub mod guard;
pub mod in_flight;
pub mod keys;
pub mod meter;
pub mod notices;
pub mod objects;
pub mod onward;
pub mod operation;
pub mod outbox;
pub mod overview;
pub mod plans;
pub mod presets;
pub mod prices;
pub mod recorder;
pub mod refusals;
pub mod repeats;
pub mod report;
pub mod reporting;
pub mod reports;
pub mod reservations;
pub mod run;
pub mod secrets;
pub mod sessions;
pub mod standings;
pub mod statement;
pub mod subjects;
pub mod tenants;
pub mod undo;
pub mod usage_view;

use std::time::Duration;

use futures_util::future::BoxFuture;

pub use error::AdminError;
use reporting::Correction;
use statement::StatementAsk;

use crate::{
    domain::{
        administrator::Actor,
        feature::FeatureKey,
        ids::{GrantId, ReservationId},
        quantity::Quantity,
        tenant::TenantRef,
        time::Timestamp,
        window::Window,
    },
    store::usage::Dimension,
};

/// Totals of one tenant over any window.
#[derive(Clone, Debug)]
pub struct TotalsAsk {
    pub tenant: TenantRef,
    /// None: every feature that the tenant's plan has or that it ever used.
    pub features: Vec<FeatureKey>,
    pub window: Window,
    pub by: Option<Dimension>,
}

/// Usage that is reported by hand.
#[derive(Clone, Debug)]
pub struct ManualRecord {
    pub tenant: TenantRef,
    pub feature: FeatureKey,
    pub quantity: Quantity,
    /// The same key again records nothing.
    pub idempotency_key: String,
    /// When it was used; `None`: now.
    pub at: Option<Timestamp>,
}

/// Usage, as the commands need it; answers are the JSON bodies of interface.md §2 and §3.
pub trait UsageOperations: Send + Sync {
    /// The body of `GET /api/v1/usage` for one tenant; `{"items":[…]}` of all without one.
    fn usage<'a>(
        &'a self,
        tenant: Option<&'a TenantRef>,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<serde_json::Value, AdminError>>;
    /// The body of `GET /api/v1/usage/totals`.
    fn totals<'a>(
        &'a self,
        ask: &'a TotalsAsk,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<serde_json::Value, AdminError>>;
    /// `{"event_id","duplicate"}`.
    fn record<'a>(
        &'a self,
        record: &'a ManualRecord,
        by: &'a Actor,
    ) -> BoxFuture<'a, Result<serde_json::Value, AdminError>>;
    /// Writes the report; `steps` hears how many tenants of how many are done.
    fn export<'a>(
        &'a self,
        ask: &'a report::ReportAsk,
        files: report::ReportFiles,
        steps: &'a (dyn Fn(u64, u64) + Send + Sync),
    ) -> BoxFuture<'a, Result<report::ReportSummary, report::ReportFailed>>;
    /// `{"event_id","duplicate"}`.
    fn correct<'a>(
        &'a self,
        tenant: &'a TenantRef,
        correction: &'a Correction,
        by: &'a Actor,
    ) -> BoxFuture<'a, Result<serde_json::Value, AdminError>>;
    /// `{"items":[…]}` of what is in flight, the oldest first; only what is at least as old as `older_than`.
    fn in_flight<'a>(
        &'a self,
        tenant: Option<&'a TenantRef>,
        older_than: Duration,
    ) -> BoxFuture<'a, Result<serde_json::Value, AdminError>>;
    /// Gives back what a request or reservation in flight holds.
    fn release<'a>(
        &'a self,
        id: ReservationId,
        by: &'a Actor,
    ) -> BoxFuture<'a, Result<(), AdminError>>;
    /// What became of a request; `NotFound` if that is not kept.
    fn explain<'a>(
        &'a self,
        request_id: &'a str,
    ) -> BoxFuture<'a, Result<serde_json::Value, AdminError>>;
    /// Interface.md §8.
    fn statement<'a>(
        &'a self,
        ask: &'a StatementAsk,
    ) -> BoxFuture<'a, Result<serde_json::Value, AdminError>>;
    /// What is left of each of the tenant's grants that are not over.
    fn grants_left<'a>(
        &'a self,
        tenant: &'a TenantRef,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Vec<(GrantId, Quantity)>, AdminError>>;
}
