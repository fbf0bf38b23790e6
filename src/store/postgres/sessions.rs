//! Sessions of the admin page.

use futures_util::future::BoxFuture;

use super::{
    Failed, PostgresStore, already_exists,
    audit::Change,
    not_found,
    pool::Tx,
    rows::{self, Cells, params},
};
use crate::{
    domain::{
        administrator::Actor,
        ids::{AdminTokenId, SessionId},
        session::Session,
        time::Timestamp,
    },
    store::{StoreResult, audited, keys::SecretHash, sessions::SessionStore},
};

impl SessionStore for PostgresStore {
    fn create_session<'a>(
        &'a self,
        session: &'a Session,
        secret: SecretHash,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.change("sessions.create", move |tx| async move {
            create(&tx, session, secret, by).await
        }))
    }

    fn find_session(
        &self,
        secret: SecretHash,
        now: Timestamp,
    ) -> BoxFuture<'_, StoreResult<Option<Session>>> {
        Box::pin(self.read("sessions.find", move |tx| async move {
            rows::find(
                &tx,
                "sessions",
                "SELECT * FROM sessions WHERE secret_hash = $1 AND expires_at > $2",
                params![secret.0.as_slice(), now.micros()],
                read_session,
            )
            .await
        }))
    }

    fn touch_session<'a>(&'a self, session: &'a Session) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.write("sessions.touch", move |tx| async move {
            rows::run(
                &tx,
                "UPDATE sessions SET last_seen_at = $2, expires_at = $3 WHERE session_id = $1",
                params![
                    session.session_id.uuid(),
                    session.last_seen_at.micros(),
                    session.expires_at.micros()
                ],
            )
            .await?;
            Ok(())
        }))
    }

    fn list_sessions(&self, now: Timestamp) -> BoxFuture<'_, StoreResult<Vec<Session>>> {
        Box::pin(self.read("sessions.list", move |tx| async move {
            rows::list(
                &tx,
                "sessions",
                "SELECT * FROM sessions WHERE expires_at > $1 ORDER BY last_seen_at DESC, session_id",
                params![now.micros()],
                read_session,
            ).await
        }))
    }

    fn end_session<'a>(
        &'a self,
        session: SessionId,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<Session>> {
        Box::pin(self.change("sessions.end", move |tx| async move {
            end(&tx, session, by).await
        }))
    }

    fn prune_sessions(&self, now: Timestamp) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(
            self.write_at_leisure("sessions.prune", move |tx| async move {
                rows::run(
                    &tx,
                    "DELETE FROM sessions WHERE expires_at <= $1",
                    params![now.micros()],
                )
                .await
            }),
        )
    }
}

async fn create(tx: &Tx, session: &Session, secret: SecretHash, by: &Actor) -> Result<(), Failed> {
    let id = session.session_id.uuid();
    let is_there = rows::exists(
        tx,
        "SELECT 1 FROM sessions WHERE session_id = $1 OR secret_hash = $2",
        params![id, secret.0.as_slice()],
    )
    .await?;
    if is_there {
        return Err(already_exists("session", session.session_id));
    }
    Change {
        action: "session.create",
        target: &session.session_id.to_string(),
        before: None,
        after: Some(audited::session(session)),
    }
    .note(tx, by)
    .await?;
    rows::run(
        tx,
        "INSERT INTO sessions (session_id, secret_hash, admin_token_id, created_at, last_seen_at, expires_at, address, user_agent)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        params![
            id,
            secret.0.as_slice(),
            session.admin_token_id.uuid(),
            session.created_at.micros(),
            session.last_seen_at.micros(),
            session.expires_at.micros(),
            session.address,
            session.user_agent,
        ],
    ).await?;
    Ok(())
}

async fn end(tx: &Tx, session: SessionId, by: &Actor) -> Result<Session, Failed> {
    let stored = rows::find(
        tx,
        "sessions",
        "SELECT * FROM sessions WHERE session_id = $1 AND expires_at > $2",
        params![session.uuid(), by.at.micros()],
        read_session,
    )
    .await?;
    let stored = stored.ok_or_else(|| not_found("session", session))?;
    Change {
        action: "session.end",
        target: &session.to_string(),
        before: Some(audited::session(&stored)),
        after: None,
    }
    .note(tx, by)
    .await?;
    rows::run(
        tx,
        "DELETE FROM sessions WHERE session_id = $1",
        params![session.uuid()],
    )
    .await?;
    Ok(stored)
}

fn read_session(cells: &Cells<'_>) -> Result<Session, Failed> {
    Ok(Session {
        session_id: SessionId::new(cells.uuid("session_id")?),
        admin_token_id: AdminTokenId::new(cells.uuid("admin_token_id")?),
        created_at: cells.time("created_at")?,
        last_seen_at: cells.time("last_seen_at")?,
        expires_at: cells.time("expires_at")?,
        address: cells.get("address")?,
        user_agent: cells.get("user_agent")?,
    })
}
