//! `/outbox` and `/alerts`: what is to be told to others, and what became of it.

use std::fmt;

use axum::{Json, extract::State};

use super::access::{Operator, Viewer};
use crate::{
    app::App,
    domain::{tenant::TenantRef, time::Timestamp},
    http::{
        error::{ApiError, ApiResult},
        fields::FieldType,
        openapi::errors,
        paging::{Listed, Page, Paging},
        path::InPath,
        query::Query,
    },
    services::{AdminError, outbox::OutboxObject},
    store::outbox::{Kind, OutboxEntry, OutboxFilter, Status},
};

/// The place of an entry in the list.
pub(super) struct EntryPlace(Timestamp, String);

impl fmt::Display for EntryPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.micros(), self.1)
    }
}

impl FieldType for EntryPlace {
    const ACCEPTED: &'static str = "the next_cursor of the page before";

    fn of_text(text: &str) -> Option<Self> {
        let (at, identifier) = text.split_once('/')?;
        Some(Self(
            Timestamp::from_micros(at.parse().ok()?),
            identifier.to_owned(),
        ))
    }
}

fn one_of<T: Copy>(
    query: &mut Query,
    field: &'static str,
    all: &[T],
    name: fn(T) -> &'static str,
) -> ApiResult<Option<T>> {
    let Some(text) = query.optional::<String>(field)? else {
        return Ok(None);
    };
    let found = all.iter().copied().find(|it| name(*it) == text);
    let names: Vec<&str> = all.iter().map(|it| name(*it)).collect();
    match found {
        Some(it) => Ok(Some(it)),
        None => Err(ApiError::bad_field(
            field,
            format!("'{}'", text.escape_debug()),
            names.join(", "),
        )),
    }
}

/// List what is to be sent to analytics, to Stripe and as notices, and what was in the last days.
#[utoipa::path(
    get, path = "/outbox", tag = "reports", security(("administrator" = ["viewer"])),
    params(
        Paging,
        ("kind" = Option<String>, Query, description = "`analytics.batch`, `notice`, `notice.check` or `stripe.meter_event`"),
        ("status" = Option<String>, Query, description = "`pending`, `sent`, `confirmed`, `uncertain` or `dead`"),
        ("tenant" = Option<String>, Query, description = "Slug or id"),
    ),
    responses((status = 200, description = "Newest first", body = Listed<OutboxObject>)),
)]
pub(super) async fn list(
    State(app): State<App>,
    _: Viewer,
    mut query: Query,
) -> ApiResult<Json<Listed<OutboxObject>>> {
    let kind = one_of(&mut query, "kind", &Kind::ALL, Kind::as_str)?;
    listed(&app, query, kind).await
}

/// List notices, and what became of each.
#[utoipa::path(
    get, path = "/alerts", tag = "reports", security(("administrator" = ["viewer"])),
    params(
        Paging,
        ("status" = Option<String>, Query, description = "`pending`, `sent` or `dead`"),
        ("tenant" = Option<String>, Query, description = "Slug or id"),
    ),
    responses((status = 200, description = "Newest first", body = Listed<OutboxObject>)),
)]
pub(super) async fn alerts(
    State(app): State<App>,
    _: Viewer,
    query: Query,
) -> ApiResult<Json<Listed<OutboxObject>>> {
    listed(&app, query, Some(Kind::Notice)).await
}

async fn listed(
    app: &App,
    mut query: Query,
    kind: Option<Kind>,
) -> ApiResult<Json<Listed<OutboxObject>>> {
    let page = Page::<EntryPlace>::of(&mut query)?;
    let status = one_of(&mut query, "status", &Status::ALL, Status::as_str)?;
    let tenant = query.optional::<TenantRef>("tenant")?;
    query.finish()?;
    let tenant = match tenant {
        Some(tenant) => {
            let found = app.store.find_tenant(&tenant).await?;
            Some(
                found
                    .ok_or_else(|| AdminError::not_found("tenant", &tenant))?
                    .tenant_id,
            )
        }
        None => None,
    };
    let filter = OutboxFilter {
        kind,
        status,
        tenant,
    };
    let before = page
        .after
        .as_ref()
        .map(|EntryPlace(at, id)| (*at, id.clone()));
    let entries = app
        .store
        .list_outbox(&filter, before, page.to_read())
        .await?;
    let place = |entry: &OutboxEntry| EntryPlace(entry.created_at, entry.identifier.clone());
    Ok(Json(page.show(entries, place, OutboxObject::from)))
}

/// Send an entry again that is dead or uncertain.
#[utoipa::path(
    post, path = "/outbox/{id}/replay", tag = "reports", security(("administrator" = ["operator"])),
    responses((status = 200, description = "It is pending again", body = OutboxObject), errors::NotFound, errors::Unprocessable),
)]
pub(super) async fn replay(
    State(app): State<App>,
    Operator(admin): Operator,
    InPath(id): InPath<String>,
) -> ApiResult<Json<OutboxObject>> {
    Ok(Json(app.outbox.replay(&id, &admin.actor).await?))
}
