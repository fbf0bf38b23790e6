//! `/plans` and their features.

use axum::{Json, extract::State, http::StatusCode, response::IntoResponse};

use super::{
    access::{Operator, Viewer},
    bodies::{FeatureBody, PlanBody, PlanPatch, feature_fields},
};
use crate::{
    app::App,
    domain::{
        feature::FeatureKey,
        limit::Scope,
        names::PlanCode,
        plan::{Plan, PlanFeature},
        window::WindowKind,
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
        objects::PlanObject,
        plans::{NewPlan, PlanChange, Plans},
    },
};

fn plans(app: &App) -> Plans {
    Plans::new(app.store.clone())
}

fn versioned(plan: Plan) -> Versioned<PlanObject> {
    Versioned {
        version: plan.version,
        object: plan.into(),
    }
}

/// A change that came too late is answered with the plan as it is now.
async fn too_late(app: &App, code: &PlanCode, error: AdminError) -> ApiError {
    let current = async { plans(app).get(code).await.map(PlanObject::from) };
    or_current(error, current).await
}

/// List the plans.
#[utoipa::path(
    get, path = "/plans", tag = "plans", security(("administrator" = ["viewer"])),
    params(Paging),
    responses((status = 200, description = "By code", body = Listed<PlanObject>)),
)]
pub(super) async fn list(
    State(app): State<App>,
    _: Viewer,
    mut query: Query,
) -> ApiResult<Json<Listed<PlanObject>>> {
    let page = Page::<PlanCode>::of(&mut query)?;
    query.finish()?;
    let mut all = plans(&app).list().await?;
    if let Some(after) = &page.after {
        all.retain(|plan| plan.code > *after);
    }
    Ok(Json(page.show(
        all,
        |plan| plan.code.clone(),
        PlanObject::from,
    )))
}

/// Make a plan.
#[utoipa::path(
    post, path = "/plans", tag = "plans", security(("administrator" = ["operator"])),
    request_body = PlanBody,
    responses(
        (status = 201, description = "Made", body = PlanObject, headers(("ETag" = String, description = "The version"))),
        errors::AlreadyExists,
    ),
)]
pub(super) async fn create(
    State(app): State<App>,
    Operator(admin): Operator,
    WholeBody(body): WholeBody,
) -> ApiResult<impl IntoResponse> {
    let mut fields = Fields::of(&body)?;
    let new = NewPlan {
        code: fields.required("plan_code")?,
        name: fields.required("name")?,
        preset: fields.optional("preset")?,
        allowed_models: fields.optional("allowed_models")?.unwrap_or_default(),
        features: features(&mut fields)?.unwrap_or_default(),
    };
    fields.finish()?;
    let plan = plans(&app).create(new, &admin.actor).await?;
    Ok((StatusCode::CREATED, versioned(plan)))
}

fn features(fields: &mut Fields<'_>) -> ApiResult<Option<Vec<PlanFeature>>> {
    let Some(objects) = fields.objects("features")? else {
        return Ok(None);
    };
    let read = |mut object: Fields<'_>| {
        let key = object.required("feature_key")?;
        let feature = feature_fields(&mut object, key)?;
        object.finish()?;
        Ok(feature)
    };
    let features: Vec<PlanFeature> = objects.into_iter().map(read).collect::<ApiResult<_>>()?;
    for (index, PlanFeature { key, .. }) in features.iter().enumerate() {
        if features[..index].iter().any(|it| it.key == *key) {
            let param = fields.param(&format!("features[{index}].feature_key"));
            let again = format_args!("'{key}' once more");
            return Err(ApiError::bad_field(param, again, "each feature once"));
        }
    }
    Ok(Some(features))
}

/// Show a plan.
#[utoipa::path(
    get, path = "/plans/{code}", tag = "plans", security(("administrator" = ["viewer"])),
    responses(
        (status = 200, description = "The plan", body = PlanObject, headers(("ETag" = String, description = "The version"))),
        errors::NotFound,
    ),
)]
pub(super) async fn show(
    State(app): State<App>,
    _: Viewer,
    InPath(code): InPath<PlanCode>,
) -> ApiResult<Versioned<PlanObject>> {
    Ok(versioned(plans(&app).get(&code).await?))
}

/// Change a plan; what is left out stays, `features` replaces all of them.
#[utoipa::path(
    patch, path = "/plans/{code}", tag = "plans", security(("administrator" = ["operator"])),
    params(("If-Match" = Option<String>, Header, description = "Only if this is still the version")),
    request_body = PlanPatch,
    responses(
        (status = 200, description = "Changed", body = PlanObject, headers(("ETag" = String, description = "The version"))),
        errors::NotFound,
        errors::VersionConflict,
    ),
)]
pub(super) async fn change(
    State(app): State<App>,
    Operator(admin): Operator,
    InPath(code): InPath<PlanCode>,
    IfMatch(expected): IfMatch,
    WholeBody(body): WholeBody,
) -> ApiResult<Versioned<PlanObject>> {
    let mut fields = Fields::of(&body)?;
    if let Some(named) = fields.optional::<PlanCode>("plan_code")?
        && named != code
    {
        return Err(ApiError::bad_field(
            "plan_code",
            format!("'{named}'"),
            format!("'{code}' as in the path, or nothing: a plan keeps its code"),
        ));
    }
    let change = PlanChange {
        name: fields.optional("name")?,
        allowed_models: fields.optional("allowed_models")?,
        features: features(&mut fields)?,
    };
    // A plan that is sent back as it was shown carries the version it was read at.
    let expected = expected.or(fields.optional::<i64>("version")?);
    fields.finish()?;
    match plans(&app)
        .set(&code, &change, expected, &admin.actor)
        .await
    {
        Ok(plan) => Ok(versioned(plan)),
        Err(error) => Err(too_late(&app, &code, error).await),
    }
}

/// Delete a plan that no tenant is subscribed to.
#[utoipa::path(
    delete, path = "/plans/{code}", tag = "plans", security(("administrator" = ["operator"])),
    params(("If-Match" = Option<String>, Header, description = "Only if this is still the version")),
    responses(
        (status = 204, description = "Gone"),
        errors::NotFound,
        errors::PlanInUse,
        errors::VersionConflict,
    ),
)]
pub(super) async fn delete(
    State(app): State<App>,
    Operator(admin): Operator,
    InPath(code): InPath<PlanCode>,
    IfMatch(expected): IfMatch,
) -> ApiResult<StatusCode> {
    match plans(&app).delete(&code, expected, &admin.actor).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(too_late(&app, &code, error).await),
    }
}

/// Replace a feature of a plan whole, or add it.
#[utoipa::path(
    put, path = "/plans/{code}/features/{key}", tag = "plans", security(("administrator" = ["operator"])),
    params(("If-Match" = Option<String>, Header, description = "Only if this is still the plan's version")),
    request_body = FeatureBody,
    responses(
        (status = 200, description = "The plan with it", body = PlanObject, headers(("ETag" = String, description = "The version"))),
        errors::NotFound,
        errors::VersionConflict,
    ),
)]
pub(super) async fn put_feature(
    State(app): State<App>,
    Operator(admin): Operator,
    TwoInPath(code, key): TwoInPath<PlanCode, FeatureKey>,
    IfMatch(expected): IfMatch,
    WholeBody(body): WholeBody,
) -> ApiResult<Versioned<PlanObject>> {
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
    let feature = feature_fields(&mut fields, key)?;
    fields.finish()?;
    let put = plans(&app)
        .put_feature(&code, &feature, expected, &admin.actor)
        .await;
    match put {
        Ok(plan) => Ok(versioned(plan)),
        Err(error) => Err(too_late(&app, &code, error).await),
    }
}

/// Take a feature from a plan, or only its limit of one scope and window.
#[utoipa::path(
    delete, path = "/plans/{code}/features/{key}", tag = "plans", security(("administrator" = ["operator"])),
    params(
        ("scope" = Option<Scope>, Query, description = "With window: only that limit goes"),
        ("window" = Option<WindowKind>, Query, description = "With scope: only that limit goes"),
        ("If-Match" = Option<String>, Header, description = "Only if this is still the plan's version"),
    ),
    responses((status = 204, description = "Gone"), errors::NotFound, errors::VersionConflict),
)]
pub(super) async fn delete_feature(
    State(app): State<App>,
    Operator(admin): Operator,
    TwoInPath(code, key): TwoInPath<PlanCode, FeatureKey>,
    IfMatch(expected): IfMatch,
    mut query: Query,
) -> ApiResult<StatusCode> {
    let limit = one_limit(&mut query)?;
    query.finish()?;
    let removed = plans(&app)
        .remove_feature(&code, &key, limit, expected, &admin.actor)
        .await;
    match removed {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(too_late(&app, &code, error).await),
    }
}

/// The one limit that `scope` and `window` name; `None` without both.
pub(super) fn one_limit(query: &mut Query) -> ApiResult<Option<(Scope, WindowKind)>> {
    match (query.optional("scope")?, query.optional("window")?) {
        (None, None) => Ok(None),
        (Some(scope), Some(window)) => Ok(Some((scope, window))),
        (Some(_), None) => Err(ApiError::bad_field("window", "missing", "it beside scope")),
        (None, Some(_)) => Err(ApiError::bad_field("scope", "missing", "it beside window")),
    }
}
