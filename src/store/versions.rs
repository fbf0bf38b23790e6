//! Versions of what has none of its own: a number made of its content, so that whoever read one thing and changes
//! another is told. The same for every backend; plans count theirs.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{StoreError, StoreResult, audited};
use crate::domain::{
    limit::Override,
    tenant::{ApiKey, Tenant},
};

/// Of what is not there.
pub const ABSENT: i64 = 0;

/// Of a tenant with its subscription and overrides.
#[must_use]
pub fn tenant(tenant: &Tenant) -> i64 {
    of(&audited::tenant(tenant))
}

/// Of a tenant's own limits of one feature.
#[must_use]
pub fn override_(own: &Override) -> i64 {
    of(&audited::override_(own))
}

/// Of a key; a new secret does not change it.
#[must_use]
pub fn key(key: &ApiKey) -> i64 {
    of(&audited::key(key))
}

/// 0 to 2^53 − 1, which every JSON reader keeps exactly.
fn of(content: &Value) -> i64 {
    let digest = Sha256::digest(content.to_string());
    let bytes = digest.iter().take(7);
    let number = bytes.fold(0, |number, byte| (number << 8) | i64::from(*byte));
    number >> 3
}

/// # Errors
/// `VersionConflict` if a version is expected and is not the current one.
pub(super) fn check(
    what: &'static str,
    name: impl ToString,
    current: i64,
    expected: Option<i64>,
) -> StoreResult<()> {
    match expected {
        Some(expected) if expected != current => Err(StoreError::VersionConflict {
            what,
            name: name.to_string(),
            current,
        }),
        _ => Ok(()),
    }
}
