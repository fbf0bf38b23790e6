//! Every failure that a client can see: its status, its code, its words (interface.md §3, Errors).
//!
//! A handler returns an [`ApiError`]; [`render`] writes the body at the very end, since only the layer around all
//! routes knows the request's id and whom the answer is for. No other file knows the status of a failure.

mod body;
mod refusal;
mod sources;

use std::sync::Arc;

use axum::{
    extract::Extension,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, StatusCode, Uri,
    header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};

use super::{
    Dialect,
    headers::{self, Resets},
    request_id::RequestId,
};
use crate::services::guard::Refusal;
use crate::{
    domain::{administrator::Role, ids::TenantId},
    store::StoreError,
    telemetry::events::Decision,
};

pub const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
pub const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// The routes below `/v1`: all others there would be a way round the meter.
pub const METERED_ENDPOINTS: [&str; 4] = [
    "POST /v1/chat/completions",
    "POST /v1/responses",
    "POST /v1/embeddings",
    "GET /v1/models",
];

pub type ApiResult<T> = Result<T, ApiError>;

/// A failure that a client can see.
#[derive(Debug)]
pub enum ApiError {
    /// The body can't be read: no JSON, no UTF-8, too deep, a key twice, the wrong type at its top.
    Unreadable(String),
    /// One field is wrong; the message says which, what was found, and what is accepted.
    Invalid {
        param: String,
        message: String,
    },
    /// A field asks for what tollgate can't meter.
    UnsupportedParameter {
        param: String,
        reason: String,
    },
    /// The prompt names content that is not in the body, and the settings refuse that.
    OpenInputNotAllowed {
        what: String,
    },
    ModelNotPriced {
        model: String,
    },
    MethodNotAllowed {
        method: Method,
        path: String,
    },
    /// The body made no progress for this long.
    RequestTimeout {
        after_seconds: u64,
    },
    BodyTooLarge {
        max_bytes: usize,
    },
    UnsupportedMediaType(String),
    /// No token, or one that is unknown, revoked, expired or of the wrong kind: one body for all.
    InvalidApiKey,
    Forbidden {
        needed: Role,
        has: Role,
    },
    /// A change asked for with a session's cookie by a page of another site, or by who does not say where from.
    CrossSite,
    ModelNotAllowed {
        plan_code: String,
        model: String,
        allowed: Vec<String>,
    },
    /// No subscription (`plan_code` is `None`), or to a plan that is not defined.
    NoPlan {
        tenant_id: TenantId,
        plan_code: Option<String>,
    },
    SubscriptionInactive {
        plan_code: String,
        status: &'static str,
    },
    /// What is missing, as in "tenant 'acme'".
    NotFound(String),
    ConversationNotFound(String),
    /// A path below `/v1` that is not metered, and so not proxied.
    EndpointNotMetered {
        method: Method,
        path: String,
    },
    IdempotencyKeyInUse,
    IdempotencyAnswerTooLarge,
    IdempotencyKeyReused,
    ReservationSettled {
        reservation_id: String,
    },
    AlreadyExists {
        what: String,
        name: String,
    },
    PlanInUse {
        plan_code: String,
        subscriptions: i64,
    },
    /// `current`: the object as it is now.
    VersionConflict {
        message: String,
        current: serde_json::Value,
    },
    Refused(Arc<Refusal>),
    /// The upstream answered with an error, or not at all; the message is shown, the detail is logged.
    Upstream {
        message: String,
        detail: String,
    },
    /// The same, where asking again does not help.
    UpstreamRefused {
        message: String,
        detail: String,
    },
    UpstreamTimeout,
    /// No decision can be made, or usage can't be written down; the detail is logged, not shown.
    StoreUnavailable {
        detail: String,
    },
    Overloaded {
        max_in_flight: usize,
    },
    /// The server stops, and the run was ended with it.
    Stopping,
    /// What to set.
    ProviderNotConfigured(String),
    /// A fault of the program: a panic.
    Internal,
}

impl ApiError {
    /// A bad field: where, what was found, what is accepted.
    #[must_use]
    pub fn bad_field(
        param: impl Into<String>,
        found: impl std::fmt::Display,
        accepted: impl std::fmt::Display,
    ) -> Self {
        let param = param.into();
        Self::Invalid {
            message: format!("'{param}' is {found}; write {accepted}"),
            param,
        }
    }

    /// The row of this failure in the table of interface.md §3; no `_` arm: a new failure gets its row here.
    fn row(&self) -> (StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::Unreadable(_) => (S::BAD_REQUEST, "invalid_request"),
            Self::Invalid { .. } => (S::UNPROCESSABLE_ENTITY, "invalid_request"),
            Self::UnsupportedParameter { .. } => (S::BAD_REQUEST, "unsupported_parameter"),
            Self::OpenInputNotAllowed { .. } => (S::UNPROCESSABLE_ENTITY, "open_input_not_allowed"),
            Self::ModelNotPriced { .. } => (S::UNPROCESSABLE_ENTITY, "model_not_priced"),
            Self::MethodNotAllowed { .. } => (S::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::RequestTimeout { .. } => (S::REQUEST_TIMEOUT, "request_timeout"),
            Self::BodyTooLarge { .. } => (S::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::UnsupportedMediaType(_) => (S::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Self::InvalidApiKey => (S::UNAUTHORIZED, "invalid_api_key"),
            Self::Forbidden { .. } => (S::FORBIDDEN, "forbidden"),
            Self::CrossSite => (S::FORBIDDEN, "forbidden"),
            Self::ModelNotAllowed { .. } => (S::FORBIDDEN, "model_not_allowed"),
            Self::NoPlan { .. } => (S::PAYMENT_REQUIRED, "usage_policy_configuration_error"),
            Self::SubscriptionInactive { .. } => (S::PAYMENT_REQUIRED, "subscription_inactive"),
            Self::NotFound(_) => (S::NOT_FOUND, "not_found"),
            Self::ConversationNotFound(_) => (S::NOT_FOUND, "conversation_not_found"),
            Self::EndpointNotMetered { .. } => (S::NOT_FOUND, "endpoint_not_metered"),
            Self::IdempotencyKeyInUse => (S::CONFLICT, "idempotency_key_in_use"),
            Self::IdempotencyAnswerTooLarge => (S::CONFLICT, "idempotency_answer_too_large"),
            Self::IdempotencyKeyReused => (S::UNPROCESSABLE_ENTITY, "idempotency_key_reused"),
            Self::ReservationSettled { .. } => (S::CONFLICT, "reservation_settled"),
            Self::AlreadyExists { .. } => (S::CONFLICT, "already_exists"),
            Self::PlanInUse { .. } => (S::CONFLICT, "plan_in_use"),
            Self::VersionConflict { .. } => (S::PRECONDITION_FAILED, "version_conflict"),
            Self::Refused(it) if it.is_by_reservations_alone() => {
                (S::TOO_MANY_REQUESTS, refusal::RESERVED)
            }
            Self::Refused(_) => (S::TOO_MANY_REQUESTS, refusal::EXCEEDED),
            Self::Upstream { .. } | Self::UpstreamRefused { .. } => {
                (S::BAD_GATEWAY, "upstream_error")
            }
            Self::UpstreamTimeout => (S::GATEWAY_TIMEOUT, "upstream_timeout"),
            Self::StoreUnavailable { .. } => (S::SERVICE_UNAVAILABLE, "usage_store_unavailable"),
            Self::Overloaded { .. } | Self::Stopping => (S::SERVICE_UNAVAILABLE, "overloaded"),
            Self::ProviderNotConfigured(_) => (S::SERVICE_UNAVAILABLE, "provider_not_configured"),
            Self::Internal => (S::INTERNAL_SERVER_ERROR, "internal_error"),
        }
    }

    /// The code in the body, also of an `error` frame in a stream.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.row().1
    }

    /// The status for a client of `dialect`: a bad field is 422, but 400 to OpenAI's clients.
    #[must_use]
    pub fn status(&self, dialect: Dialect) -> StatusCode {
        match (self, dialect) {
            (Self::Invalid { .. }, Dialect::OpenAi) => StatusCode::BAD_REQUEST,
            _ => self.row().0,
        }
    }

    /// Whether the same request may do better later, for the `error` frame of a stream.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.may_fit_later(),
            Self::UpstreamRefused { .. } => false,
            _ => {
                let status = self.row().0;
                status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT
            }
        }
    }

    /// What happened to what, what was found, what to do: for the client to read.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Unreadable(message)
            | Self::Invalid { message, .. }
            | Self::UnsupportedMediaType(message)
            | Self::VersionConflict { message, .. }
            | Self::Upstream { message, .. }
            | Self::UpstreamRefused { message, .. }
            | Self::ProviderNotConfigured(message) => message.clone(),
            Self::UnsupportedParameter { param, reason } => {
                format!("'{param}' is not supported: {reason}")
            }
            Self::OpenInputNotAllowed { what } => format!(
                "The prompt names {what}, whose size is not known before the model runs; send the content itself."
            ),
            Self::ModelNotPriced { model } => {
                format!(
                    "No price is known for model '{model}', and models without one are refused."
                )
            }
            Self::MethodNotAllowed { method, path } => {
                format!("{method} is not taken at {path}; the Allow header says what is.")
            }
            Self::RequestTimeout { after_seconds } => {
                format!(
                    "No more of the body came for {after_seconds} seconds; the connection is closed."
                )
            }
            Self::BodyTooLarge { max_bytes } => {
                format!(
                    "The body is larger than {max_bytes} bytes, which is the most that is taken."
                )
            }
            Self::InvalidApiKey => {
                "The API key is missing or not valid; send 'Authorization: Bearer KEY' with a key \
                                    that is neither revoked nor expired."
                    .to_owned()
            }
            Self::Forbidden { needed, has } => {
                format!("This needs an administrator of role {needed}; this token's role is {has}.")
            }
            Self::CrossSite => {
                "A change by a session's cookie is taken from tollgate's own page alone; \
                                send a token as 'Authorization: Bearer' instead."
                    .to_owned()
            }
            Self::ModelNotAllowed {
                plan_code,
                model,
                allowed,
            } => {
                format!(
                    "Plan '{plan_code}' does not allow model '{model}'; it allows {}.",
                    allowed.join(", ")
                )
            }
            Self::NoPlan {
                plan_code: None, ..
            } => "This tenant has no subscription to a plan; an operator has to give it one."
                .to_owned(),
            Self::NoPlan {
                plan_code: Some(plan_code),
                ..
            } => {
                format!(
                    "This tenant's plan '{plan_code}' is not defined; an operator has to create it."
                )
            }
            Self::SubscriptionInactive { plan_code, status } => {
                format!("This tenant's subscription to plan '{plan_code}' is {status}.")
            }
            Self::NotFound(what) => format!("There is no {what}."),
            Self::ConversationNotFound(id) => {
                format!(
                    "There is no conversation '{id}'; it may have expired. Leave conversation_id out to begin one."
                )
            }
            Self::EndpointNotMetered { method, path } => {
                format!(
                    "{method} {path} is not metered and so not served; there are {}.",
                    METERED_ENDPOINTS.join(", ")
                )
            }
            Self::IdempotencyKeyInUse => {
                "A request with this Idempotency-Key is still in flight; wait for its answer."
                    .to_owned()
            }
            Self::IdempotencyAnswerTooLarge => {
                "The answer to this Idempotency-Key was too large to be kept, or had to \
                                                make room; it is not run again."
                    .to_owned()
            }
            Self::IdempotencyKeyReused => {
                "This Idempotency-Key was used with another body; take a new key for a new request."
                    .to_owned()
            }
            Self::ReservationSettled { reservation_id } => {
                format!(
                    "Reservation '{reservation_id}' is settled already; only a settle with the same idempotency key may be repeated."
                )
            }
            Self::AlreadyExists { what, name } if what == "tenant" => format!(
                "There is a tenant '{name}' already, or was: one that was deleted keeps its slug."
            ),
            Self::AlreadyExists { what, name } => {
                let article = if what.starts_with(['a', 'e', 'i', 'o']) {
                    "an"
                } else {
                    "a"
                };
                format!("There is {article} {what} '{name}' already.")
            }
            Self::PlanInUse {
                plan_code,
                subscriptions,
            } => {
                format!(
                    "Plan '{plan_code}' has {subscriptions} subscriptions; move them to another plan first."
                )
            }
            Self::Refused(refusal) => refusal.message(),
            Self::UpstreamTimeout => "The upstream did not answer in time.".to_owned(),
            Self::StoreUnavailable { .. } => {
                "Usage can't be checked or written down at the moment; try again soon.".to_owned()
            }
            Self::Overloaded { max_in_flight } => {
                format!("{max_in_flight} requests are in flight already; try again in a second.")
            }
            Self::Stopping => "The server stops; send the request again.".to_owned(),
            Self::Internal => "Something went wrong inside tollgate; its log says what.".to_owned(),
        }
    }

    /// The field at fault, if it is one.
    fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid { param, .. } | Self::UnsupportedParameter { param, .. } => Some(param),
            Self::ModelNotPriced { .. } | Self::ModelNotAllowed { .. } => Some("model"),
            Self::ConversationNotFound(_) => Some("conversation_id"),
            _ => None,
        }
    }

    fn add_headers(&self, response: &mut Response, dialect: Dialect) {
        let headers = response.headers_mut();
        match self {
            Self::InvalidApiKey => {
                headers.insert(
                    WWW_AUTHENTICATE,
                    HeaderValue::from_static("Bearer realm=\"tollgate\""),
                );
            }
            // What is left of the body is not read.
            Self::RequestTimeout { .. } | Self::BodyTooLarge { .. } => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Self::Overloaded { .. } | Self::Stopping => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            // OpenAI's clients send what got a 502 again by themselves.
            Self::UpstreamRefused { .. } => {
                headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
            }
            Self::Refused(refusal) => refusal.add_headers(headers, dialect),
            // `Allow` of a 405 is the router's: it knows the methods.
            _ => {}
        }
    }

    /// Says once, where it is handled, what the client is not told.
    pub(crate) fn log(&self, request_id: &RequestId) {
        match self {
            Self::StoreUnavailable { detail } => tracing::error!(
                code = self.code(),
                detail,
                request_id = &*request_id.0,
                "a request was answered 503"
            ),
            Self::Upstream { detail, .. } | Self::UpstreamRefused { detail, .. } => tracing::warn!(
                code = self.code(),
                detail,
                request_id = &*request_id.0,
                "the upstream failed"
            ),
            Self::UpstreamTimeout
            | Self::ProviderNotConfigured(_)
            | Self::Overloaded { .. }
            | Self::Stopping => {
                tracing::warn!(
                    code = self.code(),
                    request_id = &*request_id.0,
                    "{}",
                    self.message()
                );
            }
            _ => {}
        }
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message())
    }
}

impl std::error::Error for ApiError {}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(detail) => Self::StoreUnavailable { detail },
            StoreError::AlreadyExists { what, name } => Self::AlreadyExists {
                what: what.to_owned(),
                name,
            },
            StoreError::NotFound { what, name } => Self::NotFound(format!("{what} '{name}'")),
            StoreError::PlanInUse {
                plan,
                subscriptions,
            } => Self::PlanInUse {
                plan_code: plan.to_string(),
                subscriptions,
            },
            last @ StoreError::LastOwner { .. } => Self::Invalid {
                param: "admin_token_id".to_owned(),
                message: last.to_string(),
            },
            conflict @ StoreError::VersionConflict { .. } => Self::VersionConflict {
                message: conflict.to_string(),
                current: serde_json::Value::Null,
            },
        }
    }
}

impl IntoResponse for ApiError {
    /// Without a body: [`render`] writes it.
    fn into_response(self) -> Response {
        (self.row().0, Extension(Arc::new(self))).into_response()
    }
}

/// What an answer needs to know of its request.
#[derive(Clone, Copy, Debug)]
pub struct RenderContext<'a> {
    pub dialect: Dialect,
    pub request_id: &'a RequestId,
}

/// Takes the failure out of an answer that is one, for who writes its body in another way than [`render`].
pub(crate) fn take(response: &mut Response) -> Option<Arc<ApiError>> {
    response.extensions_mut().remove::<Arc<ApiError>>()
}

/// Whether an answer is an [`ApiError`] whose body is still to be written.
#[must_use]
pub fn is_failure(response: &Response) -> bool {
    response.extensions().get::<Arc<ApiError>>().is_some()
}

/// Writes the body of an answer that is an [`ApiError`]; leaves all others as they are.
#[must_use]
pub fn render(mut response: Response, context: RenderContext<'_>) -> Response {
    let Some(error) = take(&mut response) else {
        return response;
    };
    error.log(context.request_id);
    *response.status_mut() = error.status(context.dialect);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    error.add_headers(&mut response, context.dialect);
    let body = body::of(&error, context);
    response.map(|_| body.into())
}

/// The body of an error as one event of a stream that had begun.
#[must_use]
pub fn frame(error: &ApiError, context: RenderContext<'_>) -> Bytes {
    error.log(context.request_id);
    let mut frame = b"data: ".to_vec();
    frame.extend_from_slice(body::of(error, context).as_bytes());
    frame.extend_from_slice(b"\n\n");
    frame.into()
}

/// What is answered where there is no route.
pub async fn no_route(method: Method, uri: Uri) -> ApiError {
    std::future::ready(unrouted(method, uri.path())).await
}

/// What is answered where no route has the path.
#[must_use]
pub fn nothing_at(path: &str) -> ApiError {
    ApiError::NotFound(format!("page or endpoint at {}", shown(path)))
}

/// What is answered where the path's parts name what can't be.
#[must_use]
pub fn no_object_at(path: &str) -> ApiError {
    ApiError::NotFound(format!("object at {}", shown(path)))
}

fn unrouted(method: Method, path: &str) -> ApiError {
    let path = shown(path);
    match Dialect::of_path(&path) {
        Dialect::OpenAi => ApiError::EndpointNotMetered { method, path },
        Dialect::Native => nothing_at(&path),
    }
}

/// What is answered where a route does not take the method; the router adds `Allow`.
pub async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    std::future::ready(ApiError::MethodNotAllowed {
        method,
        path: shown(uri.path()),
    })
    .await
}

/// A path may be as long as a head: the answer shows its beginning.
fn shown(path: &str) -> String {
    const LONGEST_CHARS: usize = 200;
    path.chars().take(LONGEST_CHARS).collect()
}

#[cfg(test)]
mod tests;
