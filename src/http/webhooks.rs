//! `POST /webhooks/stripe`: what Stripe tells.

use axum::{Json, body::Body, extract::State};
use http::HeaderMap;
use serde::Serialize;

use super::{
    error::{ApiError, ApiResult},
    extract::read_body,
    openapi::errors,
};
use crate::{app::App, billing::stripe::WebhookError};

/// More than any event of Stripe's has.
const LARGEST: usize = 1 << 20;
const SIGNATURE: &str = "stripe-signature";

/// The event is kept.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ReceivedBody {
    received: bool,
    /// It came before.
    duplicate: bool,
}

/// Take an event of Stripe's, signed with one of the secrets of `STRIPE_WEBHOOK_SECRET`.
///
/// # Errors
/// [`ApiError::Unreadable`] for a signature or body that is not Stripe's; 404 where Stripe is off.
#[utoipa::path(
    post, path = "/webhooks/stripe", tag = "operation",
    params(("stripe-signature" = String, Header, description = "`t=…,v1=…`")),
    request_body(content = Object, content_type = "application/json", description = "An event of Stripe's, at most 1 MiB"),
    responses((status = 200, description = "It is kept, and holds unless something newer does", body = ReceivedBody), errors::NotFound),
)]
pub async fn stripe(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Json<ReceivedBody>> {
    let off =
        || ApiError::NotFound("webhook of Stripe's here: ENABLE_STRIPE_USAGE is false".to_owned());
    let stripe = app.stripe.as_ref().ok_or_else(off)?;
    let body = read_body(&headers, body, LARGEST).await?;
    let signature = headers.get(SIGNATURE).and_then(|it| it.to_str().ok());
    let received = stripe
        .receive(signature.unwrap_or_default(), &body)
        .await
        .map_err(|error| match error {
            WebhookError::NoSecret => ApiError::NotFound(
                "webhook of Stripe's here: STRIPE_WEBHOOK_SECRET is not set".to_owned(),
            ),
            WebhookError::Signature(_) | WebhookError::Payload(_) => {
                ApiError::Unreadable(error.to_string())
            }
            WebhookError::Store(error) => error.into(),
        })?;
    Ok(Json(ReceivedBody {
        received: true,
        duplicate: received.is_duplicate,
    }))
}
