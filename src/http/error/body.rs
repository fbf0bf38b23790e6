//! The JSON of an error, in both dialects: one object, to which OpenAI's clients get `type` and `param` added.

use std::borrow::Cow;

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

/// What the body of every error begins with.
#[derive(Serialize)]
struct Head<'a> {
    code: &'static str,
    message: &'a str,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    /// Null to OpenAI's clients where no field is at fault; left out of tollgate's own form then.
    #[serde(skip_serializing_if = "Option::is_none")]
    param: Option<Option<&'a str>>,
}

/// What every one ends with.
#[derive(Serialize)]
struct Tail<'a> {
    request_id: &'a str,
}

/// What a failure other than a refusal says in between.
#[derive(Serialize)]
#[serde(untagged)]
enum Details<'a> {
    Nothing {},
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

/// What one of a refusal's violations begins with; its limit follows.
#[derive(Serialize)]
struct ViolationHead<'a> {
    code: &'static str,
    message: &'a str,
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
    let told = told(error);
    let message = match &told {
        Some(told) => Cow::Borrowed(told.violations[told.top].message.as_str()),
        None => Cow::Owned(error.message()),
    };
    let mut body = Members(Vec::with_capacity(USUAL_BYTES));
    body.0.extend_from_slice(br#"{"error":"#);
    body.begin(&Head {
        code: error.code(),
        message: &message,
        kind: is_openai.then(|| openai_type(error)),
        param,
    });
    match &told {
        Some(told) => told.add_to(&mut body),
        None => body.add(&details(error)),
    }
    body.add(&Tail {
        request_id: &context.request_id.0,
    });
    body.0.extend_from_slice(b"}}");
    body.0
}

/// JSON in which the members of several objects become those of one, which is still open.
struct Members(Vec<u8>);

impl Members {
    /// Opens an object with the members of `object`.
    fn begin(&mut self, object: &impl Serialize) {
        serde_json::to_writer(&mut self.0, object).expect("these are plain strings and numbers");
        self.0.pop(); // its brace
    }

    /// Adds those of another.
    fn add(&mut self, object: &impl Serialize) {
        let at = self.0.len();
        self.begin(object);
        match self.0.get_mut(at + 1) {
            Some(_) => self.0[at] = b',',
            None => self.0.truncate(at), // it has none
        }
    }

    /// Adds those of one that was begun elsewhere.
    fn add_begun(&mut self, other: &Self) {
        self.0.push(b',');
        self.0.extend_from_slice(&other.0[1..]);
    }
}

/// A refusal as it is told: what is said of the violation at its top is said of it in the list too, and written once.
struct Told {
    violations: Vec<ToldViolation>,
    /// Which of them the answer is about.
    top: usize,
}

struct ToldViolation {
    code: &'static str,
    message: String,
    limit: Members,
}

/// `None` for what is no refusal by limits.
fn told(error: &ApiError) -> Option<Told> {
    let ApiError::Refused(refusal) = error else {
        return None;
    };
    let top = refusal.top()?;
    let told = |violation: &Violation| {
        let mut limit = Members(Vec::with_capacity(USUAL_BYTES / 3));
        limit.begin(&limit_object(refusal, violation));
        ToldViolation {
            code: Refusal::code_of(violation),
            message: violation.message(&refusal.plan_code),
            limit,
        }
    };
    let violations = &refusal.violations;
    Some(Told {
        top: violations.iter().position(|it| std::ptr::eq(it, top))?,
        violations: violations.iter().map(told).collect(),
    })
}

impl Told {
    fn add_to(&self, body: &mut Members) {
        body.add_begun(&self.violations[self.top].limit);
        body.0.extend_from_slice(br#","violations":["#);
        for (number, violation) in self.violations.iter().enumerate() {
            if number > 0 {
                body.0.push(b',');
            }
            body.begin(&ViolationHead {
                code: violation.code,
                message: &violation.message,
            });
            body.add_begun(&violation.limit);
            body.0.push(b'}');
        }
        body.0.push(b']');
    }
}

fn details(error: &ApiError) -> Details<'_> {
    match error {
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
