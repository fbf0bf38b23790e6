//! The decision for applications that call a model themselves: what they name is held, or nothing is.

use std::{sync::Arc, time::Instant};

use super::{AdmitError, Caller, Guard, MOST_REPLACED, Refusal, check_subscription};
use crate::{
    domain::{limit::LimitStates, quantity::Quantity, time::Timestamp, usage::Quantities},
    ledger::{Amount, Hold, LedgerAsk, OnViolation, Over, Reserved, Want},
    services::catalogue::Policy,
    telemetry::events::{self, Decision},
};

/// What an application wants to hold.
pub struct ReserveAsk<'a> {
    pub caller: &'a Caller,
    /// The model that it means to call, if it says so.
    pub model: Option<&'a str>,
    pub quantities: &'a Quantities,
}

/// What it may use.
pub struct Allowed {
    /// `None` with guardrails off, or where the fail mode let it by.
    pub hold: Option<Hold>,
    pub plan_code: Arc<str>,
    pub decision: Decision,
    /// The limits at admission.
    pub states: LimitStates,
    pub admitted_at: Timestamp,
}

impl Guard {
    /// Holds exactly what is asked, under all limits or not at all; nothing is lowered.
    ///
    /// # Errors
    /// [`AdmitError`]: nothing is held.
    pub async fn reserve_exactly(&self, ask: &ReserveAsk<'_>) -> Result<Allowed, AdmitError> {
        let begun = Instant::now();
        let decided = self.decide_exactly(ask).await;
        self.metrics.decided_in(begun.elapsed());
        decided
    }

    async fn decide_exactly(&self, ask: &ReserveAsk<'_>) -> Result<Allowed, AdmitError> {
        let now = self.clock.now();
        if !self.is_on() {
            return Ok(Allowed::unguarded("", now));
        }
        let policy = match self.catalogue.policy(ask.caller.tenant_id).await {
            Ok(Some(policy)) => policy,
            Ok(None) => {
                return Err(AdmitError::NoPlan {
                    tenant_id: ask.caller.tenant_id,
                    plan_code: None,
                });
            }
            Err(error) => return self.let_by(ask, "", now, events::FailReason::Store, &error),
        };
        let would_refuse = self.check_standing(ask, &policy, now)?;
        let on_violation = if self.enforces() {
            OnViolation::Refuse
        } else {
            OnViolation::Note
        };
        let wants = wants(ask.quantities);
        let ledger = self.recorder.ledger();
        let (mut placed_at, mut replaced, mut apart) = (now, 0, None);
        let reserved = loop {
            let active = match self.catalogue.limits(&policy, placed_at).await {
                Ok(active) => active,
                Err(error) => {
                    let plan_code = policy.plan_code();
                    return self.let_by(ask, plan_code, now, events::FailReason::Store, &error);
                }
            };
            let to_hold = LedgerAsk {
                tenant: ask.caller.tenant_id,
                key: Some(ask.caller.key_id),
                user: &ask.caller.user,
                limits: &active.limits,
                wants: &wants,
                soft: self.config.soft_limit_mode,
                on_violation,
                request_id: &ask.caller.request_id,
                now: placed_at,
            };
            match ledger.reserve(&to_hold).await {
                Ok(Reserved::Elsewhen(theirs)) if replaced < MOST_REPLACED => {
                    (placed_at, replaced) = (theirs, replaced + 1);
                }
                Err(error) if !self.fails_closed() => {
                    apart = Some(error.clone());
                    break ledger.reserve_apart(&to_hold).await.map_err(|_| error);
                }
                decided => break decided,
            }
        };
        if let (Some(error), Ok(_)) = (&apart, &reserved) {
            events::FailOpen {
                reason: events::FailReason::of(error),
                request_id: &ask.caller.request_id,
                detail: &error.to_string(),
            }
            .emit(&self.metrics);
        }
        match reserved {
            Ok(Reserved::Held(hold)) => Ok(self.allowed(ask, &policy, hold, would_refuse)),
            Ok(Reserved::Over(over)) => {
                let Over { violations, states } = *over;
                self.tell(ask, &policy, Decision::HardLimit, &states, &violations);
                let refusal = Refusal {
                    tenant_id: ask.caller.tenant_id,
                    plan_code: policy.plan_code().to_owned(),
                    violations,
                    states,
                    now,
                };
                Err(self.refuse(ask.caller, ask.model, refusal))
            }
            Ok(Reserved::Elsewhen(_)) => {
                let why = "the ledger's clock and this node's do not come together";
                self.let_by(
                    ask,
                    policy.plan_code(),
                    now,
                    events::FailReason::Ledger,
                    &why,
                )
            }
            Err(error) => {
                let reason = events::FailReason::of(&error);
                self.let_by(ask, policy.plan_code(), now, reason, &error)
            }
        }
    }

    /// Whether subscription and plan let the tenant ask; `Some` where only observe mode lets it by.
    fn check_standing(
        &self,
        ask: &ReserveAsk<'_>,
        policy: &Policy,
        now: Timestamp,
    ) -> Result<Option<Decision>, AdmitError> {
        let checked =
            check_subscription(policy, now).and_then(|()| match (&policy.plan, ask.model) {
                (Some(plan), Some(model)) if !plan.allowed_models.allow(model) => {
                    Err(AdmitError::ModelNotAllowed {
                        plan_code: plan.code.to_string(),
                        model: model.to_owned(),
                        allowed: plan.allowed_models.0.clone(),
                    })
                }
                _ => Ok(()),
            });
        match checked {
            Ok(()) => Ok(None),
            Err(refused) if self.enforces() => {
                self.notice_inactive(policy, &refused, now);
                Err(refused)
            }
            Err(refused) => {
                events::WouldRefuse {
                    plan_code: policy.plan_code(),
                    why: &refused.to_string(),
                }
                .emit(&self.metrics);
                Ok(Some(Decision::HardLimit))
            }
        }
    }

    fn allowed(
        &self,
        ask: &ReserveAsk<'_>,
        policy: &Policy,
        hold: Hold,
        would_refuse: Option<Decision>,
    ) -> Allowed {
        let decision =
            would_refuse.unwrap_or_else(|| Decision::of(hold.states(), hold.violations()));
        self.tell(ask, policy, decision, hold.states(), hold.violations());
        Allowed {
            plan_code: policy.plan_code().into(),
            decision,
            states: hold.states().clone(),
            admitted_at: hold.admitted_at(),
            hold: Some(hold),
        }
    }

    fn tell(
        &self,
        ask: &ReserveAsk<'_>,
        policy: &Policy,
        decision: Decision,
        states: &LimitStates,
        violations: &[crate::domain::limit::Violation],
    ) {
        events::Decided {
            decision,
            tenant_id: ask.caller.tenant_id,
            plan_code: policy.plan_code(),
            request_id: &ask.caller.request_id,
            states,
            violations,
        }
        .emit(&self.metrics);
    }

    /// No decision could be made: what now is the fail mode's to say.
    fn let_by(
        &self,
        ask: &ReserveAsk<'_>,
        plan_code: &str,
        now: Timestamp,
        reason: events::FailReason,
        why: &dyn std::fmt::Display,
    ) -> Result<Allowed, AdmitError> {
        let why = why.to_string();
        if self.fails_closed() {
            return Err(AdmitError::Unavailable(why));
        }
        events::FailOpen {
            reason,
            request_id: &ask.caller.request_id,
            detail: &why,
        }
        .emit(&self.metrics);
        Ok(Allowed::unguarded(plan_code, now))
    }
}

impl Allowed {
    fn unguarded(plan_code: &str, now: Timestamp) -> Self {
        Self {
            hold: None,
            plan_code: plan_code.into(),
            decision: Decision::Allow,
            states: LimitStates::default(),
            admitted_at: now,
        }
    }
}

fn wants(quantities: &Quantities) -> Vec<Want> {
    let wants = quantities.iter().map(|(feature, quantity)| Want {
        feature: feature.clone(),
        amount: Amount::Exact(quantity.max(Quantity::ZERO)),
    });
    wants.collect()
}
