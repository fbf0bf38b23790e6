//! API keys and administrators' tokens.

use super::{SharedStore, ada, at, by, key_of, new_tenant_id, secret, stored_tenant};
use crate::{
    clock::new_id,
    domain::{
        administrator::{AdminToken, Role},
        ids::{AdminTokenId, KeyId},
        tenant::{ApiKey, TenantRef},
        time::Timestamp,
    },
    store::{StoreError, StoreResult, keys::SecretHash, versions},
};

macro_rules! cases {
    ($open:path) => {
        $crate::store::contract::run!(
            $open,
            keys,
            a_key_is_found_by_its_secret_as_it_was_made,
            a_key_comes_with_what_decides_on_its_tenant,
            a_key_of_no_tenant_is_not_made,
            keys_are_listed_oldest_first,
            revoking_a_key_again_changes_nothing,
            a_revoked_key_is_still_found,
            an_old_secret_serves_until_its_grace_ends,
            a_rotation_ends_the_grace_of_the_one_before,
            name_and_expiry_of_a_key_that_is_not_revoked_are_changed,
            a_key_that_is_not_there_is_not_found,
            an_administrators_token_is_found_by_its_secret,
            administrators_tokens_are_listed_oldest_first,
        );
    };
}
pub(crate) use cases;

fn now() -> Timestamp {
    at("2026-05-01T00:00:00Z")
}

async fn find_key(
    store: &SharedStore,
    secret: SecretHash,
    now: Timestamp,
) -> StoreResult<Option<ApiKey>> {
    let found = store.find_caller(secret, now).await?;
    Ok(found.map(|(key, _)| key))
}

async fn stored_key(store: &SharedStore, hash: SecretHash) -> ApiKey {
    let acme = stored_tenant(store, "acme").await;
    let key = key_of(acme.tenant_id, "2026-01-01T00:00:00Z");
    store.create_key(&key, hash, &ada()).await.unwrap();
    key
}

pub(crate) async fn a_key_is_found_by_its_secret_as_it_was_made(store: &SharedStore) {
    let key = stored_key(store, secret(1)).await;
    assert_eq!(
        find_key(store, secret(1), now()).await,
        Ok(Some(key.clone()))
    );
    assert_eq!(find_key(store, secret(2), now()).await, Ok(None));
    assert_eq!(store.get_key(key.key_id).await, Ok(key));
}

pub(crate) async fn a_key_comes_with_what_decides_on_its_tenant(store: &SharedStore) {
    let key = stored_key(store, secret(1)).await;
    let found = store.find_caller(secret(1), now()).await.unwrap();
    let policy = found.and_then(|(_, policy)| policy).unwrap();
    let tenant = TenantRef::Id(key.tenant_id);
    assert_eq!(Ok(Some(policy.tenant)), store.find_tenant(&tenant).await);
    assert_eq!(policy.plan, None, "it has no subscription");
    assert_eq!(policy.grants, []);
}

pub(crate) async fn a_key_of_no_tenant_is_not_made(store: &SharedStore) {
    let key = key_of(new_tenant_id(), "2026-01-01T00:00:00Z");
    let made = store.create_key(&key, secret(1), &ada()).await;
    assert!(
        matches!(made, Err(StoreError::NotFound { what: "tenant", .. })),
        "{made:?}"
    );
    assert_eq!(find_key(store, secret(1), now()).await, Ok(None));
}

pub(crate) async fn keys_are_listed_oldest_first(store: &SharedStore) {
    let acme = stored_tenant(store, "acme").await;
    let other = stored_tenant(store, "other").await;
    let newer = key_of(acme.tenant_id, "2026-03-01T00:00:00Z");
    let older = key_of(acme.tenant_id, "2026-02-01T00:00:00Z");
    let others = key_of(other.tenant_id, "2026-02-01T00:00:00Z");
    for (key, byte) in [(&newer, 1), (&older, 2), (&others, 3)] {
        store.create_key(key, secret(byte), &ada()).await.unwrap();
    }
    let listed = store.list_keys(acme.tenant_id).await.unwrap();
    assert_eq!(listed, [older, newer]);
    let nobody = stored_tenant(store, "nobody").await.tenant_id;
    let asked = vec![other.tenant_id, nobody, acme.tenant_id, other.tenant_id];
    let found = store.list_keys_of(asked).await;
    assert_eq!(
        found,
        Ok(vec![vec![others.clone()], vec![], listed, vec![others]])
    );
    assert_eq!(store.list_keys_of(vec![]).await, Ok(vec![]));
}

pub(crate) async fn revoking_a_key_again_changes_nothing(store: &SharedStore) {
    let key = stored_key(store, secret(1)).await;
    let first = by("2026-03-01T00:00:00Z");
    let revoked = store.revoke_key(key.key_id, None, &first).await.unwrap();
    assert_eq!(
        revoked,
        ApiKey {
            revoked_at: Some(first.at),
            ..key.clone()
        }
    );
    let entries = store.list_audit(None, 10).await.unwrap().len();
    let again = store
        .revoke_key(key.key_id, None, &by("2026-04-01T00:00:00Z"))
        .await;
    assert_eq!(again, Ok(revoked.clone()));
    assert_eq!(store.get_key(key.key_id).await, Ok(revoked));
    assert_eq!(store.list_audit(None, 10).await.unwrap().len(), entries);
}

pub(crate) async fn a_revoked_key_is_still_found(store: &SharedStore) {
    let key = stored_key(store, secret(1)).await;
    let revoked = store.revoke_key(key.key_id, None, &ada()).await.unwrap();
    assert_eq!(find_key(store, secret(1), now()).await, Ok(Some(revoked)));
}

pub(crate) async fn an_old_secret_serves_until_its_grace_ends(store: &SharedStore) {
    let key = stored_key(store, secret(1)).await;
    let until = at("2026-05-01T01:00:00Z");
    let rotated = store
        .rotate_key(key.key_id, secret(2), until, None, &ada())
        .await
        .unwrap();
    assert_eq!(rotated, key, "the id and all else stay");
    let just_before = Timestamp::from_micros(until.micros() - 1);
    let until_then = ApiKey {
        expires_at: Some(until),
        ..key.clone()
    };
    for (hash, when, expected) in [
        (1, just_before, Some(&until_then)),
        (1, until, None),
        (2, just_before, Some(&key)),
        (2, until, Some(&key)),
    ] {
        let found = find_key(store, secret(hash), when).await.unwrap();
        assert_eq!(found.as_ref(), expected, "secret {hash} at {when}");
    }
}

pub(crate) async fn a_rotation_ends_the_grace_of_the_one_before(store: &SharedStore) {
    let key = stored_key(store, secret(1)).await;
    let until = at("2026-06-01T00:00:00Z");
    for hash in [2, 3] {
        store
            .rotate_key(key.key_id, secret(hash), until, None, &ada())
            .await
            .unwrap();
    }
    for (hash, serves) in [(1, false), (2, true), (3, true)] {
        let found = find_key(store, secret(hash), now()).await.unwrap();
        assert_eq!(found.is_some(), serves, "secret {hash}");
    }
}

pub(crate) async fn name_and_expiry_of_a_key_that_is_not_revoked_are_changed(store: &SharedStore) {
    let key = stored_key(store, secret(1)).await;
    let changed = ApiKey {
        name: "server".parse().unwrap(),
        expires_at: None,
        ..key.clone()
    };
    store.update_key(&changed, None, &ada()).await.unwrap();
    assert_eq!(store.get_key(key.key_id).await, Ok(changed.clone()));
    let old = Some(versions::key(&key));
    for late in [
        store.update_key(&key, old, &ada()).await,
        store.revoke_key(key.key_id, old, &ada()).await.map(|_| ()),
        store
            .rotate_key(key.key_id, secret(2), now(), old, &ada())
            .await
            .map(|_| ()),
    ] {
        assert!(
            matches!(late, Err(StoreError::VersionConflict { .. })),
            "{late:?}"
        );
    }
    assert_eq!(store.get_key(key.key_id).await, Ok(changed));
    let serves = find_key(store, secret(1), now()).await.unwrap();
    assert!(serves.is_some(), "its secret is the one it had");
    let revoked = store.revoke_key(key.key_id, None, &ada()).await.unwrap();
    let late = store.update_key(&key, None, &ada()).await;
    assert!(matches!(late, Err(StoreError::NotFound { .. })), "{late:?}");
    assert_eq!(store.get_key(key.key_id).await, Ok(revoked));
}

pub(crate) async fn a_key_that_is_not_there_is_not_found(store: &SharedStore) {
    let nothing = KeyId::new(new_id());
    let missing = StoreError::NotFound {
        what: "key",
        name: nothing.to_string(),
    };
    assert_eq!(store.get_key(nothing).await, Err(missing.clone()));
    assert_eq!(
        store.revoke_key(nothing, None, &ada()).await,
        Err(missing.clone())
    );
    let rotated = store
        .rotate_key(nothing, secret(1), now(), None, &ada())
        .await;
    assert_eq!(rotated, Err(missing));
}

fn token(name: &str, created_at: &str) -> AdminToken {
    AdminToken {
        admin_token_id: AdminTokenId::new(new_id()),
        name: name.parse().unwrap(),
        role: Role::Operator,
        created_at: at(created_at),
        revoked_at: None,
    }
}

pub(crate) async fn an_administrators_token_is_found_by_its_secret(store: &SharedStore) {
    let ada_token = token("ada", "2026-01-01T00:00:00Z");
    store
        .create_admin_token(&ada_token, secret(1), &ada())
        .await
        .unwrap();
    assert_eq!(
        store.find_admin_token(secret(1)).await,
        Ok(Some(ada_token.clone()))
    );
    assert_eq!(store.find_admin_token(secret(2)).await, Ok(None));
    let again = store
        .create_admin_token(&ada_token, secret(2), &ada())
        .await;
    assert!(
        matches!(again, Err(StoreError::AlreadyExists { .. })),
        "{again:?}"
    );
    assert_eq!(
        find_key(store, secret(1), now()).await,
        Ok(None),
        "an administrator's token is no key"
    );
}

pub(crate) async fn administrators_tokens_are_listed_oldest_first(store: &SharedStore) {
    let newer = token("ben", "2026-02-01T00:00:00Z");
    let older = AdminToken {
        revoked_at: Some(at("2026-03-01T00:00:00Z")),
        ..token("ada", "2026-01-01T00:00:00Z")
    };
    for (made, byte) in [(&newer, 1), (&older, 2)] {
        store
            .create_admin_token(made, secret(byte), &ada())
            .await
            .unwrap();
    }
    assert_eq!(store.list_admin_tokens().await.unwrap(), [older, newer]);
    assert_eq!(
        store.find_admin_token(secret(2)).await,
        Ok(None),
        "it is revoked"
    );
}
