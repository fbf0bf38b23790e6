//! `/api/v1/usage/reservations`: for applications that call a model themselves.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode};
use serde::Serialize;

use crate::{
    app::App,
    domain::{
        feature::FeatureKey,
        ids::{EventId, ReservationId},
        quantity::Quantity,
        time::Timestamp,
        usage::Quantities,
    },
    http::{
        Dialect,
        caller::Caller,
        error::{ApiError, ApiResult},
        extract::WholeBody,
        fields::Fields,
        guarded::GuardHeaders,
        idempotency::once,
        openapi::errors,
        path::InPath,
    },
    services::{
        reservations::{NewReservation, Reserved, SettleAsk, Settled},
        usage_view::FeatureItem,
    },
    telemetry::events::Decision,
};

const ROUTE: &str = "/api/v1/usage/reservations";
const SHORTEST_TTL: u64 = 1;
const LONGEST_TTL: u64 = 86_400;
/// What a request that names none gets.
const USUAL_TTL: u64 = 120;
const LONGEST_KEY: usize = 255;

/// What is to be reserved.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"quantities": {"messages": 1, "input_tokens": 1200, "output_tokens": 800}, "ttl_seconds": 120}))]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub struct NewReservationBody {
    /// Feature key → how much; what is left out is 0.
    #[schema(value_type = Object)]
    quantities: PerFeature,
    #[schema(minimum = 1, maximum = 86400, default = 120)]
    ttl_seconds: Option<u64>,
    /// The end user, unless a key or `X-Tollgate-User` names one.
    #[schema(max_length = 128)]
    user: Option<String>,
    /// The model that is to be called.
    #[schema(max_length = 128)]
    model: Option<String>,
}

/// What was used.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"quantities": {"messages": 1, "input_tokens": 1130, "output_tokens": 412}, "idempotency_key": "job-17"}))]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub struct SettleBody {
    /// Feature key → how much; what is left out is 0.
    #[schema(value_type = Object)]
    quantities: PerFeature,
    /// The same key again counts once; another one is refused.
    #[schema(min_length = 1, max_length = 255)]
    idempotency_key: Option<String>,
}

/// Hold what an application may use that calls a model itself. Nothing is lowered: all of it, or nothing.
#[utoipa::path(
    post, path = "/api/v1/usage/reservations", tag = "usage", security(("tenant_key" = [])),
    request_body = NewReservationBody,
    responses((status = 201, description = "Held until `expires_at`", body = ReservedBody), errors::Reserving),
)]
pub async fn create(
    State(app): State<App>,
    mut caller: Caller,
    headers: HeaderMap,
    WholeBody(body): WholeBody,
) -> ApiResult<Response> {
    let ask = read_new(&mut caller, &headers, &body)?;
    app.reporting.check_features(&ask.quantities).await?;
    let reserving = app.clone();
    let run = |caller| reserve(reserving, NewReservation { caller, ..ask });
    once(&app, &caller, &headers, ROUTE, &body, run).await
}

async fn reserve(app: App, ask: NewReservation) -> ApiResult<Response> {
    let reserved = app.reservations.reserve(ask).await?;
    let body = Json(ReservedBody::of(&reserved));
    let mut response = (StatusCode::CREATED, body).into_response();
    if app.guard.is_on() {
        GuardHeaders::of_states(reserved.decision, reserved.states, app.clock.now())
            .put(response.headers_mut(), Dialect::Native);
    }
    Ok(response)
}

/// Replace what is held by what was used, however much that is and however late.
#[utoipa::path(
    post, path = "/api/v1/usage/reservations/{id}/settle", tag = "usage", security(("tenant_key" = [])),
    request_body = SettleBody,
    responses(
        (status = 200, description = "Counted once, however often it is sent", body = SettledBody),
        errors::NotFound, errors::ReservationSettled,
    ),
)]
pub async fn settle(
    State(app): State<App>,
    caller: Caller,
    InPath(reservation): InPath<ReservationId>,
    WholeBody(body): WholeBody,
) -> ApiResult<Json<SettledBody>> {
    let mut fields = Fields::of(&body)?;
    let quantities = fields.quantities("quantities")?;
    let key: Option<String> = fields.optional("idempotency_key")?;
    fields.finish()?;
    if let Some(key) = key.as_deref().filter(|key| !is_key(key)) {
        let found = format!("a text of {} bytes", key.len());
        let accepted = "a text of 1-255 visible ASCII characters";
        return Err(ApiError::bad_field("idempotency_key", found, accepted));
    }
    app.reporting.check_features(&quantities).await?;
    let settled = app
        .reservations
        .settle(SettleAsk {
            tenant: caller.key().tenant_id,
            reservation,
            quantities,
            key: key.unwrap_or_default(),
        })
        .await?;
    Ok(Json(SettledBody::of(&settled)))
}

/// Give back what a reservation holds.
#[utoipa::path(
    delete, path = "/api/v1/usage/reservations/{id}", tag = "usage", security(("tenant_key" = [])),
    responses((status = 204, description = "Released"), errors::NotFound, errors::ReservationSettled),
)]
pub async fn release(
    State(app): State<App>,
    caller: Caller,
    InPath(reservation): InPath<ReservationId>,
) -> ApiResult<StatusCode> {
    let tenant = caller.key().tenant_id;
    app.reservations.release(Some(tenant), reservation).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn is_key(key: &str) -> bool {
    (1..=LONGEST_KEY).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic())
}

fn read_new(caller: &mut Caller, headers: &HeaderMap, body: &[u8]) -> ApiResult<NewReservation> {
    let mut fields = Fields::of(body)?;
    let quantities = fields.quantities("quantities")?;
    let ttl: Option<i64> = fields.optional("ttl_seconds")?;
    let user = fields.short_text("user")?;
    let model = fields.short_text("model")?;
    fields.finish()?;
    let ttl = match ttl.map(|ttl| (ttl, u64::try_from(ttl))) {
        None => USUAL_TTL,
        Some((_, Ok(ttl))) if (SHORTEST_TTL..=LONGEST_TTL).contains(&ttl) => ttl,
        Some((ttl, _)) => {
            let accepted =
                format!("a whole number of seconds from {SHORTEST_TTL} to {LONGEST_TTL}");
            return Err(ApiError::bad_field("ttl_seconds", ttl, accepted));
        }
    };
    caller.name_user(headers, user.as_deref())?;
    Ok(NewReservation {
        caller: caller.guarded(),
        quantities,
        ttl: Duration::from_secs(ttl),
        model: model.filter(|model| !model.is_empty()),
    })
}

/// The answer to a reservation.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ReservedBody {
    reservation_id: ReservationId,
    #[schema(value_type = String)]
    decision: Decision,
    #[schema(value_type = Object)]
    granted: PerFeature,
    expires_at: Timestamp,
    features: Vec<FeatureItem>,
}

impl ReservedBody {
    fn of(reserved: &Reserved) -> Self {
        Self {
            reservation_id: reserved.reservation.reservation_id,
            decision: reserved.decision,
            granted: PerFeature::of(&reserved.reservation.quantities),
            expires_at: reserved.reservation.expires_at,
            features: reserved
                .states
                .iter()
                .map(|state| FeatureItem::from(&state))
                .collect(),
        }
    }
}

/// The answer to a settle.
#[derive(Serialize, utoipa::ToSchema)]
pub struct SettledBody {
    reservation_id: ReservationId,
    event_id: EventId,
    /// What was recorded: the first settle's, also in the answer to a repeat.
    #[schema(value_type = Object)]
    quantities: PerFeature,
    duplicate: bool,
    features: Vec<FeatureItem>,
}

impl SettledBody {
    fn of(settled: &Settled) -> Self {
        Self {
            reservation_id: settled.reservation.reservation_id,
            event_id: settled.settlement.event_id,
            quantities: PerFeature::of(&settled.settlement.quantities),
            duplicate: settled.is_duplicate,
            features: settled.states.iter().map(FeatureItem::from).collect(),
        }
    }
}

/// Quantities as an object of feature keys.
#[derive(Serialize)]
#[serde(transparent)]
pub struct PerFeature(std::collections::BTreeMap<FeatureKey, Quantity>);

impl PerFeature {
    #[must_use]
    pub fn of(quantities: &Quantities) -> Self {
        let pairs = quantities
            .iter()
            .map(|(feature, quantity)| (feature.clone(), quantity));
        Self(pairs.collect())
    }
}
