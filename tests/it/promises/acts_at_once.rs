//! A change holds within a second, without a restart, and keeps the counters.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{FakeOpenAi, Tollgate, eventually, hard};

#[tokio::test]
async fn a_limit_changed_beside_a_running_server_holds_within_a_second() {
    let upstream = FakeOpenAi::start().await;
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(1_000_000))
        .create()
        .await;
    let load = tokio::spawn({
        let acme = acme.clone();
        async move {
            while acme.complete(json!({})).await.status == 200 {}
            Instant::now()
        }
    });
    eventually("there is load", || async {
        (upstream.calls() > 20).then_some(())
    })
    .await;
    gate.cli_json(&[
        "plan", "feature", "set", &acme.plan, "messages", "--hard", "5",
    ])
    .await;
    let changed = Instant::now();
    let refused = load.await.unwrap();
    assert!(
        refused.saturating_duration_since(changed) < Duration::from_secs(1),
        "{refused:?} {changed:?}"
    );
    assert!(acme.used("messages").await > 20, "the counter was kept");

    gate.cli_json(&[
        "plan", "feature", "set", &acme.plan, "messages", "--hard", "1000000",
    ])
    .await;
    acme.complete(json!({})).await.expect_ok();
    gate.finish().await;
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once() {
    let gate = Tollgate::serve().start().await;
    let acme = gate.tenant("acme").create().await;
    let made = gate
        .cli_json(&["key", "create", "acme", "--name", "second"])
        .await;
    let second = acme.with_key(made["key"].as_str().unwrap());
    second.chat("hi").await.expect_ok();
    gate.cli_json(&["key", "revoke", made["key_id"].as_str().unwrap(), "--yes"])
        .await;
    second.chat("hi").await.expect(401, "invalid_api_key");
    acme.chat("hi").await.expect_ok();
    gate.finish().await;
}

#[tokio::test]
async fn a_window_added_later_starts_from_what_was_used() {
    let gate = Tollgate::serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(100))
        .create()
        .await;
    for _ in 0..3 {
        acme.chat("hi").await.expect_ok();
    }
    gate.cli_json(&[
        "plan", "feature", "set", &acme.plan, "messages", "--hard", "3", "--window", "lifetime",
    ])
    .await;
    let refused = acme.chat("hi").await.expect(429, "usage_limit_exceeded");
    let error = &refused.json()["error"];
    assert_eq!(
        (&error["window"], &error["usage"]),
        (&json!("lifetime"), &json!(3))
    );
    assert_eq!(error["window_end"], json!(null));
    assert_eq!(error["retry_after_seconds"], json!(null));
    assert_eq!(refused.header("retry-after"), None);
    gate.finish().await;
}

#[tokio::test]
async fn another_plan_keeps_the_counters() {
    let gate = Tollgate::serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(2))
        .create()
        .await;
    for _ in 0..2 {
        acme.chat("hi").await.expect_ok();
    }
    acme.chat("hi").await.expect(429, "usage_limit_exceeded");
    gate.cli_json(&[
        "plan", "create", "large", "--name", "Large", "--preset", "starter",
    ])
    .await;
    gate.cli_json(&["tenant", "subscribe", "acme", "--plan", "large"])
        .await;
    let answer = acme.chat("hi").await.expect_ok();
    assert_eq!(answer.json()["guardrail"]["features"][0]["used"], 3);
    gate.finish().await;
}

#[tokio::test]
async fn grants_and_overrides_raise_a_spent_limit() {
    let gate = Tollgate::serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(1))
        .create()
        .await;
    acme.chat("hi").await.expect_ok();
    acme.chat("hi").await.expect(429, "usage_limit_exceeded");
    let grant = gate
        .cli_json(&[
            "tenant",
            "grant",
            "add",
            "acme",
            "--feature",
            "messages",
            "--quantity",
            "2",
            "--reason",
            "test",
        ])
        .await;
    acme.chat("hi").await.expect_ok();
    let usage = acme.usage("messages").await;
    assert_eq!(
        (&usage["hard_limit"], &usage["granted"]),
        (&json!(3), &json!(2))
    );
    gate.cli_json(&[
        "tenant",
        "grant",
        "revoke",
        grant["grant_id"].as_str().unwrap(),
        "--yes",
    ])
    .await;
    acme.chat("hi").await.expect(429, "usage_limit_exceeded");
    gate.cli_json(&["tenant", "limit", "set", "acme", "messages", "--hard", "3"])
        .await;
    acme.chat("hi").await.expect_ok();
    acme.chat("hi").await.expect(429, "usage_limit_exceeded");
    gate.cli_json(&["tenant", "cancel", "acme", "--yes"]).await;
    acme.chat("hi").await.expect(402, "subscription_inactive");
    gate.finish().await;
}
