//! Usage on its way to Stripe, and what Stripe tells: what is new counts once, what is older changes nothing.

use std::time::Duration;

use super::{SharedStore, ada, at, by, position, stored_plan, subscription, tenant, window};
use crate::{
    clock::new_id,
    domain::{
        feature::FeatureKey,
        ids::{EventId, TenantId},
        processor::{Payment, ProcessorSubscription, order},
        quantity::Quantity,
        subscription::SubscriptionStatus,
        tenant::Tenant,
        time::Timestamp,
        usage::{Quantities, Source, UsageEvent},
    },
    store::{
        outbox::{Ending, Finished, Kind, Lease, Leased, NewEntry, OutboxFilter, Status},
        stripe::{HandedOn, LaneSums, MeterSums, MeterUse, Slot, Unconfirmed, Which},
        usage::Tell,
        webhooks::{Arrival, Webhook, WebhookEnding, WebhookStatus},
    },
};

macro_rules! cases {
    ($open:path) => {
        $crate::store::contract::run!(
            $open,
            stripe,
            usage_comes_together_once_and_leaves_as_one_entry,
            a_slot_without_a_customer_waits_for_one,
            what_was_sent_is_summed_and_confirmed,
            what_takes_an_event_back_whole_cancels_it,
            doubt_begins_with_a_lease_and_ends_with_an_answer,
            what_an_ending_brings_about_goes_in_with_it,
            a_webhook_is_kept_once_and_one_that_failed_is_due_again,
            older_news_of_a_subscription_change_nothing,
            a_customer_leads_to_its_tenant,
        );
    };
}
pub(crate) use cases;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn noon() -> Timestamp {
    at("2026-01-02T12:00:00Z")
}

async fn acme(store: &SharedStore, customer: Option<&str>) -> Tenant {
    let plan = stored_plan(store, "starter").await;
    let mut acme = tenant("acme");
    let mut subscription = subscription(&plan.code);
    subscription.processor_customer_id = customer.map(str::to_owned);
    acme.subscription = Some(subscription);
    store.create_tenant(&acme, &ada()).await.unwrap();
    acme
}

fn used(tenant: TenantId, quantity: i64) -> UsageEvent {
    UsageEvent {
        event_id: EventId::new(new_id()),
        request_id: String::new(),
        source: Source::Chat,
        tenant_id: tenant,
        key_id: None,
        user: String::new(),
        model: None,
        quantities: Quantities::default().with(FeatureKey::Messages, Quantity::new(quantity)),
        estimated: false,
        reason: None,
        price_id: None,
        admitted_at: noon(),
        recorded_at: noon(),
    }
}

/// Of the minute at noon, due an hour later.
fn metered(event: &UsageEvent) -> MeterUse {
    MeterUse {
        event: event.event_id,
        slot: Slot {
            tenant: event.tenant_id,
            feature: FeatureKey::Messages,
            meter: "msgs".to_owned(),
            start: noon(),
            period_start: at("2026-01-01T00:00:00Z"),
        },
        due_at: noon().plus(HOUR),
        customer: None,
        quantity: event.quantities.of(&FeatureKey::Messages),
    }
}

async fn record(store: &SharedStore, events: &[UsageEvent]) {
    let tell = Tell {
        meters: events.iter().map(metered).collect(),
        ..Tell::default()
    };
    store.record(events, position(1), &tell).await.unwrap();
}

async fn hand_on(store: &SharedStore, which: Which, now: Timestamp) -> HandedOn {
    let again = now.plus(HOUR);
    store.hand_on(which, now, again, 10).await.unwrap()
}

async fn lease(store: &SharedStore, now: Timestamp) -> Vec<Leased> {
    let lease = Lease {
        kind: Kind::StripeMeterEvent,
        now,
        until: now.plus(30 * SECOND),
        limit: 10,
    };
    store.lease(lease).await.unwrap()
}

async fn end(store: &SharedStore, leased: &Leased, ending: Ending, now: Timestamp) {
    let finished = Finished {
        identifier: leased.identifier.clone(),
        attempts: leased.attempts,
        doubt_since: None,
        ending,
        tell: Vec::new(),
    };
    store.finish(&[finished], now).await.unwrap();
}

/// Leases what is due and notes it as sent.
async fn send(store: &SharedStore, now: Timestamp) -> Vec<Leased> {
    let leased = lease(store, now).await;
    for it in &leased {
        end(store, it, Ending::Sent, now).await;
    }
    leased
}

pub(crate) async fn usage_comes_together_once_and_leaves_as_one_entry(store: &SharedStore) {
    let acme = acme(store, Some("cus_1")).await.tenant_id;
    let (one, two) = (used(acme, 3), used(acme, 4));
    record(store, &[one.clone(), two.clone()]).await;
    record(store, &[two, used(acme, 5)]).await;
    assert_eq!(store.count_waiting().await, Ok((1, Some(noon()))));
    let soon = noon().plus(SECOND);
    assert_eq!(hand_on(store, Which::Due, soon).await, HandedOn::default());
    let due = noon().plus(HOUR);
    assert_eq!(hand_on(store, Which::Due, due).await.entries, 1);
    assert_eq!(hand_on(store, Which::Due, due).await, HandedOn::default());
    record(store, &[used(acme, 1)]).await;
    assert_eq!(hand_on(store, Which::All, soon).await.entries, 1);
    let leased = send(store, due).await;
    assert_eq!(leased.len(), 1, "a lane goes one at a time");
    let first = &leased[0];
    assert_eq!(
        first.value,
        Some(Quantity::new(1)),
        "that of {soon} is older"
    );
    assert_eq!((first.tenant, first.about_at), (Some(acme), Some(noon())));
    assert_eq!(first.lane.as_deref(), Some("cus_1/msgs"));
    let second = send(store, due).await.remove(0);
    assert_eq!(second.value, Some(Quantity::new(12)));
    let prefix = |it: &Leased| it.identifier.rsplit_once('-').unwrap().0.to_owned();
    assert_eq!(prefix(&second), prefix(first));
    assert_ne!(second.identifier, first.identifier);
}

pub(crate) async fn a_slot_without_a_customer_waits_for_one(store: &SharedStore) {
    let acme = acme(store, None).await;
    record(store, &[used(acme.tenant_id, 3)]).await;
    let due = noon().plus(HOUR);
    assert_eq!(hand_on(store, Which::All, due).await, HandedOn::default());
    assert_eq!(hand_on(store, Which::Due, due).await.without_customer, 1);
    assert_eq!(hand_on(store, Which::Due, due).await, HandedOn::default());
    let mut subscription = acme.subscription.unwrap();
    subscription.processor_customer_id = Some("cus_late".to_owned());
    store
        .set_subscription(acme.tenant_id, &subscription, None, &ada())
        .await
        .unwrap();
    assert_eq!(hand_on(store, Which::Due, due.plus(HOUR)).await.entries, 1);
    let leased = lease(store, due.plus(HOUR)).await;
    assert_eq!(leased[0].lane.as_deref(), Some("cus_late/msgs"));
}

pub(crate) async fn what_was_sent_is_summed_and_confirmed(store: &SharedStore) {
    let acme = acme(store, Some("cus_1")).await.tenant_id;
    record(store, &[used(acme, 3)]).await;
    hand_on(store, Which::All, noon()).await;
    let january = window("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    let sums = async || {
        store
            .meter_sums(acme, &FeatureKey::Messages, january)
            .await
            .unwrap()
    };
    let three = Quantity::new(3);
    assert_eq!(
        sums().await,
        MeterSums {
            pending: three,
            ..MeterSums::default()
        }
    );
    let sent = send(store, noon()).await;
    record(store, &[used(acme, 4)]).await;
    assert_eq!(
        sums().await,
        MeterSums {
            waiting: Quantity::new(4),
            unconfirmed: three,
            told: three,
            ..MeterSums::default()
        }
    );
    let features = [FeatureKey::Cost, FeatureKey::Messages];
    let told = store.told(acme, &features, january).await;
    assert_eq!(told, Ok(vec![Quantity::ZERO, three]));
    let february = window("2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z");
    let told = store.told(acme, &features[1..], february).await;
    assert_eq!(told, Ok(vec![Quantity::ZERO]));

    let minute = window("2026-01-02T12:00:00Z", "2026-01-02T12:01:00Z");
    let lane = "cus_1/msgs";
    let of_lane = store.lane_sums(lane, minute, "").await;
    assert_eq!(of_lane.unwrap().sent, three);
    let but = store.lane_sums(lane, minute, &sent[0].identifier).await;
    assert_eq!(but, Ok(LaneSums::default()));
    let unconfirmed = store.list_unconfirmed(noon(), "", 9).await;
    assert_eq!(unconfirmed, Ok(vec![]), "it was sent just now");
    let later = noon().plus(SECOND);
    let expected = Unconfirmed {
        lane: lane.to_owned(),
        first: noon(),
        last: noon(),
    };
    let unconfirmed = store.list_unconfirmed(later, "", 9).await;
    assert_eq!(unconfirmed, Ok(vec![expected]));
    assert_eq!(store.list_unconfirmed(later, lane, 9).await, Ok(vec![]));
    assert_eq!(store.confirm(lane, minute, later).await, Ok(1));
    assert_eq!(store.confirm(lane, minute, later).await, Ok(0));
    assert_eq!(sums().await.unconfirmed, Quantity::ZERO);
}

pub(crate) async fn what_takes_an_event_back_whole_cancels_it(store: &SharedStore) {
    let acme = acme(store, Some("cus_1")).await.tenant_id;
    record(store, &[used(acme, 3)]).await;
    hand_on(store, Which::All, noon()).await;
    let first = send(store, noon()).await.remove(0);
    for (quantity, hours, topic) in [(-2, 1, "usage"), (-3, 2, "cancel"), (-3, 3, "usage")] {
        record(store, &[used(acme, quantity)]).await;
        let now = noon().plus(HOUR * hours);
        hand_on(store, Which::All, now).await;
        let leased = send(store, now).await.remove(0);
        assert_eq!(
            leased.topic.as_deref(),
            Some(topic),
            "{quantity} after {hours} h"
        );
        assert_eq!(
            leased.payload.contains(&first.identifier),
            topic == "cancel"
        );
    }
    let all = store.list_outbox(&OutboxFilter::default(), None, 9).await;
    let original = all.unwrap().pop().unwrap();
    assert_eq!(original.topic.as_deref(), Some("canceled"));
}

pub(crate) async fn doubt_begins_with_a_lease_and_ends_with_an_answer(store: &SharedStore) {
    let acme = acme(store, Some("cus_1")).await.tenant_id;
    record(store, &[used(acme, 3)]).await;
    hand_on(store, Which::All, noon()).await;
    let first = lease(store, noon()).await.remove(0);
    assert_eq!(first.doubt_since, None, "nothing was tried before");
    let again = noon().plus(30 * SECOND);
    let second = lease(store, again).await.remove(0);
    assert_eq!(
        second.doubt_since,
        Some(noon()),
        "nothing was heard of the first"
    );
    let finished = Finished {
        identifier: second.identifier.clone(),
        attempts: second.attempts,
        doubt_since: None,
        ending: Ending::Retry {
            at: again,
            error: "busy".to_owned(),
        },
        tell: Vec::new(),
    };
    store.finish(&[finished], again).await.unwrap();
    let third = lease(store, again).await.remove(0);
    assert_eq!(third.doubt_since, None);
    let uncertain = Ending::Uncertain {
        error: "?".to_owned(),
    };
    end(store, &third, uncertain, again).await;
    assert_eq!(store.look_again(again, 9).await, Ok(1));
    assert_eq!(lease(store, again).await.len(), 1);
}

pub(crate) async fn what_an_ending_brings_about_goes_in_with_it(store: &SharedStore) {
    let acme = acme(store, Some("cus_1")).await.tenant_id;
    record(store, &[used(acme, 3)]).await;
    hand_on(store, Which::All, noon()).await;
    let leased = lease(store, noon()).await.remove(0);
    let notice = NewEntry {
        identifier: "notice".to_owned(),
        kind: Kind::Notice,
        topic: None,
        tenant: None,
        feature: None,
        value: None,
        lane: None,
        about: None,
        payload: String::new(),
        created_at: noon(),
    };
    let finished = |attempts| Finished {
        identifier: leased.identifier.clone(),
        attempts,
        doubt_since: None,
        ending: Ending::Dead {
            error: "no".to_owned(),
        },
        tell: vec![notice.clone()],
    };
    let notices = async || {
        let filter = OutboxFilter {
            kind: Some(Kind::Notice),
            ..OutboxFilter::default()
        };
        store.list_outbox(&filter, None, 9).await.unwrap().len()
    };
    store.finish(&[finished(9)], noon()).await.unwrap();
    assert_eq!(
        notices().await,
        0,
        "an attempt that was lost brings nothing about"
    );
    store.finish(&[finished(1)], noon()).await.unwrap();
    assert_eq!(notices().await, 1);
    let dead = store.list_outbox(&OutboxFilter::default(), None, 9).await;
    assert!(dead.unwrap().iter().any(|it| it.status == Status::Dead));
}

fn webhook(event_id: &str, happened_at: Timestamp) -> Webhook {
    Webhook {
        event_id: event_id.to_owned(),
        event_type: "customer.subscription.updated".to_owned(),
        object_id: "sub_1".to_owned(),
        happened_at,
        received_at: noon(),
        tenant: None,
        tenant_slug: None,
        status: WebhookStatus::Pending,
        attempts: 0,
        last_error: None,
        next_attempt_at: Some(noon()),
        payload: "{}".to_owned(),
    }
}

pub(crate) async fn a_webhook_is_kept_once_and_one_that_failed_is_due_again(store: &SharedStore) {
    let acme = acme(store, None).await;
    let (one, two) = (
        webhook("evt_1", noon()),
        webhook("evt_2", noon().minus(SECOND)),
    );
    for it in [&one, &two] {
        assert_eq!(store.receive_webhook(it).await, Ok(Arrival::New));
    }
    let again = store.receive_webhook(&one).await;
    assert_eq!(again, Ok(Arrival::Again(WebhookStatus::Pending)));
    let due = async |now| {
        let due = store.list_due_webhooks(now, 9).await.unwrap();
        due.into_iter().map(|it| it.event_id).collect::<Vec<_>>()
    };
    assert_eq!(due(noon()).await, ["evt_2", "evt_1"], "as it happened");
    let error = || "no".to_owned();
    let retry = WebhookEnding::Retry {
        at: noon().plus(SECOND),
        error: error(),
    };
    store.end_webhook("evt_1", &retry).await.unwrap();
    assert_eq!(due(noon()).await, ["evt_2"]);
    store
        .end_webhook("evt_1", &WebhookEnding::Dead { error: error() })
        .await
        .unwrap();
    let applied = WebhookEnding::Applied {
        tenant: acme.tenant_id,
    };
    store.end_webhook("evt_2", &applied).await.unwrap();
    assert_eq!(due(noon().plus(HOUR)).await, [""; 0]);
    let found = store.find_webhook("evt_2").await.unwrap().unwrap();
    assert_eq!(
        (found.status, found.tenant_slug.as_deref()),
        (WebhookStatus::Applied, Some("acme"))
    );
    let again = store.receive_webhook(&two).await;
    assert_eq!(again, Ok(Arrival::Again(WebhookStatus::Applied)));
    let again = store.receive_webhook(&one).await;
    assert_eq!(again, Ok(Arrival::Again(WebhookStatus::Dead)));
    assert_eq!(due(noon()).await, ["evt_1"]);
    assert_eq!(
        store.find_webhook("evt_1").await.unwrap().unwrap().attempts,
        0
    );

    assert_eq!(
        store.replay_webhook("evt_1", &ada()).await,
        Ok(false),
        "it is pending"
    );
    assert_eq!(store.replay_webhook("none", &ada()).await, Ok(false));
    assert_eq!(
        store
            .replay_webhook("evt_2", &by("2026-01-02T12:00:00Z"))
            .await,
        Ok(true)
    );
    let audit = store.list_audit(None, 1).await.unwrap().remove(0);
    assert_eq!(
        (audit.action.as_str(), audit.target.as_str()),
        ("webhook.replay", "evt_2")
    );
    store.end_webhook("evt_2", &applied).await.unwrap();
    let listed = store.list_webhooks(None, None, 1).await.unwrap();
    let last = (listed[0].received_at, listed[0].event_id.clone());
    let rest = store.list_webhooks(None, Some(last), 9).await.unwrap();
    assert_eq!(
        (listed[0].event_id.as_str(), rest[0].event_id.as_str()),
        ("evt_2", "evt_1")
    );
    let applied = store
        .list_webhooks(Some(WebhookStatus::Applied), None, 9)
        .await;
    assert_eq!(applied.unwrap().len(), 1);
    assert_eq!(store.prune_webhooks(noon().plus(SECOND), 9).await, Ok(1));
    assert_eq!(store.find_webhook("evt_2").await, Ok(None));
}

fn state(status: SubscriptionStatus) -> ProcessorSubscription {
    ProcessorSubscription {
        subscription_id: "sub_1".to_owned(),
        customer_id: "cus_9".to_owned(),
        plan_code: "starter".parse().unwrap(),
        status,
        created_at: noon(),
        period_start: noon(),
        period_end: noon().plus(HOUR),
        anchor: None,
        months: Some(1),
    }
}

pub(crate) async fn older_news_of_a_subscription_change_nothing(store: &SharedStore) {
    let acme = acme(store, None).await.tenant_id;
    let order_at = |seconds| order(Timestamp::from_seconds(seconds), 1, "evt");
    store
        .note_payment("sub_1", Payment::Failed, &order_at(5))
        .await
        .unwrap();
    let known = store.find_known("sub_1").await.unwrap().unwrap();
    assert_eq!(
        (known.tenant, known.state, known.payment),
        (None, None, Some(Payment::Failed))
    );
    let new = state(SubscriptionStatus::Active);
    store
        .note_state(&new, &order_at(10), Some(acme))
        .await
        .unwrap();
    let old = state(SubscriptionStatus::PastDue);
    store.note_state(&old, &order_at(9), None).await.unwrap();
    store
        .note_payment("sub_1", Payment::Paid, &order_at(4))
        .await
        .unwrap();
    let known = store.list_known(acme).await.unwrap();
    assert_eq!(known.len(), 1);
    assert_eq!(known[0].state, Some(new));
    assert_eq!(known[0].state_order, order_at(10));
    assert_eq!(
        (known[0].payment, &known[0].payment_order),
        (Some(Payment::Failed), &order_at(5))
    );
    store.note_state(&old, &order_at(11), None).await.unwrap();
    let known = store.list_known(acme).await.unwrap();
    assert_eq!(known[0].state, Some(old), "whose it is stays known");
}

pub(crate) async fn a_customer_leads_to_its_tenant(store: &SharedStore) {
    let acme = acme(store, Some("cus_1")).await.tenant_id;
    let of = async |customer| store.find_tenant_of_customer(customer).await.unwrap();
    assert_eq!((of("cus_1").await, of("cus_9").await), (Some(acme), None));
    let order = order(noon(), 1, "evt");
    store
        .note_state(&state(SubscriptionStatus::Active), &order, Some(acme))
        .await
        .unwrap();
    assert_eq!(of("cus_9").await, Some(acme));
    store.delete_tenant(acme, None, &ada()).await.unwrap();
    assert_eq!((of("cus_1").await, of("cus_9").await), (None, None));
}
