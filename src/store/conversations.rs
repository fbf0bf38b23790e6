//! The turns of `/api/v1/chat` conversations.

use async_trait::async_trait;

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

#[async_trait]
pub trait ConversationStore: Send + Sync {
    /// The conversation's turns, oldest first; `None` if it is not there, not this tenant's, or expired at `now`.
    async fn find_conversation(
        &self,
        tenant: TenantId,
        conversation: ConversationId,
        now: Timestamp,
    ) -> StoreResult<Option<Vec<Turn>>>;
    /// Adds turns at the end, makes the conversation if need be, and lets it live until `expires_at`.
    ///
    /// # Errors
    /// `NotFound` for the tenant, and for a conversation that is another's.
    async fn append_turns(
        &self,
        tenant: TenantId,
        conversation: ConversationId,
        turns: &[Turn],
        expires_at: Timestamp,
    ) -> StoreResult<()>;
    /// Deletes what expired before `now`.
    async fn prune_conversations(&self, now: Timestamp) -> StoreResult<u64>;
}
