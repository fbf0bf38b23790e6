//! Reservations of the reservation API.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use rusqlite::{Transaction, params};

use super::{
    Failed, SqliteStore,
    rows::{self, Cells, blob, micros},
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
        StoreError, StoreResult,
        reservations::{Releasing, ReservationStore, Settling},
    },
};

const TABLE: &str = "reservations";

impl ReservationStore for SqliteStore {
    fn add_reservation<'a>(
        &'a self,
        reservation: &'a Reservation,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let reservation = reservation.clone();
        Box::pin(self.write("reservations.add", move |tx| add(tx, &reservation)))
    }

    fn find_reservation(
        &self,
        reservation: ReservationId,
    ) -> BoxFuture<'_, StoreResult<Option<Reservation>>> {
        Box::pin(self.read("reservations.find", move |tx| find(tx, reservation)))
    }

    fn find_reservation_of_event(
        &self,
        event: EventId,
    ) -> BoxFuture<'_, StoreResult<Option<Reservation>>> {
        Box::pin(self.read("reservations.find_of_event", move |tx| {
            rows::find(
                tx,
                TABLE,
                "SELECT * FROM reservations WHERE event_id = ?1",
                [blob(event.uuid())],
                read,
            )
        }))
    }

    fn list_open_reservations(
        &self,
        now: Timestamp,
    ) -> BoxFuture<'_, StoreResult<Vec<Reservation>>> {
        Box::pin(self.read("reservations.list_open", move |tx| {
            rows::list(
                tx,
                TABLE,
                "SELECT * FROM reservations
                 WHERE settled_at IS NULL AND released_at IS NULL AND expires_at > ?1
                 ORDER BY admitted_at, reservation_id",
                [now.micros()],
                read,
            )
        }))
    }

    fn list_unrecorded_reservations(&self) -> BoxFuture<'_, StoreResult<Vec<Reservation>>> {
        Box::pin(self.read("reservations.list_unrecorded", move |tx| {
            rows::list(
                tx,
                TABLE,
                "SELECT * FROM reservations WHERE settled_at IS NOT NULL AND is_recorded = 0
                 ORDER BY admitted_at, reservation_id",
                [],
                read,
            )
        }))
    }

    fn settle_reservation<'a>(
        &'a self,
        tenant: TenantId,
        reservation: ReservationId,
        settlement: &'a Settlement,
    ) -> BoxFuture<'a, StoreResult<Settling>> {
        let settlement = settlement.clone();
        Box::pin(self.write("reservations.settle", move |tx| {
            settle(tx, tenant, reservation, settlement)
        }))
    }

    fn release_reservation(
        &self,
        tenant: Option<TenantId>,
        reservation: ReservationId,
        at: Timestamp,
    ) -> BoxFuture<'_, StoreResult<Releasing>> {
        Box::pin(self.write("reservations.release", move |tx| {
            release(tx, tenant, reservation, at)
        }))
    }

    fn prune_reservations(
        &self,
        before: Timestamp,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(self.write("reservations.prune", move |tx| {
            rows::run(
                tx,
                "DELETE FROM reservations WHERE reservation_id IN (
                     SELECT reservation_id FROM reservations WHERE expires_at < ?1 ORDER BY expires_at LIMIT ?2
                 )",
                params![before.micros(), rows::limit(limit)],
            )
        }))
    }
}

fn add(tx: &Transaction<'_>, reservation: &Reservation) -> Result<(), Failed> {
    if find(tx, reservation.reservation_id)?.is_some() {
        return Err(Failed::Refused(StoreError::AlreadyExists {
            what: "reservation",
            name: reservation.reservation_id.to_string(),
        }));
    }
    rows::run(
        tx,
        "INSERT INTO reservations (reservation_id, tenant_id, key_id, end_user, model, request_id, node, quantities,
                                   admitted_at, expires_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        params![
            blob(reservation.reservation_id.uuid()),
            blob(reservation.tenant_id.uuid()),
            reservation.key_id.map(|key| blob(key.uuid())),
            reservation.user,
            reservation.model,
            reservation.request_id,
            reservation.node,
            to_json(&reservation.quantities)?,
            reservation.admitted_at.micros(),
            reservation.expires_at.micros(),
        ],
    )?;
    Ok(())
}

fn find(tx: &Transaction<'_>, id: ReservationId) -> Result<Option<Reservation>, Failed> {
    rows::find(
        tx,
        TABLE,
        "SELECT * FROM reservations WHERE reservation_id = ?1",
        [blob(id.uuid())],
        read,
    )
}

fn settle(
    tx: &Transaction<'_>,
    tenant: TenantId,
    id: ReservationId,
    settlement: Settlement,
) -> Result<Settling, Failed> {
    let Some(found) = find(tx, id)?.filter(|found| found.tenant_id == tenant) else {
        return Ok(Settling::NotFound);
    };
    if let Some(before) = found.settlement.clone() {
        return Ok(Settling::Before(found, before));
    }
    rows::run(
        tx,
        "UPDATE reservations SET settled_at = ?2, settle_key = ?3, settled = ?4, event_id = ?5, is_recorded = ?6
         WHERE reservation_id = ?1",
        params![
            blob(id.uuid()),
            settlement.at.micros(),
            settlement.key,
            to_json(&settlement.quantities)?,
            blob(settlement.event_id.uuid()),
            settlement.is_recorded,
        ],
    )?;
    Ok(Settling::First(Reservation {
        settlement: Some(settlement),
        ..found
    }))
}

fn release(
    tx: &Transaction<'_>,
    tenant: Option<TenantId>,
    id: ReservationId,
    at: Timestamp,
) -> Result<Releasing, Failed> {
    let found = find(tx, id)?.filter(|found| tenant.is_none_or(|it| it == found.tenant_id));
    match found {
        None => Ok(Releasing::NotFound),
        Some(found) if found.settlement.is_some() => Ok(Releasing::Settled),
        Some(found) if found.released_at.is_some() => Ok(Releasing::NotFound),
        Some(_) => {
            rows::run(
                tx,
                "UPDATE reservations SET released_at = ?2 WHERE reservation_id = ?1",
                params![blob(id.uuid()), micros(Some(at))],
            )?;
            Ok(Releasing::Released)
        }
    }
}

/// Notes that the event of a settled reservation is in the store, in the transaction that brings it.
pub(super) fn note_recorded(tx: &Transaction<'_>, event: EventId) -> Result<(), Failed> {
    rows::run(
        tx,
        "UPDATE reservations SET is_recorded = 1 WHERE event_id = ?1 AND settled_at IS NOT NULL AND is_recorded = 0",
        [blob(event.uuid())],
    )?;
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
