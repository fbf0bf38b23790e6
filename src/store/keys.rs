//! API keys and administrators' tokens: found by the hash of their secret, which is all that is kept of it.

use futures_util::future::BoxFuture;

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

/// A key, and what decides on the requests of its tenant
/// ([`find_policy`](super::catalogue::CatalogueStore::find_policy)).
pub type FoundCaller = (ApiKey, Option<TenantPolicy>);

pub trait KeyStore: Send + Sync {
    /// # Errors
    /// `NotFound` for the tenant; `AlreadyExists`.
    fn create_key<'a>(
        &'a self,
        key: &'a ApiKey,
        secret: SecretHash,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>>;
    /// The key with this secret, revoked and expired ones too: one question for all that a first request needs. Found
    /// by a secret that was rotated away, the key expires when that one's grace ends, so that a cached key does not
    /// outlive it; past the grace at `now` there is none.
    fn find_caller(
        &self,
        secret: SecretHash,
        now: Timestamp,
    ) -> BoxFuture<'_, StoreResult<Option<FoundCaller>>>;
    fn get_key(&self, key: KeyId) -> BoxFuture<'_, StoreResult<ApiKey>>;
    /// A tenant's keys, oldest first.
    fn list_keys(&self, tenant: TenantId) -> BoxFuture<'_, StoreResult<Vec<ApiKey>>>;
    /// The keys of several tenants, in the order asked, each as [`list_keys`](Self::list_keys) gives them.
    fn list_keys_of(&self, tenants: Vec<TenantId>) -> BoxFuture<'_, StoreResult<Vec<Vec<ApiKey>>>>;
    /// Replaces name and expiry; with `expected`, only if that is still the version ([`versions`](super::versions)).
    ///
    /// # Errors
    /// `NotFound`, also for one that is revoked; `VersionConflict`.
    fn update_key<'a>(
        &'a self,
        key: &'a ApiKey,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>>;
    /// Ends a key at `by.at`, and gives it; one that is revoked already stays as it is.
    ///
    /// # Errors
    /// `NotFound`; `VersionConflict` for one that is in use.
    fn revoke_key<'a>(
        &'a self,
        key: KeyId,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<ApiKey>>;
    /// Gives the key a new secret; the old one still serves until `old_until`, one from a rotation before no longer.
    ///
    /// # Errors
    /// `NotFound`, `VersionConflict`.
    fn rotate_key<'a>(
        &'a self,
        key: KeyId,
        secret: SecretHash,
        old_until: Timestamp,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<ApiKey>>;

    /// # Errors
    /// `AlreadyExists`, also for a name that another token in use has.
    fn create_admin_token<'a>(
        &'a self,
        token: &'a AdminToken,
        secret: SecretHash,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>>;
    /// The token with this secret, unless it is revoked.
    fn find_admin_token(
        &self,
        secret: SecretHash,
    ) -> BoxFuture<'_, StoreResult<Option<AdminToken>>>;
    /// The token with this id, unless it is revoked.
    fn get_admin_token(
        &self,
        token: AdminTokenId,
    ) -> BoxFuture<'_, StoreResult<Option<AdminToken>>>;
    /// Ends a token at `by.at`, its sessions with it, and gives it.
    ///
    /// # Errors
    /// `NotFound`, also for one that is revoked already; `LastOwner` if no owner would be left.
    fn revoke_admin_token<'a>(
        &'a self,
        token: AdminTokenId,
        owners: Owners,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<AdminToken>>;
    /// All tokens, revoked ones included, oldest first.
    fn list_admin_tokens(&self) -> BoxFuture<'_, StoreResult<Vec<AdminToken>>>;
}
