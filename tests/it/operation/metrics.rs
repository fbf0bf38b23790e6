use serde_json::json;

use crate::support::{FakeOpenAi, Frames, Tollgate, eventually, hard, soft};

/// Each metric of the outward interface whose part is there, with the labels that it must have.
const METRICS: &[(&str, &[&str])] = &[
    (
        "usage_guardrail_decisions_total",
        &["decision", "plan_code"],
    ),
    (
        "usage_limit_hits_total",
        &["plan_code", "limit_type", "feature_key"],
    ),
    ("usage_recorded_total", &["feature_key", "plan_code"]),
    ("usage_guardrail_fail_open_total", &["reason"]),
    ("usage_overshoot_total", &["feature_key", "cause"]),
    ("usage_reservations", &["state"]),
    ("usage_reservations_total", &["end"]),
    ("usage_reservation_oldest_seconds", &[]),
    ("usage_journal_pending", &[]),
    ("usage_ledger_drift", &["feature_key"]),
    ("usage_estimated_total", &[]),
    ("usage_decision_seconds_count", &[]),
    ("usage_commit_seconds_count", &[]),
    ("http_requests_total", &["route", "method", "status"]),
    ("http_request_duration_seconds_count", &["route"]),
    ("upstream_request_duration_seconds_count", &["model"]),
    ("cache_requests_total", &["backend", "result"]),
    ("build_info", &["version"]),
];

#[tokio::test]
async fn a_used_server_shows_every_metric_with_its_labels() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Frames::words(3));
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(2))
        .limit("output_tokens", soft(1))
        .create()
        .await;
    acme.complete(json!({})).await.expect_ok();
    acme.complete(json!({ "stream": true })).await.expect_ok();
    acme.complete(json!({}))
        .await
        .expect(429, "usage_limit_exceeded");
    let text = gate.get("/metrics").await.expect_ok().text;
    for (name, labels) in METRICS {
        let sample = text
            .lines()
            .find(|line| line.split(['{', ' ']).next() == Some(name))
            .unwrap_or_else(|| panic!("no {name} in\n{text}"));
        let found = sample.split_once('{').map_or("", |(_, rest)| rest);
        for label in *labels {
            assert!(
                found.contains(&format!("{label}=\"")),
                "{label} in {sample}"
            );
        }
        assert_eq!(
            found.matches("=\"").count(),
            labels.len(),
            "no more labels: {sample}"
        );
    }
    for forbidden in ["acme", &acme.key] {
        assert!(
            !text.contains(&format!("\"{forbidden}\"")),
            "tenants and keys are no labels"
        );
    }
    gate.finish().await;
}

#[tokio::test]
async fn drift_between_live_totals_and_the_store_is_measured_logged_and_named() {
    let gate = Tollgate::serve().start().await;
    let acme = gate.tenant("acme").create().await;
    acme.chat("one").await.expect_ok();
    eventually("the store has it", || async {
        (gate.metric("usage_journal_pending", "").await == 0).then_some(())
    })
    .await;
    assert_eq!(gate.metric("usage_ledger_drift", "").await, 0);
    let database = gate.settings().data_dir().join("tollgate.db");
    let database = rusqlite::Connection::open(database).unwrap();
    database
        .execute_batch(
            "UPDATE usage_events SET messages = messages + 7;
             UPDATE usage_rollups SET quantity = quantity + 7 WHERE feature_key = 'messages';",
        )
        .unwrap();
    eventually("the drift is measured", || async {
        (gate.metric("usage_ledger_drift", "messages").await == 7).then_some(())
    })
    .await;
    gate.logged("ledger_drift").await;
    let run = gate.cli(&["doctor"]).await;
    assert_eq!(run.code, 1);
    assert!(
        run.stdout
            .contains("live totals differ from the store's: tenant acme messages"),
        "{}",
        run.stdout
    );
}
