//! `/reservations`: what is in flight.

use std::time::Duration;

use axum::{Json, extract::State};
use http::StatusCode;

use super::access::{Operator, Viewer};
use crate::{
    app::App,
    domain::ids::ReservationId,
    http::{
        error::ApiResult,
        openapi::errors,
        paging::{Listed, Page, Paging},
        path::InPath,
        query::Query,
    },
    services::in_flight::InFlightObject,
};

/// List requests in flight, and reservations that are not settled yet.
#[utoipa::path(
    get, path = "/reservations", tag = "reports", security(("administrator" = ["viewer"])),
    params(Paging, ("older_than" = Option<u64>, Query, description = "Only what is at least this many seconds old")),
    responses((status = 200, description = "By id, which grows with time", body = Listed<InFlightObject>)),
)]
pub(super) async fn list(
    State(app): State<App>,
    _: Viewer,
    mut query: Query,
) -> ApiResult<Json<Listed<InFlightObject>>> {
    let page = Page::<ReservationId>::of(&mut query)?;
    let older_than = query.optional::<u64>("older_than")?.unwrap_or(0);
    query.finish()?;
    let older_than = Duration::from_secs(older_than);
    let mut items = app.in_flight.list(None, older_than).await?;
    items.sort_by_key(|it| it.reservation_id);
    items.retain(|it| page.after.is_none_or(|after| it.reservation_id > after));
    items.truncate(page.to_read());
    Ok(Json(page.show(items, |it| it.reservation_id, |it| it)))
}

/// Give back what a request or reservation holds; if it is settled later, its usage counts all the same.
#[utoipa::path(
    delete, path = "/reservations/{id}", tag = "reports", security(("administrator" = ["operator"])),
    responses((status = 204, description = "Released"), errors::NotFound),
)]
pub(super) async fn release(
    State(app): State<App>,
    Operator(admin): Operator,
    InPath(id): InPath<ReservationId>,
) -> ApiResult<StatusCode> {
    app.in_flight.release(id, &admin.actor).await?;
    Ok(StatusCode::NO_CONTENT)
}
