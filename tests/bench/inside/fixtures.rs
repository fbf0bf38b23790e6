//! Tenants, events and files that benchmarks share.

use std::{num::NonZero, path::Path, thread};

use tempfile::TempDir;
use tokio::{runtime, task::JoinSet};
use tollgate::{
    domain::{
        feature::FeatureKey,
        ids::{EventId, KeyId, TenantId},
        quantity::Quantity,
        time::Timestamp,
        usage::{Quantities, Source, UsageEvent},
    },
    journal::{Journal, relay_answers},
};
use uuid::Uuid;

pub(crate) const FEATURES: [FeatureKey; 3] = [
    FeatureKey::Messages,
    FeatureKey::InputTokens,
    FeatureKey::OutputTokens,
];

/// A directory on the disk that cargo builds on: what is measured is a real disk, where `/tmp` may be memory.
pub(crate) fn directory() -> TempDir {
    TempDir::new_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("cargo's directory is writable")
}

/// Spread like random ids.
fn spread(number: u64) -> Uuid {
    Uuid::from_u128(u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

pub(crate) fn tenant(number: u64) -> TenantId {
    TenantId::new(spread(number))
}

/// An id of version 7, of the time `at`, that rises with `number`.
fn id(number: u64, at: Timestamp) -> Uuid {
    let milliseconds = u128::try_from(at.micros() / 1_000).expect("after 1970");
    Uuid::from_u128((milliseconds << 80) | (7 << 76) | (2 << 62) | u128::from(number))
}

/// A chat as it is recorded: three features, a key and a model. Ids rise with `number`, as those of real events do.
pub(crate) fn event(number: u64, tenant_number: u64, at: Timestamp) -> UsageEvent {
    let used = |quantity| Quantity::new(quantity);
    UsageEvent {
        event_id: EventId::new(id(number, at)),
        request_id: "0190b6f2-c1d4-7a3e-8f5b-6c7d8e9f0a1b".to_owned(),
        source: Source::Chat,
        tenant_id: tenant(tenant_number),
        key_id: Some(KeyId::new(spread(tenant_number + 1_000_000_000))),
        user: String::new(),
        model: Some("gpt-5.1".to_owned()),
        quantities: Quantities::default()
            .with(FeatureKey::Messages, used(1))
            .with(FeatureKey::InputTokens, used(812))
            .with(FeatureKey::OutputTokens, used(164)),
        estimated: false,
        reason: None,
        price_id: None,
        admitted_at: at,
        recorded_at: at,
    }
}

/// Writes events `from..to` down, spread over `tenants`, 64 at a time.
pub(crate) async fn append(journal: &Journal, from: u64, to: u64, tenants: u64, at: Timestamp) {
    let mut writing = JoinSet::new();
    for lane in 0..64 {
        let journal = journal.clone();
        writing.spawn(async move {
            for number in (from + lane..to).step_by(64) {
                let event = event(number, number % tenants, at);
                journal.append(event).await.expect("the disk takes it");
            }
        });
    }
    while let Some(done) = writing.join_next().await {
        done.expect("no lane panics");
    }
}

/// Runs `lanes` side by side as a server runs its requests: on runtimes of one thread each, as many as there are cores.
pub(crate) fn on_cores<F>(lanes: u64, lane: impl Fn(u64) -> F + Sync)
where
    F: Future<Output = ()> + Send + 'static,
{
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let lane = &lane;
    thread::scope(|threads| {
        for core in 0..cores {
            threads.spawn(move || {
                let runtime = runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime of one thread");
                runtime.spawn(relay_answers());
                let mut running = JoinSet::new();
                for number in (0..lanes).skip(core).step_by(cores) {
                    running.spawn_on(lane(number), runtime.handle());
                }
                runtime.block_on(async {
                    while let Some(done) = running.join_next().await {
                        done.expect("no lane panics");
                    }
                });
            });
        }
    });
}

pub(crate) fn runtime() -> runtime::Runtime {
    runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime of two threads")
}
