//! Tenants' API keys.

use std::time::Duration;

use axum::{Json, extract::State, http::StatusCode, response::IntoResponse};

use super::access::{Operator, Viewer};
use crate::{
    app::App,
    domain::{
        ids::KeyId,
        names::{DisplayName, Slug},
        tenant::{ApiKey, TenantRef},
        time::Timestamp,
    },
    http::{
        conditional::{IfMatch, Versioned, or_current},
        error::{ApiError, ApiResult},
        extract::WholeBody,
        fields::Fields,
        openapi::errors,
        paging::{Listed, Page, Paging},
        path::InPath,
        query::Query,
    },
    services::{
        AdminError,
        keys::{Issued, KeyChange, Keys, NewKey},
        objects::KeyObject,
    },
    store::versions,
};

fn keys(app: &App) -> Keys {
    Keys::new(app.store.clone())
}

/// A key to be made.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"name": "backend", "expires_at": "2027-01-01T00:00:00Z"}))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub(super) struct NewKeyBody {
    name: DisplayName,
    /// Fixes the end user of every request made with the key.
    #[schema(min_length = 1, max_length = 128)]
    user: Option<String>,
    expires_at: Option<Timestamp>,
}

/// A change to a key; what is left out stays.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"name": "old backend"}))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub(super) struct KeyPatch {
    name: Option<DisplayName>,
    /// Null: never.
    expires_at: Option<Timestamp>,
}

/// How a key gets another secret.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"grace_seconds": 3600}))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub(super) struct Rotation {
    /// How long the old secret still serves.
    #[schema(minimum = 0, maximum = 2_592_000)]
    grace_seconds: Option<u64>,
}

fn told(issued: Issued) -> Versioned<KeyObject> {
    let Versioned { version, object } = versioned(issued.key, issued.tenant.slug);
    Versioned {
        version,
        object: object.with_secret(&issued.secret),
    }
}

fn versioned(key: ApiKey, tenant_slug: Slug) -> Versioned<KeyObject> {
    Versioned {
        version: versions::key(&key),
        object: KeyObject::of(key, tenant_slug),
    }
}

/// A change that came too late is answered with the key as it is now.
async fn too_late(app: &App, key: KeyId, error: AdminError) -> ApiError {
    let current = async {
        let (key, tenant) = keys(app).get(key).await?;
        Ok(KeyObject::of(key, tenant.slug))
    };
    or_current(error, current).await
}

/// List a tenant's keys, ended ones included.
#[utoipa::path(
    get, path = "/tenants/{t}/keys", tag = "keys", security(("administrator" = ["viewer"])),
    params(Paging),
    responses((status = 200, description = "Oldest first", body = Listed<KeyObject>), errors::NotFound),
)]
pub(super) async fn list(
    State(app): State<App>,
    _: Viewer,
    InPath(tenant): InPath<TenantRef>,
    mut query: Query,
) -> ApiResult<Json<Listed<KeyObject>>> {
    let page = Page::<KeyId>::of(&mut query)?;
    query.finish()?;
    let (rows, tenant) = keys(&app).list(&tenant).await?;
    // Keys are never taken off the list, only ended.
    let rows = page.rest_of(rows, |key| key.key_id);
    Ok(Json(page.show(
        rows,
        |key| key.key_id,
        |key| KeyObject::of(key, tenant.slug.clone()),
    )))
}

/// Make a key; the secret is told this once.
#[utoipa::path(
    post, path = "/tenants/{t}/keys", tag = "keys", security(("administrator" = ["operator"])),
    request_body = NewKeyBody,
    responses((status = 201, description = "Made", body = KeyObject, headers(("ETag" = String, description = "The version"))), errors::NotFound),
)]
pub(super) async fn create(
    State(app): State<App>,
    Operator(admin): Operator,
    InPath(tenant): InPath<TenantRef>,
    WholeBody(body): WholeBody,
) -> ApiResult<impl IntoResponse> {
    let mut fields = Fields::of(&body)?;
    let new = NewKey {
        name: fields.required("name")?,
        user: fields.optional("user")?,
        expires_at: fields.optional("expires_at")?,
    };
    fields.finish()?;
    let issued = keys(&app).create(&tenant, new, &admin.actor).await?;
    Ok((StatusCode::CREATED, told(issued)))
}

/// Change a key's name or expiry.
#[utoipa::path(
    patch, path = "/keys/{id}", tag = "keys", security(("administrator" = ["operator"])),
    params(("If-Match" = Option<String>, Header, description = "Only if this is still the version")),
    request_body = KeyPatch,
    responses(
        (status = 200, description = "Changed", body = KeyObject, headers(("ETag" = String, description = "The version"))),
        errors::NotFound,
        errors::VersionConflict,
    ),
)]
pub(super) async fn change(
    State(app): State<App>,
    Operator(admin): Operator,
    InPath(key): InPath<KeyId>,
    IfMatch(expected): IfMatch,
    WholeBody(body): WholeBody,
) -> ApiResult<Versioned<KeyObject>> {
    let mut fields = Fields::of(&body)?;
    let change = KeyChange {
        name: fields.optional("name")?,
        expires_at: fields.change("expires_at")?,
    };
    fields.finish()?;
    let keys_at = keys(&app).expecting(expected);
    match keys_at.change(key, &change, &admin.actor).await {
        Ok((key, tenant)) => Ok(versioned(key, tenant.slug)),
        Err(error) => Err(too_late(&app, key, error).await),
    }
}

/// Revoke a key at once.
#[utoipa::path(
    delete, path = "/keys/{id}", tag = "keys", security(("administrator" = ["operator"])),
    params(("If-Match" = Option<String>, Header, description = "Only if this is still the version")),
    responses((status = 204, description = "Revoked"), errors::NotFound, errors::VersionConflict),
)]
pub(super) async fn revoke(
    State(app): State<App>,
    Operator(admin): Operator,
    InPath(key): InPath<KeyId>,
    IfMatch(expected): IfMatch,
) -> ApiResult<StatusCode> {
    match keys(&app).expecting(expected).end(key, &admin.actor).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(too_late(&app, key, error).await),
    }
}

/// Give a key another secret, told this once; id and counters stay.
#[utoipa::path(
    post, path = "/keys/{id}/rotate", tag = "keys", security(("administrator" = ["operator"])),
    params(("If-Match" = Option<String>, Header, description = "Only if this is still the version")),
    request_body(content = Rotation, description = "May be left out"),
    responses(
        (status = 200, description = "The key with its new secret", body = KeyObject),
        errors::NotFound,
        errors::VersionConflict,
    ),
)]
pub(super) async fn rotate(
    State(app): State<App>,
    Operator(admin): Operator,
    InPath(key): InPath<KeyId>,
    IfMatch(expected): IfMatch,
    WholeBody(body): WholeBody,
) -> ApiResult<Versioned<KeyObject>> {
    let mut fields = Fields::of_optional(&body)?;
    let grace = fields.optional::<u64>("grace_seconds")?.unwrap_or(0);
    fields.finish()?;
    let grace = Duration::from_secs(grace);
    let keys_at = keys(&app).expecting(expected);
    match keys_at.rotate(key, grace, &admin.actor).await {
        Ok(issued) => Ok(told(issued)),
        Err(error) => Err(too_late(&app, key, error).await),
    }
}
