//! Usage on its way to Stripe: each quantity is in one place at a time, and none is lost between them.

use std::time::Duration;

use super::{SharedStore, ada, at, new_tenant_id, position, stored_plan, stored_tenant, window};
use crate::{
    clock::new_id,
    domain::{
        feature::FeatureKey,
        ids::{EventId, TenantId},
        quantity::Quantity,
        subscription::Subscription,
        time::Timestamp,
        usage::{Quantities, Source, UsageEvent},
        window::Window,
    },
    store::{
        outbox::{Ending, Finished, Kind, Lease, Leased, NewEntry, OutboxFilter, Status},
        stripe::{
            HandedOn, LaneSums, MeterPayload, MeterSums, MeterUse, Slot, Unconfirmed, Which, lane,
        },
        usage::Tell,
    },
};

macro_rules! cases {
    ($open:path) => {
        $crate::store::contract::run!(
            $open,
            stripe,
            usage_of_a_slot_comes_together_and_only_that_of_new_events,
            a_slot_is_handed_on_once_it_is_due_and_is_one_entry,
            a_push_takes_all_that_was_used_up_to_now,
            a_slot_waits_for_its_customer,
            what_comes_late_is_an_entry_of_its_own,
            slots_of_one_second_are_entries_of_their_own,
            usage_that_was_taken_back_before_anybody_was_told_is_not_told,
            usage_that_was_taken_back_cancels_its_entry_once,
            an_entry_that_may_have_arrived_in_vain_is_not_canceled,
            an_attempt_of_which_nothing_was_heard_leaves_a_doubt,
            what_others_are_told_of_an_ending_goes_in_with_it,
            each_quantity_is_in_one_sum,
            what_was_told_counts_in_its_hour_and_its_period,
            what_was_sent_is_confirmed_lane_by_lane,
            what_is_uncertain_is_looked_at_again,
        );
    };
}
pub(crate) use cases;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

fn noon() -> Timestamp {
    at("2026-01-10T12:00:00Z")
}

fn period() -> Timestamp {
    at("2026-01-01T00:00:00Z")
}

fn slot(tenant: TenantId, start: Timestamp) -> Slot {
    Slot {
        tenant,
        feature: FeatureKey::Messages,
        meter: "msgs".to_owned(),
        start,
        period_start: period(),
    }
}

fn used(slot: &Slot, quantity: i64, customer: Option<&str>) -> (UsageEvent, MeterUse) {
    let event = UsageEvent {
        event_id: EventId::new(new_id()),
        request_id: String::new(),
        source: Source::Chat,
        tenant_id: slot.tenant,
        key_id: None,
        user: String::new(),
        model: None,
        quantities: Quantities::default().with(slot.feature.clone(), Quantity::new(quantity)),
        estimated: false,
        reason: None,
        price_id: None,
        admitted_at: slot.start,
        recorded_at: slot.start,
    };
    let counts = MeterUse {
        event: event.event_id,
        slot: slot.clone(),
        due_at: slot.start.plus(2 * MINUTE),
        customer: customer.map(str::to_owned),
        quantity: Quantity::new(quantity),
    };
    (event, counts)
}

async fn record(store: &SharedStore, used: &[(UsageEvent, MeterUse)]) {
    let (events, meters): (Vec<_>, Vec<_>) = used.iter().cloned().unzip();
    let tell = Tell {
        meters,
        ..Tell::default()
    };
    store
        .record(events.as_slice().into(), position(1), tell)
        .await
        .unwrap();
}

/// Usage of `quantity` in a slot of customer `cus_1`.
async fn use_in(store: &SharedStore, slot: &Slot, quantity: i64) {
    record(store, &[used(slot, quantity, Some("cus_1"))]).await;
}

async fn hand_on(store: &SharedStore, which: Which, now: Timestamp) -> HandedOn {
    let handed_on = store.hand_on(which, now, now.plus(10 * MINUTE), 100);
    handed_on.await.unwrap()
}

async fn push(store: &SharedStore, now: Timestamp) -> u64 {
    hand_on(store, Which::All, now).await.entries
}

async fn lease(store: &SharedStore, now: Timestamp) -> Vec<Leased> {
    let lease = Lease {
        kind: Kind::StripeMeterEvent,
        now,
        until: now.plus(30 * SECOND),
        limit: 100,
    };
    store.lease(lease).await.unwrap()
}

fn ended(leased: &Leased, doubt_since: Option<Timestamp>, ending: Ending) -> Finished {
    Finished {
        identifier: leased.identifier.clone(),
        attempts: leased.attempts,
        doubt_since,
        ending,
        tell: vec![],
    }
}

async fn end(store: &SharedStore, leased: &Leased, ending: Ending, now: Timestamp) {
    let finished = ended(leased, None, ending);
    store.finish(&[finished], now).await.unwrap();
}

/// Sends what is due, lane by lane; the values, in order.
async fn send(store: &SharedStore, now: Timestamp) -> Vec<i64> {
    let mut sent = vec![];
    loop {
        let leased = lease(store, now).await;
        if leased.is_empty() {
            return sent;
        }
        for it in &leased {
            sent.push(it.value.unwrap().get());
            end(store, it, Ending::Sent, now).await;
        }
    }
}

fn payload(leased: &Leased) -> MeterPayload {
    serde_json::from_str(&leased.payload).unwrap()
}

async fn sums(store: &SharedStore, tenant: TenantId, window: Window) -> MeterSums {
    let sums = store.meter_sums(tenant, &FeatureKey::Messages, window);
    sums.await.unwrap()
}

async fn told(store: &SharedStore, tenant: TenantId, start: &str, end: &str) -> i64 {
    let told = store.told(tenant, &[FeatureKey::Messages], window(start, end));
    told.await.unwrap()[0].get()
}

fn january() -> Window {
    window("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z")
}

pub(crate) async fn usage_of_a_slot_comes_together_and_only_that_of_new_events(
    store: &SharedStore,
) {
    let acme = new_tenant_id();
    let (first, second) = (slot(acme, noon()), slot(acme, noon().plus(MINUTE)));
    let one = used(&first, 2, Some("cus_1"));
    // Of two with one id in a batch, one counts.
    record(store, &[one.clone(), used(&first, 3, None), one.clone()]).await;
    record(store, &[one, used(&second, 4, Some("cus_1"))]).await;
    assert_eq!(store.count_waiting().await, Ok((2, Some(noon()))));
    let minute = window("2026-01-10T12:00:00Z", "2026-01-10T12:01:00Z");
    assert_eq!(
        sums(store, acme, minute).await.waiting,
        Quantity::new(2 * 2 + 3)
    );
    assert_eq!(
        sums(store, acme, january()).await.waiting,
        Quantity::new(2 * 2 + 3 + 4)
    );
}

pub(crate) async fn a_slot_is_handed_on_once_it_is_due_and_is_one_entry(store: &SharedStore) {
    let acme = new_tenant_id();
    let slot = slot(acme, noon());
    use_in(store, &slot, 2).await;
    use_in(store, &slot, 3).await;
    let due = noon().plus(2 * MINUTE);
    let early = hand_on(store, Which::Due, due.minus(SECOND)).await;
    assert_eq!(early, HandedOn::default());
    let done = hand_on(store, Which::Due, due).await;
    assert_eq!((done.entries, done.is_more), (1, false));
    assert_eq!(hand_on(store, Which::Due, due).await, HandedOn::default());
    assert_eq!(store.count_waiting().await, Ok((0, None)));

    let leased = lease(store, due).await.remove(0);
    assert_eq!(
        payload(&leased),
        MeterPayload {
            event_name: "msgs".to_owned(),
            customer: "cus_1".to_owned(),
            timestamp: noon().seconds(),
            value: Quantity::new(5),
            cancels: None,
        }
    );
    assert_eq!(leased.tenant, Some(acme));
    assert_eq!(leased.feature, Some(FeatureKey::Messages));
    assert_eq!(leased.value, Some(Quantity::new(5)));
    assert_eq!(leased.lane, Some(lane("cus_1", "msgs")));
    assert_eq!(leased.about_at, Some(noon()));
    assert_eq!((leased.attempts, leased.doubt_since), (1, None));
    let listed = store.list_outbox(&OutboxFilter::default(), None, 9).await;
    assert_eq!(listed.unwrap()[0].about_at, Some(noon()));
}

pub(crate) async fn a_push_takes_all_that_was_used_up_to_now(store: &SharedStore) {
    let acme = new_tenant_id();
    for minute in 0..5 {
        use_in(store, &slot(acme, noon().plus(minute * MINUTE)), 1).await;
    }
    let now = noon().plus(3 * MINUTE);
    let batch = store.hand_on(Which::All, now, now, 3).await.unwrap();
    assert_eq!((batch.entries, batch.is_more), (3, true), "a batch is full");
    let batch = store.hand_on(Which::All, now, now, 3).await.unwrap();
    assert_eq!((batch.entries, batch.is_more), (1, false));
    let left = Some(noon().plus(4 * MINUTE));
    assert_eq!(store.count_waiting().await, Ok((1, left)));
    assert_eq!(send(store, now).await, [1; 4]);
}

pub(crate) async fn a_slot_waits_for_its_customer(store: &SharedStore) {
    let plan = stored_plan(store, "starter").await;
    let acme = stored_tenant(store, "acme").await;
    let slot = slot(acme.tenant_id, noon());
    record(store, &[used(&slot, 7, None)]).await;
    let now = noon().plus(HOUR);
    assert_eq!(push(store, now).await, 0);
    let done = hand_on(store, Which::Due, now).await;
    assert_eq!((done.entries, done.without_customer), (0, 1));
    let done = hand_on(store, Which::Due, now.plus(9 * MINUTE)).await;
    assert_eq!(done, HandedOn::default(), "it was put off");

    // The subscription's customer counts before the one that was known when it was used.
    let subscription = Subscription {
        processor_customer_id: Some("cus_late".to_owned()),
        ..super::subscription(&plan.code)
    };
    store
        .set_subscription(acme.tenant_id, &subscription, None, &ada())
        .await
        .unwrap();
    let other = Slot {
        meter: "other".to_owned(),
        ..slot
    };
    use_in(store, &other, 1).await;
    let later = now.plus(10 * MINUTE);
    assert_eq!(hand_on(store, Which::Due, later).await.entries, 2);
    let leased = lease(store, later).await;
    assert!(leased.iter().all(|it| payload(it).customer == "cus_late"));
}

pub(crate) async fn what_comes_late_is_an_entry_of_its_own(store: &SharedStore) {
    let slot = slot(new_tenant_id(), noon());
    let now = noon().plus(MINUTE);
    for quantity in 1..=12 {
        use_in(store, &slot, quantity).await;
        assert_eq!(push(store, now).await, 1);
    }
    let expected: Vec<i64> = (1..=12).collect();
    let mut sent = send(store, now).await;
    sent.sort_unstable();
    assert_eq!(sent, expected);
    // Entries of so long ago may be gone, and can't number the next one; two of one second are told apart all the same.
    let now = noon().plus(7 * 24 * HOUR);
    for quantity in 13..=14 {
        use_in(store, &slot, quantity).await;
        assert_eq!(push(store, now).await, 1);
    }
    assert_eq!(send(store, now).await.len(), 2);
}

pub(crate) async fn slots_of_one_second_are_entries_of_their_own(store: &SharedStore) {
    let acme = new_tenant_id();
    let within = noon().plus(Duration::from_micros(1_500));
    let slots = [
        slot(acme, within),
        slot(acme, noon().plus(SECOND)),
        Slot {
            period_start: within,
            ..slot(acme, within)
        },
    ];
    for (quantity, slot) in [1, 10, 100].into_iter().zip(&slots) {
        assert_eq!(slot.at(), noon().plus(SECOND));
        use_in(store, slot, quantity).await;
    }
    let now = noon().plus(MINUTE);
    assert_eq!(push(store, now).await, 3);
    assert_eq!(send(store, now).await.iter().sum::<i64>(), 111);
}

pub(crate) async fn usage_that_was_taken_back_before_anybody_was_told_is_not_told(
    store: &SharedStore,
) {
    let slot = slot(new_tenant_id(), noon());
    use_in(store, &slot, 5).await;
    use_in(store, &slot, -5).await;
    assert_eq!(push(store, noon().plus(MINUTE)).await, 0);
    assert_eq!(store.count_waiting().await, Ok((0, None)));
    assert_eq!(store.count_outbox().await, Ok(vec![]));
}

pub(crate) async fn usage_that_was_taken_back_cancels_its_entry_once(store: &SharedStore) {
    let acme = new_tenant_id();
    let slot = slot(acme, noon());
    let now = noon().plus(MINUTE);
    use_in(store, &slot, 5).await;
    push(store, now).await;
    let told = lease(store, now).await.remove(0);
    end(store, &told, Ending::Sent, now).await;
    // It is taken back, and so is as much again of which nobody was told apart.
    for expected in [Some(told.identifier.clone()), None] {
        use_in(store, &slot, -5).await;
        push(store, now).await;
        let leased = lease(store, now).await.remove(0);
        let topic = if expected.is_some() {
            "cancel"
        } else {
            "usage"
        };
        assert_eq!(leased.topic.as_deref(), Some(topic));
        assert_eq!(payload(&leased).cancels, expected);
        end(store, &leased, Ending::Sent, now).await;
    }
    let listed = store.list_outbox(&OutboxFilter::default(), None, 9).await;
    let canceled = listed.unwrap();
    let canceled = canceled.iter().find(|it| it.identifier == told.identifier);
    assert_eq!(canceled.unwrap().topic.as_deref(), Some("canceled"));
    assert_eq!(sums(store, acme, january()).await.told, Quantity::new(-5));

    // Another quantity, or too long ago: told as an event.
    use_in(store, &slot, 9).await;
    push(store, now).await;
    send(store, now).await;
    use_in(store, &slot, -8).await;
    push(store, now).await;
    let leased = lease(store, now).await.remove(0);
    assert_eq!(payload(&leased).cancels, None);
    end(store, &leased, Ending::Sent, now).await;
    let later = now.plus(23 * HOUR);
    use_in(store, &slot, -9).await;
    push(store, later).await;
    assert_eq!(payload(&lease(store, later).await[0]).cancels, None);
}

pub(crate) async fn an_entry_that_may_have_arrived_in_vain_is_not_canceled(store: &SharedStore) {
    let slot = slot(new_tenant_id(), noon());
    let now = noon().plus(MINUTE);
    use_in(store, &slot, 5).await;
    push(store, now).await;
    let leased = lease(store, now).await.remove(0);
    let doubtful = ended(&leased, Some(now), Ending::Sent);
    store.finish(&[doubtful], now).await.unwrap();
    use_in(store, &slot, -5).await;
    push(store, now).await;
    assert_eq!(payload(&lease(store, now).await[0]).cancels, None);
}

pub(crate) async fn an_attempt_of_which_nothing_was_heard_leaves_a_doubt(store: &SharedStore) {
    use_in(store, &slot(new_tenant_id(), noon()), 5).await;
    let first = noon().plus(MINUTE);
    push(store, first).await;
    assert_eq!(lease(store, first).await[0].doubt_since, None);
    let lane = lane("cus_1", "msgs");
    let sums = store.lane_sums(&lane, january(), "").await.unwrap();
    assert_eq!(sums.doubtful, Quantity::new(5), "while it runs");
    // The lease ends unheard of, twice; the first counts.
    let mut now = first;
    for _ in 0..2 {
        now = now.plus(MINUTE);
        assert_eq!(lease(store, now).await[0].doubt_since, Some(first));
    }
    // It was heard of, and did not arrive.
    now = now.plus(MINUTE);
    let leased = lease(store, now).await.remove(0);
    let retry = Ending::Retry {
        at: now.plus(SECOND),
        error: "busy".to_owned(),
    };
    end(store, &leased, retry, now).await;
    let leased = lease(store, now.plus(SECOND)).await;
    assert_eq!((leased[0].attempts, leased[0].doubt_since), (5, None));
}

pub(crate) async fn what_others_are_told_of_an_ending_goes_in_with_it(store: &SharedStore) {
    let acme = new_tenant_id();
    use_in(store, &slot(acme, noon()), 5).await;
    let now = noon().plus(MINUTE);
    push(store, now).await;
    let leased = lease(store, now).await.remove(0);
    let notice = |name: &str| NewEntry {
        identifier: name.to_owned(),
        kind: Kind::Notice,
        topic: None,
        tenant: None,
        feature: None,
        value: None,
        lane: None,
        about: None,
        payload: String::new(),
        created_at: now,
    };
    let dead = |attempts: u32, name: &str| Finished {
        attempts,
        tell: vec![notice(name)],
        ..ended(
            &leased,
            None,
            Ending::Dead {
                error: "no".to_owned(),
            },
        )
    };
    for attempt in [dead(2, "lost"), dead(1, "told"), dead(1, "twice")] {
        store.finish(&[attempt], now).await.unwrap();
    }
    let filter = OutboxFilter {
        kind: Some(Kind::Notice),
        ..OutboxFilter::default()
    };
    let notices = store.list_outbox(&filter, None, 9).await.unwrap();
    let notices: Vec<&str> = notices.iter().map(|it| it.identifier.as_str()).collect();
    assert_eq!(notices, ["told"]);
}

pub(crate) async fn each_quantity_is_in_one_sum(store: &SharedStore) {
    let acme = new_tenant_id();
    let now = noon().plus(HOUR);
    for (minute, quantity) in (0..5).zip([1, 10, 100, 1_000, 10_000]) {
        let customer = format!("cus_{minute}");
        let slot = slot(acme, noon().plus(minute * MINUTE));
        record(store, &[used(&slot, quantity, Some(&customer))]).await;
    }
    push(store, now).await;
    let error = || "?".to_owned();
    for it in lease(store, now).await {
        let ending = match it.value.unwrap().get() {
            1 => Ending::Retry {
                at: now.plus(HOUR),
                error: error(),
            },
            10 => Ending::Dead { error: error() },
            100 => Ending::Uncertain { error: error() },
            _ => Ending::Sent,
        };
        end(store, &it, ending, now).await;
    }
    let confirmed = lane("cus_4", "msgs");
    let confirmed = store.confirm(&confirmed, january(), now.plus(SECOND)).await;
    assert_eq!(confirmed, Ok(1));
    use_in(store, &slot(acme, noon()), 100_000).await;
    let expected = MeterSums {
        waiting: Quantity::new(100_000),
        pending: Quantity::new(1),
        uncertain: Quantity::new(100),
        dead: Quantity::new(10),
        unconfirmed: Quantity::new(1_000),
        told: Quantity::new(11_000),
    };
    assert_eq!(sums(store, acme, january()).await, expected);
    let before = window("2026-01-01T00:00:00Z", "2026-01-10T12:00:00Z");
    assert_eq!(sums(store, acme, before).await, MeterSums::default());
    let of_others = sums(store, new_tenant_id(), january()).await;
    assert_eq!(of_others, MeterSums::default());
    // Sent is sent, confirmed or not.
    for (customer, sent) in [("cus_3", 1_000), ("cus_4", 10_000), ("cus_0", 0)] {
        let sums = store
            .lane_sums(&lane(customer, "msgs"), january(), "")
            .await;
        let expected = LaneSums {
            sent: Quantity::new(sent),
            doubtful: Quantity::ZERO,
        };
        assert_eq!(sums, Ok(expected), "{customer}");
    }
}

pub(crate) async fn what_was_told_counts_in_its_hour_and_its_period(store: &SharedStore) {
    let acme = new_tenant_id();
    let cut = at("2026-01-10T12:30:00Z");
    let slots = [
        slot(acme, at("2026-01-10T12:10:00Z")),
        slot(acme, at("2026-01-10T12:20:00Z")),
        Slot {
            period_start: cut,
            ..slot(acme, at("2026-01-10T12:40:00Z"))
        },
        Slot {
            period_start: cut,
            ..slot(acme, at("2026-01-10T13:00:00Z"))
        },
    ];
    for (quantity, slot) in [1, 10, 100, 1_000].into_iter().zip(&slots) {
        use_in(store, slot, quantity).await;
    }
    let now = noon().plus(2 * HOUR);
    push(store, now).await;
    send(store, now).await;
    for (start, end, expected) in [
        ("2026-01-01T00:00:00Z", "2026-01-10T12:30:00Z", 11),
        ("2026-01-10T12:30:00Z", "2026-02-10T12:30:00Z", 1_100),
        ("2026-01-10T13:00:00Z", "2026-01-10T14:00:00Z", 1_000),
        ("2026-01-10T12:00:00Z", "2026-01-10T13:00:00Z", 111),
    ] {
        assert_eq!(told(store, acme, start, end).await, expected, "{start}");
    }
    // It outlives its entries, and features come as asked.
    assert_eq!(store.prune_outbox(now.plus(SECOND), 9).await, Ok(4));
    let features = [FeatureKey::Cost, FeatureKey::Messages];
    let told = store.told(acme, &features, january()).await;
    assert_eq!(told, Ok(vec![Quantity::ZERO, Quantity::new(1_111)]));
}

pub(crate) async fn what_was_sent_is_confirmed_lane_by_lane(store: &SharedStore) {
    let acme = new_tenant_id();
    for (minute, customer) in [(0, "cus_a"), (3, "cus_a"), (1, "cus_b")] {
        let slot = slot(acme, noon().plus(minute * MINUTE));
        record(store, &[used(&slot, 1, Some(customer))]).await;
    }
    let now = noon().plus(HOUR);
    push(store, now).await;
    assert_eq!(send(store, now).await, [1; 3]);
    let (a, b) = (lane("cus_a", "msgs"), lane("cus_b", "msgs"));
    assert_eq!(store.list_unconfirmed(now, "", 9).await, Ok(vec![]));
    let later = now.plus(SECOND);
    let of_a = Unconfirmed {
        lane: a.clone(),
        first: noon(),
        last: noon().plus(3 * MINUTE),
    };
    let of_b = Unconfirmed {
        lane: b.clone(),
        first: noon().plus(MINUTE),
        last: noon().plus(MINUTE),
    };
    let all = store.list_unconfirmed(later, "", 9).await;
    assert_eq!(all, Ok(vec![of_a.clone(), of_b.clone()]));
    let first = store.list_unconfirmed(later, "", 1).await;
    assert_eq!(first, Ok(vec![of_a]));
    let rest = store.list_unconfirmed(later, &a, 9).await;
    assert_eq!(rest, Ok(vec![of_b]));

    let minute = window("2026-01-10T12:00:00Z", "2026-01-10T12:01:00Z");
    assert_eq!(store.confirm(&a, minute, now).await, Ok(0), "sent since");
    assert_eq!(store.confirm(&a, minute, later).await, Ok(1));
    assert_eq!(store.confirm(&a, minute, later).await, Ok(0));
    let left = store.list_unconfirmed(later, "", 9).await.unwrap();
    assert_eq!(left[0].first, noon().plus(3 * MINUTE));
    assert_eq!(store.confirm(&b, january(), later).await, Ok(1));
}

pub(crate) async fn what_is_uncertain_is_looked_at_again(store: &SharedStore) {
    let acme = new_tenant_id();
    for minute in 0..3 {
        use_in(store, &slot(acme, noon().plus(minute * MINUTE)), 1).await;
    }
    let now = noon().plus(HOUR);
    push(store, now).await;
    for _ in 0..3 {
        let leased = lease(store, now).await.remove(0);
        let ending = Ending::Uncertain {
            error: "?".to_owned(),
        };
        let doubtful = ended(&leased, Some(now), ending);
        store.finish(&[doubtful], now).await.unwrap();
    }
    let later = now.plus(HOUR);
    assert_eq!(store.look_again(later, 2).await, Ok(2));
    let mut counts = store.count_outbox().await.unwrap();
    counts.sort_by_key(|(_, status, _)| status.as_str());
    let kind = Kind::StripeMeterEvent;
    assert_eq!(
        counts,
        [(kind, Status::Pending, 2), (kind, Status::Uncertain, 1)]
    );
    let leased = lease(store, later).await;
    assert_eq!(leased[0].doubt_since, Some(now), "the doubt stays");
    assert_eq!(store.look_again(later, 9).await, Ok(1));
    assert_eq!(store.look_again(later, 9).await, Ok(0));
}
