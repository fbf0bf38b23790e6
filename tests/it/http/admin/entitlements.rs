//! Bringing in an artifact, and the report on all tenants.

use serde_json::{Value, json};

use crate::http::support::{Tollgate, hard};

fn artifact(hard: i64) -> Value {
    json!({"enabled": true, "schema_version": 1, "plans": [
        {"plan_code": "team", "features": [{"feature_key": "messages", "soft_limit": 1, "hard_limit": hard}]},
        {"plan_code": "solo", "features": [{"feature_key": "messages", "hard_limit": 5}]}]})
}

fn with(mut body: Value, name: &str, value: Value) -> Value {
    body[name] = value;
    body
}

#[tokio::test]
async fn an_artifact_is_brought_in_whole_and_holds_at_once() {
    let gate = Tollgate::serve().start().await;
    let owner = gate.owner();
    let create = |body| with(body, "create_plans", json!(true));
    let dry = with(create(artifact(2)), "dry_run", json!(true));
    let planned = owner
        .post("/entitlements/sync", &dry)
        .await
        .expect_status(200);
    assert_eq!(planned.body["plans"][0]["created"], true);
    owner.get("/plans/team").await.expect(404, "not_found");

    let synced = owner
        .post("/entitlements/sync", &create(artifact(2)))
        .await
        .expect_status(200);
    assert_eq!(
        (
            &synced.body["dry_run"],
            &synced.body["plans"][0]["inserted"]
        ),
        (&json!(false), &json!(1))
    );
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(9))
        .create()
        .await;
    let onto = json!({"plan_code": "team"});
    let path = "/tenants/acme/subscription";
    owner.put(path, &onto).await.expect_status(200);
    acme.chat("one").await.expect_ok();
    owner
        .post("/entitlements/sync", &artifact(1))
        .await
        .expect_status(200);
    acme.chat("two").await.expect(429, "usage_limit_exceeded");

    for name in ["dry-run", "plan", "stripe"] {
        let misspelt = with(artifact(9), name, json!(true));
        let refused = owner.post("/entitlements/sync", &misspelt).await;
        refused.expect_bad(name);
    }

    let only = with(artifact(7), "plan_filters", json!(["SOLO"]));
    let filtered = owner
        .post("/entitlements/sync", &only)
        .await
        .expect_status(200);
    assert_eq!(filtered.body["plans"].as_array().unwrap().len(), 1);
    acme.chat("two").await.expect(429, "usage_limit_exceeded");
}

#[tokio::test]
async fn an_artifact_with_any_fault_changes_nothing() {
    let gate = Tollgate::serve().start().await;
    let owner = gate.owner();
    let mut faulty = with(artifact(2), "create_plans", json!(true));
    faulty["plans"][0]["features"][0]["soft_limit"] = json!(3);
    faulty["plans"][1]["features"][0]["hard_limit"] = json!("many");
    let refused = owner.post("/entitlements/sync", &faulty).await;
    let message = refused.body["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        message.contains("plans[1].features[0].hard_limit"),
        "all faults at once: {message}"
    );
    refused.expect_bad("plans[0].features[0].soft_limit");
    owner.get("/plans/solo").await.expect(404, "not_found");

    let good = with(artifact(2), "create_plans", json!(true));
    for (body, param) in [
        (with(good.clone(), "enabled", json!(false)), "enabled"),
        (
            with(good.clone(), "plan_filters", json!(["none"])),
            "plan_filters",
        ),
        (
            with(good.clone(), "plan_filters", json!("team")),
            "plan_filters",
        ),
        (with(good.clone(), "dry_run", json!("yes")), "dry_run"),
    ] {
        owner
            .post("/entitlements/sync", &body)
            .await
            .expect_bad(param);
    }
    let viewer = owner.make("vera", "viewer").await;
    viewer
        .post("/entitlements/sync", &artifact(2))
        .await
        .expect(403, "forbidden");
}

#[tokio::test]
async fn the_report_has_what_was_just_used_in_both_forms() {
    let gate = Tollgate::serve().start().await;
    let owner = gate.owner();
    for (slug, count) in [("acme", 2), ("other", 1)] {
        let tenant = gate.tenant(slug).limit("messages", hard(2)).create().await;
        for _ in 0..count {
            tenant.chat("hi").await.expect_ok();
        }
    }
    let viewer = owner.make("vera", "viewer").await;
    let json = viewer
        .get("/report.json?feature=messages")
        .await
        .expect_status(200);
    assert_eq!(json.body["tenant_count"], 2);
    let acme = &json.body["tenants"][0];
    assert_eq!(
        (
            &acme["tenant_slug"],
            &acme["features"][0]["quantity"],
            &acme["features"][0]["status"]
        ),
        (&json!("acme"), &json!(2), &json!("hard_limit_exceeded"))
    );
    let csv = viewer
        .get("/report.csv?feature=messages&tenant=acme,other")
        .await
        .expect_status(200);
    assert_eq!(csv.header("content-type"), "text/csv; charset=utf-8");
    let rows: Vec<&str> = csv.text.lines().collect();
    assert_eq!(rows.len(), 3, "{}", csv.text);
    assert!(
        rows[0].starts_with("tenant_id,tenant_slug,tenant_name,plan_code"),
        "{}",
        rows[0]
    );
    assert!(
        rows[1].contains(",acme,") && rows[2].contains(",other,"),
        "{}",
        csv.text
    );

    for (query, param) in [
        ("warn_threshold=2", "warn_threshold"),
        ("include_inactive=maybe", "include_inactive"),
        (
            "period_start=2026-02-01T00:00:00Z&period_end=2026-01-01T00:00:00Z",
            "period_end",
        ),
        ("color=red", "color"),
    ] {
        viewer
            .get(&format!("/report.json?{query}"))
            .await
            .expect_bad(param);
    }
    viewer
        .get("/report.csv?tenant=nobody")
        .await
        .expect(404, "not_found");
    gate.get("/api/v1/admin/report.json")
        .await
        .expect(401, "invalid_api_key");
}
