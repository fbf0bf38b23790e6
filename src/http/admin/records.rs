//! `/tenants/{t}/events`, `/statement`, `/corrections`, `/reset` and `/requests/{id}`: what was recorded, and changed.

use std::fmt;

use axum::{Json, extract::State};
use http::StatusCode;
use serde::Serialize;

use super::access::{Operator, Viewer};
use crate::{
    app::App,
    domain::{
        feature::FeatureKey, ids::EventId, quantity::Quantity, tenant::TenantRef, time::Timestamp,
    },
    http::{
        error::{ApiError, ApiResult},
        extract::WholeBody,
        fields::{FieldType, Fields},
        openapi::errors,
        paging::{Listed, Page, Paging},
        path::InPath,
        query::Query,
    },
    services::{
        AdminError,
        objects::{EventObject, ResetObject},
        reporting::Correction,
        statement::{Statement, StatementAsk},
        tenants::Tenants,
    },
};

/// Where a page of events ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EventPlace(Timestamp, EventId);

impl fmt::Display for EventPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.micros(), self.1)
    }
}

impl FieldType for EventPlace {
    const ACCEPTED: &'static str = "the next_cursor of the page before";

    fn of_text(text: &str) -> Option<Self> {
        let (at, id) = text.split_once('/')?;
        Some(Self(
            Timestamp::from_micros(at.parse().ok()?),
            id.parse().ok()?,
        ))
    }
}

/// List a tenant's usage events, the newest first; a deleted one's too.
#[utoipa::path(
    get, path = "/tenants/{t}/events", tag = "reports", security(("administrator" = ["viewer"])),
    params(Paging),
    responses((status = 200, description = "Those admitted last first", body = Listed<EventObject>), errors::NotFound),
)]
pub(super) async fn events(
    State(app): State<App>,
    _: Viewer,
    InPath(tenant): InPath<TenantRef>,
    mut query: Query,
) -> ApiResult<Json<Listed<EventObject>>> {
    let page = Page::<EventPlace>::of(&mut query)?;
    query.finish()?;
    let policy = app.reports.policy_ever(&tenant).await?;
    let tenant = policy.tenant.tenant_id;
    app.recorder.flush_tenant(tenant).await?;
    let before = page.after.map(|EventPlace(at, id)| (at, id));
    let events = app
        .store
        .list_events(tenant, before, page.to_read())
        .await?;
    let place =
        |event: &crate::domain::usage::UsageEvent| EventPlace(event.admitted_at, event.event_id);
    Ok(Json(
        page.show(events, place, |event| EventObject::of(&event)),
    ))
}

/// Show a tenant's statement: opening + settled + corrected = closing; a deleted one's too.
#[utoipa::path(
    get, path = "/tenants/{t}/statement", tag = "reports", security(("administrator" = ["viewer"])),
    params(
        ("feature_key" = Option<String>, Query, description = "Features, several with commas; all unless named"),
        ("period_start" = Option<Timestamp>, Query, description = "The current period's start unless named"),
        ("period_end" = Option<Timestamp>, Query, description = "The current period's end unless named"),
    ),
    responses((status = 200, description = "It adds up line by line", body = Statement), errors::NotFound),
)]
pub(super) async fn statement(
    State(app): State<App>,
    _: Viewer,
    InPath(tenant): InPath<TenantRef>,
    mut query: Query,
) -> ApiResult<Json<Statement>> {
    let ask = StatementAsk {
        tenant,
        features: query.several("feature_key")?,
        start: query.optional("period_start")?,
        end: query.optional("period_end")?,
    };
    query.finish()?;
    Ok(Json(app.statements.of(&ask).await?))
}

/// A correction to be made.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"feature_key": "messages", "quantity": -3, "reason": "counted an outage"}))]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub(super) struct NewCorrection {
    feature_key: FeatureKey,
    /// Not 0; below 0 takes away.
    quantity: i64,
    reason: String,
    /// The event that is corrected: the correction counts in its window, for its key and user.
    event_id: Option<EventId>,
    /// The same key again corrects nothing.
    idempotency_key: Option<String>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct Corrected {
    event_id: EventId,
    duplicate: bool,
}

/// Add to what was recorded, or take away.
#[utoipa::path(
    post, path = "/tenants/{t}/corrections", tag = "reports", security(("administrator" = ["operator"])),
    request_body = NewCorrection,
    responses(
        (status = 201, description = "Corrected", body = Corrected),
        (status = 200, description = "Its idempotency key was used before: nothing was changed", body = Corrected),
        errors::NotFound,
    ),
)]
pub(super) async fn correct(
    State(app): State<App>,
    Operator(admin): Operator,
    InPath(tenant): InPath<TenantRef>,
    WholeBody(body): WholeBody,
) -> ApiResult<(StatusCode, Json<Corrected>)> {
    let mut fields = Fields::of(&body)?;
    let correction = Correction {
        feature: fields.required("feature_key")?,
        quantity: signed(&mut fields, "quantity")?,
        reason: fields.required("reason")?,
        of: fields.optional("event_id")?,
        idempotency_key: fields.optional("idempotency_key")?,
    };
    fields.finish()?;
    let policy = app.reports.policy(&tenant).await?;
    let reporting = {
        let app = app.clone();
        async move {
            app.reporting
                .correct(&policy, &correction, &admin.actor)
                .await
        }
    };
    // A task of its own: what is written down is counted, whether its sender waits or not.
    let reported = app.tasks.spawn(reporting).await;
    let reported = reported.map_err(|_| ApiError::stopped())??;
    let status = if reported.is_duplicate {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    let body = Corrected {
        event_id: reported.event_id,
        duplicate: reported.is_duplicate,
    };
    Ok((status, Json(body)))
}

fn signed(fields: &mut Fields<'_>, name: &'static str) -> ApiResult<Quantity> {
    let value: i64 = fields.required(name)?;
    if value.unsigned_abs() > Quantity::MAX.get().unsigned_abs() {
        let accepted = "a whole number within ±9007199254740991";
        return Err(ApiError::bad_field(name, value, accepted));
    }
    Ok(Quantity::new(value))
}

/// A reset to be made.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"feature_key": "messages", "reason": "an outage of ours"}))]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub(super) struct NewReset {
    feature_key: FeatureKey,
    reason: String,
}

/// Have a feature's limits count anew from now until their windows end; usage stays as it is.
#[utoipa::path(
    post, path = "/tenants/{t}/reset", tag = "tenants", security(("administrator" = ["operator"])),
    request_body = NewReset,
    responses((status = 200, description = "Reset", body = ResetObject), errors::NotFound),
)]
pub(super) async fn reset(
    State(app): State<App>,
    Operator(admin): Operator,
    InPath(tenant): InPath<TenantRef>,
    WholeBody(body): WholeBody,
) -> ApiResult<Json<ResetObject>> {
    let mut fields = Fields::of(&body)?;
    let (feature, reason): (FeatureKey, String) =
        (fields.required("feature_key")?, fields.required("reason")?);
    fields.finish()?;
    let tenants = Tenants::new(app.store.clone());
    let (reset, tenant) = tenants
        .reset(&tenant, feature, reason, &admin.actor)
        .await?;
    Ok(Json(ResetObject::of(reset, tenant.slug)))
}

/// Explain what became of a request.
#[utoipa::path(
    get, path = "/requests/{id}", tag = "reports", security(("administrator" = ["viewer"])),
    responses(
        (status = 200, description = "Its limits, balances before and after, hold and settle", body = serde_json::Value),
        errors::NotFound,
    ),
)]
pub(super) async fn explain(
    State(app): State<App>,
    _: Viewer,
    InPath(id): InPath<String>,
) -> ApiResult<Json<serde_json::Value>> {
    let explained = app.explanations.of(&id).await?;
    let shown: String = id.chars().take(64).collect();
    let explained = explained.ok_or_else(|| AdminError::not_found("request kept", shown))?;
    Ok(Json(explained))
}
