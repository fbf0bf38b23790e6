//! The only source of time and of new ids, so that a test can hold both.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use uuid::Uuid;

use crate::domain::time::Timestamp;

/// Where `now` comes from.
#[derive(Clone, Debug)]
pub enum Clock {
    System,
    /// The system's, but for what it differs from the clock that replicas share.
    Shared(Arc<SharedClock>),
    /// Moves only when told to.
    Manual(Arc<ManualClock>),
}

impl Clock {
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the system's clock"
    )]
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => {
                let since_epoch = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                Timestamp::EPOCH.plus(since_epoch)
            }
            Self::Shared(clock) => clock.now(),
            Self::Manual(clock) => clock.now(),
        }
    }
}

/// A difference that is no reason to follow: it is less than what windows are long, and clocks that jump are worse.
const FOLLOWED_FROM_MICROS: u64 = 50_000;

/// A clock that follows another one.
#[derive(Debug, Default)]
pub struct SharedClock {
    /// µs that the other is ahead of this machine's.
    ahead: AtomicI64,
    /// µs that this machine's clock is made to be off, for tests.
    skew: i64,
}

impl SharedClock {
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// On a machine whose clock is off by so many µs.
    #[must_use]
    pub fn skewed(skew: i64) -> Arc<Self> {
        Arc::new(Self {
            ahead: AtomicI64::new(0),
            skew,
        })
    }

    #[must_use]
    pub fn now(&self) -> Timestamp {
        let own = Clock::System.now().micros();
        let ahead = self.ahead.load(Ordering::Relaxed);
        Timestamp::from_micros(own.saturating_add(self.skew).saturating_add(ahead))
    }

    /// Takes note of what the other says it is.
    pub fn follow(&self, theirs: Timestamp) {
        let behind = theirs.micros().saturating_sub(self.now().micros());
        if behind.unsigned_abs() >= FOLLOWED_FROM_MICROS {
            self.ahead.fetch_add(behind, Ordering::Relaxed);
        }
    }
}

/// A clock for tests.
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    #[must_use]
    pub fn at(now: Timestamp) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(now.micros())))
    }

    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }

    pub fn set(&self, now: Timestamp) {
        self.0.store(now.micros(), Ordering::SeqCst);
    }

    pub fn advance(&self, by: Duration) {
        self.set(self.now().plus(by));
    }
}

/// A new time-ordered id (RFC 9562, version 7).
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that makes new ids"
)]
pub fn new_id() -> Uuid {
    Uuid::now_v7()
}
