//! Sums by hour.

use super::{SharedStore, at, new_tenant_id, position, window};
use crate::store::usage::Tell;
use crate::{
    clock::new_id,
    domain::{
        feature::FeatureKey,
        ids::{EventId, TenantId},
        quantity::Quantity,
        usage::{Quantities, Source, UsageEvent},
    },
    store::trends::{Decisions, UsedInHour},
};

macro_rules! cases {
    ($open:path) => {
        $crate::store::contract::run!(
            $open,
            trends,
            usage_by_hour_is_that_of_all_tenants_or_of_one,
            a_repeated_event_adds_nothing_to_an_hour,
            decisions_of_an_hour_add_up,
        );
    };
}
pub(crate) use cases;

fn event(tenant: TenantId, when: &str, messages: i64, tokens: i64) -> UsageEvent {
    UsageEvent {
        event_id: EventId::new(new_id()),
        request_id: "r".to_owned(),
        source: Source::Chat,
        tenant_id: tenant,
        key_id: None,
        user: "bob".to_owned(),
        model: Some("m".to_owned()),
        quantities: Quantities::default()
            .with(FeatureKey::Messages, Quantity::new(messages))
            .with(FeatureKey::InputTokens, Quantity::new(tokens)),
        estimated: false,
        reason: None,
        price_id: None,
        admitted_at: at(when),
        recorded_at: at(when),
    }
}

fn used(feature: FeatureKey, hour: &str, quantity: i64) -> UsedInHour {
    UsedInHour {
        feature,
        hour: at(hour),
        quantity: Quantity::new(quantity),
    }
}

pub(crate) async fn usage_by_hour_is_that_of_all_tenants_or_of_one(store: &SharedStore) {
    let (acme, other) = (new_tenant_id(), new_tenant_id());
    let events = [
        event(acme, "2026-05-01T10:59:59Z", 1, 10),
        event(acme, "2026-05-01T11:00:00Z", 2, 0),
        event(other, "2026-05-01T11:30:00Z", 3, 5),
        event(other, "2026-05-01T12:00:00Z", 4, 0),
    ];
    store
        .record((&events[..2]).into(), position(2), Tell::default())
        .await
        .unwrap();
    store
        .record((&events[2..]).into(), position(4), Tell::default())
        .await
        .unwrap();
    let asked = window("2026-05-01T10:00:00Z", "2026-05-01T12:00:00Z");
    let all = store.used_by_hour(asked).await;
    let expected = [
        used(FeatureKey::Messages, "2026-05-01T10:00:00Z", 1),
        used(FeatureKey::Messages, "2026-05-01T11:00:00Z", 5),
        used(FeatureKey::InputTokens, "2026-05-01T10:00:00Z", 10),
        used(FeatureKey::InputTokens, "2026-05-01T11:00:00Z", 5),
    ];
    assert_eq!(all, Ok(expected.to_vec()));
    let features = [FeatureKey::Messages, FeatureKey::Cost];
    let of_acme = store.tenant_used_by_hour(acme, &features, asked).await;
    let expected = [
        used(FeatureKey::Messages, "2026-05-01T10:00:00Z", 1),
        used(FeatureKey::Messages, "2026-05-01T11:00:00Z", 2),
    ];
    assert_eq!(of_acme, Ok(expected.to_vec()));
}

pub(crate) async fn a_repeated_event_adds_nothing_to_an_hour(store: &SharedStore) {
    let event = event(new_tenant_id(), "2026-05-01T10:00:00Z", 1, 0);
    for seq in 1..3 {
        let events = [event.clone()];
        store
            .record(events.as_slice().into(), position(seq), Tell::default())
            .await
            .unwrap();
    }
    let asked = window("2026-05-01T10:00:00Z", "2026-05-01T11:00:00Z");
    let all = store.used_by_hour(asked).await.unwrap();
    assert_eq!(all, [used(FeatureKey::Messages, "2026-05-01T10:00:00Z", 1)]);
    assert_eq!(store.check_rollups().await, Ok(vec![]));
}

pub(crate) async fn decisions_of_an_hour_add_up(store: &SharedStore) {
    let one = Decisions {
        allow: 3,
        soft_limit: 2,
        hard_limit: 1,
    };
    let hour = at("2026-05-01T10:00:00Z");
    store.add_decisions(hour, one).await.unwrap();
    store.add_decisions(hour, one).await.unwrap();
    let later = at("2026-05-01T11:00:00Z");
    store.add_decisions(later, one).await.unwrap();
    let asked = window("2026-05-01T10:00:00Z", "2026-05-01T11:00:00Z");
    let two = Decisions {
        allow: 6,
        soft_limit: 4,
        hard_limit: 2,
    };
    assert_eq!(store.decisions_by_hour(asked).await, Ok(vec![(hour, two)]));
}
