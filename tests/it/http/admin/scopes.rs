//! Limits of every scope and several windows, overrides and grants, all made by API.

use serde_json::{Value, json};

use crate::http::support::{FakeOpenAi, Tollgate, hard, http::Reply};

#[track_caller]
fn refused_by(reply: Reply, scope: &str) {
    let refused = reply.expect(429, "usage_limit_exceeded");
    assert_eq!(refused.body["error"]["scope"], scope, "{refused:#?}");
}

/// What is used under the limit of this scope, as the caller sees it.
fn used(usage: &Reply, scope: &str) -> Value {
    let items = usage.body["features"].as_array().unwrap();
    let item = items
        .iter()
        .find(|it| it["feature_key"] == "messages" && it["scope"] == scope);
    item.unwrap_or_else(|| panic!("no limit of scope {scope}: {usage:#?}"))["used"].clone()
}

#[tokio::test]
async fn limits_of_every_scope_made_by_api_hold_and_are_read_back_from_the_rollups() {
    let upstream = FakeOpenAi::start().await;
    let mut gate = Tollgate::serve()
        .upstream(&upstream)
        .env("USAGE_GUARDRAIL_CACHE_BACKEND", "memory") // a start finds no counter
        .start()
        .await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(100))
        .create()
        .await;
    let owner = gate.owner();
    let limits = json!({"limits": [
        {"scope": "tenant", "window": "period", "hard_limit": 5},
        {"scope": "key", "window": "lifetime", "hard_limit": 4},
        {"scope": "user", "window": "lifetime", "hard_limit": 2},
        {"scope": "user", "window": "week", "soft_limit": 100},
    ]});
    owner
        .put("/plans/acme-plan/features/messages", &limits)
        .await
        .expect_status(200);
    let (ann, bob) = (acme.as_user("ann"), acme.as_user("bob"));
    for _ in 0..2 {
        ann.chat("hi").await.expect_ok();
    }
    refused_by(ann.chat("hi").await, "user");

    let own = json!({"limits": [{"scope": "user", "window": "lifetime", "hard_limit": 3}]});
    owner
        .put("/tenants/acme/limits/messages", &own)
        .await
        .expect_status(200);
    ann.chat("hi").await.expect_ok();
    bob.chat("hi").await.expect_ok();
    refused_by(bob.chat("hi").await, "key");

    let second = owner
        .post("/tenants/acme/keys", &json!({"name": "second"}))
        .await
        .expect_status(201);
    let second = acme.with_key(second.body["key"].as_str().unwrap());
    second.as_user("bob").chat("hi").await.expect_ok();
    let cid = second.as_user("cid");
    refused_by(cid.chat("hi").await, "tenant");
    let grant = json!({"feature_key": "messages", "quantity": 1, "reason": "goodwill"});
    owner
        .post("/tenants/acme/grants", &grant)
        .await
        .expect_status(201);
    cid.chat("hi").await.expect_ok();

    gate.kill9().await;
    gate.restart().await;
    let usage = ann.usage().await.expect_ok();
    for (scope, expected) in [("tenant", 6), ("key", 4), ("user", 3)] {
        assert_eq!(used(&usage, scope), expected, "{scope}: {usage:#?}");
    }
    refused_by(cid.chat("hi").await, "tenant");
    owner
        .delete("/tenants/acme/limits/messages?scope=user&window=lifetime")
        .await
        .expect_status(204);
    let refused = ann.chat("hi").await.expect(429, "usage_limit_exceeded");
    let violations = refused.body["error"]["violations"].as_array().unwrap();
    let of_user = violations.iter().find(|it| it["scope"] == "user").unwrap();
    assert_eq!(
        (&of_user["limit_value"], &of_user["usage"]),
        (&json!(2), &json!(3))
    );
    let by_user = owner
        .get("/tenants/acme/totals?feature_key=messages&by=user&period_start=2020-01-01T00:00:00Z&period_end=2100-01-01T00:00:00Z")
        .await
        .expect_status(200);
    let totals = by_user.body["totals"].as_array().unwrap();
    let totals: Vec<(&Value, &Value)> = totals
        .iter()
        .map(|row| (&row["user"], &row["quantity"]))
        .collect();
    let expected =
        [("ann", 3), ("bob", 2), ("cid", 1)].map(|(user, sum)| (json!(user), json!(sum)));
    assert_eq!(
        totals,
        expected.iter().map(|it| (&it.0, &it.1)).collect::<Vec<_>>()
    );
}
