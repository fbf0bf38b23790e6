//! The turns of `/api/v1/chat` conversations.

use futures_util::future::BoxFuture;

use super::StoreResult;
use crate::domain::{
    ids::{ConversationId, TenantId},
    time::Timestamp,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaker {
    User,
    Assistant,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    pub speaker: Speaker,
    pub text: String,
}

pub trait ConversationStore: Send + Sync {
    /// The conversation's turns, oldest first; `None` if it is not there, not this tenant's, or expired at `now`.
    fn find_conversation(
        &self,
        tenant: TenantId,
        conversation: ConversationId,
        now: Timestamp,
    ) -> BoxFuture<'_, StoreResult<Option<Vec<Turn>>>>;
    /// Adds turns at the end, makes the conversation if need be, and lets it live until `expires_at`.
    ///
    /// # Errors
    /// `NotFound` for the tenant, and for a conversation that is another's.
    fn append_turns<'a>(
        &'a self,
        tenant: TenantId,
        conversation: ConversationId,
        turns: &'a [Turn],
        expires_at: Timestamp,
    ) -> BoxFuture<'a, StoreResult<()>>;
    /// Deletes what expired before `now`.
    fn prune_conversations(&self, now: Timestamp) -> BoxFuture<'_, StoreResult<u64>>;
}
