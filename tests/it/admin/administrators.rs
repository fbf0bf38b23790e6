//! Administrators by the page, and what a server says of itself.

use super::browser::{Browser, TOKEN, serve};

const PATH: &str = "/admin/administrators";

#[tokio::test]
async fn an_owner_makes_administrators_whose_tokens_are_shown_once_and_revokes_them() {
    let gate = serve().start().await;
    let owner = Browser::signed_in(&gate, TOKEN).await;
    let form = [("do", "create"), ("name", "ada"), ("role", "operator")];
    let made = owner.post(PATH, &form).await;
    assert_eq!(made.status, 200, "{}", made.text);
    let token = made.text.split("<code id=\"token\">").nth(1).unwrap();
    let token = token.split('<').next().unwrap();
    let ada = Browser::signed_in(&gate, token).await;
    let page = owner.page(PATH).await;
    assert!(page.contains("ada") && !page.contains(token), "shown once");

    let twice = owner.post(PATH, &form).await;
    assert_eq!(twice.status, 422, "{}", twice.text);
    assert!(twice.text.contains("already"), "{}", twice.text);
    let bad = [("do", "create"), ("name", ""), ("role", "king")];
    let bad = owner.post(PATH, &bad).await;
    assert_eq!(bad.status, 422);
    assert!(bad.text.contains("name-fault"), "{}", bad.text);

    let id = page
        .split("name=\"administrator\" value=\"")
        .nth(1)
        .unwrap();
    let id = id.split('"').next().unwrap();
    let revoked = owner
        .submit(PATH, &[("do", "revoke"), ("administrator", id)])
        .await;
    assert!(
        revoked.contains("Revoked") && !revoked.contains("ada"),
        "{revoked}"
    );
    assert_eq!(ada.get(PATH).await.status, 401, "its sessions are over");
    gate.finish().await;
}

#[tokio::test]
async fn others_than_owners_see_administrators_without_a_form_that_fails() {
    let gate = serve().start().await;
    let operator = Browser::of_role(&gate, "operator").await;
    let page = operator.page(PATH).await;
    assert!(
        page.contains("bootstrap") && !page.contains("Make token") && !page.contains("Revoke"),
        "{page}"
    );
    let form = [("do", "create"), ("name", "eve"), ("role", "owner")];
    let refused = operator.post(PATH, &form).await;
    assert_eq!(refused.status, 403, "{}", refused.text);
    gate.finish().await;
}

#[tokio::test]
async fn the_status_page_shows_every_setting_with_its_origin_and_no_secret() {
    let gate = serve().set("USAGE_RETENTION_DAYS", "31").start().await;
    let viewer = Browser::of_role(&gate, "viewer").await;
    let page = viewer.page("/admin/status").await;
    assert!(!page.contains(TOKEN) && page.contains(&format!("…{}", &TOKEN[TOKEN.len() - 4..])));
    let listed = gate.cli_json(&["config"]).await;
    for setting in listed["items"].as_array().unwrap() {
        let name = setting["name"].as_str().unwrap();
        let row = page
            .split(&format!("<code class=\"name\">{name}</code>"))
            .nth(1)
            .unwrap_or_else(|| panic!("{name} is not on the page"));
        let row = row.split("</tr>").next().unwrap();
        assert!(
            row.contains(setting["source"].as_str().unwrap()),
            "{name}: {row}"
        );
    }
    assert!(page.contains("ready") && page.contains("Journal"), "{page}");
    gate.finish().await;
}
