//! Overrides: a tenant's own limits of a feature, in place of its plan's.

use axum::{Json, extract::State, http::StatusCode};

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
        error::{ApiError, ApiResult},
        extract::WholeBody,
        fields::Fields,
        openapi::errors,
        path::TwoInPath,
        query::Query,
    },
    services::{AdminError, objects::OverrideObject},
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
fn current(tenant: Tenant, key: &FeatureKey, now: Timestamp) -> Result<OverrideObject, AdminError> {
    let holds = |own: &Override| own.feature == *key && own.until.is_none_or(|until| now < until);
    let name = format!("{key} of tenant {}", tenant.slug);
    let own = tenant.overrides.into_iter().find(holds);
    own.map(OverrideObject::from)
        .ok_or_else(|| AdminError::not_found("limit", name))
}

/// Show a tenant's own limits of a feature.
#[utoipa::path(
    get, path = "/tenants/{t}/limits/{key}", tag = "tenants", security(("administrator" = ["viewer"])),
    responses((status = 200, description = "The override", body = OverrideObject), errors::NotFound),
)]
pub(super) async fn show(
    State(app): State<App>,
    _: Viewer,
    TwoInPath(tenant, key): TwoInPath<TenantRef, FeatureKey>,
) -> ApiResult<Json<OverrideObject>> {
    let tenant = tenants(&app).get(&tenant).await?;
    Ok(Json(current(tenant, &key, app.clock.now())?))
}

/// Replace a tenant's own limits of a feature whole.
#[utoipa::path(
    put, path = "/tenants/{t}/limits/{key}", tag = "tenants", security(("administrator" = ["operator"])),
    request_body = OverrideBody,
    responses((status = 200, description = "The override", body = OverrideObject), errors::NotFound),
)]
pub(super) async fn put(
    State(app): State<App>,
    Operator(admin): Operator,
    TwoInPath(tenant, key): TwoInPath<TenantRef, FeatureKey>,
    WholeBody(body): WholeBody,
) -> ApiResult<Json<OverrideObject>> {
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
    let tenant = tenants(&app)
        .put_override(&tenant, &own, &admin.actor)
        .await?;
    Ok(Json(current(tenant, &key, admin.actor.at)?))
}

/// Take a tenant's own limits of a feature away, or only the one of a scope and window.
#[utoipa::path(
    delete, path = "/tenants/{t}/limits/{key}", tag = "tenants", security(("administrator" = ["operator"])),
    params(
        ("scope" = Option<Scope>, Query, description = "With window: only that limit goes"),
        ("window" = Option<WindowKind>, Query, description = "With scope: only that limit goes"),
    ),
    responses((status = 204, description = "Gone"), errors::NotFound),
)]
pub(super) async fn remove(
    State(app): State<App>,
    Operator(admin): Operator,
    TwoInPath(tenant, key): TwoInPath<TenantRef, FeatureKey>,
    mut query: Query,
) -> ApiResult<StatusCode> {
    let limit = one_limit(&mut query)?;
    query.finish()?;
    tenants(&app)
        .remove_limit(&tenant, &key, limit, &admin.actor)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
