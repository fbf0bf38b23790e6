//! The JSON of an error, in both dialects: one object, to which OpenAI's clients get `type` and `param` added.

use http::StatusCode;

use super::{ApiError, Dialect, METERED_ENDPOINTS, Refusal, RenderContext};
use crate::{
    domain::{limit::Violation, window::WindowKind},
    json::ObjectWriter,
};

/// Room for a refusal by one limit, so that writing it does not move it again and again.
const USUAL_BYTES: usize = 1_536;
const NULL: &str = "null";

pub(super) fn of(error: &ApiError, context: RenderContext<'_>) -> String {
    let message = error.message();
    let mut body = String::with_capacity(USUAL_BYTES);
    let mut outer = ObjectWriter::new(&mut body);
    let mut object = ObjectWriter::new(outer.value("error"));
    object.text("code", error.code());
    object.text("message", &message);
    if context.dialect == Dialect::OpenAi {
        object.text("type", openai_type(error));
    }
    match (error.param(), context.dialect) {
        (Some(param), _) => object.text("param", param),
        // Their clients read it of every error.
        (None, Dialect::OpenAi) => object.json("param", NULL),
        (None, Dialect::Native) => {}
    }
    add_details(error, &message, &mut object);
    object.text("request_id", &context.request_id.0);
    object.end();
    outer.end();
    body
}

/// What some failures say more; `message` is the error's.
fn add_details(error: &ApiError, message: &str, to: &mut ObjectWriter<'_>) {
    match error {
        ApiError::Refused(refusal) => {
            if let Some(top) = refusal.top() {
                add_refusal(refusal, top, message, to);
            }
        }
        ApiError::NoPlan {
            tenant_id,
            plan_code,
        } => {
            to.shown("tenant_id", tenant_id);
            match plan_code {
                Some(plan_code) => to.text("plan_code", plan_code),
                None => to.json("plan_code", NULL),
            }
        }
        ApiError::SubscriptionInactive { plan_code, status } => {
            to.text("plan_code", plan_code);
            to.text("subscription_status", status);
        }
        ApiError::ModelNotAllowed {
            plan_code, allowed, ..
        } => {
            to.text("plan_code", plan_code);
            to.texts("allowed_models", allowed.iter().map(String::as_str));
        }
        ApiError::EndpointNotMetered { .. } => to.texts("endpoints", METERED_ENDPOINTS),
        ApiError::VersionConflict { current, .. } => to.json("current", &current.to_string()),
        _ => {}
    }
}

/// The limit that the answer is about, and all that were broken: what is said of the one at the top is said of it in
/// the list too, and written once.
fn add_refusal(refusal: &Refusal, top: &Violation, message: &str, to: &mut ObjectWriter<'_>) {
    let of_top = limit_of(refusal, top);
    to.members_of(&of_top);
    let list = to.value("violations");
    for (number, violation) in refusal.violations.iter().enumerate() {
        list.push(if number == 0 { '[' } else { ',' });
        let mut told = ObjectWriter::new(list);
        told.text("code", Refusal::code_of(violation));
        if std::ptr::eq(violation, top) {
            told.text("message", message);
            told.members_of(&of_top);
        } else {
            told.text("message", &violation.message(&refusal.plan_code));
            told.members_of(&limit_of(refusal, violation));
        }
        told.end();
    }
    list.push(']');
}

/// One of a refusal's limits, as an object.
fn limit_of(refusal: &Refusal, violation: &Violation) -> String {
    let limit = &violation.limit;
    let mut text = String::with_capacity(USUAL_BYTES / 3);
    let mut to = ObjectWriter::new(&mut text);
    to.shown("tenant_id", refusal.tenant_id);
    to.text("plan_code", &refusal.plan_code);
    to.text("feature_key", limit.feature.as_str());
    to.text("scope", limit.scope.as_str());
    to.text("window", limit.kind.as_str());
    to.text("limit_type", violation.limit_type.as_str());
    to.number("limit_value", violation.limit_value.get());
    to.number("usage", violation.settled.get());
    to.number("reserved", violation.reserved.get());
    to.number("requested", violation.requested.get());
    to.text("unit", &limit.unit);
    to.shown("window_start", limit.window.start());
    match limit.window.resets_at() {
        Some(end) => to.shown("window_end", end),
        None => to.json("window_end", NULL),
    }
    match refusal.retry_after_seconds(violation) {
        Some(seconds) => to.number("retry_after_seconds", seconds),
        None => to.json("retry_after_seconds", NULL),
    }
    to.end();
    text
}

/// OpenAI's `type`, by which its clients choose the exception that they raise.
fn openai_type(error: &ApiError) -> &'static str {
    if let ApiError::Refused(refusal) = error {
        return refusal_type(refusal);
    }
    match error.status(Dialect::OpenAi) {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::PAYMENT_REQUIRED => "insufficient_quota",
        StatusCode::FORBIDDEN => "permission_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    }
}

fn refusal_type(refusal: &Refusal) -> &'static str {
    let passes_soon = refusal.is_by_reservations_alone()
        || refusal
            .top()
            .is_some_and(|top| matches!(top.limit.kind, WindowKind::Minute | WindowKind::Hour));
    if passes_soon {
        "rate_limit_error"
    } else {
        "insufficient_quota"
    }
}
