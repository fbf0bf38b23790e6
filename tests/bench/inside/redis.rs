//! Row 12: decisions on totals that replicas share, on a Redis of its own.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tollgate::{
    clock::{Clock, SharedClock},
    domain::{
        feature::FeatureKey,
        ids::{EventId, TenantId},
        limit::{ActiveLimit, Scope, SoftLimitMode},
        quantity::Quantity,
        reservation::Reservation,
        time::Timestamp,
        usage::UsageEvent,
        window::{Window, WindowKind},
    },
    ledger::{
        Amount, LEASE, Ledger, LedgerAsk, LedgerError, OnViolation, RedisLedger, RedisSettings,
        Reserved, SharedBase, SumsOfEvents, Want,
    },
    store::usage::{CounterOf, Seq},
};

use super::{
    fixtures::{FEATURES, tenant},
    report::row,
};

#[path = "../../it/support/redis.rs"]
#[expect(dead_code, reason = "tests use the rest")]
mod server;

const TENANTS: u64 = 64;
const AT_ONCE: u64 = 256;
const LASTS: Duration = Duration::from_secs(5);

/// A store in which nothing was ever used.
struct Unused;

impl SharedBase for Unused {
    fn sums<'a>(
        &'a self,
        _tenant: TenantId,
        counters: &'a [CounterOf],
        _events: &'a [EventId],
    ) -> BoxFuture<'a, Result<SumsOfEvents, LedgerError>> {
        Box::pin(async move { Ok((vec![Quantity::ZERO; counters.len()], HashSet::new())) })
    }

    fn undrained(&self) -> BoxFuture<'_, Result<Vec<UsageEvent>, LedgerError>> {
        Box::pin(async move { Ok(Vec::new()) })
    }

    fn last_seq(&self) -> Seq {
        Seq(0)
    }

    fn reservations(&self) -> BoxFuture<'_, Result<Vec<Reservation>, LedgerError>> {
        Box::pin(async move { Ok(Vec::new()) })
    }
}

pub(crate) fn run() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    runtime.block_on(measure());
}

async fn measure() {
    let server = server::RedisServer::start();
    let settings = RedisSettings {
        urls: vec![server.url().into()],
        clock: Clock::Shared(SharedClock::new()),
        lease: LEASE,
        node: "bench".to_owned(),
    };
    let redis = RedisLedger::open(settings, Arc::new(Unused));
    redis.ready(Duration::from_secs(10)).await;
    let ledger = Ledger::Redis(redis);
    let limit = |feature: FeatureKey| ActiveLimit {
        unit: feature.default_unit().into(),
        feature,
        scope: Scope::Tenant,
        kind: WindowKind::Lifetime,
        window: Window::new(Timestamp::EPOCH, Timestamp::NEVER).expect("it ends after it starts"),
        soft: None,
        hard: Some(Quantity::MAX),
        granted: Quantity::ZERO,
        is_own: false,
    };
    let limits: Arc<[ActiveLimit]> = FEATURES.map(limit).into();
    let decided = Arc::new(AtomicU64::new(0));
    let end = Instant::now() + LASTS;
    let mut running = tokio::task::JoinSet::new();
    assert_eq!(server.ask(&["CONFIG", "RESETSTAT"]), "+OK");
    for number in 0..AT_ONCE {
        let (ledger, limits, decided) = (ledger.clone(), Arc::clone(&limits), Arc::clone(&decided));
        running.spawn(async move {
            let wants = FEATURES.map(|feature| Want {
                feature,
                amount: Amount::Exact(Quantity::ONE),
            });
            while Instant::now() < end {
                let ask = LedgerAsk {
                    tenant: tenant(number % TENANTS),
                    key: None,
                    user: "",
                    limits: &limits,
                    wants: &wants,
                    soft: SoftLimitMode::Warn,
                    on_violation: OnViolation::Refuse,
                    request_id: "0190b6f2-c1d4-7a3e-8f5b-6c7d8e9f0a1b",
                    now: Clock::System.now(),
                };
                let decision = ledger.reserve(&ask).await.expect("Redis answers");
                assert!(matches!(decision, Reserved::Held(_)), "nothing is limited");
                decided.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    running.join_all().await;
    let stats = server.bulk(&["INFO", "commandstats"]).expect("it answers");
    let stat = |name: &str| -> f64 {
        let line = stats
            .lines()
            .find_map(|it| it.strip_prefix("cmdstat_evalsha:"));
        let fields = line.unwrap_or_default().split(',');
        let mut found = fields.filter_map(|it| it.strip_prefix(name)?.strip_prefix('='));
        found
            .next()
            .and_then(|it| it.parse().ok())
            .unwrap_or(f64::NAN)
    };
    let (calls, each) = (stat("calls"), stat("usec_per_call"));
    #[expect(clippy::cast_precision_loss, reason = "a count of some millions")]
    let decided = decided.load(Ordering::Relaxed) as f64;
    let rate = decided / LASTS.as_secs_f64();
    row(
        12,
        "decisions of three features in Redis, each given back by a second call",
        &format!(
            "{rate:.0}/s and as many releases; {:.2} calls a decision, {each:.1} us of Redis each",
            calls / decided
        ),
        ">= 60,000/s",
        rate >= 60_000.0,
    );
    let possible = 1e6 / each;
    row(
        12,
        "scripts that one Redis can run, by its own time for each",
        &format!("{possible:.0}/s"),
        ">= 60,000/s",
        possible >= 60_000.0,
    );
}
