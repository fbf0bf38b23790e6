//! The turns of conversations.

use futures_util::future::BoxFuture;
use rusqlite::{Transaction, params};

use super::{
    Failed, SqliteStore, not_found,
    rows::{self, blob},
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

impl ConversationStore for SqliteStore {
    fn find_conversation(
        &self,
        tenant: TenantId,
        conversation: ConversationId,
        now: Timestamp,
    ) -> BoxFuture<'_, StoreResult<Option<Vec<Turn>>>> {
        Box::pin(self.read("conversations.find", move |tx| {
            find(tx, tenant, conversation, now)
        }))
    }

    fn append_turns<'a>(
        &'a self,
        tenant: TenantId,
        conversation: ConversationId,
        turns: &'a [Turn],
        expires_at: Timestamp,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let turns = turns.to_vec();
        Box::pin(self.write("conversations.append", move |tx| {
            append(tx, tenant, conversation, &turns, expires_at)
        }))
    }

    fn prune_conversations(&self, now: Timestamp) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(async move {
            let at_once = u64::try_from(PRUNED_AT_ONCE).unwrap_or(u64::MAX);
            let mut pruned = 0;
            loop {
                let deleted = self
                    .write("conversations.prune", move |tx| prune(tx, now))
                    .await?;
                pruned += deleted;
                if deleted < at_once {
                    return Ok(pruned);
                }
            }
        })
    }
}

fn find(
    tx: &Transaction<'_>,
    tenant: TenantId,
    conversation: ConversationId,
    now: Timestamp,
) -> Result<Option<Vec<Turn>>, Failed> {
    let id = blob(conversation.uuid());
    let is_there = rows::exists(
        tx,
        "SELECT 1 FROM conversations WHERE conversation_id = ?1 AND tenant_id = ?2 AND expires_at > ?3",
        params![id, blob(tenant.uuid()), now.micros()],
    )?;
    if !is_there {
        return Ok(None);
    }
    let turns = rows::list(
        tx,
        "conversation_turns",
        "SELECT * FROM conversation_turns WHERE conversation_id = ?1 ORDER BY position",
        [id],
        |cells| {
            let speakers = [Speaker::User, Speaker::Assistant];
            Ok(Turn {
                speaker: cells.one_of("speaker", &speakers, speaker_name)?,
                text: cells.get("text")?,
            })
        },
    )?;
    Ok(Some(turns))
}

fn append(
    tx: &Transaction<'_>,
    tenant: TenantId,
    conversation: ConversationId,
    turns: &[Turn],
    expires_at: Timestamp,
) -> Result<(), Failed> {
    tenants::get(tx, tenant)?;
    let id = blob(conversation.uuid());
    // Another tenant's conversation stays as it is, and so nothing is changed here.
    let own = rows::run(
        tx,
        "INSERT INTO conversations (conversation_id, tenant_id, expires_at) VALUES (?1, ?2, ?3)
         ON CONFLICT (conversation_id) DO UPDATE SET expires_at = excluded.expires_at
             WHERE tenant_id = excluded.tenant_id",
        params![id, blob(tenant.uuid()), expires_at.micros()],
    )?;
    if own == 0 {
        return Err(not_found("conversation", conversation));
    }
    let next: i64 = tx
        .prepare_cached(
            "SELECT coalesce(max(position) + 1, 0) FROM conversation_turns WHERE conversation_id = ?1",
        )?
        .query_row([id], |row| row.get(0))?;
    for (position, turn) in (next..).zip(turns) {
        rows::run(
            tx,
            "INSERT INTO conversation_turns (conversation_id, position, speaker, text) VALUES (?1, ?2, ?3, ?4)",
            params![id, position, speaker_name(turn.speaker), turn.text],
        )?;
    }
    Ok(())
}

fn prune(tx: &Transaction<'_>, now: Timestamp) -> Result<u64, Failed> {
    rows::run(
        tx,
        "DELETE FROM conversations WHERE conversation_id IN
             (SELECT conversation_id FROM conversations WHERE expires_at <= ?1 LIMIT ?2)",
        params![now.micros(), rows::limit(PRUNED_AT_ONCE)],
    )
}

const fn speaker_name(speaker: Speaker) -> &'static str {
    match speaker {
        Speaker::User => "user",
        Speaker::Assistant => "assistant",
    }
}
