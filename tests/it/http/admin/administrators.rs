//! Who may administer.

use serde_json::json;

use crate::http::support::Tollgate;

#[tokio::test]
async fn whatever_is_no_administrators_token_in_use_is_401_with_one_body() {
    let gate = Tollgate::serve().start().await;
    let acme = gate.tenant("acme").create().await;
    let owner = gate.owner();
    let made = owner
        .post("/admin-tokens", &json!({"name": "bob", "role": "viewer"}))
        .await
        .expect_status(201);
    let bob = owner.with_token(made.body["token"].as_str().unwrap());
    bob.get("/admin-tokens").await.expect_status(200);
    let id = made.body["admin_token_id"].as_str().unwrap();
    owner
        .delete(&format!("/admin-tokens/{id}"))
        .await
        .expect_status(204);
    let mut messages = Vec::new();
    for token in ["", "nonsense", "tga_made-up", &acme.key, &bob.token] {
        let reply = owner.with_token(token).get("/admin-tokens").await;
        let reply = reply.expect(401, "invalid_api_key");
        messages.push(reply.body["error"]["message"].clone());
    }
    messages.dedup();
    assert_eq!(messages.len(), 1, "{messages:?}");
    owner
        .delete(&format!("/admin-tokens/{id}"))
        .await
        .expect(404, "not_found");
}

#[tokio::test]
async fn each_role_may_do_what_it_is_for_and_no_more() {
    let gate = Tollgate::serve().start().await;
    let owner = gate.owner();
    let viewer = owner.make("vera", "viewer").await;
    let operator = owner.make("olga", "operator").await;
    let body = json!({"name": "x", "role": "viewer"});
    for (who, status) in [(&viewer, 403), (&operator, 403), (&owner, 201)] {
        let reply = who.post("/admin-tokens", &body).await.expect_status(status);
        if status == 403 {
            assert_eq!(reply.code(), "forbidden");
        }
    }
    let names = |reply: crate::http::support::http::Reply| -> Vec<String> {
        let items = reply.body["items"].as_array().unwrap().clone();
        items
            .iter()
            .map(|item| item["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let listed = viewer.get("/admin-tokens").await.expect_status(200);
    assert!(!listed.text.contains("tga_"), "{listed:#?}");
    assert_eq!(names(listed), ["bootstrap", "vera", "olga", "x"]);
    let paged = viewer.all("/admin-tokens", 1).await;
    assert_eq!(paged.len(), 4);
}

#[tokio::test]
async fn bad_bodies_are_refused_by_name_and_change_nothing() {
    let gate = Tollgate::serve().start().await;
    let owner = gate.owner();
    for (body, param) in [
        (json!({}), "name"),
        (json!({"name": "", "role": "viewer"}), "name"),
        (json!({"name": "cli", "role": "viewer"}), "name"),
        (json!({"name": "a\nb", "role": "viewer"}), "name"),
        (json!({"name": "a"}), "role"),
        (json!({"name": "a", "role": "king"}), "role"),
        (json!({"name": "a", "role": null}), "role"),
        (json!({"name": "a", "role": "viewer", "x": 1}), "x"),
    ] {
        owner.post("/admin-tokens", &body).await.expect_bad(param);
    }
    owner
        .post(
            "/admin-tokens",
            &json!({"name": "bootstrap", "role": "owner"}),
        )
        .await
        .expect(409, "already_exists");
    owner
        .get("/admin-tokens?limit=501")
        .await
        .expect_bad("limit");
    owner.get("/admin-tokens?x=1").await.expect_bad("x");
    owner
        .delete("/admin-tokens/nonsense")
        .await
        .expect(404, "not_found");
    assert_eq!(owner.all("/admin-tokens", 500).await.len(), 1);
}

#[tokio::test]
async fn administrators_are_made_and_revoked_on_the_command_line_too() {
    let gate = Tollgate::serve().start().await;
    let made = gate
        .cli(&[
            "admin-token",
            "create",
            "ada",
            "--role",
            "operator",
            "--output",
            "json",
        ])
        .await
        .expect_ok()
        .json();
    let ada = gate.owner().with_token(made["token"].as_str().unwrap());
    ada.get("/admin-tokens").await.expect_status(200);
    let id = made["admin_token_id"].as_str().unwrap();
    gate.cli(&["admin-token", "revoke", id, "--yes"])
        .await
        .expect_ok();
    ada.get("/admin-tokens")
        .await
        .expect(401, "invalid_api_key");
    let again = gate.cli(&["admin-token", "revoke", id, "--yes"]).await;
    assert_eq!(again.exit_code, 1);
    assert!(again.stderr.contains("admin-token list"), "{again:?}");
}
