//! Reservations of the reservation API.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::{
    Failed, PostgresStore, already_exists,
    pool::Tx,
    rows::{self, Cells, micros, params},
};
use crate::{
    domain::{
        feature::FeatureKey,
        ids::{EventId, KeyId, ReservationId, TenantId},
        quantity::Quantity,
        reservation::{Reservation, Settlement},
        time::Timestamp,
        usage::Quantities,
    },
    store::{
        StoreResult,
        reservations::{Releasing, ReservationStore, Settling},
    },
};

const TABLE: &str = "reservations";

impl ReservationStore for PostgresStore {
    fn add_reservation<'a>(
        &'a self,
        reservation: &'a Reservation,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.write("reservations.add", move |tx| async move {
            add(&tx, reservation).await
        }))
    }

    fn find_reservation(
        &self,
        reservation: ReservationId,
    ) -> BoxFuture<'_, StoreResult<Option<Reservation>>> {
        Box::pin(self.read("reservations.find", move |tx| async move {
            find(&tx, reservation).await
        }))
    }

    fn find_reservation_of_event(
        &self,
        event: EventId,
    ) -> BoxFuture<'_, StoreResult<Option<Reservation>>> {
        Box::pin(
            self.read("reservations.find_of_event", move |tx| async move {
                rows::find(
                    &tx,
                    TABLE,
                    "SELECT * FROM reservations WHERE event_id = $1",
                    params![event.uuid()],
                    read,
                )
                .await
            }),
        )
    }

    fn list_open_reservations(
        &self,
        now: Timestamp,
    ) -> BoxFuture<'_, StoreResult<Vec<Reservation>>> {
        Box::pin(self.read("reservations.list_open", move |tx| async move {
            rows::list(
                &tx,
                TABLE,
                "SELECT * FROM reservations
                 WHERE settled_at IS NULL AND released_at IS NULL AND expires_at > $1
                 ORDER BY admitted_at, reservation_id",
                params![now.micros()],
                read,
            )
            .await
        }))
    }

    fn list_unrecorded_reservations(&self) -> BoxFuture<'_, StoreResult<Vec<Reservation>>> {
        Box::pin(
            self.read("reservations.list_unrecorded", move |tx| async move {
                rows::list(
                    &tx,
                    TABLE,
                    "SELECT * FROM reservations WHERE settled_at IS NOT NULL AND NOT is_recorded
                 ORDER BY admitted_at, reservation_id",
                    params![],
                    read,
                )
                .await
            }),
        )
    }

    fn settle_reservation<'a>(
        &'a self,
        tenant: TenantId,
        reservation: ReservationId,
        settlement: &'a Settlement,
    ) -> BoxFuture<'a, StoreResult<Settling>> {
        Box::pin(self.write("reservations.settle", move |tx| async move {
            settle(&tx, tenant, reservation, settlement).await
        }))
    }

    fn release_reservation(
        &self,
        tenant: Option<TenantId>,
        reservation: ReservationId,
        at: Timestamp,
    ) -> BoxFuture<'_, StoreResult<Releasing>> {
        Box::pin(self.write("reservations.release", move |tx| async move {
            release(&tx, tenant, reservation, at).await
        }))
    }

    fn prune_reservations(
        &self,
        before: Timestamp,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(self.write_at_leisure("reservations.prune", move |tx| async move {
            rows::run(
                &tx,
                "DELETE FROM reservations WHERE reservation_id IN (
                     SELECT reservation_id FROM reservations WHERE expires_at < $1 ORDER BY expires_at LIMIT $2
                 )",
                params![before.micros(), rows::limit(limit)],
            ).await
        }))
    }
}

async fn add(tx: &Tx, reservation: &Reservation) -> Result<(), Failed> {
    let added = rows::run(
        tx,
        "INSERT INTO reservations (reservation_id, tenant_id, key_id, end_user, model, request_id, node, quantities,
                                   admitted_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING",
        params![
            reservation.reservation_id.uuid(),
            reservation.tenant_id.uuid(),
            reservation.key_id.map(|key| key.uuid()),
            rows::text(&reservation.user),
            reservation.model.as_deref().map(rows::text),
            rows::text(&reservation.request_id),
            rows::text(&reservation.node),
            to_json(&reservation.quantities)?,
            reservation.admitted_at.micros(),
            reservation.expires_at.micros(),
        ],
    )
    .await?;
    if added == 0 {
        return Err(already_exists("reservation", reservation.reservation_id));
    }
    Ok(())
}

async fn find(tx: &Tx, id: ReservationId) -> Result<Option<Reservation>, Failed> {
    rows::find(
        tx,
        TABLE,
        "SELECT * FROM reservations WHERE reservation_id = $1",
        params![id.uuid()],
        read,
    )
    .await
}

/// Whoever else settles or releases it waits until this is committed.
async fn find_locked(tx: &Tx, id: ReservationId) -> Result<Option<Reservation>, Failed> {
    rows::find(
        tx,
        TABLE,
        "SELECT * FROM reservations WHERE reservation_id = $1 FOR UPDATE",
        params![id.uuid()],
        read,
    )
    .await
}

async fn settle(
    tx: &Tx,
    tenant: TenantId,
    id: ReservationId,
    settlement: &Settlement,
) -> Result<Settling, Failed> {
    let Some(found) = find_locked(tx, id)
        .await?
        .filter(|found| found.tenant_id == tenant)
    else {
        return Ok(Settling::NotFound);
    };
    if let Some(before) = found.settlement.clone() {
        return Ok(Settling::Before(found, before));
    }
    rows::run(
        tx,
        "UPDATE reservations SET settled_at = $2, settle_key = $3, settled = $4, event_id = $5, is_recorded = $6
         WHERE reservation_id = $1",
        params![
            id.uuid(),
            settlement.at.micros(),
            rows::text(&settlement.key),
            to_json(&settlement.quantities)?,
            settlement.event_id.uuid(),
            settlement.is_recorded,
        ],
    ).await?;
    Ok(Settling::First(Reservation {
        settlement: Some(settlement.clone()),
        ..found
    }))
}

async fn release(
    tx: &Tx,
    tenant: Option<TenantId>,
    id: ReservationId,
    at: Timestamp,
) -> Result<Releasing, Failed> {
    let found = find_locked(tx, id)
        .await?
        .filter(|found| tenant.is_none_or(|it| it == found.tenant_id));
    match found {
        None => Ok(Releasing::NotFound),
        Some(found) if found.settlement.is_some() => Ok(Releasing::Settled),
        Some(found) if found.released_at.is_some() => Ok(Releasing::NotFound),
        Some(_) => {
            rows::run(
                tx,
                "UPDATE reservations SET released_at = $2 WHERE reservation_id = $1",
                params![id.uuid(), micros(Some(at))],
            )
            .await?;
            Ok(Releasing::Released)
        }
    }
}

/// Notes that the events of settled reservations are in the store, in the transaction that brings them.
pub(super) async fn note_recorded(tx: &Tx, events: &[Uuid]) -> Result<(), Failed> {
    if events.is_empty() {
        return Ok(());
    }
    rows::run(
        tx,
        "UPDATE reservations SET is_recorded = TRUE
         WHERE event_id = ANY ($1) AND settled_at IS NOT NULL AND NOT is_recorded",
        params![events],
    )
    .await?;
    Ok(())
}

fn to_json(quantities: &Quantities) -> Result<String, Failed> {
    let sorted: BTreeMap<&FeatureKey, Quantity> = quantities.iter().collect();
    rows::to_json(&sorted)
}

fn of_json(quantities: BTreeMap<FeatureKey, Quantity>) -> Quantities {
    quantities.into_iter().collect()
}

fn read(cells: &Cells<'_>) -> Result<Reservation, Failed> {
    let settlement = match cells.optional_time("settled_at")? {
        Some(at) => Some(Settlement {
            key: cells.get("settle_key")?,
            quantities: of_json(cells.json("settled")?),
            at,
            event_id: EventId::new(cells.uuid("event_id")?),
            is_recorded: cells.get("is_recorded")?,
        }),
        None => None,
    };
    Ok(Reservation {
        reservation_id: ReservationId::new(cells.uuid("reservation_id")?),
        tenant_id: TenantId::new(cells.uuid("tenant_id")?),
        key_id: cells.optional_uuid("key_id")?.map(KeyId::new),
        user: cells.get("end_user")?,
        model: cells.get("model")?,
        request_id: cells.get("request_id")?,
        node: cells.get("node")?,
        quantities: of_json(cells.json("quantities")?),
        admitted_at: cells.time("admitted_at")?,
        expires_at: cells.time("expires_at")?,
        released_at: cells.optional_time("released_at")?,
        settlement,
    })
}
