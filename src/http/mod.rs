//! HTTP: parse, one call into a service, answer. Rules are the services'; nothing here decides about limits.

pub mod admin;
pub mod auth;
pub mod browser;
pub mod caller;
pub mod chat;
pub mod cloud_events;
pub mod conditional;
pub mod direct;
pub mod error;
pub mod extract;
pub mod fields;
pub mod guarded;
pub mod headers;
pub mod idempotency;
pub mod layers;
pub mod openai;
pub mod openapi;
pub mod ops;
pub mod overload;
pub mod paging;
pub mod path;
pub mod query;
pub mod request_id;
pub mod reservations;
pub mod router;
pub mod server;
mod traced;
pub mod usage;
pub mod webhooks;

/// Which of its clients an answer is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// tollgate's own API, and everything that is not below `/v1`.
    Native,
    /// OpenAI's, below `/v1`.
    OpenAi,
}

impl Dialect {
    #[must_use]
    pub fn of_path(path: &str) -> Self {
        match path.strip_prefix("/v1") {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => Self::OpenAi,
            _ => Self::Native,
        }
    }
}
