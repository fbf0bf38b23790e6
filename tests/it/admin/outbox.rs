//! Outbox and notices by the page, without a browser.

use serde_json::json;

use super::browser::{Browser, TOKEN, serve};
use crate::support::{
    eventually, hard,
    stripe::{FakeStripe, KEY, WEBHOOK_SECRET, event},
};

#[tokio::test]
async fn an_operator_sends_again_what_a_viewer_only_sees() {
    let stripe = FakeStripe::start().await;
    stripe.add_meter("msgs", json!({}));
    stripe.add_customer("cus_other");
    let gate = serve()
        .set("ENABLE_STRIPE_USAGE", "true")
        .set("STRIPE_SECRET_KEY", KEY)
        .set("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET)
        .set("STRIPE_API_BASE", stripe.base())
        .start()
        .await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(5))
        .create()
        .await;
    gate.cli_json(&[
        "plan",
        "feature",
        "set",
        &acme.plan,
        "messages",
        "--stripe-meter",
        "msgs",
    ])
    .await;
    let subscribe = [
        "tenant",
        "subscribe",
        "acme",
        "--plan",
        &acme.plan,
        "--processor-customer-id",
        "cus_acme",
    ];
    gate.cli_json(&subscribe).await;
    let viewer = Browser::of_role(&gate, "viewer").await;
    let page = viewer.page("/admin/outbox").await;
    assert!(
        page.contains("Nobody was told anything yet") && page.contains("Stripe has sent nothing"),
        "{page}"
    );

    acme.chat("hi").await.expect_ok();
    gate.cli_json(&["stripe", "push"]).await;
    let page = viewer
        .page("/admin/outbox?kind=stripe.meter_event&status=dead")
        .await;
    assert!(
        page.contains("No such customer") && page.contains("acme"),
        "{page}"
    );
    assert!(!page.contains("Send again"), "{page}");
    let page = viewer.page("/admin/outbox?status=sent").await;
    assert!(!page.contains("No such customer"), "{page}");
    assert_eq!(viewer.get("/admin/outbox?status=x").await.status, 422);
    let identifier = gate.cli_json(&["stripe", "outbox", "list"]).await["items"][0]["identifier"]
        .as_str()
        .unwrap()
        .to_owned();
    let form = [("entry", identifier.as_str())];
    assert_eq!(viewer.post("/admin/outbox", &form).await.status, 403);
    let owner = Browser::signed_in(&gate, TOKEN).await;
    let status = owner.get("/api/v1/admin/status").await.json();
    assert_eq!(status["stripe"]["dead"], 1, "{status}");
    let page = owner.page("/admin/status").await;
    assert!(page.contains("1 given up, 0 uncertain"), "{page}");
    let page = owner.page("/admin").await;
    assert!(page.contains("1 entry of the outbox given up"), "{page}");
    assert!(page.contains("not told of everything"), "{page}");

    let operator = Browser::of_role(&gate, "operator").await;
    stripe.add_customer("cus_acme");
    let page = operator.submit("/admin/outbox", &form).await;
    assert!(page.contains("It is sent again"), "{page}");
    eventually("it is sent", || async {
        (stripe.sum("cus_acme", "msgs") == 1).then_some(())
    })
    .await;
    let page = operator.submit("/admin/outbox", &form).await;
    assert!(page.contains("It had been sent by then"), "{page}");
    let page = operator.page("/admin").await;
    let health = page.split("<th scope=\"row\">Stripe</th>").nth(1).unwrap();
    let health = health.split("</tr>").next().unwrap();
    assert!(
        health.contains("works") && health.contains("to be sent"),
        "{health}"
    );

    let object = json!({"id": "sub_1", "customer": "cus_ghost", "status": "active"});
    let now = tollgate::clock::Clock::System.now().seconds();
    stripe
        .deliver(
            &gate.base,
            &event("evt_1", "customer.subscription.updated", now, &object),
        )
        .await;
    let page = operator.page("/admin/outbox").await;
    assert!(
        page.contains("no tenant has the customer cus_ghost"),
        "{page}"
    );
    let page = operator
        .submit("/admin/outbox", &[("webhook", "evt_1")])
        .await;
    assert!(page.contains("It was applied again"), "{page}");
    gate.finish().await;
}
