//! Who asks: a tenant's key in `Authorization`, and the end user that the request names.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::{HeaderMap, HeaderName, request::Parts};

use crate::{
    app::App,
    domain::tenant::ApiKey,
    http::{auth::bearer, error::ApiError, request_id::RequestId},
    provider::request::LONGEST_USER_BYTES,
    services::{
        guard,
        secrets::{self, SecretKind},
    },
};

const X_TOLLGATE_USER: HeaderName = HeaderName::from_static("x-tollgate-user");

/// A request with a valid tenant key.
pub struct Caller {
    key: Arc<ApiKey>,
    user: Arc<str>,
    request_id: Arc<str>,
}

impl Caller {
    /// Who sends a request with these headers.
    ///
    /// # Errors
    /// [`ApiError::InvalidApiKey`] without a valid key; that it can't be looked up.
    pub async fn of(
        app: &App,
        headers: &HeaderMap,
        request_id: Arc<str>,
    ) -> Result<Self, ApiError> {
        let secret = bearer(headers).ok_or(ApiError::InvalidApiKey)?;
        // Nothing else was ever given out: no hash, and no look into the store.
        if !secrets::has_form(SecretKind::TenantKey, secret) {
            return Err(ApiError::InvalidApiKey);
        }
        let now = app.clock.now();
        let key = app
            .catalogue
            .key(secrets::hash(secret), now)
            .await?
            .ok_or(ApiError::InvalidApiKey)?;
        if !key.is_valid_at(now) {
            return Err(ApiError::InvalidApiKey);
        }
        let user = key.user.as_deref().unwrap_or("").into();
        Ok(Self {
            key,
            user,
            request_id,
        })
    }

    /// Whom the guard counts for.
    #[must_use]
    pub fn guarded(&self) -> guard::Caller {
        guard::Caller {
            tenant_id: self.key.tenant_id,
            key_id: self.key.key_id,
            user: Arc::clone(&self.user),
            request_id: Arc::clone(&self.request_id),
            keyed: None,
        }
    }

    #[must_use]
    pub fn key(&self) -> &ApiKey {
        &self.key
    }

    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Finds the end user: the key's own, else the header's, else the body's.
    ///
    /// # Errors
    /// [`ApiError`] for a header that is too long, or no visible text.
    pub fn name_user(
        &mut self,
        headers: &HeaderMap,
        in_body: Option<&str>,
    ) -> Result<(), ApiError> {
        if let Some(user) = &self.key.user {
            self.user = user.as_str().into();
            return Ok(());
        }
        let named = headers.get(X_TOLLGATE_USER);
        let Some(value) = named.filter(|value| !value.is_empty()) else {
            self.user = in_body.unwrap_or("").into();
            return Ok(());
        };
        let bad = |found| {
            let accepted = "a text of at most 128 bytes in UTF-8";
            ApiError::bad_field("X-Tollgate-User", found, accepted)
        };
        let user =
            std::str::from_utf8(value.as_bytes()).map_err(|_| bad("not UTF-8".to_owned()))?;
        if user.len() > LONGEST_USER_BYTES {
            return Err(bad(format!("a text of {} bytes", user.len())));
        }
        self.user = user.into();
        Ok(())
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let id = RequestId::from_extensions(&parts.extensions);
        let id = id.map_or_else(|| "".into(), |id| Arc::clone(&id.0));
        Self::of(app, &parts.headers, id).await
    }
}
