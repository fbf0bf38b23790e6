//! What was seen, and what follows from it.

use serde::Serialize;

use super::{
    gateway::{Counted, Outcome, Tokens},
    phases::Kind,
};
use crate::cli::output::or_dash;

/// One phase: how its requests ended, and how many messages the gateway counted for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Phase {
    phase: &'static str,
    asked: u64,
    answered: u64,
    /// Of the answered: earlier answers given again.
    replayed: u64,
    refused: u64,
    hung_up: u64,
    failed: u64,
    /// `None`: it can't be seen.
    counted: Option<u64>,
    lost: Option<u64>,
    double: Option<u64>,
    #[serde(skip)]
    lost_tokens: u64,
}

impl Phase {
    pub(super) fn new(
        kind: Kind,
        outcomes: Vec<Outcome>,
        before: Option<&Counted>,
        after: Option<&Counted>,
    ) -> Self {
        let mut phase = Self {
            phase: kind.as_str(),
            asked: outcomes.len() as u64,
            answered: 0,
            replayed: 0,
            refused: 0,
            hung_up: 0,
            failed: 0,
            counted: None,
            lost: None,
            double: None,
            lost_tokens: 0,
        };
        // At least these ran and are to be counted; of the others it can't be told from outside.
        let (mut ran, mut may_have_run) = (0, 0);
        let mut tokens = Tokens::default();
        for outcome in outcomes {
            match outcome {
                Outcome::Answered { usage, is_replay } => {
                    phase.answered += 1;
                    if is_replay {
                        phase.replayed += 1;
                    } else {
                        ran += 1;
                        tokens.input += usage.input;
                        tokens.output += usage.output;
                    }
                }
                Outcome::Refused => phase.refused += 1,
                Outcome::HungUp { had_text } => {
                    phase.hung_up += 1;
                    if had_text {
                        ran += 1;
                    } else {
                        may_have_run += 1;
                    }
                }
                Outcome::Failed(_) => {
                    phase.failed += 1;
                    may_have_run += 1;
                }
            }
        }
        let grown = |feature: &str| grown(before, after, feature);
        if let Some(counted) = grown("messages") {
            phase.counted = Some(counted);
            phase.lost = Some(u64::saturating_sub(ran, counted));
            phase.double = Some(counted.saturating_sub(ran + may_have_run));
        }
        for (feature, at_least) in [
            ("input_tokens", tokens.input),
            ("output_tokens", tokens.output),
        ] {
            if let Some(counted) = grown(feature) {
                phase.lost_tokens += at_least.saturating_sub(counted);
            }
        }
        phase
    }

    pub(super) fn row(&self) -> Vec<String> {
        vec![
            self.phase.to_owned(),
            self.asked.to_string(),
            self.answered.to_string(),
            self.refused.to_string(),
            self.hung_up.to_string(),
            self.failed.to_string(),
            or_dash(self.counted),
            or_dash(self.lost),
            or_dash(self.double),
        ]
    }
}

/// How far a count has gone on in the same window.
fn grown(before: Option<&Counted>, after: Option<&Counted>, feature: &str) -> Option<u64> {
    let (before, after) = (before?.get(feature)?, after?.get(feature)?);
    (before.window == after.window).then(|| after.used.saturating_sub(before.used))
}

/// Everything that was seen.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) limit: Option<u64>,
    pub(super) before: Option<Counted>,
    pub(super) after: Option<Counted>,
    pub(super) phases: Vec<Phase>,
}

/// What follows; `None`: it can't be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Messages beyond the limit.
    pub(super) overshoot: Option<u64>,
    /// Messages that were answered and not counted.
    pub(super) lost: Option<u64>,
    /// Messages that were counted and never ran.
    pub(super) double: Option<u64>,
    /// Still reserved when all requests had ended.
    pub(super) reserved: Option<u64>,
    lost_tokens: u64,
    /// Whether any request ran.
    is_tried: bool,
    pub(super) notes: Vec<String>,
}

impl Account {
    pub(super) fn verdict(&self) -> Verdict {
        let sum =
            |part: fn(&Phase) -> Option<u64>| -> Option<u64> { self.phases.iter().map(part).sum() };
        Verdict {
            overshoot: self.overshoot(),
            lost: sum(|phase| phase.lost),
            double: sum(|phase| phase.double),
            reserved: self
                .after
                .as_ref()
                .map(|counted| counted.values().map(|count| count.reserved).sum()),
            lost_tokens: self.phases.iter().map(|phase| phase.lost_tokens).sum(),
            is_tried: self.ran() > 0,
            notes: self.notes(),
        }
    }

    /// Requests that ran, as far as their client can tell.
    fn ran(&self) -> u64 {
        let ran = |phase: &Phase| phase.answered - phase.replayed + phase.hung_up;
        self.phases.iter().map(ran).sum()
    }

    fn overshoot(&self) -> Option<u64> {
        if let Some(limit) = self.limit {
            return Some(self.ran().saturating_sub(limit));
        }
        let (before, after) = (self.before.as_ref()?, self.after.as_ref()?);
        let (before, after) = (before.get("messages")?, after.get("messages")?);
        let hard = after.hard?;
        // By what the gateway counted, and by what was answered: a gateway that lost usage would hide behind the first.
        let room = hard.saturating_sub(before.used);
        let answered: u64 = self
            .phases
            .iter()
            .map(|phase| phase.answered - phase.replayed)
            .sum();
        let counted = after.used.saturating_sub(hard.max(before.used));
        Some(counted.max(answered.saturating_sub(room)))
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.before.is_none() {
            notes.push("The gateway shows no counts (GET /api/v1/usage), so lost and double usage can't be seen.".to_owned());
            if self.limit.is_none() {
                notes
                    .push("Name the limit with --limit N to see whether it was passed.".to_owned());
            }
        } else if self.phases.iter().any(|phase| phase.counted.is_none()) {
            notes.push("A window turned meanwhile, or messages are not counted: run it again, or meter messages.".to_owned());
        }
        let at_limit = |phase: &&Phase| phase.phase == Kind::Parallel.as_str();
        if self
            .phases
            .iter()
            .find(at_limit)
            .is_none_or(|phase| phase.refused == 0)
        {
            notes.push(
                "No request was refused, so the limit was not tried: ask for more --requests."
                    .to_owned(),
            );
        }
        if let Some(repeats) = self
            .phases
            .iter()
            .find(|phase| phase.phase == Kind::Repeats.as_str())
            && repeats.answered > 0
            && repeats.replayed == 0
        {
            notes.push(
                "The gateway does not replay answers by Idempotency-Key: each repeat ran anew."
                    .to_owned(),
            );
        }
        notes
    }
}

impl Verdict {
    pub(super) fn breaches(&self) -> Vec<String> {
        let mut breaches = Vec::new();
        let mut add = |quantity: Option<u64>, what: &str| {
            if let Some(quantity) = quantity.filter(|quantity| *quantity > 0) {
                breaches.push(format!("{quantity} {what}"));
            }
        };
        add(self.overshoot, "requests beyond the limit");
        add(self.lost, "requests answered and not counted");
        add(Some(self.lost_tokens), "tokens answered and not counted");
        add(self.double, "requests counted and never answered");
        add(self.reserved, "units left reserved");
        if !self.is_tried {
            breaches.push(
                "nothing was tried, since no request ran: take a key that has something left"
                    .to_owned(),
            );
        }
        breaches
    }
}
