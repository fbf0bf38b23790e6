//! Both sides are compared, and each difference has its reason; features and meters are kept in step.

use serde_json::json;
use tollgate::{
    billing::stripe::{Reconciled, SyncAsk},
    domain::feature::FeatureKey,
};

use super::world::{DAY, HOUR, MINUTE, NOON, SECOND, World, at, subscription, with_price};
use crate::support::stripe::StripeFault;

fn reasons(found: &Reconciled) -> Vec<(&'static str, i64)> {
    let reasons = found.reasons.iter();
    reasons.map(|it| (it.reason, it.quantity.get())).collect()
}

fn of<'a>(found: &'a [Reconciled], slug: &str) -> &'a Reconciled {
    found.iter().find(|it| it.tenant_slug == slug).unwrap()
}

#[tokio::test]
async fn what_was_sent_is_confirmed_once_it_is_in_the_sums() {
    let world = World::start().await;
    world.stripe.set_summary_lag(600);
    world.use_messages(5).await;
    world.push().await;
    world.clock.advance(6 * MINUTE);
    assert_eq!(world.inner().confirm_some().await.unwrap(), 0);
    assert_eq!(
        reasons(of(&world.reconcile().await, "acme")),
        [("not_counted_yet", 5)]
    );
    world.clock.advance(5 * MINUTE);
    assert_eq!(world.inner().confirm_some().await.unwrap(), 1);
    assert_eq!(world.statuses().await, ["confirmed"]);
    let found = world.reconcile().await;
    let acme = of(&found, "acme");
    assert_eq!((acme.used, acme.at_stripe), (acme.at_stripe, acme.used));
    assert_eq!(reasons(acme), []);
}

#[tokio::test]
async fn each_seeded_difference_is_named_with_its_reason() {
    let world = World::start().await;
    world.stripe.add_customer("cus_acme");
    for slug in ["waits", "pends", "stranger", "more", "less"] {
        let customer = format!("cus_{slug}");
        if slug != "stranger" {
            world.stripe.add_customer(&customer);
        }
        world.tenant(slug, "pro", Some(&customer)).await;
    }
    world.tenant("nobody", "pro", None).await;
    // Before the plan had its meter, and so told to nobody.
    world.plan("plain", &[("messages", None)]).await;
    world.tenant("before", "plain", Some("cus_before")).await;
    world.stripe.add_customer("cus_before");
    world.record("before", FeatureKey::Messages, 6, None).await;
    let moved = tollgate::services::tenants::SubscriptionChange {
        plan_code: Some("pro".parse().unwrap()),
        ..Default::default()
    };
    world.subscribe("before", moved).await;

    for slug in ["acme", "stranger", "more", "less"] {
        world.record(slug, FeatureKey::Messages, 5, None).await;
    }
    world.push().await;
    world.record("nobody", FeatureKey::Messages, 4, None).await;
    world.record("pends", FeatureKey::Messages, 3, None).await;
    world.stripe.always(Some(StripeFault::Busy(None)));
    world.push().await;
    world.stripe.always(None);
    world.record("waits", FeatureKey::Messages, 2, None).await;
    world
        .stripe
        .told_by_others("cus_more", "msgs", 9, at(NOON).seconds());
    let lost = world.stripe.events();
    let lost = lost.iter().find(|it| it.customer == "cus_less").unwrap();
    world.stripe.forget_event(&lost.identifier);
    // What is old enough and still not there is missing.
    let found = world.reconcile().await;
    for (slug, expected) in [
        ("acme", vec![]),
        ("waits", vec![("waiting", 2)]),
        ("pends", vec![("pending", 3)]),
        ("stranger", vec![("dead", 5)]),
        ("nobody", vec![("no_customer", 4)]),
        ("before", vec![("not_told", 6)]),
        ("more", vec![("not_ours", -9)]),
        ("less", vec![("not_counted_yet", 5)]),
    ] {
        let found = of(&found, slug);
        assert_eq!(reasons(found), expected, "{slug}");
        let sum: i64 = expected.iter().map(|(_, quantity)| quantity).sum();
        assert_eq!(found.difference.get(), sum, "{slug}");
    }
}

#[tokio::test]
async fn periods_that_begin_within_a_minute_are_told_apart() {
    let world = World::start().await;
    let start = at("2026-11-24T12:00:30Z");
    world.clock.set(start);
    let period = tollgate::services::tenants::SubscriptionChange {
        period_start: Some(start),
        period_end: Some(at("2026-12-24T12:00:30Z")),
        ..Default::default()
    };
    world.subscribe("acme", period).await;
    world
        .record(
            "acme",
            FeatureKey::Messages,
            7,
            Some(start.minus(5 * SECOND)),
        )
        .await;
    world.use_messages(2).await;
    world.push().await;
    assert_eq!(world.stripe.sum("cus_acme", "msgs"), 9);
    let found = world.reconcile().await;
    let acme = of(&found, "acme");
    assert_eq!((acme.used.get(), acme.at_stripe.get()), (2, 2));
}

#[tokio::test]
async fn features_are_brought_to_the_products_of_their_plans() {
    let world = World::start().await;
    world
        .plan("free", &[("messages", None), ("input_tokens", None)])
        .await;
    world.stripe.add_product("prod_pro", json!({}));
    world.stripe.add_price("pro", "prod_pro");
    world
        .stripe
        .add_product("prod_free", json!({"plan_code": "free"}));
    world.plan("internal", &[("messages", None)]).await;
    let synced = world.inner().sync(&SyncAsk::default()).await.unwrap();
    let products: Vec<(String, Option<String>)> = synced
        .plans
        .into_iter()
        .map(|it| (it.plan_code, it.product))
        .collect();
    let named = |plan: &str, product: Option<&str>| (plan.to_owned(), product.map(str::to_owned));
    assert_eq!(
        products,
        [
            named("free", Some("prod_free")),
            named("internal", None),
            named("pro", Some("prod_pro"))
        ]
    );
    assert_eq!(world.stripe.features_of("prod_pro"), ["messages"]);
    assert_eq!(
        world.stripe.features_of("prod_free"),
        ["messages", "input_tokens"]
    );
    let writes = world.stripe.writes();
    world.inner().sync(&SyncAsk::default()).await.unwrap();
    assert_eq!(world.stripe.writes(), writes, "again changes nothing");
}

#[tokio::test]
async fn a_faulty_meter_stops_the_sync_before_anything_is_written() {
    let world = World::start().await;
    world.stripe.add_product("prod_pro", json!({}));
    world.stripe.add_price("pro", "prod_pro");
    world.plan("bad", &[("messages", Some("nowhere"))]).await;
    let refused = world.inner().sync(&SyncAsk::default()).await.unwrap_err();
    assert!(
        refused.to_string().contains("there is no meter 'nowhere'"),
        "{refused}"
    );
    assert_eq!(world.stripe.writes(), [""; 0]);
    let only = SyncAsk {
        plans: vec!["PRO".to_owned()],
    };
    world.inner().sync(&only).await.unwrap();
    assert_eq!(world.stripe.features_of("prod_pro"), ["messages"]);
}

#[tokio::test]
async fn a_missed_webhook_is_made_up_for_by_a_sync() {
    let world = World::start().await;
    world.plan("max", &[("messages", Some("msgs"))]).await;
    world
        .stripe
        .put_subscription(&subscription("sub_1", json!({"items": with_price("max")})));
    world
        .stripe
        .put_subscription(&subscription("sub_9", json!({"customer": "cus_unknown"})));
    let synced = world.inner().sync(&SyncAsk::default()).await.unwrap();
    assert_eq!((synced.subscriptions, synced.unmatched.len()), (1, 1));
    let subscription = world.subscription("acme").await.unwrap();
    assert_eq!(subscription.plan_code.as_str(), "max");
    assert_eq!(
        subscription.period.first().end(),
        at("2026-12-20T09:00:00Z")
    );
    // What Stripe says after that look wins, what it said before does not.
    world.clock.advance(HOUR);
    let before = super::world::changed(
        "evt_1",
        "updated",
        -60,
        &super::world::subscription("sub_1", json!({})),
    );
    world.receive(&before).await.unwrap();
    assert_eq!(
        world.subscription("acme").await.unwrap().plan_code.as_str(),
        "max"
    );
    let after = super::world::changed(
        "evt_2",
        "updated",
        60,
        &super::world::subscription("sub_1", json!({})),
    );
    world.receive(&after).await.unwrap();
    assert_eq!(
        world.subscription("acme").await.unwrap().plan_code.as_str(),
        "pro"
    );
    world.clock.advance(DAY);
}
