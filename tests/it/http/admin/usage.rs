//! Usage of one tenant and of all, the audit log, and the node's status.

use serde_json::{Value, json};

use crate::http::support::{Tollgate, hard};

#[tokio::test]
async fn usage_of_all_tenants_is_narrowed_and_sorted() {
    let gate = Tollgate::serve().start().await;
    let full = gate
        .tenant("a-full")
        .limit("messages", hard(1))
        .create()
        .await;
    let half = gate
        .tenant("b-half")
        .limit("messages", hard(2))
        .create()
        .await;
    let idle = gate
        .tenant("c-idle")
        .limit("messages", hard(2))
        .create()
        .await;
    for tenant in [&full, &half] {
        tenant.chat("hi").await.expect_ok();
    }
    let owner = gate.owner();
    let slugs = async |query: &str| -> Vec<String> {
        let items = owner.all(&format!("/usage?{query}"), 1).await;
        items
            .iter()
            .map(|item| item["tenant_slug"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(slugs("").await, ["a-full", "b-half", "c-idle"]);
    assert_eq!(slugs("sort=percent").await, ["a-full", "b-half", "c-idle"]);
    assert_eq!(slugs("status=hard_limit_exceeded").await, ["a-full"]);
    assert_eq!(slugs("status=active&sort=percent").await.len(), 3);
    assert_eq!(slugs("status=canceled").await, [] as [&str; 0]);
    assert_eq!(slugs(&format!("plan={}", idle.plan)).await, ["c-idle"]);
    owner.get("/usage?status=bad").await.expect_bad("status");
    owner.get("/usage?sort=size").await.expect_bad("sort");
    let one = owner.get("/tenants/b-half/usage").await.expect_status(200);
    assert_eq!(one.body["features"][0]["percent"], json!(50.0));
    owner
        .get("/tenants/nobody/usage")
        .await
        .expect(404, "not_found");
    owner
        .get("/tenants/nobody/totals")
        .await
        .expect_bad("period_start");
}

#[tokio::test]
async fn every_change_is_in_the_audit_log_with_old_and_new_and_no_secret() {
    let gate = Tollgate::serve().start().await;
    let owner = gate.owner();
    let olga = owner.make("olga", "operator").await;
    olga.post("/plans", &json!({"plan_code": "team", "name": "Team"}))
        .await
        .expect_status(201);
    olga.patch("/plans/team", &json!({"name": "Teams"}))
        .await
        .expect_status(200);
    olga.post(
        "/tenants",
        &json!({"slug": "acme", "name": "Acme", "plan_code": "team"}),
    )
    .await
    .expect_status(201);
    let key = olga
        .post("/tenants/acme/keys", &json!({"name": "k"}))
        .await
        .expect_status(201);
    olga.post(
        &format!("/keys/{}/rotate", key.body["key_id"].as_str().unwrap()),
        &json!({}),
    )
    .await
    .expect_status(200);
    let entries = owner.all("/audit?actor=olga", 2).await;
    let actions: Vec<&str> = entries
        .iter()
        .map(|entry| entry["action"].as_str().unwrap())
        .collect();
    assert_eq!(
        actions,
        [
            "key.rotate",
            "key.create",
            "tenant.create",
            "plan.update",
            "plan.create"
        ]
    );
    let changed = &entries[3];
    assert_eq!(
        (&changed["before"]["name"], &changed["after"]["name"]),
        (&json!("Team"), &json!("Teams"))
    );
    assert_eq!(
        (&changed["target"], &changed["address"]),
        (&json!("team"), &json!("127.0.0.1"))
    );
    assert_eq!(owner.all("/audit?action=plan", 500).await.len(), 2);
    assert_eq!(owner.all("/audit?action=pla", 500).await.len(), 0);
    assert_eq!(
        owner
            .all("/audit?until=2020-01-01T00:00:00Z", 500)
            .await
            .len(),
        0
    );
    assert_eq!(
        owner
            .all("/audit?since=2020-01-01T00:00:00Z&target=acme", 500)
            .await
            .len(),
        1
    );
    let whole = owner.get("/audit?limit=500").await.text;
    for secret in [
        olga.token.as_str(),
        key.body["key"].as_str().unwrap(),
        "secret_hash",
        "tg_",
        "tga_",
    ] {
        assert!(!whole.contains(secret), "{secret} is in the audit log");
    }
    // A change on the command line keeps its own name.
    gate.cli(&["plan", "set", "team", "--name", "T"])
        .await
        .expect_ok();
    assert_eq!(
        owner.get("/audit?limit=1").await.body["items"][0]["actor"],
        "cli"
    );
}

#[tokio::test]
async fn usage_recorded_by_hand_is_in_the_audit_log_once() {
    let gate = Tollgate::serve().start().await;
    gate.tenant("acme").create().await;
    let record = [
        "usage",
        "record",
        "--tenant",
        "acme",
        "--feature",
        "messages",
        "--quantity",
        "57",
        "--idempotency-key",
        "import-7",
    ];
    let recorded = gate.cli(&record).await.expect_ok().json();
    gate.cli(&record).await.expect_ok();
    let entries = gate.owner().all("/audit?action=usage", 500).await;
    let [entry] = entries.as_slice() else {
        panic!("{entries:?}");
    };
    assert_eq!(
        (&entry["actor"], &entry["action"], &entry["target"]),
        (&json!("cli"), &json!("usage.record"), &json!("acme"))
    );
    let after = &entry["after"];
    assert_eq!(after["event_id"], recorded["event_id"], "{after}");
    assert_eq!(
        (
            &after["feature_key"],
            &after["quantity"],
            &after["idempotency_key"]
        ),
        (&json!("messages"), &json!(57), &json!("import-7"))
    );
}

#[tokio::test]
async fn the_status_says_how_the_node_does() {
    let gate = Tollgate::serve().start().await;
    let status = gate.owner().get("/status").await.expect_status(200);
    assert_eq!(
        (&status.body["status"], &status.body["guardrails"]),
        (&json!("ready"), &json!(true))
    );
    assert_eq!(status.body["parts"]["store"]["status"], "ok");
    assert_eq!(status.body["in_flight"]["held"], 0);
    assert!(status.body["version"].is_string() && status.body["oldest_at"] == Value::Null);
}
