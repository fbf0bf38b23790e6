//! The promises of `promises/` once more, on three replicas that share out every tenant's requests.

#![expect(
    clippy::duplicate_mod,
    reason = "the same tests on another server: each file asks the module above it for one"
)]

use crate::support::{Serve, Tollgate};

#[path = "../promises/cost.rs"]
mod cost;
#[path = "../promises/durable.rs"]
mod durable;
#[path = "../promises/every_run_is_paid_for.rs"]
mod every_run_is_paid_for;
#[path = "../promises/exact.rs"]
mod exact;
#[path = "../promises/repeats.rs"]
mod repeats;
#[path = "../promises/reservations.rs"]
mod reservations;
#[path = "../promises/scopes.rs"]
mod scopes;

fn serve() -> Serve {
    Tollgate::serve().on_three_replicas()
}
