//! A new server: preset, tenant, key, and a request that is seen to arrive.

use super::browser::{Browser, TOKEN, serve};
use crate::support::Tenant;

#[tokio::test]
async fn the_page_walks_from_nothing_to_a_first_request() {
    let gate = serve().start().await;
    let browser = Browser::signed_in(&gate, TOKEN).await;
    let page = browser.page("/admin").await;
    assert!(
        page.contains("Set up your gate") && page.contains("value=\"enterprise\""),
        "{page}"
    );

    let bad = browser
        .post(
            "/admin/start",
            &[("do", "plan"), ("plan_code", "?"), ("name", "x")],
        )
        .await;
    assert_eq!(bad.status, 422);
    assert!(bad.text.contains("plan_code-fault"), "{}", bad.text);
    let plan = [
        ("do", "plan"),
        ("plan_code", "starter"),
        ("name", "Starter"),
        ("preset", "starter"),
    ];
    let page = browser.submit("/admin/start", &plan).await;
    assert!(page.contains("Add the tenant"), "{page}");
    let tenant = [
        ("do", "tenant"),
        ("slug", "acme"),
        ("name", "Acme"),
        ("plan_code", "starter"),
    ];
    let page = browser.submit("/admin/start", &tenant).await;
    assert!(page.contains("Make a key"), "{page}");
    let long = "x".repeat(201);
    let bad = [("do", "key"), ("first", "acme"), ("name", long.as_str())];
    let bad = browser.post("/admin/start", &bad).await;
    assert_eq!(bad.status, 422);
    assert!(
        bad.text.contains("name-fault") && bad.text.contains(&long),
        "{}",
        bad.text
    );
    let key = [("do", "key"), ("first", "acme"), ("name", "First key")];
    let made = browser.post("/admin/start", &key).await;
    assert_eq!(made.status, 200, "{}", made.text);
    let secret = made
        .text
        .split("<code id=\"secret\">")
        .nth(1)
        .unwrap()
        .split('<')
        .next()
        .unwrap();
    let command = made.text.split("<code id=\"curl\">").nth(1).unwrap();
    assert!(
        command.contains(&format!("curl {}/v1/chat/completions", gate.base)),
        "{command}"
    );
    assert!(command.contains(secret), "{command}");
    let waiting = browser.page("/admin?first=acme").await;
    assert!(waiting.contains("Nothing has arrived yet"), "{waiting}");

    Tenant::known(&gate, secret).chat("hi").await.expect_ok();
    let arrived = browser.page("/admin?first=acme").await;
    assert!(arrived.contains("It arrived: 1 request"), "{arrived}");
    assert!(browser.page("/admin").await.contains("<h1>Overview</h1>"));
    gate.finish().await;
}
