//! What is told to operators: logs, metrics, and the events that are both at once.
//!
//! No key, token, prompt or answer enters here, and no tenant, key or user becomes a metric's label.

pub mod events;
mod lines;
pub mod logs;
pub mod metrics;
mod models;
pub mod trace;
