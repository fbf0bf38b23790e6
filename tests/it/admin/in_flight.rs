//! What is in flight by the page, without a browser.

use serde_json::json;

use super::browser::{Browser, TOKEN, serve};
use crate::support::{Tenant, hard};

async fn hold(tenant: &Tenant) -> String {
    let body = json!({ "quantities": { "messages": 2 } });
    let held = tenant.post("/api/v1/usage/reservations", &body).await;
    assert_eq!(held.status, 201, "{}", held.text);
    held.json()["reservation_id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_operator_releases_what_a_viewer_only_sees() {
    let gate = serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(5))
        .create()
        .await;
    let held = hold(&acme).await;
    let viewer = Browser::of_role(&gate, "viewer").await;
    let page = viewer.page("/admin/in-flight").await;
    assert!(
        page.contains("acme") && page.contains("Messages") && !page.contains("Release"),
        "{page}"
    );
    let form = [("reservation", &*held)];
    assert_eq!(viewer.post("/admin/in-flight", &form).await.status, 403);
    assert_eq!(acme.reserved("messages").await, 2);

    let operator = Browser::of_role(&gate, "operator").await;
    let page = operator.submit("/admin/in-flight", &form).await;
    assert!(
        page.contains("Released") && page.contains("Nothing is in flight"),
        "{page}"
    );
    assert_eq!(acme.reserved("messages").await, 0);
    let again = operator.submit("/admin/in-flight", &form).await;
    assert!(again.contains("It had ended by then"), "{again}");
    gate.finish().await;
}

#[tokio::test]
async fn the_live_page_is_told_of_changes_and_of_the_end_of_its_session() {
    let mut gate = serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(5))
        .create()
        .await;
    assert_eq!(
        Browser::new(&gate)
            .get("/admin/in-flight/live")
            .await
            .status,
        401
    );
    let owner = Browser::signed_in(&gate, TOKEN).await;
    let mut live = open(&owner).await;
    live.until("Nothing is in flight").await;
    let held = hold(&acme).await;
    live.until(&held).await;
    let form = [("reservation", &*held)];
    owner.submit("/admin/in-flight", &form).await;
    live.until("Nothing is in flight").await;
    owner.post("/admin/logout", &[]).await;
    live.until("event: over").await;
    assert_eq!(live.rest().await, "", "and no more");

    let owner = Browser::signed_in(&gate, TOKEN).await;
    let mut live = open(&owner).await;
    live.until("Nothing is in flight").await;
    assert_eq!(
        gate.terminate().await,
        0,
        "who watches does not hold up a stop"
    );
}

struct Live(reqwest::Response);

async fn open(browser: &Browser) -> Live {
    let request = browser
        .http
        .get(format!("{}/admin/in-flight/live", browser.base))
        .header("cookie", &browser.cookie);
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-store");
    Live(response)
}

impl Live {
    async fn until(&mut self, text: &str) {
        let mut seen = String::new();
        while !seen.contains(text) {
            let chunk = self.0.chunk().await.unwrap();
            let chunk = chunk.unwrap_or_else(|| panic!("{text} never came: {seen}"));
            seen.push_str(&String::from_utf8_lossy(&chunk));
        }
    }

    async fn rest(self) -> String {
        self.0.text().await.unwrap()
    }
}
