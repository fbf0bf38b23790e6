//! Replicas whose clocks are minutes apart.

use std::time::Duration;

use serde_json::Value;
use tollgate::{clock::Clock, domain::time::Timestamp};

use super::{Replicas, Store, under_load};
use crate::support::{RedisServer, ShiftedClock, Tenant, eventually, hard};

const HOUR: i64 = 3_600_000_000;
const LIMIT: i64 = 30;

async fn window_of(tenant: &Tenant, window: &str) -> (Value, Value) {
    let usage = eventually("usage is told", || async {
        let answer = tenant.get("/api/v1/usage").await;
        (answer.status == 200).then(|| answer.json())
    })
    .await;
    let items = usage["features"].as_array().expect("a list").clone();
    let item = items
        .iter()
        .find(|it| it["feature_key"] == "messages" && it["window"] == window)
        .unwrap_or_else(|| panic!("{usage}"));
    (item["window_start"].clone(), item["window_end"].clone())
}

async fn total(tenant: &Tenant, start: Timestamp, end: Timestamp) -> i64 {
    let query = format!("feature_key=messages&period_start={start}&period_end={end}");
    let body = tenant.get(&format!("/api/v1/usage/totals?{query}")).await;
    let body = body.expect_ok().json();
    body["totals"][0]["quantity"]
        .as_i64()
        .unwrap_or_else(|| panic!("{body}"))
}

/// Redis's own clock, which is none of theirs, is set to some seconds before an hour ends; the replicas are asked until
/// the next has begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_whose_clocks_are_two_minutes_apart_agree_on_when_a_minute_and_an_hour_end() {
    let of_redis = ShiftedClock::ahead(0);
    let redis = RedisServer::with(&["--save", ""], &of_redis.environment());
    let clocks = [-120, 0, 120].map(ShiftedClock::ahead);
    let mut replicas = Replicas::start_with(redis, Store::postgres(), 3, |number, serve| {
        let clock = clocks[number].environment();
        let serve = serve.set("USAGE_GUARDRAIL_FAIL_MODE", "closed");
        clock
            .iter()
            .fold(serve, |serve, (name, value)| serve.set(name, value))
    })
    .await;
    let acme = replicas.gates[0].tenant("acme");
    let acme = acme
        .limit("messages", hard(LIMIT).window("minute"))
        .limit("messages", hard(LIMIT).window("hour"))
        .create()
        .await;

    let now = Clock::System.now().micros();
    let edge = (now / HOUR + 1) * HOUR;
    of_redis.set(edge - now - 8_000_000);
    let everywhere = replicas.everywhere(&acme);
    let start = Timestamp::from_micros(edge - 60_000_000).to_string();
    for replica in &everywhere {
        eventually("it follows Redis's clock", || async {
            (window_of(replica, "minute").await.0 == start).then_some(())
        })
        .await;
    }
    let seen = under_load(
        &mut replicas,
        std::slice::from_ref(&acme),
        async |replicas| {
            eventually("the last minute of the hour is used up", || async {
                (i64::try_from(replicas.upstream.calls()) == Ok(LIMIT)).then_some(())
            })
            .await;
            for replica in &everywhere {
                let refused = replica.complete(serde_json::json!({})).await;
                assert_eq!(refused.status, 429, "{}", refused.text);
                let refused = refused.json();
                let end = Timestamp::from_micros(edge).to_string();
                assert_eq!(refused["error"]["window_end"], end, "{refused}");
            }
            eventually("the next hour has begun", || async {
                (i64::try_from(replicas.upstream.calls()) == Ok(2 * LIMIT)).then_some(())
            })
            .await;
            // Whoever is behind or ahead would let more by.
            tokio::time::sleep(Duration::from_millis(500)).await;
        },
    )
    .await;
    assert_eq!(seen.answered, 2 * LIMIT);
    let mut windows = Vec::new();
    for replica in &everywhere {
        let of_both = (
            window_of(replica, "minute").await,
            window_of(replica, "hour").await,
        );
        windows.push(of_both);
        eventually("all usage is in the store", || async {
            (replica.total("messages").await == 2 * LIMIT).then_some(())
        })
        .await;
        let [before, at, after] = [edge - HOUR, edge, edge + HOUR].map(Timestamp::from_micros);
        assert_eq!(total(replica, before, at).await, LIMIT);
        assert_eq!(total(replica, at, after).await, LIMIT);
    }
    let begun = Timestamp::from_micros(edge).to_string();
    assert_eq!(windows[0].0.0, begun);
    assert!(windows.iter().all(|it| *it == windows[0]), "{windows:?}");
    for gate in &mut replicas.gates {
        assert_eq!(gate.terminate().await, 0, "{}", gate.log());
    }
}
