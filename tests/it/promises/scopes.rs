//! Limits of each key and each end user hold on every way in, and their counters come back from the rollups.

use reqwest::Method;
use serde_json::{Value, json};

use super::serve;
use crate::support::{Answer, Tenant, hard};

async fn reserve(who: &Tenant, user: Option<&str>) -> Answer {
    let body = json!({ "quantities": { "messages": 1 }, "ttl_seconds": 60, "user": user });
    who.post("/api/v1/usage/reservations", &body).await
}

async fn report(who: &Tenant, id: &str, user: &str) {
    let event = json!({
        "specversion": "1.0", "id": id, "source": "/t", "type": "t",
        "data": { "quantities": { "messages": 1 }, "user": user },
    });
    let request = who
        .request(Method::POST, "/api/v1/usage/events")
        .header("content-type", "application/cloudevents+json");
    let answer = Answer::read(request.body(event.to_string()).send().await.unwrap()).await;
    assert_eq!(
        answer.expect_ok().json()["results"][0]["status"],
        "accepted"
    );
}

async fn used_of(who: &Tenant, scope: &str, window: &str) -> Value {
    let usage = who.get("/api/v1/usage").await.expect_ok().json();
    let items = usage["features"].as_array().unwrap().clone();
    let item = items.iter().find(|it| {
        it["feature_key"] == "messages" && it["scope"] == scope && it["window"] == window
    });
    item.unwrap()["used"].clone()
}

#[track_caller]
fn refused_by(answer: Answer, scope: &str, code: &str) {
    let answer = answer.expect(429, code);
    assert_eq!(answer.json()["error"]["scope"], scope, "{}", answer.text);
}

#[tokio::test]
async fn a_users_and_a_keys_limits_hold_on_every_way_in_and_after_their_counters_were_dropped() {
    let gate = serve()
        .set("USAGE_GUARDRAIL_CACHE_BACKEND", "memory") // a start finds no counter: all come from the rollups
        .start()
        .await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(3).scope("user").window("lifetime"))
        .create()
        .await;
    let more = |limit: &'static [&'static str]| {
        let mut command = vec!["plan", "feature", "set", &acme.plan, "messages"];
        command.extend(limit);
        let command: Vec<String> = command.into_iter().map(str::to_owned).collect();
        let gate = &gate;
        async move {
            let words: Vec<&str> = command.iter().map(String::as_str).collect();
            gate.cli_json(&words).await
        }
    };
    more(&["--scope", "key", "--window", "month", "--hard", "6"]).await;
    more(&["--scope", "tenant", "--window", "lifetime", "--hard", "100"]).await;
    let ann = acme.with_user("ann");
    ann.chat("hi").await.expect_ok();
    report(&acme, "e1", "ann").await;
    let held = reserve(&acme, Some("ann")).await;
    assert_eq!(held.status, 201, "{}", held.text);
    refused_by(reserve(&ann, None).await, "user", "usage_limit_reserved");
    refused_by(ann.chat("hi").await, "user", "usage_limit_reserved");
    acme.with_user("bob").chat("hi").await.expect_ok();

    // After a start nothing is in memory: neither ann's counters, nor her reservation.
    let gate = gate.restart().await;
    let (acme, ann) = (acme.at(&gate), ann.at(&gate));
    assert_eq!(used_of(&ann, "user", "lifetime").await, 2);
    refused_by(ann.chat("hi").await, "user", "usage_limit_reserved");
    let id = held.json()["reservation_id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/usage/reservations/{id}/settle");
    acme.post(&path, &json!({ "quantities": { "messages": 1 } }))
        .await
        .expect_ok();
    refused_by(ann.chat("hi").await, "user", "usage_limit_exceeded");
    assert_eq!(used_of(&ann, "key", "month").await, 4);

    // An override in the place of the plan's limit of the same scope and window.
    gate.cli_json(&[
        "tenant", "limit", "set", "acme", "messages", "--scope", "user", "--window", "lifetime",
        "--hard", "5",
    ])
    .await;
    for _ in 0..2 {
        ann.chat("hi").await.expect_ok();
    }
    // Both her own limit and the key's are spent now; a correction of an event of hers gives both room again.
    let refused = ann
        .chat("hi")
        .await
        .expect(429, "usage_limit_exceeded")
        .json();
    let scopes: Vec<&str> = refused["error"]["violations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["scope"].as_str().unwrap())
        .collect();
    assert!(
        scopes.contains(&"user") && scopes.contains(&"key"),
        "{refused}"
    );
    let settled = acme
        .post(&path, &json!({ "quantities": { "messages": 1 } }))
        .await
        .json();
    let event = settled["event_id"].as_str().unwrap().to_owned();
    gate.cli_json(&[
        "usage",
        "correct",
        "--tenant",
        "acme",
        "--feature",
        "messages",
        "--quantity",
        "-1",
        "--reason",
        "outage",
        "--of",
        &event,
    ])
    .await;
    assert_eq!(used_of(&ann, "user", "lifetime").await, 4);
    ann.chat("hi").await.expect_ok();
    refused_by(
        acme.with_user("bob").chat("hi").await,
        "key",
        "usage_limit_exceeded",
    );
    // Another key of the tenant has room of its own; grants raise the tenant's limits alone.
    let second = gate
        .cli_json(&["key", "create", "acme", "--name", "second"])
        .await;
    acme.with_key(second["key"].as_str().unwrap())
        .with_user("bob")
        .chat("hi")
        .await
        .expect_ok();
    gate.cli_json(&[
        "tenant",
        "grant",
        "add",
        "acme",
        "--feature",
        "messages",
        "--quantity",
        "9",
        "--reason",
        "x",
    ])
    .await;
    refused_by(
        acme.with_user("bob").chat("hi").await,
        "key",
        "usage_limit_exceeded",
    );

    let gate = gate.restart().await;
    let ann = ann.at(&gate);
    assert_eq!(used_of(&ann, "user", "lifetime").await, 5);
    assert_eq!(used_of(&ann, "key", "month").await, 6);
    assert_eq!(used_of(&ann, "tenant", "lifetime").await, 7);
    gate.finish().await;
}
