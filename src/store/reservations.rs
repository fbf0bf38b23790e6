//! Reservations of the reservation API, from the answer that makes them on.

use async_trait::async_trait;

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

#[async_trait]
pub trait ReservationStore: Send + Sync {
    /// Durable when it returns.
    ///
    /// # Errors
    /// `AlreadyExists`.
    async fn add_reservation(&self, reservation: &Reservation) -> StoreResult<()>;

    async fn find_reservation(
        &self,
        reservation: ReservationId,
    ) -> StoreResult<Option<Reservation>>;

    /// The one that an event records.
    async fn find_reservation_of_event(&self, event: EventId) -> StoreResult<Option<Reservation>>;

    /// Those that hold something at `now`, the oldest first.
    async fn list_open_reservations(&self, now: Timestamp) -> StoreResult<Vec<Reservation>>;

    /// Those that were settled, but whose event is not in the store; the oldest first.
    async fn list_unrecorded_reservations(&self) -> StoreResult<Vec<Reservation>>;

    /// Writes down that a reservation of `tenant` was settled, unless it was before. Whether it had expired or was
    /// released does not matter: the usage happened. Its event, once recorded, sets `is_recorded`.
    async fn settle_reservation(
        &self,
        tenant: TenantId,
        reservation: ReservationId,
        settlement: &Settlement,
    ) -> StoreResult<Settling>;

    /// Writes down that a reservation was given back; with `tenant`, only if it is that tenant's.
    async fn release_reservation(
        &self,
        tenant: Option<TenantId>,
        reservation: ReservationId,
        at: Timestamp,
    ) -> StoreResult<Releasing>;

    /// Forgets those that expired before `before`, at most `limit`.
    async fn prune_reservations(&self, before: Timestamp, limit: usize) -> StoreResult<u64>;
}
