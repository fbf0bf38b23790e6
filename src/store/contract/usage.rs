//! Usage events, their rollups and totals.

use std::sync::Arc;

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use uuid::Uuid;

use super::{SharedStore, ada, at, new_tenant_id, position, stored_tenant, window};
use crate::store::usage::Tell;
use crate::{
    clock::new_id,
    domain::{
        feature::FeatureKey,
        ids::{EventId, KeyId, TenantId},
        limit::Subject,
        quantity::Quantity,
        time::Timestamp,
        usage::{Quantities, Source, UsageEvent},
        window::Window,
    },
    store::usage::{
        CounterOf, Dimension, FeatureSum, HeaviestAsk, Recorded, Seq, TenantAsk, Total,
    },
};

macro_rules! cases {
    ($open:path) => {
        $crate::store::contract::run!(
            $open,
            usage,
            an_event_is_listed_as_it_was_recorded,
            a_repeated_event_counts_once_across_batches_and_inside_one,
            an_event_id_seen_before_adds_nothing_whatever_it_says,
            events_of_tenants_that_are_not_in_the_store_are_recorded,
            a_window_excludes_its_end,
            hours_that_a_window_cuts_are_summed_from_events,
            totals_come_in_the_order_asked_and_zero_if_unused,
            totals_by_key_user_and_model_name_all_usage,
            one_tenants_usage_is_not_anothers,
            counters_are_summed_by_subject_with_the_position_they_cover,
            a_lifetime_counter_has_no_end,
            a_journals_position_never_goes_back,
            corrections_subtract,
            sums_beyond_the_scale_stop_there_and_break_nothing,
            a_forgotten_user_is_replaced_and_sums_stay,
            sums_of_many_tenants_come_in_the_order_asked_with_what_else_was_used,
            sums_of_many_tenants_are_those_of_each,
            those_who_used_most_are_found_for_many_tenants_at_once,
            used_features_are_listed_in_order,
            events_are_listed_newest_first,
            events_of_one_instant_are_paged_without_a_gap,
            an_event_is_found_by_its_id_and_by_its_request,
            corrections_are_summed_by_themselves,
            pruning_keeps_rollups_and_widens_bounds,
            pruning_takes_what_is_old_by_both_times_and_so_much_at_most,
            totals_and_rollups_agree_with_a_naive_sum,
            an_open_store_answers_a_ping,
        );
    };
}
pub(crate) use cases;

fn event(tenant: TenantId, admitted_at: Timestamp) -> UsageEvent {
    UsageEvent {
        event_id: EventId::new(new_id()),
        request_id: "req-1".to_owned(),
        source: Source::Chat,
        tenant_id: tenant,
        key_id: None,
        user: String::new(),
        model: None,
        quantities: Quantities::default(),
        estimated: false,
        reason: None,
        price_id: None,
        admitted_at,
        recorded_at: admitted_at,
    }
}

/// One request of so many messages.
fn messages(tenant: TenantId, count: i64, admitted_at: &str) -> UsageEvent {
    UsageEvent {
        quantities: Quantities::default().with(FeatureKey::Messages, Quantity::new(count)),
        ..event(tenant, at(admitted_at))
    }
}

fn seats() -> FeatureKey {
    "team.seats-used".parse().unwrap()
}

async fn record(store: &SharedStore, events: &[UsageEvent]) -> Recorded {
    store
        .record(events.into(), position(0), Tell::default())
        .await
        .unwrap()
}

async fn messages_in(store: &SharedStore, tenant: TenantId, window: Window) -> i64 {
    let totals = store.totals(tenant, &[FeatureKey::Messages], window, None);
    let totals = totals.await.unwrap();
    assert_eq!(totals.window, window);
    totals.totals[0].quantity.get()
}

async fn assert_rollups_agree(store: &SharedStore) {
    assert_eq!(store.check_rollups().await, Ok(vec![]));
}

fn january() -> Window {
    window("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z")
}

pub(crate) async fn an_event_is_listed_as_it_was_recorded(store: &SharedStore) {
    let acme = new_tenant_id();
    let bare = event(acme, at("2026-01-01T00:00:00Z"));
    let full = UsageEvent {
        request_id: "ünï\"code".to_owned(),
        source: Source::Correction,
        key_id: Some(KeyId::new(new_id())),
        user: "bob".to_owned(),
        model: Some("gpt-5.1".to_owned()),
        quantities: Quantities::default()
            .with(FeatureKey::Messages, Quantity::ONE)
            .with(FeatureKey::InputTokens, Quantity::new(-12))
            .with(FeatureKey::OutputTokens, Quantity::MAX)
            .with(FeatureKey::Cost, Quantity::new(65))
            .with("a.b".parse().unwrap(), Quantity::new(3))
            .with(seats(), Quantity::new(-4)),
        estimated: true,
        reason: Some("a refund".to_owned()),
        price_id: Some("gpt-5.1*@2026-01-01".to_owned()),
        recorded_at: at("2026-01-02T00:00:01.5Z"),
        ..event(acme, at("2026-01-02T00:00:00.000001Z"))
    };
    record(store, &[bare.clone(), full.clone()]).await;
    let listed = store.list_events(acme, None, 10).await.unwrap();
    assert_eq!(listed, [full, bare]);
}

pub(crate) async fn a_repeated_event_counts_once_across_batches_and_inside_one(
    store: &SharedStore,
) {
    let acme = new_tenant_id();
    let first = messages(acme, 1, "2026-01-10T10:00:00Z");
    let second = messages(acme, 2, "2026-01-10T10:00:00Z");
    let batch = [first.clone(), first.clone(), second.clone()];
    assert_eq!(
        record(store, &batch).await,
        Recorded {
            inserted: 2,
            duplicates: 1
        }
    );
    let third = messages(acme, 4, "2026-01-10T10:00:00Z");
    assert_eq!(
        record(store, &[second, third, first]).await,
        Recorded {
            inserted: 1,
            duplicates: 2
        }
    );
    assert_eq!(messages_in(store, acme, january()).await, 7);
    assert_eq!(store.list_events(acme, None, 10).await.unwrap().len(), 3);
    assert_rollups_agree(store).await;
}

pub(crate) async fn an_event_id_seen_before_adds_nothing_whatever_it_says(store: &SharedStore) {
    let (acme, other) = (new_tenant_id(), new_tenant_id());
    let first = messages(acme, 1, "2026-01-10T10:00:00Z");
    let forged = UsageEvent {
        event_id: first.event_id,
        ..messages(other, 9, "2026-01-11T10:00:00Z")
    };
    record(store, std::slice::from_ref(&first)).await;
    assert_eq!(record(store, &[forged]).await.duplicates, 1);
    assert_eq!(messages_in(store, other, january()).await, 0);
    assert_eq!(store.list_events(acme, None, 10).await, Ok(vec![first]));
}

pub(crate) async fn events_of_tenants_that_are_not_in_the_store_are_recorded(store: &SharedStore) {
    let nobody = new_tenant_id();
    let events = [messages(nobody, 1, "2026-01-10T10:00:00Z")];
    assert_eq!(record(store, &events).await.inserted, 1);
    assert_eq!(messages_in(store, nobody, january()).await, 1);
}

pub(crate) async fn a_window_excludes_its_end(store: &SharedStore) {
    let acme = new_tenant_id();
    record(store, &[messages(acme, 1, "2026-02-01T00:00:00Z")]).await;
    assert_eq!(messages_in(store, acme, january()).await, 0);
    let february = window("2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z");
    assert_eq!(messages_in(store, acme, february).await, 1);
    let cut = window("2026-01-31T23:30:00Z", "2026-02-01T00:00:00.000001Z");
    assert_eq!(messages_in(store, acme, cut).await, 1);
}

pub(crate) async fn hours_that_a_window_cuts_are_summed_from_events(store: &SharedStore) {
    let acme = new_tenant_id();
    let events = [
        messages(acme, 1, "2026-01-10T10:29:59.999999Z"),
        messages(acme, 2, "2026-01-10T10:30:00Z"),
        messages(acme, 4, "2026-01-10T11:00:00Z"),
        messages(acme, 8, "2026-01-10T12:59:59Z"),
        messages(acme, 16, "2026-01-10T13:14:59Z"),
        messages(acme, 32, "2026-01-10T13:15:00Z"),
    ];
    record(store, &events).await;
    for (start, end, sum) in [
        ("2026-01-10T10:30:00Z", "2026-01-10T13:15:00Z", 30),
        ("2026-01-10T10:00:00Z", "2026-01-10T14:00:00Z", 63),
        ("2026-01-10T10:29:00Z", "2026-01-10T10:31:00Z", 3),
        ("2026-01-10T11:00:00Z", "2026-01-10T13:00:00Z", 12),
        ("2026-01-10T10:45:00Z", "2026-01-10T11:00:00Z", 0),
        ("2026-01-10T13:00:00Z", "2026-01-10T13:15:00.000001Z", 48),
    ] {
        let sum_of = messages_in(store, acme, window(start, end)).await;
        assert_eq!(sum_of, sum, "{start} to {end}");
    }
}

pub(crate) async fn totals_come_in_the_order_asked_and_zero_if_unused(store: &SharedStore) {
    let acme = new_tenant_id();
    let used = UsageEvent {
        quantities: Quantities::default()
            .with(FeatureKey::OutputTokens, Quantity::new(5))
            .with(seats(), Quantity::new(7)),
        ..event(acme, at("2026-01-10T10:20:00Z"))
    };
    record(store, &[used]).await;
    let asked = [seats(), FeatureKey::Messages, FeatureKey::OutputTokens];
    let cut = window("2026-01-10T10:10:00Z", "2026-01-10T10:30:00Z");
    for window in [january(), cut] {
        let totals = store.totals(acme, &asked, window, None).await.unwrap();
        let expected = [
            (seats(), 7),
            (FeatureKey::Messages, 0),
            (FeatureKey::OutputTokens, 5),
        ];
        assert_eq!(
            totals.totals,
            expected.map(|(feature, quantity)| Total {
                feature,
                quantity: Quantity::new(quantity),
                by: None
            })
        );
    }
}

pub(crate) async fn totals_by_key_user_and_model_name_all_usage(store: &SharedStore) {
    let acme = new_tenant_id();
    let key = KeyId::new(Uuid::from_u128(5));
    let named = |messages: UsageEvent, user: &str, model: &str| UsageEvent {
        key_id: Some(key),
        user: user.to_owned(),
        model: Some(model.to_owned()),
        ..messages
    };
    let events = [
        named(messages(acme, 1, "2026-01-10T10:20:00Z"), "bob", "m2"),
        named(messages(acme, 2, "2026-01-10T11:20:00Z"), "alice", "m1"),
        named(messages(acme, 4, "2026-01-10T12:20:00Z"), "bob", "m1"),
        messages(acme, 8, "2026-01-10T12:25:00Z"),
        messages(acme, 16, "2026-01-10T13:40:00Z"),
    ];
    record(store, &events).await;
    let key = key.to_string();
    let whole = window("2026-01-10T10:00:00Z", "2026-01-10T14:00:00Z");
    let cut = window("2026-01-10T10:20:00.000001Z", "2026-01-10T13:30:00Z");
    for (window, by, expected) in [
        (whole, Dimension::Key, vec![("", 24), (&*key, 7)]),
        (
            whole,
            Dimension::User,
            vec![("", 24), ("alice", 2), ("bob", 5)],
        ),
        (
            whole,
            Dimension::Model,
            vec![("", 24), ("m1", 6), ("m2", 1)],
        ),
        (cut, Dimension::Key, vec![("", 8), (&*key, 6)]),
        (
            cut,
            Dimension::User,
            vec![("", 8), ("alice", 2), ("bob", 4)],
        ),
        (cut, Dimension::Model, vec![("", 8), ("m1", 6)]),
    ] {
        let features = [FeatureKey::InputTokens, FeatureKey::Messages];
        let totals = store.totals(acme, &features, window, Some(by)).await;
        let found: Vec<(FeatureKey, String, i64)> = totals
            .unwrap()
            .totals
            .into_iter()
            .map(|total| (total.feature, total.by.unwrap(), total.quantity.get()))
            .collect();
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(value, quantity)| (FeatureKey::Messages, value.to_owned(), quantity))
            .collect();
        assert_eq!(found, expected, "by {by:?} in {window:?}");
    }
}

pub(crate) async fn one_tenants_usage_is_not_anothers(store: &SharedStore) {
    let (acme, other) = (new_tenant_id(), new_tenant_id());
    let events = [
        messages(acme, 1, "2026-01-10T10:20:00Z"),
        messages(other, 2, "2026-01-10T10:20:00Z"),
    ];
    record(store, &events).await;
    let cut = window("2026-01-10T10:10:00Z", "2026-01-10T10:30:00Z");
    for window in [january(), cut] {
        assert_eq!(messages_in(store, acme, window).await, 1);
        assert_eq!(messages_in(store, other, window).await, 2);
    }
    let [first, _] = events;
    assert_eq!(store.list_events(acme, None, 10).await, Ok(vec![first]));
}

fn counter(subject: Subject, window: Window) -> CounterOf {
    CounterOf {
        subject,
        feature: FeatureKey::Messages,
        window,
    }
}

pub(crate) async fn counters_are_summed_by_subject_with_the_position_they_cover(
    store: &SharedStore,
) {
    let acme = new_tenant_id();
    let (key, other_key) = (KeyId::new(new_id()), KeyId::new(new_id()));
    let events = [
        UsageEvent {
            key_id: Some(key),
            user: "bob".to_owned(),
            ..messages(acme, 1, "2026-01-10T10:20:00Z")
        },
        UsageEvent {
            key_id: Some(other_key),
            ..messages(acme, 2, "2026-01-10T10:20:30Z")
        },
        messages(acme, 4, "2026-01-10T11:20:00Z"),
    ];
    let journal = position(7).journal;
    assert_eq!(store.drained(journal).await, Ok(Seq(0)));
    store
        .record(events.as_slice().into(), position(7), Tell::default())
        .await
        .unwrap();

    let minute = window("2026-01-10T10:20:00Z", "2026-01-10T10:21:00Z");
    let asked = [
        (Subject::Tenant, january(), 7),
        (Subject::Tenant, minute, 3),
        (Subject::Key(key), january(), 1),
        (Subject::Key(other_key), minute, 2),
        (Subject::User(Arc::from("bob")), minute, 1),
        (Subject::User(Arc::from("")), january(), 6),
        (Subject::User(Arc::from("")), minute, 2),
        (Subject::User(Arc::from("carol")), january(), 0),
    ];
    let counters = asked
        .clone()
        .map(|(subject, window, _)| counter(subject, window));
    let (sums, seq) = store.counters(acme, &counters, journal).await.unwrap();
    assert_eq!(sums, asked.map(|(_, _, sum)| Quantity::new(sum)));
    assert_eq!(seq, Seq(7));
    let stranger = Uuid::from_u128(99);
    let (_, seq) = store.counters(acme, &counters, stranger).await.unwrap();
    assert_eq!(seq, Seq(0), "the position is that of the journal asked");
    assert_eq!(store.drained(journal).await, Ok(Seq(7)));
}

pub(crate) async fn a_lifetime_counter_has_no_end(store: &SharedStore) {
    let acme = new_tenant_id();
    let events = [
        messages(acme, 1, "2026-01-10T10:19:00Z"),
        messages(acme, 2, "2026-01-10T10:20:00Z"),
        messages(acme, 4, "2036-01-10T10:20:00Z"),
    ];
    record(store, &events).await;
    let lifetime = Window::new(at("2026-01-10T10:20:00Z"), Timestamp::NEVER).unwrap();
    let asked = [counter(Subject::Tenant, lifetime)];
    let (sums, _) = store
        .counters(acme, &asked, position(0).journal)
        .await
        .unwrap();
    assert_eq!(sums, [Quantity::new(6)]);
    assert_eq!(messages_in(store, acme, lifetime).await, 6);
}

pub(crate) async fn a_journals_position_never_goes_back(store: &SharedStore) {
    let journal = position(0).journal;
    for (noted, expected) in [(5, 5), (3, 5), (8, 8)] {
        store
            .record([].into(), position(noted), Tell::default())
            .await
            .unwrap();
        assert_eq!(store.drained(journal).await, Ok(Seq(expected)));
    }
    assert_eq!(store.drained(Uuid::from_u128(2)).await, Ok(Seq(0)));
}

pub(crate) async fn corrections_subtract(store: &SharedStore) {
    let acme = new_tenant_id();
    record(store, &[messages(acme, 5, "2026-01-10T10:20:00Z")]).await;
    let correction = UsageEvent {
        source: Source::Correction,
        ..messages(acme, -7, "2026-01-10T10:40:00Z")
    };
    record(store, &[correction]).await;
    assert_eq!(messages_in(store, acme, january()).await, -2);
    let cut = window("2026-01-10T10:30:00Z", "2026-01-10T10:50:00Z");
    assert_eq!(messages_in(store, acme, cut).await, -7);
    assert_rollups_agree(store).await;
}

pub(crate) async fn sums_beyond_the_scale_stop_there_and_break_nothing(store: &SharedStore) {
    let acme = new_tenant_id();
    let most = Quantity::MAX.get();
    // Over many hours more than 64 bits hold; and more than they hold within one.
    let mut events: Vec<UsageEvent> = (0..1_500)
        .map(|hour| UsageEvent {
            admitted_at: Timestamp::from_seconds(hour * 3_600),
            ..messages(acme, most, "1970-01-01T00:00:00Z")
        })
        .collect();
    events.extend((0..1_500).map(|_| messages(acme, most, "1980-01-01T00:00:00Z")));
    record(store, &events).await;
    let all = Window::new(Timestamp::EPOCH, Timestamp::NEVER).unwrap();
    assert_eq!(messages_in(store, acme, all).await, most);
    let cut = window("1979-12-31T23:59:59Z", "1980-01-01T00:00:01Z");
    assert_eq!(messages_in(store, acme, cut).await, most);
    for by in [Dimension::Key, Dimension::User, Dimension::Model] {
        let totals = store.totals(acme, &[FeatureKey::Messages], all, Some(by));
        assert_eq!(totals.await.unwrap().totals[0].quantity, Quantity::MAX);
    }
}

pub(crate) async fn a_forgotten_user_is_replaced_and_sums_stay(store: &SharedStore) {
    let (acme, other) = (
        stored_tenant(store, "acme").await.tenant_id,
        stored_tenant(store, "other").await.tenant_id,
    );
    let of = |tenant, user: &str| UsageEvent {
        user: user.to_owned(),
        ..messages(tenant, 2, "2026-01-05T00:00:00Z")
    };
    record(store, &[of(acme, "bob"), of(acme, "eve"), of(other, "bob")]).await;
    let by = ada();
    let forget = |user: &'static str| store.forget_user(acme, user, "forgotten-1", &by);
    assert_eq!(forget("nobody").await, Ok(0));
    assert!(forget("bob").await.unwrap() >= 2);
    let users = async |tenant| -> Vec<String> {
        let features = [FeatureKey::Messages];
        let totals = store.totals(tenant, &features, january(), Some(Dimension::User));
        let totals = totals.await.unwrap().totals;
        totals.into_iter().filter_map(|total| total.by).collect()
    };
    assert_eq!(users(acme).await, ["eve", "forgotten-1"]);
    assert_eq!(users(other).await, ["bob"]);
    let events = store.list_events(acme, None, 10).await.unwrap();
    assert!(events.iter().all(|event| event.user != "bob"));
    assert_eq!(messages_in(store, acme, january()).await, 4);
    assert_rollups_agree(store).await;
}

fn sum_of(feature: FeatureKey, quantity: i64, window: Window) -> FeatureSum {
    FeatureSum {
        feature,
        quantity: Quantity::new(quantity),
        window,
    }
}

pub(crate) async fn sums_of_many_tenants_come_in_the_order_asked_with_what_else_was_used(
    store: &SharedStore,
) {
    let (acme, other, idle) = (new_tenant_id(), new_tenant_id(), new_tenant_id());
    let of = |tenant, feature: FeatureKey, quantity, when: &str| UsageEvent {
        quantities: Quantities::default().with(feature, Quantity::new(quantity)),
        ..event(tenant, at(when))
    };
    let pages: FeatureKey = "pages".parse().unwrap();
    record(
        store,
        &[
            of(acme, FeatureKey::Messages, 2, "2026-01-05T10:20:00Z"),
            of(acme, FeatureKey::Messages, 3, "2026-01-20T00:00:00Z"),
            of(acme, FeatureKey::OutputTokens, 70, "2026-01-05T10:40:00Z"),
            of(acme, seats(), 4, "2026-01-05T10:50:00Z"),
            of(acme, seats(), 5, "2026-01-25T00:00:00Z"),
            of(acme, pages.clone(), 6, "2026-01-06T00:00:00Z"),
            of(acme, FeatureKey::Cost, 9, "2026-02-01T00:00:00Z"),
            of(other, FeatureKey::Messages, 11, "2026-01-31T23:59:59Z"),
        ],
    )
    .await;
    // Cuts an hour at either end.
    let cut = window("2026-01-05T10:30:00Z", "2026-01-24T10:30:00Z");
    let asked = |tenant, features, others| TenantAsk {
        tenant,
        features,
        others,
    };
    let asks = vec![
        asked(other, vec![(FeatureKey::Messages, january())], None),
        asked(
            acme,
            vec![
                (FeatureKey::OutputTokens, cut),
                (FeatureKey::Messages, january()),
                (FeatureKey::InputTokens, january()),
            ],
            Some(cut),
        ),
        asked(idle, vec![(seats(), cut)], Some(january())),
    ];
    let expected = vec![
        vec![sum_of(FeatureKey::Messages, 11, january())],
        vec![
            sum_of(FeatureKey::OutputTokens, 70, cut),
            sum_of(FeatureKey::Messages, 5, january()),
            sum_of(FeatureKey::InputTokens, 0, january()),
            // Of the cost, which was not used in this window, there is nothing to say.
            sum_of(pages, 6, cut),
            sum_of(seats(), 4, cut),
        ],
        vec![sum_of(seats(), 0, cut)],
    ];
    assert_eq!(store.tenant_sums(asks).await, Ok(expected));
}

/// Whatever the windows and however absurd the quantities.
pub(crate) async fn sums_of_many_tenants_are_those_of_each(store: &SharedStore) {
    let acme = new_tenant_id();
    let absurd = |feature: FeatureKey, hour: u32| UsageEvent {
        quantities: Quantities::default().with(feature, Quantity::new(i64::MAX)),
        ..event(acme, at(&format!("2026-01-05T{hour:02}:10:00Z")))
    };
    let mut events: Vec<UsageEvent> = (0..6).map(|hour| absurd(FeatureKey::Cost, hour)).collect();
    events.extend((0..6).map(|hour| absurd(seats(), hour)));
    events.push(messages(acme, 7, "2026-01-05T03:59:59Z"));
    record(store, &events).await;
    let features = [FeatureKey::Messages, FeatureKey::Cost, seats()];
    for window in [
        january(),
        window("2026-01-05T00:05:00Z", "2026-01-05T05:59:00Z"),
        window("2026-01-05T03:00:00Z", "2026-01-05T03:30:00Z"),
        Window::new(at("2026-01-05T00:00:00Z"), Timestamp::NEVER).unwrap(),
    ] {
        let each = store.totals(acme, &features, window, None).await.unwrap();
        let each: Vec<FeatureSum> = each
            .totals
            .into_iter()
            .map(|total| sum_of(total.feature, total.quantity.get(), each.window))
            .collect();
        let ask = TenantAsk {
            tenant: acme,
            features: features.iter().map(|key| (key.clone(), window)).collect(),
            others: Some(window),
        };
        assert_eq!(store.tenant_sums(vec![ask]).await, Ok(vec![each.clone()]));
        // The same where nothing is asked by name.
        let ask = TenantAsk {
            tenant: acme,
            features: vec![],
            others: Some(window),
        };
        let mut used: Vec<FeatureSum> = each;
        used.retain(|sum| sum.quantity != Quantity::ZERO);
        used.sort_by(|one, other| one.feature.cmp(&other.feature));
        assert_eq!(store.tenant_sums(vec![ask]).await, Ok(vec![used]));
    }
}

pub(crate) async fn those_who_used_most_are_found_for_many_tenants_at_once(store: &SharedStore) {
    let (acme, other, idle) = (new_tenant_id(), new_tenant_id(), new_tenant_id());
    let keys = [5, 6].map(|id| KeyId::new(Uuid::from_u128(id)));
    let by_key = |tenant, key: usize, count, when: &str| UsageEvent {
        key_id: Some(keys[key]),
        ..messages(tenant, count, when)
    };
    let by_user = |tenant, user: &str, count, when: &str| UsageEvent {
        user: user.to_owned(),
        ..messages(tenant, count, when)
    };
    record(
        store,
        &[
            by_key(acme, 0, 3, "2026-01-05T10:20:00Z"),
            by_key(acme, 0, 4, "2026-01-07T00:00:00Z"),
            by_key(acme, 1, 9, "2026-01-05T12:10:00Z"),
            by_key(acme, 1, 50, "2026-02-01T00:00:00Z"),
            by_user(acme, "bob", 6, "2026-01-05T10:40:00Z"),
            by_user(acme, "eve", 6, "2026-01-05T12:00:00Z"),
            by_user(acme, "zoe", 5, "2026-01-06T00:00:00Z"),
            by_user(other, "bob", 11, "2026-01-05T10:40:00Z"),
        ],
    )
    .await;
    // Cuts an hour at either end.
    let cut = window("2026-01-05T10:30:00Z", "2026-01-05T12:05:00Z");
    // Most of both hours is in it.
    let mostly = window("2026-01-05T10:25:00Z", "2026-01-05T12:55:00Z");
    let ask = |tenant, by, window, at_least, most| HeaviestAsk {
        tenant,
        feature: FeatureKey::Messages,
        window,
        by,
        at_least: Quantity::new(at_least),
        most,
    };
    let asks = vec![
        ask(acme, Dimension::Key, january(), 1, 10),
        ask(acme, Dimension::User, january(), 6, 10),
        ask(other, Dimension::User, january(), 1, 10),
        ask(idle, Dimension::User, january(), 1, 10),
        ask(acme, Dimension::User, cut, 1, 10),
        ask(acme, Dimension::Key, cut, 1, 10),
        ask(acme, Dimension::Key, mostly, 1, 10),
        ask(acme, Dimension::User, january(), 1, 2),
    ];
    let found = store.heaviest(asks).await.unwrap();
    let found: Vec<Vec<(String, i64)>> = found
        .into_iter()
        .map(|used| used.into_iter().map(|(who, it)| (who, it.get())).collect())
        .collect();
    let named = |used: &[(&str, i64)]| -> Vec<(String, i64)> {
        let owned = used.iter().map(|(who, used)| ((*who).to_owned(), *used));
        owned.collect()
    };
    let [first, second] = keys.map(|key| key.to_string());
    let expected = [
        named(&[(&second, 9), (&first, 7)]),
        // Requests that name nobody: 3 + 4 + 9 of the keys.
        named(&[("", 16), ("bob", 6), ("eve", 6)]),
        named(&[("bob", 11)]),
        named(&[]),
        named(&[("bob", 6), ("eve", 6)]),
        named(&[]),
        named(&[(&second, 9)]),
        named(&[("", 16), ("bob", 6)]),
    ];
    assert_eq!(found, expected);
}

pub(crate) async fn used_features_are_listed_in_order(store: &SharedStore) {
    let acme = new_tenant_id();
    assert_eq!(store.list_used_features(acme).await, Ok(vec![]));
    let features = [
        FeatureKey::Messages,
        FeatureKey::OutputTokens,
        FeatureKey::Cost,
        "alpha".parse().unwrap(),
        "zeta".parse().unwrap(),
    ];
    for feature in features.iter().rev() {
        let used = UsageEvent {
            quantities: Quantities::default().with(feature.clone(), Quantity::ONE),
            ..event(acme, at("2026-01-10T10:20:00Z"))
        };
        record(store, &[used]).await;
    }
    record(
        store,
        &[messages(new_tenant_id(), 1, "2026-01-10T10:20:00Z")],
    )
    .await;
    assert_eq!(store.list_used_features(acme).await.unwrap(), features);
}

pub(crate) async fn events_are_listed_newest_first(store: &SharedStore) {
    let acme = new_tenant_id();
    let old = messages(acme, 1, "2026-01-10T10:20:00Z");
    let new = messages(acme, 2, "2026-01-12T10:20:00Z");
    let middle = messages(acme, 3, "2026-01-11T10:20:00Z");
    record(store, &[new.clone(), old.clone(), middle.clone()]).await;
    let listed = store.list_events(acme, None, 2).await.unwrap();
    assert_eq!(listed, [new, middle.clone()]);
    let last = Some((middle.admitted_at, middle.event_id));
    let rest = store.list_events(acme, last, 2).await.unwrap();
    assert_eq!(rest, [old]);
}

pub(crate) async fn events_of_one_instant_are_paged_without_a_gap(store: &SharedStore) {
    let acme = new_tenant_id();
    let events: Vec<UsageEvent> = (0..5)
        .map(|_| messages(acme, 1, "2026-01-10T10:20:00Z"))
        .collect();
    record(store, &events).await;
    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let page = store.list_events(acme, before, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        before = Some((last.admitted_at, last.event_id));
        seen.extend(page.iter().map(|event| event.event_id));
    }
    let mut all: Vec<_> = events.iter().map(|event| event.event_id).collect();
    all.sort();
    seen.sort();
    assert_eq!(seen, all);
}

pub(crate) async fn an_event_is_found_by_its_id_and_by_its_request(store: &SharedStore) {
    let acme = new_tenant_id();
    let mut one = messages(acme, 1, "2026-01-10T10:20:00Z");
    one.request_id = "req-of-one".to_owned();
    let other = messages(acme, 2, "2026-01-10T10:21:00Z");
    let mut by_nobody = messages(acme, 3, "2026-01-10T10:22:00Z");
    by_nobody.request_id = String::new();
    record(store, &[one.clone(), other.clone(), by_nobody]).await;
    let found = store.find_event(one.event_id).await;
    assert_eq!(found, Ok(Some(one.clone())));
    let missing = EventId::new(new_id());
    assert_eq!(store.find_event(missing).await, Ok(None));
    let known = store.list_known_events(&[one.event_id, missing]).await;
    assert_eq!(
        known.unwrap().into_iter().collect::<Vec<_>>(),
        [one.event_id]
    );
    let of_request = store.list_events_of_request("req-of-one").await;
    assert_eq!(of_request, Ok(vec![one]));
    assert_eq!(store.list_events_of_request("").await, Ok(vec![]));
}

pub(crate) async fn corrections_are_summed_by_themselves(store: &SharedStore) {
    let acme = new_tenant_id();
    let pages: FeatureKey = "ocr.pages".parse().unwrap();
    let used = messages(acme, 10, "2026-01-10T10:20:00Z");
    let correction = UsageEvent {
        source: Source::Correction,
        quantities: Quantities::default()
            .with(FeatureKey::Messages, Quantity::new(-3))
            .with(pages.clone(), Quantity::new(7)),
        ..messages(acme, 0, "2026-01-10T10:30:00Z")
    };
    let later = UsageEvent {
        source: Source::Correction,
        ..messages(acme, 5, "2026-01-11T10:30:00Z")
    };
    record(store, &[used, correction, later]).await;
    let day = window("2026-01-10T00:00:00Z", "2026-01-11T00:00:00Z");
    let asked = [FeatureKey::Messages, pages];
    let sums = store.corrections(acme, &asked, day).await;
    assert_eq!(sums, Ok(vec![Quantity::new(-3), Quantity::new(7)]));
}

pub(crate) async fn pruning_keeps_rollups_and_widens_bounds(store: &SharedStore) {
    let acme = new_tenant_id();
    let events = [
        messages(acme, 1, "2026-01-10T10:20:00Z"),
        messages(acme, 8, "2026-01-10T10:40:00Z"),
        messages(acme, 2, "2026-01-10T12:20:00Z"),
        messages(acme, 4, "2026-01-10T12:40:00Z"),
    ];
    record(store, &events).await;
    let asked = window("2026-01-10T10:30:00Z", "2026-01-10T12:30:00Z");
    assert_eq!(messages_in(store, acme, asked).await, 10);

    let pruned = store.prune_events(at("2026-01-10T12:00:00Z"), 100).await;
    assert_eq!(pruned, Ok(2));
    let start_widened = window("2026-01-10T10:00:00Z", "2026-01-10T12:30:00Z");
    let totals = store
        .totals(acme, &[FeatureKey::Messages], asked, None)
        .await
        .unwrap();
    assert_eq!(totals.window, start_widened);
    assert_eq!(totals.totals[0].quantity, Quantity::new(11));
    let asked_counter = [counter(Subject::Tenant, asked)];
    let (sums, _) = store
        .counters(acme, &asked_counter, position(0).journal)
        .await
        .unwrap();
    assert_eq!(sums, [Quantity::new(11)]);
    let at_the_last_pruned = window("2026-01-10T10:40:00Z", "2026-01-10T11:00:00Z");
    let totals = store
        .totals(acme, &[FeatureKey::Messages], at_the_last_pruned, None)
        .await
        .unwrap();
    assert_eq!(totals.totals[0].quantity, Quantity::new(9), "{totals:?}");
    assert_rollups_agree(store).await;

    let pruned = store.prune_events(at("2026-01-10T12:30:00Z"), 100).await;
    assert_eq!(pruned, Ok(1));
    let both_widened = window("2026-01-10T10:00:00Z", "2026-01-10T13:00:00Z");
    for by in [None, Some(Dimension::User)] {
        let totals = store
            .totals(acme, &[FeatureKey::Messages], asked, by)
            .await
            .unwrap();
        assert_eq!(totals.window, both_widened);
        assert_eq!(totals.totals[0].quantity, Quantity::new(15));
    }
    let after = window("2026-01-10T12:35:00Z", "2026-01-10T12:45:00Z");
    let totals = store
        .totals(acme, &[FeatureKey::Messages], after, None)
        .await
        .unwrap();
    assert_eq!(
        (totals.window.start(), totals.totals[0].quantity.get()),
        (after.start(), 4),
        "its events are all there from the start on"
    );
    assert_rollups_agree(store).await;
    assert_eq!(store.list_events(acme, None, 10).await.unwrap().len(), 1);
}

pub(crate) async fn pruning_takes_what_is_old_by_both_times_and_so_much_at_most(
    store: &SharedStore,
) {
    let acme = new_tenant_id();
    let old = "2026-01-10T10:20:00Z";
    let reported_late = UsageEvent {
        recorded_at: at("2026-03-10T10:20:00Z"),
        ..messages(acme, 1, old)
    };
    let admitted_ahead = UsageEvent {
        recorded_at: at("2026-01-31T23:59:00Z"),
        ..messages(acme, 2, "2026-02-01T00:01:00Z")
    };
    let events = [
        reported_late,
        admitted_ahead,
        messages(acme, 4, old),
        messages(acme, 8, old),
        messages(acme, 16, old),
    ];
    record(store, &events).await;
    let before = at("2026-02-01T00:00:00Z");
    for pruned in [2, 1, 0] {
        assert_eq!(store.prune_events(before, 2).await, Ok(pruned));
    }
    assert_eq!(store.list_events(acme, None, 10).await.unwrap().len(), 2);
    assert_eq!(messages_in(store, acme, january()).await, 29);
}

pub(crate) async fn an_open_store_answers_a_ping(store: &SharedStore) {
    assert_eq!(store.ping().await, Ok(()));
}

/// Events of two tenants within a few hours, which batches of them (by index, so that they repeat) are recorded, and
/// a window to sum.
#[derive(Clone, Debug)]
struct Case {
    events: Vec<UsageEvent>,
    batches: Vec<Vec<usize>>,
    windows: Vec<Window>,
}

const SPAN_SECONDS: i64 = 5 * 3_600;

fn any_event() -> impl Strategy<Value = UsageEvent> {
    let features = prop_oneof![
        Just(FeatureKey::Messages),
        Just(FeatureKey::InputTokens),
        Just(FeatureKey::Cost),
        Just(seats()),
    ];
    let quantities = prop::collection::vec((features, -50_i64..1_000), 0..4);
    let who = (0_u128..2, prop::option::of(0_u128..2), "[ab]{0,1}");
    let model = prop::option::of("[mn]");
    (quantities, who, model, 0..SPAN_SECONDS).prop_map(
        |(quantities, (tenant, key, user), model, second)| UsageEvent {
            key_id: key.map(|key| KeyId::new(Uuid::from_u128(key))),
            user,
            model,
            quantities: quantities
                .into_iter()
                .map(|(feature, quantity)| (feature, Quantity::new(quantity)))
                .collect(),
            ..event(
                TenantId::new(Uuid::from_u128(tenant)),
                Timestamp::from_seconds(second),
            )
        },
    )
}

fn any_window() -> impl Strategy<Value = Window> {
    // Every other bound on the hour or at an event's very second.
    let bound = prop_oneof![0..SPAN_SECONDS, (0..6_i64).prop_map(|hour| hour * 3_600)];
    (bound.clone(), bound, prop::bool::weighted(0.1)).prop_map(|(a, b, forever)| {
        let start = Timestamp::from_seconds(a.min(b));
        let end = Timestamp::from_seconds(a.max(b) + 1);
        Window::new(start, if forever { Timestamp::NEVER } else { end }).unwrap()
    })
}

fn any_case() -> impl Strategy<Value = Case> {
    prop::collection::vec(any_event(), 1..30).prop_flat_map(|events| {
        let batch = prop::collection::vec(0..events.len(), 0..12);
        let batches = prop::collection::vec(batch, 1..8);
        let windows = prop::collection::vec(any_window(), 3);
        (Just(events), batches, windows).prop_map(|(events, batches, windows)| Case {
            events,
            batches,
            windows,
        })
    })
}

/// The case with tenants and events that no case before had.
fn fresh(mut case: Case) -> (Case, [TenantId; 2]) {
    let tenants = [new_tenant_id(), new_tenant_id()];
    for event in &mut case.events {
        event.event_id = EventId::new(new_id());
        event.tenant_id = tenants[usize::from(event.tenant_id.uuid() != Uuid::nil())];
    }
    (case, tenants)
}

pub(crate) async fn totals_and_rollups_agree_with_a_naive_sum(store: &SharedStore) {
    let mut runner = TestRunner::new(Config {
        cases: 40,
        failure_persistence: None,
        ..Config::default()
    });
    let runtime = tokio::runtime::Handle::current();
    let outcome = tokio::task::block_in_place(|| {
        runner.run(&any_case(), |case| {
            let (case, tenants) = fresh(case);
            runtime.block_on(compare_with_naive_sums(store, &case, tenants))
        })
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    assert_rollups_agree(store).await;
}

async fn compare_with_naive_sums(
    store: &SharedStore,
    case: &Case,
    tenants: [TenantId; 2],
) -> Result<(), TestCaseError> {
    let mut seen = std::collections::BTreeSet::new();
    for batch in &case.batches {
        let events: Vec<UsageEvent> = batch
            .iter()
            .map(|&index| case.events[index].clone())
            .collect();
        let new = batch.iter().filter(|&&index| seen.insert(index)).count();
        let recorded = record(store, &events).await;
        prop_assert_eq!(usize::try_from(recorded.inserted).unwrap(), new);
    }
    let recorded: Vec<&UsageEvent> = seen.iter().map(|&index| &case.events[index]).collect();
    let features = [
        FeatureKey::Messages,
        FeatureKey::InputTokens,
        FeatureKey::Cost,
        seats(),
    ];
    for (tenant, window) in tenants
        .into_iter()
        .flat_map(|tenant| case.windows.iter().map(move |&window| (tenant, window)))
    {
        let inside =
            |event: &&&UsageEvent| event.tenant_id == tenant && window.contains(event.admitted_at);
        let events: Vec<&UsageEvent> = recorded.iter().filter(inside).copied().collect();
        let totals = store.totals(tenant, &features, window, None).await.unwrap();
        for total in totals.totals {
            let naive: Quantity = events
                .iter()
                .map(|event| event.quantities.of(&total.feature))
                .sum();
            prop_assert_eq!(total.quantity, naive, "{} in {:?}", total.feature, window);
        }
        compare_parts(store, tenant, window, &events).await?;
    }
    Ok(())
}

/// Every part of a total by each dimension, and the counters that read the same.
async fn compare_parts(
    store: &SharedStore,
    tenant: TenantId,
    window: Window,
    events: &[&UsageEvent],
) -> Result<(), TestCaseError> {
    type ValueOf = fn(&UsageEvent) -> String;
    let dimensions: [(Dimension, ValueOf); 3] = [
        (Dimension::Key, |event| {
            event.key_id.map_or(String::new(), |key| key.to_string())
        }),
        (Dimension::User, |event| event.user.clone()),
        (Dimension::Model, |event| {
            event.model.clone().unwrap_or_default()
        }),
    ];
    let feature = FeatureKey::Messages;
    for (by, value_of) in dimensions {
        let mut naive = std::collections::BTreeMap::new();
        for event in events {
            let sum = naive.entry(value_of(event)).or_insert(Quantity::ZERO);
            *sum = sum.plus(event.quantities.of(&feature));
        }
        naive.retain(|_, sum| *sum != Quantity::ZERO);
        let asked = [feature.clone()];
        let totals = store.totals(tenant, &asked, window, Some(by));
        let parts: std::collections::BTreeMap<String, Quantity> = totals
            .await
            .unwrap()
            .totals
            .into_iter()
            .map(|total| (total.by.unwrap(), total.quantity))
            .collect();
        prop_assert_eq!(&parts, &naive, "by {:?} in {:?}", by, window);
        for (value, sum) in &naive {
            let subject = match by {
                Dimension::Key if !value.is_empty() => Subject::Key(value.parse().unwrap()),
                Dimension::User => Subject::User(Arc::from(value.as_str())),
                Dimension::Key | Dimension::Model => continue,
            };
            let asked = [counter(subject, window)];
            let counted = store.counters(tenant, &asked, position(0).journal);
            prop_assert_eq!(counted.await.unwrap().0, vec![*sum]);
        }
    }
    Ok(())
}
