//! What is refused says why; what is counted is shown the same everywhere.

use serde_json::{Value, json};

use crate::support::{FakeOpenAi, Reply, Tollgate, hard};

#[tokio::test]
async fn read_your_own_writes() {
    let gate = Tollgate::serve().start().await;
    let acme = gate.tenant("acme").create().await;
    for count in 1..=5 {
        acme.with_user("ann").chat("hi").await.expect_ok();
        assert_eq!(acme.used("messages").await, count);
        assert_eq!(acme.total("messages").await, count);
        let shown = gate.cli_json(&["usage", "show", "--tenant", "acme"]).await;
        assert_eq!(shown["features"][0]["used"], count);
        assert_eq!(
            gate.metric("usage_recorded_total", "feature_key=\"messages\"")
                .await,
            count
        );
    }
    let query = "period_start=2020-01-01T00:00:00Z&period_end=2100-01-01T00:00:00Z&feature_key=messages&by=user";
    let by_user = acme
        .get(&format!("/api/v1/usage/totals?{query}"))
        .await
        .expect_ok()
        .json();
    assert_eq!(by_user["totals"][0]["user"], "ann");
    assert_eq!(by_user["totals"][0]["quantity"], 5);
    gate.finish().await;
}

#[tokio::test]
async fn usage_recorded_by_hand_counts_once_whatever_the_limit_says() {
    let gate = Tollgate::serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(2))
        .create()
        .await;
    let record = [
        "usage",
        "record",
        "--tenant",
        "acme",
        "--feature",
        "messages",
        "--quantity",
        "3",
        "--idempotency-key",
        "k1",
    ];
    let first = gate.cli_json(&record).await;
    assert_eq!(first["duplicate"], false);
    let again = gate.cli_json(&record).await;
    assert_eq!(
        (&again["duplicate"], &again["event_id"]),
        (&json!(true), &first["event_id"])
    );
    assert_eq!(
        (acme.used("messages").await, acme.total("messages").await),
        (3, 3)
    );
    acme.chat("hi").await.expect(429, "usage_limit_exceeded");
    assert_eq!(
        gate.metric("usage_overshoot_total", "after_the_fact").await,
        1
    );
    gate.finish().await;
}

#[tokio::test]
async fn a_request_larger_than_its_limit_is_told_so() {
    let gate = Tollgate::serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("input_tokens", hard(20))
        .create()
        .await;
    let refused = acme
        .chat(&"word ".repeat(500))
        .await
        .expect(429, "usage_limit_exceeded");
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    assert!(
        refused.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("can never fit"),
        "{}",
        refused.text
    );
    gate.finish().await;
}

#[tokio::test]
async fn a_model_that_the_plan_leaves_out_is_refused_before_the_upstream_is_called() {
    let upstream = FakeOpenAi::start().await;
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").allowed_models("llama-*").create().await;
    let refused = acme
        .complete(json!({}))
        .await
        .expect(403, "model_not_allowed");
    assert_eq!(refused.json()["error"]["type"], "permission_error");
    acme.complete(json!({ "model": "llama-8b" }))
        .await
        .expect_ok();
    assert_eq!(upstream.calls(), 1);
    gate.finish().await;
}

#[tokio::test]
async fn an_open_prompt_reserves_the_context_window_or_is_refused() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Reply::Raw(
        200,
        vec![("content-type", "application/json")],
        json!({ "id": "resp_1", "output": [], "usage": { "input_tokens": 900, "output_tokens": 1 } }).to_string(),
    ));
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("input_tokens", hard(1_000))
        .create()
        .await;
    let open = json!({ "model": "gpt-5.1", "input": "hi", "previous_response_id": "resp_0", "max_output_tokens": 16 });
    acme.post("/v1/responses", &open).await.expect_ok();
    assert_eq!(acme.used("input_tokens").await, 900);

    let refusing = Tollgate::serve()
        .upstream(&upstream)
        .set("USAGE_GUARDRAIL_OPEN_INPUT", "refuse")
        .start()
        .await;
    let acme = refusing.tenant("acme").create().await;
    let chat = "/v1/chat/completions";
    let user = |content: Value| json!({ "messages": [{ "role": "user", "content": content }] });
    for (path, body) in [
        ("/v1/responses", open),
        ("/v1/responses", json!({ "input": [{ "id": "msg_1" }] })),
        (
            "/v1/responses",
            json!({ "input": [{ "type": null, "id": "msg_1" }] }),
        ),
        (
            chat,
            user(json!({ "type": "file", "file": { "file_id": "f" } })),
        ),
        (
            chat,
            user(json!([{ "video_url": { "url": "http://x/v.mp4" } }])),
        ),
        (chat, user(json!([{ "input_audio": { "data": "AA==" } }]))),
    ] {
        acme.post(path, &body)
            .await
            .expect(422, "open_input_not_allowed");
    }
    refusing.finish().await;
    gate.finish().await;
}

#[tokio::test]
async fn a_number_and_a_path_that_cannot_be_are_named_with_what_is_accepted() {
    let gate = Tollgate::serve().start().await;
    let acme = gate.tenant("acme").create().await;
    for (ttl, found) in [
        (json!(-1), "'ttl_seconds' is -1"),
        (json!(0), "'ttl_seconds' is 0"),
    ] {
        let body = json!({ "quantities": { "messages": 1 }, "ttl_seconds": ttl });
        let refused = acme.post("/api/v1/usage/reservations", &body).await;
        let refused = refused.expect(422, "invalid_request");
        assert!(refused.text.contains(found), "{}", refused.text);
        assert!(refused.text.contains("from 1 to 86400"), "{}", refused.text);
    }
    let path = "/api/v1/usage/reservations/nothing/settle";
    let refused = acme.post(path, &json!({})).await.expect(404, "not_found");
    assert!(refused.text.contains(path), "{}", refused.text);
    gate.finish().await;
}

#[tokio::test]
async fn conversations_remember_and_belong_to_their_tenant() {
    let upstream = FakeOpenAi::start().await;
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    let other = gate.tenant("other").create().await;
    let first = acme.chat("my name is Ann").await.expect_ok().json();
    let id = &first["conversation_id"];
    let again = json!({ "message": "what is my name?", "conversation_id": id });
    acme.post("/api/v1/chat", &again).await.expect_ok();
    let sent = upstream.last().json();
    let texts: Vec<_> = sent["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["content"].clone())
        .collect();
    assert_eq!(
        texts,
        [
            json!("my name is Ann"),
            json!("hello"),
            json!("what is my name?")
        ]
    );
    other
        .post("/api/v1/chat", &again)
        .await
        .expect(404, "conversation_not_found");
    gate.finish().await;
}

#[tokio::test]
async fn the_native_stream_has_one_end_and_says_what_was_used() {
    let gate = Tollgate::serve().start().await;
    let acme = gate.tenant("acme").create().await;
    let answer = acme
        .post("/api/v1/chat/stream", &json!({ "message": "hi" }))
        .await
        .expect_ok();
    let events: Vec<serde_json::Value> = answer
        .events()
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    assert_eq!(events[0]["kind"], "lifecycle");
    assert_eq!(events[0]["status"], "in_progress");
    let ids: Vec<u64> = events
        .iter()
        .map(|event| event["event_id"].as_u64().unwrap())
        .collect();
    assert_eq!(
        ids,
        (1..=u64::try_from(events.len()).unwrap()).collect::<Vec<_>>()
    );
    let last = events.last().unwrap();
    assert_eq!(
        (&last["kind"], &last["schema"]),
        (&json!("final"), &json!("public_sse_v1"))
    );
    let deltas: String = events
        .iter()
        .filter_map(|event| event["delta"].as_str())
        .collect();
    assert_eq!(last["final"]["response_text"], json!(deltas));
    assert_eq!(last["final"]["guardrail"]["features"][0]["used"], 1);
    assert!(last["final"]["usage"]["output_tokens"].as_i64().unwrap() > 0);
    gate.finish().await;
}

#[tokio::test]
async fn no_secret_and_no_prompt_reaches_the_log() {
    let gate = Tollgate::serve().set("RUST_LOG", "trace").start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(1))
        .create()
        .await;
    acme.chat("the prompt is aardvark").await.expect_ok();
    acme.chat("the prompt is aardvark")
        .await
        .expect(429, "usage_limit_exceeded");
    acme.complete(json!({ "messages": [{ "role": "user", "content": "aardvark" }] }))
        .await;
    gate.logged("usage_limit_exceeded").await;
    let log = gate.log();
    assert!(log.contains("usage_limit_exceeded"), "there is a log");
    for secret in ["aardvark", acme.key.as_str(), &acme.key[3..]] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    gate.finish().await;
}
