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
