//! What the parts inside the process cost, against the goals of design.md §6: `cargo bench --bench inside -- 10 8`
//! runs rows 10 and 8, without a number all of them. Figures stand in docs/reference/performance.md.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

mod admit;
mod fixtures;
mod journal;
mod ledger;
#[expect(
    dead_code,
    clippy::unwrap_used,
    reason = "tests use all of it, and what fails ends the benchmark"
)]
#[path = "../../it/support/postgres.rs"]
mod postgres;
mod redis;
mod report;
mod store;
mod tenants;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What databases of tests are copied from; benchmarks make theirs themselves.
fn bring_up_to_date(_: &str) -> impl Future<Output = ()> {
    std::future::ready(())
}

fn main() {
    let asked: Vec<u8> = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse().ok()) // cargo adds flags of its own
        .collect();
    let rows: [(u8, fn()); 8] = [
        (8, journal::run),
        (9, store::drain),
        (9, store::drain_postgres),
        (10, ledger::run),
        (10, admit::run),
        (12, redis::run),
        (13, tenants::run),
        (15, store::totals),
    ];
    for (row, run) in rows {
        if asked.is_empty() || asked.contains(&row) {
            run();
        }
    }
}
