//! Who may do what: an administrator by bearer token, and the least role that a route wants.

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::{
    app::App,
    domain::administrator::{Actor, Role},
    http::{auth::bearer, error::ApiError, server::Peer},
    services::administrators::Administrator,
};

/// An administrator at work.
#[derive(Clone, Debug)]
pub struct Admin {
    pub administrator: Administrator,
    /// As the audit log names it: the name, the peer's address, now.
    pub actor: Actor,
}

/// Anyone who is an administrator: reads.
pub struct Viewer(pub Admin);
/// Changes plans, tenants, keys and grants.
pub struct Operator(pub Admin);
/// Changes administrators too.
pub struct Owner(pub Admin);

impl Admin {
    /// # Errors
    /// [`ApiError::InvalidApiKey`] for a token that is missing, unknown, revoked or a tenant's;
    /// [`ApiError::Forbidden`] for a role too low; [`ApiError::StoreUnavailable`].
    async fn of(parts: &Parts, app: &App, needed: Role) -> Result<Self, ApiError> {
        let token = bearer(&parts.headers).ok_or(ApiError::InvalidApiKey)?;
        let administrator = app
            .administrators
            .authenticate(token)
            .await?
            .ok_or(ApiError::InvalidApiKey)?;
        if !administrator.may(needed) {
            return Err(ApiError::Forbidden {
                needed,
                has: administrator.role,
            });
        }
        // The peer itself: a header such as X-Forwarded-For says whatever its sender likes.
        let address = parts
            .extensions
            .get::<Peer>()
            .map(|Peer(address)| address.ip().to_string());
        let actor = administrator.acting(address, app.clock.now());
        Ok(Self {
            administrator,
            actor,
        })
    }
}

macro_rules! role {
    ($name:ident, $needed:expr) => {
        impl FromRequestParts<App> for $name {
            type Rejection = ApiError;

            async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
                Admin::of(parts, app, $needed).await.map(Self)
            }
        }
    };
}

role!(Viewer, Role::Viewer);
role!(Operator, Role::Operator);
role!(Owner, Role::Owner);
