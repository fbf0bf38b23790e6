//! Plans and their features.

use http::Method;
use serde_json::{Value, json};

use crate::http::support::Tollgate;

#[tokio::test]
async fn a_plan_is_made_shown_changed_and_deleted() {
    let gate = Tollgate::serve().start().await;
    let owner = gate.owner();
    let body = json!({"plan_code": "team", "name": "Team", "features": [
        {"feature_key": "messages", "soft_limit": 150, "hard_limit": 200},
        {"feature_key": "input_tokens", "limits": [
            {"scope": "user", "window": "day", "hard_limit": 10},
            {"hard_limit": 99}]}]});
    let made = owner.post("/plans", &body).await.expect_status(201);
    assert_eq!(made.header("etag"), "\"1\"");
    let features = made.body["features"].as_array().unwrap();
    assert_eq!(features[0]["unit"], "requests");
    assert_eq!(
        features[0]["limits"],
        json!([{"scope": "tenant", "window": "period", "soft_limit": 150, "hard_limit": 200}])
    );
    assert_eq!(
        (&features[1]["scope"], &features[1]["hard_limit"]),
        (&json!("user"), &json!(10)),
        "the first, flat"
    );
    let shown = owner.get("/plans/team").await.expect_status(200);
    assert_eq!(shown.body, made.body);
    owner
        .post("/plans", &body)
        .await
        .expect(409, "already_exists");

    let changed = owner
        .patch("/plans/team", &json!({"name": "Teams"}))
        .await
        .expect_status(200);
    assert_eq!(
        (&changed.body["name"], &changed.body["version"]),
        (&json!("Teams"), &json!(2))
    );
    assert_eq!(changed.body["features"], made.body["features"]);
    // What was shown can be sent back whole; unchanged, it changes nothing.
    let again = owner
        .patch("/plans/team", &changed.body)
        .await
        .expect_status(200);
    assert_eq!(again.body, changed.body);
    owner.delete("/plans/team").await.expect_status(204);
    owner.delete("/plans/team").await.expect(404, "not_found");
    owner.get("/plans/team").await.expect(404, "not_found");
}

#[tokio::test]
async fn a_feature_is_replaced_whole() {
    let gate = Tollgate::serve().start().await;
    let owner = gate.owner();
    owner
        .post("/plans", &json!({"plan_code": "team", "name": "Team"}))
        .await
        .expect_status(201);
    let whole = json!({"display_name": "Chats", "unit": "chats", "alert_thresholds": [50], "stripe_meter": "m", "hard_limit": 5, "window": "day"});
    let put = owner
        .put("/plans/team/features/messages", &whole)
        .await
        .expect_status(200);
    let feature = &put.body["features"][0];
    assert_eq!(feature["display_name"], "Chats");
    assert_eq!(
        feature["limits"],
        json!([{"scope": "tenant", "window": "day", "soft_limit": null, "hard_limit": 5}])
    );
    let back = owner
        .put("/plans/team/features/messages", feature)
        .await
        .expect_status(200);
    assert_eq!(back.body["features"][0], *feature, "as it was shown");
    let empty = owner
        .put("/plans/team/features/messages", &json!({}))
        .await
        .expect_status(200);
    let feature = &empty.body["features"][0];
    assert_eq!(
        (
            &feature["display_name"],
            &feature["limits"],
            &feature["stripe_meter"]
        ),
        (&json!("Messages"), &json!([]), &Value::Null)
    );
    let several = json!({"limits": [{"hard_limit": 5}, {"scope": "key", "window": "minute", "hard_limit": 1}]});
    owner
        .put("/plans/team/features/messages", &several)
        .await
        .expect_status(200);
    owner
        .delete("/plans/team/features/messages?scope=key&window=minute")
        .await
        .expect_status(204);
    owner
        .delete("/plans/team/features/messages?scope=key")
        .await
        .expect_bad("window");
    let left = owner.get("/plans/team").await.expect_status(200);
    assert_eq!(
        left.body["features"][0]["limits"].as_array().unwrap().len(),
        1
    );
    owner
        .delete("/plans/team/features/messages")
        .await
        .expect_status(204);
    owner
        .delete("/plans/team/features/messages")
        .await
        .expect(404, "not_found");
    owner
        .put("/plans/nobody/features/messages", &json!({}))
        .await
        .expect(404, "not_found");
}

#[tokio::test]
async fn a_change_for_a_version_that_is_gone_is_412_with_the_plan_as_it_is() {
    let gate = Tollgate::serve().start().await;
    let owner = gate.owner();
    owner
        .post("/plans", &json!({"plan_code": "team", "name": "Team"}))
        .await
        .expect_status(201);
    let stale = [("if-match", "\"1\"")];
    let body = r#"{"name":"Teams"}"#;
    let changed = owner
        .send(Method::PATCH, "/plans/team", &stale, body)
        .await
        .expect_status(200);
    assert_eq!(changed.header("etag"), "\"2\"");
    for (method, path, body) in [
        (Method::PATCH, "/plans/team", body),
        (Method::PATCH, "/plans/team", r#"{"name":"Other"}"#),
        (Method::PUT, "/plans/team/features/messages", "{}"),
        (Method::DELETE, "/plans/team/features/messages", ""),
        (Method::DELETE, "/plans/team", ""),
    ] {
        let late = owner
            .send(method.clone(), path, &stale, body)
            .await
            .expect(412, "version_conflict");
        assert_eq!(
            late.body["error"]["current"], changed.body,
            "{method} {path}"
        );
    }
    let weak = [("if-match", "W/\"2\"")];
    owner
        .send(Method::PATCH, "/plans/team", &weak, body)
        .await
        .expect(412, "version_conflict");
    let any = [("if-match", "*")];
    owner
        .send(Method::DELETE, "/plans/team", &any, "")
        .await
        .expect_status(204);
}

#[tokio::test]
async fn bad_plans_are_refused_by_the_field_at_fault() {
    let gate = Tollgate::serve().start().await;
    let owner = gate.owner();
    owner
        .post("/plans", &json!({"plan_code": "there", "name": "There"}))
        .await
        .expect_status(201);
    let plan = |features: Value| json!({"plan_code": "p", "name": "P", "features": features});
    for (body, param) in [
        (json!({"plan_code": "p"}), "name"),
        (json!({"plan_code": "a b", "name": "P"}), "plan_code"),
        (
            json!({"plan_code": "p", "name": "P", "colour": 1}),
            "colour",
        ),
        (
            json!({"plan_code": "p", "name": "P", "preset": "gold"}),
            "preset",
        ),
        (
            json!({"plan_code": "p", "name": "P", "allowed_models": "gpt"}),
            "allowed_models",
        ),
        (plan(json!({})), "features"),
        (plan(json!([1])), "features[0]"),
        (plan(json!([{}])), "features[0].feature_key"),
        (
            plan(json!([{"feature_key": "x"}, {"feature_key": "X"}])),
            "features[1].feature_key",
        ),
        (
            plan(json!([{"feature_key": "x"}, {"feature_key": "x"}])),
            "features[1].feature_key",
        ),
        (
            plan(json!([{"feature_key": "x", "hard": 1}])),
            "features[0].hard",
        ),
        (
            plan(json!([{"feature_key": "x", "soft_limit": 2, "hard_limit": 1}])),
            "features[0].soft_limit",
        ),
        (
            plan(
                json!([{"feature_key": "x"}, {"feature_key": "y", "limits": [
                    {"window": "day"}, {"soft_limit": 2, "hard_limit": 1}
                ]}]),
            ),
            "features[1].limits[1].soft_limit",
        ),
        (
            plan(json!([{"feature_key": "x", "hard_limit": -1}])),
            "features[0].hard_limit",
        ),
        (
            plan(json!([{"feature_key": "x", "hard_limit": 1.5}])),
            "features[0].hard_limit",
        ),
        (
            plan(json!([{"feature_key": "x", "hard_limit": 9_007_199_254_740_992_i64}])),
            "features[0].hard_limit",
        ),
        (
            plan(json!([{"feature_key": "x", "limits": [{"window": "year"}]}])),
            "features[0].limits[0].window",
        ),
        (
            plan(json!([{"feature_key": "x", "limits": [{"hard_limit": 1}, {"hard_limit": 2}]}])),
            "features[0].limits",
        ),
        (
            plan(json!([{"feature_key": "x", "alert_thresholds": [0]}])),
            "features[0].alert_thresholds",
        ),
        (
            plan(json!([{"feature_key": "x", "unit": ""}])),
            "features[0].unit",
        ),
    ] {
        let reply = owner.post("/plans", &body).await;
        assert_eq!(
            (reply.status, &reply.body["error"]["param"]),
            (422, &json!(param)),
            "{body}: {reply:#?}"
        );
    }
    owner
        .patch("/plans/there", &json!({"plan_code": "other"}))
        .await
        .expect_bad("plan_code");
    let too_large = r#"{"hard_limit":9223372036854775808}"#;
    owner
        .send(Method::PUT, "/plans/there/features/x", &[], too_large)
        .await
        .expect_bad("hard_limit");
    assert_eq!(owner.all("/plans", 1).await.len(), 1);
}

#[tokio::test]
async fn a_plan_with_subscriptions_stays() {
    let gate = Tollgate::serve().start().await;
    let acme = gate.tenant("acme").create().await;
    let plan = format!("/plans/{}", acme.plan);
    gate.owner().delete(&plan).await.expect(409, "plan_in_use");
}
