//! A reservation of the reservation API: what an application may still use that calls a model itself.

use super::{
    ids::{EventId, KeyId, ReservationId, TenantId},
    time::Timestamp,
    usage::Quantities,
};

/// Holds `quantities` from `admitted_at` until it is settled or released, or `expires_at` has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    pub reservation_id: ReservationId,
    pub tenant_id: TenantId,
    pub key_id: Option<KeyId>,
    /// The end user; `""` if it names none.
    pub user: String,
    pub model: Option<String>,
    /// The `X-Request-Id` of the request that made it.
    pub request_id: String,
    /// The node that made it.
    pub node: String,
    pub quantities: Quantities,
    /// Decides the windows that it is held and counted in.
    pub admitted_at: Timestamp,
    pub expires_at: Timestamp,
    pub released_at: Option<Timestamp>,
    pub settlement: Option<Settlement>,
}

/// What a reservation turned out to have used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// Names it, so that a repeat counts once; `""` if its sender named none.
    pub key: String,
    pub quantities: Quantities,
    pub at: Timestamp,
    /// The event that records it.
    pub event_id: EventId,
    /// The event is in the store.
    pub is_recorded: bool,
}
