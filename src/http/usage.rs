//! `GET /api/v1/usage` and `/api/v1/usage/totals`: what a tenant used, asked with its own key.

use axum::{
    Json,
    extract::{RawQuery, State},
};
use http::HeaderMap;

use crate::{
    app::App,
    domain::{feature::FeatureKey, time::Timestamp, window::Window},
    http::{
        caller::Caller,
        error::{ApiError, ApiResult},
        openapi::errors,
    },
    services::usage_view::{TotalsBody, UsageBody},
    store::usage::Dimension,
};

/// What the tenant of the key, the key and the end user used in the current windows.
#[utoipa::path(
    get, path = "/api/v1/usage", tag = "usage", security(("tenant_key" = [])),
    params(("X-Tollgate-User" = Option<String>, Header, description = "The end user; at most 128 bytes")),
    responses((status = 200, description = "A limit an item", body = UsageBody), errors::Unprocessable),
)]
pub async fn show(
    State(app): State<App>,
    mut caller: Caller,
    headers: HeaderMap,
) -> ApiResult<Json<UsageBody>> {
    caller.name_user(&headers, None)?;
    let tenant = caller.key().tenant_id;
    let policy = app
        .catalogue
        .policy(tenant)
        .await?
        .ok_or(ApiError::InvalidApiKey)?;
    let current = app
        .reports
        .current(policy, Some(caller.key().key_id), Some(caller.user()))
        .await?;
    Ok(Json(UsageBody::of(&current)))
}

/// What the tenant of the key used in any window.
#[utoipa::path(
    get, path = "/api/v1/usage/totals", tag = "usage", security(("tenant_key" = [])),
    params(TotalsParams),
    responses((status = 200, description = "In the order asked", body = TotalsBody)),
)]
pub async fn totals(
    State(app): State<App>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> ApiResult<Json<TotalsBody>> {
    let query = TotalsQuery::read(query.as_deref().unwrap_or(""))?;
    let tenant = caller.key().tenant_id;
    let policy = app
        .catalogue
        .policy(tenant)
        .await?
        .ok_or(ApiError::InvalidApiKey)?;
    let totals = app
        .reports
        .totals(&policy, &query.features, query.window, query.by)
        .await?;
    Ok(Json(TotalsBody::of(&policy, &totals, query.by)))
}

/// The query of totals; `feature_key` may come several times, and hold several keys.
pub(super) struct TotalsQuery {
    pub(super) features: Vec<FeatureKey>,
    pub(super) window: Window,
    pub(super) by: Option<Dimension>,
}

/// The same, as the API's description shows it.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(
    dead_code,
    reason = "describes the query, which is read by TotalsQuery"
)]
pub(super) struct TotalsParams {
    /// Left out: every feature that the plan has or that was ever used. May come several times.
    feature_key: Option<Vec<FeatureKey>>,
    period_start: Timestamp,
    /// Excluded.
    period_end: Timestamp,
    /// `key`, `user` or `model`: a row for each.
    #[param(value_type = Option<String>, pattern = "^(key|user|model)$")]
    by: Option<String>,
}

impl TotalsQuery {
    pub(super) fn read(query: &str) -> ApiResult<Self> {
        let (mut features, mut start, mut end, mut by) = (Vec::new(), None, None, None);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match name.as_ref() {
                "feature_key" => {
                    for key in value.split(',') {
                        features.push(parsed(
                            "feature_key",
                            key,
                            "a feature key, such as messages",
                        )?);
                    }
                }
                "period_start" => start = Some(parsed("period_start", &value, RFC_3339)?),
                "period_end" => end = Some(parsed("period_end", &value, RFC_3339)?),
                "by" => by = Some(dimension(&value)?),
                other => {
                    let accepted = "feature_key, period_start, period_end or by";
                    return Err(ApiError::bad_field(
                        other.to_owned(),
                        "not known here",
                        accepted,
                    ));
                }
            }
        }
        let missing = |param| ApiError::bad_field(param, "missing", RFC_3339);
        let start: Timestamp = start.ok_or_else(|| missing("period_start"))?;
        let end: Timestamp = end.ok_or_else(|| missing("period_end"))?;
        let window = Window::new(start, end)
            .map_err(|_| ApiError::bad_field("period_end", end, "a time after period_start"))?;
        Ok(Self {
            features,
            window,
            by,
        })
    }
}

const RFC_3339: &str = "a time in RFC 3339, such as 2026-11-01T00:00:00Z";

fn parsed<T: std::str::FromStr>(
    param: &'static str,
    value: &str,
    accepted: &'static str,
) -> ApiResult<T> {
    value
        .parse()
        .map_err(|_| ApiError::bad_field(param, format!("'{value}'"), accepted))
}

fn dimension(value: &str) -> ApiResult<Dimension> {
    match value {
        "key" => Ok(Dimension::Key),
        "user" => Ok(Dimension::User),
        "model" => Ok(Dimension::Model),
        _ => Err(ApiError::bad_field(
            "by",
            format!("'{value}'"),
            "key, user or model",
        )),
    }
}
