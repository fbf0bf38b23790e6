//! The headers that every guarded answer carries, from where its limits stand.

use http::HeaderMap;

use crate::{
    domain::{limit::LimitStates, quantity::Quantity, time::Timestamp},
    http::{
        Dialect,
        headers::{self, Resets},
    },
    services::{admitted::Admitted, chat::Verdict},
    telemetry::events::Decision,
};

/// What the headers say.
pub struct GuardHeaders {
    decision: Decision,
    admitted: LimitStates,
    states: LimitStates,
    capped: Option<Quantity>,
    now: Timestamp,
    is_on: bool,
}

impl GuardHeaders {
    /// Of a request that was admitted: where its limits stood then.
    #[must_use]
    pub fn at_admission(admitted: &Admitted, capped: Option<Quantity>, now: Timestamp) -> Self {
        Self {
            decision: admitted.decision,
            admitted: admitted.states.clone(),
            states: admitted.states.clone(),
            capped,
            now,
            is_on: admitted.is_guarded(),
        }
    }

    /// Of a chat answer.
    #[must_use]
    pub fn of(verdict: &Verdict, states: LimitStates, now: Timestamp) -> Self {
        Self {
            decision: verdict.decision,
            admitted: verdict.admitted.clone(),
            states,
            capped: verdict.capped.map(|output| output.granted),
            now,
            is_on: true,
        }
    }

    /// Of a decision that has no run.
    #[must_use]
    pub fn of_states(decision: Decision, states: LimitStates, now: Timestamp) -> Self {
        Self {
            decision,
            admitted: states.clone(),
            states,
            capped: None,
            now,
            is_on: true,
        }
    }

    /// Where the limits stand now that the request is settled.
    pub fn settled(&mut self, states: LimitStates) {
        if !states.is_empty() {
            self.states = states;
        }
    }

    /// Adds the headers; none with guardrails off.
    pub fn put(&self, to: &mut HeaderMap, dialect: Dialect) {
        if !self.is_on {
            return;
        }
        let warned = &self.admitted;
        headers::add_guarded(
            to,
            dialect,
            &self.states,
            warned,
            self.decision,
            Resets::Told,
            self.now,
        );
        if let Some(most) = self.capped {
            headers::add_output_capped(to, most);
        }
    }
}
