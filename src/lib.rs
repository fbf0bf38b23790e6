//! tollgate stands between an application and its language model: it meters what each tenant uses, checks the
//! tenant's plan *before* the model runs, and writes the usage down before the answer leaves.

pub mod admin;
pub mod analytics;
pub mod answers;
pub mod app;
pub mod backup;
pub mod billing;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod domain;
mod draft;
pub mod http;
pub mod journal;
pub mod json;
pub mod ledger;
pub mod provider;
mod redb_file;
pub mod services;
pub mod store;
pub mod telemetry;
pub mod web;

/// One file with the integration tests, which link this library without its own tests.
#[cfg(test)]
#[path = "../tests/it/support/torture.rs"]
mod torture;
