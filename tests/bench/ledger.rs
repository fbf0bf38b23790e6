//! What a decision of the ledger costs. design.md §6, row 10: reserve and settle of three features in 60 ns hot, in
//! 500 ns among a million tenants.

use std::{sync::Arc, task::Context};

use async_trait::async_trait;
use divan::{Bencher, black_box};
use tollgate::{
    domain::{
        feature::FeatureKey,
        ids::TenantId,
        limit::{ActiveLimit, Scope, SoftLimitMode},
        quantity::Quantity,
        time::Timestamp,
        usage::Quantities,
        window::{Window, WindowKind},
    },
    ledger::{
        Amount, BaseTotals, Ledger, LedgerAsk, LedgerError, LocalLedger, OnViolation, Reserved,
        Want,
    },
    store::usage::{CounterOf, Seq},
};
use uuid::Uuid;

const FEATURES: [FeatureKey; 3] = [
    FeatureKey::Messages,
    FeatureKey::InputTokens,
    FeatureKey::OutputTokens,
];

/// A store in which nothing was ever used.
struct Unused;

#[async_trait]
impl BaseTotals for Unused {
    async fn load(
        &self,
        _tenant: TenantId,
        counters: &[CounterOf],
    ) -> Result<(Vec<Quantity>, Seq), LedgerError> {
        Ok((vec![Quantity::ZERO; counters.len()], Seq(0)))
    }
}

fn main() {
    divan::main();
}

fn ledger(tenants: usize) -> Ledger {
    Ledger::Local(LocalLedger::new(Arc::new(Unused), tenants))
}

fn tenant(number: u64) -> TenantId {
    // Spread like random ids.
    TenantId::new(Uuid::from_u128(
        u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835),
    ))
}

fn limits() -> Arc<[ActiveLimit]> {
    let limit = |feature: FeatureKey| ActiveLimit {
        unit: feature.default_unit().into(),
        feature,
        scope: Scope::Tenant,
        kind: WindowKind::Lifetime,
        window: Window::new(Timestamp::EPOCH, Timestamp::NEVER).expect("it ends after it starts"),
        soft: None,
        hard: Some(Quantity::MAX),
        granted: Quantity::ZERO,
    };
    FEATURES.map(limit).into()
}

fn wants() -> Vec<Want> {
    let want = |feature| Want {
        feature,
        amount: Amount::Exact(Quantity::ONE),
    };
    FEATURES.map(want).to_vec()
}

fn used() -> Quantities {
    FEATURES
        .into_iter()
        .map(|feature| (feature, Quantity::ONE))
        .collect()
}

/// One request: the counters are in memory after the first, so that it never waits.
fn chat(ledger: &Ledger, ask: &LedgerAsk<'_>, used: &Quantities) {
    let reserving = std::pin::pin!(ledger.reserve(ask));
    let mut context = Context::from_waker(std::task::Waker::noop());
    match reserving.poll(&mut context) {
        std::task::Poll::Ready(Ok(Reserved::Held(hold))) => {
            black_box(hold.settle(Seq(1), used));
        }
        other => panic!("it must be held at once: {other:?}"),
    }
}

fn ask<'a>(tenant: TenantId, limits: &'a Arc<[ActiveLimit]>, wants: &'a [Want]) -> LedgerAsk<'a> {
    LedgerAsk {
        tenant,
        key: None,
        user: "",
        limits,
        wants,
        soft: SoftLimitMode::Warn,
        on_violation: OnViolation::Refuse,
        request_id: "0190b6f2-c1d4-7a3e-8f5b-6c7d8e9f0a1b",
        now: Timestamp::from_seconds(1_800_000_000),
    }
}

#[divan::bench(threads = [1, 2])]
fn reserve_and_settle_three_features_of_one_tenant(bencher: Bencher<'_, '_>) {
    let (ledger, limits, wants, used) = (ledger(16), limits(), wants(), used());
    bencher.bench(|| chat(&ledger, &ask(tenant(1), &limits, &wants), &used));
}

#[divan::bench(args = [10_000, 1_000_000])]
fn reserve_and_settle_three_features_among_tenants(bencher: Bencher<'_, '_>, tenants: u64) {
    let room = usize::try_from(tenants).expect("it fits") * 2;
    let (ledger, limits, wants, used) = (ledger(room), limits(), wants(), used());
    for number in 0..tenants {
        chat(&ledger, &ask(tenant(number), &limits, &wants), &used);
    }
    let next = std::sync::atomic::AtomicU64::new(0);
    bencher.bench(|| {
        let number = next.fetch_add(7919, std::sync::atomic::Ordering::Relaxed) % tenants;
        chat(&ledger, &ask(tenant(number), &limits, &wants), &used);
    });
}
