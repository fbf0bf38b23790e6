//! What a node owes Redis when that is back, and in which order: nothing that was used may be free for a moment.

use std::sync::{Arc, atomic::AtomicBool};

use tokio::sync::Semaphore;

use super::{
    tests::{
        Nodes, open_node,
        server::{RedisCluster, RedisServer},
    },
    *,
};
use crate::{
    domain::{
        feature::FeatureKey::Messages,
        limit::Scope,
        window::WindowKind::{Lifetime, Minute},
    },
    ledger::{
        Hold, Ledger, Reserved,
        testing::{Ask, FakeBase, ask, at, limit, messages, quantities, tenant},
    },
};
use futures_util::future::BoxFuture;

/// The last unit of a limit.
fn last_one() -> Ask {
    ask(vec![messages(1)])
}

/// One node's view: a journal of its own, or none; what was found in it is told only once the gate lets it by.
struct Own {
    base: Arc<FakeBase>,
    has_journal: bool,
    is_closed: AtomicBool,
    gate: Semaphore,
}

impl Own {
    fn new(base: &Arc<FakeBase>, has_journal: bool) -> Arc<Self> {
        Arc::new(Self {
            base: Arc::clone(base),
            has_journal,
            is_closed: AtomicBool::new(false),
            gate: Semaphore::new(0),
        })
    }

    fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
    }

    fn open(&self) {
        self.is_closed.store(false, Ordering::SeqCst);
        self.gate.add_permits(1000);
    }
}

impl SharedBase for Own {
    fn sums<'a>(
        &'a self,
        tenant: TenantId,
        counters: &'a [CounterOf],
        events: &'a [EventId],
    ) -> BoxFuture<'a, Result<SumsOfEvents, LedgerError>> {
        self.base.sums(tenant, counters, events)
    }

    fn undrained(&self) -> BoxFuture<'_, Result<Vec<UsageEvent>, LedgerError>> {
        Box::pin(async move {
            if !self.has_journal {
                return Ok(Vec::new());
            }
            let found = self.base.undrained().await;
            if self.is_closed.load(Ordering::SeqCst) {
                self.gate.acquire().await.unwrap().forget();
            }
            found
        })
    }

    fn last_seq(&self) -> Seq {
        self.base.last_seq()
    }

    fn reservations(&self) -> BoxFuture<'_, Result<Vec<Reservation>, LedgerError>> {
        self.base.reservations()
    }
}

/// Uses what `hold` holds while Redis answers nothing: its node can only write it down.
async fn use_unheard(base: &FakeBase, ask: &Ask, hold: Hold) {
    let event = ask.event(quantities(Messages, 1));
    let seq = base.append(event.clone());
    hold.settle(seq, &event).await;
}

async fn until_down(redis: &RedisLedger) {
    while redis.fault().is_none() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Asks until `is_over`; nothing may be left, however often it is asked.
async fn nothing_is_left(ledger: &Ledger, ask: &Ask, mut is_over: impl FnMut() -> bool) {
    let mut decided = 0;
    while !is_over() || decided < 20 {
        match ask.reserve(ledger).await {
            Ok(Reserved::Held(_)) => panic!("what was used was free for a moment"),
            Ok(_) => decided += 1,
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_into_the_store_while_redis_was_away_is_not_free_before_it_is_read() {
    for _ in 0..3 {
        let nodes = Nodes::start(2).await;
        let hold = last_one().hold(&nodes.ledgers[0]).await;
        nodes.server.freeze();
        until_down(&nodes.redis[0]).await;
        use_unheard(&nodes.base, &last_one(), hold).await;
        nodes.drain(0).await;
        nodes.server.thaw();
        let is_back = || nodes.redis[0].fault().is_none();
        nothing_is_left(&nodes.ledgers[1], &last_one(), is_back).await;
        assert_eq!(last_one().totals(&nodes.ledgers[1]).await, [(1, 0)]);
    }
}

/// One bucket that is back must not have the holds of another given back, whose usage is told later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_a_cluster_that_is_back_gives_back_nothing_of_another() {
    let cluster = RedisCluster::start();
    let base = FakeBase::open();
    let journal = Own::new(&base, true);
    let (redis, ledger) = open_node(&cluster.urls(), Arc::clone(&journal) as _, "slow").await;
    let (_, other) = open_node(&cluster.urls(), Own::new(&base, false), "other").await;
    let hold = last_one().hold(&ledger).await;

    journal.close();
    let all = |act: fn(&RedisServer)| cluster.masters.iter().for_each(act);
    all(RedisServer::freeze);
    for bucket in redis.buckets.iter() {
        while !matches!(*bucket.state(), State::Down(_)) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    use_unheard(&base, &last_one(), hold).await;
    all(RedisServer::thaw);
    let own = redis.bucket_index(tenant(1));
    let is_back = |index: usize| matches!(*redis.buckets[index].state(), State::Live(_));
    // All but this one.
    while !(0..redis.buckets.len()).any(is_back) {
        journal.gate.add_permits(1);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if !is_back(own) {
        let mut asked = 0;
        nothing_is_left(&other, &last_one(), || {
            asked += 1;
            asked > 200
        })
        .await;
    }
    journal.open();
    nothing_is_left(&other, &last_one(), || redis.fault().is_none()).await;
    assert_eq!(last_one().totals(&other).await, [(1, 0)]);
}

/// A call that waited when the connection broke would go to whatever server is there next, by what that one knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_asked_before_redis_went_away_is_not_asked_when_it_is_back() {
    let nodes = Nodes::start(1).await;
    let redis = &nodes.redis[0];
    let release = wire::Count::default().question();
    let early = redis.call(tenant(1), Script::Count, &release).unwrap();
    redis.bucket(tenant(1)).fail(&Fault::TimedOut);
    nodes.ready().await;
    let answer = redis.put(tenant(1), early, None).answer().await;
    assert!(matches!(answer, Err(Fault::Away(_))), "{answer:?}");
    let late = redis.call(tenant(1), Script::Count, &release).unwrap();
    assert!(redis.put(tenant(1), late, None).answer().await.is_ok());
}

/// The others were told without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_held_before_the_server_was_lost_is_not_granted_once_all_was_told() {
    let nodes = Nodes::start(1).await;
    let redis = &nodes.redis[0];
    let before = redis.bucket(tenant(1)).term().unwrap();
    drop(last_one().hold(&nodes.ledgers[0]).await);
    let open = |term: &Term| {
        let open = Arc::new(Open {
            id: redis.new_id(at(0)),
            tenant: tenant(1),
            key: None,
            user: String::new(),
            request_id: String::new(),
            admitted_at: at(0),
            granted: quantities(Messages, 1),
            is_detached: AtomicBool::new(false),
        });
        redis.keep_open(&open, term).is_ok()
    };
    assert!(open(&before));
    nodes.server.ask(&["FLUSHALL"]);
    nodes.noticed().await;
    nodes.ready().await;
    assert!(!open(&before));
    assert!(open(&redis.bucket(tenant(1)).term().unwrap()));
}

/// Until every node has told what it knows, a sum of the store may lack what nobody will tell of later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_total_is_read_while_nodes_still_tell_what_they_know() {
    let server = RedisServer::start();
    let base = FakeBase::open();
    let journal = Own::new(&base, true);
    let (redis, ledger) = open_node(&server.url(), Arc::clone(&journal) as _, "slow").await;
    let (_, other) = open_node(&server.url(), Own::new(&base, false), "other").await;
    let hold = last_one().hold(&ledger).await;
    let event = last_one().event(quantities(Messages, 1));
    let seq = base.append(event.clone());
    hold.settle(seq, &event).await;
    ledger.announce(&[(seq, event)]).await;

    journal.close();
    server.ask(&["FLUSHALL"]);
    until_down(&redis).await;
    while !matches!(*redis.buckets[0].state(), State::Rebuilding(_)) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // As who looks for a notice to send.
    let until = tokio::time::Instant::now() + Duration::from_millis(500);
    while last_one().try_states(&other).await.is_err() && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    base.store_upto(seq); // what was announced to the server before
    journal.open();
    nothing_is_left(&other, &last_one(), || redis.fault().is_none()).await;
}

/// Its node may have written it to the store without a word from Redis, as one that is cut off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_silent_node_held_is_looked_for_in_the_store_when_its_lease_is_over() {
    let mut nodes = Nodes::start(2).await;
    let Hold::Redis(mut cut_off) = last_one().hold(&nodes.ledgers[1]).await else {
        unreachable!();
    };
    cut_off.is_ended = true;
    nodes.redis.pop();
    nodes.ledgers.pop();
    drop(cut_off);
    nodes
        .base
        .append_stored(last_one().event(quantities(Messages, 1)));
    let later = last_one().at(at(31));
    assert!(later.is_refused(&nodes.ledgers[0]).await);
    assert_eq!(later.totals(&nodes.ledgers[0]).await, [(1, 0)]);
    assert_eq!(nodes.ledgers[0].ended().reaped, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_counter_that_appears_has_usage_once_that_came_into_the_store_unannounced() {
    let nodes = Nodes::start(1).await;
    let limits = [
        messages(9),
        limit(Messages, Scope::Tenant, Minute, 9, at(0)),
    ];
    let few = ask(vec![limits[0].clone()]);
    nodes.use_one(0, &few, 2).await;
    nodes.base.store_upto(nodes.base.last()); // in the dark
    nodes.use_one(0, &few, 1).await;
    let more = ask(vec![
        limits[0].clone(),
        limit(Messages, Scope::Tenant, Lifetime, 9, at(0)),
    ]);
    assert_eq!(more.totals(&nodes.ledgers[0]).await, [(3, 0), (3, 0)]);
    nodes.base.store_upto(nodes.base.last());
    let all = ask(limits.into());
    assert_eq!(all.totals(&nodes.ledgers[0]).await, [(3, 0), (3, 0)]);
    let found = nodes.ledgers[0].repair(tenant(1), Timestamp::EPOCH).await;
    assert_eq!(found.unwrap(), []);
}

/// The drain is done with it, and its totals were read anew, before its request is woken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_settles_at_any_point_of_a_drain_in_the_dark_counts_once() {
    for settled_at in 0..4 {
        let nodes = Nodes::start(2).await;
        let ask = ask(vec![messages(9)]);
        let mut hold = Some(ask.hold(&nodes.ledgers[0]).await);
        let event = ask.event(quantities(Messages, 1));
        let seq = nodes.base.append(event.clone());
        let batch = [(seq, event.clone())];
        nodes.server.freeze();
        until_down(&nodes.redis[0]).await;
        nodes.ledgers[0].announce(&batch).await;
        nodes.base.store_upto(seq);
        for point in 0..4 {
            match point {
                1 => {
                    nodes.server.thaw();
                    nodes.ready().await;
                }
                2 => drop(nodes.ledgers[0].drained(&batch).await),
                3 => nodes.ledgers[0].forgotten(&batch).await,
                _ => {}
            }
            if point == settled_at
                && let Some(hold) = hold.take()
            {
                hold.settle(seq, &event).await;
            }
            if point > 1 {
                let totals = ask.totals(&nodes.ledgers[1]).await;
                let held = i64::from(hold.is_some());
                assert_eq!(totals, [(1, held)], "at {point}, settled at {settled_at}");
            }
        }
    }
}

#[test]
fn a_heartbeat_that_began_before_an_outage_does_not_end_it() {
    let bucket = Bucket::new(0);
    let live = || State::Live("epoch".into());
    let before = bucket.outages();
    assert!(bucket.turn(live(), before));
    bucket.fail(&Fault::TimedOut);
    assert!(!bucket.turn(live(), before));
    assert!(matches!(*bucket.state(), State::Down(_)));
    assert!(bucket.turn(live(), bucket.outages()));
    assert_eq!(*bucket.state(), live());
}
