//! API keys and administrators' tokens: found by the hash of their secret, which is all that is kept of it.

use async_trait::async_trait;

use super::{StoreResult, catalogue::TenantPolicy};
use crate::domain::{
    administrator::{Actor, AdminToken},
    ids::{AdminTokenId, KeyId, TenantId},
    tenant::ApiKey,
    time::Timestamp,
};

/// SHA-256 of a secret of 256 random bits: nothing to guess, so no slow hash is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SecretHash(pub [u8; 32]);

/// Where owners are to be found: the last one is not revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// All of them are in the store.
    InStore,
    /// A setting names one too, whom nobody can revoke.
    AlsoInSettings,
}

#[async_trait]
pub trait KeyStore: Send + Sync {
    /// # Errors
    /// `NotFound` for the tenant; `AlreadyExists`.
    async fn create_key(&self, key: &ApiKey, secret: SecretHash, by: &Actor) -> StoreResult<()>;
    /// The key with this secret, revoked and expired ones too, and what decides on the requests of its tenant
    /// ([`find_policy`](super::catalogue::CatalogueStore::find_policy)): one question for all that a first request
    /// needs. Found by a secret that was rotated away, the key expires when that one's grace ends, so that a cached
    /// key does not outlive it; past the grace at `now` there is none.
    async fn find_caller(
        &self,
        secret: SecretHash,
        now: Timestamp,
    ) -> StoreResult<Option<(ApiKey, Option<TenantPolicy>)>>;
    async fn get_key(&self, key: KeyId) -> StoreResult<ApiKey>;
    /// A tenant's keys, oldest first.
    async fn list_keys(&self, tenant: TenantId) -> StoreResult<Vec<ApiKey>>;
    /// The keys of several tenants, in the order asked, each as [`list_keys`](Self::list_keys) gives them.
    async fn list_keys_of(&self, tenants: Vec<TenantId>) -> StoreResult<Vec<Vec<ApiKey>>>;
    /// Replaces name and expiry; with `expected`, only if that is still the version ([`versions`](super::versions)).
    ///
    /// # Errors
    /// `NotFound`, also for one that is revoked; `VersionConflict`.
    async fn update_key(&self, key: &ApiKey, expected: Option<i64>, by: &Actor) -> StoreResult<()>;
    /// Ends a key at `by.at`, and gives it; one that is revoked already stays as it is.
    ///
    /// # Errors
    /// `NotFound`; `VersionConflict` for one that is in use.
    async fn revoke_key(
        &self,
        key: KeyId,
        expected: Option<i64>,
        by: &Actor,
    ) -> StoreResult<ApiKey>;
    /// Gives the key a new secret; the old one still serves until `old_until`, one from a rotation before no longer.
    ///
    /// # Errors
    /// `NotFound`, `VersionConflict`.
    async fn rotate_key(
        &self,
        key: KeyId,
        secret: SecretHash,
        old_until: Timestamp,
        expected: Option<i64>,
        by: &Actor,
    ) -> StoreResult<ApiKey>;

    /// # Errors
    /// `AlreadyExists`, also for a name that another token in use has.
    async fn create_admin_token(
        &self,
        token: &AdminToken,
        secret: SecretHash,
        by: &Actor,
    ) -> StoreResult<()>;
    /// The token with this secret, unless it is revoked.
    async fn find_admin_token(&self, secret: SecretHash) -> StoreResult<Option<AdminToken>>;
    /// The token with this id, unless it is revoked.
    async fn get_admin_token(&self, token: AdminTokenId) -> StoreResult<Option<AdminToken>>;
    /// Ends a token at `by.at`, its sessions with it, and gives it.
    ///
    /// # Errors
    /// `NotFound`, also for one that is revoked already; `LastOwner` if no owner would be left.
    async fn revoke_admin_token(
        &self,
        token: AdminTokenId,
        owners: Owners,
        by: &Actor,
    ) -> StoreResult<AdminToken>;
    /// All tokens, revoked ones included, oldest first.
    async fn list_admin_tokens(&self) -> StoreResult<Vec<AdminToken>>;
}
