//! Tenants, subscriptions, overrides, grants, and end users that are forgotten.

use http::Method;
use serde_json::{Value, json};

use crate::http::support::{FakeOpenAi, Tollgate, hard, http::Reply};

#[tokio::test]
async fn changes_side_by_side_all_hold() {
    let gate = Tollgate::serve().start().await;
    let owner = gate.owner();
    for plan in ["starter", "pro"] {
        let plan = json!({"plan_code": plan, "name": plan, "preset": plan});
        owner.post("/plans", &plan).await.expect_status(201);
    }
    let tenant = json!({"slug": "acme", "name": "Acme", "plan_code": "starter"});
    owner.post("/tenants", &tenant).await.expect_status(201);
    let path = "/tenants/acme/subscription";
    for _ in 0..20 {
        let back = json!({"plan_code": "starter", "status": "active"});
        owner.put(path, &back).await.expect_status(200);
        let (moved, canceled) = (json!({"plan_code": "pro"}), json!({"status": "canceled"}));
        let (one, other) = tokio::join!(owner.put(path, &moved), owner.put(path, &canceled));
        one.expect_status(200);
        other.expect_status(200);
        let stands = owner.get("/tenants/acme").await.body["subscription"].clone();
        assert_eq!(
            (&stands["plan_code"], &stands["status"]),
            (&json!("pro"), &json!("canceled"))
        );
    }

    // Features of one plan, many at once, as a tool that provisions them does.
    let paths: Vec<String> = (0..24)
        .map(|number| format!("/plans/pro/features/f{number}"))
        .collect();
    let hard = json!({"hard_limit": 1});
    let puts = paths.iter().map(|path| owner.put(path, &hard));
    for put in futures_util::future::join_all(puts).await {
        assert!(matches!(put.status, 200 | 201), "{put:?}");
    }
}

#[tokio::test]
async fn a_tenant_is_made_changed_and_subscribed_field_by_field() {
    let gate = Tollgate::serve().start().await;
    let owner = gate.owner();
    for plan in ["starter", "pro"] {
        owner
            .post(
                "/plans",
                &json!({"plan_code": plan, "name": plan, "preset": plan}),
            )
            .await
            .expect_status(201);
    }
    let made = owner
        .post("/tenants", &json!({"slug": "acme", "name": "Acme"}))
        .await
        .expect_status(201);
    assert_eq!(made.body["subscription"], Value::Null);
    owner
        .put("/tenants/acme/subscription", &json!({}))
        .await
        .expect_bad("plan_code");
    owner
        .put("/tenants/acme/subscription", &json!({"plan_code": "gold"}))
        .await
        .expect_bad("plan_code");
    let period = json!({"plan_code": "starter", "current_period_start": "2026-01-31T00:00:00Z", "current_period_end": "2026-02-28T00:00:00Z", "processor_customer_id": "cus_1"});
    let first = owner
        .put("/tenants/acme/subscription", &period)
        .await
        .expect_status(200);
    let moved = owner
        .put("/tenants/acme/subscription", &json!({"plan_code": "pro"}))
        .await
        .expect_status(200);
    let mut expected = first.body["subscription"].clone();
    expected["plan_code"] = json!("pro");
    assert_eq!(
        moved.body["subscription"], expected,
        "what is left out stays"
    );
    owner
        .put("/tenants/acme/subscription", &json!({"status": "gone"}))
        .await
        .expect_bad("status");
    let same = json!({"current_period_start": "2026-01-31T00:00:00Z", "current_period_end": "2026-01-31T00:00:00Z"});
    owner
        .put("/tenants/acme/subscription", &same)
        .await
        .expect_bad("current_period_end");

    let id = made.body["tenant_id"].as_str().unwrap();
    let renamed = owner
        .patch(&format!("/tenants/{id}"), &json!({"name": "Acme Ltd"}))
        .await
        .expect_status(200);
    assert_eq!(renamed.body["name"], "Acme Ltd");
    owner
        .patch("/tenants/acme", &json!({"slug": "emca"}))
        .await
        .expect_bad("slug");
    owner
        .post("/tenants", &json!({"slug": "acme", "name": "x"}))
        .await
        .expect(409, "already_exists");
    owner
        .post("/tenants", &json!({"slug": id, "name": "x"}))
        .await
        .expect_bad("slug");
    owner
        .post("/tenants", &json!({"slug": "Bad", "name": "x"}))
        .await
        .expect_bad("slug");
    owner
        .post(
            "/tenants",
            &json!({"slug": "b", "name": "x", "plan_code": "gold"}),
        )
        .await
        .expect_bad("plan_code");
    owner.get("/tenants/nobody").await.expect(404, "not_found");
}

#[tokio::test]
async fn a_deleted_tenant_is_gone_for_all_but_its_history() {
    let gate = Tollgate::serve().start().await;
    let acme = gate.tenant("acme").create().await;
    acme.chat("hi").await.expect_ok();
    let owner = gate.owner();
    let id = owner.get("/tenants/acme").await.body["tenant_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let history = async |name: &str| {
        let year = "period_start=2000-01-01T00:00:00Z&period_end=2100-01-01T00:00:00Z";
        let statement = format!("/tenants/{name}/statement?{year}&feature_key=messages");
        let totals = format!("/tenants/{name}/totals?{year}&feature_key=messages");
        [
            owner.get(&statement).await.expect_status(200).body,
            owner.get(&totals).await.expect_status(200).body["totals"].clone(),
            json!(owner.all(&format!("/tenants/{name}/events"), 500).await),
        ]
    };
    let before = history("acme").await;
    assert_eq!(before[0]["features"][0]["closing"], 1, "{before:?}");
    assert_eq!(before[2].as_array().unwrap().len(), 1, "{before:?}");
    let request = before[2][0]["request_id"].as_str().unwrap();
    owner.delete("/tenants/acme").await.expect_status(204);
    for name in ["acme", &id] {
        assert_eq!(history(name).await, before, "{name}");
    }
    let explained = owner.get(&format!("/requests/{request}")).await;
    assert_eq!(explained.expect_status(200).body["tenant_slug"], "acme");
    owner
        .post(
            "/tenants/acme/corrections",
            &json!({"feature_key": "messages", "quantity": -1, "reason": "late"}),
        )
        .await
        .expect(404, "not_found");
    let statement = gate.cli(&["usage", "statement", "--tenant", "acme"]).await;
    assert_eq!(statement.expect_ok().json()["tenant_slug"], "acme");
    acme.chat("hi").await.expect(401, "invalid_api_key");
    assert_eq!(owner.all("/tenants", 500).await, [] as [Value; 0]);
    for path in ["/tenants/acme".to_owned(), format!("/tenants/{id}")] {
        owner.get(&path).await.expect(404, "not_found");
        owner.delete(&path).await.expect(404, "not_found");
    }
    owner
        .post("/tenants", &json!({"slug": "acme", "name": "x"}))
        .await
        .expect(409, "already_exists");
    owner
        .delete(&format!("/plans/{}", acme.plan))
        .await
        .expect_status(204);
    let entry = &owner
        .get("/audit?target=acme&action=tenant.delete")
        .await
        .body["items"][0];
    assert_eq!(
        (&entry["actor"], &entry["address"]),
        (&json!("bootstrap"), &json!("127.0.0.1"))
    );
    assert_eq!(entry["before"]["slug"], "acme");
}

#[tokio::test]
async fn pages_neither_repeat_nor_hide_what_is_there_while_others_come_and_go() {
    let gate = Tollgate::serve().start().await;
    let owner = gate.owner();
    for slug in ["b", "d", "f"] {
        owner
            .post("/tenants", &json!({"slug": slug, "name": slug}))
            .await
            .expect_status(201);
    }
    let first = owner.get("/tenants?limit=2").await.expect_status(200);
    let cursor = first.body["next_cursor"].as_str().unwrap();
    for slug in ["a", "e"] {
        owner
            .post("/tenants", &json!({"slug": slug, "name": slug}))
            .await
            .expect_status(201);
    }
    owner.delete("/tenants/d").await.expect_status(204);
    let second = owner
        .get(&format!("/tenants?limit=2&cursor={cursor}"))
        .await
        .expect_status(200);
    let slugs = |page: &Value| -> Vec<String> {
        let items = page["items"].as_array().unwrap();
        items
            .iter()
            .map(|item| item["slug"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        (slugs(&first.body), slugs(&second.body)),
        (vec!["b".into(), "d".into()], vec!["e".into(), "f".into()])
    );
    assert_eq!(second.body["next_cursor"], Value::Null);
}

#[tokio::test]
async fn an_override_holds_for_the_next_request_until_it_is_taken_away() {
    let gate = Tollgate::serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(1))
        .create()
        .await;
    let owner = gate.owner();
    acme.chat("one").await.expect_ok();
    acme.chat("two").await.expect(429, "usage_limit_exceeded");
    owner
        .get("/tenants/acme/limits/messages")
        .await
        .expect(404, "not_found");
    owner
        .put("/tenants/acme/limits/messages", &json!({}))
        .await
        .expect_bad("limits");
    owner
        .put(
            "/tenants/acme/limits/messages",
            &json!({"hard_limit": 2, "until": "2020-01-01T00:00:00Z"}),
        )
        .await
        .expect_bad("until");
    let put = owner
        .put(
            "/tenants/acme/limits/messages",
            &json!({"hard_limit": 2, "until": "2100-01-01T00:00:00Z"}),
        )
        .await
        .expect_status(200);
    assert_eq!(
        put.body,
        owner.get("/tenants/acme/limits/messages").await.body
    );
    acme.chat("two").await.expect_ok();
    acme.chat("three").await.expect(429, "usage_limit_exceeded");
    owner
        .put(
            "/tenants/acme/limits/messages",
            &json!({"limits": [{"hard_limit": null}]}),
        )
        .await
        .expect_status(200);
    acme.chat("three").await.expect_ok();
    owner
        .delete("/tenants/acme/limits/messages")
        .await
        .expect_status(204);
    owner
        .delete("/tenants/acme/limits/messages")
        .await
        .expect(404, "not_found");
    acme.chat("four").await.expect(429, "usage_limit_exceeded");
}

#[tokio::test]
async fn of_two_grants_the_one_that_expires_first_burns_first() {
    let gate = Tollgate::serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(1))
        .create()
        .await;
    let owner = gate.owner();
    let grant = |expires: &str| json!({"feature_key": "messages", "quantity": 1, "reason": "goodwill", "expires_at": expires});
    let late = owner
        .post("/tenants/acme/grants", &grant("2100-01-01T00:00:00Z"))
        .await
        .expect_status(201);
    let early = owner
        .post("/tenants/acme/grants", &grant("2099-01-01T00:00:00Z"))
        .await
        .expect_status(201);
    for message in ["one", "two"] {
        acme.chat(message).await.expect_ok();
    }
    let grants = owner.all("/tenants/acme/grants", 1).await;
    let left = |id: &Value| {
        grants
            .iter()
            .find(|grant| grant["grant_id"] == *id)
            .unwrap()["remaining"]
            .clone()
    };
    assert_eq!(
        (left(&early.body["grant_id"]), left(&late.body["grant_id"])),
        (json!(0), json!(1))
    );
    let path = format!("/grants/{}", late.body["grant_id"].as_str().unwrap());
    owner.delete(&path).await.expect_status(204);
    owner.delete(&path).await.expect(404, "not_found");
    acme.chat("three").await.expect(429, "usage_limit_exceeded");
    for (body, param) in [
        (
            json!({"feature_key": "messages", "quantity": 0, "reason": "r"}),
            "quantity",
        ),
        (json!({"feature_key": "messages", "quantity": 1}), "reason"),
        (
            json!({"feature_key": "messages", "quantity": 1, "reason": "r", "expires_at": "2020-01-01T00:00:00Z"}),
            "expires_at",
        ),
        (
            json!({"feature_key": "Messages!", "quantity": 1, "reason": "r"}),
            "feature_key",
        ),
    ] {
        owner
            .post("/tenants/acme/grants", &body)
            .await
            .expect_bad(param);
    }
}

#[tokio::test]
async fn a_forgotten_user_is_nowhere_and_every_sum_is_as_before() {
    let upstream = FakeOpenAi::start().await;
    let mut gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(2).of_each("user").per("lifetime"))
        .create()
        .await;
    let bob = acme.as_user("bob@example.com");
    for message in ["one", "two"] {
        bob.chat(message).await.expect_ok();
    }
    let refused = bob.chat("three").await.expect(429, "usage_limit_exceeded");
    let owner = gate.owner();
    let refused = format!("/requests/{}", refused.header("x-request-id"));
    assert!(owner.get(&refused).await.text.contains("bob@example.com"));
    let totals = "/tenants/acme/totals?feature_key=messages&period_start=2020-01-01T00:00:00Z&period_end=2100-01-01T00:00:00Z";
    let before = owner.get(totals).await.expect_status(200);
    owner
        .delete("/tenants/acme/users/bob@example.com")
        .await
        .expect_status(204);
    owner
        .delete("/tenants/acme/users/bob@example.com")
        .await
        .expect(404, "not_found");
    let by_user = owner
        .get(&format!("{totals}&by=user"))
        .await
        .expect_status(200);
    assert!(!by_user.text.contains("bob"), "{by_user:#?}");
    assert_eq!(by_user.body["totals"][0]["quantity"], 2);
    assert_eq!(owner.get(totals).await.body, before.body);
    assert!(!owner.get("/audit").await.text.contains("bob"));
    owner.get(&refused).await.expect(404, "not_found");
    bob.chat("a new start").await.expect_ok();
    gate.kill9().await;
    gate.restart().await;
    bob.chat("a second").await.expect_ok();
    bob.chat("a third")
        .await
        .expect(429, "usage_limit_exceeded");
}

#[tokio::test]
async fn a_change_for_a_version_that_is_gone_is_412_with_what_is_there_now() {
    let gate = Tollgate::serve().start().await;
    let owner = gate.owner();
    let starter = json!({"plan_code": "starter", "name": "Starter", "preset": "starter"});
    owner.post("/plans", &starter).await.expect_status(201);
    let acme = json!({"slug": "acme", "name": "Acme", "plan_code": "starter"});
    let made = owner.post("/tenants", &acme).await.expect_status(201);
    let limits = json!({"hard_limit": 5});
    let limit = owner
        .put("/tenants/acme/limits/messages", &limits)
        .await
        .expect_status(200);
    let key = owner
        .post("/tenants/acme/keys", &json!({"name": "backend"}))
        .await
        .expect_status(201);
    let key_path = format!("/keys/{}", key.body["key_id"].as_str().unwrap());
    let key_path = key_path.as_str();
    let rotation = format!("{key_path}/rotate");
    let rotation = rotation.as_str();

    // What was shown is what may be changed; then the one who saw the same comes too late.
    let tenant = owner.get("/tenants/acme").await.expect_status(200);
    assert_ne!(
        tenant.header("etag"),
        made.header("etag"),
        "an override came"
    );
    let send = async |method: &Method, path: &str, seen: &Reply, body: &str| {
        let seen = seen.header("etag");
        let headers = [("if-match", seen.as_str())];
        owner.send(method.clone(), path, &headers, body).await
    };
    let renamed = send(
        &Method::PATCH,
        "/tenants/acme",
        &tenant,
        r#"{"name":"Acme Ltd"}"#,
    )
    .await
    .expect_status(200);
    let shown = owner.get("/tenants/acme").await.expect_status(200);
    assert_eq!(shown.header("etag"), renamed.header("etag"));
    let other_limit = send(
        &Method::PUT,
        "/tenants/acme/limits/messages",
        &limit,
        r#"{"hard_limit":6}"#,
    )
    .await
    .expect_status(200);
    let other_key = send(&Method::PATCH, key_path, &key, r#"{"name":"server"}"#)
        .await
        .expect_status(200);

    let shown = owner.get("/tenants/acme").await.expect_status(200);
    let messages = "/tenants/acme/limits/messages";
    for (method, path, seen, body, now) in [
        (
            Method::PATCH,
            "/tenants/acme",
            &tenant,
            r#"{"name":"Mine"}"#,
            &shown,
        ),
        (Method::PATCH, "/tenants/acme", &tenant, "{}", &shown),
        (
            Method::PUT,
            "/tenants/acme/subscription",
            &tenant,
            r#"{"status":"paused"}"#,
            &shown,
        ),
        (Method::DELETE, "/tenants/acme", &tenant, "", &shown),
        (
            Method::PUT,
            messages,
            &limit,
            r#"{"hard_limit":7}"#,
            &other_limit,
        ),
        (Method::DELETE, messages, &limit, "", &other_limit),
        (
            Method::PATCH,
            key_path,
            &key,
            r#"{"name":"mine"}"#,
            &other_key,
        ),
        (Method::POST, rotation, &key, "", &other_key),
        (Method::DELETE, key_path, &key, "", &other_key),
    ] {
        let late = send(&method, path, seen, body)
            .await
            .expect(412, "version_conflict");
        assert_eq!(late.body["error"]["current"], now.body, "{method} {path}");
    }
    let after = owner.get("/tenants/acme").await.expect_status(200);
    assert_eq!(after.body, shown.body);

    for (method, path, seen, body, status) in [
        (
            Method::PUT,
            "/tenants/acme/subscription",
            &shown,
            r#"{"status":"trialing"}"#,
            200,
        ),
        (Method::DELETE, messages, &other_limit, "", 204),
        (
            Method::PUT,
            messages,
            &other_limit,
            r#"{"hard_limit":7}"#,
            404,
        ),
        (Method::POST, rotation, &other_key, "", 200),
        (Method::DELETE, key_path, &other_key, "", 204),
    ] {
        let reply = send(&method, path, seen, body).await;
        reply.expect_status(status);
    }
}
