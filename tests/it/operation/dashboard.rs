//! The dashboard that comes along: every query of it finds data at a real Prometheus that scraped a loaded server.

use std::{collections::BTreeSet, fs};

use serde_json::{Value, json};

use crate::support::{
    FakeOpenAi, Frames, PATIENCE, Prometheus, Tenant, Tollgate, hard, in_repository, soft,
};

/// What Grafana puts in place of its variables.
const VARIABLES: [(&str, &str); 4] = [
    ("$__rate_interval", "10s"),
    ("$job", "tollgate"),
    ("$instance", ".*"),
    ("$plan", ".*"),
];

/// A query, with the title of its panel.
struct Query {
    panel: String,
    expression: String,
}

fn dashboard() -> Value {
    let text = fs::read_to_string(in_repository("assets/dashboards/tollgate.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn queries(dashboard: &Value) -> Vec<Query> {
    let panels = dashboard["panels"].as_array().unwrap();
    let mut queries = Vec::new();
    for panel in panels {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let mut expression = target["expr"].as_str().unwrap().to_owned();
            for (variable, value) in VARIABLES {
                expression = expression.replace(variable, value);
            }
            assert!(
                !expression.contains('$'),
                "a variable is left: {expression}"
            );
            queries.push(Query {
                panel: panel["title"].as_str().unwrap().to_owned(),
                expression,
            });
        }
    }
    queries
}

/// Words of an expression, or of the rules, that are names of metrics.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|it: char| !(it.is_ascii_alphanumeric() || it == '_'));
    let prefixes = [
        "usage_",
        "http_",
        "upstream_",
        "cache_requests",
        "stripe_",
        "build_info",
    ];
    words
        .filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix)))
        .map(str::to_owned)
        .collect()
}

/// Names of samples in Prometheus' text format.
fn samples_in(text: &str) -> BTreeSet<&str> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect()
}

/// Tenants that are let through, warned and refused; with prices known and not, usage reported and not.
struct Load {
    free: Tenant,
    warned: Tenant,
    refused: Tenant,
    upstream: FakeOpenAi,
}

impl Load {
    async fn of(gate: &Tollgate, upstream: &FakeOpenAi) -> Self {
        let refused = gate.tenant("refused").limit("messages", hard(1)).create();
        let warned = gate.tenant("warned").limit("messages", soft(1)).create();
        Self {
            free: gate.tenant("free").create().await,
            warned: warned.await,
            refused: refused.await,
            upstream: upstream.clone(),
        }
    }

    async fn run(&self) {
        self.free.complete(json!({})).await.expect_ok();
        self.free
            .complete(json!({ "stream": true }))
            .await
            .expect_ok();
        self.free
            .complete(json!({ "model": "nobody-knows-its-price" }))
            .await
            .expect_ok();
        self.upstream.next(Frames::without_usage(3));
        self.free
            .complete(json!({ "stream": true }))
            .await
            .expect_ok();
        self.free.chat("hi").await.expect_ok();
        self.warned.chat("hi").await.expect_ok();
        self.refused.chat("hi").await;
    }
}

#[tokio::test]
async fn every_query_of_the_dashboard_finds_data() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Frames::words(3));
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let load = Load::of(&gate, &upstream).await;
    load.run().await;
    let prometheus = Prometheus::scraping(&gate.base).await;

    let mut without_data = queries(&dashboard());
    assert!(without_data.len() >= 40, "{}", without_data.len());
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !without_data.is_empty() {
        load.run().await;
        let mut still_without = Vec::new();
        for query in without_data {
            let values = prometheus.values(&query.expression).await;
            let values = values
                .unwrap_or_else(|error| panic!("{}: {error}\n{}", query.panel, query.expression));
            if values.is_empty() {
                still_without.push(query);
            }
        }
        without_data = still_without;
        let names: Vec<String> = without_data
            .iter()
            .map(|query| format!("{}: {}", query.panel, query.expression))
            .collect();
        assert!(
            tokio::time::Instant::now() < deadline,
            "no data for {names:#?}"
        );
    }
    gate.finish().await;
}

#[tokio::test]
async fn dashboard_and_alert_rules_ask_for_metrics_that_a_server_has() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Frames::words(3));
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    Load::of(&gate, &upstream).await.run().await;
    let text = gate.get("/metrics").await.expect_ok().text;
    let there = samples_in(&text);
    let rules = fs::read_to_string(in_repository("assets/alerts/tollgate.yml")).unwrap();
    let expressions: Vec<String> = queries(&dashboard())
        .into_iter()
        .map(|query| query.expression)
        .collect();
    for (what, text) in [
        ("the dashboard", expressions.join("\n")),
        ("an alert rule", rules),
    ] {
        for name in metrics_in(&text) {
            assert!(
                there.contains(&*name),
                "{what} asks for {name}, which no server has"
            );
        }
    }
    gate.finish().await;
}

#[test]
fn the_dashboard_has_the_rows_that_an_operator_asks_for() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let rows = panels.iter().filter(|panel| panel["type"] == "row");
    let rows: Vec<&str> = rows.map(|row| row["title"].as_str().unwrap()).collect();
    assert_eq!(
        rows,
        [
            "At a glance",
            "Decisions",
            "Refusals by plan and feature",
            "Near the limit",
            "Usage",
            "Latency added",
            "Fail-open",
            "Journal and reservations",
            "Drift",
            "Outbox and Stripe",
            "Upstream",
        ]
    );
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "ids are unique");
        if panel["type"] != "row" {
            let said = panel["description"].as_str().unwrap_or_default();
            assert!(!said.is_empty(), "{} says what it shows", panel["title"]);
        }
    }
}
