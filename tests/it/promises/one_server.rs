//! What is tried on one server by what it is alone in: its files, and what is in force at once where it was changed.

use serde_json::json;

use super::{
    repeats::{is_replayed, keyed, stream_body},
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
