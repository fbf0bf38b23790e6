//! The headers of every guarded answer (interface.md §3, "Headers on every guarded answer").

use std::collections::BTreeSet;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::Dialect;
use crate::{
    domain::{
        feature::FeatureKey,
        limit::LimitStates,
        quantity::Quantity,
        time::{MICROS_PER_SECOND, Timestamp},
        window::{Window, WindowKind},
    },
    telemetry::events::Decision,
};

pub const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
pub const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub const X_USAGE_DECISION: HeaderName = HeaderName::from_static("x-usage-decision");
pub const X_USAGE_WARNING: HeaderName = HeaderName::from_static("x-usage-warning");
pub const X_USAGE_OUTPUT_CAPPED: HeaderName = HeaderName::from_static("x-usage-output-capped");

/// Whether `RateLimit` says when limits start again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resets {
    Told,
    /// Waiting for a reset is not what helps: requests in flight hold what is left (`usage_limit_reserved`).
    LeftOut,
}

/// Adds what a guarded answer says of its limits: `states` as they stand now, `warned` as they stood when it was decided.
pub fn add_guarded(
    headers: &mut HeaderMap,
    dialect: Dialect,
    states: &LimitStates,
    warned: &LimitStates,
    decision: Decision,
    resets: Resets,
    now: Timestamp,
) {
    headers.insert(
        X_USAGE_DECISION,
        HeaderValue::from_static(decision.as_str()),
    );
    add_rate_limits(headers, states, resets, now);
    if dialect == Dialect::OpenAi {
        add_openai(headers, states, now);
    }
    let warned: BTreeSet<&FeatureKey> = warned
        .iter()
        .filter(|state| state.is_warned())
        .map(|state| &state.limit.feature)
        .collect();
    for feature in warned {
        append(headers, X_USAGE_WARNING, feature.as_str().to_owned());
    }
}

/// Says that the output maximum was lowered to `per_answer`.
pub fn add_output_capped(headers: &mut HeaderMap, per_answer: Quantity) {
    append(headers, X_USAGE_OUTPUT_CAPPED, per_answer.to_string());
}

/// Whole seconds from `now` to the window's end, rounded up, at least 1; `None` if it never ends.
#[must_use]
pub fn seconds_to_reset(window: Window, now: Timestamp) -> Option<i64> {
    let micros = window.resets_at()?.micros().saturating_sub(now.micros());
    Some(micros.saturating_add(MICROS_PER_SECOND - 1) / MICROS_PER_SECOND).map(|it| it.max(1))
}

/// `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11): lists of quoted strings, hard
/// limits only.
fn add_rate_limits(headers: &mut HeaderMap, states: &LimitStates, resets: Resets, now: Timestamp) {
    let room = states.iter().count() * 56; // a name, and two numbers with their letters
    let mut policies = String::with_capacity(room);
    let mut limits = String::with_capacity(room);
    for state in states.iter() {
        let (Some(hard), Some(remaining)) = (state.limit.hard, state.remaining()) else {
            continue;
        };
        let separator = if policies.is_empty() { "\"" } else { ", \"" };
        // Names are feature keys, scopes and windows: nothing in them needs an escape (RFC 9651 §3.3.3).
        policies.push_str(separator);
        state.limit.push_policy_name(&mut policies);
        push(&mut policies, "\";q=", in_field(hard));
        if let Some(length) = state.limit.window.length_seconds() {
            push(&mut policies, ";w=", length);
        }
        limits.push_str(separator);
        state.limit.push_policy_name(&mut limits);
        push(&mut limits, "\";r=", in_field(remaining));
        let reset = seconds_to_reset(state.limit.window, now);
        if let Some(seconds) = reset.filter(|_| resets == Resets::Told) {
            push(&mut limits, ";t=", seconds);
        }
    }
    if !policies.is_empty() {
        append(headers, RATELIMIT_POLICY, policies);
        append(headers, RATELIMIT, limits);
    }
}

/// An integer of a structured field has 15 digits at most (RFC 9651 §3.3.1); a parser drops the whole field for a longer.
fn in_field(quantity: Quantity) -> i64 {
    quantity.get().min(999_999_999_999_999)
}

/// Every guarded answer has a dozen of them, and a formatter takes several times as long.
fn push(to: &mut String, parameter: &str, number: i64) {
    to.push_str(parameter);
    to.push_str(itoa::Buffer::new().format(number));
}

/// OpenAI's own headers, where a minute window exists: of several limits the one with the least left.
fn add_openai(headers: &mut HeaderMap, states: &LimitStates, now: Timestamp) {
    type Counts = fn(&FeatureKey) -> bool;
    const KINDS: [(Counts, [HeaderName; 3]); 2] = [
        (
            |feature| matches!(feature, FeatureKey::Messages),
            [
                HeaderName::from_static("x-ratelimit-limit-requests"),
                HeaderName::from_static("x-ratelimit-remaining-requests"),
                HeaderName::from_static("x-ratelimit-reset-requests"),
            ],
        ),
        (
            |feature| matches!(feature, FeatureKey::InputTokens | FeatureKey::OutputTokens),
            [
                HeaderName::from_static("x-ratelimit-limit-tokens"),
                HeaderName::from_static("x-ratelimit-remaining-tokens"),
                HeaderName::from_static("x-ratelimit-reset-tokens"),
            ],
        ),
    ];
    if !states
        .iter()
        .any(|state| state.limit.kind == WindowKind::Minute)
    {
        return; // nearly always
    }
    for (counts, [limit_name, remaining_name, reset_name]) in KINDS {
        let tightest = states
            .iter()
            .filter(|state| state.limit.kind == WindowKind::Minute && counts(&state.limit.feature))
            .filter_map(|state| Some((state.remaining()?, state.limit.hard?, state.limit.window)))
            .min_by_key(|(remaining, _, _)| *remaining);
        if let Some((remaining, hard, window)) = tightest {
            append(headers, limit_name, hard.to_string());
            append(headers, remaining_name, remaining.to_string());
            let seconds = seconds_to_reset(window, now).unwrap_or(0);
            append(headers, reset_name, format!("{seconds}s"));
        }
    }
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: String) {
    match HeaderValue::try_from(value) {
        Ok(value) => {
            headers.append(name, value);
        }
        Err(error) => tracing::error!(%name, %error, "a header could not be written"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::limit::{ActiveLimit, LimitState, Scope};

    fn state(feature: FeatureKey, scope: Scope, kind: WindowKind, used: i64) -> LimitState {
        let end = match kind {
            WindowKind::Lifetime => Timestamp::NEVER,
            WindowKind::Minute => Timestamp::from_seconds(60),
            _ => Timestamp::from_seconds(2_592_000),
        };
        LimitState {
            limit: ActiveLimit {
                unit: feature.default_unit().into(),
                feature,
                scope,
                kind,
                window: Window::new(Timestamp::EPOCH, end).unwrap(),
                soft: Some(Quantity::new(150)),
                hard: Some(Quantity::new(200)),
                granted: Quantity::ZERO,
                is_own: false,
            },
            settled: Quantity::new(used),
            reserved: Quantity::new(1),
        }
    }

    fn written(dialect: Dialect, states: &[LimitState], resets: Resets) -> Vec<String> {
        let states = &states.iter().cloned().collect();
        let mut headers = HeaderMap::new();
        let now = Timestamp::from_micros(30_500_000);
        add_guarded(
            &mut headers,
            dialect,
            states,
            states,
            Decision::of(states, &[]),
            resets,
            now,
        );
        let mut lines: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn limits_are_told_as_lists_of_quoted_strings() {
        let states = [
            state(FeatureKey::Messages, Scope::Tenant, WindowKind::Period, 49),
            state(
                FeatureKey::OutputTokens,
                Scope::User,
                WindowKind::Minute,
                199,
            ),
            state(
                FeatureKey::InputTokens,
                Scope::Tenant,
                WindowKind::Lifetime,
                5,
            ),
        ];
        assert_eq!(
            written(Dialect::Native, &states, Resets::Told),
            [
                r#"ratelimit-policy: "messages";q=200;w=2592000, "output_tokens.user.minute";q=200;w=60, "input_tokens.lifetime";q=200"#,
                r#"ratelimit: "messages";r=150;t=2591970, "output_tokens.user.minute";r=0;t=30, "input_tokens.lifetime";r=194"#,
                "x-usage-decision: soft_limit",
                "x-usage-warning: output_tokens",
            ]
        );
    }

    #[test]
    fn a_limit_past_15_digits_is_told_as_the_largest_number_that_there_is() {
        let mut large = state(FeatureKey::Messages, Scope::Tenant, WindowKind::Period, 49);
        large.limit.hard = Some(Quantity::MAX);
        let lines = written(Dialect::Native, &[large], Resets::LeftOut);
        for expected in [
            r#"ratelimit-policy: "messages";q=999999999999999;w=2592000"#,
            r#"ratelimit: "messages";r=999999999999999"#,
        ] {
            assert!(lines.contains(&expected.to_owned()), "{lines:?}");
        }
    }

    #[test]
    fn no_reset_is_told_where_requests_in_flight_hold_what_is_left() {
        let states = [state(
            FeatureKey::Messages,
            Scope::Tenant,
            WindowKind::Period,
            49,
        )];
        let lines = written(Dialect::Native, &states, Resets::LeftOut);
        assert!(
            lines.contains(&r#"ratelimit: "messages";r=150"#.to_owned()),
            "{lines:?}"
        );
    }

    #[test]
    fn openai_clients_get_their_headers_of_the_tightest_minute_window() {
        let states = [
            state(FeatureKey::Messages, Scope::Tenant, WindowKind::Minute, 20),
            state(FeatureKey::Messages, Scope::User, WindowKind::Minute, 90),
            state(
                FeatureKey::InputTokens,
                Scope::Tenant,
                WindowKind::Period,
                0,
            ),
        ];
        let lines = written(Dialect::OpenAi, &states, Resets::Told);
        let openai: Vec<&String> = lines
            .iter()
            .filter(|line| line.starts_with("x-ratelimit"))
            .collect();
        assert_eq!(
            openai,
            [
                "x-ratelimit-limit-requests: 200",
                "x-ratelimit-remaining-requests: 109",
                "x-ratelimit-reset-requests: 30s",
            ]
        );
    }

    #[test]
    fn an_unlimited_tenant_is_told_its_decision_only() {
        let mut unlimited = state(FeatureKey::Messages, Scope::Tenant, WindowKind::Minute, 9);
        (unlimited.limit.soft, unlimited.limit.hard) = (None, None);
        assert_eq!(
            written(Dialect::OpenAi, &[unlimited], Resets::Told),
            ["x-usage-decision: allow"]
        );
    }

    #[test]
    fn a_feature_over_two_soft_limits_warns_once() {
        let states = [
            state(FeatureKey::Messages, Scope::Tenant, WindowKind::Minute, 150),
            state(FeatureKey::Messages, Scope::User, WindowKind::Period, 160),
            state(FeatureKey::Cost, Scope::Tenant, WindowKind::Period, 151),
        ];
        let warnings: Vec<String> = written(Dialect::Native, &states, Resets::Told)
            .into_iter()
            .filter(|line| line.starts_with("x-usage-warning"))
            .collect();
        assert_eq!(
            warnings,
            ["x-usage-warning: cost", "x-usage-warning: messages"]
        );
    }
}
