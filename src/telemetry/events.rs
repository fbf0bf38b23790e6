//! What is logged and counted together: one type an event, one `emit` that does both, so that neither half can be
//! forgotten.

use std::path::Path;

use serde::Serialize;

use super::{lines::OF_ONE_OF_MANY, metrics::Metrics};
use crate::{
    domain::{
        ids::TenantId,
        limit::{ActiveLimit, LimitState, LimitStates, LimitType, Violation},
        quantity::Quantity,
        time::Timestamp,
        usage::Quantities,
    },
    ledger::LedgerError,
    services::recorder::Drift,
    store::{
        self,
        outbox::{Ending, Kind, Leased},
    },
};

/// What was decided on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    Allow,
    /// Allowed, with a warning.
    SoftLimit,
    /// Refused; in observe mode: would have been.
    HardLimit,
}

impl Decision {
    pub const ALL: [Self; 3] = [Self::Allow, Self::SoftLimit, Self::HardLimit];

    #[must_use]
    pub fn of(states: &LimitStates, violations: &[Violation]) -> Self {
        if !violations.is_empty() {
            Self::HardLimit
        } else if states.is_warned() {
            Self::SoftLimit
        } else {
            Self::Allow
        }
    }

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::SoftLimit => "soft_limit",
            Self::HardLimit => "hard_limit",
        }
    }
}

/// Why no decision could be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailReason {
    Store,
    Ledger,
    Timeout,
}

impl FailReason {
    pub const ALL: [Self; 3] = [Self::Store, Self::Ledger, Self::Timeout];

    /// Why a ledger could not decide.
    #[must_use]
    pub const fn of(error: &LedgerError) -> Self {
        match error {
            LedgerError::TimedOut => Self::Timeout,
            LedgerError::Unavailable(_) => Self::Ledger,
        }
    }

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Ledger => "ledger",
            Self::Timeout => "timeout",
        }
    }
}

/// What let use pass a hard limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OvershootCause {
    /// The provider counted more than it was asked for.
    Provider,
    /// The prompt named content that nobody here can see.
    OpenInput,
    /// It was reported when it had happened already.
    AfterTheFact,
    /// A node that had been away brought its events.
    LateNode,
}

impl OvershootCause {
    pub const ALL: [Self; 4] = [
        Self::Provider,
        Self::OpenInput,
        Self::AfterTheFact,
        Self::LateNode,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provider => "provider",
            Self::OpenInput => "open_input",
            Self::AfterTheFact => "after_the_fact",
            Self::LateNode => "late_node",
        }
    }
}

/// A request was let through, warned or refused.
pub struct Decided<'a> {
    pub decision: Decision,
    pub tenant_id: TenantId,
    pub plan_code: &'a str,
    pub request_id: &'a str,
    pub states: &'a LimitStates,
    /// What it did not fit under; of a request let through: in observe mode only.
    pub violations: &'a [Violation],
}

impl Decided<'_> {
    pub fn emit(&self, metrics: &Metrics) {
        metrics.count_decision(self.decision, self.plan_code);
        for violation in self.violations {
            if violation.is_by_reservations_alone() {
                self.log_reserved(violation);
            } else {
                metrics.count_hit(
                    self.plan_code,
                    violation.limit_type,
                    &violation.limit.feature,
                );
                self.log_exceeded(violation);
            }
        }
        if self.decision == Decision::SoftLimit {
            for state in self.states.iter().filter(|state| state.is_warned()) {
                metrics.count_hit(self.plan_code, LimitType::SoftLimit, &state.limit.feature);
                self.log_soft(&state);
            }
        }
    }

    fn log_exceeded(&self, violation: &Violation) {
        let limit = &violation.limit;
        tracing::error!(
            name: OF_ONE_OF_MANY,
            code = "usage_limit_exceeded",
            tenant_id = %self.tenant_id,
            plan_code = self.plan_code,
            feature_key = limit.feature.as_str(),
            scope = limit.scope.as_str(),
            window = limit.kind.as_str(),
            limit_type = violation.limit_type.as_str(),
            limit_value = violation.limit_value.get(),
            usage = violation.settled.get(),
            reserved = violation.reserved.get(),
            requested = violation.requested.get(),
            unit = &*limit.unit,
            window_start = %limit.window.start(),
            window_end = limit.window.resets_at().map(tracing::field::display),
            request_id = self.request_id,
            "a limit is spent"
        );
    }

    /// Nobody has used up anything: the next try may fit.
    fn log_reserved(&self, violation: &Violation) {
        let limit = &violation.limit;
        tracing::warn!(
            name: OF_ONE_OF_MANY,
            code = "usage_limit_reserved",
            tenant_id = %self.tenant_id,
            plan_code = self.plan_code,
            feature_key = limit.feature.as_str(),
            scope = limit.scope.as_str(),
            window = limit.kind.as_str(),
            limit_type = violation.limit_type.as_str(),
            limit_value = violation.limit_value.get(),
            usage = violation.settled.get(),
            reserved = violation.reserved.get(),
            requested = violation.requested.get(),
            unit = &*limit.unit,
            window_start = %limit.window.start(),
            window_end = limit.window.resets_at().map(tracing::field::display),
            request_id = self.request_id,
            "what is left of a limit is reserved by requests in flight"
        );
    }

    fn log_soft(&self, state: &LimitState<&ActiveLimit>) {
        let limit = &state.limit;
        tracing::warn!(
            name: OF_ONE_OF_MANY,
            code = "usage_soft_limit_exceeded",
            tenant_id = %self.tenant_id,
            plan_code = self.plan_code,
            feature_key = limit.feature.as_str(),
            scope = limit.scope.as_str(),
            window = limit.kind.as_str(),
            limit_type = LimitType::SoftLimit.as_str(),
            limit_value = limit.soft.map(Quantity::get),
            usage = state.settled.get(),
            unit = &*limit.unit,
            window_start = %limit.window.start(),
            window_end = limit.window.resets_at().map(tracing::field::display),
            request_id = self.request_id,
            "a soft limit is passed"
        );
    }
}

/// Observe mode let a request through that its subscription, or its plan's models, would have refused.
pub struct WouldRefuse<'a> {
    pub plan_code: &'a str,
    pub why: &'a str,
}

impl WouldRefuse<'_> {
    /// Counts nothing: the decision on the request's limits still follows, and each request counts once.
    pub fn emit(&self, _metrics: &Metrics) {
        tracing::warn!(
            code = "usage_would_refuse",
            plan_code = self.plan_code,
            why = self.why,
            "observe mode: this request would have been refused"
        );
    }
}

/// Usage was written down.
pub struct Recorded<'a> {
    pub plan_code: &'a str,
    pub quantities: &'a Quantities,
    /// Counted with the tokenizer.
    pub estimated: bool,
}

impl Recorded<'_> {
    pub fn emit(&self, metrics: &Metrics) {
        for (feature, quantity) in self.quantities.iter() {
            metrics.add_recorded(feature, self.plan_code, quantity);
        }
        if self.estimated {
            metrics.estimated.inc();
            tracing::debug!(
                plan_code = self.plan_code,
                "the provider reported no usage; counted with the tokenizer"
            );
        }
    }
}

/// A request was let through without a decision.
pub struct FailOpen<'a> {
    pub reason: FailReason,
    pub request_id: &'a str,
    pub detail: &'a str,
}

impl FailOpen<'_> {
    pub fn emit(&self, metrics: &Metrics) {
        metrics.count_fail_open(self.reason);
        tracing::error!(
            code = "usage_guardrail_fail_open",
            reason = self.reason.as_str(),
            request_id = self.request_id,
            detail = self.detail,
            "no decision could be made; let through as the fail mode says"
        );
    }
}

/// Use passed a hard limit, since it was more than had been reserved.
pub struct Overshoot<'a> {
    /// How far beyond, per feature; nothing happened where it is empty.
    pub overshoot: &'a Quantities,
    pub cause: OvershootCause,
}

impl Overshoot<'_> {
    pub fn emit(&self, metrics: &Metrics) {
        for (feature, quantity) in self.overshoot.iter() {
            if quantity <= Quantity::ZERO {
                continue;
            }
            metrics.add_overshoot(feature, self.cause, quantity);
            tracing::warn!(
                code = "usage_overshoot",
                feature_key = feature.as_str(),
                cause = self.cause.as_str(),
                quantity = quantity.get(),
                "use passed a hard limit"
            );
        }
    }
}

/// A model without a price was used: its cost is 0.
pub struct Unpriced<'a> {
    pub model: &'a str,
    pub request_id: &'a str,
}

impl Unpriced<'_> {
    pub fn emit(&self, metrics: &Metrics) {
        metrics.count_unpriced(self.model);
        tracing::warn!(
            code = "unpriced_model",
            model = self.model,
            request_id = self.request_id,
            "no price is known for this model; its cost counts as 0"
        );
    }
}

/// A plan or key was taken from the cache although it is old: the store could not be asked.
pub struct StaleCatalogue;

impl StaleCatalogue {
    pub fn emit(&self, metrics: &Metrics) {
        metrics.catalogue_stale.inc();
        tracing::warn!(
            code = "catalogue_stale",
            "the store is away; decided on a plan or key that may be out of date"
        );
    }
}

/// A batch went from the journal to the store.
pub struct Drained {
    pub recorded: store::usage::Recorded,
}

impl Drained {
    pub fn emit(&self, _metrics: &Metrics) {
        tracing::debug!(
            inserted = self.recorded.inserted,
            duplicates = self.recorded.duplicates,
            "usage moved from the journal to the store"
        );
    }
}

/// A batch could not be written to the store; it stays in the journal.
pub struct DrainFailed<'a> {
    pub detail: &'a str,
    /// Events that wait.
    pub pending: u64,
}

impl DrainFailed<'_> {
    pub fn emit(&self, metrics: &Metrics) {
        metrics.drain_failures.inc();
        tracing::error!(
            code = "drain_failed",
            detail = self.detail,
            pending = self.pending,
            "usage could not be written to the store; it waits in the journal and is tried again"
        );
    }
}

/// The store takes usage again.
pub struct StoreBack {
    /// Events that waited.
    pub pending: u64,
}

impl StoreBack {
    pub fn emit(&self, _metrics: &Metrics) {
        tracing::info!(
            code = "store_back",
            pending = self.pending,
            "the store is back; usage that waited is being written"
        );
    }
}

/// Usage can't be written down any more: requests are answered 503.
pub struct JournalFailing<'a> {
    pub detail: &'a str,
}

impl JournalFailing<'_> {
    pub fn emit(&self, _metrics: &Metrics) {
        tracing::error!(
            code = "journal_failing",
            detail = self.detail,
            "usage can't be written down; requests are refused until it can"
        );
    }
}

/// Usage can be written down again.
pub struct JournalBack;

impl JournalBack {
    pub fn emit(&self, _metrics: &Metrics) {
        tracing::info!(code = "journal_back", "usage can be written down again");
    }
}

/// The journal's file was damaged, and is kept under another name.
pub struct JournalDamaged<'a> {
    pub moved_to: &'a Path,
}

impl JournalDamaged<'_> {
    pub fn emit(&self, metrics: &Metrics) {
        metrics.journal_damaged.inc();
        tracing::error!(
            code = "journal_damaged",
            moved_to = %self.moved_to.display(),
            "the journal is damaged and was moved aside; totals are rebuilt from the store"
        );
    }
}

/// A live total differs from the sum of the same events in the store.
pub struct LedgerDrift<'a> {
    pub drift: &'a Drift,
}

impl LedgerDrift<'_> {
    /// The gauge holds the sum over all tenants, which `set_drift` is told.
    pub fn emit(&self, _metrics: &Metrics) {
        let counter = &self.drift.counter;
        tracing::error!(
            code = "ledger_drift",
            tenant_id = %counter.tenant,
            feature_key = counter.feature.as_str(),
            window_start = %counter.window.start(),
            live = self.drift.live.get(),
            stored = self.drift.stored.get(),
            "a live total differs from the store's; see the runbook"
        );
    }
}

/// An attempt to send an entry of the outbox ended.
pub struct OutboxTried<'a> {
    pub kind: Kind,
    pub entry: &'a Leased,
    pub ending: &'a Ending,
}

impl OutboxTried<'_> {
    pub fn emit(&self, metrics: &Metrics) {
        let Leased {
            identifier,
            topic,
            attempts,
            ..
        } = self.entry;
        let kind = self.kind.as_str();
        let result = match self.ending {
            Ending::Sent | Ending::Forgotten => {
                tracing::debug!(kind, identifier, attempts, "sent");
                "ok"
            }
            Ending::Retry { at, error } => {
                // What is tried again is told once; its last failure is in the outbox.
                if *attempts == 1 && self.kind != Kind::NoticeCheck {
                    tracing::warn!(
                        code = "outbox_retry",
                        kind,
                        identifier,
                        error,
                        next_attempt_at = %at,
                        "could not be sent; it is tried again"
                    );
                } else {
                    tracing::debug!(kind, identifier, attempts, error, next_attempt_at = %at, "not sent yet");
                }
                "error"
            }
            Ending::Uncertain { error } | Ending::Dead { error } => {
                metrics.count_outbox_dead(self.kind);
                tracing::error!(
                    code = "outbox_dead",
                    kind,
                    identifier,
                    attempts,
                    error,
                    "could not be sent and is given up; send it again with `tollgate alert replay`"
                );
                "rejected"
            }
        };
        if self.kind == Kind::Notice {
            let topic = topic.as_deref().unwrap_or_default();
            let notice = topic.rsplit('.').next().unwrap_or_default();
            metrics.count_alert(notice, result);
        }
    }
}

/// Usage reached the outbox, or waited in it, for longer than Stripe takes it: it can't be billed there any more.
pub struct StripeUsageTooLate<'a> {
    pub identifier: &'a str,
    pub used_at: Timestamp,
}

impl StripeUsageTooLate<'_> {
    /// Its entry is counted among the dead ones.
    pub fn emit(&self, _metrics: &Metrics) {
        tracing::error!(
            code = "stripe_usage_too_late",
            identifier = self.identifier,
            used_at = %self.used_at,
            "usage is older than the 35 days that Stripe accepts; bill it by hand"
        );
    }
}

/// A limit of a plan is such that no request can touch it.
pub struct LimitUntouchable<'a> {
    pub plan_code: &'a str,
    pub feature_key: &'a str,
    pub why: &'a str,
}

impl LimitUntouchable<'_> {
    /// Counts nothing: it is a matter of the settings, not of requests.
    pub fn emit(&self, _metrics: &Metrics) {
        tracing::warn!(
            code = "limit_untouchable",
            plan_code = self.plan_code,
            feature_key = self.feature_key,
            why = self.why,
            "no request can touch this limit"
        );
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        domain::{
            feature::FeatureKey,
            limit::{Scope, SoftLimitMode},
            time::Timestamp,
            window::{Window, WindowKind},
        },
        telemetry::logs::captured,
    };

    fn state(
        soft: Option<i64>,
        hard: i64,
        settled: i64,
        reserved: i64,
        kind: WindowKind,
    ) -> LimitState {
        let end = match kind {
            WindowKind::Lifetime => Timestamp::NEVER,
            _ => Timestamp::from_seconds(60),
        };
        LimitState {
            limit: ActiveLimit {
                feature: FeatureKey::Messages,
                unit: "requests".into(),
                scope: Scope::Tenant,
                kind,
                window: Window::new(Timestamp::EPOCH, end).unwrap(),
                soft: soft.map(Quantity::new),
                hard: Some(Quantity::new(hard)),
                granted: Quantity::ZERO,
                is_own: false,
            },
            settled: Quantity::new(settled),
            reserved: Quantity::new(reserved),
        }
    }

    fn emitted(states: &[LimitState]) -> (Vec<serde_json::Value>, String) {
        let standing: LimitStates = states.iter().cloned().collect();
        let metrics = Metrics::new("redb");
        let violations: Vec<Violation> = states
            .iter()
            .filter_map(|state| state.admit(Quantity::ONE, SoftLimitMode::Warn))
            .collect();
        let lines = captured(|| {
            Decided {
                decision: Decision::of(&standing, &violations),
                tenant_id: TenantId::new(Uuid::nil()),
                plan_code: "starter",
                request_id: "r-1",
                states: &standing,
                violations: &violations,
            }
            .emit(&metrics);
        });
        (lines, metrics.render())
    }

    #[test]
    fn a_spent_limit_is_an_error_line_and_a_hit() {
        let (lines, metrics) = emitted(&[state(Some(5), 10, 10, 0, WindowKind::Minute)]);
        assert_eq!(
            lines.len(),
            1,
            "a refused request was refused, not warned too"
        );
        for (field, value) in [
            ("code", serde_json::json!("usage_limit_exceeded")),
            ("level", serde_json::json!("ERROR")),
            (
                "tenant_id",
                serde_json::json!("ten_00000000000000000000000000000000"),
            ),
            ("plan_code", serde_json::json!("starter")),
            ("feature_key", serde_json::json!("messages")),
            ("limit_type", serde_json::json!("hard_limit")),
            ("limit_value", serde_json::json!(10)),
            ("usage", serde_json::json!(10)),
            ("unit", serde_json::json!("requests")),
            ("window_start", serde_json::json!("1970-01-01T00:00:00Z")),
            ("window_end", serde_json::json!("1970-01-01T00:01:00Z")),
            ("request_id", serde_json::json!("r-1")),
        ] {
            assert_eq!(lines[0][field], value, "{field}");
        }
        assert!(
            metrics.contains(r#"usage_limit_hits_total{feature_key="messages",limit_type="hard_limit",plan_code="starter"} 1"#)
        );
        assert!(metrics.contains(
            r#"usage_guardrail_decisions_total{decision="hard_limit",plan_code="starter"} 1"#
        ));
    }

    #[test]
    fn a_passed_soft_limit_is_a_warning_and_a_hit() {
        let (lines, metrics) = emitted(&[
            state(Some(5), 10, 5, 0, WindowKind::Lifetime),
            state(None, 10, 5, 0, WindowKind::Minute),
        ]);
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["code"], "usage_soft_limit_exceeded");
        assert_eq!(lines[0]["level"], "WARN");
        assert_eq!(
            lines[0].get("window_end"),
            None,
            "a lifetime has no end to tell"
        );
        assert!(
            metrics.contains(r#"usage_limit_hits_total{feature_key="messages",limit_type="soft_limit",plan_code="starter"} 1"#)
        );
    }

    #[test]
    fn a_refusal_by_requests_in_flight_counts_as_a_decision_but_not_as_a_hit() {
        let (lines, metrics) = emitted(&[state(None, 10, 5, 5, WindowKind::Minute)]);
        assert_eq!(lines[0]["code"], "usage_limit_reserved");
        assert!(!metrics.contains("usage_limit_hits_total{"));
        assert!(metrics.contains(
            r#"usage_guardrail_decisions_total{decision="hard_limit",plan_code="starter"} 1"#
        ));
    }

    #[test]
    fn only_what_is_beyond_a_limit_is_overshoot() {
        let metrics = Metrics::new("redb");
        let overshoot = Quantities::default().with(FeatureKey::OutputTokens, Quantity::new(7));
        let lines = captured(|| {
            Overshoot {
                overshoot: &overshoot,
                cause: OvershootCause::Provider,
            }
            .emit(&metrics);
            Overshoot {
                overshoot: &Quantities::default(),
                cause: OvershootCause::Provider,
            }
            .emit(&metrics);
        });
        assert_eq!(lines.len(), 1);
        assert!(
            metrics.render().contains(
                r#"usage_overshoot_total{cause="provider",feature_key="output_tokens"} 7"#
            )
        );
    }

    #[test]
    fn recorded_quantities_add_up_and_a_correction_takes_nothing_from_a_counter() {
        let metrics = Metrics::new("redb");
        for quantity in [3, 4, -5] {
            Recorded {
                plan_code: "pro",
                quantities: &Quantities::default().with(FeatureKey::Cost, Quantity::new(quantity)),
                estimated: quantity == 4,
            }
            .emit(&metrics);
        }
        let text = metrics.render();
        assert!(text.contains(r#"usage_recorded_total{feature_key="cost",plan_code="pro"} 7"#));
        assert!(text.contains("usage_estimated_total 1"));
    }
}
