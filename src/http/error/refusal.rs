//! A request refused by its limits: what its answer says, and when trying again may help.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderValue, header::RETRY_AFTER};

use super::{Decision, Dialect, RETRY_AFTER_MS, Resets, X_SHOULD_RETRY, headers};
use crate::domain::{
    feature::FeatureKey,
    limit::{LimitType, Scope, Violation},
    quantity::Quantity,
    window::WindowKind,
};
use crate::services::guard::Refusal;

pub(super) const EXCEEDED: &str = "usage_limit_exceeded";
pub(super) const RESERVED: &str = "usage_limit_reserved";
/// Requests in flight end soon; clients that read milliseconds come back spread out over this.
const RESERVED_RETRY_MS: std::ops::RangeInclusive<u32> = 250..=1_000;
/// Past this, OpenAI's clients are told not to wait: they would hold their caller's request open.
const LONGEST_WAIT_SECONDS: i64 = 60;

impl Refusal {
    /// It would fit, were it not for requests in flight.
    #[must_use]
    pub fn is_by_reservations_alone(&self) -> bool {
        self.violations
            .iter()
            .all(Violation::is_by_reservations_alone)
    }

    /// The violation that the answer is about: of those that brought the code about, the one that resets last. One
    /// by reservations alone does not stand for a spent quota: its window's end is not what the client waits for.
    pub(super) fn top(&self) -> Option<&Violation> {
        self.violations
            .iter()
            .find(|it| !it.is_by_reservations_alone())
            .or(self.violations.first())
    }

    /// Whether the same request may fit once a window starts again, or requests in flight have ended.
    #[must_use]
    pub fn may_fit_later(&self) -> bool {
        let is_too_large = self.violations.iter().any(Violation::is_larger_than_limit);
        !is_too_large
            && self
                .top()
                .is_some_and(|top| self.retry_after_seconds(top).is_some())
    }

    pub(super) fn code_of(violation: &Violation) -> &'static str {
        if violation.is_by_reservations_alone() {
            RESERVED
        } else {
            EXCEEDED
        }
    }

    /// `None`: waiting does not help, the window never ends.
    pub(super) fn retry_after_seconds(&self, violation: &Violation) -> Option<i64> {
        if violation.is_by_reservations_alone() {
            return Some(1);
        }
        headers::seconds_to_reset(violation.limit.window, self.now)
    }

    pub(super) fn message(&self) -> String {
        self.top()
            .map_or_else(String::new, |top| self.message_of(top))
    }

    pub(crate) fn message_of(&self, violation: &Violation) -> String {
        let limit = &violation.limit;
        let mut text = format!(
            "Plan '{}' allows {} {}",
            self.plan_code,
            amount(violation.limit_value, &limit.feature, &limit.unit),
            per(limit.kind)
        );
        text.push_str(match limit.scope {
            Scope::Tenant => "",
            Scope::Key => " for each API key",
            Scope::User => " for each end user",
        });
        if violation.limit_type == LimitType::SoftLimit {
            text.push_str(" (a soft limit, which blocks here)");
        }
        if violation.is_larger_than_limit() {
            let _ = write!(
                text,
                "; this request needs {}, more than the whole limit, and can never fit.",
                violation.requested
            );
            return text;
        }
        let _ = write!(
            text,
            "; {} {} used",
            violation.settled,
            are(violation.settled)
        );
        let is_spent = violation.settled >= violation.limit_value;
        if !is_spent && violation.reserved > Quantity::ZERO {
            let reserved = violation.reserved;
            let _ = write!(
                text,
                ", {reserved} {} reserved by requests in flight",
                are(reserved)
            );
        }
        if !is_spent && violation.requested > Quantity::ONE {
            let _ = write!(text, ", this request needs {}", violation.requested);
        }
        text.push('.');
        if violation.is_by_reservations_alone() {
            text.push_str(" Try again in a moment.");
        } else if let Some(end) = limit.window.resets_at() {
            let _ = write!(text, " Resets {end}.");
        } else {
            text.push_str(" It never resets.");
        }
        text
    }

    pub(super) fn add_headers(&self, headers: &mut HeaderMap, dialect: Dialect) {
        let resets = if self.is_by_reservations_alone() {
            let jitter = rand::random_range(RESERVED_RETRY_MS);
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(jitter));
            Resets::LeftOut
        } else {
            Resets::Told
        };
        headers::add_guarded(
            headers,
            dialect,
            &self.states,
            &self.states,
            Decision::HardLimit,
            resets,
            self.now,
        );
        let wait = self.top().and_then(|top| self.retry_after_seconds(top));
        if let Some(seconds) = wait {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if !self.may_fit_later() || wait.is_none_or(|seconds| seconds > LONGEST_WAIT_SECONDS) {
            headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
        }
    }
}

/// `200 messages`, `1 input token`, `5 pages of 'ocr'`.
fn amount(quantity: Quantity, feature: &FeatureKey, unit: &str) -> String {
    let s = if quantity == Quantity::ONE { "" } else { "s" };
    match feature {
        FeatureKey::Messages => format!("{quantity} message{s}"),
        FeatureKey::InputTokens => format!("{quantity} input token{s}"),
        FeatureKey::OutputTokens => format!("{quantity} output token{s}"),
        FeatureKey::Cost => format!("a cost of {quantity} micro-dollar{s}"),
        FeatureKey::Named(name) => format!("{quantity} {unit} of '{name}'"),
    }
}

fn are(quantity: Quantity) -> &'static str {
    if quantity == Quantity::ONE {
        "is"
    } else {
        "are"
    }
}

fn per(kind: WindowKind) -> &'static str {
    match kind {
        WindowKind::Minute => "per minute",
        WindowKind::Hour => "per hour",
        WindowKind::Day => "per day",
        WindowKind::Week => "per week",
        WindowKind::Month => "per month",
        WindowKind::Period => "per period",
        WindowKind::Lifetime => "in all",
    }
}
