//! The cases that every ledger passes. A backend brings its opener and can't forget a case.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::{
    Hold, Ledger, LedgerError, OnViolation, Over, Reserved, Settled,
    testing::{Ask, FakeBase, ask, at, exact, key, limit, messages, quantities, tenant, window},
};
use crate::{
    domain::{
        feature::FeatureKey::{InputTokens, Messages, OutputTokens},
        limit::Scope,
        quantity::Quantity,
        usage::{Quantities, UsageEvent},
        window::WindowKind::{Hour, Lifetime, Minute, Period},
    },
    store::usage::Seq,
};

macro_rules! ledger_cases {
    ($case:ident) => {
        $case!(a_request_is_held_under_all_limits_or_under_none);
        $case!(a_dropped_hold_gives_everything_back);
        $case!(settling_replaces_what_was_held_by_what_was_used);
        $case!(more_than_was_held_is_taken_and_counted_as_overshoot);
        $case!(overshoot_counts_only_what_is_new);
        $case!(exactly_the_limit_is_admitted_among_many_at_once);
        $case!(a_key_limit_counts_each_key_and_nobody_without_one);
        $case!(users_have_a_counter_each_and_the_unnamed_share_one);
        $case!(two_limits_of_one_window_share_one_counter);
        $case!(a_feature_without_limits_is_held_nowhere);
        $case!(usage_stays_in_the_window_its_request_was_admitted_in);
        $case!(a_new_window_starts_at_zero_without_a_load);
        $case!(a_window_of_the_past_is_loaded);
        $case!(a_changed_limit_keeps_the_counter);
        $case!(a_limit_added_later_starts_from_the_store_and_counts_what_is_in_flight);
        $case!(a_limit_added_in_flight_receives_the_settle_once);
        $case!(a_refusal_says_what_stood_against_it);
        $case!(noted_violations_hold_all_that_was_asked);
        $case!(recorded_usage_counts_whatever_the_limit_says);
        $case!(usage_of_a_tenant_not_in_memory_is_loaded_later);
        $case!(one_load_serves_all_who_wait);
        $case!(a_failed_load_fails_all_who_wait_and_leaves_nothing);
        $case!(a_cancelled_load_is_taken_over);
        $case!(what_is_settled_during_a_load_counts_once);
        $case!(a_hold_released_by_hand_still_settles);
        $case!(open_holds_can_be_seen);
    };
}
pub(crate) use ledger_cases;

/// Those of a ledger whose totals lie in this process, and in the journal while that does not run.
macro_rules! snapshot_cases {
    ($case:ident) => {
        $case!(snapshot_and_undrained_events_give_the_totals_again);
        $case!(a_drain_that_was_not_written_comes_again);
        $case!(an_event_drained_before_it_is_settled_is_in_its_row);
        $case!(a_counter_that_knows_more_than_the_drained_events_waits_for_them);
    };
}
pub(crate) use snapshot_cases;

/// Makes the ledger that a case runs on, more than once where it restarts.
pub(super) trait Open: AsyncFn(Arc<FakeBase>) -> Ledger {}

impl<F: AsyncFn(Arc<FakeBase>) -> Ledger> Open for F {}

/// Has an event become durable and settles a hold with it.
async fn settle(base: &FakeBase, hold: Hold, event: UsageEvent) -> Settled {
    let seq = base.append(event.clone());
    hold.settle(seq, &event).await
}

async fn start(open: impl Open) -> (Arc<FakeBase>, Ledger) {
    let base = FakeBase::open();
    (Arc::clone(&base), open(base).await)
}

/// One message and some output, both limited.
fn chat() -> Ask {
    let output = limit(OutputTokens, Scope::Tenant, Lifetime, 100, at(0));
    ask(vec![messages(10), output]).wanting(vec![exact(Messages, 1), exact(OutputTokens, 60)])
}

fn used(messages: i64, output: i64) -> Quantities {
    quantities(Messages, messages).with(OutputTokens, Quantity::new(output))
}

pub(super) async fn a_request_is_held_under_all_limits_or_under_none(open: impl Open) {
    let (_, ledger) = start(open).await;
    let hold = chat().hold(&ledger).await;
    assert_eq!(hold.granted(&OutputTokens), Quantity::new(60));
    let seen: Vec<i64> = hold.states().iter().map(|it| it.reserved.get()).collect();
    assert_eq!(seen, [1, 60], "the own hold is in the states at admission");

    assert!(chat().is_refused(&ledger).await, "60 + 60 > 100");
    assert_eq!(chat().totals(&ledger).await, [(0, 1), (0, 60)]);
}

pub(super) async fn a_dropped_hold_gives_everything_back(open: impl Open) {
    let (_, ledger) = start(open).await;
    let hold = chat().hold(&ledger).await;
    drop(hold);
    assert_eq!(chat().totals(&ledger).await, [(0, 0), (0, 0)]);
    assert_eq!(ledger.ended().released, 1);
}

pub(super) async fn settling_replaces_what_was_held_by_what_was_used(open: impl Open) {
    let (base, ledger) = start(open).await;
    let hold = chat().hold(&ledger).await;
    let settled = settle(&base, hold, chat().event(used(1, 7))).await;
    let states: Vec<(i64, i64)> = settled
        .states
        .iter()
        .map(|it| (it.settled.get(), it.reserved.get()))
        .collect();
    assert_eq!(states, [(1, 0), (7, 0)]);
    assert!(settled.overshoot.is_empty());
    assert_eq!(chat().totals(&ledger).await, [(1, 0), (7, 0)]);
    assert_eq!(ledger.ended().settled, 1);
}

pub(super) async fn more_than_was_held_is_taken_and_counted_as_overshoot(open: impl Open) {
    let (base, ledger) = start(open).await;
    let hold = chat().hold(&ledger).await;
    let settled = settle(&base, hold, chat().event(used(1, 130))).await;
    assert_eq!(settled.overshoot, quantities(OutputTokens, 30));
}

pub(super) async fn overshoot_counts_only_what_is_new(open: impl Open) {
    let (base, ledger) = start(open).await;
    let minute = limit(OutputTokens, Scope::Tenant, Minute, 50, at(0));
    let hour = limit(OutputTokens, Scope::Tenant, Hour, 80, at(0));
    let ask = ask(vec![minute, hour]).wanting(vec![exact(OutputTokens, 10)]);
    let (first, second) = (ask.hold(&ledger).await, ask.hold(&ledger).await);

    let settled = settle(&base, first, ask.event(quantities(OutputTokens, 90))).await;
    assert_eq!(
        settled.overshoot,
        quantities(OutputTokens, 40),
        "the larger one"
    );
    let settled = settle(&base, second, ask.event(quantities(OutputTokens, 5))).await;
    assert_eq!(settled.overshoot, quantities(OutputTokens, 5));
}

pub(super) async fn exactly_the_limit_is_admitted_among_many_at_once(open: impl Open) {
    const LIMIT: usize = 300;
    let (base, ledger) = start(open).await;
    let limit = i64::try_from(LIMIT).unwrap();
    let ask = ask(vec![messages(limit)]);
    let settled: usize = std::thread::scope(|threads| {
        let run = |thread| {
            let (base, ledger, ask) = (&base, &ledger, &ask);
            move || on_its_own(settle_some(base, ledger, ask, thread))
        };
        let running: Vec<_> = (0..8).map(|thread| threads.spawn(run(thread))).collect();
        let settled = running.into_iter().map(|it| it.join().unwrap());
        settled.sum()
    });
    assert_eq!(settled, LIMIT);
    assert_eq!(ask.totals(&ledger).await, [(limit, 0)]);
}

fn on_its_own<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.unwrap().block_on(future)
}

/// Reserves one message over and over; two of three are settled, the third is dropped.
async fn settle_some(base: &FakeBase, ledger: &Ledger, ask: &Ask, thread: usize) -> usize {
    let mut settled = 0;
    for round in 0..400 {
        let Reserved::Held(hold) = ask.reserve(ledger).await.unwrap() else {
            continue;
        };
        if !(thread + round).is_multiple_of(3) {
            settle(base, hold, ask.event(quantities(Messages, 1))).await;
            settled += 1;
        }
    }
    settled
}

pub(super) async fn a_key_limit_counts_each_key_and_nobody_without_one(open: impl Open) {
    let (_, ledger) = start(open).await;
    let per_key = ask(vec![limit(Messages, Scope::Key, Lifetime, 1, at(0))]);
    let of_key = |number| Ask {
        key: Some(key(number)),
        ..per_key.clone()
    };
    let _first = of_key(1).hold(&ledger).await;
    assert!(of_key(1).is_refused(&ledger).await);
    let _second = of_key(2).hold(&ledger).await;
    let keyless = (per_key.hold(&ledger).await, per_key.hold(&ledger).await);
    assert!(keyless.0.states().is_empty());
}

pub(super) async fn users_have_a_counter_each_and_the_unnamed_share_one(open: impl Open) {
    let (_, ledger) = start(open).await;
    let per_user = ask(vec![limit(Messages, Scope::User, Lifetime, 1, at(0))]);
    let _unnamed = per_user.hold(&ledger).await;
    assert!(per_user.is_refused(&ledger).await);
    let ann = per_user.clone().of_user("ann");
    let _ann = ann.hold(&ledger).await;
    assert!(ann.is_refused(&ledger).await);
    let _bob = per_user.of_user("bob").hold(&ledger).await;
}

pub(super) async fn two_limits_of_one_window_share_one_counter(open: impl Open) {
    let (base, ledger) = start(open).await;
    // A billing period that is the calendar month has the month's window.
    let month = messages(5);
    let period = messages(3);
    let ask = ask(vec![month, period]);
    let hold = ask.hold(&ledger).await;
    assert_eq!(ask.totals(&ledger).await, [(0, 1), (0, 1)]);
    settle(&base, hold, ask.event(quantities(Messages, 1))).await;
    assert_eq!(ask.totals(&ledger).await, [(1, 0), (1, 0)]);
}

pub(super) async fn a_feature_without_limits_is_held_nowhere(open: impl Open) {
    let (_, ledger) = start(open).await;
    let ask = ask(vec![messages(1)]).wanting(vec![exact(InputTokens, 1 << 40)]);
    let hold = ask.hold(&ledger).await;
    assert_eq!(hold.granted(&InputTokens), Quantity::new(1 << 40));
    assert_eq!(ask.totals(&ledger).await, [(0, 0)]);
}

pub(super) async fn usage_stays_in_the_window_its_request_was_admitted_in(open: impl Open) {
    let (base, ledger) = start(open).await;
    let minute = |seconds| {
        let limits = vec![limit(Messages, Scope::Tenant, Minute, 1, at(seconds))];
        ask(limits).at(at(seconds))
    };
    let before = minute(59);
    let hold = before.hold(&ledger).await;
    let after = minute(60);
    assert_eq!(after.totals(&ledger).await, [(0, 0)]);
    let settled = settle(&base, hold, before.event(quantities(Messages, 1))).await;
    assert_eq!(settled.states.to_vec()[0].settled, Quantity::ONE);
    assert_eq!(
        settled.states.to_vec()[0].limit.window,
        window(Minute, at(59))
    );
    assert_eq!(
        after.totals(&ledger).await,
        [(0, 0)],
        "the new window has all"
    );
    assert_eq!(before.totals(&ledger).await, [(1, 0)]);
}

pub(super) async fn a_new_window_starts_at_zero_without_a_load(open: impl Open) {
    let (base, ledger) = start(open).await;
    let minute = |seconds| {
        let limits = vec![limit(Messages, Scope::Tenant, Minute, 1, at(seconds))];
        ask(limits).at(at(seconds))
    };
    assert_eq!(minute(0).totals(&ledger).await, [(0, 0)]);
    assert_eq!(base.loads(), 1);
    // Ten minutes later no event can lie ahead that was there before the tenant was.
    let hold = minute(600).hold(&ledger).await;
    assert_eq!(base.loads(), 1);
    settle(&base, hold, minute(600).event(quantities(Messages, 1))).await;
    assert_eq!(minute(600).totals(&ledger).await, [(1, 0)]);
}

pub(super) async fn a_window_of_the_past_is_loaded(open: impl Open) {
    let (base, ledger) = start(open).await;
    let minute = |seconds| {
        let limits = vec![limit(Messages, Scope::Tenant, Minute, 9, at(seconds))];
        ask(limits).at(at(seconds))
    };
    minute(6000).totals(&ledger).await;
    base.append_stored(minute(0).event(quantities(Messages, 4)));
    // The clock was set back.
    assert_eq!(minute(0).totals(&ledger).await, [(4, 0)]);
    assert_eq!(base.loads(), 2);
}

pub(super) async fn a_changed_limit_keeps_the_counter(open: impl Open) {
    let (base, ledger) = start(open).await;
    let hold = ask(vec![messages(1)]).hold(&ledger).await;
    assert!(ask(vec![messages(1)]).is_refused(&ledger).await);
    let raised = ask(vec![messages(2)]);
    let _second = raised.hold(&ledger).await;
    settle(&base, hold, raised.event(quantities(Messages, 1))).await;
    assert!(raised.is_refused(&ledger).await);
    assert_eq!(base.loads(), 1);
}

pub(super) async fn a_limit_added_later_starts_from_the_store_and_counts_what_is_in_flight(
    open: impl Open,
) {
    let (base, ledger) = start(open).await;
    let before = ask(vec![messages(9)]);
    let hold = before.hold(&ledger).await;
    settle(&base, hold, before.event(quantities(Messages, 1))).await;
    let in_flight = before.hold(&ledger).await;

    let hour = limit(Messages, Scope::Tenant, Hour, 2, at(0));
    let after = ask(vec![messages(9), hour]);
    assert_eq!(after.totals(&ledger).await, [(1, 1), (1, 1)]);
    assert!(after.is_refused(&ledger).await);
    drop(in_flight);
    assert_eq!(after.totals(&ledger).await, [(1, 0), (1, 0)]);
}

pub(super) async fn a_limit_added_in_flight_receives_the_settle_once(open: impl Open) {
    let (base, ledger) = start(open).await;
    let unlimited = ask(vec![]);
    let (early, late) = (unlimited.hold(&ledger).await, unlimited.hold(&ledger).await);
    let event = unlimited.event(quantities(Messages, 1));
    let early_seq = base.append(event.clone());
    // Durable, but not settled yet: the load may have it.
    let limited = ask(vec![messages(9)]);
    assert_eq!(limited.totals(&ledger).await[0].1, 2);
    early.settle(early_seq, &event).await;
    assert_eq!(limited.totals(&ledger).await, [(1, 1)]);
    settle(&base, late, unlimited.event(quantities(Messages, 1))).await;
    assert_eq!(limited.totals(&ledger).await, [(2, 0)]);
}

pub(super) async fn a_refusal_says_what_stood_against_it(open: impl Open) {
    let (base, ledger) = start(open).await;
    let minute = limit(Messages, Scope::Tenant, Minute, 3, at(0));
    let output = limit(OutputTokens, Scope::Tenant, Period, 3, at(0));
    let ask = ask(vec![minute, messages(3), output]).wanting(vec![exact(Messages, 2)]);
    let first = ask.hold(&ledger).await;
    settle(&base, first, ask.event(quantities(Messages, 1))).await;
    let _second = ask.hold(&ledger).await;

    let Reserved::Over(over) = ask.reserve(&ledger).await.unwrap() else {
        panic!("1 + 2 + 2 > 3");
    };
    let Over { violations, states } = *over;
    let kinds: Vec<_> = violations.iter().map(|it| it.limit.kind).collect();
    assert_eq!(
        kinds,
        [Lifetime, Minute],
        "the one that resets last comes first"
    );
    for violation in &violations {
        let numbers = [violation.settled, violation.reserved, violation.requested];
        assert_eq!(numbers.map(Quantity::get), [1, 2, 2]);
    }
    assert_eq!(states.iter().count(), 3);
}

pub(super) async fn noted_violations_hold_all_that_was_asked(open: impl Open) {
    let (_, ledger) = start(open).await;
    let observed = Ask {
        on_violation: OnViolation::Note,
        ..ask(vec![messages(0)])
    };
    let hold = observed.hold(&ledger).await;
    assert_eq!(hold.granted(&Messages), Quantity::ONE);
    assert_eq!(hold.violations().len(), 1);
    assert_eq!(hold.violations()[0].reserved, Quantity::ZERO);
    assert_eq!(observed.totals(&ledger).await, [(0, 1)]);
}

pub(super) async fn recorded_usage_counts_whatever_the_limit_says(open: impl Open) {
    let (base, ledger) = start(open).await;
    let ask = ask(vec![messages(5)]);
    assert_eq!(ask.totals(&ledger).await, [(0, 0)]);
    let event = ask.event(quantities(Messages, 8));
    let settled = ledger
        .record(base.append(event.clone()), &event, &|_| None)
        .await;
    assert_eq!(settled.overshoot, quantities(Messages, 3));
    let correction = ask.event(quantities(Messages, -6));
    let settled = ledger
        .record(base.append(correction.clone()), &correction, &|_| None)
        .await;
    assert!(settled.overshoot.is_empty());
    assert_eq!(ask.totals(&ledger).await, [(2, 0)]);
    // Limits that were reset count from then on, and no longer in the window that began before.
    let event = ask.event(quantities(Messages, 8));
    let reset_at = event.admitted_at;
    let settled = ledger
        .record(base.append(event.clone()), &event, &|_| Some(reset_at))
        .await;
    assert!(settled.overshoot.is_empty());
    assert_eq!(ask.totals(&ledger).await, [(10, 0)]);
}

pub(super) async fn usage_of_a_tenant_not_in_memory_is_loaded_later(open: impl Open) {
    let (base, ledger) = start(open).await;
    let ask = ask(vec![messages(5)]);
    let event = ask.event(quantities(Messages, 2));
    ledger
        .record(base.append(event.clone()), &event, &|_| None)
        .await;
    assert_eq!(ask.totals(&ledger).await, [(2, 0)]);
}

/// Whether nobody waits for another process: then it is known when all tasks wait for the store.
fn is_here(ledger: &Ledger) -> bool {
    matches!(ledger, Ledger::Local(_))
}

/// Lets every task run until all of them wait; where they wait for another process, most of them.
async fn settle_down() {
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
}

pub(super) async fn one_load_serves_all_who_wait(open: impl Open) {
    let base = FakeBase::gated();
    let ledger = open(Arc::clone(&base)).await;
    let mut tasks = waiting(&ledger, &ask(vec![messages(5)]), 8);
    base.asked(1).await;
    settle_down().await;
    base.let_through(8);
    let mut held = Vec::new();
    while let Some(reserved) = tasks.join_next().await {
        if let Reserved::Held(hold) = reserved.unwrap().unwrap() {
            held.push(hold);
        }
    }
    assert_eq!(held.len(), 5);
    if is_here(&ledger) {
        assert_eq!(base.loads(), 1);
    }
}

fn waiting(ledger: &Ledger, ask: &Ask, count: usize) -> JoinSet<Result<Reserved, LedgerError>> {
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let (ledger, ask) = (ledger.clone(), ask.clone());
        tasks.spawn(async move { ask.reserve(&ledger).await });
    }
    tasks
}

pub(super) async fn a_failed_load_fails_all_who_wait_and_leaves_nothing(open: impl Open) {
    let base = FakeBase::gated();
    let ledger = open(Arc::clone(&base)).await;
    let ask = ask(vec![messages(5)]);
    let tasks = waiting(&ledger, &ask, 4);
    base.asked(1).await;
    settle_down().await;
    base.fail(true);
    base.let_through(4);
    for reserved in tasks.join_all().await {
        assert!(matches!(reserved, Err(LedgerError::Unavailable(_))));
    }
    if is_here(&ledger) {
        assert_eq!(base.loads(), 1);
    }

    base.close();
    base.fail(false);
    base.let_through(1);
    let hold = ask.hold(&ledger).await;
    assert_eq!(hold.states().to_vec()[0].reserved, Quantity::ONE);
}

pub(super) async fn a_cancelled_load_is_taken_over(open: impl Open) {
    let base = FakeBase::gated();
    let ledger = open(Arc::clone(&base)).await;
    let ask = ask(vec![messages(5)]);
    let mut first = waiting(&ledger, &ask, 1);
    base.asked(1).await;
    let others = waiting(&ledger, &ask, 3);
    settle_down().await;
    assert_eq!(base.loads(), 1);

    first.shutdown().await;
    base.asked(2).await;
    settle_down().await;
    if is_here(&ledger) {
        assert_eq!(base.loads(), 2, "one of those who waited reads now");
    }
    base.let_through(3);
    let held = others.join_all().await;
    assert_eq!(ask.clone().totals(&ledger).await, [(0, 3)]);
    drop(held);
    if is_here(&ledger) {
        assert_eq!(base.loads(), 2);
    }
}

pub(super) async fn what_is_settled_during_a_load_counts_once(open: impl Open) {
    let base = FakeBase::gated();
    let ledger = open(Arc::clone(&base)).await;
    let unlimited = ask(vec![]);
    let holds = (unlimited.hold(&ledger).await, unlimited.hold(&ledger).await);
    let event = unlimited.event(quantities(Messages, 1));
    let early = base.append(event.clone());
    let mut tasks = waiting(&ledger, &ask(vec![messages(9)]), 1);
    base.asked(1).await;

    // One event is older than the load's question and settled during it, one is younger.
    holds.0.settle(early, &event).await;
    settle(&base, holds.1, unlimited.event(quantities(Messages, 1))).await;
    base.let_through(1);
    let hold = tasks.join_next().await.unwrap().unwrap().unwrap();
    let Reserved::Held(hold) = hold else {
        panic!("2 + 1 <= 9");
    };
    assert_eq!(hold.states().to_vec()[0].settled, Quantity::new(2));
    assert_eq!(hold.states().to_vec()[0].reserved, Quantity::ONE);
}

pub(super) async fn a_hold_released_by_hand_still_settles(open: impl Open) {
    let (base, ledger) = start(open).await;
    let ask = ask(vec![messages(5)]);
    let hold = ask.hold(&ledger).await;
    assert!(ledger.release(None, hold.id()).await);
    assert!(!ledger.release(None, hold.id()).await);
    assert_eq!(ask.totals(&ledger).await, [(0, 0)]);

    settle(&base, hold, ask.event(quantities(Messages, 1))).await;
    assert_eq!(ask.totals(&ledger).await, [(1, 0)]);
    let ended = ledger.ended();
    assert_eq!((ended.settled, ended.released), (0, 1));
}

pub(super) async fn open_holds_can_be_seen(open: impl Open) {
    let (_, ledger) = start(open).await;
    assert_eq!(ledger.in_flight().oldest, None);
    let late = ask(vec![messages(5)]).at(at(9)).hold(&ledger).await;
    let early = ask(vec![messages(5)]).at(at(3)).hold(&ledger).await;
    late.mark_detached();
    late.mark_detached();
    let seen = ledger.in_flight();
    assert_eq!((seen.held, seen.detached, seen.oldest), (2, 1, Some(at(3))));

    let listed = ledger.list_holds();
    let ids: Vec<_> = listed.iter().map(|it| it.id).collect();
    assert_eq!(ids, [early.id(), late.id()]);
    assert_eq!(listed[1].tenant, tenant(1));
    assert_eq!(listed[1].request_id, "a-request");
    assert_eq!(listed[1].quantities, quantities(Messages, 1));
    drop((late, early));
    assert_eq!(ledger.in_flight().held, 0);
}

pub(super) async fn snapshot_and_undrained_events_give_the_totals_again(open: impl Open) {
    let (base, ledger) = start(&open).await;
    let per_user = limit(Messages, Scope::User, Period, 9, at(0));
    let ask = ask(vec![messages(9), per_user]).of_user("ann");
    for _ in 0..2 {
        let hold = ask.hold(&ledger).await;
        settle(&base, hold, ask.event(quantities(Messages, 1))).await;
    }
    let drained = ledger.drained(&base.between(Seq(0), Seq(1))).await;
    assert_eq!(drained.changed.len(), 2);
    assert!(
        drained
            .changed
            .iter()
            .all(|(_, value)| *value == Quantity::ONE)
    );
    let before = ask.totals(&ledger).await;

    let loads = base.loads();
    let restarted = open(Arc::clone(&base)).await;
    let undrained = base.between(Seq(1), base.last());
    restarted.restore(drained.changed, &undrained, Seq(1), at(0));
    assert_eq!(ask.totals(&restarted).await, before);
    assert_eq!(base.loads(), loads, "a start reads only the snapshot");

    // What was undrained is drained now, and a second restart agrees as well.
    let again = restarted.drained(&undrained).await;
    let third = open(Arc::clone(&base)).await;
    third.restore(again.changed, &[], Seq(2), at(0));
    assert_eq!(ask.totals(&third).await, before);
}

pub(super) async fn a_drain_that_was_not_written_comes_again(open: impl Open) {
    let (base, ledger) = start(open).await;
    let ask = ask(vec![messages(9)]);
    ask.totals(&ledger).await;
    for used in [1, 2] {
        let event = ask.event(quantities(Messages, used));
        ledger
            .record(base.append(event.clone()), &event, &|_| None)
            .await;
    }
    let both = base.between(Seq(0), Seq(2));
    let first = ledger.drained(&both).await;
    assert_eq!(first.changed[0].1, Quantity::new(3));
    assert_eq!(
        ledger.drained(&both).await,
        first,
        "each event is added once"
    );

    // A repeat that ends earlier can't give the row: it must not stay at its old value.
    let shorter = ledger.drained(&both[..1]).await;
    assert_eq!(shorter.changed, []);
    assert_eq!(shorter.removed, [first.changed[0].0.clone()]);
    assert_eq!(ledger.drained(&both[1..]).await.changed, first.changed);
}

pub(super) async fn a_counter_that_knows_more_than_the_drained_events_waits_for_them(
    open: impl Open,
) {
    let (base, ledger) = start(open).await;
    let ask = ask(vec![messages(9)]);
    let other = Ask {
        tenant: tenant(2),
        ..ask.clone()
    };
    base.append(other.event(quantities(Messages, 1)));
    base.append(ask.event(quantities(Messages, 1)));
    assert_eq!(
        ask.totals(&ledger).await,
        [(1, 0)],
        "loaded with both events"
    );
    let first = ledger.drained(&base.between(Seq(0), Seq(1))).await;
    assert_eq!(first.changed, [], "event 2 would be added to the row again");
    let second = ledger.drained(&base.between(Seq(1), Seq(2))).await;
    assert_eq!(second.changed.len(), 1);
    assert_eq!(second.changed[0].1, Quantity::ONE);
}

pub(super) async fn an_event_drained_before_it_is_settled_is_in_its_row(open: impl Open) {
    let (base, ledger) = start(open).await;
    let minute = |seconds| {
        let limits = vec![limit(Messages, Scope::Tenant, Minute, 9, at(seconds))];
        ask(limits).at(at(seconds))
    };
    minute(0).totals(&ledger).await;
    let later = minute(600);
    let event = later.event(quantities(Messages, 1));
    let first = base.append(event.clone());
    ledger.drained(&base.between(Seq(0), first)).await;
    assert_eq!(later.totals(&ledger).await, [(1, 0)]);
    ledger.record(first, &event, &|_| None).await;
    assert_eq!(later.totals(&ledger).await, [(1, 0)]);

    let second = base.append(event.clone());
    ledger.record(second, &event, &|_| None).await;
    let drained = ledger.drained(&base.between(first, second)).await;
    assert_eq!(drained.changed[0].1, Quantity::new(2));
}
