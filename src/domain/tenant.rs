//! Tenants and their API keys.

use std::{fmt, str::FromStr};

use super::{
    ids::{KeyId, TenantId},
    limit::Override,
    names::{DisplayName, InvalidName, Slug},
    subscription::Subscription,
    time::Timestamp,
};

/// The customer whose usage is limited and billed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    pub tenant_id: TenantId,
    pub slug: Slug,
    pub name: DisplayName,
    pub created_at: Timestamp,
    pub subscription: Option<Subscription>,
    /// Limits of this tenant's own, each in place of its plan's of the same scope and window.
    pub overrides: Vec<Override>,
}

/// A tenant's API key, without its secret: that is stored hashed and shown once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    pub key_id: KeyId,
    pub tenant_id: TenantId,
    pub name: DisplayName,
    /// Fixes the end user of every request made with the key.
    pub user: Option<String>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

impl ApiKey {
    #[must_use]
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        let ended = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        !ended(self.expires_at) && !ended(self.revoked_at)
    }
}

/// How a tenant is named wherever one is asked for: by id or by slug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TenantRef {
    Id(TenantId),
    Slug(Slug),
}

impl FromStr for TenantRef {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(id) => Ok(Self::Id(id)),
            Err(_) => text.parse().map(Self::Slug),
        }
    }
}

impl fmt::Display for TenantRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Slug(slug) => slug.fmt(f),
        }
    }
}
