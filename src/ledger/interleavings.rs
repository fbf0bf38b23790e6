//! Any order in which tasks may go on: `shuttle` runs a few of them on one thread, and each use of a lock or an
//! atomic is a place where it lets any other go on first. Requests that settle, are dropped, cancelled or released by
//! hand, reports, a limit that changes, minutes that turn, tenants that do not all fit in memory and are read back by
//! a store that is slow or fails, and a drain beside them.

use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use shuttle::{
    Config, MaxSteps, Runner, future,
    rand::{Rng as _, thread_rng},
    scheduler::RandomScheduler,
    thread,
};

use super::{
    BaseTotals, Ledger, LedgerError, LocalLedger, Reserved,
    testing::{Ask, FakeBase, SnapshotRows, ask, at, limit, now, quantities, tenant},
};
use crate::{
    domain::{
        feature::FeatureKey::Messages,
        ids::{ReservationId, TenantId},
        limit::{Scope, Subject},
        quantity::Quantity,
        time::Timestamp,
        window::WindowKind::{Lifetime, Minute},
    },
    store::usage::{CounterOf, Seq},
};

const WORKERS: usize = 3;
/// What each worker does.
const OPERATIONS: usize = 3;
/// One more than fit in memory.
const TENANTS: u128 = 3;
const USERS: [&str; 2] = ["", "ann"];
/// On both sides of a minute's end, and an hour later: clocks are set back too.
const SECONDS: [i64; 3] = [59, 60, 3600];
/// The tenant's limit changes between these.
const LIMITS: [i64; 2] = [2, 3];
const USER_LIMIT: i64 = 1;

/// A store that answers whenever it likes, or now and then not at all.
struct Slow {
    base: Arc<FakeBase>,
    fails: bool,
}

impl BaseTotals for Slow {
    fn load<'a>(
        &'a self,
        tenant: TenantId,
        counters: &'a [CounterOf],
    ) -> BoxFuture<'a, Result<(Vec<Quantity>, Seq), LedgerError>> {
        Box::pin(async move {
            pause().await;
            let loaded = self.base.load(tenant, counters).await;
            pause().await;
            if self.fails && thread_rng().gen_ratio(1, 10) {
                return Err(LedgerError::Unavailable("the store is away".to_owned()));
            }
            loaded
        })
    }
}

async fn pause() {
    for _ in 0..thread_rng().gen_range(0..3) {
        future::yield_now().await;
    }
}

/// A request that was let in, and counts: it runs, or has been settled.
struct Counted {
    id: ReservationId,
    tenant: TenantId,
    user: String,
    at: Timestamp,
}

#[derive(Clone)]
struct World {
    base: Arc<FakeBase>,
    ledger: Ledger,
    counted: Arc<Mutex<Vec<Counted>>>,
}

fn ask_of(tenant_number: u128, user: &str, seconds: i64, hard: i64) -> Ask {
    let now = at(seconds);
    let limits = vec![
        limit(Messages, Scope::Tenant, Lifetime, hard, now),
        limit(Messages, Scope::User, Minute, USER_LIMIT, now),
    ];
    Ask {
        tenant: tenant(tenant_number),
        ..ask(limits).of_user(user).at(now)
    }
}

fn any_ask() -> Ask {
    let mut random = thread_rng();
    ask_of(
        random.gen_range(1..=TENANTS),
        USERS[random.gen_range(0..USERS.len())],
        SECONDS[random.gen_range(0..SECONDS.len())],
        LIMITS[random.gen_range(0..LIMITS.len())],
    )
}

impl World {
    fn new(fails: bool) -> Self {
        let base = FakeBase::open();
        let slow = Arc::new(Slow {
            base: Arc::clone(&base),
            fails,
        });
        Self {
            base,
            ledger: Ledger::Local(LocalLedger::with_members(slow, 2, 3)),
            counted: Arc::default(),
        }
    }

    async fn work(&self) {
        for _ in 0..OPERATIONS {
            let ask = any_ask();
            match thread_rng().gen_range(0..8) {
                0 => self.record(&ask),
                1 => self.cancel(&ask).await,
                2 => drop(
                    self.ledger
                        .states(
                            ask.tenant,
                            None,
                            &ask.user,
                            &ask.limits.clone().into(),
                            ask.now,
                        )
                        .await,
                ),
                _ => self.request(&ask).await,
            }
        }
    }

    fn record(&self, ask: &Ask) {
        let event = ask.event(quantities(Messages, 1));
        let seq = self.base.append(event.clone());
        thread::yield_now();
        now(self.ledger.record(seq, &event, &|_| None));
    }

    /// Its client goes while the counters are read.
    async fn cancel(&self, ask: &Ask) {
        let mut reserving = Box::pin(ask.reserve(&self.ledger));
        for _ in 0..thread_rng().gen_range(0..3) {
            if futures_util::poll!(&mut reserving).is_ready() {
                return;
            }
            future::yield_now().await;
        }
    }

    async fn request(&self, ask: &Ask) {
        let Ok(Reserved::Held(hold)) = ask.reserve(&self.ledger).await else {
            return;
        };
        self.count(ask, hold.id());
        pause().await;
        if thread_rng().gen_ratio(1, 4) {
            self.forget(hold.id());
            return; // the hold is dropped
        }
        let event = ask.event(quantities(Messages, 1));
        let seq = self.base.append(event.clone());
        thread::yield_now();
        hold.settle(seq, &event).await;
    }

    /// What counts never passes a limit that anybody could have been judged by.
    fn count(&self, ask: &Ask, id: ReservationId) {
        let mut counted = self.counted.lock().unwrap();
        counted.push(Counted {
            id,
            tenant: ask.tenant,
            user: ask.user.clone(),
            at: ask.now,
        });
        let of_tenant = || counted.iter().filter(|it| it.tenant == ask.tenant);
        let of_user = of_tenant().filter(|it| it.user == ask.user && it.at == ask.now);
        assert!(
            of_user.count() <= 1,
            "the limit of a user is passed: {ask:?}"
        );
        assert!(
            of_tenant().count() <= 3,
            "the limit of a tenant is passed: {ask:?}"
        );
    }

    fn forget(&self, id: ReservationId) {
        self.counted.lock().unwrap().retain(|it| it.id != id);
    }

    /// Releases by hand, as an expiry does, whatever is held now. Its request settles all the same.
    fn release(&self) {
        for hold in self.ledger.list_holds() {
            self.forget(hold.id);
            now(self.ledger.release(None, hold.id));
        }
    }

    /// Every counter is the sum of its events, and nothing is held.
    async fn check(&self) {
        assert_eq!(self.ledger.in_flight().held, 0);
        for number in 1..=TENANTS {
            for (user, seconds) in USERS
                .into_iter()
                .flat_map(|user| SECONDS.map(|it| (user, it)))
            {
                let ask = ask_of(number, user, seconds, LIMITS[1]);
                let states = loop {
                    let limits = ask.limits.clone().into();
                    let states = self.ledger.states(ask.tenant, None, user, &limits, ask.now);
                    if let Ok(states) = states.await {
                        break states; // the store is not away
                    }
                };
                for state in states {
                    let counter = CounterOf {
                        subject: if state.limit.scope == Scope::Tenant {
                            Subject::Tenant
                        } else {
                            Subject::User(user.into())
                        },
                        feature: Messages,
                        window: state.limit.window,
                    };
                    let sum = self.base.sum(ask.tenant, &counter, self.base.last());
                    let stands = (state.settled, state.reserved);
                    assert_eq!(stands, (sum, Quantity::ZERO), "{counter:?} of {number}");
                }
            }
        }
    }
}

/// One run: workers, somebody who releases by hand, and a drain.
fn run() {
    let world = World::new(true);
    let mut tasks: Vec<_> = (0..WORKERS)
        .map(|_| {
            let world = world.clone();
            thread::spawn(move || future::block_on(world.work()))
        })
        .collect();
    if thread_rng().gen_ratio(1, 2) {
        let world = world.clone();
        tasks.push(thread::spawn(move || world.release()));
    }
    let mut snapshot = SnapshotRows::default();
    for _ in 0..3 {
        snapshot.drain(&world.base, &world.ledger, 2);
        thread::yield_now();
    }
    for task in tasks {
        task.join().unwrap();
    }
    future::block_on(world.check());
    while snapshot.upto < world.base.last() {
        snapshot.drain(&world.base, &world.ledger, 2);
    }
}

/// Tries `count` orders of what `run` does, from one seed.
fn try_orders(seed: u64, count: usize, run: fn()) {
    let mut config = Config::default();
    config.stack_size = 256 << 10;
    config.max_steps = MaxSteps::FailAfter(1_000_000);
    Runner::new(RandomScheduler::new_from_seed(seed, count), config).run(run);
}

mod torture {
    use super::*;

    #[test]
    fn in_whatever_order_tasks_go_on_no_limit_is_passed_and_every_counter_is_right() {
        for seed in crate::torture::rounds(10_000, "SCHEDULES") {
            try_orders(seed, 1, run);
        }
    }
}

/// Found by the above: usage looked for its tenant before that was added, and said when it was only after.
#[test]
fn usage_that_comes_while_its_tenant_is_added_is_not_lost() {
    try_orders(1, 1000, || {
        let world = World::new(false);
        let later = || ask_of(1, "", 3600, 3); // than events may be dated when the tenant is added
        let adding = world.clone();
        let adding = thread::spawn(move || {
            future::block_on(async {
                ask_of(1, "", 0, 3).states(&adding.ledger).await;
                later().states(&adding.ledger).await;
            });
        });
        world.record(&later());
        adding.join().unwrap();
        let totals = future::block_on(later().totals(&world.ledger));
        assert_eq!(totals, [(1, 0), (1, 0)]);
    });
}
