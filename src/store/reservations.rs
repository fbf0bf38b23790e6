//! Reservations of the reservation API, from the answer that makes them on.

use futures_util::future::BoxFuture;

use super::StoreResult;
use crate::domain::{
    ids::{EventId, ReservationId, TenantId},
    reservation::{Reservation, Settlement},
    time::Timestamp,
};

/// What became of an attempt to settle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settling {
    /// This one settles it: its settlement is written down.
    First(Reservation),
    /// It was settled before, as the reservation says; nothing changed.
    Before(Reservation, Settlement),
    /// The tenant has no such reservation.
    NotFound,
}

/// What became of an attempt to release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Releasing {
    Released,
    /// It was settled before; nothing changed.
    Settled,
    /// There is none, or it was released before.
    NotFound,
}

pub trait ReservationStore: Send + Sync {
    /// Durable when it returns.
    ///
    /// # Errors
    /// `AlreadyExists`.
    fn add_reservation<'a>(
        &'a self,
        reservation: &'a Reservation,
    ) -> BoxFuture<'a, StoreResult<()>>;

    fn find_reservation(
        &self,
        reservation: ReservationId,
    ) -> BoxFuture<'_, StoreResult<Option<Reservation>>>;

    /// The one that an event records.
    fn find_reservation_of_event(
        &self,
        event: EventId,
    ) -> BoxFuture<'_, StoreResult<Option<Reservation>>>;

    /// Those that hold something at `now`, the oldest first.
    fn list_open_reservations(
        &self,
        now: Timestamp,
    ) -> BoxFuture<'_, StoreResult<Vec<Reservation>>>;

    /// Those that were settled, but whose event is not in the store; the oldest first.
    fn list_unrecorded_reservations(&self) -> BoxFuture<'_, StoreResult<Vec<Reservation>>>;

    /// Writes down that a reservation of `tenant` was settled, unless it was before. Whether it had expired or was
    /// released does not matter: the usage happened. Its event, once recorded, sets `is_recorded`.
    fn settle_reservation<'a>(
        &'a self,
        tenant: TenantId,
        reservation: ReservationId,
        settlement: &'a Settlement,
    ) -> BoxFuture<'a, StoreResult<Settling>>;

    /// Writes down that a reservation was given back; with `tenant`, only if it is that tenant's.
    fn release_reservation(
        &self,
        tenant: Option<TenantId>,
        reservation: ReservationId,
        at: Timestamp,
    ) -> BoxFuture<'_, StoreResult<Releasing>>;

    /// Forgets those that expired before `before`, at most `limit`.
    fn prune_reservations(
        &self,
        before: Timestamp,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<u64>>;
}
