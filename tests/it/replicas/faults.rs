//! What goes wrong with Redis, and with the way to it, while three replicas are asked all the time.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;

use super::{Replicas, Shared, Wired, under_load, use_up};
use crate::support::{RedisCluster, RedisServer, Tenant, eventually, hard};

/// Nobody waits longer than 250 ms for Redis; a busy machine takes its time for the rest.
const LONGEST: Duration = Duration::from_secs(2);

const LIMIT: i64 = 150;

/// While `fault` comes and goes a tenant's limit is used to the last unit and not passed, and what was answered is what
/// the model was asked.
async fn holds_through<R: Shared>(
    replicas: &mut Replicas<R>,
    name: &str,
    fault: impl AsyncFnOnce(&mut Replicas<R>),
) {
    let asked_before = replicas.upstream.calls();
    let acme = replicas.gates[0].tenant(name);
    let acme = acme.limit("messages", hard(LIMIT)).create().await;
    let load = [acme.clone()];
    let seen = under_load(replicas, &load, async |replicas| {
        let enough = asked_before + 30;
        eventually("there is load", || async {
            (replicas.upstream.calls() > enough).then_some(())
        })
        .await;
        fault(replicas).await;
        replicas.ledger_is("ok").await;
    })
    .await;
    eprintln!("{name}: {seen:?}");
    assert!(seen.longest < LONGEST, "{name}: {:?}", seen.longest);
    let left = use_up(&replicas.everywhere(&acme)).await;
    assert_eq!(seen.answered + left, LIMIT, "{name}: {left} in the end");
    let calls = replicas.upstream.calls() - asked_before;
    assert_eq!(i64::try_from(calls), Ok(LIMIT), "{name}");
    for replica in replicas.everywhere(&acme) {
        assert_eq!(replica.used("messages").await, LIMIT, "{name}");
        eventually("all of it is in the store", || async {
            (replica.total("messages").await == LIMIT).then_some(())
        })
        .await;
    }
}

/// Until every replica has noticed, and a while longer.
async fn until_noticed<R: Shared>(replicas: &Replicas<R>) {
    replicas.ledger_is("down").await;
    tokio::time::sleep(Duration::from_millis(700)).await;
}

async fn slow(replicas: &mut Replicas<Wired>) {
    replicas.redis.wire.delay(Duration::from_millis(300));
    until_noticed(replicas).await;
    replicas.redis.wire.delay(Duration::ZERO);
}

async fn dead(replicas: &mut Replicas<Wired>) {
    replicas.redis.wire.swallow(true);
    until_noticed(replicas).await;
    replicas.redis.wire.swallow(false);
}

/// All that is asked is done, and nobody hears of it.
async fn half_open(replicas: &mut Replicas<Wired>) {
    replicas.redis.wire.lose_answers(true);
    until_noticed(replicas).await;
    replicas.redis.wire.lose_answers(false);
}

/// As by a firewall that has forgotten the connections there are: only new ones are good.
async fn forgotten(replicas: &mut Replicas<Wired>) {
    let begun = Instant::now();
    replicas.redis.wire.forget();
    replicas.ledger_is("down").await;
    replicas.ledger_is("ok").await;
    let took = begun.elapsed();
    eprintln!("on new connections after {took:?}");
    assert!(took < Duration::from_secs(6), "{took:?}");
}

async fn cut_again_and_again(replicas: &mut Replicas<Wired>) {
    for _ in 0..30 {
        replicas.redis.wire.cut();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// As from another town: each way takes 20 ms, and a new connection has to be made.
async fn far_away(replicas: &mut Replicas<Wired>) {
    replicas.redis.wire.delay(Duration::from_millis(20));
    replicas.redis.wire.cut();
    replicas.ledger_is("down").await;
    replicas.ledger_is("ok").await;
    replicas.redis.wire.delay(Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_slow_dead_half_open_or_broken_wire_to_redis_every_limit_is_exact() {
    let mut replicas = Replicas::on(Wired::start(), 3, "closed").await;
    holds_through(&mut replicas, "slow", slow).await;
    holds_through(&mut replicas, "dead", dead).await;
    holds_through(&mut replicas, "half-open", half_open).await;
    holds_through(&mut replicas, "forgotten", forgotten).await;
    holds_through(&mut replicas, "cut", cut_again_and_again).await;
    holds_through(&mut replicas, "far", far_away).await;
    assert_eq!(replicas.metric("usage_guardrail_fail_open_total").await, 0);
    assert_eq!(replicas.metric("usage_overshoot_total").await, 0);
    let last = replicas.gates[0].tenant("last").create().await;
    replicas.finish(0, &last).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_lets_its_clients_wait_every_limit_is_exact() {
    let mut replicas = Replicas::start(3, "closed").await;
    for (name, pause) in [("short", "400"), ("long", "2500")] {
        holds_through(
            &mut replicas,
            name,
            async |replicas: &mut Replicas<RedisServer>| {
                let paused = replicas.redis.ask(&["CLIENT", "PAUSE", pause, "ALL"]);
                assert_eq!(paused, "+OK");
                // After the short one it may be over before a busy machine comes to look.
                if name == "long" {
                    replicas.ledger_is("down").await;
                }
                assert_eq!(replicas.redis.ask(&["PING"]), "+PONG", "once it goes on");
            },
        )
        .await;
    }
    assert_eq!(replicas.metric("usage_guardrail_fail_open_total").await, 0);
    let last = replicas.gates[0].tenant("last").create().await;
    replicas.finish(0, &last).await;
}

/// A master of a cluster dies with all that it had not passed on, and the one that stood by takes its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_master_of_the_cluster_is_killed_every_limit_is_exact() {
    const TENANTS: usize = 6; // of 64 parts of the tenants, of which each master has a third
    const EACH: i64 = 60;
    let mut replicas = Replicas::on(RedisCluster::start_with_standbys(), 3, "closed").await;
    let mut tenants = Vec::new();
    for number in 0..TENANTS {
        let slug = format!("acme-{number}");
        let tenant = replicas.gates[number % 3].tenant(&slug);
        tenants.push(tenant.limit("messages", hard(EACH)).create().await);
    }
    let seen = under_load(&mut replicas, &tenants, async |replicas| {
        eventually("there is load", || async {
            (replicas.upstream.calls() > 100).then_some(())
        })
        .await;
        let begun = Instant::now();
        replicas.redis.fail_over(0);
        replicas.ledger_is("ok").await;
        eprintln!("decided again {:?} after the kill", begun.elapsed());
    })
    .await;
    eprintln!("{seen:?}");
    let everywhere: Vec<Vec<Tenant>> = tenants.iter().map(|it| replicas.everywhere(it)).collect();
    let left: i64 = join_all(everywhere.iter().map(|it| use_up(it)))
        .await
        .iter()
        .sum();
    let all = EACH * i64::try_from(TENANTS).unwrap();
    assert_eq!(seen.answered + left, all, "{left} in the end");
    assert_eq!(i64::try_from(replicas.upstream.calls()), Ok(all));
    for tenant in &tenants {
        assert_eq!(tenant.used("messages").await, EACH);
    }
    assert_eq!(replicas.metric("usage_overshoot_total").await, 0);
    replicas.finish(EACH, &tenants[0]).await;
}

/// What each replica lets by alone is counted there, request by request; what is answered beyond the limit is never
/// more than that, and all of it is in the totals afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_counts_every_request_that_was_decided_without_redis() {
    let mut replicas = Replicas::on(Wired::start(), 3, "open").await;
    let counted = "usage_guardrail_fail_open_total";
    let acme = replicas.gates[0].tenant("acme");
    let acme = acme.limit("messages", hard(LIMIT)).create().await;
    let load = [acme.clone()];
    let mut answered = 0;
    type Fault =
        for<'a> fn(&'a mut Replicas<Wired>) -> std::pin::Pin<Box<dyn Future<Output = ()> + 'a>>;
    let faults: [(&str, Fault); 4] = [
        ("slow", |it| Box::pin(slow(it))),
        ("dead", |it| Box::pin(dead(it))),
        ("half-open", |it| Box::pin(half_open(it))),
        ("cut", |it| Box::pin(cut_again_and_again(it))),
    ];
    for (name, fault) in faults {
        let seen = under_load(&mut replicas, &load, async |replicas| {
            fault(replicas).await;
            replicas.ledger_is("ok").await;
        })
        .await;
        answered += seen.answered;
        let by_themselves = replicas.metric(counted).await;
        eprintln!("{name}: {seen:?}; {by_themselves} were decided without Redis so far");
        assert_eq!(seen.undecided, 0, "{name}");
        assert!(seen.longest < LONGEST, "{name}: {:?}", seen.longest);
        assert!(answered - LIMIT <= by_themselves, "{name}");
    }
    answered += use_up(&replicas.everywhere(&acme)).await;
    assert_eq!(i64::try_from(replicas.upstream.calls()), Ok(answered));

    // One that no replica has seen before: each lets by what is left of the limit by what it knows, which is what had
    // come to the database when it first looked there, and counts those that it refuses too.
    replicas.redis.wire.swallow(true);
    replicas.ledger_is("down").await;
    let before = replicas.metric(counted).await;
    let beta = replicas.gates[0].tenant("beta");
    let beta = beta.limit("messages", hard(5)).create().await;
    let mut let_by = 0;
    for replica in replicas.everywhere(&beta) {
        eventually("the database has told its key", || async {
            (replica.get("/v1/models").await.status == 200).then_some(())
        })
        .await;
        for _ in 0..7 {
            let_by += i64::from(replica.complete(json!({})).await.status == 200);
        }
    }
    assert!((5..=3 * 5).contains(&let_by), "{let_by}");
    assert_eq!(replicas.metric(counted).await - before, 3 * 7);
    replicas.redis.wire.swallow(false);
    replicas.ledger_is("ok").await;
    for replica in replicas.everywhere(&beta) {
        assert_eq!(replica.used("messages").await, let_by);
        let refused = replica.complete(json!({})).await;
        refused.expect(429, "usage_limit_exceeded");
    }
    replicas.finish(answered, &acme).await;
}
