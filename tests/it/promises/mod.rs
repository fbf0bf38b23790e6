//! The promises of tollgate, a file each: what would break one makes a test here fail.

mod acts_at_once;
mod analytics;
mod clear;
mod cost;
mod durable;
mod every_run_is_paid_for;
mod exact;
mod fail_modes;
mod guarantees;
mod in_sight;
mod late;
pub(crate) mod notices;
mod on_postgres;
mod one_server;
mod repeats;
mod reported;
mod reservations;
mod scopes;
mod stays_up;
mod stripe;
mod time_is_right;
mod torture;

use tollgate::config::sources::Sources;

use crate::support::{Serve, Tollgate};

/// What the promises that hold for replicas too are tried on here; `replicas/promises.rs` tries them on three.
fn serve() -> Serve {
    Tollgate::serve()
}

/// What a server inside the test's process stands on.
struct Ground(tempfile::TempDir);

impl Ground {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// The settings of each server.
    fn sources(&self) -> Vec<Sources> {
        let directory = self.0.path().display().to_string();
        vec![Sources::none().with_flag("TOLLGATE_DATA_DIR", directory)]
    }
}
