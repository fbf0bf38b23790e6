//! API keys and administrators' tokens.

use futures_util::future::BoxFuture;
use rusqlite::{Transaction, params};

use super::{
    Failed, SqliteStore, already_exists,
    audit::Change,
    catalogue, not_found,
    rows::{self, Cells, blob, micros},
    tenants,
};
use crate::{
    domain::{
        administrator::{Actor, AdminToken, Role},
        ids::{AdminTokenId, KeyId, TenantId},
        tenant::ApiKey,
        time::Timestamp,
    },
    store::{
        StoreError, StoreResult, audited,
        keys::{FoundCaller, KeyStore, Owners, SecretHash},
        versions,
    },
};

impl KeyStore for SqliteStore {
    fn create_key<'a>(
        &'a self,
        key: &'a ApiKey,
        secret: SecretHash,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let (key, by) = (key.clone(), by.clone());
        Box::pin(self.write("keys.create", move |tx| create_key(tx, &key, secret, &by)))
    }

    fn find_caller(
        &self,
        secret: SecretHash,
        now: Timestamp,
    ) -> BoxFuture<'_, StoreResult<Option<FoundCaller>>> {
        Box::pin(self.read("keys.find_caller", move |tx| {
            let Some(key) = find_by_secret(tx, secret, now)? else {
                return Ok(None);
            };
            let policy = catalogue::find_policy(tx, key.tenant_id)?;
            Ok(Some((key, policy)))
        }))
    }

    fn get_key(&self, key: KeyId) -> BoxFuture<'_, StoreResult<ApiKey>> {
        Box::pin(self.read("keys.get", move |tx| get_key(tx, key)))
    }

    fn list_keys(&self, tenant: TenantId) -> BoxFuture<'_, StoreResult<Vec<ApiKey>>> {
        Box::pin(self.read("keys.list", move |tx| keys_of(tx, tenant)))
    }

    fn list_keys_of(&self, tenants: Vec<TenantId>) -> BoxFuture<'_, StoreResult<Vec<Vec<ApiKey>>>> {
        Box::pin(self.read("keys.list_of", move |tx| {
            tenants.iter().map(|tenant| keys_of(tx, *tenant)).collect()
        }))
    }

    fn update_key<'a>(
        &'a self,
        key: &'a ApiKey,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let (key, by) = (key.clone(), by.clone());
        Box::pin(self.write("keys.update", move |tx| update_key(tx, &key, expected, &by)))
    }

    fn revoke_key<'a>(
        &'a self,
        key: KeyId,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<ApiKey>> {
        let by = by.clone();
        Box::pin(self.write("keys.revoke", move |tx| revoke_key(tx, key, expected, &by)))
    }

    fn rotate_key<'a>(
        &'a self,
        key: KeyId,
        secret: SecretHash,
        old_until: Timestamp,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<ApiKey>> {
        let by = by.clone();
        Box::pin(self.write("keys.rotate", move |tx| {
            rotate_key(tx, key, secret, old_until, expected, &by)
        }))
    }

    fn create_admin_token<'a>(
        &'a self,
        token: &'a AdminToken,
        secret: SecretHash,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let (token, by) = (token.clone(), by.clone());
        Box::pin(self.write("keys.create_admin_token", move |tx| {
            create_admin_token(tx, &token, secret, &by)
        }))
    }

    fn find_admin_token(
        &self,
        secret: SecretHash,
    ) -> BoxFuture<'_, StoreResult<Option<AdminToken>>> {
        Box::pin(self.read("keys.find_admin_token", move |tx| {
            rows::find(
                tx,
                "admin_tokens",
                "SELECT * FROM admin_tokens WHERE secret_hash = ?1 AND revoked_at IS NULL",
                [secret.0],
                read_admin_token,
            )
        }))
    }

    fn get_admin_token(
        &self,
        token: AdminTokenId,
    ) -> BoxFuture<'_, StoreResult<Option<AdminToken>>> {
        Box::pin(self.read("keys.get_admin_token", move |tx| {
            find_admin_token_in_use(tx, token)
        }))
    }

    fn revoke_admin_token<'a>(
        &'a self,
        token: AdminTokenId,
        owners: Owners,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<AdminToken>> {
        let by = by.clone();
        Box::pin(self.write("keys.revoke_admin_token", move |tx| {
            revoke_admin_token(tx, token, owners, &by)
        }))
    }

    fn list_admin_tokens(&self) -> BoxFuture<'_, StoreResult<Vec<AdminToken>>> {
        Box::pin(self.read("keys.list_admin_tokens", move |tx| {
            rows::list(
                tx,
                "admin_tokens",
                "SELECT * FROM admin_tokens ORDER BY created_at, admin_token_id",
                [],
                read_admin_token,
            )
        }))
    }
}

fn create_key(
    tx: &Transaction<'_>,
    key: &ApiKey,
    secret: SecretHash,
    by: &Actor,
) -> Result<(), Failed> {
    let tenant = tenants::get(tx, key.tenant_id)?;
    if find_by_id(tx, key.key_id)?.is_some() {
        return Err(already_exists("key", key.key_id));
    }
    Change {
        action: "key.create",
        target: &key.key_id.to_string(),
        before: None,
        after: Some(audited::with(
            audited::key(key),
            "tenant_slug",
            tenant.slug.as_str(),
        )),
    }
    .note(tx, by)?;
    rows::run(
        tx,
        "INSERT INTO keys (key_id, tenant_id, name, end_user, secret_hash, created_at, expires_at, revoked_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            blob(key.key_id.uuid()),
            blob(key.tenant_id.uuid()),
            key.name.as_str(),
            key.user,
            secret.0,
            key.created_at.micros(),
            micros(key.expires_at),
            micros(key.revoked_at),
        ],
    )?;
    Ok(())
}

fn find_by_secret(
    tx: &Transaction<'_>,
    secret: SecretHash,
    now: Timestamp,
) -> Result<Option<ApiKey>, Failed> {
    let current = rows::find(
        tx,
        "keys",
        "SELECT * FROM keys WHERE secret_hash = ?1",
        [secret.0],
        read_key,
    )?;
    if current.is_some() {
        return Ok(current);
    }
    rows::find(
        tx,
        "keys",
        "SELECT * FROM keys WHERE previous_secret_hash = ?1 AND previous_until > ?2",
        params![secret.0, now.micros()],
        |cells| {
            let (key, until) = (read_key(cells)?, cells.time("previous_until")?);
            let expires_at = key.expires_at.map_or(until, |at| at.min(until));
            Ok(ApiKey {
                expires_at: Some(expires_at),
                ..key
            })
        },
    )
}

fn update_key(
    tx: &Transaction<'_>,
    key: &ApiKey,
    expected: Option<i64>,
    by: &Actor,
) -> Result<(), Failed> {
    let stored = get_key(tx, key.key_id)?;
    if stored.revoked_at.is_some() {
        return Err(not_found("key", key.key_id));
    }
    versions::check("key", key.key_id, versions::key(&stored), expected)?;
    let changed = ApiKey {
        name: key.name.clone(),
        expires_at: key.expires_at,
        ..stored.clone()
    };
    if changed == stored {
        return Ok(());
    }
    Change {
        action: "key.update",
        target: &key.key_id.to_string(),
        before: Some(audited::key(&stored)),
        after: Some(audited::key(&changed)),
    }
    .note(tx, by)?;
    rows::run(
        tx,
        "UPDATE keys SET name = ?2, expires_at = ?3 WHERE key_id = ?1",
        params![
            blob(key.key_id.uuid()),
            changed.name.as_str(),
            micros(changed.expires_at)
        ],
    )?;
    Ok(())
}

fn revoke_key(
    tx: &Transaction<'_>,
    key: KeyId,
    expected: Option<i64>,
    by: &Actor,
) -> Result<ApiKey, Failed> {
    let stored = get_key(tx, key)?;
    if stored.revoked_at.is_some() {
        return Ok(stored);
    }
    versions::check("key", key, versions::key(&stored), expected)?;
    let revoked = ApiKey {
        revoked_at: Some(by.at),
        ..stored.clone()
    };
    Change {
        action: "key.revoke",
        target: &key.to_string(),
        before: Some(audited::key(&stored)),
        after: Some(audited::key(&revoked)),
    }
    .note(tx, by)?;
    rows::run(
        tx,
        "UPDATE keys SET revoked_at = ?2 WHERE key_id = ?1",
        params![blob(key.uuid()), by.at.micros()],
    )?;
    Ok(revoked)
}

fn rotate_key(
    tx: &Transaction<'_>,
    key: KeyId,
    secret: SecretHash,
    old_until: Timestamp,
    expected: Option<i64>,
    by: &Actor,
) -> Result<ApiKey, Failed> {
    let stored = get_key(tx, key)?;
    versions::check("key", key, versions::key(&stored), expected)?;
    Change {
        action: "key.rotate",
        target: &key.to_string(),
        before: Some(audited::key(&stored)),
        after: Some(audited::with(
            audited::key(&stored),
            "old_secret_until",
            old_until.to_string(),
        )),
    }
    .note(tx, by)?;
    // On the right-hand side, `secret_hash` is still the old one.
    rows::run(
        tx,
        "UPDATE keys SET previous_secret_hash = secret_hash, previous_until = ?3, secret_hash = ?2 WHERE key_id = ?1",
        params![blob(key.uuid()), secret.0, old_until.micros()],
    )?;
    Ok(stored)
}

fn find_by_id(tx: &Transaction<'_>, key: KeyId) -> Result<Option<ApiKey>, Failed> {
    rows::find(
        tx,
        "keys",
        "SELECT * FROM keys WHERE key_id = ?1",
        [blob(key.uuid())],
        read_key,
    )
}

fn keys_of(tx: &Transaction<'_>, tenant: TenantId) -> Result<Vec<ApiKey>, Failed> {
    rows::list(
        tx,
        "keys",
        "SELECT * FROM keys WHERE tenant_id = ?1 ORDER BY created_at, key_id",
        [blob(tenant.uuid())],
        read_key,
    )
}

fn get_key(tx: &Transaction<'_>, key: KeyId) -> Result<ApiKey, Failed> {
    find_by_id(tx, key)?.ok_or_else(|| not_found("key", key))
}

fn read_key(cells: &Cells<'_>) -> Result<ApiKey, Failed> {
    Ok(ApiKey {
        key_id: KeyId::new(cells.uuid("key_id")?),
        tenant_id: TenantId::new(cells.uuid("tenant_id")?),
        name: cells.parse("name")?,
        user: cells.get("end_user")?,
        created_at: cells.time("created_at")?,
        expires_at: cells.optional_time("expires_at")?,
        revoked_at: cells.optional_time("revoked_at")?,
    })
}

fn create_admin_token(
    tx: &Transaction<'_>,
    token: &AdminToken,
    secret: SecretHash,
    by: &Actor,
) -> Result<(), Failed> {
    let id = blob(token.admin_token_id.uuid());
    let is_taken = rows::exists(
        tx,
        "SELECT 1 FROM admin_tokens WHERE admin_token_id = ?1 OR secret_hash = ?2",
        params![id, secret.0],
    )?;
    if is_taken {
        return Err(already_exists("administrator token", token.admin_token_id));
    }
    let is_named = rows::exists(
        tx,
        "SELECT 1 FROM admin_tokens WHERE name = ?1 AND revoked_at IS NULL",
        [token.name.as_str()],
    )?;
    if is_named && token.revoked_at.is_none() {
        return Err(already_exists("administrator", &token.name));
    }
    Change {
        action: "admin_token.create",
        target: &token.admin_token_id.to_string(),
        before: None,
        after: Some(audited::admin_token(token)),
    }
    .note(tx, by)?;
    rows::run(
        tx,
        "INSERT INTO admin_tokens (admin_token_id, name, role, secret_hash, created_at, revoked_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            id,
            token.name.as_str(),
            token.role.as_str(),
            secret.0,
            token.created_at.micros(),
            micros(token.revoked_at),
        ],
    )?;
    Ok(())
}

fn find_admin_token_in_use(
    tx: &Transaction<'_>,
    token: AdminTokenId,
) -> Result<Option<AdminToken>, Failed> {
    rows::find(
        tx,
        "admin_tokens",
        "SELECT * FROM admin_tokens WHERE admin_token_id = ?1 AND revoked_at IS NULL",
        [blob(token.uuid())],
        read_admin_token,
    )
}

fn revoke_admin_token(
    tx: &Transaction<'_>,
    token: AdminTokenId,
    owners: Owners,
    by: &Actor,
) -> Result<AdminToken, Failed> {
    let stored = find_admin_token_in_use(tx, token)?
        .ok_or_else(|| not_found("administrator token", token))?;
    // Looked at in the transaction that revokes: two owners who revoke each other leave one.
    let is_other_owner = owners == Owners::AlsoInSettings
        || rows::exists(
            tx,
            "SELECT 1 FROM admin_tokens WHERE role = 'owner' AND revoked_at IS NULL AND admin_token_id <> ?1",
            [blob(token.uuid())],
        )?;
    if stored.role == Role::Owner && !is_other_owner {
        return Err(Failed::Refused(StoreError::LastOwner {
            name: stored.name.to_string(),
        }));
    }
    let revoked = AdminToken {
        revoked_at: Some(by.at),
        ..stored.clone()
    };
    Change {
        action: "admin_token.revoke",
        target: &token.to_string(),
        before: Some(audited::admin_token(&stored)),
        after: Some(audited::admin_token(&revoked)),
    }
    .note(tx, by)?;
    rows::run(
        tx,
        "UPDATE admin_tokens SET revoked_at = ?2 WHERE admin_token_id = ?1",
        params![blob(token.uuid()), by.at.micros()],
    )?;
    rows::run(
        tx,
        "DELETE FROM sessions WHERE admin_token_id = ?1",
        [blob(token.uuid())],
    )?;
    Ok(revoked)
}

fn read_admin_token(cells: &Cells<'_>) -> Result<AdminToken, Failed> {
    Ok(AdminToken {
        admin_token_id: AdminTokenId::new(cells.uuid("admin_token_id")?),
        name: cells.parse("name")?,
        role: cells.parse("role")?,
        created_at: cells.time("created_at")?,
        revoked_at: cells.optional_time("revoked_at")?,
    })
}
