//! A client that hangs up pays for what was produced; a run that produced nothing is free; nothing stays reserved.

use futures_util::{StreamExt, future::join_all};
use reqwest::Method;
use serde_json::json;

use super::serve;
use crate::support::{Ends, FakeOpenAi, Frames, Reply, Tenant, eventually, hard};

/// Reads `frames` frames of a stream, then drops the connection.
async fn hang_up_after(acme: &Tenant, frames: usize) {
    let mut stream = acme.open(json!({})).await.bytes_stream();
    for _ in 0..frames {
        stream.next().await.expect("a frame").expect("a frame");
    }
}

async fn settled(acme: &Tenant, messages: i64) {
    eventually("the hang-up is settled", || async {
        (acme.used("messages").await == messages && acme.reserved("messages").await == 0)
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_hang_up_is_charged_by_the_providers_own_count_if_it_still_comes() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Frames::words(10));
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    for frames in 1..=8 {
        hang_up_after(&acme, frames).await;
        settled(&acme, i64::try_from(frames).unwrap()).await;
    }
    assert_eq!(acme.used("output_tokens").await, 80);
    assert_eq!(acme.used("input_tokens").await, 56);
    assert_eq!(gate.metric("usage_estimated_total", "").await, 0);
    gate.finish().await;
}

#[tokio::test]
async fn a_hang_up_is_charged_by_the_tokenizer_where_no_count_comes() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Frames::hanging(6));
    let gate = serve()
        .upstream(&upstream)
        .set("TOLLGATE_DISCONNECT_GRACE_SECONDS", "1")
        .start()
        .await;
    let acme = gate.tenant("acme").create().await;
    hang_up_after(&acme, 7).await;
    settled(&acme, 1).await;
    assert_eq!(acme.used("output_tokens").await, 6);
    assert!(acme.used("input_tokens").await > 0);
    assert_eq!(gate.metric("usage_estimated_total", "").await, 1);
    gate.finish().await;
}

#[tokio::test]
async fn a_hang_up_before_anything_came_is_free_unless_the_settings_say_otherwise() {
    for (policy, messages) in [("produced", 0), ("input", 1), ("none", 0)] {
        let upstream = FakeOpenAi::start().await;
        upstream.always(Reply::Stream {
            texts: vec![],
            usage: None,
            ends: Ends::Hangs,
        });
        let gate = serve()
            .upstream(&upstream)
            .set("TOLLGATE_DISCONNECT_GRACE_SECONDS", "0")
            .set("USAGE_CHARGE_ON_ABORT", policy)
            .start()
            .await;
        let acme = gate.tenant("acme").create().await;
        hang_up_after(&acme, 1).await;
        settled(&acme, messages).await;
        assert_eq!(acme.used("output_tokens").await, 0, "{policy}");
        assert_eq!(
            acme.used("input_tokens").await > 0,
            policy == "input",
            "{policy}"
        );
        gate.finish().await;
    }
}

#[tokio::test]
async fn a_thousand_hang_ups_leave_nothing_reserved() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Frames::words(4));
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(1_000))
        .create()
        .await;
    for round in 0..20 {
        join_all((0..50).map(|index| hang_up_after(&acme, (round + index) % 6))).await;
    }
    eventually("nothing is reserved", || async {
        (gate.metric("usage_reservations", "").await == 0).then_some(())
    })
    .await;
    let used = acme.used("messages").await;
    assert_eq!(
        acme.used("output_tokens").await,
        4 * used,
        "every one that was charged was charged whole"
    );
    assert_eq!(acme.reserved("messages").await, 0);
    gate.finish().await;
}

#[tokio::test]
async fn a_whole_answer_whose_client_has_gone_is_read_to_its_end() {
    let upstream = FakeOpenAi::start().await;
    upstream.hold();
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    let asking = tokio::spawn({
        let acme = acme.clone();
        async move { acme.complete(json!({})).await }
    });
    eventually("the request is upstream", || async {
        (upstream.calls() == 1).then_some(())
    })
    .await;
    asking.abort();
    upstream.release();
    settled(&acme, 1).await;
    assert_eq!(acme.used("output_tokens").await, 2);
    gate.finish().await;
}

/// What it says itself is the last word, and what it had produced is charged.
#[tokio::test]
async fn an_upstream_that_says_in_a_stream_that_it_failed_is_believed() {
    let upstream = FakeOpenAi::start().await;
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    let frames = [
        r#"{"id":"c","choices":[{"index":0,"delta":{"content":"two words"}}]}"#,
        r#"{"error":{"message":"boom"}}"#,
    ];
    let frames = frames.map(|data| format!("data: {data}\n\n"));
    upstream.next(Reply::Raw(
        200,
        vec![("content-type", "text/event-stream")],
        frames.concat(),
    ));
    let answer = acme.complete(json!({ "stream": true })).await;
    assert_eq!(
        answer.text.matches(r#""error""#).count(),
        1,
        "{}",
        answer.text
    );
    assert!(answer.text.contains("boom"), "{}", answer.text);
    settled(&acme, 1).await;
    assert_eq!(acme.used("output_tokens").await, 2);
    gate.finish().await;
}

#[tokio::test]
async fn an_upstream_that_fails_before_any_output_is_free() {
    let upstream = FakeOpenAi::start().await;
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    let failing = || {
        Reply::Raw(
            500,
            vec![("content-type", "application/json")],
            r#"{"error":{"message":"no"}}"#.to_owned(),
        )
    };
    upstream.next(failing());
    let answer = acme.complete(json!({})).await;
    assert_eq!(
        (answer.status, answer.text.as_str()),
        (500, r#"{"error":{"message":"no"}}"#)
    );
    assert_eq!(answer.header("x-usage-decision"), Some("allow"));
    upstream.next(failing());
    acme.chat("hi").await.expect(502, "upstream_error");
    upstream.next(failing());
    let stream = acme
        .post("/api/v1/chat/stream", &json!({ "message": "hi" }))
        .await;
    assert!(
        stream
            .events()
            .last()
            .unwrap()
            .contains("\"kind\":\"error\""),
        "{}",
        stream.text
    );
    assert_eq!(upstream.calls(), 3, "one call each: nothing is retried");
    assert_eq!(
        (acme.used("messages").await, acme.reserved("messages").await),
        (0, 0)
    );
    gate.finish().await;
}

#[tokio::test]
async fn a_stream_that_breaks_off_ends_in_an_error_and_is_charged_what_came() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Frames::breaking_off(3));
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    let answer = crate::support::Answer::read(acme.open(json!({})).await).await;
    let last = answer.events().pop().unwrap();
    assert!(last.starts_with("{\"error\":"), "{}", answer.text);
    settled(&acme, 1).await;
    assert_eq!(acme.used("output_tokens").await, 3);

    let answer = acme
        .post("/api/v1/chat/stream", &json!({ "message": "hi" }))
        .await;
    assert!(
        answer
            .events()
            .last()
            .unwrap()
            .contains("\"kind\":\"error\""),
        "{}",
        answer.text
    );
    settled(&acme, 2).await;
    gate.finish().await;
}

#[tokio::test]
async fn usage_that_is_not_reported_is_counted_and_marked() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Reply::Text {
        text: "one two three".to_owned(),
        usage: json!({ "prompt_tokens": -1, "completion_tokens": "3" }),
    });
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    acme.complete(json!({})).await.expect_ok();
    assert_eq!(acme.used("output_tokens").await, 3);
    let native = acme.chat("hi").await.expect_ok().json();
    assert_eq!(native["usage"]["estimated"], true);
    assert_eq!(native["usage"]["output_tokens"], 3);
    assert_eq!(gate.metric("usage_estimated_total", "").await, 2);
    gate.finish().await;
}

#[tokio::test]
async fn a_reported_zero_is_zero_and_calibration_is_applied() {
    let upstream = FakeOpenAi::start().await;
    let gate = serve()
        .upstream(&upstream)
        .set("USAGE_TOKEN_CALIBRATION", "gpt-*:output=1.5")
        .start()
        .await;
    let acme = gate.tenant("acme").create().await;
    upstream.next(Reply::text("never mind", 0, 0));
    acme.complete(json!({})).await.expect_ok();
    assert_eq!(
        (
            acme.used("input_tokens").await,
            acme.used("output_tokens").await
        ),
        (0, 0)
    );
    upstream.next(Reply::text("hm", 10, 3));
    acme.complete(json!({})).await.expect_ok();
    assert_eq!(
        (
            acme.used("input_tokens").await,
            acme.used("output_tokens").await
        ),
        (10, 5),
        "4.5 rounds up"
    );
    gate.finish().await;
}

#[tokio::test]
async fn a_stream_whose_client_goes_before_it_begins_is_waited_for_no_longer_than_it_is_read_on() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Reply::Hang);
    let gate = serve()
        .upstream(&upstream)
        .set("TOLLGATE_DISCONNECT_GRACE_SECONDS", "1")
        .start()
        .await;
    let acme = gate.tenant("acme").create().await;
    let streams = [
        (
            "/v1/chat/completions",
            json!({ "model": "m", "stream": true, "messages": [{ "role": "user", "content": "hi" }] }),
        ),
        ("/api/v1/chat/stream", json!({ "message": "hi" })),
    ];
    let keys = [None, Some("k")];
    let asked = keys
        .iter()
        .flat_map(|key| streams.iter().map(move |(path, body)| (path, body, key)));
    for (calls, (path, body, key)) in (1..).zip(asked) {
        let mut request = acme.request(Method::POST, path).json(body);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", *key);
        }
        let asked = request.send();
        tokio::select! {
            answer = asked => {
                // The chat's stream begins before the model does; what is dropped here hangs up.
                assert_eq!((*path, answer.unwrap().status().as_u16()), ("/api/v1/chat/stream", 200));
            }
            () = eventually("the model is asked", || async { (upstream.calls() == calls).then_some(()) }) => {}
        }
        eventually("it is given up", || async {
            (gate.metric("usage_reservations", "").await == 0).then_some(())
        })
        .await;
    }
    assert_eq!(acme.used("messages").await, 0, "nothing was produced");
    gate.finish().await;
}
