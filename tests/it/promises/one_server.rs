//! What is tried on one server by what it is alone in: its files, and what is in force at once where it was changed.

use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::json;

use super::{
    repeats::{chat_body, is_replayed, keyed, stream_body},
    serve,
};
use crate::support::{FakeOpenAi, Frames, Reply, eventually, hard};

/// The answer's file is put back to how it was while the request ran: as if the crash had come between the usage
/// and the answer.
#[tokio::test]
async fn a_run_whose_answer_a_crash_took_runs_again_and_is_charged_once() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Frames::words(2));
    let mut gate = serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    let kept = gate.settings().data_dir().join("answers.redb");
    let body = stream_body();
    upstream.hold();
    let asking = keyed(&acme, "/v1/chat/completions", "k", &body);
    let (first, before) = tokio::join!(asking, async {
        eventually("the model is asked", || async {
            (upstream.calls() == 1).then_some(())
        })
        .await;
        let before = std::fs::read(&kept).expect("the file is there");
        upstream.release();
        before
    });
    first.expect_ok();
    gate.kill9();
    std::fs::write(&kept, before).expect("the file can be put back");

    let gate = gate.settings().start().await;
    let acme = acme.at(&gate);
    let second = keyed(&acme, "/v1/chat/completions", "k", &body)
        .await
        .expect_ok();
    assert!(!is_replayed(&second));
    let third = keyed(&acme, "/v1/chat/completions", "k", &body)
        .await
        .expect_ok();
    assert!(is_replayed(&third));
    assert_eq!(
        (
            upstream.calls(),
            acme.used("messages").await,
            acme.total("messages").await
        ),
        (2, 1, 1)
    );
    gate.finish().await;
}

#[tokio::test]
async fn a_model_without_a_price_costs_nothing_and_that_is_said_or_it_is_refused() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Reply::text("hello", 12, 5));
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("cost", hard(3_000))
        .create()
        .await;
    let body = || json!({ "message": "hi", "model": "my-own-model", "max_output_tokens": 20 });
    let answer = acme.post("/api/v1/chat", &body()).await.expect_ok();
    assert_eq!(answer.json()["usage"]["cost_usd_micros"], 0);
    let warnings = &answer.json()["guardrail"]["warnings"];
    let warning =
        json!({ "code": "unpriced_model", "feature_key": "cost", "model": "my-own-model" });
    assert_eq!(warnings, &json!([warning]));
    assert_eq!(gate.metric("usage_unpriced_total", "my-own-model").await, 1);

    let dir = tempfile::tempdir().unwrap();
    let prices = dir.path().join("mine.json");
    let text = r#"[{"model": "my-own-*", "effective_from": "2026-01-01", "input": 1000000, "output": 1000000}]"#;
    std::fs::write(&prices, text).unwrap();
    gate.cli_json(&["price", "import", prices.to_str().unwrap()])
        .await;
    let answer = acme.post("/api/v1/chat", &body()).await.expect_ok();
    assert_eq!(
        answer.json()["usage"]["cost_usd_micros"],
        17,
        "in force at once"
    );
    gate.finish().await;

    let gate = serve()
        .upstream(&upstream)
        .set("TOLLGATE_PRICES", prices.to_str().unwrap())
        .start()
        .await;
    let own_file = gate.tenant("acme").create().await;
    let answer = own_file.post("/api/v1/chat", &body()).await.expect_ok();
    assert_eq!(answer.json()["usage"]["cost_usd_micros"], 17);
    gate.finish().await;

    let gate = serve()
        .upstream(&upstream)
        .set("USAGE_UNPRICED_MODEL", "refuse")
        .start()
        .await;
    let acme = gate
        .tenant("acme")
        .limit("cost", hard(3_000))
        .create()
        .await;
    let calls = upstream.calls();
    acme.post("/api/v1/chat", &body())
        .await
        .expect(422, "model_not_priced");
    let openai = json!({ "model": "my-own-model" });
    acme.complete(openai).await.expect(422, "model_not_priced");
    assert_eq!(upstream.calls(), calls);
    gate.finish().await;
}

#[tokio::test]
async fn a_damaged_journal_is_moved_aside_and_totals_come_from_the_store() {
    let mut gate = serve().start().await;
    let acme = gate.tenant("acme").create().await;
    acme.chat("hi").await.expect_ok();
    assert_eq!(gate.terminate().await, 0);
    let journal = gate.settings().data_dir().join("cache.redb");
    std::fs::write(&journal, b"this is no journal").unwrap();
    let gate = gate.restart().await;
    assert_eq!(acme.at(&gate).used("messages").await, 1);
    gate.logged("\"code\":\"journal_damaged\"").await;
    let moved = std::fs::read_dir(gate.settings().data_dir())
        .unwrap()
        .filter_map(Result::ok);
    assert!(moved.into_iter().any(|file| {
        file.file_name()
            .to_string_lossy()
            .starts_with("cache.redb.damaged-")
    }));
    gate.finish().await;
}

#[tokio::test]
async fn damaged_answers_are_moved_aside_and_keyed_requests_go_on() {
    let mut gate = serve().start().await;
    let acme = gate.tenant("acme").create().await;
    for number in 0..20 {
        let key = format!("k{number}");
        keyed(&acme, "/v1/chat/completions", &key, &chat_body())
            .await
            .expect_ok();
    }
    assert_eq!(gate.terminate().await, 0);
    let directory = gate.settings().data_dir();
    let path = directory.join("answers.redb");
    let mut bytes = std::fs::read(&path).unwrap();
    // All but the first page, which says where the others are.
    for chunk in bytes[4096..].chunks_mut(16 << 10) {
        let length = chunk.len().min(2048);
        chunk[..length].fill(0xA5);
    }
    std::fs::write(&path, &bytes).unwrap();

    let gate = gate.restart().await;
    let acme = acme.at(&gate);
    for is_repeat in [false, true] {
        let answer = keyed(&acme, "/v1/chat/completions", "new", &chat_body())
            .await
            .expect_ok();
        assert_eq!(is_replayed(&answer), is_repeat);
    }
    gate.logged("\"code\":\"answers_damaged\"").await;
    let files = std::fs::read_dir(directory).unwrap().filter_map(Result::ok);
    let moved = files.filter(|file| {
        let name = file.file_name();
        name.to_string_lossy().starts_with("answers.redb.damaged-")
    });
    assert_eq!(moved.count(), 1);
    let doctor = gate.cli(&["doctor"]).await;
    assert!(
        doctor.stdout.contains("repeats of what it held run again"),
        "{}",
        doctor.stdout
    );
    gate.finish().await;
}

#[tokio::test]
async fn a_server_that_stops_ends_what_never_would_and_charges_what_came() {
    let upstream = FakeOpenAi::start().await;
    let mut gate = serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    upstream.next(Frames::hanging(6));
    let mut stream = acme.open(json!({})).await.bytes_stream();
    for _ in 0..7 {
        stream.next().await.unwrap().unwrap();
    }
    upstream.next(Frames::hanging(6));
    let chat = acme.request(Method::POST, "/api/v1/chat/stream");
    let chat = chat.json(&json!({ "message": "hi" })).send().await.unwrap();
    eventually("the second is asked", || async {
        (upstream.calls() == 2).then_some(())
    })
    .await;
    upstream.next(Reply::Hang);
    let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] });
    let begun = std::time::Instant::now();
    let stopping = async {
        eventually("the third is asked", || async {
            (upstream.calls() == 3).then_some(())
        })
        .await;
        gate.terminate().await
    };
    let whole = acme.try_post("/v1/chat/completions", &body);
    let (code, chat, _whole) = tokio::join!(stopping, chat.text(), whole);
    assert_eq!(code, 0);
    let took = begun.elapsed().as_secs();
    assert!(
        (25..45).contains(&took),
        "service managers wait for 45 s: {took}"
    );
    let chat = chat.unwrap();
    let last = chat.trim().rsplit("\n\n").next().unwrap();
    assert!(last.contains(r#""kind":"error""#), "{last}");
    assert!(last.contains("The server stops"), "{last}");

    let gate = gate.settings().start().await;
    let acme = acme.at(&gate);
    assert_eq!(
        acme.used("messages").await,
        2,
        "the one without an answer is free"
    );
    assert_eq!(acme.used("output_tokens").await, 12);
    assert_eq!(acme.reserved("messages").await, 0);
    gate.finish().await;
}

#[tokio::test]
async fn without_a_provider_nothing_begins() {
    // It is never ready.
    let serve = serve().set("TOLLGATE_PROVIDER", "openai");
    let gate = serve.try_start().await.unwrap();
    let acme = gate.tenant("acme").create().await;
    for path in ["/api/v1/chat", "/api/v1/chat/stream"] {
        let refused = acme.post(path, &json!({ "message": "hi" })).await;
        refused.expect(503, "provider_not_configured");
    }
    assert_eq!(acme.used("messages").await, 0);
    gate.finish().await;
}
