//! People and programs that change things, and what they may do.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{ids::AdminTokenId, names::DisplayName, time::Timestamp};

/// What an administrator may do; each role includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Changes plans, tenants, keys and grants.
    Operator,
    /// Changes administrators too.
    Owner,
}

impl Role {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Owner => "owner",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a role; write viewer, operator or owner")]
pub struct InvalidRole(String);

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Viewer, Self::Operator, Self::Owner]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| InvalidRole(text.to_owned()))
    }
}

/// An administrator's token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminToken {
    pub admin_token_id: AdminTokenId,
    pub name: DisplayName,
    pub role: Role,
    pub created_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
}

/// Who made a change, when, and from where: what the audit log says of every write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// `cli`, `setup`, `stripe`, or an administrator's name.
    pub name: String,
    /// The peer's address, if it came over the network.
    pub address: Option<String>,
    pub at: Timestamp,
}
