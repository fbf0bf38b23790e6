//! Money is held, limited and charged like everything else.

use futures_util::future::join_all;
use serde_json::json;

use super::serve;
use crate::support::{FakeOpenAi, Reply, hard};

/// $2.50 a million tokens of input, $10 of output.
const GPT_4O: &str = "gpt-4o";

#[tokio::test]
async fn an_answer_says_what_it_cost_and_so_do_totals_and_events() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Reply::text("hello", 12, 5));
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("cost", hard(1_000))
        .create()
        .await;
    let body = json!({ "message": "hi", "model": GPT_4O, "max_output_tokens": 20 });
    let answer = acme.post("/api/v1/chat", &body).await.expect_ok();
    let usage = &answer.json()["usage"];
    assert_eq!(usage["cost_usd_micros"], 80, "12 x 2.5 + 5 x 10: {usage}");
    assert_eq!(answer.json()["guardrail"]["warnings"], json!([]));
    assert_eq!(
        (acme.used("cost").await, acme.reserved("cost").await),
        (80, 0)
    );
    let explained = gate
        .cli_json(&["usage", "explain", answer.header("x-request-id").unwrap()])
        .await;
    let price = explained["price_id"].as_str().unwrap();
    assert!(
        price.starts_with("gpt-4o*@2024-08-06T00:00:00Z#"),
        "{price}"
    );
    gate.finish().await;
}

#[tokio::test]
async fn a_cost_limit_holds_under_many_requests_at_once_on_mixed_models() {
    let gate = serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("cost", hard(60_000))
        .create()
        .await;
    let ask = |model: &str| {
        acme.complete(json!({ "model": model, "max_tokens": 60, "messages": [{ "role": "user", "content": "tell me a long story" }] }))
    };
    let models = [GPT_4O, "gpt-4o-mini", "o1", "simulated", "gpt-5.1"];
    loop {
        let asked = (0..200).map(|number: usize| ask(models[number % models.len()]));
        let answers = join_all(asked).await;
        let used = acme.used("cost").await;
        assert!(used <= 60_000, "{used}");
        assert_eq!(acme.reserved("cost").await, 0);
        let is_spent = |answer: &crate::support::Answer| {
            answer.status == 429 && answer.code() == "usage_limit_exceeded"
        };
        if answers.iter().step_by(models.len()).all(is_spent) {
            break; // not even the least of gpt-4o can be paid for
        }
    }
    let left = 60_000 - acme.used("cost").await;
    // Its shortest answer of 16 tokens is 160, its prompt at most 100 tokens.
    assert!(left < 160 + 250, "{left}");
    let refused = ask(GPT_4O).await.expect(429, "usage_limit_exceeded");
    assert_eq!(refused.json()["error"]["feature_key"], "cost");
    assert_eq!(refused.json()["error"]["unit"], "usd_micros");
    assert_eq!(gate.metric("usage_overshoot_total", "cost").await, 0);
    gate.finish().await;
}

#[tokio::test]
async fn an_output_is_lowered_to_what_can_be_paid_for_and_that_is_said() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Reply::text("hello", 12, 5));
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("cost", hard(3_000))
        .create()
        .await;
    let body = json!({ "model": GPT_4O, "max_tokens": 1_000 });
    let answer = acme.complete(body).await.expect_ok();
    let sent = upstream.seen()[0].json()["max_tokens"].as_i64().unwrap();
    assert!((16..300).contains(&sent), "{sent}");
    assert_eq!(
        answer.header("x-usage-output-capped"),
        Some(sent.to_string().as_str())
    );
    gate.finish().await;
}
