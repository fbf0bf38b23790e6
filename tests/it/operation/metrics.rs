//! What a used server tells of itself: every metric with its labels and values, every field of its logs.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::{FakeOpenAi, Frames, Tollgate, eventually, hard, promtool, soft};

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
    ("usage_unpriced_total", &["model"]),
    ("usage_alerts_total", &["kind", "result"]),
    ("usage_outbox_entries", &["kind", "status"]),
    ("usage_outbox_dead_total", &["kind"]),
    ("usage_journal_damaged_total", &[]),
    ("usage_drain_failures_total", &[]),
    ("usage_catalogue_stale_total", &[]),
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
    acme.complete(json!({ "model": "of-our-own" }))
        .await
        .expect_ok();
    acme.complete(json!({ "stream": true })).await.expect_ok();
    acme.complete(json!({}))
        .await
        .expect(429, "usage_limit_exceeded");
    let text = gate.get("/metrics").await.expect_ok().text;
    let plan = &acme.plan;
    for (sample, value) in [
        (
            format!(r#"usage_guardrail_decisions_total{{decision="allow",plan_code="{plan}"}}"#),
            1,
        ),
        (
            format!(
                r#"usage_guardrail_decisions_total{{decision="soft_limit",plan_code="{plan}"}}"#
            ),
            1,
        ),
        (
            format!(
                r#"usage_guardrail_decisions_total{{decision="hard_limit",plan_code="{plan}"}}"#
            ),
            1,
        ),
        (
            format!(
                r#"usage_limit_hits_total{{feature_key="messages",limit_type="hard_limit",plan_code="{plan}"}}"#
            ),
            1,
        ),
        (
            format!(
                r#"usage_limit_hits_total{{feature_key="output_tokens",limit_type="soft_limit",plan_code="{plan}"}}"#
            ),
            1,
        ),
        (
            format!(r#"usage_recorded_total{{feature_key="messages",plan_code="{plan}"}}"#),
            2,
        ),
        (
            format!(r#"usage_recorded_total{{feature_key="input_tokens",plan_code="{plan}"}}"#),
            14,
        ),
        (
            format!(r#"usage_recorded_total{{feature_key="output_tokens",plan_code="{plan}"}}"#),
            6,
        ),
        (r#"usage_unpriced_total{model="of-our-own"}"#.to_owned(), 1),
        (r#"usage_reservations_total{end="settled"}"#.to_owned(), 2),
        (r#"usage_reservations{state="held"}"#.to_owned(), 0),
        (
            r#"http_requests_total{method="POST",route="/v1/chat/completions",status="200"}"#
                .to_owned(),
            2,
        ),
        (
            r#"http_requests_total{method="POST",route="/v1/chat/completions",status="429"}"#
                .to_owned(),
            1,
        ),
        (
            r#"http_request_duration_seconds_count{route="/v1/chat/completions"}"#.to_owned(),
            3,
        ),
        (
            r#"upstream_request_duration_seconds_count{model="of-our-own"}"#.to_owned(),
            1,
        ),
        ("usage_decision_seconds_count".to_owned(), 3),
        ("usage_commit_seconds_count".to_owned(), 2),
    ] {
        let line = format!("{sample} {value}");
        assert!(
            text.lines().any(|found| found == line),
            "{line} is missing from\n{text}"
        );
    }
    if let Err(said) = promtool(&["check", "metrics"], &text) {
        panic!("{said}");
    }
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

/// Each series, by its metric: the names of samples with their labels.
fn series(text: &str) -> BTreeSet<&str> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| Some(line.rsplit_once(' ')?.0))
        .collect()
}

#[tokio::test]
async fn a_thousand_tenants_and_hundreds_of_models_add_no_series_without_end() {
    const TENANTS: usize = 1_000;
    const MODELS: usize = 500;
    const AT_ONCE: usize = 2;
    let token = "an administrator's token of a test".replace(' ', "-");
    let gate = Tollgate::serve()
        .set("TOLLGATE_ADMIN_TOKEN", &token)
        .set("RUST_LOG", "error")
        .start()
        .await;
    let crowd = gate.tenant("first").create().await;

    let make = async |number: usize| {
        let slug = format!("crowd-{number}");
        let admin = |path: String, body: Value| {
            let request = gate.http.post(format!("{}/api/v1/admin{path}", gate.base));
            request.bearer_auth(&token).body(body.to_string()).send()
        };
        let tenant = json!({ "slug": slug, "name": slug, "plan_code": crowd.plan });
        assert_eq!(
            admin("/tenants".to_owned(), tenant).await.unwrap().status(),
            201
        );
        let key = admin(format!("/tenants/{slug}/keys"), json!({ "name": "one" }))
            .await
            .unwrap();
        let key: Value = serde_json::from_slice(&key.bytes().await.unwrap()).unwrap();
        let tenant = crowd
            .with_key(key["key"].as_str().unwrap())
            .with_user(&format!("user-{number}"));
        tenant
            .complete(json!({ "model": format!("model-{}", number % MODELS) }))
            .await
            .expect_ok();
    };
    let make_all = async |numbers: std::ops::Range<usize>| {
        let numbers: Vec<usize> = numbers.collect();
        for some in numbers.chunks(AT_ONCE) {
            futures_util::future::join_all(some.iter().map(|number| make(*number))).await;
        }
    };
    make_all(0..TENANTS / 2).await;
    gate.get("/metrics").await.expect_ok(); // counted from the next one on
    let half = gate.get("/metrics").await.expect_ok().text;
    make_all(TENANTS / 2..TENANTS).await;
    let whole = gate.get("/metrics").await.expect_ok().text;

    let added: Vec<_> = series(&whole)
        .difference(&series(&half))
        .copied()
        .map(str::to_owned)
        .collect();
    assert!(added.is_empty(), "the second half added {added:#?}");
    let mut by_metric: BTreeMap<&str, usize> = BTreeMap::new();
    for one in series(&whole) {
        *by_metric.entry(one.split('{').next().unwrap()).or_default() += 1;
    }
    let models = whole
        .lines()
        .filter(|line| line.starts_with("upstream_request_duration_seconds_count"));
    let models = models.count();
    assert!(models <= 51, "{models} models have a label of their own");
    assert!(whole.contains(r#"upstream_request_duration_seconds_count{model="other"}"#));
    // A histogram has 12 buckets, their infinity, sum and count for each of at most 51 models.
    for (metric, count) in by_metric {
        assert!(count <= 51 * 13, "{metric} has {count} series");
    }
    for forbidden in ["crowd-", "user-7", "tg_", "ten_"] {
        assert!(!whole.contains(forbidden), "{forbidden} in a label");
    }
    gate.finish().await;
}

/// The documented fields of a line that tells of a limit.
const LIMIT_FIELDS: [&str; 10] = [
    "tenant_id",
    "plan_code",
    "feature_key",
    "limit_type",
    "limit_value",
    "usage",
    "unit",
    "window_start",
    "window_end",
    "request_id",
];

#[tokio::test]
async fn a_limit_hit_is_logged_with_every_documented_field_and_no_secret() {
    let gate = Tollgate::serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(2))
        .limit("output_tokens", soft(1))
        .create()
        .await;
    let secret = "a prompt that is nobody's business";
    for _ in 0..2 {
        acme.chat(secret).await.expect_ok();
    }
    acme.chat(secret).await.expect(429, "usage_limit_exceeded");
    for (code, level, feature) in [
        ("usage_soft_limit_exceeded", "WARN", "output_tokens"),
        ("usage_limit_exceeded", "ERROR", "messages"),
    ] {
        let line = eventually(code, || async {
            let log = gate.log();
            let mut lines = log
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.find(|line| line["code"] == code)
        })
        .await;
        assert_eq!(
            (&line["level"], &line["feature_key"]),
            (&json!(level), &json!(feature)),
            "{line:#}"
        );
        for field in LIMIT_FIELDS {
            assert!(!line[field].is_null(), "{field} is missing from {line:#}");
        }
    }
    let log = gate.log();
    for line in log.lines() {
        let parsed: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for field in ["timestamp", "level", "message", "target"] {
            assert!(parsed[field].is_string(), "{field} is missing from {line}");
        }
    }
    for forbidden in [secret, &acme.key] {
        assert!(!log.contains(forbidden), "in the log: {forbidden}");
    }
    gate.finish().await;
}
