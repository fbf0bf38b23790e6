//! Reservations of the reservation API.

use super::{SharedStore, at, new_tenant_id, position};
use crate::store::usage::Tell;
use crate::{
    clock::new_id,
    domain::{
        feature::FeatureKey,
        ids::{EventId, KeyId, ReservationId, TenantId},
        quantity::Quantity,
        reservation::{Reservation, Settlement},
        usage::{Quantities, Source, UsageEvent},
    },
    store::{
        StoreError,
        reservations::{Releasing, Settling},
    },
};

macro_rules! cases {
    ($open:path) => {
        $crate::store::contract::run!(
            $open,
            reservations,
            a_reservation_is_found_as_it_was_made,
            only_what_still_holds_something_is_open,
            the_first_settlement_stays,
            a_released_reservation_can_be_settled_but_not_the_other_way_round,
            a_settlement_waits_until_its_event_is_recorded,
            pruning_deletes_what_expired_long_ago,
        );
    };
}
pub(crate) use cases;

fn reservation(tenant: TenantId) -> Reservation {
    Reservation {
        reservation_id: ReservationId::new(new_id()),
        tenant_id: tenant,
        key_id: Some(KeyId::new(new_id())),
        user: "ann".to_owned(),
        model: None,
        request_id: "req-1".to_owned(),
        node: "here".to_owned(),
        quantities: Quantities::default()
            .with(FeatureKey::Messages, Quantity::ONE)
            .with("ocr.pages".parse().unwrap(), Quantity::new(9)),
        admitted_at: at("2026-05-01T00:00:00Z"),
        expires_at: at("2026-05-01T00:02:00Z"),
        released_at: None,
        settlement: None,
    }
}

fn settlement(key: &str) -> Settlement {
    Settlement {
        key: key.to_owned(),
        quantities: Quantities::default().with(FeatureKey::Messages, Quantity::new(2)),
        at: at("2026-05-01T00:01:00Z"),
        event_id: EventId::new(new_id()),
        is_recorded: false,
    }
}

async fn added(store: &SharedStore) -> Reservation {
    let made = reservation(new_tenant_id());
    store.add_reservation(&made).await.unwrap();
    made
}

pub(crate) async fn a_reservation_is_found_as_it_was_made(store: &SharedStore) {
    let made = added(store).await;
    let found = store.find_reservation(made.reservation_id).await;
    assert_eq!(found, Ok(Some(made.clone())));
    let again = store.add_reservation(&made).await;
    assert!(
        matches!(again, Err(StoreError::AlreadyExists { .. })),
        "{again:?}"
    );
    let missing = store.find_reservation(ReservationId::new(new_id())).await;
    assert_eq!(missing, Ok(None));
}

pub(crate) async fn only_what_still_holds_something_is_open(store: &SharedStore) {
    let open = added(store).await;
    let settled = added(store).await;
    let released = added(store).await;
    let then = at("2026-05-01T00:01:59Z");
    let settling = store
        .settle_reservation(settled.tenant_id, settled.reservation_id, &settlement("k"))
        .await
        .unwrap();
    assert!(matches!(settling, Settling::First(_)));
    let releasing = store
        .release_reservation(None, released.reservation_id, then)
        .await;
    assert_eq!(releasing, Ok(Releasing::Released));
    assert_eq!(
        store.list_open_reservations(then).await,
        Ok(vec![open.clone()])
    );
    let expired = store.list_open_reservations(open.expires_at).await;
    assert_eq!(expired, Ok(vec![]));
}

pub(crate) async fn the_first_settlement_stays(store: &SharedStore) {
    let made = added(store).await;
    let first = settlement("a");
    let settling = store
        .settle_reservation(made.tenant_id, made.reservation_id, &first)
        .await;
    let settled = Reservation {
        settlement: Some(first.clone()),
        ..made.clone()
    };
    assert_eq!(settling, Ok(Settling::First(settled.clone())));
    let second = store
        .settle_reservation(made.tenant_id, made.reservation_id, &settlement("b"))
        .await;
    assert_eq!(second, Ok(Settling::Before(settled, first)));
    let others = store
        .settle_reservation(new_tenant_id(), made.reservation_id, &settlement("a"))
        .await;
    assert_eq!(others, Ok(Settling::NotFound));
}

pub(crate) async fn a_released_reservation_can_be_settled_but_not_the_other_way_round(
    store: &SharedStore,
) {
    let made = added(store).await;
    let now = at("2026-05-01T00:01:00Z");
    let id = made.reservation_id;
    let others = store
        .release_reservation(Some(new_tenant_id()), id, now)
        .await;
    assert_eq!(others, Ok(Releasing::NotFound));
    let own = Some(made.tenant_id);
    let released = store.release_reservation(own, id, now).await;
    assert_eq!(released, Ok(Releasing::Released));
    let again = store.release_reservation(own, id, now).await;
    assert_eq!(again, Ok(Releasing::NotFound));
    let settling = store
        .settle_reservation(made.tenant_id, id, &settlement("k"))
        .await
        .unwrap();
    assert!(matches!(settling, Settling::First(_)));
    let late = store.release_reservation(own, id, now).await;
    assert_eq!(late, Ok(Releasing::Settled));
}

pub(crate) async fn a_settlement_waits_until_its_event_is_recorded(store: &SharedStore) {
    let made = added(store).await;
    let settled = settlement("k");
    store
        .settle_reservation(made.tenant_id, made.reservation_id, &settled)
        .await
        .unwrap();
    let waiting = store.list_unrecorded_reservations().await.unwrap();
    let waiting: Vec<_> = waiting.iter().map(|it| it.reservation_id).collect();
    assert_eq!(waiting, [made.reservation_id]);
    let event = UsageEvent {
        event_id: settled.event_id,
        request_id: made.request_id.clone(),
        source: Source::Reservation,
        tenant_id: made.tenant_id,
        key_id: made.key_id,
        user: made.user.clone(),
        model: None,
        quantities: settled.quantities.clone(),
        estimated: false,
        reason: None,
        price_id: None,
        admitted_at: made.admitted_at,
        recorded_at: settled.at,
    };
    store
        .record([event].into(), position(1), Tell::default())
        .await
        .unwrap();
    assert_eq!(store.list_unrecorded_reservations().await, Ok(vec![]));
    let found = store.find_reservation(made.reservation_id).await.unwrap();
    assert!(found.unwrap().settlement.unwrap().is_recorded);
    let of_event = store.find_reservation_of_event(settled.event_id).await;
    assert_eq!(
        of_event.unwrap().unwrap().reservation_id,
        made.reservation_id
    );
}

pub(crate) async fn pruning_deletes_what_expired_long_ago(store: &SharedStore) {
    let made = added(store).await;
    let before = made.expires_at;
    assert_eq!(store.prune_reservations(before, 10).await, Ok(0));
    let later = at("2026-05-01T00:02:01Z");
    assert_eq!(store.prune_reservations(later, 10).await, Ok(1));
    assert_eq!(store.find_reservation(made.reservation_id).await, Ok(None));
}
