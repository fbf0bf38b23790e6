//! Sends what is in the outbox to Stripe's meters, so that each value counts there once.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use futures_util::future::join_all;
use http::StatusCode;
use serde::Serialize;

use super::{
    Stripe, StripeError,
    client::CallError,
    meters::{Meter, minutes_around, summary},
    result::PushResult,
};
use crate::{
    domain::time::Timestamp,
    services::outbox::{Outcome, Progress, Sender},
    store::{
        StoreError, StoreResult,
        outbox::{Kind, Leased, NewEntry, OutboxFilter, Status},
        stripe::{MeterPayload, Which},
    },
    telemetry::events,
};

/// How many lanes are served at once: some hundred calls a second, of the 1,000 that Stripe allows.
const AT_ONCE: usize = 64;
/// In a lane one entry follows the other, each in a step of its own.
const EVERY: Duration = Duration::from_millis(250);
/// About two days.
const MOST_ATTEMPTS: u32 = 100;
/// How far back Stripe takes usage; it says 35 calendar days, and clocks differ.
const OLDEST: Duration = Duration::from_secs(35 * 24 * 3600 - 300);
/// How far ahead: it says five minutes.
const AHEAD: Duration = Duration::from_secs(240);
/// Stripe remembers identifiers for at least 24 hours: up to here the same one again is safe.
const REMEMBERED: Duration = Duration::from_secs(23 * 3600);
/// Longest that a push by hand goes on.
const PUSH_TIME: Duration = Duration::from_secs(300);

/// While others send, a push looks again, for as long as an answer may take.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const MOST_LOOKS: u32 = 100;
const PENDING: usize = 500;

/// What a push by hand did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pushed {
    /// Entries that were made of what had come together.
    pub handed_on: u64,
    /// Left to do: what waits for its next attempt.
    pub pending: u64,
    pub uncertain: u64,
    pub dead: u64,
    /// Intervals of tenants that have no customer at Stripe.
    pub without_customer: u64,
}

/// Sends meter events.
pub struct MeterSender(pub Arc<Stripe>);

impl Sender for MeterSender {
    fn kind(&self) -> Kind {
        Kind::StripeMeterEvent
    }

    fn most_attempts(&self) -> u32 {
        MOST_ATTEMPTS
    }

    fn batch(&self) -> usize {
        AT_ONCE
    }

    fn pause(&self) -> Duration {
        EVERY
    }

    fn given_up<'a>(
        &'a self,
        entry: &'a Leased,
        error: &'a str,
        now: Timestamp,
    ) -> BoxFuture<'a, Vec<NewEntry>> {
        Box::pin(self.0.dead_notices(entry, error, now))
    }

    fn send<'a>(&'a self, entries: &'a [Leased], now: Timestamp) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(async move {
            let sent = entries.iter().map(|entry| async move {
                let (outcome, result) = self.0.push_one(entry, now).await;
                self.0.parts.metrics.count_stripe_push(result.as_str());
                outcome
            });
            join_all(sent).await
        })
    }
}

impl Stripe {
    async fn push_one(&self, entry: &Leased, now: Timestamp) -> (Outcome, PushResult) {
        let payload: MeterPayload = match serde_json::from_str(&entry.payload) {
            Ok(payload) => payload,
            Err(error) => return rejected(format!("can't be read: {error}")),
        };
        let at = Timestamp::from_seconds(payload.timestamp);
        let meter = match self.usable_meter(&payload.event_name, now).await {
            Ok(meter) => meter,
            Err(error) => return again(None, error),
        };
        let mut is_in_doubt = entry.doubt_since.is_some();
        if entry
            .doubt_since
            .is_some_and(|since| since.plus(REMEMBERED) <= now)
        {
            match self.settle_doubt(entry, &payload, &meter).await {
                Ok(Settled::Arrived) => return (Outcome::Sent, PushResult::Duplicate),
                Ok(Settled::Missing) => is_in_doubt = false,
                Ok(Settled::Unknown(error)) => {
                    return (Outcome::Uncertain { error }, PushResult::Error);
                }
                Err(error) => return again(None, error.to_string()),
            }
        }
        if at.plus(OLDEST) < now {
            events::StripeUsageTooLate {
                identifier: &entry.identifier,
                used_at: at,
            }
            .emit(&self.parts.metrics);
            return rejected(format!(
                "used at {at}, longer ago than the 35 days that Stripe accepts; bill it by hand"
            ));
        }
        if now.plus(AHEAD) < at {
            return again(
                Some(at.since(now)),
                format!("used at {at}, which is still to come"),
            );
        }
        if let Some(canceled) = &payload.cancels {
            match self.cancel(&payload.event_name, canceled).await {
                Ok(()) => return (Outcome::Sent, PushResult::Ok),
                // It is too late for that. Did no attempt before it arrive, the same is told as an event of its own;
                // where that can't be known, Stripe's sums say so once they have settled.
                Err(CallError::Refused {
                    status: StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND,
                    ..
                }) if !is_in_doubt => {}
                Err(CallError::Refused {
                    status: StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND,
                    message,
                    ..
                }) => return again(None, message),
                Err(error) => return judged(error),
            }
        }
        judged_of(self.add(entry, &payload, &meter).await)
    }

    /// # Errors
    /// Why nothing can be sent to it now.
    async fn usable_meter(&self, event_name: &str, now: Timestamp) -> Result<Meter, String> {
        match self.meters.find(&self.client, event_name, now).await {
            Ok(Some(meter)) => match meter.fault() {
                None => Ok(meter),
                Some(fault) => Err(fault),
            },
            Ok(None) => Err(format!(
                "Stripe has no meter whose event_name is '{event_name}'; make it, or mend the plan's stripe_meter"
            )),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn add(
        &self,
        entry: &Leased,
        payload: &MeterPayload,
        meter: &Meter,
    ) -> Result<(), CallError> {
        let (customer_key, value_key) = (
            format!("payload[{}]", meter.customer_key),
            format!("payload[{}]", meter.value_key),
        );
        let (timestamp, value) = (payload.timestamp.to_string(), payload.value.to_string());
        let form = [
            ("event_name", payload.event_name.as_str()),
            ("identifier", &entry.identifier),
            ("timestamp", &timestamp),
            (&customer_key, &payload.customer),
            (&value_key, &value),
        ];
        let sent = self.client.post("/v1/billing/meter_events", &form).await;
        sent.map(|_| ())
    }

    async fn cancel(&self, event_name: &str, identifier: &str) -> Result<(), CallError> {
        let form = [
            ("event_name", event_name),
            ("type", "cancel"),
            ("cancel[identifier]", identifier),
        ];
        let sent = self
            .client
            .post("/v1/billing/meter_event_adjustments", &form)
            .await;
        match sent {
            Ok(_) => Ok(()),
            Err(CallError::Refused { message, .. }) if message.contains("already") => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether an attempt of long ago arrived, by what Stripe sums up of that minute.
    async fn settle_doubt(
        &self,
        entry: &Leased,
        payload: &MeterPayload,
        meter: &Meter,
    ) -> Result<Settled, StripeError> {
        let at = Timestamp::from_seconds(payload.timestamp);
        let minute = minutes_around(at, at);
        let lane = entry.lane.as_deref().unwrap_or_default();
        let ours = self
            .parts
            .store
            .lane_sums(lane, minute, &entry.identifier)
            .await?;
        let theirs = summary(&self.client, meter, &payload.customer, minute).await?;
        if theirs == ours.sent {
            return Ok(Settled::Missing);
        }
        let with_this = ours.sent.plus(payload.value);
        if theirs == with_this || theirs == with_this.plus(ours.doubtful) {
            return Ok(Settled::Arrived);
        }
        Ok(Settled::Unknown(format!(
            "whether it arrived can't be told: of that minute Stripe has {theirs}, and {} without it",
            ours.sent
        )))
    }

    /// Hands on what has come together up to now, and sends it until nothing is due or Stripe takes no more.
    ///
    /// # Errors
    /// [`StoreError`]: what is left goes by itself.
    pub async fn push(self: &Arc<Self>) -> Result<Pushed, StoreError> {
        let flushed = self.parts.recorder.flush().await;
        flushed.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let handed_on = self.hand_on(Which::All).await?;
        let sender = MeterSender(Arc::clone(self));
        let end = tokio::time::Instant::now() + PUSH_TIME;
        let mut patience = MOST_LOOKS;
        while tokio::time::Instant::now() < end {
            match self.parts.outbox.step(&sender).await? {
                Progress::Moved { .. } => {}
                Progress::Failing => break,
                Progress::Idle if patience > 0 && self.is_being_sent().await? => {
                    patience -= 1;
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Progress::Idle => break,
            }
        }
        let (waiting, _) = self.parts.store.count_waiting().await?;
        let mut pushed = Pushed {
            handed_on: handed_on.entries,
            without_customer: waiting,
            ..Pushed::default()
        };
        for (kind, status, count) in self.parts.store.count_outbox().await? {
            match (kind, status) {
                (Kind::StripeMeterEvent, Status::Pending) => pushed.pending = count,
                (Kind::StripeMeterEvent, Status::Uncertain) => pushed.uncertain = count,
                (Kind::StripeMeterEvent, Status::Dead) => pushed.dead = count,
                _ => {}
            }
        }
        Ok(pushed)
    }
}

impl Stripe {
    /// Whether somebody else sends something at the moment: it was tried, and nothing is known of that yet.
    async fn is_being_sent(&self) -> StoreResult<bool> {
        let filter = OutboxFilter {
            kind: Some(Kind::StripeMeterEvent),
            status: Some(Status::Pending),
            tenant: None,
        };
        let pending = self.parts.store.list_outbox(&filter, None, PENDING).await?;
        Ok(pending
            .iter()
            .any(|it| it.attempts > 0 && it.last_error.is_none()))
    }
}

enum Settled {
    Arrived,
    Missing,
    Unknown(String),
}

fn rejected(error: String) -> (Outcome, PushResult) {
    (Outcome::Dead { error }, PushResult::Rejected)
}

fn again(after: Option<Duration>, error: String) -> (Outcome, PushResult) {
    (Outcome::Retry { after, error }, PushResult::Error)
}

fn judged_of(sent: Result<(), CallError>) -> (Outcome, PushResult) {
    match sent {
        Ok(()) => (Outcome::Sent, PushResult::Ok),
        Err(CallError::Refused { message, .. }) if message.contains("already exists") => {
            (Outcome::Sent, PushResult::Duplicate)
        }
        Err(error) => judged(error),
    }
}

fn judged(error: CallError) -> (Outcome, PushResult) {
    let text = error.to_string();
    if error.is_about_key() {
        return again(None, text);
    }
    match error {
        CallError::NotSent(_) => again(None, text),
        CallError::Unclear { retry_after, .. } => {
            let unclear = Outcome::Unclear {
                after: retry_after,
                error: text,
            };
            (unclear, PushResult::Error)
        }
        CallError::Refused {
            status: StatusCode::TOO_MANY_REQUESTS | StatusCode::CONFLICT,
            retry_after,
            ..
        } => again(retry_after, text),
        CallError::Refused { .. } => rejected(text),
    }
}
