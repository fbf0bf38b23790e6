//! Looks through everything that runs and says what is wrong, what will be, and how to mend it. Changes nothing.

mod parts;
mod stripe;
mod tenants;

use serde::{Deserialize, Serialize};

use crate::{
    billing::stripe::Stripe,
    clock::Clock,
    config::{Config, Guardrails, Mode},
    domain::reach::{self, Untouchable},
    provider::Provider,
    services::{catalogue::Catalogue, recorder::Recorder},
    store::{SharedStore, StoreResult},
};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Ok,
    /// Could not be looked at, or is not in use.
    Skipped,
    /// Works, but not as somebody may think, or not for long.
    Warning,
    /// Broken.
    Error,
}

impl Severity {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What was looked at, and what it is like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub check: String,
    pub severity: Severity,
    pub detail: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Finding {
    #[must_use]
    pub fn ok(check: &str, detail: impl Into<String>) -> Self {
        Self::of(check, Severity::Ok, detail, None)
    }

    #[must_use]
    pub fn skipped(check: &str, detail: impl Into<String>) -> Self {
        Self::of(check, Severity::Skipped, detail, None)
    }

    #[must_use]
    pub fn warning(check: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::of(check, Severity::Warning, detail, Some(remedy.into()))
    }

    #[must_use]
    pub fn error(check: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::of(check, Severity::Error, detail, Some(remedy.into()))
    }

    fn of(
        check: &str,
        severity: Severity,
        detail: impl Into<String>,
        remedy: Option<String>,
    ) -> Self {
        Self {
            check: check.to_owned(),
            severity,
            detail: detail.into(),
            remedy,
        }
    }
}

/// The parts that are looked at.
pub struct Doctor<'a> {
    pub config: &'a Config,
    pub clock: &'a Clock,
    pub store: &'a SharedStore,
    pub recorder: &'a Recorder,
    pub catalogue: &'a Catalogue,
    pub provider: &'a dyn Provider,
    pub stripe: Option<&'a Stripe>,
}

impl Doctor<'_> {
    /// Every check in turn; one that can't be made is a finding too.
    pub async fn examine(&self) -> Vec<Finding> {
        let mut findings = self.clock_and_upstream().await;
        findings.extend(self.store().await);
        findings.extend(self.journal().await);
        findings.extend(self.ledger().await);
        findings.push(self.redis().await);
        findings.extend(self.stripe().await);
        findings.extend(self.guardrails());
        match self.tenants().await {
            Ok(found) => findings.extend(found),
            Err(error) => findings.push(Finding::error(
                "tenants",
                error.to_string(),
                "mend the store first",
            )),
        }
        findings
    }

    fn guardrails(&self) -> Vec<Finding> {
        let check = "guardrails";
        vec![match (self.config.guardrails, self.config.mode) {
            (Guardrails::Off, _) => Finding::warning(
                check,
                "off: chat is neither metered nor limited",
                "set ENABLE_USAGE_GUARDRAILS=true",
            ),
            (Guardrails::On, Mode::Observe) => Finding::warning(
                check,
                "observe mode: limits are decided and counted, but nothing is refused",
                "set USAGE_GUARDRAIL_MODE=enforce once the numbers look right",
            ),
            (Guardrails::On, Mode::Enforce) => Finding::ok(check, "on, enforced"),
        }]
    }
}

/// The limits of every plan that no request can touch, by the plan's code.
///
/// # Errors
/// [`StoreError::Unavailable`](crate::store::StoreError) if the plans can't be read.
pub async fn untouchable_limits(
    store: &SharedStore,
    config: &Config,
) -> StoreResult<Vec<(String, Untouchable)>> {
    let mut found = Vec::new();
    for plan in store.list_plans().await? {
        let metered = plan.features.iter().filter(|feature| feature.is_metered);
        let limits = metered.map(|feature| (&feature.key, feature.limits.as_slice()));
        let untouchable = reach::untouchable(limits, config.soft_limit_mode);
        found.extend(
            untouchable
                .into_iter()
                .map(|one| (plan.code.to_string(), one)),
        );
    }
    Ok(found)
}
