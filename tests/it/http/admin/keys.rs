//! API keys by the administration API.

use serde_json::{Value, json};

use crate::http::support::{Tollgate, eventually, hard};

#[tokio::test]
async fn a_key_is_made_changed_and_revoked_at_once() {
    let gate = Tollgate::serve().start().await;
    let acme = gate.tenant("acme").create().await;
    let owner = gate.owner();
    let made = owner
        .post(
            "/tenants/acme/keys",
            &json!({"name": "backend", "user": "u-1"}),
        )
        .await
        .expect_status(201);
    let key = acme.with_key(made.body["key"].as_str().unwrap());
    key.chat("hi").await.expect_ok();
    let listed = owner.get("/tenants/acme/keys").await.expect_status(200);
    assert!(!listed.text.contains("tg_"), "{listed:#?}");
    assert_eq!(owner.all("/tenants/acme/keys", 1).await.len(), 2);
    let path = format!("/keys/{}", made.body["key_id"].as_str().unwrap());
    let changed = owner
        .patch(
            &path,
            &json!({"name": "new", "expires_at": "2100-01-01T00:00:00Z"}),
        )
        .await
        .expect_status(200);
    assert_eq!(
        (&changed.body["name"], &changed.body["expires_at"]),
        (&json!("new"), &json!("2100-01-01T00:00:00Z"))
    );
    let kept = owner
        .patch(&path, &json!({"expires_at": null}))
        .await
        .expect_status(200);
    assert_eq!(
        (&kept.body["name"], &kept.body["expires_at"]),
        (&json!("new"), &Value::Null)
    );
    owner
        .patch(&path, &json!({"expires_at": "2020-01-01T00:00:00Z"}))
        .await
        .expect_bad("expires_at");
    owner
        .patch(&path, &json!({"user": "u-2"}))
        .await
        .expect_bad("user");
    owner.delete(&path).await.expect_status(204);
    key.chat("hi").await.expect(401, "invalid_api_key");
    owner.delete(&path).await.expect(404, "not_found");
    owner
        .patch(&path, &json!({"name": "x"}))
        .await
        .expect(404, "not_found");
    owner
        .post("/tenants/acme/keys", &json!({"name": "x", "user": ""}))
        .await
        .expect_bad("user");
    owner
        .post("/tenants/nobody/keys", &json!({"name": "x"}))
        .await
        .expect(404, "not_found");
}

#[tokio::test]
async fn a_rotated_key_keeps_its_counters_and_the_old_secret_ends_with_its_grace() {
    let gate = Tollgate::serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(3).of_each("key"))
        .create()
        .await;
    let owner = gate.owner();
    let keys = owner.all("/tenants/acme/keys", 500).await;
    let path = format!("/keys/{}/rotate", keys[0]["key_id"].as_str().unwrap());
    acme.chat("one").await.expect_ok();
    let rotated = owner
        .post(&path, &json!({"grace_seconds": 1}))
        .await
        .expect_status(200);
    let new = acme.with_key(rotated.body["key"].as_str().unwrap());
    assert_eq!(rotated.body["key_id"], keys[0]["key_id"]);
    new.chat("two").await.expect_ok();
    // A cached old secret must not outlive its grace: it is asked all the time.
    eventually("the end of the grace", || async {
        let reply = acme.usage().await;
        (reply.status == 401).then_some(())
    })
    .await;
    new.chat("three").await.expect_ok();
    new.chat("four").await.expect(429, "usage_limit_exceeded");
    owner
        .post(&path, &json!({"grace_seconds": 2_592_001}))
        .await
        .expect_bad("grace_seconds");
    owner
        .post(&path, &json!({"grace_seconds": -1}))
        .await
        .expect_bad("grace_seconds");
    let at_once = owner
        .send(http::Method::POST, &path, &[], "")
        .await
        .expect_status(200);
    new.usage().await.expect(401, "invalid_api_key");
    acme.with_key(at_once.body["key"].as_str().unwrap())
        .usage()
        .await
        .expect_ok();
}

#[tokio::test]
async fn a_key_that_was_tried_before_it_was_made_serves_when_it_is_made() {
    let gate = Tollgate::serve().start().await;
    let acme = gate.tenant("acme").create().await;
    let unknown = format!("tg_{}", "x".repeat(43));
    for _ in 0..3 {
        acme.with_key(&unknown)
            .chat("hi")
            .await
            .expect(401, "invalid_api_key");
    }
    let made = gate
        .owner()
        .post("/tenants/acme/keys", &json!({"name": "k"}))
        .await
        .expect_status(201);
    acme.with_key(made.body["key"].as_str().unwrap())
        .chat("hi")
        .await
        .expect_ok();
}
