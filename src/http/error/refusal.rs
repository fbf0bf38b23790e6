//! A request refused by its limits: what its answer says, and when trying again may help.

use http::{HeaderMap, HeaderValue, header::RETRY_AFTER};

use super::{Decision, Dialect, RETRY_AFTER_MS, Resets, X_SHOULD_RETRY, headers};
use crate::{domain::limit::Violation, services::guard::Refusal};

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
            .map_or_else(String::new, |top| top.message(&self.plan_code))
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
