//! The shared cases on a real server and a real cluster, and what only a shared ledger has: other nodes, a server that
//! is emptied, away, slow or restarted, and a store that has some events and not others.

use std::sync::Arc;

use super::*;
use crate::{
    clock::ManualClock,
    domain::{
        feature::FeatureKey::{self, Messages, OutputTokens},
        limit::{Scope, Subject},
        window::WindowKind::{Lifetime, Minute},
    },
    ledger::{
        Amount, Hold, Ledger, Named, Reserved, Want,
        contract::{self, ledger_cases},
        testing::{Ask, FakeBase, ask, at, limit, messages, quantities, tenant, window},
    },
};

#[expect(dead_code, reason = "tests of replicas use the rest")]
#[path = "../../../tests/it/support/redis.rs"]
pub(super) mod server;

use server::{RedisCluster, RedisServer};

const SHORT: Duration = Duration::from_secs(20);

/// A node of its own on a server; the caller's clock decides.
async fn node(urls: &str, base: &Arc<FakeBase>) -> Ledger {
    node_named(urls, base, "a").await.1
}

async fn node_named(urls: &str, base: &Arc<FakeBase>, name: &str) -> (Arc<RedisLedger>, Ledger) {
    let base: Arc<FakeBase> = Arc::clone(base);
    open_node(urls, base, name).await
}

pub(super) async fn open_node(
    urls: &str,
    base: Arc<dyn SharedBase>,
    name: &str,
) -> (Arc<RedisLedger>, Ledger) {
    let settings = RedisSettings {
        urls: urls.split(',').map(Into::into).collect(),
        clock: Clock::Manual(ManualClock::at(at(0))),
        lease: LEASE,
        node: name.to_owned(),
    };
    let redis = RedisLedger::open(settings, base);
    redis.ready(SHORT).await;
    assert_eq!(redis.fault(), None);
    (Arc::clone(&redis), Ledger::Redis(redis))
}

macro_rules! on_server {
    ($name:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let server = RedisServer::start();
            contract::$name(async |base| node(&server.url(), &base).await).await;
        }
    };
}
ledger_cases!(on_server);

/// One cluster serves them one after the other: it takes longer to start than they do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_case_passes_on_a_cluster() {
    let cluster = RedisCluster::start();
    macro_rules! on_cluster {
        ($name:ident) => {
            cluster.forget_tenants();
            contract::$name(async |base| node(&cluster.urls(), &base).await).await;
        };
    }
    ledger_cases!(on_cluster);
}

impl RedisCluster {
    fn forget_tenants(&self) {
        let script = "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end return 'OK'";
        let tenants = format!("tg:2:{{*}}:{}:*", "?".repeat(32));
        for server in &self.masters {
            assert_eq!(
                server.bulk(&["EVAL", script, "0", &tenants]).as_deref(),
                Some("OK")
            );
        }
    }
}

/// Nodes of one server and one store, each with a journal of its own as far as the ledger can tell.
pub(super) struct Nodes {
    pub(super) server: RedisServer,
    pub(super) base: Arc<FakeBase>,
    pub(super) redis: Vec<Arc<RedisLedger>>,
    pub(super) ledgers: Vec<Ledger>,
}

impl Nodes {
    pub(super) async fn start(count: usize) -> Self {
        let server = RedisServer::start();
        let base = FakeBase::open();
        let mut nodes = Self {
            server,
            base,
            redis: Vec::new(),
            ledgers: Vec::new(),
        };
        for _ in 0..count {
            nodes.add().await;
        }
        nodes
    }

    async fn add(&mut self) {
        let name = self.ledgers.len().to_string();
        let (redis, ledger) = node_named(&self.server.url(), &self.base, &name).await;
        self.redis.push(redis);
        self.ledgers.push(ledger);
    }

    /// A request through one node, to its end.
    pub(super) async fn use_one(&self, node: usize, ask: &Ask, used: i64) {
        let hold = ask.hold(&self.ledgers[node]).await;
        let event = ask.event(quantities(Messages, used));
        let seq = self.base.append(event.clone());
        hold.settle(seq, &event).await;
    }

    /// Everything durable goes to the store, through one node.
    pub(super) async fn drain(&self, node: usize) {
        let batch = self.base.between(self.base.stored(), self.base.last());
        self.ledgers[node].announce(&batch).await;
        self.base.store_upto(self.base.last());
        self.ledgers[node].drained(&batch).await;
        self.ledgers[node].forgotten(&batch).await;
    }

    pub(super) async fn ready(&self) {
        for redis in &self.redis {
            redis.ready(SHORT).await;
            assert_eq!(redis.fault(), None);
        }
    }

    /// Waits until every node has noticed that something is wrong.
    pub(super) async fn noticed(&self) {
        for redis in &self.redis {
            while redis.fault().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Every counter of `ask` as a store and all journals say, whichever node is asked; the reserved sum.
    pub(super) async fn agree(&self, ask: &Ask) -> i64 {
        let mut reserved = None;
        for ledger in &self.ledgers {
            // What a node gave back without waiting for it is behind this.
            ask.states(ledger).await;
        }
        for ledger in &self.ledgers {
            for state in ask.states(ledger).await {
                let counter = CounterOf {
                    subject: match state.limit.scope {
                        Scope::Tenant => Subject::Tenant,
                        Scope::Key => Subject::Key(ask.key.unwrap()),
                        Scope::User => Subject::User(ask.user.as_str().into()),
                    },
                    feature: state.limit.feature.clone(),
                    window: state.limit.window,
                };
                let sum = self.base.sum(ask.tenant, &counter, self.base.last());
                assert_eq!(state.settled, sum, "{counter:?}");
                let first = reserved.get_or_insert(state.reserved);
                assert_eq!(*first, state.reserved);
            }
        }
        reserved.unwrap().get()
    }
}

pub(super) fn per_minute(hard: i64) -> Ask {
    ask(vec![
        messages(hard),
        limit(Messages, Scope::User, Minute, hard, at(0)),
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_use_one_limit_to_its_last_unit_and_not_beyond() {
    let nodes = Arc::new(Nodes::start(3).await);
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..600 {
        let nodes = Arc::clone(&nodes);
        requests.spawn(async move {
            let ask = per_minute(200);
            match ask.reserve(&nodes.ledgers[number % 3]).await.unwrap() {
                Reserved::Held(hold) if number % 7 == 0 => {
                    drop(hold);
                    0
                }
                Reserved::Held(hold) => {
                    let event = ask.event(quantities(Messages, 1));
                    let seq = nodes.base.append(event.clone());
                    hold.settle(seq, &event).await;
                    1
                }
                _ => 0,
            }
        });
    }
    let settled: i64 = requests.join_all().await.into_iter().sum();
    assert!(settled <= 200);
    for _ in settled..200 {
        nodes.use_one(0, &per_minute(200), 1).await;
    }
    for ledger in &nodes.ledgers {
        assert!(per_minute(200).is_refused(ledger).await);
    }
    assert_eq!(nodes.agree(&per_minute(200)).await, 0);
}

/// Several requests at once want what is left: each is lowered to it, and together they never pass it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lowered_outputs_share_what_is_left() {
    let nodes = Arc::new(Nodes::start(2).await);
    let output = |named| {
        let left = limit(OutputTokens, Scope::Tenant, Lifetime, 50_000, at(0));
        let want = Want {
            feature: OutputTokens,
            amount: Amount::Output {
                per_answer: Quantity::new(128_000),
                answers: 1,
                named,
                floor: Quantity::new(16),
                reservation: Quantity::new(4096),
            },
        };
        ask(vec![left]).wanting(vec![want])
    };
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..40 {
        let nodes = Arc::clone(&nodes);
        let ask = output(if number % 2 == 0 {
            Named::ByDefault
        } else {
            Named::ByClient
        });
        requests.spawn(async move { ask.reserve(&nodes.ledgers[number % 2]).await.unwrap() });
    }
    let decided = requests.join_all().await;
    let granted: i64 = decided
        .iter()
        .filter_map(|it| match it {
            Reserved::Held(hold) => Some(hold.granted(&OutputTokens).get()),
            _ => None,
        })
        .sum();
    assert_eq!(granted, 50_000, "all of it, and no more");
    drop(decided);
    // What a node gave back without waiting for it is behind its next question.
    output(Named::ByClient).totals(&nodes.ledgers[1]).await;
    assert_eq!(
        output(Named::ByClient).totals(&nodes.ledgers[0]).await,
        [(0, 0)]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_counts_once_however_often_it_is_told_and_wherever_it_is() {
    let nodes = Nodes::start(2).await;
    let ask = per_minute(50);
    nodes.use_one(0, &ask, 3).await;
    nodes.use_one(1, &ask, 4).await;
    let everything = nodes.base.between(Seq(0), nodes.base.last());
    for (seq, event) in &everything {
        nodes.ledgers[1].record(*seq, event, &|_| None).await;
    }
    assert_eq!(nodes.agree(&ask).await, 0);
    // Told as about to be written, twice, as after a store that failed.
    nodes.ledgers[0].announce(&everything).await;
    nodes.ledgers[0].announce(&everything).await;
    assert_eq!(nodes.agree(&ask).await, 0);
    nodes.drain(0).await;
    assert_eq!(nodes.agree(&ask).await, 0);
    // A node that has it in its own journal too, and comes late.
    nodes.ledgers[1].announce(&everything).await;
    assert_eq!(nodes.agree(&ask).await, 0);
}

/// A counter that appears at any point of an event's way to the store has it once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_counter_read_at_any_point_of_a_drain_is_right() {
    let nodes = Nodes::start(2).await;
    let windows = [
        messages(90),
        limit(Messages, Scope::Tenant, Minute, 90, at(0)),
    ];
    let ask_of = |limits: &[_]| ask(limits.to_vec());
    let all = ask_of(&windows);
    for point in 0..5 {
        nodes.use_one(0, &all, 2).await;
        let batch = nodes.base.between(nodes.base.stored(), nodes.base.last());
        let step = async |now: usize| {
            if now == point {
                nodes.redis[1].begin_anew(tenant(1), &[]).await.unwrap();
                assert_eq!(nodes.agree(&all).await, 0, "at point {point}");
            }
        };
        step(0).await;
        nodes.ledgers[0].announce(&batch).await;
        step(1).await;
        nodes.base.store_upto(nodes.base.last());
        step(2).await;
        nodes.ledgers[0].drained(&batch).await;
        step(3).await;
        nodes.ledgers[0].forgotten(&batch).await;
        step(4).await;
        assert_eq!(nodes.agree(&all).await, 0);
    }
}

/// An event is durable before its request is woken: on a busy machine the drain may be done with it by then, and other
/// nodes begin anew at any moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_settles_at_any_point_of_its_drain_counts_once() {
    const POINTS: usize = 5;
    const NEVER: usize = POINTS;
    let nodes = Nodes::start(2).await;
    let ask = ask(vec![messages(900)]);
    for (anew_at, settled_at) in (0..=NEVER).flat_map(|anew| (0..POINTS).map(move |at| (anew, at)))
    {
        let mut hold = Some(ask.hold(&nodes.ledgers[0]).await);
        let event = ask.event(quantities(Messages, 1));
        let seq = nodes.base.append(event.clone());
        let batch = nodes.base.between(nodes.base.stored(), seq);
        for point in 0..POINTS {
            match point {
                1 => nodes.ledgers[0].announce(&batch).await,
                2 => nodes.base.store_upto(seq),
                3 => drop(nodes.ledgers[0].drained(&batch).await),
                4 => nodes.ledgers[0].forgotten(&batch).await,
                _ => {}
            }
            if point == anew_at {
                nodes.redis[1].begin_anew(tenant(1), &[]).await.unwrap();
            }
            if point == settled_at
                && let Some(hold) = hold.take()
            {
                hold.settle(seq, &event).await;
            }
        }
        let used = i64::try_from(seq.0).unwrap();
        assert_eq!(
            ask.totals(&nodes.ledgers[0]).await,
            [(used, 0)],
            "anew at {anew_at}, settled at {settled_at}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_server_is_told_again_and_decides_nothing_meanwhile() {
    let nodes = Nodes::start(3).await;
    let ask = per_minute(10);
    nodes.use_one(0, &ask, 1).await;
    nodes.drain(0).await;
    nodes.use_one(1, &ask, 2).await; // not in the store
    let held: Vec<Hold> = vec![
        ask.hold(&nodes.ledgers[0]).await,
        ask.hold(&nodes.ledgers[2]).await,
    ];

    nodes.server.ask(&["FLUSHALL"]);
    let refused = ask.reserve(&nodes.ledgers[1]).await;
    assert!(
        matches!(refused, Err(LedgerError::Unavailable(_))),
        "{refused:?}"
    );
    nodes.noticed().await;
    nodes.ready().await;
    assert_eq!(nodes.agree(&ask).await, 2);
    for _ in 0..5 {
        nodes.use_one(2, &ask, 1).await; // 1 + 2 + 5 of 10, and 2 held
    }
    assert!(ask.is_refused(&nodes.ledgers[1]).await);
    drop(held);
    assert_eq!(nodes.agree(&ask).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_restarts_with_what_it_had_before_is_told_again() {
    let mut nodes = Nodes::start(2).await;
    let ask = per_minute(10);
    nodes.use_one(0, &ask, 1).await;
    // From here on the disk has nothing.
    assert_eq!(nodes.server.ask(&["SAVE"]), "+OK");
    nodes.use_one(1, &ask, 2).await;
    let hold = ask.hold(&nodes.ledgers[0]).await;
    nodes.server.revive();
    nodes.noticed().await;
    nodes.ready().await;
    assert_eq!(nodes.agree(&ask).await, 1);
    drop(hold);
    assert_eq!(nodes.agree(&ask).await, 0);
}

/// What is settled, dropped, reported and drained while Redis is away is right when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_while_redis_is_away_is_made_up_for() {
    let nodes = Nodes::start(2).await;
    let ask = per_minute(20);
    nodes.use_one(0, &ask, 1).await;
    let holds: Vec<Hold> = vec![
        ask.hold(&nodes.ledgers[0]).await,
        ask.hold(&nodes.ledgers[0]).await,
        ask.hold(&nodes.ledgers[1]).await,
    ];
    nodes.server.freeze();
    let [settled, dropped, running] = <[Hold; 3]>::try_from(holds).unwrap();
    let begun = std::time::Instant::now();
    let event = ask.event(quantities(Messages, 2));
    settled
        .settle(nodes.base.append(event.clone()), &event)
        .await;
    drop(dropped);
    let refused = ask.reserve(&nodes.ledgers[0]).await;
    assert!(refused.is_err());
    let waited = begun.elapsed();
    assert!(waited < 2 * PATIENCE, "one wait for all: {waited:?}");
    let event = ask.event(quantities(Messages, 4));
    nodes.ledgers[1]
        .record(nodes.base.append(event.clone()), &event, &|_| None)
        .await;
    nodes.drain(0).await; // the store has all of it, and Redis was not told
    let event = ask.event(quantities(Messages, 8));
    nodes.ledgers[0]
        .record(nodes.base.append(event.clone()), &event, &|_| None)
        .await;
    nodes.server.thaw();
    nodes.ready().await;
    assert_eq!(nodes.agree(&ask).await, 1);
    drop(running);
    assert_eq!(nodes.agree(&ask).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_decides_by_what_it_saw_last_while_redis_is_away() {
    let mut nodes = Nodes::start(1).await;
    let ask = per_minute(5);
    nodes.use_one(0, &ask, 3).await;
    nodes.agree(&ask).await;
    nodes.server.kill();
    nodes.noticed().await;
    let Ledger::Redis(redis) = &nodes.ledgers[0] else {
        unreachable!();
    };
    let limits: Arc<[_]> = ask.limits.clone().into();
    let apart = |ask: &Ask| {
        let (redis, limits, wants) = (Arc::clone(redis), Arc::clone(&limits), ask.wants.clone());
        async move {
            let ask = crate::ledger::LedgerAsk {
                tenant: tenant(1),
                key: None,
                user: "",
                limits: &limits,
                wants: &wants,
                soft: crate::domain::limit::SoftLimitMode::Warn,
                on_violation: crate::ledger::OnViolation::Refuse,
                request_id: "a-request",
                now: at(0),
            };
            redis.reserve_apart(&ask).await.unwrap()
        }
    };
    let mut held = Vec::new();
    for _ in 0..2 {
        let Reserved::Held(hold) = apart(&ask).await else {
            panic!("3 + 2 <= 5");
        };
        held.push(hold);
    }
    assert!(matches!(apart(&ask).await, Reserved::Over(_)));
    let event = ask.event(quantities(Messages, 1));
    let seq = nodes.base.append(event.clone());
    held.pop().unwrap().settle(seq, &event).await;
    assert!(matches!(apart(&ask).await, Reserved::Over(_)), "it counts");
    drop(held);
    nodes.server.revive();
    nodes.ready().await;
    assert_eq!(nodes.agree(&ask).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_nodes_holds_are_back_after_their_lease_and_a_live_ones_are_not() {
    let mut nodes = Nodes::start(2).await;
    let long = ask(vec![messages(2)]);
    let alive = long.hold(&nodes.ledgers[0]).await;
    let Hold::Redis(mut dead) = long.hold(&nodes.ledgers[1]).await else {
        unreachable!();
    };
    // It ends without a word.
    dead.is_ended = true;
    nodes.redis.pop();
    nodes.ledgers.pop();
    drop(dead);

    let later = |seconds| long.clone().at(at(seconds));
    assert!(later(29).is_refused(&nodes.ledgers[0]).await);
    nodes.redis[0].renew(None).await.unwrap(); // by the clock of the last request
    assert_eq!(later(31).totals(&nodes.ledgers[0]).await, [(0, 1)]);
    assert_eq!(nodes.ledgers[0].ended().reaped, 1);
    assert_eq!(later(58).totals(&nodes.ledgers[0]).await, [(0, 1)]);
    drop(alive);
    assert_eq!(later(58).totals(&nodes.ledgers[0]).await, [(0, 0)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_hold_is_settled_or_released_by_any_node_and_ends_by_itself() {
    let mut nodes = Nodes::start(2).await;
    let ask = ask(vec![messages(9)]);
    let keep = async |seconds| {
        let hold = ask.hold(&nodes.ledgers[0]).await;
        let id = hold.id();
        let kept = nodes.ledgers[0].keep(hold, at(seconds)).await.unwrap();
        assert!(kept.is_none());
        id
    };
    let (settled, released, expiring) = (keep(300).await, keep(300).await, keep(300).await);
    assert_eq!(nodes.agree(&ask).await, 3);
    let event = ask.event(quantities(Messages, 2));
    let seq = nodes.base.append(event.clone());
    let hold = nodes.ledgers[1].kept(tenant(1), settled).unwrap();
    hold.settle(seq, &event).await;
    assert_eq!(nodes.agree(&ask).await, 2);
    assert!(nodes.ledgers[1].release(Some(tenant(1)), released).await);
    assert_eq!(nodes.agree(&ask).await, 1);
    // Its node may go.
    nodes.redis.remove(0);
    nodes.ledgers.remove(0);
    assert_eq!(
        ask.clone().at(at(299)).totals(&nodes.ledgers[0]).await,
        [(2, 1)]
    );
    assert_eq!(
        ask.clone().at(at(300)).totals(&nodes.ledgers[0]).await,
        [(2, 0)]
    );
    assert_eq!(nodes.ledgers[0].ended().expired, 1, "{expiring}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_released_on_another_node_is_not_renewed() {
    let nodes = Nodes::start(2).await;
    let ask = ask(vec![messages(9)]);
    let hold = ask.hold(&nodes.ledgers[0]).await;
    assert!(nodes.ledgers[1].release(Some(tenant(1)), hold.id()).await);
    nodes.redis[0].renew(None).await.unwrap();
    assert_eq!(nodes.agree(&ask).await, 0);
    assert_eq!(nodes.ledgers[0].in_flight().held, 0);
    let event = ask.event(quantities(Messages, 1));
    hold.settle(nodes.base.append(event.clone()), &event).await;
    assert_eq!(nodes.agree(&ask).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_counter_that_drifted_is_found_and_set_right() {
    let nodes = Nodes::start(1).await;
    let ask = per_minute(50);
    nodes.use_one(0, &ask, 3).await;
    nodes.drain(0).await;
    // By a hand that told nobody.
    nodes.base.append_stored(ask.event(quantities(Messages, 5)));
    let found = nodes.ledgers[0]
        .repair(tenant(1), Timestamp::EPOCH)
        .await
        .unwrap();
    let found: Vec<(i64, i64)> = found
        .iter()
        .map(|it| (it.live.get(), it.stored.get()))
        .collect();
    assert_eq!(found, [(3, 8), (3, 8)]);
    assert_eq!(nodes.agree(&ask).await, 0);
    let again = nodes.ledgers[0]
        .repair(tenant(1), Timestamp::EPOCH)
        .await
        .unwrap();
    assert_eq!(again, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_that_the_server_forgot_are_sent_again() {
    let nodes = Nodes::start(1).await;
    let ask = per_minute(50);
    nodes.use_one(0, &ask, 1).await;
    assert_eq!(nodes.server.ask(&["SCRIPT", "FLUSH"]), "+OK");
    nodes.use_one(0, &ask, 1).await;
    assert_eq!(nodes.agree(&ask).await, 0);
}

/// By Redis's clock, whatever the nodes' own say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_that_does_not_hold_the_servers_present_is_refused() {
    let server = RedisServer::start();
    let base = FakeBase::open();
    let clock = crate::clock::SharedClock::skewed(-120_000_000);
    let before = clock.now();
    let settings = RedisSettings {
        urls: vec![server.url().into()],
        clock: Clock::Shared(Arc::clone(&clock)),
        lease: LEASE,
        node: "behind".to_owned(),
    };
    let redis = RedisLedger::open(settings, base);
    redis.ready(SHORT).await;
    assert!(
        clock.now().since(before) >= Duration::from_secs(119),
        "it follows the server's clock"
    );
    let ledger = Ledger::Redis(redis);
    let of = |now: Timestamp| {
        let mut limit = limit(FeatureKey::Messages, Scope::Tenant, Minute, 1, now);
        limit.window = window(Minute, now);
        ask(vec![limit]).at(now)
    };
    let Reserved::Elsewhen(theirs) = of(before).reserve(&ledger).await.unwrap() else {
        panic!("two minutes ago is no window of the present");
    };
    let mut now = theirs;
    let hold = loop {
        match of(now).reserve(&ledger).await.unwrap() {
            Reserved::Held(hold) => break hold,
            Reserved::Elsewhen(theirs) => now = theirs, // a minute has just ended
            Reserved::Over(_) => panic!("nothing was used"),
        }
    };
    assert!(window(Minute, now).contains(hold.admitted_at()));
}
