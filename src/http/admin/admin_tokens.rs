//! `/admin-tokens`: administrators.

use axum::{Json, extract::State};
use http::StatusCode;

use super::access::{Owner, Viewer};
use crate::{
    app::App,
    domain::{administrator::Role, ids::AdminTokenId, names::DisplayName},
    http::{
        error::ApiResult,
        extract::WholeBody,
        fields::Fields,
        openapi::errors,
        paging::{Listed, Page, Paging},
        path::InPath,
        query::Query,
    },
    services::objects::AdministratorObject,
};

/// An administrator to be made.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"name": "ada", "role": "operator"}))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub(super) struct NewAdministrator {
    /// No two in use may share one.
    name: DisplayName,
    role: Role,
}

/// List the administrators whose tokens are in use.
#[utoipa::path(
    get, path = "/admin-tokens", tag = "administrators", security(("administrator" = ["viewer"])),
    params(Paging),
    responses((status = 200, description = "Oldest first", body = Listed<AdministratorObject>)),
)]
pub(super) async fn list(
    State(app): State<App>,
    _: Viewer,
    mut query: Query,
) -> ApiResult<Json<Listed<AdministratorObject>>> {
    let page = Page::<AdminTokenId>::of(&mut query)?;
    query.finish()?;
    let mut tokens = app.administrators.list().await?;
    if let Some(after) = page.after {
        let seen = tokens.iter().position(|it| it.admin_token_id == after);
        // One that is gone since was followed by those made later: ids grow with time.
        match seen {
            Some(index) => drop(tokens.drain(..=index)),
            None => tokens.retain(|it| it.admin_token_id > after),
        }
    }
    let listed = page.show(tokens, |it| it.admin_token_id, AdministratorObject::from);
    Ok(Json(listed))
}

/// Make an administrator; the token is told this once.
#[utoipa::path(
    post, path = "/admin-tokens", tag = "administrators", security(("administrator" = ["owner"])),
    request_body = NewAdministrator,
    responses(
        (status = 201, description = "Made", body = AdministratorObject),
        errors::AlreadyExists,
    ),
)]
pub(super) async fn create(
    State(app): State<App>,
    Owner(admin): Owner,
    WholeBody(body): WholeBody,
) -> ApiResult<(StatusCode, Json<AdministratorObject>)> {
    let mut fields = Fields::of(&body)?;
    let (name, role) = (fields.required("name")?, fields.required("role")?);
    fields.finish()?;
    let issued = app.administrators.create(name, role, &admin.actor).await?;
    Ok((StatusCode::CREATED, Json(issued.into())))
}

/// Revoke an administrator's token at once. The last owner stays.
#[utoipa::path(
    delete, path = "/admin-tokens/{id}", tag = "administrators", security(("administrator" = ["owner"])),
    responses((status = 204, description = "Revoked"), errors::Unprocessable, errors::NotFound),
)]
pub(super) async fn revoke(
    State(app): State<App>,
    Owner(admin): Owner,
    InPath(id): InPath<AdminTokenId>,
) -> ApiResult<StatusCode> {
    app.administrators.revoke(id, &admin.actor).await?;
    Ok(StatusCode::NO_CONTENT)
}
