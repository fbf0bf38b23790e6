//! Sessions of the admin page: found by the hash of their secret, which is all that is kept of it.

use async_trait::async_trait;

use super::{StoreResult, keys::SecretHash};
use crate::domain::{administrator::Actor, ids::SessionId, session::Session, time::Timestamp};

#[async_trait]
pub trait SessionStore: Send + Sync {
    /// Adds one, with an audit row.
    ///
    /// # Errors
    /// `AlreadyExists`.
    async fn create_session(
        &self,
        session: &Session,
        secret: SecretHash,
        by: &Actor,
    ) -> StoreResult<()>;
    /// The session with this secret, unless it is over at `now`.
    async fn find_session(
        &self,
        secret: SecretHash,
        now: Timestamp,
    ) -> StoreResult<Option<Session>>;
    /// Replaces when it was seen last and when it expires; one that has ended meanwhile stays ended.
    async fn touch_session(&self, session: &Session) -> StoreResult<()>;
    /// Those that are not over at `now`, the one seen last first.
    async fn list_sessions(&self, now: Timestamp) -> StoreResult<Vec<Session>>;
    /// Ends a session, with an audit row, and gives it.
    ///
    /// # Errors
    /// `NotFound`, also for one that has ended already.
    async fn end_session(&self, session: SessionId, by: &Actor) -> StoreResult<Session>;
    /// Deletes those that are over at `now`.
    async fn prune_sessions(&self, now: Timestamp) -> StoreResult<u64>;
}
