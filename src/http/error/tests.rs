//! Every row of the table, in both dialects.

use axum::body::{Bytes, to_bytes};
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::domain::{
    feature::FeatureKey,
    limit::{ActiveLimit, LimitState, Scope, SoftLimitMode, Violation, sort_violations},
    quantity::Quantity,
    time::Timestamp,
    window::{Window, WindowKind},
};
use crate::provider::ProviderError;

const NOW: &str = "2026-11-24T20:30:00Z";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn window(kind: WindowKind) -> Window {
    let (start, end) = match kind {
        WindowKind::Minute => (at(NOW), at("2026-11-24T20:31:00Z")),
        WindowKind::Lifetime => (at("2025-05-05T00:00:00Z"), Timestamp::NEVER),
        _ => (at("2026-11-01T00:00:00Z"), at("2026-12-01T00:00:00Z")),
    };
    Window::new(start, end).unwrap()
}

#[derive(Clone)]
struct Case {
    feature: FeatureKey,
    scope: Scope,
    kind: WindowKind,
    hard: i64,
    settled: i64,
    reserved: i64,
    requested: i64,
}

impl Case {
    fn messages(hard: i64, settled: i64, reserved: i64, requested: i64) -> Self {
        Self {
            feature: FeatureKey::Messages,
            scope: Scope::Tenant,
            kind: WindowKind::Period,
            hard,
            settled,
            reserved,
            requested,
        }
    }

    fn of(self, feature: FeatureKey) -> Self {
        Self { feature, ..self }
    }

    fn within(self, kind: WindowKind) -> Self {
        Self { kind, ..self }
    }

    fn state(&self) -> LimitState {
        LimitState {
            limit: ActiveLimit {
                unit: self.feature.default_unit().into(),
                feature: self.feature.clone(),
                scope: self.scope,
                kind: self.kind,
                window: window(self.kind),
                soft: Some(Quantity::new(self.hard * 3 / 4)),
                hard: Some(Quantity::new(self.hard)),
                granted: Quantity::ZERO,
                is_own: false,
            },
            settled: Quantity::new(self.settled),
            reserved: Quantity::new(self.reserved),
        }
    }
}

fn refusal_in(mode: SoftLimitMode, cases: &[Case]) -> Refusal {
    let mut violations: Vec<Violation> = cases
        .iter()
        .filter_map(|case| case.state().admit(Quantity::new(case.requested), mode))
        .collect();
    sort_violations(&mut violations);
    Refusal {
        tenant_id: TenantId::new(Uuid::from_u128(7)),
        plan_code: "starter".to_owned(),
        violations,
        states: cases.iter().map(Case::state).collect(),
        now: at(NOW),
    }
}

fn refused(cases: &[Case]) -> ApiError {
    ApiError::Refused(Arc::new(refusal_in(SoftLimitMode::Warn, cases)))
}

async fn rendered(error: ApiError, dialect: Dialect) -> (http::response::Parts, Value) {
    let request_id = RequestId("req-1".into());
    let context = RenderContext {
        dialect,
        request_id: &request_id,
    };
    let (parts, body) = render(error.into_response(), context).into_parts();
    let bytes = to_bytes(body, 1 << 20).await.unwrap();
    let body = serde_json::from_slice(&bytes).unwrap();
    (parts, body)
}

/// Status, headers and body, as one value to look at.
async fn shown_in(error: ApiError, dialect: Dialect) -> Value {
    let (parts, body) = rendered(error, dialect).await;
    let headers: serde_json::Map<String, Value> = parts
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().into()))
        .collect();
    json!({ "status": parts.status.as_u16(), "headers": headers, "body": body })
}

fn every_error() -> Vec<(&'static str, ApiError)> {
    let text = str::to_owned;
    vec![
        (
            "unreadable",
            ApiError::Unreadable(text(
                "The body is not JSON: expected value at line 1 column 1.",
            )),
        ),
        (
            "bad_field",
            ApiError::bad_field(
                "max_output_tokens",
                "0",
                "a whole number from 1 on, or null",
            ),
        ),
        (
            "unsupported_parameter",
            ApiError::UnsupportedParameter {
                param: text("background"),
                reason: text("it answers without usage"),
            },
        ),
        (
            "open_input_not_allowed",
            ApiError::OpenInputNotAllowed {
                what: text("a file by its id"),
            },
        ),
        (
            "model_not_priced",
            ApiError::ModelNotPriced {
                model: text("llama-9"),
            },
        ),
        (
            "method_not_allowed",
            ApiError::MethodNotAllowed {
                method: Method::DELETE,
                path: text("/api/v1/chat"),
            },
        ),
        (
            "request_timeout",
            ApiError::RequestTimeout { after_seconds: 30 },
        ),
        (
            "body_too_large",
            ApiError::BodyTooLarge {
                max_bytes: 33_554_432,
            },
        ),
        (
            "unsupported_media_type",
            ApiError::UnsupportedMediaType(text("Content-Encoding 'gzip' is not taken.")),
        ),
        ("invalid_api_key", ApiError::InvalidApiKey),
        ("cross_site", ApiError::CrossSite),
        (
            "forbidden",
            ApiError::Forbidden {
                needed: Role::Operator,
                has: Role::Viewer,
            },
        ),
        (
            "model_not_allowed",
            ApiError::ModelNotAllowed {
                plan_code: text("free"),
                model: text("gpt-5.1-pro"),
                allowed: vec![text("gpt-5.1-mini*")],
            },
        ),
        (
            "no_subscription",
            ApiError::NoPlan {
                tenant_id: TenantId::new(Uuid::from_u128(7)),
                plan_code: None,
            },
        ),
        (
            "plan_not_defined",
            ApiError::NoPlan {
                tenant_id: TenantId::new(Uuid::from_u128(7)),
                plan_code: Some(text("gone")),
            },
        ),
        (
            "subscription_inactive",
            ApiError::SubscriptionInactive {
                plan_code: text("pro"),
                status: "canceled",
            },
        ),
        ("not_found", unrouted(Method::GET, "/api/v2/chat")),
        (
            "conversation_not_found",
            ApiError::ConversationNotFound(text("conv_1")),
        ),
        (
            "endpoint_not_metered",
            unrouted(Method::POST, "/v1/audio/speech"),
        ),
        ("idempotency_key_in_use", ApiError::IdempotencyKeyInUse),
        (
            "idempotency_answer_too_large",
            ApiError::IdempotencyAnswerTooLarge,
        ),
        ("idempotency_key_reused", ApiError::IdempotencyKeyReused),
        (
            "reservation_settled",
            ApiError::ReservationSettled {
                reservation_id: text("res_1"),
            },
        ),
        (
            "already_exists",
            ApiError::AlreadyExists {
                what: text("plan"),
                name: text("pro"),
            },
        ),
        (
            "plan_in_use",
            ApiError::PlanInUse {
                plan_code: text("pro"),
                subscriptions: 3,
            },
        ),
        (
            "version_conflict",
            ApiError::VersionConflict {
                message: text("plan 'pro' is at version 4 now"),
                current: json!({"version": 4}),
            },
        ),
        ("limit_exceeded", refused(&[Case::messages(200, 200, 0, 1)])),
        (
            "limit_reserved",
            refused(&[Case::messages(200, 190, 10, 1)]),
        ),
        (
            "upstream_error",
            ApiError::Upstream {
                message: text("The upstream could not be reached."),
                detail: text("no connection to models.internal: refused"),
            },
        ),
        ("upstream_timeout", ApiError::UpstreamTimeout),
        (
            "usage_store_unavailable",
            ApiError::StoreUnavailable {
                detail: text("disk full at /data"),
            },
        ),
        (
            "overloaded",
            ApiError::Overloaded {
                max_in_flight: 10_000,
            },
        ),
        (
            "provider_not_configured",
            ApiError::ProviderNotConfigured(text("Set OPENAI_API_KEY.")),
        ),
        ("internal", ApiError::Internal),
    ]
}

#[tokio::test]
async fn every_failure_has_its_row_in_both_dialects() {
    for dialect in [Dialect::Native, Dialect::OpenAi] {
        for (name, error) in every_error() {
            let snapshot = format!("{dialect:?}__{name}").to_lowercase();
            let shown = shown_in(error, dialect).await;
            insta::with_settings!({ snapshot_path => "../snapshots", prepend_module_to_snapshot => false }, {
                insta::assert_json_snapshot!(
                    format!("error__{snapshot}"),
                    shown,
                    { ".headers[\"retry-after-ms\"]" => "[jitter]" }
                );
            });
        }
    }
}

#[tokio::test]
async fn the_refusal_of_the_contracts_example_is_worded_as_there() {
    let (_, body) = rendered(refused(&[Case::messages(200, 200, 0, 1)]), Dialect::Native).await;
    assert_eq!(
        body["error"]["message"],
        "Plan 'starter' allows 200 messages per period; 200 are used. Resets 2026-12-01T00:00:00Z."
    );
    assert_eq!(body["error"]["retry_after_seconds"], 531_000);
}

#[tokio::test]
async fn of_several_violations_the_one_that_resets_last_is_on_top() {
    let period = Case::messages(200, 200, 0, 1);
    let error = refused(&[
        period.clone().within(WindowKind::Minute),
        period.clone().of(FeatureKey::InputTokens),
        period,
    ]);
    let (parts, body) = rendered(error, Dialect::OpenAi).await;
    let windows: Vec<(&str, &str)> = body["error"]["violations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| {
            (
                it["feature_key"].as_str().unwrap(),
                it["window"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        windows,
        [
            ("messages", "period"),
            ("input_tokens", "period"),
            ("messages", "minute")
        ]
    );
    assert_eq!(body["error"]["feature_key"], "messages");
    assert_eq!(body["error"]["type"], "insufficient_quota");
    assert_eq!(parts.headers[RETRY_AFTER], "531000");
    assert_eq!(parts.headers[X_SHOULD_RETRY], "false");
}

#[test]
fn what_the_upstream_will_refuse_again_is_not_said_to_be_worth_a_retry() {
    let refused = |status| {
        ApiError::from(ProviderError::Refused {
            status: StatusCode::from_u16(status).unwrap(),
            headers: Box::default(),
            body: Bytes::new(),
        })
    };
    for (status, may_pass) in [
        (400, false),
        (401, false),
        (403, false),
        (404, false),
        (408, true),
        (413, false),
        (422, false),
        (429, true),
        (500, true),
        (503, true),
    ] {
        let error = refused(status);
        assert_eq!(error.is_retryable(), may_pass, "{status}");
        assert_eq!(error.code(), "upstream_error", "{status}");
    }
}

#[tokio::test]
async fn a_minute_limit_is_a_rate_limit_that_clients_wait_for() {
    let error = refused(&[Case::messages(5, 5, 0, 1).within(WindowKind::Minute)]);
    let (parts, body) = rendered(error, Dialect::OpenAi).await;
    assert_eq!(body["error"]["type"], "rate_limit_error");
    assert_eq!(parts.headers[RETRY_AFTER], "60");
    assert!(
        !parts.headers.contains_key(X_SHOULD_RETRY),
        "60 seconds are not over 60"
    );
    assert_eq!(parts.headers["x-ratelimit-remaining-requests"], "0");
}

#[tokio::test]
async fn a_lifetime_limit_tells_no_time_to_wait() {
    let error = refused(&[Case::messages(5, 5, 0, 1).within(WindowKind::Lifetime)]);
    assert!(!error.is_retryable());
    let (parts, body) = rendered(error, Dialect::Native).await;
    for field in ["window_end", "retry_after_seconds"] {
        assert!(body["error"].get(field).unwrap().is_null(), "{field}");
    }
    assert!(!parts.headers.contains_key(RETRY_AFTER));
    assert_eq!(parts.headers[X_SHOULD_RETRY], "false");
    assert_eq!(
        body["error"]["message"],
        "Plan 'starter' allows 5 messages in all; 5 are used. It never resets."
    );
}

#[tokio::test]
async fn a_request_larger_than_the_whole_limit_is_told_so() {
    let case = Case::messages(100, 0, 0, 101).of(FeatureKey::InputTokens);
    let (parts, body) =
        rendered(refused(&[case.within(WindowKind::Minute)]), Dialect::Native).await;
    assert_eq!(body["error"]["code"], "usage_limit_exceeded");
    assert_eq!(
        body["error"]["message"],
        "Plan 'starter' allows 100 input tokens per minute; this request needs 101, more than the whole limit, \
         and can never fit."
    );
    assert_eq!(parts.headers[X_SHOULD_RETRY], "false");
}

#[tokio::test]
async fn requests_in_flight_are_told_from_a_spent_quota() {
    let (parts, body) =
        rendered(refused(&[Case::messages(200, 190, 10, 1)]), Dialect::OpenAi).await;
    assert_eq!(body["error"]["code"], "usage_limit_reserved");
    assert_eq!(body["error"]["type"], "rate_limit_error");
    assert_eq!(parts.headers[RETRY_AFTER], "1");
    let jitter: u32 = parts.headers[RETRY_AFTER_MS]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((250..=1_000).contains(&jitter), "{jitter}");
    assert!(!parts.headers.contains_key(X_SHOULD_RETRY));
    assert_eq!(parts.headers[headers::RATELIMIT], r#""messages";r=0"#);
    assert_eq!(parts.headers[headers::X_USAGE_DECISION], "hard_limit");
}

#[tokio::test]
async fn a_spent_limit_is_told_even_if_another_is_only_reserved() {
    let reserved_for_ever = Case::messages(200, 190, 10, 1).within(WindowKind::Lifetime);
    let spent = Case::messages(5, 5, 0, 1).within(WindowKind::Minute);
    let (parts, body) = rendered(refused(&[reserved_for_ever, spent]), Dialect::Native).await;
    assert_eq!(body["error"]["code"], "usage_limit_exceeded");
    assert_eq!(body["error"]["window"], "minute");
    assert_eq!(parts.headers[RETRY_AFTER], "60");
    assert_eq!(
        body["error"]["violations"][0]["code"],
        "usage_limit_reserved"
    );
}

#[tokio::test]
async fn a_soft_limit_that_blocks_says_so() {
    let refusal = refusal_in(SoftLimitMode::Block, &[Case::messages(200, 150, 0, 1)]);
    let (_, body) = rendered(ApiError::Refused(Arc::new(refusal)), Dialect::Native).await;
    assert_eq!(body["error"]["limit_type"], "soft_limit");
    assert_eq!(body["error"]["limit_value"], 150);
}

#[tokio::test]
async fn an_answer_that_is_no_error_is_left_as_it_is() {
    let request_id = RequestId("req-1".into());
    let context = RenderContext {
        dialect: Dialect::OpenAi,
        request_id: &request_id,
    };
    let upstreams_own = (StatusCode::NOT_FOUND, "the model does not exist").into_response();
    let (parts, body) = render(upstreams_own, context).into_parts();
    assert_eq!(parts.status, StatusCode::NOT_FOUND);
    assert_eq!(
        to_bytes(body, 100).await.unwrap(),
        "the model does not exist"
    );
}

#[test]
fn what_is_not_shown_to_clients_is_not_in_the_message() {
    let error = ApiError::StoreUnavailable {
        detail: "disk full at /data".to_owned(),
    };
    assert!(!error.message().contains("disk"));
}
