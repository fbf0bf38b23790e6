//! What limits answer: refusals, warnings, and the headers of every guarded answer.

use serde_json::json;

use crate::http::support::{FakeOpenAi, Tollgate, hard, soft, upstream::Usual};

#[tokio::test]
async fn the_last_message_is_answered_and_the_next_refused() {
    let upstream = FakeOpenAi::start().await;
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(1))
        .create()
        .await;

    let answered = acme.chat("one").await.expect_ok();
    assert_eq!(answered.header("x-usage-decision"), "allow");
    let refused = acme.chat("two").await.expect(429, "usage_limit_exceeded");
    assert_eq!(
        upstream.calls(),
        1,
        "a refused request must not reach the model"
    );

    let error = &refused.body["error"];
    for (field, value) in [
        ("plan_code", json!("acme-plan")),
        ("feature_key", json!("messages")),
        ("scope", json!("tenant")),
        ("window", json!("period")),
        ("limit_type", json!("hard_limit")),
        ("limit_value", json!(1)),
        ("usage", json!(1)),
        ("reserved", json!(0)),
        ("requested", json!(1)),
        ("unit", json!("requests")),
    ] {
        assert_eq!(error[field], value, "{field} in {refused:#?}");
    }
    assert_eq!(error["violations"].as_array().unwrap().len(), 1);
    assert_eq!(
        error["retry_after_seconds"].to_string(),
        refused.header("retry-after")
    );
    assert_eq!(refused.header("x-should-retry"), "false");
    assert_eq!(refused.header("x-usage-decision"), "hard_limit");
    let message = error["message"].as_str().unwrap();
    let resets = error["window_end"].as_str().unwrap();
    assert_eq!(
        message,
        format!("Plan 'acme-plan' allows 1 message per period; 1 is used. Resets {resets}.")
    );

    let logged = gate.logs("usage_limit_exceeded").await;
    assert_eq!(
        (&logged["level"], &logged["limit_value"]),
        (&json!("ERROR"), &json!(1))
    );
    assert_eq!(logged["request_id"], error["request_id"]);
    assert_eq!(
        gate.metric("usage_limit_hits_total", &["hard_limit", "messages"])
            .await,
        1.0
    );
    assert_eq!(
        gate.metric(
            "usage_guardrail_decisions_total",
            &["hard_limit", "acme-plan"]
        )
        .await,
        1.0
    );
}

#[tokio::test]
async fn openai_clients_are_told_a_spent_quota_from_a_rate_limit() {
    let gate = Tollgate::serve().start().await;
    let spent = gate
        .tenant("spent")
        .limit("messages", hard(0))
        .create()
        .await;
    let refused = spent
        .completion(json!({}))
        .await
        .expect(429, "usage_limit_exceeded");
    assert_eq!(refused.body["error"]["type"], "insufficient_quota");
    assert!(refused.body["error"]["param"].is_null());

    let fast = gate
        .tenant("fast")
        .limit("messages", hard(0).per("minute"))
        .create()
        .await;
    let refused = fast
        .completion(json!({}))
        .await
        .expect(429, "usage_limit_exceeded");
    assert_eq!(refused.body["error"]["type"], "rate_limit_error");
    assert_eq!(refused.header("x-ratelimit-limit-requests"), "0");
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), "0");
}

#[tokio::test]
async fn the_151st_message_warns() {
    let gate = Tollgate::serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", soft(2).and_hard(5))
        .create()
        .await;
    for decision in ["allow", "allow", "soft_limit"] {
        let reply = acme.chat("hi").await.expect_ok();
        assert_eq!(reply.header("x-usage-decision"), decision);
        assert_eq!(reply.body["guardrail"]["decision"], decision);
        let is_warned = decision == "soft_limit";
        assert_eq!(
            reply.header("x-usage-warning"),
            if is_warned { "messages" } else { "" }
        );
        assert_eq!(
            reply.body["guardrail"]["warnings"]
                .as_array()
                .unwrap()
                .len(),
            usize::from(is_warned)
        );
    }
    let logged = gate.logs("usage_soft_limit_exceeded").await;
    assert_eq!(logged["level"], "WARN");
    assert_eq!(
        gate.metric("usage_limit_hits_total", &["soft_limit"]).await,
        1.0
    );
}

#[tokio::test]
async fn every_guarded_answer_tells_its_limits() {
    let gate = Tollgate::serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(200))
        .limit("messages", hard(10).per("minute"))
        .limit("messages", hard(50).of_each("user").per("day"))
        .limit("messages", hard(1_000).per("lifetime"))
        .limit("cost", soft(1_000))
        .create()
        .await;
    let reply = acme.as_user("bob").completion(json!({})).await.expect_ok();
    let policy = reply.header("ratelimit-policy");
    for item in [
        r#""messages.minute";q=10;w=60"#,
        r#""messages.user.day";q=50;w=86400"#,
        r#""messages";q=200;w="#,
    ] {
        assert!(policy.contains(item), "{item} in {policy}");
    }
    assert!(
        policy.contains(r#""messages.lifetime";q=1000"#) && !policy.contains("q=1000;w"),
        "{policy}"
    );
    assert!(!policy.contains("cost"), "hard limits only: {policy}");
    let limits = reply.header("ratelimit");
    assert!(limits.contains(r#""messages.minute";r=9;t="#), "{limits}");
    assert!(limits.contains(r#""messages";r=199;t="#), "{limits}");
    assert!(
        !limits.contains("r=999;t"),
        "a lifetime never resets: {limits}"
    );
    assert_eq!(reply.header("x-ratelimit-limit-requests"), "10");
    assert_eq!(reply.header("x-ratelimit-remaining-requests"), "9");

    let native = acme.chat("hi").await.expect_ok();
    assert_eq!(
        native.header("x-ratelimit-limit-requests"),
        "",
        "OpenAI's headers are for /v1"
    );
}

#[tokio::test]
async fn what_is_held_by_requests_in_flight_is_told_from_a_spent_quota() {
    let upstream = FakeOpenAi::start().await;
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(1))
        .create()
        .await;
    let pen = upstream.streams();
    let mut stream = acme.stream(json!({})).await;
    pen.text("one").await;
    stream.next_json().await;

    let refused = acme
        .completion(json!({}))
        .await
        .expect(429, "usage_limit_reserved");
    assert_eq!(refused.header("retry-after"), "1");
    assert!(refused.header("retry-after-ms").parse::<u32>().unwrap() <= 1_000);
    assert_eq!(refused.body["error"]["type"], "rate_limit_error");
    assert_eq!(
        (
            &refused.body["error"]["usage"],
            &refused.body["error"]["reserved"]
        ),
        (&json!(0), &json!(1))
    );
    assert!(!refused.header("ratelimit").contains(";t="));
    assert_eq!(
        gate.metric("usage_limit_hits_total", &["messages"]).await,
        0.0
    );
    assert_eq!(gate.metric("usage_reservations", &["held"]).await, 1.0);

    pen.finish("stop").await;
    pen.usage(3, 2).await;
    pen.done().await;
    stream.rest().await;
    acme.completion(json!({}))
        .await
        .expect(429, "usage_limit_exceeded");
}

#[tokio::test]
async fn a_request_larger_than_the_whole_limit_is_told_so() {
    let gate = Tollgate::serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("input_tokens", hard(3))
        .create()
        .await;
    let long = "a word and another word and ".repeat(50);
    let refused = acme.chat(&long).await.expect(429, "usage_limit_exceeded");
    assert_eq!(refused.header("x-should-retry"), "false");
    let message = refused.body["error"]["message"].as_str().unwrap();
    assert!(message.contains("more than the whole limit"), "{message}");
}

#[tokio::test]
async fn usage_survives_kill_9_once_the_answer_is_out() {
    let upstream = FakeOpenAi::start().await;
    let mut gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(2))
        .limit("output_tokens", hard(1_000))
        .create()
        .await;
    upstream.usually(Usual {
        output_tokens: 7,
        ..Usual::default()
    });
    acme.chat("one").await.expect_ok();
    gate.kill9().await;
    gate.restart().await;
    assert_eq!(acme.usage_of("messages").await["used"], 1);
    assert_eq!(acme.usage_of("output_tokens").await["used"], 7);
    acme.chat("two").await.expect_ok();
    acme.chat("three").await.expect(429, "usage_limit_exceeded");
}
