//! An admitted request, until its usage is written down.

use std::sync::Arc;

use super::guard::{Caller, Guard};
use crate::{
    clock,
    domain::{
        feature::FeatureKey,
        ids::EventId,
        limit::LimitStates,
        price::PriceEntry,
        quantity::Quantity,
        time::Timestamp,
        usage::{Quantities, Source, TokenUsage, UsageEvent},
    },
    journal::JournalError,
    ledger::{Hold, Named},
    telemetry::events::{self, Decision, OvershootCause},
};

/// A request that may run. Dropped unsettled, it gives back what it held.
pub struct Admitted {
    pub(super) guard: Arc<Guard>,
    pub(super) caller: Caller,
    pub(super) hold: Option<Hold>,
    pub plan_code: Arc<str>,
    pub decision: Decision,
    /// The limits at admission.
    pub states: LimitStates,
    pub output: Option<OutputGrant>,
    /// What its model costs; `None` if that is not known.
    pub price: Option<Arc<PriceEntry>>,
    pub admitted_at: Timestamp,
    /// What it would be, should this request pass a limit in the end.
    pub(super) overshoot_cause: OvershootCause,
}

/// The output that a request may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputGrant {
    /// What the client named, or the model's largest output.
    pub asked: Quantity,
    /// Per answer, as the upstream counts; what it can come to with the settings' calibration is held.
    pub granted: Quantity,
    pub named: Named,
}

impl OutputGrant {
    /// The maximum to send upstream in place of the client's, if it had to be lowered.
    #[must_use]
    pub fn lowered_to(&self) -> Option<Quantity> {
        (self.granted < self.asked).then_some(self.granted)
    }

    /// The maximum that the upstream was given, by the client or by us; `None` if by nobody.
    #[must_use]
    pub fn sent(&self) -> Option<Quantity> {
        match self.named {
            Named::ByClient => Some(self.granted),
            Named::ByDefault => self.lowered_to(),
        }
    }
}

/// What a run used, before calibration.
#[derive(Clone, Debug)]
pub struct Used {
    pub model: String,
    pub tokens: TokenUsage,
    /// Counted with the tokenizer.
    pub estimated: bool,
    pub ending: Ending,
}

/// Whether a run came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Whole,
    /// Its client hung up, or the upstream broke off.
    Part,
}

/// A settled request.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// As recorded: calibrated.
    pub tokens: TokenUsage,
    pub estimated: bool,
    pub cost: Quantity,
    /// The limits after settling.
    pub states: LimitStates,
}

impl Admitted {
    /// Whether it is metered at all.
    #[must_use]
    pub fn is_guarded(&self) -> bool {
        self.guard.is_on()
    }

    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The client has gone; the run goes on without it.
    pub fn mark_detached(&self) {
        if let Some(hold) = &self.hold {
            hold.mark_detached();
        }
    }

    /// Writes down what was used, then counts it. With guardrails off nothing is recorded.
    ///
    /// # Errors
    /// [`JournalError`]: nothing was written down or charged; the answer must not leave.
    pub async fn settle(&mut self, used: &Used) -> Result<Settlement, JournalError> {
        let guard = Arc::clone(&self.guard);
        let tokens = if used.estimated {
            used.tokens
        } else {
            guard.calibrated(&used.model, used.tokens)
        };
        let rates = self.price.as_ref().and_then(|entry| entry.rates);
        let mut settlement = Settlement {
            tokens,
            estimated: used.estimated,
            cost: rates.map_or(Quantity::ZERO, |rates| rates.cost(&tokens)),
            states: LimitStates::default(),
        };
        if !guard.is_on() {
            return Ok(settlement);
        }
        let keyed = self.caller.keyed.clone();
        let keyed = keyed.filter(|_| used.ending == Ending::Whole);
        if let Some(keyed) = keyed.as_ref().filter(|keyed| keyed.is_rerun)
            && Box::pin(
                guard
                    .recorder
                    .has_event(self.caller.tenant_id, keyed.event_id),
            )
            .await
        {
            settlement.states = std::mem::take(&mut self.states);
            return Ok(settlement); // recorded by the run before the crash; this one's hold is given back
        }
        let mut event = self.event(&used.model, &settlement, guard.clock.now());
        if let Some(keyed) = keyed {
            event.event_id = keyed.event_id;
        }
        let settled = guard.recorder.settle(self.hold.take(), &event).await?;
        guard
            .catalogue
            .note_settled(self.caller.tenant_id, self.admitted_at);
        events::Recorded {
            plan_code: &self.plan_code,
            quantities: &event.quantities,
            estimated: used.estimated,
        }
        .emit(&guard.metrics);
        if self.price.is_none() {
            events::Unpriced {
                model: &used.model,
                request_id: &self.caller.request_id,
            }
            .emit(&guard.metrics);
        }
        events::Overshoot {
            overshoot: &settled.overshoot,
            cause: self.overshoot_cause,
        }
        .emit(&guard.metrics);
        settlement.states = settled.states;
        Ok(settlement)
    }

    fn event(&self, model: &str, settlement: &Settlement, now: Timestamp) -> UsageEvent {
        UsageEvent {
            event_id: EventId::new(clock::new_id()),
            request_id: self.caller.request_id.to_string(),
            source: Source::Chat,
            tenant_id: self.caller.tenant_id,
            key_id: Some(self.caller.key_id),
            user: self.caller.user.to_string(),
            model: Some(model.to_owned()),
            quantities: Quantities::default()
                .with(FeatureKey::Messages, Quantity::ONE)
                .with(FeatureKey::InputTokens, settlement.tokens.input_tokens)
                .with(FeatureKey::OutputTokens, settlement.tokens.output_tokens)
                .with(FeatureKey::Cost, settlement.cost),
            estimated: settlement.estimated,
            reason: None,
            price_id: self.price.as_ref().map(|entry| entry.id.to_string()),
            admitted_at: self.admitted_at,
            recorded_at: now,
        }
    }
}
