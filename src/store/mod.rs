//! The system of record: small traits in domain words, and the adapters that keep them.
//!
//! Nothing here knows of HTTP, limits in force or reservations; a store reads and writes what it is told.

pub mod audit;
mod audited;
pub mod catalogue;
#[cfg(test)]
mod contract;
pub mod conversations;
pub mod keys;
pub mod maintenance;
pub mod notices;
pub mod outbox;
pub mod postgres;
pub mod reservations;
mod rollups;
pub mod sessions;
pub mod sqlite;
pub mod stripe;
pub mod trends;
pub mod usage;
pub mod versions;
pub mod webhooks;

use std::sync::Arc;

use crate::domain::names::PlanCode;

/// All of a store.
pub trait Store:
    catalogue::CatalogueStore
    + keys::KeyStore
    + usage::UsageStore
    + conversations::ConversationStore
    + reservations::ReservationStore
    + sessions::SessionStore
    + trends::TrendStore
    + audit::AuditStore
    + outbox::OutboxStore
    + notices::NoticeStore
    + stripe::StripeStore
    + webhooks::WebhookStore
    + maintenance::MaintenanceStore
{
}

impl<T> Store for T where
    T: catalogue::CatalogueStore
        + keys::KeyStore
        + usage::UsageStore
        + conversations::ConversationStore
        + reservations::ReservationStore
        + sessions::SessionStore
        + trends::TrendStore
        + audit::AuditStore
        + outbox::OutboxStore
        + notices::NoticeStore
        + stripe::StripeStore
        + webhooks::WebhookStore
        + maintenance::MaintenanceStore
{
}

pub type SharedStore = Arc<dyn Store>;
pub type StoreResult<T> = Result<T, StoreError>;

/// Why a store could not do what it was asked. Nothing changed; retrying is safe.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// No connection was free in time, or the database could not be read or written.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    #[error("{what} '{name}' exists already")]
    AlreadyExists { what: &'static str, name: String },
    #[error("there is no {what} '{name}'")]
    NotFound { what: &'static str, name: String },
    #[error("plan '{plan}' has {subscriptions} subscriptions; move them to another plan first")]
    PlanInUse { plan: PlanCode, subscriptions: i64 },
    #[error("'{name}' is the last administrator of role owner; make another one first")]
    LastOwner { name: String },
    #[error("{what} '{name}' was changed by someone else; it is at version {current} now")]
    VersionConflict {
        what: &'static str,
        name: String,
        current: i64,
    },
}
