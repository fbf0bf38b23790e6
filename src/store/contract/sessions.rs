//! Sessions of the admin page.

use super::{SharedStore, ada, at, by, secret};
use crate::{
    clock::new_id,
    domain::{
        administrator::{AdminToken, Role},
        ids::{AdminTokenId, SessionId},
        session::Session,
        time::Timestamp,
    },
    store::{StoreError, keys::Owners},
};

macro_rules! cases {
    ($open:path) => {
        $crate::store::contract::run!(
            $open,
            sessions,
            a_session_is_found_by_its_secret_until_it_expires,
            a_session_that_is_used_lives_longer,
            sessions_are_listed_by_when_they_were_seen,
            a_session_that_was_ended_stays_ended,
            a_revoked_administrators_sessions_are_over,
            beginning_and_ending_are_audited_without_the_secret,
            pruning_deletes_what_is_over_and_nothing_else,
        );
    };
}
pub(crate) use cases;

fn now() -> Timestamp {
    at("2026-05-01T00:00:00Z")
}

fn session(administrator: AdminTokenId) -> Session {
    Session {
        session_id: SessionId::new(new_id()),
        admin_token_id: administrator,
        created_at: at("2026-04-30T00:00:00Z"),
        last_seen_at: at("2026-04-30T12:00:00Z"),
        expires_at: at("2026-05-01T12:00:00Z"),
        address: Some("192.0.2.7".to_owned()),
        user_agent: "a browser".to_owned(),
    }
}

async fn stored(store: &SharedStore, byte: u8) -> Session {
    let session = session(AdminTokenId::new(new_id()));
    store
        .create_session(&session, secret(byte), &ada())
        .await
        .unwrap();
    session
}

pub(crate) async fn a_session_is_found_by_its_secret_until_it_expires(store: &SharedStore) {
    let session = stored(store, 1).await;
    let ends = session.expires_at;
    assert_eq!(
        store.find_session(secret(1), now()).await,
        Ok(Some(session))
    );
    assert_eq!(store.find_session(secret(2), now()).await, Ok(None));
    assert_eq!(store.find_session(secret(1), ends).await, Ok(None));
}

pub(crate) async fn a_session_that_is_used_lives_longer(store: &SharedStore) {
    let session = stored(store, 1).await;
    let used = Session {
        last_seen_at: now(),
        expires_at: at("2026-05-02T00:00:00Z"),
        ..session.clone()
    };
    store.touch_session(&used).await.unwrap();
    let found = store.find_session(secret(1), session.expires_at).await;
    assert_eq!(found, Ok(Some(used)));
}

pub(crate) async fn sessions_are_listed_by_when_they_were_seen(store: &SharedStore) {
    let (one, other) = (stored(store, 1).await, stored(store, 2).await);
    let used = Session {
        last_seen_at: now(),
        ..other
    };
    store.touch_session(&used).await.unwrap();
    let ends = one.expires_at;
    assert_eq!(store.list_sessions(now()).await, Ok(vec![used, one]));
    assert_eq!(store.list_sessions(ends).await, Ok(vec![]));
}

pub(crate) async fn a_session_that_was_ended_stays_ended(store: &SharedStore) {
    let session = stored(store, 1).await;
    let by = by("2026-05-01T00:00:00Z");
    let ended = store.end_session(session.session_id, &by).await;
    assert_eq!(ended, Ok(session.clone()));
    store.touch_session(&session).await.unwrap();
    assert_eq!(store.find_session(secret(1), now()).await, Ok(None));
    let again = store.end_session(session.session_id, &by).await;
    assert!(
        matches!(again, Err(StoreError::NotFound { .. })),
        "{again:?}"
    );
}

pub(crate) async fn a_revoked_administrators_sessions_are_over(store: &SharedStore) {
    let token = AdminToken {
        admin_token_id: AdminTokenId::new(new_id()),
        name: "bob".parse().unwrap(),
        role: Role::Viewer,
        created_at: at("2026-01-01T00:00:00Z"),
        revoked_at: None,
    };
    store
        .create_admin_token(&token, secret(9), &ada())
        .await
        .unwrap();
    let other = stored(store, 2).await;
    store
        .create_session(&session(token.admin_token_id), secret(1), &ada())
        .await
        .unwrap();
    store
        .revoke_admin_token(token.admin_token_id, Owners::AlsoInSettings, &ada())
        .await
        .unwrap();
    assert_eq!(store.find_session(secret(1), now()).await, Ok(None));
    assert_eq!(store.list_sessions(now()).await, Ok(vec![other]));
}

pub(crate) async fn beginning_and_ending_are_audited_without_the_secret(store: &SharedStore) {
    let session = stored(store, 7).await;
    store
        .end_session(session.session_id, &by("2026-05-01T00:00:00Z"))
        .await
        .unwrap();
    let entries = store.list_audit(None, 2).await.unwrap();
    let actions: Vec<&str> = entries.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["session.end", "session.create"]);
    let id = session.session_id.to_string();
    assert!(entries.iter().all(|entry| entry.target == id));
    assert!(entries[1].before.is_none() && entries[1].after.is_some());
    let told = format!("{entries:?}");
    assert!(!told.contains("0707") && !told.contains("7, 7"), "{told}");
}

pub(crate) async fn pruning_deletes_what_is_over_and_nothing_else(store: &SharedStore) {
    let session = stored(store, 1).await;
    assert_eq!(store.prune_sessions(now()).await, Ok(0));
    assert_eq!(store.prune_sessions(session.expires_at).await, Ok(1));
    assert_eq!(store.find_session(secret(1), now()).await, Ok(None));
}
