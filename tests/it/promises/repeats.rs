//! A request that is sent again with its Idempotency-Key runs once and is charged once.

use std::time::Duration;

use futures_util::{StreamExt as _, future::join_all};
use reqwest::Method;
use serde_json::{Value, json};

use super::serve;
use crate::support::{Answer, FakeOpenAi, Frames, Reply, Tenant, eventually};

pub(super) async fn keyed(acme: &Tenant, path: &str, key: &str, body: &Value) -> Answer {
    let request = acme
        .request(Method::POST, path)
        .header("idempotency-key", key);
    let response = request
        .body(body.to_string())
        .send()
        .await
        .expect("an answer");
    Answer::read(response).await
}

pub(super) fn chat_body() -> Value {
    json!({ "model": "gpt-5.1", "messages": [{ "role": "user", "content": "hi" }] })
}

pub(super) fn stream_body() -> Value {
    let mut body = chat_body();
    body["stream"] = json!(true);
    body
}

pub(super) fn is_replayed(answer: &Answer) -> bool {
    answer.header("idempotent-replayed") == Some("true")
}

#[tokio::test]
async fn every_chat_route_replays_its_answer_also_after_a_restart_and_charges_nothing() {
    let gate = serve().start().await;
    let acme = gate.tenant("acme").create().await;
    let routes = [
        ("/api/v1/chat", json!({"message": "hi"})),
        ("/api/v1/chat/stream", json!({"message": "hi"})),
        ("/v1/chat/completions", chat_body()),
        ("/v1/chat/completions", stream_body()),
        ("/v1/responses", json!({"model": "gpt-5.1", "input": "hi"})),
        (
            "/v1/responses",
            json!({"model": "gpt-5.1", "input": "hi", "stream": true}),
        ),
        (
            "/v1/embeddings",
            json!({"model": "text-embedding-3-small", "input": "hi"}),
        ),
    ];
    let mut firsts = Vec::new();
    for (index, (path, body)) in routes.iter().enumerate() {
        let first = keyed(&acme, path, &format!("key-{index}"), body)
            .await
            .expect_ok();
        assert!(!is_replayed(&first), "{path}");
        firsts.push(first);
    }
    let used = [
        acme.used("messages").await,
        acme.used("input_tokens").await,
        acme.used("output_tokens").await,
    ];
    assert_eq!(used[0], 7);

    let gate = gate.restart().await;
    let acme = acme.at(&gate);
    for _ in 0..2 {
        for (index, (path, body)) in routes.iter().enumerate() {
            let again = keyed(&acme, path, &format!("key-{index}"), body)
                .await
                .expect_ok();
            assert!(is_replayed(&again), "{path}");
            assert_eq!(again.text, firsts[index].text, "{path}");
            for name in ["content-type", "x-usage-decision"] {
                assert_eq!(again.header(name), firsts[index].header(name), "{path}");
            }
        }
    }
    let after = [
        acme.used("messages").await,
        acme.used("input_tokens").await,
        acme.used("output_tokens").await,
    ];
    assert_eq!(after, used);
    assert_eq!(acme.total("messages").await, 7);
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_repeats_at_once_one_runs_and_the_others_are_told_to_wait() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Reply::text("hello", 7, 3));
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    upstream.hold();
    let body = chat_body();
    let asking = join_all((0..12).map(|_| keyed(&acme, "/v1/chat/completions", "k", &body)));
    let (answers, ()) = tokio::join!(asking, async {
        eventually("the model is asked", || async {
            (upstream.calls() == 1).then_some(())
        })
        .await;
        let waiting = keyed(&acme, "/v1/chat/completions", "k", &body).await;
        waiting.expect(409, "idempotency_key_in_use");
        upstream.release();
    });
    let ran = answers
        .iter()
        .filter(|it| it.status == 200 && !is_replayed(it));
    assert_eq!(ran.count(), 1);
    for other in answers.iter().filter(|it| it.status != 200) {
        other.clone().expect(409, "idempotency_key_in_use");
    }
    let again = keyed(&acme, "/v1/chat/completions", "k", &body)
        .await
        .expect_ok();
    assert!(is_replayed(&again));
    assert_eq!((upstream.calls(), acme.used("messages").await), (1, 1));
    gate.finish().await;
}

#[tokio::test]
async fn a_client_that_lost_its_stream_gets_it_whole_and_pays_once() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Frames::words(10));
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    let request = acme
        .request(Method::POST, "/v1/chat/completions")
        .header("idempotency-key", "k");
    let response = request
        .body(stream_body().to_string())
        .send()
        .await
        .unwrap();
    let mut stream = response.bytes_stream();
    stream.next().await.expect("a frame").expect("a frame");
    drop(stream);
    let again = eventually("the stream is kept", || async {
        let again = keyed(&acme, "/v1/chat/completions", "k", &stream_body()).await;
        (again.status == 200).then_some(again)
    })
    .await;
    assert!(is_replayed(&again));
    assert_eq!(again.events().last().map(String::as_str), Some("[DONE]"));
    assert_eq!(upstream.calls(), 1);
    assert_eq!(
        (
            acme.used("messages").await,
            acme.used("output_tokens").await
        ),
        (1, 10)
    );
    gate.finish().await;
}

#[tokio::test]
async fn a_stream_that_can_not_be_read_to_its_end_is_charged_as_far_as_it_came_and_may_run_again() {
    let upstream = FakeOpenAi::start().await;
    upstream.next(Frames::hanging(3));
    upstream.always(Frames::words(2));
    let gate = serve()
        .upstream(&upstream)
        .set("TOLLGATE_DISCONNECT_GRACE_SECONDS", "1")
        .start()
        .await;
    let acme = gate.tenant("acme").create().await;
    let request = acme
        .request(Method::POST, "/v1/chat/completions")
        .header("idempotency-key", "k");
    let response = request
        .body(stream_body().to_string())
        .send()
        .await
        .unwrap();
    let mut stream = response.bytes_stream();
    for _ in 0..3 {
        stream.next().await.expect("a frame").expect("a frame");
    }
    keyed(&acme, "/v1/chat/completions", "k", &stream_body())
        .await
        .expect(409, "idempotency_key_in_use");
    drop(stream);
    eventually("what came is charged", || async {
        (acme.used("messages").await == 1 && acme.reserved("messages").await == 0).then_some(())
    })
    .await;
    let again = eventually("its key may run again", || async {
        let again = keyed(&acme, "/v1/chat/completions", "k", &stream_body()).await;
        (again.status == 200).then_some(again)
    })
    .await;
    assert!(!is_replayed(&again));
    assert_eq!((upstream.calls(), acme.used("messages").await), (2, 2));
    gate.finish().await;
}

#[tokio::test]
async fn a_key_belongs_to_its_tenant_route_and_body() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Reply::text("hello", 7, 3));
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    let other = gate.tenant("other").create().await;
    keyed(&acme, "/v1/chat/completions", "k", &chat_body())
        .await
        .expect_ok();
    let mut changed = chat_body();
    changed["temperature"] = json!(1);
    keyed(&acme, "/v1/chat/completions", "k", &changed)
        .await
        .expect(422, "idempotency_key_reused");
    let elsewhere = keyed(&acme, "/api/v1/chat", "k", &json!({"message": "hi"}))
        .await
        .expect_ok();
    let others = keyed(&other, "/v1/chat/completions", "k", &chat_body())
        .await
        .expect_ok();
    assert!(!is_replayed(&elsewhere) && !is_replayed(&others));
    assert_eq!(upstream.calls(), 3);
    assert!(
        upstream
            .seen()
            .iter()
            .all(|seen| !seen.body.contains("idempotency"))
    );
    gate.finish().await;
}

#[tokio::test]
async fn only_good_answers_are_kept_and_large_ones_are_not_run_again() {
    let upstream = FakeOpenAi::start().await;
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    upstream.next(Reply::Raw(500, vec![], "{}".to_owned()));
    upstream.next(Reply::text("hello", 7, 3));
    let failed = keyed(&acme, "/v1/chat/completions", "k", &chat_body()).await;
    assert_eq!(failed.status, 500, "{}", failed.text);
    let second = keyed(&acme, "/v1/chat/completions", "k", &chat_body())
        .await
        .expect_ok();
    assert!(!is_replayed(&second));

    upstream.next(Reply::text(&"long ".repeat(300_000), 7, 3));
    keyed(&acme, "/v1/chat/completions", "large", &chat_body())
        .await
        .expect_ok();
    keyed(&acme, "/v1/chat/completions", "large", &chat_body())
        .await
        .expect(409, "idempotency_answer_too_large");
    assert_eq!((upstream.calls(), acme.used("messages").await), (3, 2));

    upstream.next(Frames::breaking_off(2));
    upstream.next(Frames::words(2));
    let broken = keyed(&acme, "/v1/chat/completions", "s", &stream_body())
        .await
        .expect_ok();
    assert!(broken.text.contains("\"error\""), "{}", broken.text);
    let again = keyed(&acme, "/v1/chat/completions", "s", &stream_body())
        .await
        .expect_ok();
    assert!(!is_replayed(&again));
    gate.finish().await;
}

#[tokio::test]
async fn a_bad_key_is_refused_before_anything_runs() {
    let upstream = FakeOpenAi::start().await;
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    for key in ["", "two words", &"k".repeat(256)] {
        keyed(&acme, "/v1/chat/completions", key, &chat_body())
            .await
            .expect(400, "invalid_request");
        let native = keyed(&acme, "/api/v1/chat", key, &json!({"message": "hi"})).await;
        let native = native.expect(422, "invalid_request");
        assert_eq!(native.json()["error"]["param"], "Idempotency-Key");
    }
    assert_eq!(upstream.calls(), 0);
    keyed(
        &acme,
        "/api/v1/chat",
        &"k".repeat(255),
        &json!({"message": "hi"}),
    )
    .await
    .expect_ok();
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hangs_up_at_once_does_not_lock_its_key() {
    let gate = serve().start().await;
    let acme = gate.tenant("acme").create().await;
    let keys: Vec<String> = (0..80).map(|number| format!("k{number}")).collect();
    for (number, key) in keys.iter().enumerate() {
        let body = chat_body();
        let asking = keyed(&acme, "/v1/chat/completions", key, &body);
        let patience = Duration::from_micros(30 * number as u64);
        drop(tokio::time::timeout(patience, asking).await);
    }
    for key in &keys {
        eventually("it runs, or has run", || async {
            let again = keyed(&acme, "/v1/chat/completions", key, &chat_body()).await;
            if again.status != 200 {
                again.expect(409, "idempotency_key_in_use");
                return None;
            }
            Some(())
        })
        .await;
    }
    assert_eq!(acme.used("messages").await, 80);
    gate.finish().await;
}
