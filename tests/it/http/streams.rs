//! Streams: their frames, how they end, and that every run is paid for.

use serde_json::{Value, json};

use crate::http::support::{
    FakeOpenAi, Tollgate, eventually, hard,
    upstream::{Reports, Usual},
};

#[tokio::test]
async fn a_chat_stream_is_a_lifecycle_frame_deltas_and_one_final() {
    let upstream = FakeOpenAi::start().await;
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(5))
        .create()
        .await;
    let pen = upstream.streams();
    let mut stream = acme.chat_stream("hi").await;
    assert_eq!(
        (stream.status, stream.header("content-type")),
        (200, "text/event-stream".to_owned())
    );
    assert_eq!(stream.header("x-usage-decision"), "allow");

    let first = stream.next_json().await;
    assert_eq!(
        (&first["kind"], &first["status"]),
        (&json!("lifecycle"), &json!("in_progress"))
    );
    for text in ["hel", "lo"] {
        pen.text(text).await;
        let delta = stream.next_json().await;
        assert_eq!(
            (&delta["kind"], &delta["delta"]),
            (&json!("message.delta"), &json!(text))
        );
    }
    pen.finish("stop").await;
    pen.usage(9, 2).await;
    pen.done().await;
    let last = stream.next_json().await;
    assert_eq!(last["kind"], "final");
    assert_eq!(last["final"]["status"], "completed");
    assert_eq!(last["final"]["response_text"], "hello");
    assert_eq!(last["final"]["usage"]["total_tokens"], 11);
    assert_eq!(last["final"]["guardrail"]["features"][0]["used"], 1);
    assert_eq!(
        (&last["event_id"], &last["schema"]),
        (&json!(4), &json!("public_sse_v1"))
    );
    assert_eq!(stream.next().await, None, "nothing after the final frame");
    assert_eq!(
        acme.usage_of("messages").await["used"],
        1,
        "settled when the last frame is out"
    );
}

#[tokio::test]
async fn a_stream_refused_before_it_begins_is_plain_json() {
    let gate = Tollgate::serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(0))
        .create()
        .await;
    acme.chat_stream("hi")
        .await
        .into_reply()
        .await
        .expect(429, "usage_limit_exceeded");
    acme.stream(json!({}))
        .await
        .into_reply()
        .await
        .expect(429, "usage_limit_exceeded");
}

#[tokio::test]
async fn an_upstream_that_breaks_off_is_told_and_what_came_is_paid_for() {
    let upstream = FakeOpenAi::start().await;
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(5))
        .limit("output_tokens", hard(100_000))
        .create()
        .await;

    let pen = upstream.streams();
    let mut stream = acme.stream(json!({})).await;
    pen.text("some words that were produced").await;
    stream.next_json().await;
    pen.break_off().await;
    let last: Value = serde_json::from_str(stream.rest().await.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "upstream_error");

    let pen = upstream.streams();
    let mut stream = acme.chat_stream("hi").await;
    pen.text("some words").await;
    pen.break_off().await;
    let frames = stream.rest().await;
    let last: Value = serde_json::from_str(frames.last().unwrap()).unwrap();
    assert_eq!(
        (&last["kind"], &last["error"]["code"]),
        (&json!("error"), &json!("upstream_error"))
    );

    assert_eq!(acme.usage_of("messages").await["used"], 2);
    assert!(
        acme.usage_of("output_tokens").await["used"]
            .as_i64()
            .unwrap()
            > 0
    );
    assert_eq!(gate.metric("usage_estimated_total", &[]).await, 2.0);
}

#[tokio::test]
async fn a_client_that_hangs_up_pays_what_the_provider_reports_in_the_end() {
    let upstream = FakeOpenAi::start().await;
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(5))
        .limit("output_tokens", hard(100_000))
        .create()
        .await;
    let pen = upstream.streams();
    let mut stream = acme.stream(json!({})).await;
    upstream.called(1).await;
    pen.text("one").await;
    stream.next_json().await;
    drop(stream);
    eventually("a detached reader", || async {
        (gate.metric("usage_reservations", &["detached"]).await == 1.0).then_some(())
    })
    .await;
    pen.text("two").await;
    pen.finish("stop").await;
    pen.usage(3, 42).await;
    pen.done().await;
    gate.settled().await;
    assert_eq!(acme.usage_of("output_tokens").await["used"], 42);
    assert_eq!(acme.usage_of("messages").await["used"], 1);
}

#[tokio::test]
async fn what_the_provider_does_not_report_is_counted_and_marked_estimated() {
    let upstream = FakeOpenAi::start().await;
    upstream.usually(Usual {
        reports: Reports::Nothing,
        ..Usual::default()
    });
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("output_tokens", hard(100_000))
        .create()
        .await;
    let reply = acme.chat("hi").await.expect_ok();
    assert_eq!(reply.body["usage"]["estimated"], true);
    assert!(reply.body["usage"]["output_tokens"].as_i64().unwrap() > 0);
    assert_eq!(gate.metric("usage_estimated_total", &[]).await, 1.0);
}

#[tokio::test]
async fn the_usage_chunk_is_there_only_for_clients_that_ask_for_it() {
    let upstream = FakeOpenAi::start().await;
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    let unasked = acme.stream(json!({})).await.rest().await;
    assert!(
        !unasked.iter().any(|data| data.contains("usage")),
        "{unasked:?}"
    );
    assert_eq!(
        upstream.last().json()["stream_options"]["include_usage"],
        true
    );
    let asked = acme
        .stream(json!({ "stream_options": { "include_usage": true } }))
        .await
        .rest()
        .await;
    assert!(
        asked
            .iter()
            .any(|data| data.contains("\"completion_tokens\":5")),
        "{asked:?}"
    );
    assert_eq!(
        (unasked.last(), asked.last()),
        (Some(&"[DONE]".to_owned()), Some(&"[DONE]".to_owned()))
    );
}

#[tokio::test]
async fn a_stream_of_two_answers_ends_well_only_when_both_have() {
    let upstream = FakeOpenAi::start().await;
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    let piece = |index: usize, text: &str, finish: Value| json!({ "id": "c-1", "created": 7, "choices": [{ "index": index, "delta": { "content": text }, "finish_reason": finish }] });
    let pen = upstream.streams();
    let mut stream = acme.stream(json!({ "n": 2 })).await;
    pen.event(&piece(1, "b", json!(null))).await;
    pen.event(&piece(0, "a", json!("stop"))).await;
    pen.break_off().await;
    let last: Value = serde_json::from_str(stream.rest().await.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "upstream_error", "{last}");

    // Cut off, what has ended does not end again.
    let pen = upstream.streams();
    let mut stream = acme.stream(json!({ "n": 2, "max_tokens": 4 })).await;
    pen.event(&piece(1, "b", json!("stop"))).await;
    pen.event(&piece(0, &"word ".repeat(20), json!("stop")))
        .await;
    let frames = stream.rest().await;
    let closing: Value = serde_json::from_str(&frames[frames.len() - 2]).unwrap();
    assert_eq!(
        closing["choices"],
        json!([{ "index": 0, "delta": {}, "finish_reason": "length" }])
    );
    assert_eq!(
        (&closing["id"], &closing["created"]),
        (&json!("c-1"), &json!(7))
    );
}

#[tokio::test]
async fn what_failed_in_words_only_is_passed_on_and_free() {
    let upstream = FakeOpenAi::start().await;
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(9))
        .create()
        .await;
    let (responses, completions) = ("/v1/responses", "/v1/chat/completions");
    let of_responses = json!({ "model": "gpt-5.1", "input": "hi" });
    let of_completions =
        json!({ "model": "gpt-5.1", "messages": [{ "role": "user", "content": "hi" }] });
    let failed = "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"status\":\"failed\"}}\n\n";
    for (path, body, kind, answer) in [
        (responses, &of_responses, "text/event-stream", failed),
        (
            responses,
            &of_responses,
            "text/event-stream",
            "data: {\"type\":\"error\",\"code\":\"boom\"}\n\n",
        ),
        (
            responses,
            &of_responses,
            "application/json",
            r#"{"status":"failed","error":{"code":"boom"}}"#,
        ),
        (
            completions,
            &of_completions,
            "application/json",
            r#"{"error":{"message":"boom"}}"#,
        ),
    ] {
        upstream.answers_raw(200, kind, answer);
        let mut body = body.clone();
        body["stream"] = (kind == "text/event-stream").into();
        let reply = acme.post(path, &body).await.expect_ok();
        assert_eq!(reply.text, answer);
        assert_eq!(acme.usage_of("messages").await["used"], 0, "{answer}");
    }

    let whole = "data: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":3,\"output_tokens\":2}}}\n\ndata: [DONE]\n\n";
    upstream.answers_raw(200, "text/event-stream", whole);
    let mut body = of_responses.clone();
    body["stream"] = true.into();
    let reply = acme.post(responses, &body).await.expect_ok();
    assert_eq!(
        reply.text, whole,
        "what follows the last event is there too"
    );
    assert_eq!(acme.usage_of("messages").await["used"], 1);
    gate.settled().await;
}

#[tokio::test]
async fn output_that_a_chat_does_not_show_counts_too() {
    let upstream = FakeOpenAi::start().await;
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("output_tokens", hard(60))
        .create()
        .await;
    let unseen = json!({ "choices": [{ "index": 0, "delta": {
        "reasoning_content": "a thought about it",
        "tool_calls": [{ "index": 0, "function": { "name": "look_up", "arguments": "{\"of\":\"it\"}" } }],
    } }] });
    let pen = upstream.streams();
    let mut stream = acme.chat_stream("hi").await;
    pen.event(&unseen).await;
    pen.break_off().await;
    stream.rest().await;
    let used = acme.usage_of("output_tokens").await["used"]
        .as_i64()
        .unwrap();
    assert!((8..40).contains(&used), "{used}");

    let pen = upstream.streams();
    let mut stream = acme.chat_stream("hi").await;
    pen.event(&json!({ "choices": [{ "delta": { "reasoning": "word ".repeat(90) } }] }))
        .await;
    let frames = stream.rest().await;
    let last: Value = serde_json::from_str(frames.last().unwrap()).unwrap();
    assert_eq!(last["final"]["status"], "incomplete", "cut off: {last}");
}

#[tokio::test]
async fn a_report_that_more_output_follows_is_not_the_last_word_on_what_broke_off() {
    let upstream = FakeOpenAi::start().await;
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("output_tokens", hard(1000))
        .create()
        .await;
    let pen = upstream.streams();
    let mut stream = acme.stream(json!({})).await;
    pen.usage(7, 0).await;
    for _ in 0..12 {
        pen.text(" word").await;
    }
    pen.break_off().await;
    stream.rest().await;
    assert_eq!(acme.usage_of("output_tokens").await["used"], 12);
}
