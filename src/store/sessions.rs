//! Sessions of the admin page: found by the hash of their secret, which is all that is kept of it.

use futures_util::future::BoxFuture;

use super::{StoreResult, keys::SecretHash};
use crate::domain::{administrator::Actor, ids::SessionId, session::Session, time::Timestamp};

pub trait SessionStore: Send + Sync {
    /// Adds one, with an audit row.
    ///
    /// # Errors
    /// `AlreadyExists`.
    fn create_session<'a>(
        &'a self,
        session: &'a Session,
        secret: SecretHash,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>>;
    /// The session with this secret, unless it is over at `now`.
    fn find_session(
        &self,
        secret: SecretHash,
        now: Timestamp,
    ) -> BoxFuture<'_, StoreResult<Option<Session>>>;
    /// Replaces when it was seen last and when it expires; one that has ended meanwhile stays ended.
    fn touch_session<'a>(&'a self, session: &'a Session) -> BoxFuture<'a, StoreResult<()>>;
    /// Those that are not over at `now`, the one seen last first.
    fn list_sessions(&self, now: Timestamp) -> BoxFuture<'_, StoreResult<Vec<Session>>>;
    /// Ends a session, with an audit row, and gives it.
    ///
    /// # Errors
    /// `NotFound`, also for one that has ended already.
    fn end_session<'a>(
        &'a self,
        session: SessionId,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<Session>>;
    /// Deletes those that are over at `now`.
    fn prune_sessions(&self, now: Timestamp) -> BoxFuture<'_, StoreResult<u64>>;
}
