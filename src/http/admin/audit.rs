//! `/audit`: who changed what.

use axum::{Json, extract::State};

use super::access::Viewer;
use crate::{
    app::App,
    domain::time::Timestamp,
    http::{
        error::ApiResult,
        paging::{Listed, Page, Paging},
        query::Query,
    },
    services::objects::AuditObject,
    store::audit::AuditFilter,
};

/// List what was changed, by whom, from what to what.
#[utoipa::path(
    get, path = "/audit", tag = "reports", security(("administrator" = ["viewer"])),
    params(
        Paging,
        ("actor" = Option<String>, Query, description = "By this administrator, or `cli`, `setup`, `stripe`"),
        ("action" = Option<String>, Query, description = "Such as `plan.update`; `plan` stands for all that begin with `plan.`"),
        ("target" = Option<String>, Query, description = "A plan's code, a tenant's slug, else an id"),
        ("since" = Option<Timestamp>, Query, description = "At or after this"),
        ("until" = Option<Timestamp>, Query, description = "Before this"),
    ),
    responses((status = 200, description = "Newest first", body = Listed<AuditObject>)),
)]
pub(super) async fn list(
    State(app): State<App>,
    _: Viewer,
    mut query: Query,
) -> ApiResult<Json<Listed<AuditObject>>> {
    let page = Page::<i64>::of(&mut query)?;
    let filter = AuditFilter {
        actor: query.optional("actor")?,
        action: query.optional("action")?,
        target: query.optional("target")?,
        since: query.optional("since")?,
        until: query.optional("until")?,
    };
    query.finish()?;
    let entries = app
        .store
        .search_audit(&filter, page.after, page.to_read())
        .await?;
    Ok(Json(page.show(
        entries,
        |entry| entry.id,
        AuditObject::from,
    )))
}
