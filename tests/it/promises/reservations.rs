//! Applications that call a model themselves: what they reserve is held exactly, counted once, and never lost.

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use super::serve;
use crate::support::{Answer, Tenant, eventually, hard};

const ROUTE: &str = "/api/v1/usage/reservations";

async fn reserve(acme: &Tenant, quantities: Value, ttl_seconds: u64) -> Answer {
    let body = json!({ "quantities": quantities, "ttl_seconds": ttl_seconds });
    acme.post(ROUTE, &body).await
}

fn id_of(reserved: &Answer) -> String {
    assert_eq!(reserved.status, 201, "{}", reserved.text);
    let expires_at = reserved.json()["expires_at"].as_str().unwrap().to_owned();
    assert_eq!(
        expires_at.len(),
        "2026-01-01T00:00:00Z".len(),
        "{expires_at}"
    );
    reserved.json()["reservation_id"]
        .as_str()
        .unwrap()
        .to_owned()
}

async fn settle(acme: &Tenant, id: &str, key: &str, quantities: Value) -> Answer {
    let body = json!({ "quantities": quantities, "idempotency_key": key });
    acme.post(&format!("{ROUTE}/{id}/settle"), &body).await
}

async fn release(acme: &Tenant, id: &str) -> Answer {
    let request = acme.request(Method::DELETE, &format!("{ROUTE}/{id}"));
    Answer::read(request.send().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_reservations_at_a_small_limit_exactly_the_limit_counts() {
    let gate = serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(20))
        .create()
        .await;
    let reserved = join_all((0..60).map(|_| reserve(&acme, json!({"messages": 1}), 600))).await;
    let (held, refused): (Vec<_>, Vec<_>) = reserved.into_iter().partition(|it| it.status == 201);
    assert_eq!((held.len(), refused.len()), (20, 40));
    for answer in refused {
        let answer = answer.expect(429, "usage_limit_reserved");
        assert_eq!(answer.header("x-usage-decision"), Some("hard_limit"));
    }
    assert_eq!(acme.reserved("messages").await, 20);

    // Each is settled four times at the same moment.
    let ids: Vec<String> = held.iter().map(id_of).collect();
    let settles = ids
        .iter()
        .flat_map(|id| (0..4).map(|_| settle(&acme, id, "once", json!({"messages": 1}))));
    let settled = join_all(settles).await;
    assert!(
        settled.iter().all(|it| it.status == 200),
        "{:?}",
        settled[0]
    );
    let first = settled.iter().filter(|it| it.json()["duplicate"] == false);
    assert_eq!(first.count(), 20);
    assert_eq!(acme.used("messages").await, 20);
    assert_eq!(acme.total("messages").await, 20);
    reserve(&acme, json!({"messages": 1}), 5)
        .await
        .expect(429, "usage_limit_exceeded");
    assert_eq!(gate.metric("usage_reservations_total", "settled").await, 20);
    gate.finish().await;
}

#[tokio::test]
async fn a_reservation_sent_again_with_its_key_holds_once() {
    let gate = serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(3))
        .create()
        .await;
    let reserve_as = async |key: &str, messages: u32| {
        let body = json!({ "quantities": { "messages": messages } });
        let request = acme.request(Method::POST, ROUTE).json(&body);
        let request = request.header("idempotency-key", key);
        Answer::read(request.send().await.unwrap()).await
    };
    let first = reserve_as("job-17", 2).await;
    let again = reserve_as("job-17", 2).await;
    assert_eq!(id_of(&again), id_of(&first));
    assert_eq!(first.header("idempotent-replayed"), None);
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(acme.reserved("messages").await, 2);
    reserve_as("job-17", 1)
        .await
        .expect(422, "idempotency_key_reused");

    // What was refused is not kept: it may fit later.
    reserve_as("job-18", 2)
        .await
        .expect(429, "usage_limit_reserved");
    assert_eq!(release(&acme, &id_of(&first)).await.status, 204);
    let second = id_of(&reserve_as("job-18", 2).await);
    assert_eq!(release(&acme, &second).await.status, 204);
    gate.finish().await;
}

#[tokio::test]
async fn a_reservation_survives_kill_9_until_its_time_is_over() {
    let gate = serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(3))
        .create()
        .await;
    let kept = id_of(&reserve(&acme, json!({"messages": 1, "input_tokens": 70}), 600).await);
    let short = id_of(&reserve(&acme, json!({"messages": 1}), 2).await);
    let settled = id_of(&reserve(&acme, json!({"messages": 1}), 600).await);
    settle(&acme, &settled, "s", json!({"messages": 1}))
        .await
        .expect_ok();

    let gate = gate.restart().await;
    let acme = acme.at(&gate);
    assert_eq!(acme.reserved("input_tokens").await, 70);
    assert_eq!(acme.used("messages").await, 1);
    // The short one ends by itself; then there is room for one more.
    eventually("the short one expires", || async {
        (acme.reserved("messages").await == 1).then_some(())
    })
    .await;
    acme.chat("one").await.expect_ok();
    acme.chat("two").await.expect(429, "usage_limit_reserved");

    settle(
        &acme,
        &kept,
        "k",
        json!({"messages": 1, "input_tokens": 75}),
    )
    .await
    .expect_ok();
    let again = settle(&acme, &settled, "s", json!({"messages": 1}))
        .await
        .expect_ok();
    assert_eq!(again.json()["duplicate"], true);
    assert_eq!(acme.used("messages").await, 3);
    // The model was called: what comes late is recorded, and said to have passed the limit.
    settle(&acme, &short, "late", json!({"messages": 1}))
        .await
        .expect_ok();
    assert_eq!(acme.used("messages").await, 4);
    assert_eq!(acme.total("messages").await, 4);
    assert_eq!(
        gate.metric("usage_overshoot_total", "after_the_fact").await,
        1
    );
    assert_eq!(gate.metric("usage_reservations_total", "expired").await, 1);
    gate.finish().await;
}

#[tokio::test]
async fn more_than_reserved_is_taken_and_less_is_given_back() {
    let gate = serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("output_tokens", hard(100))
        .create()
        .await;
    let more = reserve(&acme, json!({"output_tokens": 60}), 60).await;
    let body = more.json();
    assert_eq!(
        (&body["decision"], &body["granted"]["output_tokens"]),
        (&json!("allow"), &json!(60))
    );
    let item = body["features"]
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["feature_key"] == "output_tokens");
    assert_eq!(item.unwrap()["remaining"], 40);
    reserve(&acme, json!({"output_tokens": 41}), 60)
        .await
        .expect(429, "usage_limit_reserved");
    settle(&acme, &id_of(&more), "m", json!({"output_tokens": 90}))
        .await
        .expect_ok();
    assert_eq!(acme.used("output_tokens").await, 90);

    let less = id_of(&reserve(&acme, json!({"output_tokens": 10}), 60).await);
    settle(&acme, &less, "l", json!({})).await.expect_ok();
    assert_eq!(
        (
            acme.used("output_tokens").await,
            acme.reserved("output_tokens").await
        ),
        (90, 0)
    );
    gate.finish().await;
}

#[tokio::test]
async fn only_its_own_tenant_can_end_a_reservation_and_only_once() {
    let gate = serve().start().await;
    let acme = gate.tenant("acme").create().await;
    let other = gate.tenant("other").create().await;
    let one = id_of(&reserve(&acme, json!({"messages": 1}), 60).await);
    let two = id_of(&reserve(&acme, json!({"messages": 1}), 60).await);
    for answer in [
        settle(&other, &one, "x", json!({"messages": 1})).await,
        release(&other, &one).await,
        settle(&acme, "res_nonsense", "x", json!({})).await,
    ] {
        answer.expect(404, "not_found");
    }
    settle(&acme, &one, "a", json!({"messages": 1}))
        .await
        .expect_ok();
    settle(&acme, &one, "b", json!({"messages": 1}))
        .await
        .expect(409, "reservation_settled");
    let refused = release(&acme, &one)
        .await
        .expect(409, "reservation_settled");
    let message = refused.json()["error"]["message"].to_string();
    assert!(message.contains("is settled already; only"), "{message}");
    assert_eq!(release(&acme, &two).await.status, 204);
    release(&acme, &two).await.expect(404, "not_found");
    assert_eq!(
        (acme.used("messages").await, acme.reserved("messages").await),
        (1, 0)
    );
    assert_eq!(gate.metric("usage_reservations_total", "released").await, 1);
    gate.finish().await;
}

#[tokio::test]
async fn a_bad_reservation_is_told_what_is_wrong_with_it() {
    let gate = serve().start().await;
    let acme = gate.tenant("acme").allowed_models("gpt-*").create().await;
    for (body, status, code, param) in [
        (json!({}), 422, "invalid_request", "quantities"),
        (
            json!({"quantities": {"messages": -1}}),
            422,
            "invalid_request",
            "quantities.messages",
        ),
        (
            json!({"quantities": {"messages": 1.5}}),
            422,
            "invalid_request",
            "quantities.messages",
        ),
        (
            json!({"quantities": {"messages": "1"}}),
            422,
            "invalid_request",
            "quantities.messages",
        ),
        (
            json!({"quantities": {"messages": 9_007_199_254_740_992_i64}}),
            422,
            "invalid_request",
            "quantities.messages",
        ),
        (
            json!({"quantities": {"Ü": 1}}),
            422,
            "invalid_request",
            "quantities.Ü",
        ),
        (
            json!({"quantities": {"ocr": 1}}),
            422,
            "invalid_request",
            "quantities",
        ),
        (
            json!({"quantities": {}, "ttl_seconds": 0}),
            422,
            "invalid_request",
            "ttl_seconds",
        ),
        (
            json!({"quantities": {}, "ttl_seconds": 86_401}),
            422,
            "invalid_request",
            "ttl_seconds",
        ),
        (
            json!({"quantities": {}, "ttl": 5}),
            422,
            "invalid_request",
            "ttl",
        ),
        (
            json!({"quantities": {}, "user": "x".repeat(129)}),
            422,
            "invalid_request",
            "user",
        ),
        (
            json!({"quantities": {}, "model": "claude-9"}),
            403,
            "model_not_allowed",
            "model",
        ),
        (json!([]), 400, "invalid_request", ""),
    ] {
        let answer = acme.post(ROUTE, &body).await.expect(status, code);
        assert_eq!(
            answer.json()["error"]["param"].as_str().unwrap_or(""),
            param,
            "{body}"
        );
    }
    gate.finish().await;
}

#[tokio::test]
async fn in_observe_mode_a_reservation_is_held_whatever_the_limit_says() {
    let gate = serve().set("USAGE_GUARDRAIL_MODE", "observe").start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(1))
        .create()
        .await;
    let over = reserve(&acme, json!({"messages": 5}), 60).await;
    assert_eq!(over.json()["decision"], "hard_limit");
    assert_eq!(over.header("x-usage-decision"), Some("hard_limit"));
    settle(&acme, &id_of(&over), "k", json!({"messages": 5}))
        .await
        .expect_ok();
    assert_eq!(acme.used("messages").await, 5);
    gate.finish().await;
}
