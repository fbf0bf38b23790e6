//! Tenants' API keys: made, listed, ended and given new secrets.

use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

use crate::{
    clock,
    domain::{
        administrator::Actor,
        ids::KeyId,
        names::DisplayName,
        tenant::{ApiKey, Tenant, TenantRef},
        time::Timestamp,
    },
    store::SharedStore,
};

use super::{
    AdminError,
    plans::Change,
    secrets::{self, SecretKind},
    tenants::Tenants,
};

/// Longest time that a rotated secret still serves.
pub const LONGEST_GRACE: Duration = Duration::from_secs(30 * 24 * 3600);

/// A key to be made.
#[derive(Clone, Debug)]
pub struct NewKey {
    pub name: DisplayName,
    /// Fixes the end user of every request made with the key.
    pub user: Option<String>,
    pub expires_at: Option<Timestamp>,
}

impl NewKey {
    fn check(&self, now: Timestamp) -> Result<(), AdminError> {
        if let Some(user) = &self.user {
            // 128 bytes: the longest user that a request may name (interface.md §3).
            let is_good = (1..=128).contains(&user.len()) && !user.chars().any(char::is_control);
            if !is_good {
                let accepted = "1 to 128 bytes without control characters";
                return Err(AdminError::invalid("user", user, accepted));
            }
        }
        self.expires_at.map_or(Ok(()), |at| check_expiry(at, now))
    }
}

fn check_expiry(at: Timestamp, now: Timestamp) -> Result<(), AdminError> {
    if at > now {
        return Ok(());
    }
    let accepted = format!("a time after now, {now}");
    Err(AdminError::invalid("expires_at", at, accepted))
}

/// A change to a key; what is left out stays.
#[derive(Clone, Debug, Default)]
pub struct KeyChange {
    pub name: Option<DisplayName>,
    pub expires_at: Change<Timestamp>,
}

/// A key with what is told of it only once.
#[derive(Debug)]
pub struct Issued {
    pub key: ApiKey,
    pub tenant: Tenant,
    pub secret: SecretString,
}

/// The keys, as they are kept.
#[derive(Clone)]
pub struct Keys {
    store: SharedStore,
    tenants: Tenants,
    expected: Option<i64>,
}

impl Keys {
    #[must_use]
    pub fn new(store: SharedStore) -> Self {
        Self {
            tenants: Tenants::new(store.clone()),
            store,
            expected: None,
        }
    }

    /// Changes are made only to a key that still has this version ([`versions`](crate::store::versions)); else they
    /// are a `VersionConflict`.
    #[must_use]
    pub fn expecting(self, expected: Option<i64>) -> Self {
        Self { expected, ..self }
    }

    /// A key that is not revoked, and its tenant.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get(&self, key: KeyId) -> Result<(ApiKey, Tenant), AdminError> {
        let stored = self.store.get_key(key).await?;
        if stored.revoked_at.is_some() {
            return Err(AdminError::not_found("key", key));
        }
        let tenant = TenantRef::Id(stored.tenant_id);
        let tenant = self.tenants.get(&tenant).await?;
        Ok((stored, tenant))
    }

    /// # Errors
    /// `NotFound` for the tenant; `Invalid`.
    pub async fn create(
        &self,
        tenant: &TenantRef,
        new: NewKey,
        by: &Actor,
    ) -> Result<Issued, AdminError> {
        new.check(by.at)?;
        let tenant = self.tenants.get(tenant).await?;
        let key = ApiKey {
            key_id: KeyId::new(clock::new_id()),
            tenant_id: tenant.tenant_id,
            name: new.name,
            user: new.user,
            created_at: by.at,
            expires_at: new.expires_at,
            revoked_at: None,
        };
        let secret = secrets::generate(SecretKind::TenantKey);
        self.store
            .create_key(&key, secrets::hash(secret.expose_secret()), by)
            .await?;
        Ok(Issued {
            key,
            tenant,
            secret,
        })
    }

    /// A tenant's keys, ended ones included, oldest first.
    ///
    /// # Errors
    /// `NotFound` for the tenant.
    pub async fn list(&self, tenant: &TenantRef) -> Result<(Vec<ApiKey>, Tenant), AdminError> {
        let tenant = self.tenants.get(tenant).await?;
        Ok((self.store.list_keys(tenant.tenant_id).await?, tenant))
    }

    /// Ends a key at once; one that is revoked already stays as it is.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn revoke(&self, key: KeyId, by: &Actor) -> Result<(ApiKey, Tenant), AdminError> {
        let key = self.store.revoke_key(key, self.expected, by).await?;
        let tenant = self.tenants.get(&TenantRef::Id(key.tenant_id)).await?;
        Ok((key, tenant))
    }

    /// Changes a key that is not revoked.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for an expiry that is over.
    pub async fn change(
        &self,
        key: KeyId,
        change: &KeyChange,
        by: &Actor,
    ) -> Result<(ApiKey, Tenant), AdminError> {
        if let Change::Set(at) = change.expires_at {
            check_expiry(at, by.at)?;
        }
        let (stored, tenant) = self.get(key).await?;
        let changed = ApiKey {
            name: change.name.clone().unwrap_or_else(|| stored.name.clone()),
            expires_at: change.expires_at.apply(stored.expires_at),
            ..stored.clone()
        };
        if changed != stored || self.expected.is_some() {
            self.store.update_key(&changed, self.expected, by).await?;
        }
        Ok((changed, tenant))
    }

    /// As [`revoke`](Self::revoke), but a key that was revoked before is not there any more.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn end(&self, key: KeyId, by: &Actor) -> Result<(), AdminError> {
        let ended = self.store.revoke_key(key, self.expected, by).await?;
        match ended.revoked_at {
            Some(at) if at == by.at => Ok(()),
            _ => Err(AdminError::not_found("key", key)),
        }
    }

    /// Gives the key a new secret; the old one serves for `grace` more. Id and counters stay.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a key that is over, or a grace beyond [`LONGEST_GRACE`].
    pub async fn rotate(
        &self,
        key: KeyId,
        grace: Duration,
        by: &Actor,
    ) -> Result<Issued, AdminError> {
        if grace > LONGEST_GRACE {
            let accepted = format!("at most {} seconds", LONGEST_GRACE.as_secs());
            return Err(AdminError::invalid(
                "grace_seconds",
                grace.as_secs(),
                accepted,
            ));
        }
        let current = self.store.get_key(key).await?;
        if !current.is_valid_at(by.at) {
            let accepted = "the id of a key that is not revoked or expired, or make a new key";
            return Err(AdminError::invalid("key_id", key, accepted));
        }
        let secret = secrets::generate(SecretKind::TenantKey);
        let hash = secrets::hash(secret.expose_secret());
        let key = self
            .store
            .rotate_key(key, hash, by.at.plus(grace), self.expected, by)
            .await?;
        let tenant = self.tenants.get(&TenantRef::Id(key.tenant_id)).await?;
        Ok(Issued {
            key,
            tenant,
            secret,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_for_nobody_or_for_the_past_is_refused() {
        let now = Timestamp::from_seconds(1_000);
        let key = |user: Option<&str>, expires_at| NewKey {
            name: "k".parse().unwrap(),
            user: user.map(str::to_owned),
            expires_at,
        };
        let long = "x".repeat(129);
        for (bad, field) in [
            (key(Some(""), None), "user"),
            (key(Some("a\n"), None), "user"),
            (key(Some(&long), None), "user"),
            (key(None, Some(now)), "expires_at"),
        ] {
            let error = bad.check(now).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
        key(Some(&long[1..]), Some(Timestamp::from_seconds(1_001)))
            .check(now)
            .unwrap();
    }
}
