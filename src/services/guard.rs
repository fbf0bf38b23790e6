//! The decision before the model runs, and the settling after it.
//!
//! [`Guard::admit`] reserves, all limits or none; [`Admitted::settle`] writes down what was really used. An
//! [`Admitted`] that is dropped unsettled gives back what it held, whatever happened.

mod reserved;

use std::{sync::Arc, time::Instant};

use futures_util::future::BoxFuture;
use smallvec::{SmallVec, smallvec};

use crate::{
    clock::Clock,
    config::{Config, FailMode, Guardrails, Mode, OpenInput, UnpricedModel},
    domain::{
        calibration::Direction,
        feature::FeatureKey,
        ids::{KeyId, TenantId},
        limit::{LimitStates, Violation},
        price::{ModelBounds, PriceEntry},
        quantity::Quantity,
        time::Timestamp,
        usage::TokenUsage,
    },
    ledger::{Amount, Hold, LedgerAsk, LedgerError, Named, OnViolation, Over, Reserved, Want},
    provider::Endpoint,
    services::{
        admitted::{Admitted, OutputGrant},
        catalogue::{Catalogue, Policy},
        notices::Notices,
        prices::Prices,
        recorder::Recorder,
        refusals::{Refusals, Refused},
        repeats::Keyed,
    },
    store::StoreError,
    telemetry::{
        events::{self, Decision, OvershootCause},
        metrics::Metrics,
    },
};

pub use self::reserved::{Allowed, ReserveAsk};

/// How often limits are placed anew for one request, where the ledger's clock is about to enter another window.
const MOST_REPLACED: usize = 4;

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller {
    pub tenant_id: TenantId,
    pub key_id: KeyId,
    /// The end user; `""` if none is named.
    pub user: Arc<str>,
    pub request_id: Arc<str>,
    /// Set if the request came with an `Idempotency-Key`.
    pub keyed: Option<Arc<Keyed>>,
}

/// How much a request may need at most.
pub struct Ask<'a> {
    pub caller: &'a Caller,
    pub endpoint: Endpoint,
    pub model: &'a str,
    /// An upper bound of the input that costs nothing.
    pub input_bound: Quantity,
    /// A tighter bound, taken only where the first does not fit.
    pub tokenized_input: &'a (dyn Fn() -> BoxFuture<'static, Quantity> + Sync),
    /// What names content that nobody here can see, if anything does.
    pub open_input: Option<&'static str>,
    pub output: Option<OutputAsk>,
}

/// How much output a request may need.
#[derive(Clone, Copy, Debug)]
pub struct OutputAsk {
    /// The maximum that the client named, per answer.
    pub named: Option<Quantity>,
    pub answers: i64,
}

/// Why a request does not run.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// No subscription (`plan_code` is `None`), or to a plan that is not defined.
    #[error("tenant {tenant_id} has no subscription to a plan that is defined")]
    NoPlan {
        tenant_id: TenantId,
        plan_code: Option<String>,
    },
    #[error("the subscription to plan '{plan_code}' is {status}")]
    SubscriptionInactive {
        plan_code: String,
        status: &'static str,
    },
    #[error("plan '{plan_code}' does not allow model '{model}'")]
    ModelNotAllowed {
        plan_code: String,
        model: String,
        allowed: Vec<String>,
    },
    #[error("the prompt names {what}, whose size is not known before the model runs")]
    OpenInput { what: &'static str },
    /// No price is known for the model, and the settings refuse such models.
    #[error("no price is known for model '{model}'")]
    NotPriced { model: String },
    #[error("no decision could be made: {0}")]
    Unavailable(String),
    #[error("refused by {} limit(s) of plan '{}'", .0.violations.len(), .0.plan_code)]
    Refused(Arc<Refusal>),
}

/// A request refused by its limits.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub tenant_id: TenantId,
    pub plan_code: String,
    /// The one that resets last first.
    pub violations: Vec<Violation>,
    /// All limits, for the headers.
    pub states: LimitStates,
    pub now: Timestamp,
}

/// Whether subscription and plan let the tenant ask at all; what only observe mode lets by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Good,
    WouldBeRefused,
}

/// Decides, and settles.
pub struct Guard {
    config: Arc<Config>,
    pub(super) catalogue: Arc<Catalogue>,
    prices: Arc<Prices>,
    pub(super) recorder: Arc<Recorder>,
    pub(super) clock: Clock,
    pub(super) metrics: Arc<Metrics>,
    refusals: Refusals,
    notices: Option<Arc<Notices>>,
}

/// What a request asks for, with what the price list says of its model.
struct Asked<'a> {
    ask: &'a Ask<'a>,
    /// What it would be granted if nothing stood against it.
    output: Option<OutputGrant>,
    bounds: ModelBounds,
    price: Option<Arc<PriceEntry>>,
    now: Timestamp,
}

/// By what a request is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knowledge {
    /// By all that is known.
    Shared,
    /// By what this node knows alone: what others know can't be had.
    Own,
}

impl Guard {
    #[must_use]
    pub fn new(
        config: Arc<Config>,
        catalogue: Arc<Catalogue>,
        prices: Arc<Prices>,
        recorder: Arc<Recorder>,
        clock: Clock,
        metrics: Arc<Metrics>,
        notices: Option<Arc<Notices>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            config,
            catalogue,
            prices,
            recorder,
            clock,
            metrics,
            refusals: Refusals::default(),
            notices,
        })
    }

    #[must_use]
    pub fn is_on(&self) -> bool {
        self.config.guardrails == Guardrails::On
    }

    /// The last refusals, for whoever asks why.
    #[must_use]
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Keeps a refusal for whoever asks why, and for notices, and gives it as the error that it is.
    fn refuse(&self, caller: &Caller, model: Option<&str>, refusal: Refusal) -> AdmitError {
        let refusal = Arc::new(refusal);
        let refused = self.refusals.keep(Refused {
            caller: caller.clone(),
            model: model.map(str::to_owned),
            refusal: Arc::clone(&refusal),
        });
        if let Some(notices) = &self.notices {
            notices.refused(&refused);
        }
        AdmitError::Refused(refusal)
    }

    fn notice_inactive(&self, policy: &Policy, refused: &AdmitError, now: Timestamp) {
        if let (Some(notices), AdmitError::SubscriptionInactive { status, .. }) =
            (&self.notices, refused)
        {
            notices.inactive(policy, status, now);
        }
    }

    fn enforces(&self) -> bool {
        self.config.mode == Mode::Enforce
    }

    /// Whether the request may run; if so, what it may need is held.
    ///
    /// # Errors
    /// [`AdmitError`]: nothing is held, and the model must not be called.
    pub async fn admit(self: &Arc<Self>, ask: &Ask<'_>) -> Result<Admitted, AdmitError> {
        let begun = Instant::now();
        let decided = self.decide(ask).await;
        self.metrics.decided_in(begun.elapsed());
        decided
    }

    fn asked<'a>(&self, ask: &'a Ask<'a>) -> Asked<'a> {
        let now = self.clock.now();
        let list = self.prices.list();
        let (price, bounds) = list.look_up(ask.model, now);
        Asked {
            ask,
            output: OutputGrant::asked(ask, bounds),
            bounds,
            price: price.filter(|entry| entry.rates.is_some()).cloned(),
            now,
        }
    }

    async fn decide(self: &Arc<Self>, ask: &Ask<'_>) -> Result<Admitted, AdmitError> {
        let asked = self.asked(ask);
        if !self.is_on() {
            return Ok(self.pass(&asked, ""));
        }
        let policy = match self.catalogue.policy(ask.caller.tenant_id).await {
            Ok(policy) => policy,
            Err(error) => {
                return self.fail(&asked, "", events::FailReason::Store, &error.to_string());
            }
        };
        let Some(policy) = policy else {
            return Err(AdmitError::NoPlan {
                tenant_id: ask.caller.tenant_id,
                plan_code: None,
            });
        };
        let mut standing = Standing::Good;
        if let Err(refused) = check_subscription(&policy, asked.now)
            .and_then(|()| self.check_request(&asked, &policy))
        {
            if self.enforces() {
                self.notice_inactive(&policy, &refused, asked.now);
                return Err(refused);
            }
            events::WouldRefuse {
                plan_code: policy.plan_code(),
                why: &refused.to_string(),
            }
            .emit(&self.metrics);
            standing = Standing::WouldBeRefused;
        }
        match self.reserve(&asked, &policy).await {
            Ok(Reserved::Held(hold)) => Ok(self.admitted(&asked, &policy, hold, standing)),
            Ok(Reserved::Over(over)) => Err(self.refused(&asked, &policy, *over)),
            Ok(Reserved::Elsewhen(_)) => self.fail(
                &asked,
                policy.plan_code(),
                events::FailReason::Ledger,
                "its clock and this node's do not come together",
            ),
            Err(ReserveError::Store(error)) => self.fail(
                &asked,
                policy.plan_code(),
                events::FailReason::Store,
                &error.to_string(),
            ),
            Err(ReserveError::Ledger(error)) => {
                // Boxed, as all that is rare on this way: each request would have room for it.
                Box::pin(self.decide_apart(&asked, &policy, standing, &error)).await
            }
        }
    }

    /// Decides by what this node knows alone, where the fail mode lets it; every such request is counted and logged.
    async fn decide_apart(
        self: &Arc<Self>,
        asked: &Asked<'_>,
        policy: &Policy,
        standing: Standing,
        error: &LedgerError,
    ) -> Result<Admitted, AdmitError> {
        let (reason, why) = (events::FailReason::of(error), error.to_string());
        if self.fails_closed() {
            return self.fail(asked, policy.plan_code(), reason, &why);
        }
        match self.reserve_by(asked, policy, Knowledge::Own).await {
            Ok(Reserved::Held(hold)) => {
                self.note_fail_open(asked, reason, &why);
                Ok(self.admitted(asked, policy, hold, standing))
            }
            Ok(Reserved::Over(over)) => {
                self.note_fail_open(asked, reason, &why);
                Err(self.refused(asked, policy, *over))
            }
            Ok(Reserved::Elsewhen(_)) | Err(_) => {
                self.fail(asked, policy.plan_code(), reason, &why)
            }
        }
    }

    fn fails_closed(&self) -> bool {
        self.config.fail_mode == FailMode::Closed && self.enforces()
    }

    fn note_fail_open(&self, asked: &Asked<'_>, reason: events::FailReason, why: &str) {
        events::FailOpen {
            reason,
            request_id: &asked.ask.caller.request_id,
            detail: why,
        }
        .emit(&self.metrics);
    }

    fn check_request(&self, asked: &Asked<'_>, policy: &Policy) -> Result<(), AdmitError> {
        let ask = asked.ask;
        if let Some(plan) = policy
            .plan
            .as_ref()
            .filter(|plan| !plan.allowed_models.allow(ask.model))
        {
            return Err(AdmitError::ModelNotAllowed {
                plan_code: plan.code.to_string(),
                model: ask.model.to_owned(),
                allowed: plan.allowed_models.0.clone(),
            });
        }
        if let Some(what) = ask.open_input
            && self.config.open_input == OpenInput::Refuse
        {
            return Err(AdmitError::OpenInput { what });
        }
        if asked.price.is_none() && self.config.unpriced_model == UnpricedModel::Refuse {
            return Err(AdmitError::NotPriced {
                model: ask.model.to_owned(),
            });
        }
        Ok(())
    }

    /// Reserves by the bound that costs nothing; only where that does not fit is the prompt tokenized.
    async fn reserve(&self, asked: &Asked<'_>, policy: &Policy) -> Result<Reserved, ReserveError> {
        self.reserve_by(asked, policy, Knowledge::Shared).await
    }

    async fn reserve_by(
        &self,
        asked: &Asked<'_>,
        policy: &Policy,
        knowledge: Knowledge,
    ) -> Result<Reserved, ReserveError> {
        let Asked { ask, mut now, .. } = *asked;
        let mut active = self.catalogue.limits(policy, now).await?;
        let on_violation = if self.enforces() {
            OnViolation::Refuse
        } else {
            OnViolation::Note
        };
        let mut wants = self.wants(asked);
        let mut replaced = 0;
        loop {
            let ledger = self.recorder.ledger();
            let to_hold = LedgerAsk {
                tenant: ask.caller.tenant_id,
                key: Some(ask.caller.key_id),
                user: &ask.caller.user,
                limits: &active.limits,
                wants: &wants,
                soft: self.config.soft_limit_mode,
                on_violation,
                request_id: &ask.caller.request_id,
                now,
            };
            let reserved = match knowledge {
                Knowledge::Shared => ledger.reserve(&to_hold).await?,
                Knowledge::Own => ledger.reserve_apart(&to_hold).await?,
            };
            let violations = match &reserved {
                Reserved::Held(hold) => hold.violations(),
                Reserved::Over(over) => &over.violations,
                Reserved::Elsewhen(theirs) if replaced < MOST_REPLACED => {
                    replaced += 1;
                    now = *theirs;
                    active = self.catalogue.limits(policy, now).await?;
                    continue;
                }
                Reserved::Elsewhen(_) => return Ok(reserved),
            };
            let by_input = violations.iter().any(|violation| {
                matches!(
                    violation.limit.feature,
                    FeatureKey::InputTokens | FeatureKey::Cost
                )
            });
            let input = wants
                .iter_mut()
                .find(|want| want.feature == FeatureKey::InputTokens);
            let Some(Want { amount, .. }) = input.filter(|_| by_input) else {
                return Ok(reserved);
            };
            let tokenized = self.recorded(ask, Direction::Input, (ask.tokenized_input)().await);
            let tighter = match amount {
                Amount::UpTo { want, .. } => Amount::UpTo {
                    want: *want,
                    floor: tokenized,
                },
                Amount::Exact(_) | Amount::Output { .. } | Amount::Priced(_) => {
                    Amount::Exact(tokenized)
                }
            };
            if *amount == tighter {
                return Ok(reserved);
            }
            *amount = tighter;
        }
    }

    fn wants(&self, asked: &Asked<'_>) -> Wants {
        let ask = asked.ask;
        let bound = self.recorded(ask, Direction::Input, ask.input_bound);
        let input = match ask.open_input {
            // At least what can be seen of it must fit; for the rest, what is left will do.
            Some(_) => Amount::UpTo {
                want: self
                    .recorded(ask, Direction::Input, asked.bounds.context_tokens)
                    .max(bound),
                floor: bound,
            },
            None => Amount::Exact(bound),
        };
        let mut wants: Wants = smallvec![
            Want {
                feature: FeatureKey::Messages,
                amount: Amount::Exact(Quantity::ONE),
            },
            Want {
                feature: FeatureKey::InputTokens,
                amount: input,
            },
        ];
        if let (Some(output), Some(grant)) = (ask.output, asked.output) {
            let floor = self.config.min_output.max(smallest_output(ask.endpoint));
            wants.push(Want {
                feature: FeatureKey::OutputTokens,
                amount: Amount::Output {
                    per_answer: self.recorded(ask, Direction::Output, grant.asked),
                    answers: output.answers,
                    named: grant.named,
                    floor: self.recorded(ask, Direction::Output, floor),
                    reservation: self.config.output_reservation,
                },
            });
        }
        if let Some(rates) = asked.price.as_ref().and_then(|entry| entry.rates) {
            wants.push(Want {
                feature: FeatureKey::Cost,
                amount: Amount::Priced(rates),
            });
        }
        wants
    }

    fn admitted(
        self: &Arc<Self>,
        asked: &Asked<'_>,
        policy: &Policy,
        hold: Hold,
        standing: Standing,
    ) -> Admitted {
        let ask = asked.ask;
        let granted = hold.granted(&FeatureKey::OutputTokens);
        let output = asked.output.zip(ask.output);
        let output = output.map(|(grant, output)| {
            let held = Quantity::new(granted.get() / output.answers.max(1));
            let factors = &self.config.calibration;
            let granted = factors.within(ask.model, Direction::Output, held);
            OutputGrant {
                granted: granted.min(grant.asked),
                ..grant
            }
        });
        let decision = match standing {
            Standing::Good => Decision::of(hold.states(), hold.violations()),
            Standing::WouldBeRefused => Decision::HardLimit,
        };
        let plan_code = policy.shared_plan_code();
        events::Decided {
            decision,
            tenant_id: ask.caller.tenant_id,
            plan_code: &plan_code,
            request_id: &ask.caller.request_id,
            states: hold.states(),
            violations: hold.violations(),
        }
        .emit(&self.metrics);
        Admitted {
            guard: Arc::clone(self),
            caller: ask.caller.clone(),
            plan_code,
            decision,
            states: hold.states().clone(),
            output,
            price: asked.price.clone(),
            admitted_at: hold.admitted_at(),
            overshoot_cause: overshoot_cause(ask),
            hold: Some(hold),
        }
    }

    fn refused(&self, asked: &Asked<'_>, policy: &Policy, over: Over) -> AdmitError {
        let Over { violations, states } = over;
        let Asked { ask, now, .. } = *asked;
        events::Decided {
            decision: Decision::HardLimit,
            tenant_id: ask.caller.tenant_id,
            plan_code: policy.plan_code(),
            request_id: &ask.caller.request_id,
            states: &states,
            violations: &violations,
        }
        .emit(&self.metrics);
        let refusal = Refusal {
            tenant_id: ask.caller.tenant_id,
            plan_code: policy.plan_code().to_owned(),
            violations,
            states,
            now,
        };
        self.refuse(ask.caller, Some(ask.model), refusal)
    }

    /// No decision could be made: what now is the fail mode's to say. Usage is recorded all the same.
    fn fail(
        self: &Arc<Self>,
        asked: &Asked<'_>,
        plan_code: &str,
        reason: events::FailReason,
        why: &str,
    ) -> Result<Admitted, AdmitError> {
        if self.fails_closed() {
            return Err(AdmitError::Unavailable(why.to_owned()));
        }
        self.note_fail_open(asked, reason, why);
        Ok(self.pass(asked, plan_code))
    }

    /// The most that is recorded of `count` tokens, which is what limits count and holds are made of.
    fn recorded(&self, ask: &Ask<'_>, direction: Direction, count: Quantity) -> Quantity {
        self.config.calibration.at_most(ask.model, direction, count)
    }

    /// A provider's count, as the settings say it is to be read.
    pub(super) fn calibrated(&self, model: &str, reported: TokenUsage) -> TokenUsage {
        let factors = &self.config.calibration;
        TokenUsage {
            input_tokens: factors.apply(model, Direction::Input, reported.input_tokens),
            output_tokens: factors.apply(model, Direction::Output, reported.output_tokens),
            ..reported
        }
    }

    fn pass(self: &Arc<Self>, asked: &Asked<'_>, plan_code: &str) -> Admitted {
        Admitted {
            guard: Arc::clone(self),
            caller: asked.ask.caller.clone(),
            hold: None,
            plan_code: plan_code.into(),
            decision: Decision::Allow,
            states: LimitStates::default(),
            output: asked.output,
            price: asked.price.clone(),
            admitted_at: asked.now,
            overshoot_cause: overshoot_cause(asked.ask),
        }
    }
}

impl OutputGrant {
    fn asked(ask: &Ask<'_>, bounds: ModelBounds) -> Option<Self> {
        let output = ask.output?;
        let asked = output.named.unwrap_or(bounds.max_output_tokens);
        let named = if output.named.is_some() {
            Named::ByClient
        } else {
            Named::ByDefault
        };
        Some(Self {
            asked,
            granted: asked,
            named,
        })
    }
}

/// What a chat may use: messages, input, output, cost.
type Wants = SmallVec<[Want; 4]>;

enum ReserveError {
    Store(StoreError),
    Ledger(LedgerError),
}

impl From<StoreError> for ReserveError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<LedgerError> for ReserveError {
    fn from(error: LedgerError) -> Self {
        Self::Ledger(error)
    }
}

fn overshoot_cause(ask: &Ask<'_>) -> OvershootCause {
    if ask.open_input.is_some() {
        OvershootCause::OpenInput
    } else {
        OvershootCause::Provider
    }
}

/// What an endpoint accepts at least: the Responses API refuses a maximum below 16.
fn smallest_output(endpoint: Endpoint) -> Quantity {
    match endpoint {
        Endpoint::Responses => Quantity::new(16),
        Endpoint::ChatCompletions | Endpoint::Embeddings | Endpoint::Models => Quantity::ONE,
    }
}

fn check_subscription(policy: &Policy, now: Timestamp) -> Result<(), AdmitError> {
    let tenant_id = policy.tenant.tenant_id;
    let Some(subscription) = policy.subscription() else {
        return Err(AdmitError::NoPlan {
            tenant_id,
            plan_code: None,
        });
    };
    if policy.plan.is_none() {
        return Err(AdmitError::NoPlan {
            tenant_id,
            plan_code: Some(subscription.plan_code.to_string()),
        });
    }
    if !subscription.runs_at(now) {
        return Err(AdmitError::SubscriptionInactive {
            plan_code: subscription.plan_code.to_string(),
            status: subscription.status.as_str(),
        });
    }
    Ok(())
}
