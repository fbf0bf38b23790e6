//! Threads at once on more tenants and users than fit in memory, with a drain beside them: no limit is passed or left
//! unused, no row of the snapshot is ever wrong, nothing stays reserved.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{
    Ledger, LocalLedger, Reserved,
    testing::{Ask, FakeBase, SnapshotRows, ask, at, limit, quantities, tenant},
};
use crate::domain::{
    feature::FeatureKey::Messages,
    limit::Scope,
    window::WindowKind::{Lifetime, Minute},
};

const THREADS: usize = 4;
const ROUNDS: usize = 800;
const TENANTS: u128 = 4;
const LIMIT: i64 = 500;

fn ask_of(tenant_number: u128, user: &str, seconds: i64) -> Ask {
    let now = at(seconds);
    let limits = vec![
        limit(Messages, Scope::Tenant, Lifetime, LIMIT, now),
        limit(Messages, Scope::User, Minute, LIMIT, now),
    ];
    Ask {
        tenant: tenant(tenant_number),
        ..ask(limits).of_user(user).at(now)
    }
}

fn on_its_own<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(future)
}

/// Reserves for a tenant and user of its own choice each time, and settles six of seven.
async fn work(base: &FakeBase, ledger: &Ledger, thread: usize) {
    for round in 0..ROUNDS {
        let pick = (round * 7 + thread * 3 + round / 11) % 1000;
        let tenant_number = u128::try_from(pick).unwrap() % TENANTS + 1;
        let user = ["", "ann", "bob", "cy", "di"][pick % 5];
        let seconds = i64::try_from(round / 2).unwrap();
        let ask = ask_of(tenant_number, user, seconds);
        let Reserved::Held(hold) = ask.reserve(ledger).await.unwrap() else {
            continue;
        };
        if pick.is_multiple_of(7) {
            continue; // the hold is dropped
        }
        let event = ask.event(quantities(Messages, 1));
        let seq = base.append(event.clone());
        hold.settle(seq, &event).await;
    }
}

/// Drains until all is drained and nobody works any more.
fn drain(base: &FakeBase, ledger: &Ledger, is_over: &AtomicBool) {
    let mut snapshot = SnapshotRows::default();
    loop {
        let was_over = is_over.load(Ordering::SeqCst);
        if snapshot.upto == base.last() && was_over {
            return;
        }
        snapshot.drain(base, ledger, 20);
        std::thread::yield_now();
    }
}

#[test]
fn threads_over_more_tenants_than_fit_use_every_limit_up_and_never_pass_it() {
    let base = FakeBase::open();
    let ledger = LocalLedger::with_members(Arc::clone(&base) as _, 2, 3);
    let ledger = Ledger::Local(ledger);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let drainer = threads.spawn(|| drain(&base, &ledger, &is_over));
        let run = |thread| {
            let (base, ledger) = (&base, &ledger);
            move || on_its_own(work(base, ledger, thread))
        };
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| threads.spawn(run(thread)))
            .collect();
        let ended: Vec<_> = workers.into_iter().map(|it| it.join()).collect();
        is_over.store(true, Ordering::SeqCst);
        drainer.join().unwrap();
        assert!(ended.iter().all(Result::is_ok), "a thread panicked");
    });

    for number in 1..=TENANTS {
        let ask = ask_of(number, "", 0);
        let totals = on_its_own(ask.totals(&ledger));
        assert_eq!(totals[0], (LIMIT, 0), "tenant {number}");
        assert_eq!(totals[1].1, 0);
    }
    assert_eq!(ledger.in_flight().held, 0);
}
