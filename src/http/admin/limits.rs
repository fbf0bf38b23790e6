//! Overrides: a tenant's own limits of a feature, in place of its plan's.

use axum::{extract::State, http::StatusCode};

use super::{
    access::{Operator, Viewer},
    bodies::limit_fields,
    plans::one_limit,
    tenants::tenants,
};
use crate::{
    app::App,
    domain::{
        feature::FeatureKey,
        limit::{Limit, Override, Scope},
        quantity::Quantity,
        tenant::{Tenant, TenantRef},
        time::Timestamp,
        window::WindowKind,
    },
    http::{
        conditional::{IfMatch, Versioned, or_current},
        error::{ApiError, ApiResult},
        extract::WholeBody,
        fields::Fields,
        openapi::errors,
        path::TwoInPath,
        query::Query,
    },
    services::{AdminError, objects::OverrideObject},
    store::versions,
};

/// A tenant's own limits of a feature, whole.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"limits": [{"scope": "tenant", "window": "period", "hard_limit": 500}], "until": "2027-01-01T00:00:00Z"}))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub(super) struct OverrideBody {
    /// As in the path.
    feature_key: Option<FeatureKey>,
    /// Each in place of the plan's of its scope and window; one without values lifts it.
    limits: Option<Vec<Limit>>,
    /// The flat form, a list of one limit.
    soft_limit: Option<Quantity>,
    hard_limit: Option<Quantity>,
    scope: Option<Scope>,
    window: Option<WindowKind>,
    /// From here on the plan holds again; null or left out: for good.
    until: Option<Timestamp>,
}

/// The override that holds now.
fn current(tenant: Tenant, key: &FeatureKey, now: Timestamp) -> Result<Override, AdminError> {
    let holds = |own: &Override| own.feature == *key && own.until.is_none_or(|until| now < until);
    let name = format!("{key} of tenant {}", tenant.slug);
    let own = tenant.overrides.into_iter().find(holds);
    own.ok_or_else(|| AdminError::not_found("limit", name))
}

fn versioned(own: Override) -> Versioned<OverrideObject> {
    Versioned {
        version: versions::override_(&own),
        object: own.into(),
    }
}

/// A change that came too late is answered with the override as it is now.
async fn too_late(app: &App, tenant: &TenantRef, key: &FeatureKey, error: AdminError) -> ApiError {
    let current = async {
        let tenant = tenants(app).get(tenant).await?;
        current(tenant, key, app.clock.now()).map(OverrideObject::from)
    };
    or_current(error, current).await
}

/// Show a tenant's own limits of a feature.
#[utoipa::path(
    get, path = "/tenants/{t}/limits/{key}", tag = "tenants", security(("administrator" = ["viewer"])),
    responses(
        (status = 200, description = "The override", body = OverrideObject, headers(("ETag" = String, description = "The version"))),
        errors::NotFound,
    ),
)]
pub(super) async fn show(
    State(app): State<App>,
    _: Viewer,
    TwoInPath(tenant, key): TwoInPath<TenantRef, FeatureKey>,
) -> ApiResult<Versioned<OverrideObject>> {
    let tenant = tenants(&app).get(&tenant).await?;
    Ok(versioned(current(tenant, &key, app.clock.now())?))
}

/// Replace a tenant's own limits of a feature whole.
#[utoipa::path(
    put, path = "/tenants/{t}/limits/{key}", tag = "tenants", security(("administrator" = ["operator"])),
    params(("If-Match" = Option<String>, Header, description = "Only if this is still the version")),
    request_body = OverrideBody,
    responses(
        (status = 200, description = "The override", body = OverrideObject, headers(("ETag" = String, description = "The version"))),
        errors::NotFound,
        errors::VersionConflict,
    ),
)]
pub(super) async fn put(
    State(app): State<App>,
    Operator(admin): Operator,
    TwoInPath(tenant, key): TwoInPath<TenantRef, FeatureKey>,
    IfMatch(expected): IfMatch,
    WholeBody(body): WholeBody,
) -> ApiResult<Versioned<OverrideObject>> {
    let mut fields = Fields::of(&body)?;
    if let Some(named) = fields.optional::<FeatureKey>("feature_key")?
        && named != key
    {
        return Err(ApiError::bad_field(
            "feature_key",
            format!("'{named}'"),
            format!("'{key}' as in the path, or nothing"),
        ));
    }
    let limits = limit_fields(&mut fields)?;
    let until = fields.optional("until")?;
    fields.finish()?;
    if limits.is_empty() {
        return Err(ApiError::bad_field(
            "limits",
            "missing or empty",
            "a list of at least one limit, or DELETE to take the override away",
        ));
    }
    let own = Override {
        feature: key.clone(),
        limits,
        until,
    };
    let tenants_at = tenants(&app).expecting(expected);
    match tenants_at.put_override(&tenant, &own, &admin.actor).await {
        Ok(changed) => Ok(versioned(current(changed, &key, admin.actor.at)?)),
        Err(error) => Err(too_late(&app, &tenant, &key, error).await),
    }
}

/// Take a tenant's own limits of a feature away, or only the one of a scope and window.
#[utoipa::path(
    delete, path = "/tenants/{t}/limits/{key}", tag = "tenants", security(("administrator" = ["operator"])),
    params(
        ("scope" = Option<Scope>, Query, description = "With window: only that limit goes"),
        ("window" = Option<WindowKind>, Query, description = "With scope: only that limit goes"),
        ("If-Match" = Option<String>, Header, description = "Only if this is still the override's version"),
    ),
    responses((status = 204, description = "Gone"), errors::NotFound, errors::VersionConflict),
)]
pub(super) async fn remove(
    State(app): State<App>,
    Operator(admin): Operator,
    TwoInPath(tenant, key): TwoInPath<TenantRef, FeatureKey>,
    IfMatch(expected): IfMatch,
    mut query: Query,
) -> ApiResult<StatusCode> {
    let limit = one_limit(&mut query)?;
    query.finish()?;
    let tenants_at = tenants(&app).expecting(expected);
    let removed = tenants_at.remove_limit(&tenant, &key, limit, &admin.actor);
    match removed.await {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(too_late(&app, &tenant, &key, error).await),
    }
}
