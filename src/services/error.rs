//! Why a change to the catalogue was refused.

use std::fmt::Display;

use crate::{domain::names::PlanCode, store::StoreError};

/// Why a change was refused; nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// `field` is the name that it has in JSON.
    #[error("{field} is {value}; write {accepted}")]
    Invalid {
        field: &'static str,
        value: String,
        accepted: String,
    },
    #[error("there is no {what} '{name}'")]
    NotFound { what: &'static str, name: String },
    #[error("{what} '{name}' exists already")]
    AlreadyExists { what: &'static str, name: String },
    #[error("plan '{plan}' has {subscriptions} subscription(s); move them to another plan first")]
    PlanInUse { plan: PlanCode, subscriptions: i64 },
    #[error("{what} '{name}' was changed by someone else; it is at version {current} now")]
    VersionConflict {
        what: &'static str,
        name: String,
        current: i64,
    },
    #[error("'{name}' is the last administrator of role owner; make another one first")]
    LastOwner { name: String },
    /// The store could not be read or written; trying again is safe.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
}

impl AdminError {
    /// `value` is quoted and made one line.
    #[must_use]
    pub fn invalid(field: &'static str, value: impl Display, accepted: impl Into<String>) -> Self {
        let value = format!("'{}'", value.to_string().escape_debug());
        Self::Invalid {
            field,
            value,
            accepted: accepted.into(),
        }
    }

    #[must_use]
    pub fn missing(field: &'static str, accepted: impl Into<String>) -> Self {
        Self::Invalid {
            field,
            value: "missing".to_owned(),
            accepted: accepted.into(),
        }
    }

    #[must_use]
    pub fn not_found(what: &'static str, name: impl Display) -> Self {
        let name = name.to_string();
        Self::NotFound { what, name }
    }
}

impl From<StoreError> for AdminError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(detail) => Self::Unavailable(detail),
            StoreError::AlreadyExists { what, name } => Self::AlreadyExists { what, name },
            StoreError::NotFound { what, name } => Self::NotFound { what, name },
            StoreError::PlanInUse {
                plan,
                subscriptions,
            } => Self::PlanInUse {
                plan,
                subscriptions,
            },
            StoreError::LastOwner { name } => Self::LastOwner { name },
            StoreError::VersionConflict {
                what,
                name,
                current,
            } => Self::VersionConflict {
                what,
                name,
                current,
            },
        }
    }
}
