//! `/tenants`: tenants, their subscriptions, and their end users.

use axum::{Json, extract::State, http::StatusCode, response::IntoResponse};

use super::access::{Operator, Viewer};
use crate::{
    app::App,
    domain::{
        names::{DisplayName, PlanCode, Slug},
        subscription::SubscriptionStatus,
        tenant::{Tenant, TenantRef},
        time::Timestamp,
    },
    http::{
        conditional::{IfMatch, Versioned, or_current},
        error::{ApiError, ApiResult},
        extract::WholeBody,
        fields::Fields,
        openapi::errors,
        paging::{Listed, Page, Paging},
        path::{InPath, TwoInPath},
        query::Query,
    },
    services::{
        AdminError,
        objects::TenantObject,
        tenants::{NewTenant, StatusChange, SubscriptionChange, Tenants},
    },
    store::versions,
};

pub(super) fn tenants(app: &App) -> Tenants {
    Tenants::new(app.store.clone())
}

fn versioned(tenant: Tenant, now: Timestamp) -> Versioned<TenantObject> {
    Versioned {
        version: versions::tenant(&tenant),
        object: TenantObject::at(tenant, now),
    }
}

/// A change that came too late is answered with the tenant as it is now.
async fn too_late(app: &App, tenant: &TenantRef, error: AdminError) -> ApiError {
    let current = async {
        let tenant = tenants(app).get(tenant).await?;
        Ok(TenantObject::at(tenant, app.clock.now()))
    };
    or_current(plan_in_body(error), current).await
}

/// A tenant to be made.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"slug": "acme", "name": "Acme Inc", "plan_code": "starter"}))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub(super) struct NewTenantBody {
    slug: Slug,
    name: DisplayName,
    /// Subscribes it at once, for a month from now.
    plan_code: Option<PlanCode>,
}

/// A change to a tenant; its slug stays for ever.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"name": "Acme Ltd"}))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub(super) struct TenantPatch {
    name: Option<DisplayName>,
}

/// A tenant's subscription; what is left out stays. A new one is active, for a month from now.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"plan_code": "pro"}))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub(super) struct SubscriptionBody {
    plan_code: Option<PlanCode>,
    status: Option<SubscriptionStatus>,
    current_period_start: Option<Timestamp>,
    current_period_end: Option<Timestamp>,
    /// The payment processor's customer; null takes it away.
    #[schema(min_length = 1, max_length = 255)]
    processor_customer_id: Option<String>,
}

/// A plan that a body names and that is not there is a bad field, not a missing page.
fn plan_in_body(error: AdminError) -> AdminError {
    match error {
        AdminError::NotFound { what: "plan", name } => {
            AdminError::invalid("plan_code", name, "the code of a plan that is there")
        }
        other => other,
    }
}

/// List the tenants.
#[utoipa::path(
    get, path = "/tenants", tag = "tenants", security(("administrator" = ["viewer"])),
    params(Paging),
    responses((status = 200, description = "By slug", body = Listed<TenantObject>)),
)]
pub(super) async fn list(
    State(app): State<App>,
    _: Viewer,
    mut query: Query,
) -> ApiResult<Json<Listed<TenantObject>>> {
    let page = Page::<Slug>::of(&mut query)?;
    query.finish()?;
    let rows = tenants(&app)
        .list(page.after.as_ref(), page.to_read())
        .await?;
    let now = app.clock.now();
    Ok(Json(page.show(
        rows,
        |tenant| tenant.slug.clone(),
        |tenant| TenantObject::at(tenant, now),
    )))
}

/// Make a tenant.
#[utoipa::path(
    post, path = "/tenants", tag = "tenants", security(("administrator" = ["operator"])),
    request_body = NewTenantBody,
    responses(
        (status = 201, description = "Made", body = TenantObject, headers(("ETag" = String, description = "The version"))),
        errors::AlreadyExists,
    ),
)]
pub(super) async fn create(
    State(app): State<App>,
    Operator(admin): Operator,
    WholeBody(body): WholeBody,
) -> ApiResult<impl IntoResponse> {
    let mut fields = Fields::of(&body)?;
    let new = NewTenant {
        slug: fields.required("slug")?,
        name: fields.required("name")?,
        plan_code: fields.optional("plan_code")?,
    };
    fields.finish()?;
    let made = tenants(&app).create(new, &admin.actor).await;
    let tenant = made.map_err(plan_in_body)?;
    Ok((StatusCode::CREATED, versioned(tenant, admin.actor.at)))
}

/// Show a tenant.
#[utoipa::path(
    get, path = "/tenants/{t}", tag = "tenants", security(("administrator" = ["viewer"])),
    responses(
        (status = 200, description = "The tenant", body = TenantObject, headers(("ETag" = String, description = "The version"))),
        errors::NotFound,
    ),
)]
pub(super) async fn show(
    State(app): State<App>,
    _: Viewer,
    InPath(tenant): InPath<TenantRef>,
) -> ApiResult<Versioned<TenantObject>> {
    let tenant = tenants(&app).get(&tenant).await?;
    Ok(versioned(tenant, app.clock.now()))
}

/// Change a tenant's name.
#[utoipa::path(
    patch, path = "/tenants/{t}", tag = "tenants", security(("administrator" = ["operator"])),
    params(("If-Match" = Option<String>, Header, description = "Only if this is still the version")),
    request_body = TenantPatch,
    responses(
        (status = 200, description = "Changed", body = TenantObject, headers(("ETag" = String, description = "The version"))),
        errors::NotFound,
        errors::VersionConflict,
    ),
)]
pub(super) async fn change(
    State(app): State<App>,
    Operator(admin): Operator,
    InPath(tenant): InPath<TenantRef>,
    IfMatch(expected): IfMatch,
    WholeBody(body): WholeBody,
) -> ApiResult<Versioned<TenantObject>> {
    let mut fields = Fields::of(&body)?;
    let name = fields.optional("name")?;
    fields.finish()?;
    let tenants_at = tenants(&app).expecting(expected);
    let name = match name {
        Some(name) => name,
        None => tenants_at.get(&tenant).await?.name,
    };
    match tenants_at.rename(&tenant, name, &admin.actor).await {
        Ok(changed) => Ok(versioned(changed, admin.actor.at)),
        Err(error) => Err(too_late(&app, &tenant, error).await),
    }
}

/// Delete a tenant: its keys are revoked, it is hidden from lists, its history stays, its slug is not given again.
#[utoipa::path(
    delete, path = "/tenants/{t}", tag = "tenants", security(("administrator" = ["operator"])),
    params(("If-Match" = Option<String>, Header, description = "Only if this is still the version")),
    responses((status = 204, description = "Gone"), errors::NotFound, errors::VersionConflict),
)]
pub(super) async fn delete(
    State(app): State<App>,
    Operator(admin): Operator,
    InPath(tenant): InPath<TenantRef>,
    IfMatch(expected): IfMatch,
) -> ApiResult<StatusCode> {
    let tenants_at = tenants(&app).expecting(expected);
    match tenants_at.delete(&tenant, &admin.actor).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(too_late(&app, &tenant, error).await),
    }
}

/// Set a tenant's subscription; fields left out stay.
#[utoipa::path(
    put, path = "/tenants/{t}/subscription", tag = "tenants", security(("administrator" = ["operator"])),
    params(("If-Match" = Option<String>, Header, description = "Only if this is still the tenant's version")),
    request_body = SubscriptionBody,
    responses(
        (status = 200, description = "The tenant with it", body = TenantObject, headers(("ETag" = String, description = "The version"))),
        errors::NotFound,
        errors::VersionConflict,
    ),
)]
pub(super) async fn subscribe(
    State(app): State<App>,
    Operator(admin): Operator,
    InPath(tenant): InPath<TenantRef>,
    IfMatch(expected): IfMatch,
    WholeBody(body): WholeBody,
) -> ApiResult<Versioned<TenantObject>> {
    let mut fields = Fields::of(&body)?;
    let change = SubscriptionChange {
        plan_code: fields.optional("plan_code")?,
        status: fields
            .optional("status")?
            .map_or(StatusChange::Keep, StatusChange::Set),
        period_start: fields.optional("current_period_start")?,
        period_end: fields.optional("current_period_end")?,
        processor_customer_id: fields.change("processor_customer_id")?,
    };
    fields.finish()?;
    let tenants_at = tenants(&app).expecting(expected);
    match tenants_at.subscribe(&tenant, &change, &admin.actor).await {
        Ok(changed) => Ok(versioned(changed, admin.actor.at)),
        Err(error) => Err(too_late(&app, &tenant, error).await),
    }
}

/// Forget an end user: its id is replaced in events, rollups and live totals; sums stay as they are. Refusals of it that
/// this node remembers are gone.
#[utoipa::path(
    delete, path = "/tenants/{t}/users/{user}", tag = "tenants", security(("administrator" = ["operator"])),
    responses((status = 204, description = "Forgotten"), errors::NotFound),
)]
pub(super) async fn forget_user(
    State(app): State<App>,
    Operator(admin): Operator,
    TwoInPath(tenant, user): TwoInPath<TenantRef, String>,
) -> ApiResult<StatusCode> {
    let tenant = tenants(&app).get(&tenant).await?;
    app.guard.refusals().forget_user(tenant.tenant_id, &user);
    app.recorder
        .forget_user(tenant.tenant_id, &user, &admin.actor)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
