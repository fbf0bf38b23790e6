//! Random histories against a model: requests, reports, changed limits, clocks set on and back, slow, failing and
//! cancelled loads, evictions, drains and crashes, in any order. The model is the list of durable events and the list
//! of open holds; every counter must be the sum of the ones that belong to it, whatever happened.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use proptest::prelude::*;

use super::{
    CounterKey, Hold, Ledger, LedgerError, LocalLedger, OnViolation, Reserved,
    subjects::{SubjectRef, Who},
    testing::{Ask, FakeBase, at, exact, key, limit, now, tenant},
};
use crate::{
    domain::{
        feature::FeatureKey::{Messages, OutputTokens},
        ids::ReservationId,
        limit::{ActiveLimit, Scope},
        quantity::Quantity,
        time::Timestamp,
        usage::{Quantities, UsageEvent},
        window::WindowKind::{Lifetime, Minute, Period},
    },
    store::usage::{CounterOf, Seq},
};

#[derive(Clone, Copy, Debug)]
struct Caller {
    tenant: u128,
    key: Option<u128>,
    user: usize,
}

const USERS: [&str; 3] = ["", "ann", "bob"];

#[derive(Clone, Debug)]
enum Op {
    Reserve(Caller, i64, i64),
    /// A hold's usage becomes durable; its settle comes later.
    Append(usize, i64, i64),
    /// Usage without a hold becomes durable, dated so many seconds off the present.
    Report(Caller, i64, i64),
    /// A durable event reaches the ledger.
    Apply(usize),
    Drop(usize),
    Release(usize),
    SetLimits(usize),
    /// The clock goes on, or back.
    Tick(i64),
    LetThrough(usize),
    Fail(bool),
    Cancel(usize),
    /// So many events go to the store; whether the journal's own transaction then succeeds.
    Drain(usize, bool),
    Crash,
    Check,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let caller = || {
        (1_u128..4, proptest::option::of(1_u128..3), 0..USERS.len())
            .prop_map(|(tenant, key, user)| Caller { tenant, key, user })
    };
    let any_of = || 0_usize..8;
    let op = prop_oneof![
        8 => (caller(), 0_i64..3, 0_i64..40).prop_map(|(it, m, o)| Op::Reserve(it, m, o)),
        5 => (any_of(), 0_i64..3, 0_i64..60).prop_map(|(it, m, o)| Op::Append(it, m, o)),
        2 => (caller(), -2_i64..4, -400_i64..300).prop_map(|(it, m, off)| Op::Report(it, m, off)),
        6 => any_of().prop_map(Op::Apply),
        2 => any_of().prop_map(Op::Drop),
        1 => any_of().prop_map(Op::Release),
        2 => (0_usize..4).prop_map(Op::SetLimits),
        2 => (-400_i64..900).prop_map(Op::Tick),
        4 => (1_usize..3).prop_map(Op::LetThrough),
        1 => any::<bool>().prop_map(Op::Fail),
        1 => any_of().prop_map(Op::Cancel),
        3 => (1_usize..6, prop_oneof![4 => Just(true), 1 => Just(false)])
            .prop_map(|(count, written)| Op::Drain(count, written)),
        1 => Just(Op::Crash),
        1 => Just(Op::Check),
    ];
    proptest::collection::vec(op, 1..120)
}

struct Open {
    hold: Hold,
    ask: Ask,
    /// Released by hand, it holds nothing any more.
    is_released: bool,
}

/// A durable event that the ledger has not been told of.
struct Unapplied {
    open: Option<Open>,
    seq: Seq,
    event: UsageEvent,
}

type Reserving = Pin<Box<dyn Future<Output = Result<Reserved, LedgerError>>>>;

struct World {
    base: Arc<FakeBase>,
    ledger: Ledger,
    open: Vec<Open>,
    unapplied: Vec<Unapplied>,
    pending: Vec<(Ask, Reserving)>,
    snapshot: HashMap<CounterKey, Quantity>,
    marked: Seq,
    limits: usize,
    now: Timestamp,
    latest_now: Timestamp,
}

/// Room for two of three tenants, and for three of five keys and users.
fn small(base: &Arc<FakeBase>) -> Ledger {
    let base = Arc::clone(base);
    Ledger::Local(LocalLedger::with_members(base, 2, 3))
}

fn limits(set: usize, now: Timestamp) -> Vec<ActiveLimit> {
    let all = [
        limit(Messages, Scope::Tenant, Period, 12, now),
        limit(OutputTokens, Scope::Tenant, Lifetime, 400, now),
        limit(Messages, Scope::User, Minute, 3, now),
        limit(OutputTokens, Scope::Key, Period, 90, now),
        limit(Messages, Scope::Tenant, Lifetime, 60, now),
    ];
    let chosen: &[usize] = [&[0, 1][..], &[0, 1, 2, 3], &[1, 3, 4, 4], &[]][set];
    chosen.iter().map(|&index| all[index].clone()).collect()
}

fn used(messages: i64, output: i64) -> Quantities {
    [(Messages, messages), (OutputTokens, output)]
        .map(|(feature, quantity)| (feature, Quantity::new(quantity)))
        .into_iter()
        .collect()
}

fn picked<T>(list: &[T], index: usize) -> Option<usize> {
    (!list.is_empty()).then(|| index % list.len())
}

impl World {
    fn new() -> Self {
        let base = FakeBase::gated();
        Self {
            ledger: small(&base),
            base,
            open: Vec::new(),
            unapplied: Vec::new(),
            pending: Vec::new(),
            snapshot: HashMap::new(),
            marked: Seq(0),
            limits: 0,
            now: at(0),
            latest_now: at(0),
        }
    }

    fn ask(&self, caller: Caller, messages: i64, output: i64) -> Ask {
        Ask {
            tenant: tenant(caller.tenant),
            key: caller.key.map(key),
            user: USERS[caller.user].to_owned(),
            limits: limits(self.limits, self.now),
            wants: vec![exact(Messages, messages), exact(OutputTokens, output)],
            on_violation: OnViolation::Refuse,
            now: self.now,
        }
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Reserve(caller, messages, output) => {
                let ask = self.ask(caller, messages, output);
                let (ledger, asked) = (self.ledger.clone(), ask.clone());
                let reserving = async move { asked.reserve(&ledger).await };
                self.pending.push((ask, Box::pin(reserving)));
            }
            Op::Append(index, messages, output) => self.append(index, messages, output),
            Op::Report(caller, messages, off) => {
                let mut event = self.ask(caller, 0, 0).event(used(messages, 0));
                event.admitted_at = Timestamp::from_seconds(self.now.seconds() + off);
                let seq = self.base.append(event.clone());
                let open = None;
                self.unapplied.push(Unapplied { open, seq, event });
            }
            Op::Apply(index) => {
                if let Some(index) = picked(&self.unapplied, index) {
                    self.apply(index);
                }
            }
            Op::Drop(index) => {
                if let Some(index) = picked(&self.open, index) {
                    self.open.swap_remove(index);
                }
            }
            Op::Release(index) => {
                if let Some(index) = picked(&self.open, index) {
                    let open = &mut self.open[index];
                    let was_open = now(self.ledger.release(None, open.hold.id()));
                    assert_eq!(was_open, !open.is_released);
                    open.is_released = true;
                }
            }
            Op::SetLimits(set) => self.limits = set,
            Op::Tick(seconds) => {
                self.now = Timestamp::from_seconds(self.now.seconds() + seconds);
                self.latest_now = self.latest_now.max(self.now);
            }
            Op::LetThrough(loads) => self.base.let_through(loads),
            Op::Fail(is_failing) => self.base.fail(is_failing),
            Op::Cancel(index) => {
                if let Some(index) = picked(&self.pending, index) {
                    drop(self.pending.swap_remove(index));
                }
            }
            Op::Drain(count, is_written) => self.drain(count, is_written),
            Op::Crash => self.crash(),
            Op::Check => self.check(),
        }
        self.poll_pending();
    }

    fn append(&mut self, index: usize, messages: i64, output: i64) {
        if let Some(index) = picked(&self.open, index) {
            let open = self.open.swap_remove(index);
            let event = open.ask.event(used(messages, output));
            let seq = self.base.append(event.clone());
            self.unapplied.push(Unapplied {
                open: Some(open),
                seq,
                event,
            });
        }
    }

    fn apply(&mut self, index: usize) {
        let Unapplied { open, seq, event } = self.unapplied.swap_remove(index);
        match open {
            Some(open) => now(open.hold.settle(seq, &event)),
            None => now(self.ledger.record(seq, &event, &|_| None)),
        };
    }

    fn drain(&mut self, count: usize, is_written: bool) {
        let upto = Seq(self.marked.0 + u64::try_from(count).unwrap()).min(self.base.last());
        if upto == self.marked {
            return;
        }
        let drained = now(self.ledger.drained(&self.base.between(self.marked, upto)));
        for (key, _) in &drained.changed {
            assert!(!drained.removed.contains(key), "{key:?} is in both lists");
        }
        if !is_written {
            return;
        }
        self.marked = upto;
        for key in &drained.removed {
            self.snapshot.remove(key);
        }
        self.snapshot.extend(drained.changed);
        for (key, value) in &self.snapshot {
            let CounterKey {
                tenant,
                subject,
                feature,
                window,
            } = key.clone();
            let counter = CounterOf {
                subject,
                feature,
                window,
            };
            let sum = self.base.sum(tenant, &counter, self.marked);
            assert_eq!(*value, sum, "row {key:?} at {:?}", self.marked);
        }
    }

    /// The process ends with all it held, and starts again from snapshot and journal.
    fn crash(&mut self) {
        self.pending.clear();
        self.open.clear();
        self.unapplied.clear();
        // Nothing remembers the clock over a restart: it may be back by the minute that events' dates leave.
        let least = Timestamp::from_seconds(self.latest_now.seconds() - 60);
        self.now = self.now.max(least);
        self.ledger = small(&self.base);
        let undrained = self.base.between(self.marked, self.base.last());
        let snapshot = self.snapshot.clone().into_iter().collect();
        self.ledger
            .restore(snapshot, &undrained, self.marked, self.now);
    }

    fn poll_pending(&mut self) {
        for (ask, mut reserving) in std::mem::take(&mut self.pending) {
            match reserving
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
            {
                Poll::Pending => self.pending.push((ask, reserving)),
                Poll::Ready(Ok(Reserved::Held(hold))) => self.admitted(hold, ask),
                Poll::Ready(Ok(Reserved::Over(over))) => assert!(!over.violations.is_empty()),
                Poll::Ready(Err(LedgerError::Unavailable(_))) => {}
                Poll::Ready(Ok(Reserved::Elsewhen(_)) | Err(LedgerError::TimedOut)) => {
                    panic!("nothing is asked of anybody else")
                }
            }
        }
    }

    fn admitted(&mut self, hold: Hold, ask: Ask) {
        let is_released = false;
        self.open.push(Open {
            hold,
            ask,
            is_released,
        });
        let Open { hold, ask, .. } = self.open.last().unwrap();
        for state in hold.states().iter() {
            let limit = &state.limit;
            if hold.granted(&limit.feature) > Quantity::ZERO {
                let taken = self
                    .least_settled(ask, limit)
                    .plus(self.reserved(ask, limit));
                assert!(taken <= limit.hard.unwrap(), "{taken} is over {limit:?}");
            }
        }
    }

    /// What open holds hold of the counter that `limit` has for the caller of `ask`.
    fn reserved(&self, ask: &Ask, limit: &ActiveLimit) -> Quantity {
        let subject = subject(ask, limit).unwrap();
        let appended = self.unapplied.iter().filter_map(|it| it.open.as_ref());
        self.open
            .iter()
            .chain(appended)
            .filter(|open| !open.is_released && open.ask.tenant == ask.tenant)
            .filter(|open| limit.window.contains(open.ask.now))
            .filter(|open| who(&open.ask).subjects().any(|it| it == subject))
            .map(|open| open.hold.granted(&limit.feature))
            .sum()
    }

    fn durable(&self, ask: &Ask, limit: &ActiveLimit) -> Quantity {
        let counter = CounterOf {
            subject: subject(ask, limit).unwrap().into(),
            feature: limit.feature.clone(),
            window: limit.window,
        };
        self.base.sum(ask.tenant, &counter, self.base.last())
    }

    /// The durable sum without (`above`: or only with) what raises it of the events that are not applied: a load may
    /// have brought any of them in before.
    fn bound(
        &self,
        ask: &Ask,
        limit: &ActiveLimit,
        is_raised: impl Fn(Quantity) -> bool,
    ) -> Quantity {
        let subject = subject(ask, limit).unwrap();
        let unapplied = self.unapplied.iter().map(|it| &it.event);
        let open: Quantity = unapplied
            .filter(|it| it.tenant_id == ask.tenant && limit.window.contains(it.admitted_at))
            .filter(|it| {
                let (key, user) = (it.key_id, &*it.user);
                Who { key, user }.subjects().any(|it| it == subject)
            })
            .map(|it| it.quantities.of(&limit.feature))
            .filter(|quantity| is_raised(*quantity))
            .sum();
        self.durable(ask, limit).minus(open)
    }

    fn least_settled(&self, ask: &Ask, limit: &ActiveLimit) -> Quantity {
        self.bound(ask, limit, |quantity| quantity > Quantity::ZERO)
    }

    fn most_settled(&self, ask: &Ask, limit: &ActiveLimit) -> Quantity {
        self.bound(ask, limit, |quantity| quantity < Quantity::ZERO)
    }

    /// Lets all requests end, then compares every counter that the limits in force have.
    fn check(&mut self) {
        self.base.fail(false);
        self.base.let_through(1_000_000);
        while !self.pending.is_empty() {
            self.poll_pending();
        }
        for tenant in 1..4 {
            for key in [None, Some(1), Some(2)] {
                for user in 0..USERS.len() {
                    let ask = self.ask(Caller { tenant, key, user }, 0, 0);
                    for state in now(ask.states(&self.ledger)) {
                        let limit = &state.limit;
                        assert_eq!(state.reserved, self.reserved(&ask, limit), "{ask:?}");
                        let least = self.least_settled(&ask, limit);
                        let most = self.most_settled(&ask, limit);
                        let settled = state.settled;
                        assert!(
                            least <= settled && settled <= most,
                            "{least} <= {settled} <= {most}: {ask:?} {limit:?}"
                        );
                    }
                }
            }
        }
        self.base.close();
        let held = self.ledger.in_flight().held;
        let open = self.open.iter();
        let open = open.chain(self.unapplied.iter().filter_map(|it| it.open.as_ref()));
        let open: Vec<ReservationId> = open
            .filter(|open| !open.is_released)
            .map(|open| open.hold.id())
            .collect();
        assert_eq!(held, u64::try_from(open.len()).unwrap());
    }

    /// Everything in flight ends; nothing may be left of it.
    fn end(&mut self) {
        self.check();
        self.open.clear();
        while !self.unapplied.is_empty() {
            self.apply(0);
        }
        self.check();
        self.drain(usize::MAX / 2, true);
        self.crash();
        self.check();
    }
}

fn who(ask: &Ask) -> Who<'_> {
    Who {
        key: ask.key,
        user: &ask.user,
    }
}

fn subject<'a>(ask: &'a Ask, limit: &ActiveLimit) -> Option<SubjectRef<'a>> {
    who(ask).in_scope(limit.scope)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn every_counter_is_the_sum_of_its_events_and_holds_through_any_history(ops in ops()) {
        let mut world = World::new();
        for op in &ops {
            world.run(op);
        }
        world.end();
    }
}
