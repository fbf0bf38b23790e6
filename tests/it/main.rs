//! The one integration test binary: every promise on the built binary, with real stores and real connections.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    reason = "helpers of tests fail the test; tests spawn tasks of their own, and read samples"
)]

mod admin;
mod bench;
mod cli;
mod docs;
mod formats;
mod http;
mod operation;
mod promises;
mod replicas;
mod simulation;
mod support;
