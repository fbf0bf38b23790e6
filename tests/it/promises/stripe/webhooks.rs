//! What Stripe says of subscriptions holds, however often and in whatever order it comes.

use serde_json::{Value, json};
use tollgate::{
    billing::stripe::WebhookError,
    domain::subscription::{Subscription, SubscriptionStatus},
    store::webhooks::WebhookStatus,
};

use super::world::{HOUR, NOON, World, at, changed, subscription, with_price};
use crate::support::stripe::{WEBHOOK_SECRET, event, signed};

async fn status_of(world: &World, id: &str) -> WebhookStatus {
    let found = world.app.store.find_webhook(id).await.unwrap();
    found.unwrap().status
}

#[tokio::test]
async fn a_subscription_gives_its_tenant_plan_status_and_period() {
    let world = World::start().await;
    world.plan("max", &[("messages", None)]).await;
    world.tenant("bare", "pro", None).await;
    let created = subscription(
        "sub_1",
        json!({"customer": "cus_new", "status": "trialing", "metadata": {"tenant_id": "bare", "plan_code": "max"}}),
    );
    let received = world
        .receive(&changed("evt_1", "created", 0, &created))
        .await;
    assert!(!received.unwrap().is_duplicate);
    let found = world.subscription("bare").await.unwrap();
    assert_eq!(found.plan_code.as_str(), "max");
    assert_eq!(found.status, SubscriptionStatus::Trialing);
    assert_eq!(found.processor_customer_id.as_deref(), Some("cus_new"));
    let window = found.period.first();
    assert_eq!(
        (window.start(), window.end()),
        (at("2026-11-20T09:00:00Z"), at("2026-12-20T09:00:00Z"))
    );
    let audit = world.app.store.list_audit(None, 1).await.unwrap().remove(0);
    assert_eq!(
        (audit.by.name.as_str(), audit.action.as_str()),
        ("stripe", "subscription.set")
    );

    // Older versions of the API have the period on the subscription; the tenant is known by its customer now.
    let start = at("2026-11-21T09:00:00Z").seconds();
    let mut old = subscription(
        "sub_1",
        json!({"customer": "cus_new", "metadata": {}, "current_period_start": start, "current_period_end": start + 86_400}),
    );
    let item = &mut old["items"]["data"][0];
    item.as_object_mut().unwrap().remove("current_period_start");
    item.as_object_mut().unwrap().remove("current_period_end");
    world
        .receive(&changed("evt_2", "updated", 1, &old))
        .await
        .unwrap();
    let found = world.subscription("bare").await.unwrap();
    assert_eq!(
        (found.plan_code.as_str(), found.status),
        ("pro", SubscriptionStatus::Active)
    );
    assert_eq!(found.period.first().start(), at("2026-11-21T09:00:00Z"));
}

#[tokio::test]
async fn every_status_is_taken_over() {
    for (kind, status) in [
        ("updated", "active"),
        ("updated", "trialing"),
        ("updated", "past_due"),
        ("updated", "unpaid"),
        ("updated", "incomplete"),
        ("updated", "incomplete_expired"),
        ("paused", "paused"),
        ("resumed", "active"),
        ("deleted", "canceled"),
    ] {
        let world = World::start().await;
        let told = subscription("sub_1", json!({"status": status}));
        world
            .receive(&changed("evt_1", kind, 0, &told))
            .await
            .unwrap();
        let found = world.subscription("acme").await.unwrap();
        assert_eq!(found.status.as_str(), status, "{kind}");
    }
}

#[tokio::test]
async fn an_invoice_changes_the_status_and_never_usage() {
    let world = World::start().await;
    world
        .receive(&changed(
            "evt_1",
            "created",
            0,
            &subscription("sub_1", json!({})),
        ))
        .await
        .unwrap();
    let invoice = |id: &str, kind: &str, seconds: i64, object: Value| {
        event(
            id,
            &format!("invoice.{kind}"),
            at(NOON).seconds() + seconds,
            &object,
        )
    };
    let new = json!({"id": "in_1", "parent": {"subscription_details": {"subscription": "sub_1"}}, "lines": {"data": [{"quantity": 99}]}});
    world
        .receive(&invoice("evt_2", "payment_failed", 5, new))
        .await
        .unwrap();
    let status = async || world.subscription("acme").await.unwrap().status;
    assert_eq!(status().await, SubscriptionStatus::PastDue);
    let old = json!({"id": "in_1", "subscription": "sub_1"});
    world
        .receive(&invoice("evt_3", "paid", 6, old.clone()))
        .await
        .unwrap();
    assert_eq!(status().await, SubscriptionStatus::Active);
    world
        .receive(&invoice("evt_4", "payment_failed", 4, old))
        .await
        .unwrap();
    assert_eq!(
        status().await,
        SubscriptionStatus::Active,
        "an older one changes nothing"
    );
    world
        .receive(&invoice("evt_5", "paid", 7, json!({"id": "in_2"})))
        .await
        .unwrap();
    assert_eq!(
        status_of(&world, "evt_5").await,
        WebhookStatus::Ignored,
        "it is about no subscription"
    );
    assert_eq!(
        world
            .total("acme", &tollgate::domain::feature::FeatureKey::Messages)
            .await,
        0
    );
}

#[tokio::test]
async fn an_event_counts_once_and_one_that_failed_counts_when_it_comes_again() {
    let world = World::start().await;
    let told = changed(
        "evt_1",
        "updated",
        0,
        &subscription("sub_1", json!({"items": with_price("later")})),
    );
    assert!(!world.receive(&told).await.unwrap().is_duplicate);
    assert_eq!(status_of(&world, "evt_1").await, WebhookStatus::Unmatched);
    let found = world
        .app
        .store
        .find_webhook("evt_1")
        .await
        .unwrap()
        .unwrap();
    assert!(found.last_error.unwrap().contains("(found: later)"));
    world.plan("later", &[]).await;
    assert!(world.receive(&told).await.unwrap().is_duplicate);
    assert_eq!(
        world.subscription("acme").await.unwrap().plan_code.as_str(),
        "later"
    );
    let audited = world.app.store.list_audit(None, 100).await.unwrap().len();
    assert!(world.receive(&told).await.unwrap().is_duplicate);
    assert_eq!(
        world.app.store.list_audit(None, 100).await.unwrap().len(),
        audited
    );
}

#[tokio::test]
async fn an_event_about_nobody_is_kept_and_can_be_replayed() {
    let world = World::start().await;
    for (id, change, why) in [
        (
            "evt_1",
            json!({"customer": "cus_x"}),
            "no tenant has the customer cus_x",
        ),
        (
            "evt_2",
            json!({"metadata": {"tenant_id": "ghost"}}),
            "there is no tenant 'ghost'",
        ),
        (
            "evt_3",
            json!({"metadata": {"plan_code": "ghost"}}),
            "there is no plan 'ghost'",
        ),
    ] {
        let subscription = subscription(&format!("sub_{id}"), change);
        world
            .receive(&changed(id, "updated", 0, &subscription))
            .await
            .unwrap();
        let found = world.app.store.find_webhook(id).await.unwrap().unwrap();
        assert_eq!(found.status, WebhookStatus::Unmatched);
        assert!(found.last_error.unwrap().contains(why), "{why}");
    }
    world.tenant("ghost", "pro", None).await;
    assert!(
        world
            .app
            .store
            .replay_webhook("evt_2", &world.actor())
            .await
            .unwrap()
    );
    world.inner().apply_pending().await.unwrap();
    assert_eq!(status_of(&world, "evt_2").await, WebhookStatus::Applied);
    let found = world.subscription("ghost").await.unwrap();
    assert_eq!(found.processor_customer_id.as_deref(), Some("cus_acme"));
}

#[tokio::test]
async fn what_is_not_stripes_is_refused_and_not_kept() {
    let world = World::start().await;
    let body = changed("evt_1", "updated", 0, &subscription("sub_1", json!({}))).to_string();
    let now = world.clock.now().seconds();
    for (header, is_signature) in [
        (signed("whsec_other", now, &body), true),
        (signed(WEBHOOK_SECRET, now - 301, &body), true),
        (signed(WEBHOOK_SECRET, now, "{}"), true),
        (String::new(), true),
    ] {
        let refused = world
            .inner()
            .receive(&header, body.as_bytes())
            .await
            .unwrap_err();
        assert_eq!(
            matches!(refused, WebhookError::Signature(_)),
            is_signature,
            "{header}: {refused}"
        );
    }
    for body in [
        "",
        "[]",
        "{}",
        r#"{"id":"evt_1"}"#,
        r#"{"id":"evt_1","type":"x"}"#,
    ] {
        let header = signed(WEBHOOK_SECRET, now, body);
        let refused = world
            .inner()
            .receive(&header, body.as_bytes())
            .await
            .unwrap_err();
        assert!(
            matches!(refused, WebhookError::Payload(_)),
            "{body}: {refused}"
        );
    }
    let kept = world.app.store.list_webhooks(None, None, 9).await.unwrap();
    assert_eq!(kept, []);
}

#[tokio::test]
async fn of_two_states_of_one_second_the_one_that_stripe_has_holds() {
    for order in [["evt_1", "evt_2"], ["evt_2", "evt_1"]] {
        let world = World::start().await;
        world.plan("max", &[]).await;
        let now = subscription("sub_1", json!({"items": with_price("pro")}));
        let before = subscription("sub_1", json!({"items": with_price("max")}));
        world.stripe.put_subscription(&now);
        world.clock.advance(HOUR);
        for id in order {
            // The later id is the older state: ids say nothing.
            let state = if id == "evt_1" { &now } else { &before };
            world
                .receive(&changed(id, "updated", 5, state))
                .await
                .unwrap();
        }
        assert_eq!(
            world.subscription("acme").await.unwrap().plan_code.as_str(),
            "pro",
            "{order:?}"
        );
    }
}

/// What matters in the end.
fn essence(subscription: &Subscription) -> (String, SubscriptionStatus, String) {
    let window = subscription.period.window_at(at(NOON));
    (
        subscription.plan_code.to_string(),
        subscription.status,
        window.start().to_string(),
    )
}

/// Of how many events the story is.
pub(super) const STORY: usize = 11;

/// The life of two subscriptions, as Stripe tells it.
fn story() -> [Value; STORY] {
    let one = |change| subscription("sub_1", change);
    let two = |mut change: Value| {
        change["created"] = json!(at(NOON).seconds() + 50);
        subscription("sub_2", change)
    };
    let invoice = |id: &str, kind: &str, seconds: i64, of: &str| {
        let object = json!({"id": "in_1", "subscription": of});
        event(
            id,
            &format!("invoice.{kind}"),
            at(NOON).seconds() + seconds,
            &object,
        )
    };
    [
        changed(
            "evt_01",
            "created",
            0,
            &one(json!({"status": "incomplete"})),
        ),
        changed("evt_02", "updated", 10, &one(json!({}))),
        invoice("evt_03", "paid", 11, "sub_1"),
        changed(
            "evt_04",
            "updated",
            20,
            &one(json!({"items": with_price("max")})),
        ),
        invoice("evt_05", "payment_failed", 30, "sub_1"),
        changed(
            "evt_06",
            "updated",
            31,
            &one(json!({"status": "past_due", "items": with_price("max")})),
        ),
        changed("evt_07", "created", 50, &two(json!({"status": "trialing"}))),
        changed(
            "evt_08",
            "deleted",
            60,
            &one(json!({"status": "canceled", "items": with_price("max")})),
        ),
        changed("evt_09", "paused", 70, &two(json!({"status": "paused"}))),
        changed(
            "evt_10",
            "resumed",
            80,
            &two(json!({"status": "active", "items": with_price("max")})),
        ),
        invoice("evt_11", "payment_failed", 90, "sub_2"),
    ]
}

/// The story's events in this order and with these repeats end as told in order.
pub(super) async fn play(order: &[usize], repeats: &[usize]) {
    let world = World::start().await;
    world.plan("max", &[]).await;
    world.clock.advance(HOUR / 20);
    let story = story();
    for index in order.iter().chain(repeats) {
        world.receive(&story[*index]).await.unwrap();
    }
    // An invoice may come before its subscription: then it comes again, or is replayed.
    for event in &story {
        world.receive(event).await.unwrap();
    }
    let found = world.subscription("acme").await.unwrap();
    assert_eq!(
        essence(&found),
        (
            "max".to_owned(),
            SubscriptionStatus::PastDue,
            "2026-11-20T09:00:00Z".to_owned()
        ),
    );
}
