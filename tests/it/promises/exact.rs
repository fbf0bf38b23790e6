//! Under any concurrency, no limit is passed, and none is under-used.

use std::sync::atomic::{AtomicI64, Ordering};

use futures_util::{StreamExt, future::join_all};
use serde_json::json;

use super::serve;
use crate::support::{Answer, FakeOpenAi, Frames, Reply, eventually, hard, soft};

#[tokio::test]
async fn the_last_message_is_answered_and_the_next_refused() {
    let upstream = FakeOpenAi::start().await;
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(1))
        .create()
        .await;

    acme.chat("one").await.expect_ok();
    let refused = acme.chat("two").await.expect(429, "usage_limit_exceeded");
    assert_eq!(
        upstream.calls(),
        1,
        "a refused request must not reach the model"
    );
    let error = &refused.json()["error"];
    assert_eq!(error["feature_key"], "messages");
    assert_eq!(
        (&error["limit_value"], &error["usage"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(refused.header("x-usage-decision"), Some("hard_limit"));
    gate.finish().await;
}

#[tokio::test]
async fn many_at_once_get_exactly_what_the_limit_leaves() {
    let upstream = FakeOpenAi::start().await;
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(25))
        .create()
        .await;

    let answers = join_all((0..200).map(|_| acme.complete(json!({})))).await;
    let answered = answers.iter().filter(|answer| answer.status == 200).count();
    let refused = answers.iter().filter(|answer| answer.status == 429).count();
    // Some may have been refused while others held the rest; what was free again serves the next.
    let mut answered = answered;
    assert_eq!(answered + refused, 200);
    while acme.complete(json!({})).await.status == 200 {
        answered += 1;
    }
    assert_eq!(answered, 25);
    assert_eq!(upstream.calls(), 25, "as many upstream calls as answers");
    assert_eq!(
        (acme.used("messages").await, acme.reserved("messages").await),
        (25, 0)
    );
    gate.finish().await;
}

#[tokio::test]
async fn many_streams_at_once_get_exactly_what_the_limit_leaves() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Frames::words(5));
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(20))
        .create()
        .await;

    let answered = AtomicI64::new(0);
    join_all((0..100).map(|_| async {
        let answer = Answer::read(acme.open(json!({})).await).await;
        if answer.status == 200 {
            assert!(answer.text.ends_with("data: [DONE]\n\n"), "{}", answer.text);
            answered.fetch_add(1, Ordering::SeqCst);
        }
    }))
    .await;
    while Answer::read(acme.open(json!({})).await).await.status == 200 {
        answered.fetch_add(1, Ordering::SeqCst);
    }
    assert_eq!(answered.load(Ordering::SeqCst), 20);
    assert_eq!(upstream.calls(), 20);
    assert_eq!(
        (acme.used("messages").await, acme.reserved("messages").await),
        (20, 0)
    );
    assert_eq!(acme.used("output_tokens").await, 100);
    gate.finish().await;
}

#[tokio::test]
async fn output_tokens_are_never_passed_by_requests_at_once() {
    let gate = serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("output_tokens", hard(1_000))
        .create()
        .await;
    let ask = || {
        acme.complete(json!({ "model": "simulated", "max_tokens": 100, "messages": [{ "role": "user", "content": "tell me a long story" }] }))
    };
    for _ in 0..20 {
        let answers = join_all((0..20).map(|_| ask())).await;
        assert!(
            answers
                .iter()
                .all(|answer| matches!(answer.status, 200 | 429))
        );
        assert!(acme.used("output_tokens").await <= 1_000);
        assert_eq!(acme.reserved("output_tokens").await, 0);
        if answers
            .iter()
            .all(|answer| answer.status == 429 && answer.code() == "usage_limit_exceeded")
        {
            break;
        }
    }
    let used = acme.used("output_tokens").await;
    assert!(
        (1_000 - 15..=1_000).contains(&used),
        "less than the floor is left: {used}"
    );
    assert_eq!(
        gate.metric("usage_overshoot_total", "output_tokens").await,
        0
    );
    gate.finish().await;
}

/// What is recorded is what limits hold, not what the provider reported.
#[tokio::test]
async fn a_limit_holds_what_calibration_makes_of_a_count() {
    let upstream = FakeOpenAi::start().await;
    let gate = serve()
        .upstream(&upstream)
        .set(
            "USAGE_TOKEN_CALIBRATION",
            "gpt-*:output=2.5,gpt-*:input=1.5",
        )
        .start()
        .await;
    let acme = gate
        .tenant("acme")
        .limit("output_tokens", hard(100))
        .create()
        .await;
    let ask = |most: i64| acme.complete(json!({ "model": "gpt-4o", "max_tokens": most }));
    // It uses up whatever it may.
    upstream.always(Reply::text("hm", 10, 20));
    let answers = join_all((0..10).map(|_| ask(20))).await;
    let answered = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!((answered, acme.used("output_tokens").await), (2, 100));
    assert_eq!(acme.used("input_tokens").await, 30);

    let bolt = gate
        .tenant("bolt")
        .limit("output_tokens", hard(99))
        .create()
        .await;
    upstream.always(Reply::text("hm", 10, 39));
    bolt.complete(json!({ "model": "gpt-4o", "max_tokens": 50 }))
        .await
        .expect_ok();
    assert_eq!(upstream.last().json()["max_tokens"], 39, "97.5 of 99");
    assert_eq!(bolt.used("output_tokens").await, 98);
    assert_eq!(
        gate.metric("usage_overshoot_total", "output_tokens").await,
        0
    );
    gate.finish().await;
}

#[tokio::test]
async fn limits_of_several_scopes_and_windows_hold_together() {
    let upstream = FakeOpenAi::start().await;
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(30))
        .limit("messages", hard(8).scope("user").window("lifetime"))
        .limit("messages", hard(12).scope("key").window("month"))
        .create()
        .await;
    let second = gate
        .cli_json(&["key", "create", "acme", "--name", "second"])
        .await;
    let second = acme.with_key(second["key"].as_str().unwrap());

    let users = ["ann", "bob", "cid", "dan"];
    let answered_of = |key: crate::support::Tenant| async move {
        let mut answered = [0_i64; 4];
        loop {
            let asked = (0..40).map(|index| {
                let user = key.with_user(users[index % 4]);
                async move { (index % 4, user.complete(json!({})).await.status) }
            });
            let answers = join_all(asked).await;
            for (user, _) in answers.iter().filter(|(_, status)| *status == 200) {
                answered[*user] += 1;
            }
            if answers.iter().all(|(_, status)| *status == 429) {
                return answered;
            }
        }
    };
    let (of_first, of_second) = tokio::join!(answered_of(acme.clone()), answered_of(second));
    let per_user: Vec<i64> = of_first
        .iter()
        .zip(&of_second)
        .map(|(first, second)| first + second)
        .collect();
    assert!(
        per_user.iter().all(|&answered| answered <= 8),
        "{per_user:?}"
    );
    assert_eq!(
        of_first.iter().sum::<i64>(),
        12,
        "the first key's limit: {of_first:?}"
    );
    assert_eq!(
        of_second.iter().sum::<i64>(),
        12,
        "the second key's limit: {of_second:?}"
    );
    assert_eq!(upstream.calls(), 24);
    gate.finish().await;
}

#[tokio::test]
async fn what_requests_in_flight_hold_is_another_refusal_than_a_spent_quota() {
    let upstream = FakeOpenAi::start().await;
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(1))
        .create()
        .await;

    upstream.hold();
    let first = tokio::spawn({
        let acme = acme.clone();
        async move { acme.complete(json!({})).await }
    });
    eventually("the first request is upstream", || async {
        (upstream.calls() == 1).then_some(())
    })
    .await;
    let refused = acme
        .complete(json!({}))
        .await
        .expect(429, "usage_limit_reserved");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(refused.header("retry-after-ms").is_some());
    upstream.release();
    first.await.unwrap().expect_ok();
    acme.complete(json!({}))
        .await
        .expect(429, "usage_limit_exceeded");
    gate.finish().await;
}

#[tokio::test]
async fn a_soft_limit_warns_from_the_message_after_it() {
    let gate = serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", soft(2))
        .create()
        .await;
    for _ in 0..2 {
        assert_eq!(
            acme.chat("hi").await.expect_ok().json()["guardrail"]["decision"],
            "allow"
        );
    }
    let warned = acme.chat("hi").await.expect_ok();
    assert_eq!(warned.header("x-usage-decision"), Some("soft_limit"));
    assert_eq!(warned.header("x-usage-warning"), Some("messages"));
    let guardrail = &warned.json()["guardrail"];
    assert_eq!(guardrail["warnings"][0]["code"], "soft_limit_exceeded");
    assert_eq!(guardrail["warnings"][0]["feature_key"], "messages");
    gate.logged("\"code\":\"usage_soft_limit_exceeded\"").await;
    gate.finish().await;
}

#[tokio::test]
async fn a_soft_limit_blocks_where_the_settings_say_so() {
    let gate = serve()
        .set("USAGE_GUARDRAIL_SOFT_LIMIT_MODE", "block")
        .start()
        .await;
    let acme = gate
        .tenant("acme")
        .limit("messages", soft(1).clone())
        .create()
        .await;
    acme.chat("hi").await.expect_ok();
    let refused = acme.chat("hi").await.expect(429, "usage_limit_exceeded");
    assert_eq!(refused.json()["error"]["limit_type"], "soft_limit");
    gate.finish().await;
}

#[tokio::test]
async fn a_maximum_that_does_not_fit_is_lowered_and_said() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Reply::text("ok", 5, 40));
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("output_tokens", hard(100))
        .create()
        .await;

    let answer = acme.complete(json!({ "max_tokens": 60 })).await.expect_ok();
    assert_eq!(answer.header("x-usage-output-capped"), None);
    assert_eq!(upstream.last().json()["max_tokens"], 60);

    let answer = acme
        .complete(json!({ "max_completion_tokens": 500, "n": 2 }))
        .await
        .expect_ok();
    assert_eq!(answer.header("x-usage-output-capped"), Some("30"));
    assert_eq!(
        upstream.last().json()["max_completion_tokens"],
        30,
        "60 are left for two answers"
    );
    assert_eq!(upstream.last().json().get("max_tokens"), None);

    let answer = acme.complete(json!({})).await.expect_ok();
    assert_eq!(answer.header("x-usage-output-capped"), Some("20"));
    assert_eq!(
        upstream.last().json()["max_tokens"],
        20,
        "none was named: the field of other hosts"
    );
    gate.finish().await;
}

#[tokio::test]
async fn a_prompt_is_tokenized_only_where_its_bytes_do_not_fit() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Reply::text("ok", 300, 1));
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("input_tokens", hard(700))
        .create()
        .await;
    let words = "word ".repeat(300);
    let prompt = json!({ "messages": [{ "role": "user", "content": words }] });
    acme.complete(prompt.clone()).await.expect_ok();
    acme.complete(prompt.clone()).await.expect_ok();
    let refused = acme
        .complete(prompt)
        .await
        .expect(429, "usage_limit_exceeded");
    assert_eq!(refused.json()["error"]["feature_key"], "input_tokens");
    assert_eq!(acme.used("input_tokens").await, 600);
    gate.finish().await;
}

#[tokio::test]
async fn observe_mode_refuses_and_lowers_nothing_and_says_what_would_have_been() {
    let upstream = FakeOpenAi::start().await;
    let gate = serve()
        .upstream(&upstream)
        .set("USAGE_GUARDRAIL_MODE", "observe")
        .start()
        .await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(1))
        .limit("output_tokens", hard(10))
        .create()
        .await;
    acme.complete(json!({ "max_tokens": 50 })).await.expect_ok();
    let observed = acme.complete(json!({ "max_tokens": 50 })).await.expect_ok();
    assert_eq!(observed.header("x-usage-decision"), Some("hard_limit"));
    assert_eq!(upstream.last().json()["max_tokens"], 50);
    assert_eq!(acme.used("messages").await, 2);
    assert!(
        gate.metric("usage_guardrail_decisions_total", "hard_limit")
            .await
            >= 1
    );
    gate.finish().await;
}

#[tokio::test]
async fn with_guardrails_off_chat_works_and_nothing_is_counted() {
    let gate = serve()
        .set("ENABLE_USAGE_GUARDRAILS", "false")
        .start()
        .await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(0))
        .create()
        .await;
    let answer = acme.chat("hi").await.expect_ok();
    assert_eq!(answer.json()["guardrail"], json!(null));
    assert_eq!(answer.header("ratelimit"), None);
    acme.with_key("tg_wrong")
        .chat("hi")
        .await
        .expect(401, "invalid_api_key");
    assert_eq!(acme.total("messages").await, 0);
    gate.logged("ENABLE_USAGE_GUARDRAILS=true").await;
    gate.finish().await;
}

#[tokio::test]
async fn an_upstream_without_a_path_is_said_at_the_start() {
    let upstream = FakeOpenAi::start().await;
    let base_url = upstream.base_url();
    let gate = serve()
        .upstream(&upstream)
        .set("OPENAI_BASE_URL", base_url.trim_end_matches("/v1"))
        .start()
        .await;
    gate.logged("base_url_without_path").await;
    let usual = serve().upstream(&upstream).start().await;
    assert!(!usual.log().contains("base_url_without_path"));
    gate.finish().await;
    usual.finish().await;
}

#[tokio::test]
async fn a_stream_that_ignores_its_maximum_is_cut_off_at_it() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Frames::words(500));
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("output_tokens", hard(50))
        .create()
        .await;

    let mut stream = acme
        .open(json!({ "stream_options": { "include_usage": true } }))
        .await
        .bytes_stream();
    let mut text = String::new();
    while let Some(chunk) = stream.next().await {
        text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
    }
    assert!(text.contains("\"finish_reason\":\"length\""), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    assert!(
        text.contains("\"completion_tokens\":"),
        "the usage that was asked for: {text}"
    );
    let used = acme.used("output_tokens").await;
    assert!((45..=51).contains(&used), "{used}");
    gate.finish().await;
}
