//! Usage becomes meter events, each counted once.

use std::time::Duration;

use serde_json::json;
use tollgate::{
    billing::stripe::ReconcileAsk,
    domain::{feature::FeatureKey, quantity::Quantity},
};

use super::world::{DAY, HOUR, MINUTE, NOON, SECOND, World, at};
use crate::support::{
    Receiver,
    stripe::{MeterEvent, StripeFault},
};

fn values(events: &[MeterEvent]) -> Vec<i64> {
    events.iter().map(|it| it.value).collect()
}

#[tokio::test]
async fn usage_of_an_interval_is_one_event_within_it() {
    let world = World::start().await;
    for _ in 0..3 {
        world.use_messages(2).await;
        world.clock.advance(9 * SECOND);
    }
    world.clock.advance(MINUTE);
    world.work().await;
    assert_eq!(
        values(&world.stripe.events()),
        [0; 0],
        "requests of it may still run"
    );
    world.clock.advance(MINUTE);
    world.work().await;
    world.work().await;
    let events = world.stripe.events();
    assert_eq!(values(&events), [6]);
    assert_eq!(events[0].customer, "cus_acme");
    assert_eq!(events[0].timestamp, at(NOON).seconds());
    assert!(
        events[0].identifier.len() <= 100,
        "{}",
        events[0].identifier
    );

    // What a request that took long brings in later is told of too, apart.
    world
        .record(
            "acme",
            FeatureKey::Messages,
            5,
            Some(at("2026-11-24T12:00:10Z")),
        )
        .await;
    world.work().await;
    let events = world.stripe.events();
    assert_eq!(values(&events), [6, 5]);
    assert_eq!(events[1].timestamp, at(NOON).seconds());
    assert_ne!(events[1].identifier, events[0].identifier);
    assert_eq!(world.statuses().await, ["sent", "sent"]);
}

#[tokio::test]
async fn at_the_end_of_a_period_everything_of_it_goes_at_once_and_in_it() {
    let world = World::start().await;
    let end = world
        .subscription("acme")
        .await
        .unwrap()
        .period
        .first()
        .end();
    assert_eq!(end, at("2026-12-24T12:00:00Z"));
    world.clock.set(end.minus(SECOND));
    world.use_messages(1).await;
    world.work().await;
    assert_eq!(world.stripe.events().len(), 0);
    world.clock.set(end);
    world.use_messages(2).await;
    world.work().await;
    let events = world.stripe.events();
    assert_eq!(values(&events), [1]);
    assert!(events[0].timestamp < end.seconds());
    // Late, of a period that is over: at once as well.
    world
        .record("acme", FeatureKey::Messages, 4, Some(end.minus(3 * SECOND)))
        .await;
    world.work().await;
    let events = world.stripe.events();
    assert_eq!(values(&events), [1, 4]);
    world.push().await;
    let events = world.stripe.events();
    assert_eq!(values(&events), [1, 4, 2]);
    assert!(end.seconds() <= events[2].timestamp);
}

#[tokio::test]
async fn whatever_fails_a_value_counts_once() {
    for fault in [
        StripeFault::Busy(Some("7")),
        StripeFault::Busy(None),
        StripeFault::Fails,
        StripeFault::AppliesAndFails,
        StripeFault::HangsUp,
        StripeFault::AppliesAndHangsUp,
        StripeFault::WrongKey,
        StripeFault::Slow(Duration::from_millis(50)),
    ] {
        let world = World::start().await;
        world.use_messages(3).await;
        world.stripe.next(fault);
        world.stripe.next(fault);
        world.push().await;
        world.finish().await;
        assert_eq!(world.stripe.sum("cus_acme", "msgs"), 3, "{fault:?}");
        assert_eq!(world.statuses().await, ["sent"], "{fault:?}");
    }
}

#[tokio::test]
async fn an_answer_that_never_comes_is_given_up_and_the_value_counts_once() {
    let world = World::start().await;
    world.use_messages(3).await;
    world.stripe.next(StripeFault::AppliesAndHangs);
    world.push().await;
    let entry = world.entries().await.remove(0);
    let error = entry.last_error.unwrap();
    assert!(error.contains("no answer within 8 s"), "{error}");
    world.finish().await;
    assert_eq!(world.stripe.sum("cus_acme", "msgs"), 3);
    assert_eq!(world.stripe.calls(), 2);
}

#[tokio::test]
async fn a_wish_to_be_left_alone_is_granted() {
    let world = World::start().await;
    world.use_messages(1).await;
    world.stripe.next(StripeFault::Busy(Some("77")));
    world.push().await;
    let next = world.entries().await[0].next_attempt_at.unwrap();
    assert_eq!(next, world.clock.now().plus(77 * SECOND));
}

#[tokio::test]
async fn a_crash_between_the_answer_and_its_note_counts_nothing_twice() {
    let world = World::start().await;
    world.use_messages(3).await;
    world.die(1);
    assert!(world.inner().push().await.is_err());
    assert_eq!(
        world.stripe.sum("cus_acme", "msgs"),
        3,
        "it was told before the end"
    );
    assert_eq!(world.statuses().await, ["pending"]);
    world.clock.advance(31 * SECOND);
    world.push().await;
    assert_eq!(world.stripe.calls(), 2);
    assert_eq!(world.stripe.sum("cus_acme", "msgs"), 3);
    assert_eq!(world.statuses().await, ["sent"]);
}

#[tokio::test]
async fn once_the_identifier_may_be_forgotten_the_sums_decide() {
    for (fault, arrived) in [
        (StripeFault::AppliesAndHangsUp, true),
        (StripeFault::HangsUp, false),
    ] {
        let world = World::start().await;
        world.use_messages(3).await;
        world.push().await;
        world.clock.advance(SECOND);
        world.use_messages(4).await;
        world.stripe.next(fault);
        world.push().await;
        assert_eq!(world.stripe.events().len(), if arrived { 2 } else { 1 });
        world.clock.advance(DAY + HOUR);
        let calls = world.stripe.calls();
        world.push().await;
        assert_eq!(world.stripe.sum("cus_acme", "msgs"), 7, "{fault:?}");
        assert_eq!(world.statuses().await, ["sent", "sent"]);
        assert_eq!(
            world.stripe.calls() == calls,
            arrived,
            "what arrived is not sent again"
        );
    }
}

#[tokio::test]
async fn what_the_sums_can_not_decide_stays_uncertain_until_they_can() {
    let world = World::start().await;
    world.use_messages(3).await;
    world.stripe.next(StripeFault::AppliesAndHangsUp);
    world.push().await;
    world
        .stripe
        .told_by_others("cus_acme", "msgs", 1, at(NOON).seconds());
    world.clock.advance(DAY + HOUR);
    world.push().await;
    assert_eq!(world.statuses().await, ["uncertain"]);
    let entry = &world.entries().await[0];
    let error = entry.last_error.as_deref().unwrap();
    assert!(error.contains("Stripe has 4"), "{error}");
    // Somebody asks for it, and the sums still don't tell.
    let replay = async |id: String| {
        let by = world.actor();
        world.app.outbox.replay(&id, &by).await.unwrap();
        world.send().await;
    };
    replay(entry.identifier.clone()).await;
    assert_eq!(world.statuses().await, ["uncertain"]);
    let other = world.stripe.events()[1].identifier.clone();
    world.stripe.forget_event(&other);
    world.clock.advance(2 * HOUR);
    world.inner().confirm_some().await.unwrap();
    world.send().await;
    assert_eq!(world.statuses().await, ["sent"]);
    assert_eq!(world.stripe.sum("cus_acme", "msgs"), 3);
}

#[tokio::test]
async fn what_stripe_will_never_take_is_dead_is_told_of_once_and_can_be_replayed() {
    let receiver = Receiver::start().await;
    let world = World::start_with(&[("USAGE_WEBHOOK_URL", &receiver.url())]).await;
    world.stripe.add_customer("cus_other");
    world.use_messages(3).await;
    let pushed = world.push().await;
    assert_eq!((pushed.dead, pushed.pending), (1, 0));
    let entry = world.entries().await.remove(0);
    assert!(entry.last_error.unwrap().contains("No such customer"));
    let notice = world
        .app
        .senders
        .iter()
        .find(|it| it.kind().as_str() == "notice");
    world
        .app
        .outbox
        .step(notice.unwrap().as_ref())
        .await
        .unwrap();
    world.push().await;
    world
        .app
        .outbox
        .step(notice.unwrap().as_ref())
        .await
        .unwrap();
    let told = receiver.taken();
    assert_eq!(told.len(), 1);
    let event = told[0].json();
    assert_eq!(event["type"], "tollgate.usage.stripe_entry_dead");
    assert_eq!(event["data"]["code"], "stripe_entry_dead");
    assert_eq!(event["data"]["tenant_slug"], "acme");
    assert_eq!(event["data"]["feature_key"], "messages");
    assert_eq!(event["data"]["value"], 3);
    assert_eq!(event["data"]["identifier"], entry.identifier);

    world.stripe.add_customer("cus_acme");
    world
        .app
        .outbox
        .replay(&entry.identifier, &world.actor())
        .await
        .unwrap();
    world.push().await;
    assert_eq!(world.statuses().await, ["sent"]);
    assert_eq!(world.stripe.sum("cus_acme", "msgs"), 3);
}

#[tokio::test]
async fn usage_that_stripe_takes_no_more_is_named_and_not_sent() {
    let world = World::start().await;
    world.use_messages(3).await;
    world.clock.advance(36 * DAY);
    world.push().await;
    assert_eq!(world.stripe.calls(), 0);
    let entry = world.entries().await.remove(0);
    assert_eq!(entry.status.as_str(), "dead");
    assert!(entry.last_error.unwrap().contains("35 days"));
}

#[tokio::test]
async fn calls_for_one_customer_and_meter_go_one_at_a_time_and_others_do_not_wait() {
    let world = World::start().await;
    world.stripe.add_meter("tokens", json!({}));
    let features = [
        ("input_tokens", Some("tokens")),
        ("output_tokens", Some("tokens")),
    ];
    world.plan("tokens", &features).await;
    for slug in ["one", "two"] {
        world
            .tenant(slug, "tokens", Some(&format!("cus_{slug}")))
            .await;
        for minute in 0..10 {
            let used_at = Some(at(NOON).minus(minute * MINUTE));
            world
                .record(slug, FeatureKey::InputTokens, 10, used_at)
                .await;
            world
                .record(slug, FeatureKey::OutputTokens, 1, used_at)
                .await;
        }
    }
    let pushes = (0..3).map(|_| world.push());
    futures_util::future::join_all(pushes).await;
    world.push().await;
    assert_eq!(world.stripe.lock_timeouts(), 0);
    for customer in ["cus_one", "cus_two"] {
        assert_eq!(world.stripe.sum(customer, "tokens"), 110);
    }
    assert_eq!(world.stripe.events().len(), 40);
}

#[tokio::test]
async fn a_correction_takes_an_event_back_whole_or_is_one_of_its_own() {
    let world = World::start().await;
    // Before anybody was told: nothing is.
    let first = world.use_messages(5).await;
    world.correct(-5, Some(first)).await;
    world.push().await;
    assert_eq!(world.stripe.calls(), 0);

    let second = world.use_messages(7).await;
    world.push().await;
    world.correct(-7, Some(second)).await;
    world.push().await;
    let events = world.stripe.events();
    assert_eq!((events.len(), events[0].is_canceled), (1, true));

    world.clock.advance(MINUTE);
    let third = world.use_messages(9).await;
    world.push().await;
    world.correct(-2, Some(third)).await;
    world.push().await;
    assert_eq!(values(&world.stripe.events())[1..], [9, -2], "a part of it");

    world.clock.advance(MINUTE);
    let fourth = world.use_messages(11).await;
    world.push().await;
    world.clock.advance(2 * DAY);
    world.correct(-11, Some(fourth)).await;
    world.push().await;
    assert_eq!(
        values(&world.stripe.events())[3..],
        [11, -11],
        "too late to cancel it"
    );
    assert_eq!(world.stripe.sum("cus_acme", "msgs"), 7);
    assert_eq!(world.total("acme", &FeatureKey::Messages).await, 7);
}

#[tokio::test]
async fn a_cancel_that_comes_too_late_is_told_as_an_event() {
    let world = World::start().await;
    let used = world.use_messages(7).await;
    world.push().await;
    world.clock.advance(20 * HOUR);
    world.correct(-7, Some(used)).await;
    world.stripe.always(Some(StripeFault::Busy(None)));
    world.push().await;
    assert_eq!(world.entries().await[0].topic.as_deref(), Some("cancel"));
    world.clock.advance(6 * HOUR);
    world.finish().await;
    assert_eq!(values(&world.stripe.events()), [7, -7]);
    assert_eq!(world.stripe.sum("cus_acme", "msgs"), 0);
}

#[tokio::test]
async fn a_cancel_whose_answer_is_lost_takes_back_once() {
    let world = World::start().await;
    let used = world.use_messages(7).await;
    world.push().await;
    world.correct(-7, Some(used)).await;
    world.stripe.next(StripeFault::AppliesAndHangsUp);
    world.push().await;
    world.finish().await;
    assert_eq!(world.stripe.sum("cus_acme", "msgs"), 0);
    assert_eq!(world.stripe.events().len(), 1);
}

#[tokio::test]
async fn usage_waits_for_its_customer() {
    let world = World::start().await;
    world.tenant("late", "pro", None).await;
    world.record("late", FeatureKey::Messages, 4, None).await;
    let pushed = world.push().await;
    assert_eq!((pushed.handed_on, pushed.without_customer), (0, 1));
    world.clock.advance(5 * MINUTE);
    world.work().await;
    assert_eq!(world.stripe.calls(), 0);
    world.set_customer("late", "cus_late").await;
    world.clock.advance(11 * MINUTE);
    world.work().await;
    assert_eq!(world.stripe.sum("cus_late", "msgs"), 4);
}

/// Requests that were in flight when their tenant was deleted end later.
#[tokio::test]
async fn usage_that_comes_after_its_tenant_was_deleted_is_told_and_compared() {
    let world = World::start().await;
    world.use_messages(5).await;
    world.use_messages_later(4).await;
    world.delete("acme").await;
    world.app.recorder.flush().await.unwrap();
    world.clock.advance(5 * MINUTE);
    world.work().await;
    assert_eq!(world.stripe.sum("cus_acme", "msgs"), 9);
    let found = world.reconcile().await;
    let acme = &found[0];
    assert_eq!((found.len(), acme.tenant_slug.as_str()), (1, "acme"));
    assert_eq!((acme.used.get(), acme.at_stripe.get()), (9, 9));
    let named = ReconcileAsk {
        tenant: Some("acme".parse().unwrap()),
        window: None,
    };
    assert_eq!(world.inner().reconcile(&named).await.unwrap(), found);

    world.clock.advance(62 * DAY);
    assert_eq!(world.reconcile().await, [], "nothing was used since");
}

#[tokio::test]
async fn a_meter_that_would_bill_wrongly_is_not_told_and_goes_on_once_it_is_mended() {
    let world = World::start().await;
    world.stripe.add_meter(
        "counts",
        json!({"default_aggregation": {"formula": "count"}}),
    );
    world.plan("counted", &[("messages", Some("counts"))]).await;
    world.tenant("other", "counted", Some("cus_other")).await;
    world.record("other", FeatureKey::Messages, 4, None).await;
    world.push().await;
    assert_eq!(world.stripe.calls(), 0);
    let entry = world.entries().await.remove(0);
    assert!(entry.last_error.unwrap().contains("aggregates by 'count'"));
    world
        .stripe
        .add_meter("counts", json!({"id": "mtr_counts"}));
    world.finish().await;
    assert_eq!(world.stripe.sum("cus_other", "counts"), 4);
}

#[tokio::test]
async fn a_meters_own_keys_are_used() {
    let world = World::start().await;
    let keys = json!({
        "customer_mapping": {"type": "by_id", "event_payload_key": "who"},
        "value_settings": {"event_payload_key": "many"},
    });
    world.stripe.add_meter("own", keys);
    world.plan("own", &[("messages", Some("own"))]).await;
    world.tenant("own", "own", Some("cus_own")).await;
    world.record("own", FeatureKey::Messages, 4, None).await;
    world.push().await;
    assert_eq!(world.stripe.sum("cus_own", "own"), 4);
}

#[tokio::test]
async fn a_repeated_event_counts_once_at_stripe_too() {
    let world = World::start().await;
    let event = world.use_messages(3).await;
    let stored = world.app.store.find_event(event).await.unwrap().unwrap();
    // As after a restart that finds it in the journal once more.
    world.app.recorder.settle(None, &stored).await.unwrap();
    world.app.recorder.flush().await.unwrap();
    world.push().await;
    assert_eq!(world.stripe.sum("cus_acme", "msgs"), 3);
}

#[tokio::test]
async fn the_statement_says_what_stripe_was_told() {
    let world = World::start().await;
    world.use_messages(5).await;
    world.push().await;
    world.use_messages(2).await;
    let ask = tollgate::services::statement::StatementAsk {
        tenant: "acme".parse().unwrap(),
        features: vec![FeatureKey::Messages],
        start: None,
        end: None,
    };
    let line = world
        .app
        .statements
        .of(&ask)
        .await
        .unwrap()
        .features
        .remove(0);
    let numbers = (line.settled, line.sent_to_stripe, line.difference);
    assert_eq!(
        numbers,
        (Quantity::new(7), Quantity::new(5), Quantity::new(2))
    );
    world.push().await;
    let line = world
        .app
        .statements
        .of(&ask)
        .await
        .unwrap()
        .features
        .remove(0);
    assert_eq!(line.difference, Quantity::ZERO);
    // Entries of the outbox go after some days; what was told stays.
    world.clock.advance(20 * DAY);
    world
        .app
        .store
        .prune_outbox(world.clock.now(), 100)
        .await
        .unwrap();
    let line = world
        .app
        .statements
        .of(&ask)
        .await
        .unwrap()
        .features
        .remove(0);
    assert_eq!(line.sent_to_stripe, Quantity::new(7));
}
