//! The shared cases, and what only the ledger of one node has: a bounded memory, and races on it.

use super::super::{
    Ledger,
    contract::{self, ledger_cases, snapshot_cases},
    testing::{Ask, FakeBase, ask, at, limit, messages, now, quantities, tenant},
};
use super::*;
use crate::domain::{limit::Scope, window::WindowKind};

macro_rules! on_local {
    ($name:ident) => {
        #[tokio::test]
        async fn $name() {
            contract::$name(async |base| Ledger::Local(LocalLedger::new(base, 100))).await;
        }
    };
}
ledger_cases!(on_local);
snapshot_cases!(on_local);

/// Two tenants fit in memory, and three keys or users of each.
fn small(base: &Arc<FakeBase>) -> Ledger {
    let base = Arc::clone(base);
    Ledger::Local(LocalLedger::with_members(base, 2, 3))
}

fn of_tenant(number: u128, seconds: i64) -> Ask {
    Ask {
        tenant: tenant(number),
        ..ask(vec![messages(9)]).at(at(seconds))
    }
}

fn resident(ledger: &Ledger, number: u128) -> bool {
    let Ledger::Local(local) = ledger else {
        return false;
    };
    local.find(tenant(number)).is_some()
}

fn record(base: &FakeBase, ledger: &Ledger, ask: &Ask) {
    let event = ask.event(quantities(FeatureKey::Messages, 1));
    now(ledger.record(base.append(event.clone()), &event, &|_| None));
}

#[tokio::test]
async fn the_tenant_longest_unused_makes_room_unless_it_holds_something() {
    let base = FakeBase::open();
    let ledger = small(&base);
    let hold = of_tenant(1, 0).hold(&ledger).await;
    of_tenant(2, 1).totals(&ledger).await;
    of_tenant(3, 2).totals(&ledger).await;
    assert_eq!(
        [1, 2, 3].map(|it| resident(&ledger, it)),
        [true, false, true]
    );

    drop(hold);
    of_tenant(2, 3).totals(&ledger).await;
    assert_eq!(
        [1, 2, 3].map(|it| resident(&ledger, it)),
        [false, true, true]
    );
}

#[tokio::test]
async fn a_tenant_whose_counters_are_being_read_is_not_thrown_out() {
    let base = FakeBase::gated();
    let ledger = small(&base);
    let first = of_tenant(1, 0);
    let second = async {
        for number in [2, 3] {
            let other = of_tenant(number, 1);
            base.let_through(if number == 2 { 2 } else { 1 });
            other.totals(&ledger).await;
        }
    };
    tokio::join!(first.totals(&ledger), second);
    assert_eq!(base.loads(), 3, "each tenant is read once");
}

#[tokio::test]
async fn a_tenant_that_was_thrown_out_comes_back_with_all_it_used() {
    let base = FakeBase::open();
    let ledger = small(&base);
    of_tenant(1, 0).totals(&ledger).await;
    record(&base, &ledger, &of_tenant(1, 0));
    let drained = now(ledger.drained(&base.between(Seq(0), Seq(1))));
    assert_eq!(drained.changed.len(), 1);
    for number in [2, 3] {
        of_tenant(number, 1).totals(&ledger).await;
    }
    assert!(!resident(&ledger, 1));
    record(&base, &ledger, &of_tenant(1, 1));
    let next = now(ledger.drained(&base.between(Seq(1), Seq(2))));
    assert_eq!(
        next.removed,
        [drained.changed[0].0.clone()],
        "nobody keeps its row now"
    );
    assert_eq!(of_tenant(1, 2).totals(&ledger).await, [(2, 0)]);
}

#[tokio::test]
async fn users_longest_unused_make_room_and_come_back_with_all_they_used() {
    let base = FakeBase::open();
    let ledger = small(&base);
    let of_user = |user: &str| {
        let per_user = limit(
            FeatureKey::Messages,
            Scope::User,
            WindowKind::Lifetime,
            9,
            at(0),
        );
        ask(vec![per_user]).of_user(user)
    };
    let _hold = of_user("a").hold(&ledger).await;
    for user in ["b", "c", "d", "e", "f"] {
        of_user(user).totals(&ledger).await;
        record(&base, &ledger, &of_user(user));
    }
    let loads = base.loads();
    assert_eq!(of_user("a").totals(&ledger).await, [(0, 1)]);
    assert_eq!(of_user("f").totals(&ledger).await, [(1, 0)]);
    assert_eq!(base.loads(), loads, "in use, or used last");
    assert_eq!(of_user("b").totals(&ledger).await, [(1, 0)]);
    assert_eq!(base.loads(), loads + 1);
}

#[tokio::test]
async fn a_counter_goes_five_minutes_after_its_window_and_takes_its_row_along() {
    let base = FakeBase::open();
    let ledger = small(&base);
    let minute = |seconds| {
        let feature = FeatureKey::Messages;
        let limits = vec![limit(
            feature,
            Scope::Tenant,
            WindowKind::Minute,
            9,
            at(seconds),
        )];
        ask(limits).at(at(seconds))
    };
    let hold = minute(0).hold(&ledger).await;
    record(&base, &ledger, &minute(0));
    let row = now(ledger.drained(&base.between(Seq(0), Seq(1)))).changed[0]
        .0
        .clone();
    minute(420).totals(&ledger).await;
    record(&base, &ledger, &minute(420));
    let drained = now(ledger.drained(&base.between(Seq(1), Seq(2))));
    assert_eq!(drained.removed, [], "a request is still in flight in it");
    drop(hold);
    minute(480).totals(&ledger).await;
    record(&base, &ledger, &minute(480));
    let drained = now(ledger.drained(&base.between(Seq(2), Seq(3))));
    assert_eq!(drained.removed, [row]);
}

#[tokio::test]
async fn a_window_is_loaded_that_holds_an_event_from_before_the_clock_was_set_back() {
    let base = FakeBase::open();
    let ledger = small(&base);
    let minute = |seconds| {
        let feature = FeatureKey::Messages;
        let limits = vec![limit(
            feature,
            Scope::Tenant,
            WindowKind::Minute,
            9,
            at(seconds),
        )];
        ask(limits).at(at(seconds))
    };
    record(&base, &ledger, &minute(3600));
    assert_eq!(minute(0).totals(&ledger).await, [(0, 0)]);
    assert_eq!(minute(3600).totals(&ledger).await, [(1, 0)]);
}

#[test]
fn ids_of_holds_are_version_7_and_differ() {
    let ledger = LocalLedger::new(FakeBase::open(), 1);
    let (first, second) = (ledger.new_id(at(0)), ledger.new_id(at(0)));
    assert_ne!(first, second);
    assert_eq!(first.uuid().get_version_num(), 7);
    assert!(ledger.new_id(at(1)) > second);
}

/// Lets `act` find tenant 1 and wait for its lock, throws the tenant out, and lets it go on.
fn while_thrown_out<T: Send>(ledger: &Ledger, act: impl FnOnce() -> T + Send) -> T {
    let Ledger::Local(local) = ledger else {
        unreachable!();
    };
    let found = local.find(tenant(1)).unwrap();
    let mut counters = found.lock();
    let known = Arc::strong_count(&found);
    std::thread::scope(|threads| {
        let acting = threads.spawn(act);
        while Arc::strong_count(&found) == known {
            std::thread::yield_now();
        }
        let _latest = counters.evict().unwrap();
        local.shards[0].write().unwrap().remove(&tenant(1));
        drop(counters);
        acting.join().unwrap()
    })
}

#[tokio::test]
async fn a_request_that_found_a_tenant_just_before_it_was_thrown_out_looks_again() {
    let base = FakeBase::open();
    let ledger = small(&base);
    of_tenant(1, 0).totals(&ledger).await;
    let unlimited = ask(vec![]);
    let hold = while_thrown_out(&ledger, || {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(unlimited.hold(&ledger))
    });
    assert_eq!(ledger.in_flight().held, 1);
    assert_eq!(of_tenant(1, 0).totals(&ledger).await, [(0, 1)]);
    drop(hold);
}

#[tokio::test]
async fn usage_that_found_a_tenant_just_before_it_was_thrown_out_is_not_lost() {
    let base = FakeBase::open();
    let ledger = small(&base);
    of_tenant(1, 0).totals(&ledger).await;
    while_thrown_out(&ledger, || record(&base, &ledger, &of_tenant(1, 3600)));
    let Ledger::Local(local) = &ledger else {
        unreachable!();
    };
    let noted = local.latest_elsewhere.load(Ordering::SeqCst);
    assert!(noted >= at(3600).micros(), "a window there must be loaded");
}

#[tokio::test]
async fn a_row_goes_although_its_tenant_was_thrown_out_in_the_middle_of_a_drain() {
    let base = FakeBase::open();
    let ledger = LocalLedger::new(Arc::clone(&base) as _, 15);
    let ledger = Ledger::Local(ledger);
    of_tenant(1, 0).totals(&ledger).await;
    record(&base, &ledger, &of_tenant(1, 0));
    let row = now(ledger.drained(&base.between(Seq(0), Seq(1)))).changed[0]
        .0
        .clone();

    // The drain visits tenant 2 first, which was loaded since; there it has to wait.
    of_tenant(2, 0).totals(&ledger).await;
    record(&base, &ledger, &of_tenant(1, 0));
    let Ledger::Local(local) = &ledger else {
        unreachable!();
    };
    let other = local.find(tenant(2)).unwrap();
    let counters = other.lock();
    let known = Arc::strong_count(&other);
    let drained = std::thread::scope(|threads| {
        let draining = threads.spawn(|| now(ledger.drained(&base.between(Seq(1), Seq(2)))));
        while Arc::strong_count(&other) == known {
            std::thread::yield_now();
        }
        let first = local.find(tenant(1)).unwrap();
        let _latest = first.lock().evict().unwrap();
        local.shards[0].write().unwrap().remove(&tenant(1));
        drop(counters);
        draining.join().unwrap()
    });
    assert_eq!(drained.removed, [row]);
}
