//! Row 10: reserve and settle of three features.

use std::{
    hint::black_box,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tollgate::{
    domain::{
        feature::FeatureKey,
        ids::TenantId,
        limit::{ActiveLimit, Scope, SoftLimitMode},
        quantity::Quantity,
        time::Timestamp,
        usage::UsageEvent,
        window::{Window, WindowKind},
    },
    ledger::{
        Amount, BaseTotals, Ledger, LedgerAsk, LedgerError, LocalLedger, OnViolation, Reserved,
        Want,
    },
    store::usage::{CounterOf, Seq},
};

use super::{
    fixtures::{self, FEATURES, tenant},
    report::{nanos_per_call, row},
};

const TENANTS: u64 = 1_000_000;

/// A store in which nothing was ever used.
struct Unused;

impl BaseTotals for Unused {
    fn load<'a>(
        &'a self,
        _tenant: TenantId,
        counters: &'a [CounterOf],
    ) -> BoxFuture<'a, Result<(Vec<Quantity>, Seq), LedgerError>> {
        Box::pin(async move { Ok((vec![Quantity::ZERO; counters.len()], Seq(0))) })
    }
}

pub(crate) fn run() {
    let request = Request::of_three_features();
    let few = ledger(16);
    let hot = nanos_per_call(500, 2000, || request.chat(&few, tenant(1)));
    row(
        10,
        "reserve + settle of three features, hot",
        &format!("{hot:.0} ns"),
        "<= 60 ns",
        hot <= 60.0,
    );

    let many = ledger(usize::try_from(TENANTS).expect("64 bits") * 2);
    for number in 0..TENANTS {
        request.chat(&many, tenant(number));
    }
    let mut number = 0;
    let cold = nanos_per_call(200, 2000, || {
        number = (number + 7919) % TENANTS;
        request.chat(&many, tenant(number));
    });
    row(
        10,
        "reserve + settle of three features, among 1 M tenants",
        &format!("{cold:.0} ns"),
        "<= 500 ns",
        cold <= 500.0,
    );
}

fn ledger(tenants: usize) -> Ledger {
    Ledger::Local(LocalLedger::new(Arc::new(Unused), tenants))
}

/// What every request asks and uses.
struct Request {
    limits: Arc<[ActiveLimit]>,
    wants: Vec<Want>,
    event: UsageEvent,
}

impl Request {
    fn of_three_features() -> Self {
        let limit = |feature: FeatureKey| ActiveLimit {
            unit: feature.default_unit().into(),
            feature,
            scope: Scope::Tenant,
            kind: WindowKind::Lifetime,
            window: Window::new(Timestamp::EPOCH, Timestamp::NEVER)
                .expect("it ends after it starts"),
            soft: None,
            hard: Some(Quantity::MAX),
            granted: Quantity::ZERO,
            is_own: false,
        };
        let want = |feature| Want {
            feature,
            amount: Amount::Exact(Quantity::ONE),
        };
        Self {
            limits: FEATURES.map(limit).into(),
            wants: FEATURES.map(want).to_vec(),
            event: fixtures::event(0, 1, Timestamp::from_seconds(1_800_000_000)),
        }
    }

    /// One request: the counters are in memory after a tenant's first, so that it never waits.
    fn chat(&self, ledger: &Ledger, tenant: TenantId) {
        let ask = LedgerAsk {
            tenant,
            key: None,
            user: "",
            limits: &self.limits,
            wants: &self.wants,
            soft: SoftLimitMode::Warn,
            on_violation: OnViolation::Refuse,
            request_id: "0190b6f2-c1d4-7a3e-8f5b-6c7d8e9f0a1b",
            now: Timestamp::from_seconds(1_800_000_000),
        };
        let reserving = std::pin::pin!(ledger.reserve(&ask));
        match reserving.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(Reserved::Held(hold))) => {
                let settled = hold.settle(Seq(1), &self.event).now_or_never();
                black_box(settled.expect("it waits for nothing"));
            }
            other => panic!("it must be held at once: {other:?}"),
        }
    }
}
