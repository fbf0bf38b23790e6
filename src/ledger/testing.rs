//! What tests of ledgers are made of: a store and journal in memory, limits, requests and events in a few words.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::{
    Amount, BaseTotals, CounterKey, Hold, Ledger, LedgerAsk, LedgerError, OnViolation, Reserved,
    SharedBase, SumsOfEvents, Want,
};
use crate::{
    clock,
    domain::{
        feature::FeatureKey,
        ids::{EventId, KeyId, TenantId},
        limit::{ActiveLimit, LimitState, Scope, SoftLimitMode, Subject},
        quantity::Quantity,
        reservation::Reservation,
        time::Timestamp,
        usage::{Quantities, Source, UsageEvent},
        window::{Window, WindowKind},
    },
    store::usage::{CounterOf, Seq},
};

/// Journal and store at once: an event is durable when it is appended, and every sum covers all that is durable.
pub(super) struct FakeBase {
    events: Mutex<Vec<UsageEvent>>,
    /// How many of them the store has; only a shared ledger sees a difference.
    stored: AtomicU64,
    loads: AtomicU64,
    is_failing: AtomicBool,
    /// Each load takes one before it reads.
    gate: Semaphore,
}

impl FakeBase {
    /// Loads are answered at once.
    pub(super) fn open() -> Arc<Self> {
        Self::with_permits(Semaphore::MAX_PERMITS)
    }

    /// Loads wait until they are [let through](Self::let_through).
    pub(super) fn gated() -> Arc<Self> {
        Self::with_permits(0)
    }

    fn with_permits(permits: usize) -> Arc<Self> {
        Arc::new(Self {
            events: Mutex::default(),
            stored: AtomicU64::default(),
            loads: AtomicU64::default(),
            is_failing: AtomicBool::default(),
            gate: Semaphore::new(permits),
        })
    }

    pub(super) fn let_through(&self, loads: usize) {
        self.gate.add_permits(loads);
    }

    /// Loads wait again.
    pub(super) fn close(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub(super) fn fail(&self, is_failing: bool) {
        self.is_failing.store(is_failing, Ordering::SeqCst);
    }

    /// How many loads have been asked for.
    pub(super) fn loads(&self) -> u64 {
        self.loads.load(Ordering::SeqCst)
    }

    /// Waits until so many loads have been asked for.
    pub(super) async fn asked(&self, loads: u64) {
        while self.loads() < loads {
            tokio::task::yield_now().await;
        }
    }

    /// An event that the store has, by another node.
    pub(super) fn append_stored(&self, event: UsageEvent) -> Seq {
        let seq = self.append(event);
        self.store_upto(seq);
        seq
    }

    /// The store has the events up to here.
    pub(super) fn store_upto(&self, seq: Seq) {
        self.stored.store(seq.0, Ordering::SeqCst);
    }

    pub(super) fn stored(&self) -> Seq {
        Seq(self.stored.load(Ordering::SeqCst))
    }

    pub(super) fn append(&self, event: UsageEvent) -> Seq {
        let mut events = self.events.lock().unwrap();
        events.push(event);
        seq(events.len())
    }

    pub(super) fn last(&self) -> Seq {
        seq(self.events.lock().unwrap().len())
    }

    /// The events with `after < seq <= upto`.
    pub(super) fn between(&self, after: Seq, upto: Seq) -> Vec<(Seq, UsageEvent)> {
        let events = self.events.lock().unwrap();
        let numbered = events.iter().enumerate();
        numbered
            .map(|(index, event)| (seq(index + 1), event.clone()))
            .filter(|(seq, _)| after < *seq && *seq <= upto)
            .collect()
    }

    /// The sum of a counter over the events up to `upto`.
    pub(super) fn sum(&self, tenant: TenantId, counter: &CounterOf, upto: Seq) -> Quantity {
        let belongs = |event: &UsageEvent| {
            event.tenant_id == tenant
                && counter.window.contains(event.admitted_at)
                && match &counter.subject {
                    Subject::Tenant => true,
                    Subject::Key(key) => event.key_id == Some(*key),
                    Subject::User(user) => event.user == **user,
                }
        };
        self.between(Seq(0), upto)
            .iter()
            .filter(|(_, event)| belongs(event))
            .map(|(_, event)| event.quantities.of(&counter.feature))
            .sum()
    }
}

impl BaseTotals for FakeBase {
    fn load<'a>(
        &'a self,
        tenant: TenantId,
        counters: &'a [CounterOf],
    ) -> BoxFuture<'a, Result<(Vec<Quantity>, Seq), LedgerError>> {
        Box::pin(async move {
            self.loads.fetch_add(1, Ordering::SeqCst);
            let at_call = self.last();
            self.gate.acquire().await.unwrap().forget();
            if self.is_failing.load(Ordering::SeqCst) {
                return Err(LedgerError::Unavailable("the store is away".to_owned()));
            }
            // Both are allowed: all that is durable when it is read, or no more than was durable when it was asked.
            let covered = if self.loads().is_multiple_of(2) {
                at_call
            } else {
                self.last()
            };
            let sums = counters.iter().map(|it| self.sum(tenant, it, covered));
            Ok((sums.collect(), covered))
        })
    }
}

impl SharedBase for FakeBase {
    fn sums<'a>(
        &'a self,
        tenant: TenantId,
        counters: &'a [CounterOf],
        events: &'a [EventId],
    ) -> BoxFuture<'a, Result<SumsOfEvents, LedgerError>> {
        Box::pin(async move {
            if !counters.is_empty() {
                self.loads.fetch_add(1, Ordering::SeqCst);
                self.gate.acquire().await.unwrap().forget();
            }
            if self.is_failing.load(Ordering::SeqCst) {
                return Err(LedgerError::Unavailable("the store is away".to_owned()));
            }
            let stored = self.stored();
            let sums = counters.iter().map(|it| self.sum(tenant, it, stored));
            let known = self.between(Seq(0), stored).into_iter();
            let known = known.map(|(_, event)| event.event_id);
            let known = known.filter(|id| events.contains(id)).collect();
            Ok((sums.collect(), known))
        })
    }

    fn undrained(&self) -> BoxFuture<'_, Result<Vec<UsageEvent>, LedgerError>> {
        Box::pin(async move {
            let undrained = self.between(self.stored(), self.last()).into_iter();
            Ok(undrained.map(|(_, event)| event).collect())
        })
    }

    fn last_seq(&self) -> Seq {
        self.last()
    }

    fn reservations(&self) -> BoxFuture<'_, Result<Vec<Reservation>, LedgerError>> {
        Box::pin(async move { Ok(Vec::new()) })
    }
}

/// The journal's snapshot as a drain leaves it, up to an event.
#[derive(Default)]
pub(super) struct SnapshotRows {
    rows: HashMap<CounterKey, Quantity>,
    pub(super) upto: Seq,
}

impl SnapshotRows {
    /// Drains at most `count` events more; each row must be the sum of the events drained so far.
    pub(super) fn drain(&mut self, base: &FakeBase, ledger: &Ledger, count: u64) {
        let upto = base.last().min(Seq(self.upto.0 + count));
        let drained = now(ledger.drained(&base.between(self.upto, upto)));
        for key in &drained.removed {
            self.rows.remove(key);
        }
        self.rows.extend(drained.changed);
        self.upto = upto;
        for (key, value) in &self.rows {
            let sum = base.sum(key.tenant, &key.counter(), upto);
            assert_eq!(*value, sum, "{key:?} at {upto:?}");
        }
    }
}

/// What a future gives that waits for nothing, as those of a ledger in this process.
pub(super) fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("it waits for something")
}

fn seq(number: usize) -> Seq {
    Seq(u64::try_from(number).unwrap())
}

pub(super) fn tenant(number: u128) -> TenantId {
    TenantId::new(Uuid::from_u128(number))
}

pub(super) fn key(number: u128) -> KeyId {
    KeyId::new(Uuid::from_u128(number))
}

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(1_800_000_000 + seconds) // the start of a minute, an hour, but of no day
}

/// The window of `kind` around `now`; a period lasts ten minutes.
pub(super) fn window(kind: WindowKind, now: Timestamp) -> Window {
    let length = match kind {
        WindowKind::Minute => 60,
        WindowKind::Period => 600,
        WindowKind::Lifetime => return Window::new(Timestamp::EPOCH, Timestamp::NEVER).unwrap(),
        WindowKind::Hour | WindowKind::Day | WindowKind::Week | WindowKind::Month => 3600,
    };
    let start = now.seconds().div_euclid(length) * length;
    let [start, end] = [start, start + length].map(Timestamp::from_seconds);
    Window::new(start, end).unwrap()
}

pub(super) fn limit(
    feature: FeatureKey,
    scope: Scope,
    kind: WindowKind,
    hard: i64,
    now: Timestamp,
) -> ActiveLimit {
    ActiveLimit {
        feature,
        unit: "units".into(),
        scope,
        kind,
        window: window(kind, now),
        soft: None,
        hard: Some(Quantity::new(hard)),
        granted: Quantity::ZERO,
        is_own: false,
    }
}

/// A limit of messages for the whole tenant and for ever.
pub(super) fn messages(hard: i64) -> ActiveLimit {
    limit(
        FeatureKey::Messages,
        Scope::Tenant,
        WindowKind::Lifetime,
        hard,
        at(0),
    )
}

pub(super) fn exact(feature: FeatureKey, quantity: i64) -> Want {
    Want {
        feature,
        amount: Amount::Exact(Quantity::new(quantity)),
    }
}

pub(super) fn quantities(feature: FeatureKey, quantity: i64) -> Quantities {
    Quantities::default().with(feature, Quantity::new(quantity))
}

/// A [`LedgerAsk`] that owns what it says.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) tenant: TenantId,
    pub(super) key: Option<KeyId>,
    pub(super) user: String,
    pub(super) limits: Vec<ActiveLimit>,
    pub(super) wants: Vec<Want>,
    pub(super) on_violation: OnViolation,
    pub(super) now: Timestamp,
}

/// Tenant 1 wants one message.
pub(super) fn ask(limits: Vec<ActiveLimit>) -> Ask {
    Ask {
        tenant: tenant(1),
        key: None,
        user: String::new(),
        limits,
        wants: vec![exact(FeatureKey::Messages, 1)],
        on_violation: OnViolation::Refuse,
        now: at(0),
    }
}

impl Ask {
    pub(super) fn wanting(self, wants: Vec<Want>) -> Self {
        Self { wants, ..self }
    }

    pub(super) fn of_user(self, user: &str) -> Self {
        let user = user.to_owned();
        Self { user, ..self }
    }

    pub(super) fn at(self, now: Timestamp) -> Self {
        Self { now, ..self }
    }

    pub(super) async fn reserve(&self, ledger: &Ledger) -> Result<Reserved, LedgerError> {
        let ask = LedgerAsk {
            tenant: self.tenant,
            key: self.key,
            user: &self.user,
            limits: &self.limits.clone().into(),
            wants: &self.wants,
            soft: SoftLimitMode::Warn,
            on_violation: self.on_violation,
            request_id: "a-request",
            now: self.now,
        };
        ledger.reserve(&ask).await
    }

    pub(super) async fn hold(&self, ledger: &Ledger) -> Hold {
        match self.reserve(ledger).await.unwrap() {
            Reserved::Held(hold) => hold,
            Reserved::Over(over) => panic!("refused: {:?}", over.violations),
            Reserved::Elsewhen(theirs) => panic!("it is {theirs} there"),
        }
    }

    pub(super) async fn is_refused(&self, ledger: &Ledger) -> bool {
        matches!(self.reserve(ledger).await.unwrap(), Reserved::Over(_))
    }

    pub(super) async fn states(&self, ledger: &Ledger) -> Vec<LimitState> {
        self.try_states(ledger).await.unwrap()
    }

    pub(super) async fn try_states(&self, ledger: &Ledger) -> Result<Vec<LimitState>, LedgerError> {
        let Self {
            tenant,
            key,
            user,
            limits,
            now,
            ..
        } = self;
        ledger
            .states(*tenant, *key, user, &limits.clone().into(), *now)
            .await
    }

    /// Settled and reserved of every limit.
    pub(super) async fn totals(&self, ledger: &Ledger) -> Vec<(i64, i64)> {
        let states = self.states(ledger).await;
        let totals = states
            .iter()
            .map(|it| (it.settled.get(), it.reserved.get()));
        totals.collect()
    }

    /// The event of a request like this one that used `used`.
    pub(super) fn event(&self, used: Quantities) -> UsageEvent {
        UsageEvent {
            event_id: EventId::new(clock::new_id()),
            request_id: "a-request".to_owned(),
            source: Source::Chat,
            tenant_id: self.tenant,
            key_id: self.key,
            user: self.user.clone(),
            model: None,
            quantities: used,
            estimated: false,
            reason: None,
            price_id: None,
            admitted_at: self.now,
            recorded_at: self.now,
        }
    }
}
