//! Buckets: the tenants that are lost, rebuilt and found again together.
//!
//! All keys of a bucket carry its hash tag, so the marker that says whether the bucket is in order lies where its
//! tenants lie and is looked at by every script. A single server has one bucket, a cluster 64, spread over it.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::link::{Fault, PATIENCE};
use crate::domain::ids::TenantId;

/// How many buckets a cluster's tenants are spread over.
pub(super) const IN_CLUSTER: usize = 64;

/// How a bucket does, as this node last saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing is asked of it until it answers its heartbeat again: a breaker that remembers.
    Down(Fault),
    /// Its totals were lost; nothing is decided until the nodes have told again what they know.
    Rebuilding(Arc<str>),
    Live(Arc<str>),
}

/// What a call is made for: an epoch of the bucket, between one outage and the next.
#[derive(Clone, Debug)]
pub(super) struct Term {
    pub(super) epoch: Arc<str>,
    outage: u64,
}

pub(super) struct Bucket {
    /// `tg:2:{3}:`
    pub(super) prefix: String,
    pub(super) marker: String,
    state: ArcSwap<State>,
    /// How often it was away so far.
    outages: AtomicU64,
    /// Heartbeats in a row without an answer.
    pub(super) misses: AtomicU32,
    /// Wakes the heartbeat: something was seen that it should look at.
    pub(super) wake: Notify,
    /// Told when the state may have changed.
    pub(super) turned: Notify,
    pub(super) memory: Mutex<Memory>,
    /// Held by whoever has totals of its tenants read anew and strikes them off those to be read.
    pub(super) anew: tokio::sync::Mutex<()>,
}

/// What the heartbeat remembers of a bucket.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    /// Nodes that lived at the last heartbeat, as the bucket itself may have forgotten.
    pub(super) peers: Vec<String>,
    /// The epoch in which this node has told everything it knows.
    pub(super) told: String,
    /// It was away since then.
    pub(super) was_down: bool,
}

impl Bucket {
    pub(super) fn new(index: usize) -> Self {
        let prefix = format!("tg:2:{{{index}}}:");
        Self {
            marker: format!("{prefix}epoch"),
            prefix,
            state: ArcSwap::from_pointee(State::Down(Fault::Away("not connected yet".to_owned()))),
            outages: AtomicU64::new(0),
            misses: AtomicU32::new(0),
            wake: Notify::new(),
            turned: Notify::new(),
            memory: Mutex::default(),
            anew: tokio::sync::Mutex::default(),
        }
    }

    /// What all keys of a tenant begin with.
    pub(super) fn root(&self, tenant: TenantId) -> String {
        format!("{}{}:", self.prefix, tenant.uuid().simple())
    }

    pub(super) fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// What to call scripts for.
    ///
    /// # Errors
    /// Why nothing is to be asked of it now.
    pub(super) fn term(&self) -> Result<Term, Fault> {
        let outage = self.outages(); // before the state, which turns first
        match &**self.state.load() {
            State::Down(fault) => Err(fault.clone()),
            State::Rebuilding(epoch) | State::Live(epoch) => Ok(Term {
                epoch: Arc::clone(epoch),
                outage,
            }),
        }
    }

    /// Whether it was away since a call was made: what answers now may be another server, which has something else in
    /// the same epoch until its first heartbeat.
    pub(super) fn was_away_since(&self, term: &Term) -> bool {
        term.outage != self.outages()
    }

    /// Whether it is in another epoch now than when a call was made, as far as this node knows.
    pub(super) fn is_past(&self, term: &Term) -> bool {
        match &**self.state.load() {
            State::Down(_) => false,
            State::Rebuilding(epoch) | State::Live(epoch) => *epoch != term.epoch,
        }
    }

    fn set(&self, state: State) {
        self.state.store(Arc::new(state));
        self.turned.notify_waiters();
    }

    /// How often it was away so far.
    pub(super) fn outages(&self) -> u64 {
        self.outages.load(Ordering::SeqCst)
    }

    /// Turns to what a heartbeat found that began after so many outages; `false`: there was another one since.
    pub(super) fn turn(&self, state: State, outages: u64) -> bool {
        let _against_fail = self.lock();
        let is_so = self.outages() == outages;
        if is_so && **self.state.load() != state {
            self.set(state);
        }
        is_so
    }

    /// Notes that a call failed: from now on none waits for it.
    pub(super) fn fail(&self, fault: &Fault) {
        let mut memory = self.lock();
        if !matches!(&**self.state.load(), State::Down(_)) {
            self.set(State::Down(told(fault)));
            self.outages.fetch_add(1, Ordering::SeqCst);
            memory.was_down = true;
            self.wake.notify_one();
        }
    }

    /// The same of the heartbeat, which also finds out why it still is away: that a password is wrong, say.
    pub(super) fn still_fails(&self, fault: &Fault) {
        self.fail(fault);
        if !matches!(fault, Fault::TimedOut) {
            self.set(State::Down(told(fault)));
        }
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note_miss(&self) -> u32 {
        self.misses.fetch_add(1, Ordering::Relaxed) + 1
    }
}

fn told(fault: &Fault) -> Fault {
    match fault {
        Fault::TimedOut => Fault::Away(format!("no answer within {} ms", PATIENCE.as_millis())),
        other => other.clone(),
    }
}
