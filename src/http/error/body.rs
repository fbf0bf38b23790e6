//! The JSON of an error, in both dialects: one object, to which OpenAI's clients get `type` and `param` added.

use http::StatusCode;
use serde::Serialize;

use super::{ApiError, Dialect, METERED_ENDPOINTS, Refusal, RenderContext, TenantId, Timestamp};
use crate::domain::{
    feature::FeatureKey,
    limit::{LimitType, Scope, Violation},
    quantity::Quantity,
    window::WindowKind,
};

/// Room for a refusal by one limit, so that writing it does not move it again and again.
const USUAL_BYTES: usize = 1_536;

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorObject<'a>,
}

#[derive(Serialize)]
struct ErrorObject<'a> {
    code: &'static str,
    message: String,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    /// Null to OpenAI's clients where no field is at fault; left out of tollgate's own form then.
    #[serde(skip_serializing_if = "Option::is_none")]
    param: Option<Option<&'a str>>,
    #[serde(flatten)]
    details: Details<'a>,
    request_id: &'a str,
}

/// What a failure says beyond its code and message.
#[derive(Serialize)]
#[serde(untagged)]
enum Details<'a> {
    Nothing {},
    Limit {
        #[serde(flatten)]
        top: LimitObject<'a>,
        violations: Vec<ViolationObject<'a>>,
    },
    Plan {
        #[serde(skip_serializing_if = "Option::is_none")]
        tenant_id: Option<TenantId>,
        plan_code: Option<&'a str>,
    },
    Subscription {
        plan_code: &'a str,
        subscription_status: &'a str,
    },
    AllowedModels {
        plan_code: &'a str,
        allowed_models: &'a [String],
    },
    Endpoints {
        endpoints: [&'static str; 4],
    },
    Current {
        current: &'a serde_json::Value,
    },
}

#[derive(Serialize)]
struct ViolationObject<'a> {
    code: &'static str,
    message: String,
    #[serde(flatten)]
    limit: LimitObject<'a>,
}

#[derive(Serialize)]
struct LimitObject<'a> {
    tenant_id: TenantId,
    plan_code: &'a str,
    feature_key: &'a FeatureKey,
    scope: Scope,
    window: WindowKind,
    limit_type: LimitType,
    limit_value: Quantity,
    usage: Quantity,
    reserved: Quantity,
    requested: Quantity,
    unit: &'a str,
    window_start: Timestamp,
    window_end: Option<Timestamp>,
    retry_after_seconds: Option<i64>,
}

pub(super) fn of(error: &ApiError, context: RenderContext<'_>) -> Vec<u8> {
    let is_openai = context.dialect == Dialect::OpenAi;
    let param = match (error.param(), context.dialect) {
        (Some(param), _) => Some(Some(param)),
        (None, Dialect::OpenAi) => Some(None),
        (None, Dialect::Native) => None,
    };
    let body = ErrorBody {
        error: ErrorObject {
            code: error.code(),
            message: error.message(),
            kind: is_openai.then(|| openai_type(error)),
            param,
            details: details(error),
            request_id: &context.request_id.0,
        },
    };
    let mut written = Vec::with_capacity(USUAL_BYTES);
    serde_json::to_writer(&mut written, &body).expect("an error is plain strings and numbers");
    written
}

fn details(error: &ApiError) -> Details<'_> {
    match error {
        ApiError::Refused(refusal) => limits(refusal),
        ApiError::NoPlan {
            tenant_id,
            plan_code,
        } => Details::Plan {
            tenant_id: Some(*tenant_id),
            plan_code: plan_code.as_deref(),
        },
        ApiError::SubscriptionInactive { plan_code, status } => Details::Subscription {
            plan_code,
            subscription_status: status,
        },
        ApiError::ModelNotAllowed {
            plan_code, allowed, ..
        } => Details::AllowedModels {
            plan_code,
            allowed_models: allowed,
        },
        ApiError::EndpointNotMetered { .. } => Details::Endpoints {
            endpoints: METERED_ENDPOINTS,
        },
        ApiError::VersionConflict { current, .. } => Details::Current { current },
        _ => Details::Nothing {},
    }
}

fn limits(refusal: &Refusal) -> Details<'_> {
    let Some(top) = refusal.top() else {
        return Details::Nothing {};
    };
    let violations = refusal
        .violations
        .iter()
        .map(|violation| ViolationObject {
            code: Refusal::code_of(violation),
            message: violation.message(&refusal.plan_code),
            limit: limit_object(refusal, violation),
        })
        .collect();
    Details::Limit {
        top: limit_object(refusal, top),
        violations,
    }
}

fn limit_object<'a>(refusal: &'a Refusal, violation: &'a Violation) -> LimitObject<'a> {
    let limit = &violation.limit;
    LimitObject {
        tenant_id: refusal.tenant_id,
        plan_code: &refusal.plan_code,
        feature_key: &limit.feature,
        scope: limit.scope,
        window: limit.kind,
        limit_type: violation.limit_type,
        limit_value: violation.limit_value,
        usage: violation.settled,
        reserved: violation.reserved,
        requested: violation.requested,
        unit: &limit.unit,
        window_start: limit.window.start(),
        window_end: limit.window.resets_at(),
        retry_after_seconds: refusal.retry_after_seconds(violation),
    }
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
