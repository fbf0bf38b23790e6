//! Grants: extra allowances of a tenant.

use axum::{Json, extract::State, http::StatusCode};

use super::{
    access::{Operator, Viewer},
    tenants::tenants,
};
use crate::{
    app::App,
    domain::{
        feature::FeatureKey,
        grant::Grant,
        ids::GrantId,
        quantity::Quantity,
        tenant::{Tenant, TenantRef},
        time::Timestamp,
    },
    http::{
        error::ApiResult,
        extract::WholeBody,
        fields::Fields,
        openapi::errors,
        paging::{Listed, Page, Paging},
        path::InPath,
        query::Query,
    },
    services::{objects::GrantObject, tenants::NewGrant},
};

/// A grant to be made.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"feature_key": "messages", "quantity": 50, "reason": "goodwill"}))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub(super) struct NewGrantBody {
    feature_key: FeatureKey,
    #[schema(value_type = i64, minimum = 1, maximum = 9_007_199_254_740_991_i64)]
    quantity: Quantity,
    #[schema(min_length = 1, max_length = 500)]
    reason: String,
    /// Left out: the end of the subscription's current period.
    expires_at: Option<Timestamp>,
}

/// The grants with what is left of each.
async fn with_left(app: &App, grants: Vec<Grant>, tenant: &Tenant) -> ApiResult<Vec<GrantObject>> {
    let now = app.clock.now();
    let policy = app.reports.policy(&TenantRef::Id(tenant.tenant_id)).await?;
    let left = app.catalogue.grants_left(&policy, now).await?;
    let left_of = |id: GrantId| left.iter().find(|(of, _)| *of == id).map(|(_, left)| *left);
    let shown = grants.into_iter().map(|grant| {
        let left = left_of(grant.grant_id);
        GrantObject::at(grant, tenant.slug.clone(), left, now)
    });
    Ok(shown.collect())
}

/// List a tenant's grants, ended ones included.
#[utoipa::path(
    get, path = "/tenants/{t}/grants", tag = "tenants", security(("administrator" = ["viewer"])),
    params(Paging),
    responses((status = 200, description = "Oldest first", body = Listed<GrantObject>), errors::NotFound),
)]
pub(super) async fn list(
    State(app): State<App>,
    _: Viewer,
    InPath(tenant): InPath<TenantRef>,
    mut query: Query,
) -> ApiResult<Json<Listed<GrantObject>>> {
    let page = Page::<GrantId>::of(&mut query)?;
    query.finish()?;
    let (grants, tenant) = tenants(&app).list_grants(&tenant).await?;
    // Grants are never taken off the list, only ended.
    let rows = page.rest_of(with_left(&app, grants, &tenant).await?, |grant| {
        grant.grant_id
    });
    Ok(Json(page.show(rows, |grant| grant.grant_id, |grant| grant)))
}

/// Grant a tenant more than its plan allows.
#[utoipa::path(
    post, path = "/tenants/{t}/grants", tag = "tenants", security(("administrator" = ["operator"])),
    request_body = NewGrantBody,
    responses((status = 201, description = "Made", body = GrantObject), errors::NotFound),
)]
pub(super) async fn create(
    State(app): State<App>,
    Operator(admin): Operator,
    InPath(tenant): InPath<TenantRef>,
    WholeBody(body): WholeBody,
) -> ApiResult<(StatusCode, Json<GrantObject>)> {
    let mut fields = Fields::of(&body)?;
    let new = NewGrant {
        feature: fields.required("feature_key")?,
        quantity: fields.required("quantity")?,
        reason: fields.required("reason")?,
        expires_at: fields.optional("expires_at")?,
    };
    fields.finish()?;
    let (grant, tenant) = tenants(&app).add_grant(&tenant, new, &admin.actor).await?;
    let left = Some(grant.quantity);
    let object = GrantObject::at(grant, tenant.slug, left, admin.actor.at);
    Ok((StatusCode::CREATED, Json(object)))
}

/// End a grant at once; what was used of it stays used.
#[utoipa::path(
    delete, path = "/grants/{id}", tag = "tenants", security(("administrator" = ["operator"])),
    responses((status = 204, description = "Ended"), errors::NotFound),
)]
pub(super) async fn revoke(
    State(app): State<App>,
    Operator(admin): Operator,
    InPath(grant): InPath<GrantId>,
) -> ApiResult<StatusCode> {
    tenants(&app).end_grant(grant, &admin.actor).await?;
    Ok(StatusCode::NO_CONTENT)
}
