//! The turns of conversations.

use super::{SharedStore, at, new_tenant_id, stored_tenant};
use crate::{
    clock::new_id,
    domain::{ids::ConversationId, time::Timestamp},
    store::{
        StoreError,
        conversations::{Speaker, Turn},
    },
};

macro_rules! cases {
    ($open:path) => {
        $crate::store::contract::run!(
            $open,
            conversations,
            turns_are_found_in_the_order_they_were_added,
            another_tenants_conversation_is_not_found_and_not_changed,
            an_expired_conversation_is_not_found,
            a_turn_lets_a_conversation_live_longer,
            pruning_deletes_what_has_expired_and_nothing_else,
            a_conversation_of_no_tenant_is_not_made,
        );
    };
}
pub(crate) use cases;

fn turn(speaker: Speaker, text: &str) -> Turn {
    Turn {
        speaker,
        text: text.to_owned(),
    }
}

fn conversation() -> ConversationId {
    ConversationId::new(new_id())
}

fn now() -> Timestamp {
    at("2026-05-01T00:00:00Z")
}

fn later() -> Timestamp {
    at("2026-06-01T00:00:00Z")
}

pub(crate) async fn turns_are_found_in_the_order_they_were_added(store: &SharedStore) {
    let acme = stored_tenant(store, "acme").await.tenant_id;
    let id = conversation();
    assert_eq!(store.find_conversation(acme, id, now()).await, Ok(None));
    let turns = [
        turn(Speaker::User, "hi"),
        turn(Speaker::Assistant, "hello"),
        turn(Speaker::User, "ünïcode\n"),
    ];
    store
        .append_turns(acme, id, &turns[..2], later())
        .await
        .unwrap();
    store
        .append_turns(acme, id, &turns[2..], later())
        .await
        .unwrap();
    let found = store.find_conversation(acme, id, now()).await.unwrap();
    assert_eq!(found, Some(turns.to_vec()));
}

pub(crate) async fn another_tenants_conversation_is_not_found_and_not_changed(store: &SharedStore) {
    let acme = stored_tenant(store, "acme").await.tenant_id;
    let other = stored_tenant(store, "other").await.tenant_id;
    let id = conversation();
    let turns = [turn(Speaker::User, "hi")];
    store.append_turns(acme, id, &turns, later()).await.unwrap();
    assert_eq!(store.find_conversation(other, id, now()).await, Ok(None));
    let added = store
        .append_turns(other, id, &[turn(Speaker::User, "mine")], now())
        .await;
    assert!(
        matches!(added, Err(StoreError::NotFound { .. })),
        "{added:?}"
    );
    let found = store.find_conversation(acme, id, now()).await.unwrap();
    assert_eq!(found, Some(turns.to_vec()));
}

pub(crate) async fn an_expired_conversation_is_not_found(store: &SharedStore) {
    let acme = stored_tenant(store, "acme").await.tenant_id;
    let id = conversation();
    let turns = [turn(Speaker::User, "hi")];
    store.append_turns(acme, id, &turns, now()).await.unwrap();
    let just_before = Timestamp::from_micros(now().micros() - 1);
    let living = store.find_conversation(acme, id, just_before).await;
    assert_eq!(living, Ok(Some(turns.to_vec())));
    assert_eq!(store.find_conversation(acme, id, now()).await, Ok(None));
}

pub(crate) async fn a_turn_lets_a_conversation_live_longer(store: &SharedStore) {
    let acme = stored_tenant(store, "acme").await.tenant_id;
    let id = conversation();
    let turns = [turn(Speaker::User, "hi")];
    for expires_at in [now(), later()] {
        store
            .append_turns(acme, id, &turns, expires_at)
            .await
            .unwrap();
    }
    let found = store.find_conversation(acme, id, now()).await.unwrap();
    assert_eq!(found.map(|turns| turns.len()), Some(2));
}

pub(crate) async fn pruning_deletes_what_has_expired_and_nothing_else(store: &SharedStore) {
    let acme = stored_tenant(store, "acme").await.tenant_id;
    let (expired, living) = (conversation(), conversation());
    let turns = [turn(Speaker::User, "hi")];
    store
        .append_turns(acme, expired, &turns, now())
        .await
        .unwrap();
    store
        .append_turns(acme, living, &turns, later())
        .await
        .unwrap();
    assert_eq!(store.prune_conversations(now()).await, Ok(1));
    assert_eq!(store.prune_conversations(now()).await, Ok(0));
    let long_ago = at("2020-01-01T00:00:00Z");
    let gone = store.find_conversation(acme, expired, long_ago).await;
    assert_eq!(gone, Ok(None));
    let kept = store.find_conversation(acme, living, now()).await.unwrap();
    assert_eq!(kept, Some(turns.to_vec()));
}

pub(crate) async fn a_conversation_of_no_tenant_is_not_made(store: &SharedStore) {
    let (nobody, id) = (new_tenant_id(), conversation());
    let turns = [turn(Speaker::User, "hi")];
    let added = store.append_turns(nobody, id, &turns, later()).await;
    assert!(
        matches!(added, Err(StoreError::NotFound { .. })),
        "{added:?}"
    );
    assert_eq!(store.find_conversation(nobody, id, now()).await, Ok(None));
}
