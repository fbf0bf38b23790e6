//! Redis emptied, restarted, slow and away, with requests on their way throughout.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{Replicas, Store, under_load, use_up};
use crate::support::{Calls, Fault, FaultyDisk, How, RedisServer, Serve, Tenant, eventually, hard};

/// Asks one replica until it does not answer; how many it answered.
async fn ask_on(acme: &Tenant) -> i64 {
    let mut answered = 0;
    while acme.complete(json!({})).await.status == 200 {
        answered += 1;
    }
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_is_exact_although_redis_is_emptied_and_restarted_under_load() {
    let mut replicas = Replicas::start(3, "closed").await;
    let acme = replicas.gates[0].tenant("acme");
    let acme = acme.limit("messages", hard(400)).create().await;
    let load = [acme.clone()];
    let seen = under_load(&mut replicas, &load, async |replicas| {
        for restart in [false, true] {
            let enough = if restart { 120 } else { 40 };
            eventually("there is load", || async {
                (replicas.upstream.calls() > enough).then_some(())
            })
            .await;
            if restart {
                replicas.redis.revive();
            } else {
                assert_eq!(replicas.redis.ask(&["FLUSHALL"]), "+OK");
            }
            replicas.ledger_is("down").await;
            replicas.ledger_is("ok").await;
        }
    })
    .await;
    let answered = seen.answered + use_up(&load).await;
    assert_eq!(answered, 400);
    assert_eq!(replicas.upstream.calls(), 400);
    replicas.finish(400, &acme).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_refuses_at_once_while_redis_answers_nothing_and_goes_on_when_it_does() {
    let replicas = Replicas::start(2, "closed").await;
    let acme = replicas.gates[0].tenant("acme");
    let acme = acme.limit("messages", hard(100)).create().await;
    for tenant in replicas.everywhere(&acme) {
        tenant.complete(json!({})).await.expect_ok();
    }
    replicas.redis.freeze();
    let begun = Instant::now();
    for tenant in replicas.everywhere(&acme) {
        tenant
            .complete(json!({}))
            .await
            .expect(503, "usage_store_unavailable");
    }
    replicas.ledger_is("down").await;
    // From here on nobody waits.
    for tenant in replicas.everywhere(&acme) {
        let begun = Instant::now();
        tenant
            .complete(json!({}))
            .await
            .expect(503, "usage_store_unavailable");
        assert!(
            begun.elapsed() < Duration::from_millis(200),
            "{:?}",
            begun.elapsed()
        );
    }
    assert_eq!(replicas.gates[0].get("/readyz").await.status, 503);
    assert!(begun.elapsed() < Duration::from_secs(5));
    replicas.redis.thaw();
    replicas.ledger_is("ok").await;
    for tenant in replicas.everywhere(&acme) {
        tenant.complete(json!({})).await.expect_ok();
    }
    replicas.finish(4, &acme).await;
}

/// Decisions by what each replica saw last, every one of them counted; what was used meanwhile counts afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_goes_on_by_what_was_known_and_the_usage_is_merged_on_return() {
    let mut replicas = Replicas::start(2, "open").await;
    let acme = replicas.gates[0].tenant("acme");
    let acme = acme.limit("messages", hard(10)).create().await;
    let everywhere = replicas.everywhere(&acme);
    for tenant in &everywhere {
        tenant.complete(json!({})).await.expect_ok();
        tenant.used("messages").await;
    }
    // Both know of two.
    everywhere[0].used("messages").await;
    replicas.redis.kill();
    replicas.ledger_is("down").await;
    for tenant in &everywhere {
        for _ in 0..3 {
            tenant.complete(json!({})).await.expect_ok();
        }
    }
    let ready = replicas.gates[1].get("/readyz").await;
    assert_eq!(
        (ready.status, ready.json()["status"].as_str()),
        (200, Some("degraded"))
    );
    for gate in &replicas.gates {
        assert_eq!(gate.metric("usage_guardrail_fail_open_total", "").await, 3);
        gate.logged("usage_guardrail_fail_open").await;
        gate.is_drained().await; // the store has it although Redis is away
    }
    // A limit that is spent by what this replica knows alone is refused all the same.
    let refused = ask_on(&everywhere[0]).await;
    assert_eq!(refused, 5, "2 known, 3 of its own, 10 at most");
    replicas.redis.revive();
    replicas.ledger_is("ok").await;
    for tenant in &everywhere {
        assert_eq!(tenant.used("messages").await, 13, "2 + 3 + 3 + 5");
        tenant
            .complete(json!({}))
            .await
            .expect(429, "usage_limit_exceeded");
    }
    replicas.finish(13, &acme).await;
}

/// Nothing that totals stand on can be read or written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_redis_and_the_store_away_the_fail_mode_decides_and_both_may_come_back() {
    for fail_mode in ["open", "closed"] {
        let disk = FaultyDisk::build();
        let prepare = |_, serve: Serve| {
            let serve = serve.set("USAGE_GUARDRAIL_FAIL_MODE", fail_mode);
            disk.under(serve)
        };
        let (redis, store) = (RedisServer::start(), Store::sqlite());
        let mut replicas = Replicas::start_with(redis, store, 1, prepare).await;
        let acme = replicas.gates[0].tenant("acme");
        let acme = acme.limit("messages", hard(5)).create().await;
        acme.complete(json!({})).await.expect_ok();
        replicas.gates[0].is_drained().await;
        disk.arm(Fault {
            path: "/tollgate.db",
            calls: Calls::ALL,
            how: How::Broken,
            good: 0,
            bad: u64::MAX,
        });
        replicas.redis.kill();
        replicas.ledger_is("down").await;
        let let_by = ask_on(&acme).await;
        if fail_mode == "open" {
            assert_eq!(let_by, 4, "5 at most, of which 1 was known");
        } else {
            assert_eq!(let_by, 0);
            let refused = acme.complete(json!({})).await;
            refused.expect(503, "usage_store_unavailable");
        }
        disk.heal();
        replicas.redis.revive();
        replicas.ledger_is("ok").await;
        eventually("usage has arrived", || async {
            (acme.total("messages").await == 1 + let_by).then_some(())
        })
        .await;
        let answered = use_up(std::slice::from_ref(&acme)).await;
        assert_eq!(1 + let_by + answered, 5);
        replicas.finish(5, &acme).await;
    }
}
