//! The outbox's one way of sending: lease, attempt, then done, again later, or given up.
//!
//! What is to be sent is in the store before anybody tries to send it. Each kind has a [`Sender`] and a job of its own, so
//! that one whose other side is down holds up no other, and no request.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use serde::Serialize;

use crate::{
    clock::Clock,
    domain::{administrator::Actor, feature::FeatureKey, quantity::Quantity, time::Timestamp},
    services::AdminError,
    store::{
        SharedStore, StoreResult,
        outbox::{Ending, Finished, Kind, Lease, Leased, NewEntry, OutboxEntry, Replaying},
    },
    telemetry::{events, metrics::Metrics},
    web::Posted,
};

/// An entry whose sender died is due again after this. Longer than an attempt takes in a lane; elsewhere the lease is
/// renewed meanwhile.
pub const LEASE: Duration = Duration::from_secs(30);
/// In parts of a lease: one that could not be renewed once is still held.
const RENEWALS: u32 = 3;
/// The first pause is drawn from up to this; each further one from up to twice as much.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// What became of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Sent,
    /// It is done, and nothing of it is kept.
    Forget,
    Retry {
        /// When the other side wants it; `None`: after a pause that grows with the attempts.
        after: Option<Duration>,
        error: String,
    },
    /// As `Retry`, but the other side may have taken it.
    Unclear {
        after: Option<Duration>,
        error: String,
    },
    /// Whether the other side has it can't be told, and it must not be sent again.
    Uncertain {
        error: String,
    },
    Dead {
        error: String,
    },
}

impl From<Posted> for Outcome {
    fn from(posted: Posted) -> Self {
        match posted {
            Posted::Taken => Self::Sent,
            Posted::NotTaken { retry_after, error } => Self::Retry {
                after: retry_after,
                error,
            },
            Posted::Gone { error } => Self::Dead { error },
        }
    }
}

/// Sends entries of one kind.
pub trait Sender: Send + Sync {
    fn kind(&self) -> Kind;

    /// After so many attempts an entry is dead.
    fn most_attempts(&self) -> u32;

    /// How many entries one step takes at most.
    fn batch(&self) -> usize;

    /// How long the job waits when nothing is left to do.
    fn pause(&self) -> Duration;

    /// What others are to be told of an entry that is given up.
    fn given_up<'a>(
        &'a self,
        _entry: &'a Leased,
        _error: &'a str,
        _now: Timestamp,
    ) -> BoxFuture<'a, Vec<NewEntry>> {
        Box::pin(async move { Vec::new() })
    }

    /// Tries to send these, the oldest first; one outcome an entry, in the order given. Within the lease, if they are
    /// in lanes.
    fn send<'a>(&'a self, entries: &'a [Leased], now: Timestamp) -> BoxFuture<'a, Vec<Outcome>>;
}

/// One a kind that has somewhere to go.
pub type Senders = Vec<Arc<dyn Sender>>;

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing was due.
    Idle,
    /// Something ended; `is_more`: the step took as much as it may.
    Moved { is_more: bool },
    /// Nothing that was tried could be sent: the other side may be down.
    Failing,
}

/// An entry of the outbox (interface.md §4).
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct OutboxObject {
    pub identifier: String,
    /// `analytics.batch`, `notice`, `notice.check` or `stripe.meter_event`.
    pub kind: &'static str,
    /// Of a notice: its CloudEvents type; of a meter event: `usage`, `cancel`, or `canceled` by a later one.
    #[serde(rename = "type")]
    pub topic: Option<String>,
    pub tenant_slug: Option<String>,
    pub feature_key: Option<FeatureKey>,
    /// Of a batch: how many events; of a notice: the threshold in percent, if it is about one; of a meter event: how
    /// much, which a correction makes negative.
    #[schema(value_type = Option<i64>)]
    pub value: Option<Quantity>,
    /// Of a meter event: when it was used.
    pub about_at: Option<Timestamp>,
    /// `pending`, `sent`, `confirmed`, `uncertain` or `dead`.
    pub status: &'static str,
    pub attempts: u32,
    pub last_error: Option<String>,
    /// Null if it is not to be tried any more.
    pub next_attempt_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

impl From<OutboxEntry> for OutboxObject {
    fn from(entry: OutboxEntry) -> Self {
        Self {
            identifier: entry.identifier,
            kind: entry.kind.as_str(),
            topic: entry.topic,
            tenant_slug: entry.tenant_slug,
            feature_key: entry.feature,
            value: entry.value,
            status: entry.status.as_str(),
            attempts: entry.attempts,
            last_error: entry.last_error,
            about_at: entry.about_at.map(Timestamp::to_whole_second),
            next_attempt_at: entry.next_attempt_at.map(Timestamp::to_whole_second),
            created_at: entry.created_at.to_whole_second(),
        }
    }
}

/// Moves entries on.
#[derive(Clone)]
pub struct Outbox {
    pub store: SharedStore,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    /// [`LEASE`].
    pub lease: Duration,
    /// Draws a pause from up to this: [`jittered`].
    pub jitter: fn(Duration) -> Duration,
}

impl Outbox {
    /// Takes what is due of the sender's kind, has it sent, and writes down what became of it.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError) if the store is away: what was taken is due again when its lease ends, so
    /// it may be sent once more.
    pub async fn step(&self, sender: &dyn Sender) -> StoreResult<Progress> {
        let now = self.clock.now();
        let limit = sender.batch();
        let lease = Lease {
            kind: sender.kind(),
            now,
            until: now.plus(self.lease),
            limit,
        };
        let leased = self.store.lease(lease).await?;
        if leased.is_empty() {
            return Ok(Progress::Idle);
        }
        let outcomes = self.send(sender, &leased, now).await;
        let is_failing = outcomes.iter().all(|it| {
            matches!(
                it,
                Outcome::Retry { after: None, .. } | Outcome::Unclear { .. }
            )
        });
        let (tried_at, now) = (now, self.clock.now());
        let mut finished = Vec::with_capacity(leased.len());
        for (leased, outcome) in leased.iter().zip(outcomes) {
            let doubt_since = doubt_since(leased, &outcome, tried_at);
            let ending = ending(leased, outcome, sender.most_attempts(), self.jitter, now);
            let tell = match &ending {
                Ending::Dead { error } => sender.given_up(leased, error, now).await,
                Ending::Sent
                | Ending::Forgotten
                | Ending::Retry { .. }
                | Ending::Uncertain { .. } => Vec::new(),
            };
            finished.push(Finished {
                identifier: leased.identifier.clone(),
                attempts: leased.attempts,
                doubt_since,
                ending,
                tell,
            });
        }
        self.store.finish(&finished, now).await?;
        for (leased, it) in leased.iter().zip(&finished) {
            events::OutboxTried {
                kind: sender.kind(),
                entry: leased,
                ending: &it.ending,
            }
            .emit(&self.metrics);
        }
        Ok(if is_failing {
            Progress::Failing
        } else {
            Progress::Moved {
                is_more: leased.len() >= limit,
            }
        })
    }

    /// Has them sent, and nobody else take them meanwhile.
    async fn send(&self, sender: &dyn Sender, leased: &[Leased], now: Timestamp) -> Vec<Outcome> {
        let mut sending = sender.send(leased, now);
        loop {
            let part = tokio::time::timeout(self.lease / RENEWALS, &mut sending);
            if let Ok(outcomes) = part.await {
                return outcomes;
            }
            self.renew(sender, leased).await;
        }
    }

    async fn renew(&self, sender: &dyn Sender, leased: &[Leased]) {
        if leased.iter().all(|it| it.lane.is_some()) {
            return;
        }
        let until = self.clock.now().plus(self.lease);
        if let Err(error) = self.store.renew(leased, until).await {
            let kind = sender.kind().as_str();
            tracing::debug!(%error, kind, "leases can't be renewed; others may take what is being sent");
        }
    }

    /// Has a dead or uncertain entry sent again; audited.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` if it is neither dead nor uncertain; `Unavailable`.
    pub async fn replay(&self, identifier: &str, by: &Actor) -> Result<OutboxObject, AdminError> {
        replay(&self.store, identifier, by).await
    }
}

/// As [`Outbox::replay`], for callers that have a store only.
///
/// # Errors
/// As [`Outbox::replay`].
pub async fn replay(
    store: &SharedStore,
    identifier: &str,
    by: &Actor,
) -> Result<OutboxObject, AdminError> {
    // Twice: the clocks of replicas differ.
    match store.replay(identifier, 2 * LEASE, by).await? {
        Replaying::Replayed(entry) => Ok(entry.into()),
        Replaying::NotEnded(entry) => Err(AdminError::invalid(
            "identifier",
            format!("{identifier} ({})", entry.status.as_str()),
            "the identifier of an entry that is dead or uncertain",
        )),
        Replaying::NotFound => Err(AdminError::not_found("outbox entry", identifier)),
    }
}

fn ending(
    leased: &Leased,
    outcome: Outcome,
    most_attempts: u32,
    jitter: fn(Duration) -> Duration,
    now: Timestamp,
) -> Ending {
    match outcome {
        Outcome::Sent => Ending::Sent,
        Outcome::Forget => Ending::Forgotten,
        Outcome::Dead { error } => Ending::Dead { error },
        Outcome::Uncertain { error } => Ending::Uncertain { error },
        Outcome::Unclear { error, .. } if leased.attempts >= most_attempts => Ending::Uncertain {
            error: format!("given up after {} attempts: {error}", leased.attempts),
        },
        Outcome::Retry { error, .. } if leased.attempts >= most_attempts => Ending::Dead {
            error: format!("given up after {} attempts: {error}", leased.attempts),
        },
        Outcome::Retry { after, error } | Outcome::Unclear { after, error } => Ending::Retry {
            at: now.plus(after.unwrap_or_else(|| jitter(longest_pause(leased.attempts)))),
            error,
        },
    }
}

/// Since when it is not known whether an attempt arrived, this one included.
fn doubt_since(leased: &Leased, outcome: &Outcome, tried_at: Timestamp) -> Option<Timestamp> {
    match outcome {
        Outcome::Sent | Outcome::Forget => None,
        Outcome::Unclear { .. } => leased.doubt_since.or(Some(tried_at)),
        Outcome::Retry { .. } | Outcome::Uncertain { .. } | Outcome::Dead { .. } => {
            leased.doubt_since
        }
    }
}

/// The longest pause after so many attempts.
fn longest_pause(attempts: u32) -> Duration {
    let doubled = 2u32.saturating_pow(attempts.saturating_sub(1).min(20));
    FIRST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE)
}

/// Anything up to `longest`: what failed together does not come back together.
#[must_use]
pub fn jittered(longest: Duration) -> Duration {
    let micros = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(rand::random_range(0..=micros))
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;
    use crate::{
        clock::ManualClock,
        store::{outbox::OutboxFilter, sqlite::SqliteStore},
    };

    fn leased(attempts: u32) -> Leased {
        Leased {
            identifier: "a".to_owned(),
            topic: None,
            tenant: None,
            feature: None,
            value: None,
            lane: None,
            about_at: None,
            attempts,
            doubt_since: None,
            created_at: Timestamp::EPOCH,
            payload: String::new(),
        }
    }

    fn retry(after: Option<Duration>) -> Outcome {
        let error = "no".to_owned();
        Outcome::Retry { after, error }
    }

    #[test]
    fn pauses_double_up_to_an_hour_and_are_drawn_from_all_of_it() {
        let seconds = [
            (1, 1),
            (2, 2),
            (5, 16),
            (12, 2048),
            (13, 3600),
            (4_000_000, 3600),
        ];
        for (attempts, longest) in seconds {
            assert_eq!(
                longest_pause(attempts),
                Duration::from_secs(longest),
                "{attempts}"
            );
        }
        let draws: Vec<Duration> = (0..200).map(|_| jittered(LONGEST_PAUSE)).collect();
        assert!(draws.iter().all(|it| *it <= LONGEST_PAUSE));
        assert!(draws.iter().any(|it| *it < LONGEST_PAUSE / 4));
        assert!(draws.iter().any(|it| *it > LONGEST_PAUSE * 3 / 4));
    }

    #[test]
    fn the_other_sides_wish_goes_before_the_pause_and_the_last_attempt_is_the_end() {
        let now = Timestamp::from_seconds(1000);
        let wish = Duration::from_secs(77);
        let at = |ending| match ending {
            Ending::Retry { at, .. } => Some(at),
            _ => None,
        };
        assert_eq!(
            at(ending(&leased(1), retry(Some(wish)), 3, jittered, now)),
            Some(now.plus(wish))
        );
        assert!(
            at(ending(&leased(2), retry(None), 3, jittered, now))
                .is_some_and(|it| it <= now.plus(2 * FIRST_PAUSE))
        );
        let dead = ending(&leased(3), retry(Some(wish)), 3, jittered, now);
        assert_eq!(
            dead,
            Ending::Dead {
                error: "given up after 3 attempts: no".to_owned()
            }
        );
    }

    /// Looks at something until it is told to end.
    #[derive(Default)]
    struct Slow(Notify);

    impl Sender for Slow {
        fn kind(&self) -> Kind {
            Kind::NoticeCheck
        }

        fn most_attempts(&self) -> u32 {
            1
        }

        fn batch(&self) -> usize {
            16
        }

        fn pause(&self) -> Duration {
            Duration::ZERO
        }

        fn send<'a>(&'a self, entries: &'a [Leased], _: Timestamp) -> BoxFuture<'a, Vec<Outcome>> {
            Box::pin(async move {
                self.0.notified().await;
                vec![Outcome::Forget; entries.len()]
            })
        }
    }

    #[tokio::test]
    async fn what_takes_longer_than_a_lease_is_taken_by_nobody_else_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("tollgate.db")).unwrap();
        let clock = ManualClock::at(Timestamp::from_seconds(1000));
        let outbox = Outbox {
            store: Arc::new(store),
            clock: Clock::Manual(Arc::clone(&clock)),
            metrics: Arc::new(Metrics::new("redb")),
            lease: Duration::from_millis(300),
            jitter: |longest| longest,
        };
        let entry = NewEntry {
            identifier: "chk_1".to_owned(),
            kind: Kind::NoticeCheck,
            topic: None,
            tenant: None,
            feature: None,
            value: None,
            lane: None,
            about: None,
            payload: String::new(),
            created_at: clock.now(),
        };
        outbox.store.enqueue(&[entry]).await.unwrap();
        let filter = OutboxFilter::default();
        let listed = async || outbox.store.list_outbox(&filter, None, 9).await.unwrap();
        let sender = Slow::default();
        let others = async {
            for _ in 0..4 {
                let until = clock.now().plus(outbox.lease);
                while listed().await[0].next_attempt_at != Some(until) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                assert_eq!(outbox.step(&Slow::default()).await, Ok(Progress::Idle));
                clock.advance(outbox.lease * 2 / 3);
            }
            sender.0.notify_one();
        };
        let both = async { tokio::join!(outbox.step(&sender), others) };
        let (step, ()) = tokio::time::timeout(Duration::from_secs(20), both)
            .await
            .expect("the lease is renewed");
        assert_eq!(step, Ok(Progress::Moved { is_more: false }));
        assert_eq!(listed().await, []);
    }
}
