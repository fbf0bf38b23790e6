//! Who may do what: an administrator by bearer token or by the page's session, and the least role that a route wants.

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::{
    app::App,
    domain::{
        administrator::{Actor, Role},
        time::Timestamp,
    },
    http::{auth::bearer, browser, error::ApiError, server::Peer},
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
    /// [`ApiError::InvalidApiKey`] for a token that is missing, unknown, revoked or a tenant's, or a session that is
    /// over; [`ApiError::CrossSite`] for a change by a session that another site's page may have asked for;
    /// [`ApiError::Forbidden`] for a role too low; [`ApiError::StoreUnavailable`].
    async fn of(parts: &Parts, app: &App, needed: Role) -> Result<Self, ApiError> {
        let now = app.clock.now();
        let administrator = match bearer(&parts.headers) {
            Some(token) => app.administrators.authenticate(token).await?,
            None => match browser::session_secret(&parts.headers) {
                Some(_) if !browser::is_ours(&parts.method, &parts.headers) => {
                    return Err(ApiError::CrossSite);
                }
                Some(secret) => {
                    let found = app.sessions.find(secret, now).await?;
                    found.map(|signed_in| signed_in.administrator)
                }
                None => None,
            },
        };
        let administrator = administrator.ok_or(ApiError::InvalidApiKey)?;
        Self::at_work(administrator, parts, needed, now)
    }

    /// # Errors
    /// [`ApiError::Forbidden`] for a role too low.
    pub fn at_work(
        administrator: Administrator,
        parts: &Parts,
        needed: Role,
        now: Timestamp,
    ) -> Result<Self, ApiError> {
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
        let actor = administrator.acting(address, now);
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
