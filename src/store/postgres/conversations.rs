//! The turns of conversations.

use futures_util::future::BoxFuture;

use super::{
    Failed, PostgresStore, not_found,
    pool::Tx,
    rows::{self, params},
    tenants,
};
use crate::{
    domain::{
        ids::{ConversationId, TenantId},
        time::Timestamp,
    },
    store::{
        StoreResult,
        conversations::{ConversationStore, Speaker, Turn},
    },
};

/// How many conversations one transaction deletes, so that other writes get their turn.
const PRUNED_AT_ONCE: usize = 1_000;

impl ConversationStore for PostgresStore {
    fn find_conversation(
        &self,
        tenant: TenantId,
        conversation: ConversationId,
        now: Timestamp,
    ) -> BoxFuture<'_, StoreResult<Option<Vec<Turn>>>> {
        Box::pin(self.read("conversations.find", move |tx| async move {
            find(&tx, tenant, conversation, now).await
        }))
    }

    fn append_turns<'a>(
        &'a self,
        tenant: TenantId,
        conversation: ConversationId,
        turns: &'a [Turn],
        expires_at: Timestamp,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.write("conversations.append", move |tx| async move {
            append(&tx, tenant, conversation, turns, expires_at).await
        }))
    }

    fn prune_conversations(&self, now: Timestamp) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(async move {
            let at_once = u64::try_from(PRUNED_AT_ONCE).unwrap_or(u64::MAX);
            let mut pruned = 0;
            loop {
                let deleted =
                    self.write_at_leisure("conversations.prune", |tx| async move {
                        prune(&tx, now).await
                    })
                    .await?;
                pruned += deleted;
                if deleted < at_once {
                    return Ok(pruned);
                }
            }
        })
    }
}

async fn find(
    tx: &Tx,
    tenant: TenantId,
    conversation: ConversationId,
    now: Timestamp,
) -> Result<Option<Vec<Turn>>, Failed> {
    let id = conversation.uuid();
    let is_there = rows::exists(
        tx,
        "SELECT 1 FROM conversations WHERE conversation_id = $1 AND tenant_id = $2 AND expires_at > $3",
        params![id, tenant.uuid(), now.micros()],
    ).await?;
    if !is_there {
        return Ok(None);
    }
    let turns = rows::list(
        tx,
        "conversation_turns",
        "SELECT * FROM conversation_turns WHERE conversation_id = $1 ORDER BY position",
        params![id],
        |cells| {
            let speakers = [Speaker::User, Speaker::Assistant];
            Ok(Turn {
                speaker: cells.one_of("speaker", &speakers, speaker_name)?,
                text: cells.get("text")?,
            })
        },
    )
    .await?;
    Ok(Some(turns))
}

async fn append(
    tx: &Tx,
    tenant: TenantId,
    conversation: ConversationId,
    turns: &[Turn],
    expires_at: Timestamp,
) -> Result<(), Failed> {
    tenants::get(tx, tenant).await?;
    let id = conversation.uuid();
    // Another tenant's conversation stays as it is, and so nothing is changed here.
    let own = rows::run(
        tx,
        "INSERT INTO conversations (conversation_id, tenant_id, expires_at) VALUES ($1, $2, $3)
         ON CONFLICT (conversation_id) DO UPDATE SET expires_at = excluded.expires_at
             WHERE conversations.tenant_id = excluded.tenant_id",
        params![id, tenant.uuid(), expires_at.micros()],
    )
    .await?;
    if own == 0 {
        return Err(not_found("conversation", conversation));
    }
    // Whoever adds to the same conversation waits for its row, just written, until this is committed.
    let next = rows::find(
        tx,
        "conversation_turns",
        "SELECT coalesce(max(position) + 1, 0) AS next FROM conversation_turns WHERE conversation_id = $1",
        params![id],
        |cells| cells.get::<i64>("next"),
    )
    .await?
    .unwrap_or(0);
    for (position, turn) in (next..).zip(turns) {
        rows::run(
            tx,
            "INSERT INTO conversation_turns (conversation_id, position, speaker, text) VALUES ($1, $2, $3, $4)",
            params![id, position, speaker_name(turn.speaker), rows::text(&turn.text)],
        ).await?;
    }
    Ok(())
}

async fn prune(tx: &Tx, now: Timestamp) -> Result<u64, Failed> {
    rows::run(
        tx,
        "DELETE FROM conversations WHERE conversation_id IN
             (SELECT conversation_id FROM conversations WHERE expires_at <= $1 LIMIT $2)",
        params![now.micros(), rows::limit(PRUNED_AT_ONCE)],
    )
    .await
}

const fn speaker_name(speaker: Speaker) -> &'static str {
    match speaker {
        Speaker::User => "user",
        Speaker::Assistant => "assistant",
    }
}
