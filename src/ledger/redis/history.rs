//! Random histories of two nodes against a model: requests, reports, drains, counters dropped, keys evicted, clocks set
//! on, a server that is emptied, restarted or answers nothing for a while. The model is the list of durable events and of
//! open holds; every counter must be the sum of the ones that belong to it, whichever node is asked.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{tests::Nodes, *};
use crate::{
    domain::{
        feature::FeatureKey::{Messages, OutputTokens},
        limit::{ActiveLimit, Scope},
        usage::Quantities,
        window::WindowKind::{Lifetime, Minute, Period},
    },
    ledger::{
        Hold, Reserved,
        subjects::Who,
        testing::{Ask, at, exact, key, limit, tenant},
    },
};

const OPERATIONS: usize = 150;
const CHECK_EVERY: usize = 15;

struct History {
    nodes: Nodes,
    random: StdRng,
    held: Vec<(Hold, Ask)>,
    seconds: i64,
}

fn limits(set: usize, seconds: i64) -> Vec<ActiveLimit> {
    let now = at(seconds);
    let all = [
        limit(Messages, Scope::Tenant, Period, 40, now),
        limit(OutputTokens, Scope::Tenant, Lifetime, 900, now),
        limit(Messages, Scope::User, Minute, 6, now),
        limit(OutputTokens, Scope::Key, Period, 200, now),
        limit(Messages, Scope::Tenant, Lifetime, 120, now),
    ];
    let chosen: &[usize] = [&[0, 1][..], &[0, 1, 2, 3], &[1, 3, 4], &[]][set];
    chosen.iter().map(|&index| all[index].clone()).collect()
}

fn used(messages: i64, output: i64) -> Quantities {
    [(Messages, messages), (OutputTokens, output)]
        .map(|(feature, quantity)| (feature, Quantity::new(quantity)))
        .into_iter()
        .collect()
}

impl History {
    fn any_ask(&mut self) -> Ask {
        let random = &mut self.random;
        Ask {
            tenant: tenant(random.random_range(1..3)),
            key: [None, Some(key(1)), Some(key(2))][random.random_range(0..3)],
            user: ["", "ann", "bob"][random.random_range(0..3)].to_owned(),
            ..crate::ledger::testing::ask(limits(random.random_range(0..4), self.seconds))
                .wanting(vec![
                    exact(Messages, random.random_range(0..3)),
                    exact(OutputTokens, random.random_range(0..30)),
                ])
                .at(at(self.seconds))
        }
    }

    fn node(&mut self) -> usize {
        self.random.random_range(0..self.nodes.ledgers.len())
    }

    async fn step(&mut self) {
        let node = self.node();
        match self.random.random_range(0..110) {
            0..45 => self.reserve(node).await,
            45..65 => self.settle().await,
            65..73 => {
                if let Some((hold, _)) = self.take_held() {
                    drop(hold);
                }
            }
            73..80 => {
                let mut ask = self.any_ask();
                ask.now = at(self.seconds + self.random.random_range(-300..200));
                let event = ask.event(used(self.random.random_range(-1..4), 0));
                let seq = self.nodes.base.append(event.clone());
                self.nodes.ledgers[node]
                    .record(seq, &event, &|_| None)
                    .await;
            }
            80..90 => self.nodes.drain(node).await,
            90..93 => self.tick().await,
            93..95 => {
                let tenant = tenant(self.random.random_range(1..3));
                self.nodes.redis[node]
                    .begin_anew(tenant, &[])
                    .await
                    .unwrap();
            }
            95..97 => self.away().await,
            97..103 => self.evict().await,
            103 => {
                self.nodes.server.ask(&["FLUSHALL"]);
                self.back().await;
            }
            104 => {
                self.nodes.server.revive();
                self.back().await;
            }
            _ => self.check().await,
        }
    }

    /// One key of a tenant goes; nodes tell of what they hold, and of what the store has not, by and by.
    async fn evict(&mut self) {
        let tenant = tenant(self.random.random_range(1..3));
        let names = [
            "",
            "d",
            "e",
            "f",
            "s",
            "u:",
            "u:ann",
            &format!("k:{}", key(1)),
        ];
        let name = names[self.random.random_range(0..names.len())];
        let root = self.nodes.redis[0].bucket(tenant).root(tenant);
        self.nodes.server.ask(&["DEL", &format!("{root}{name}")]);
        for redis in &self.nodes.redis {
            redis.renew(None).await.unwrap();
        }
        let node = self.node();
        self.nodes.drain(node).await;
        self.check().await;
    }

    /// Time goes on by less than a lease, and leases are renewed.
    async fn tick(&mut self) {
        self.seconds += self.random.random_range(0..25);
        for index in 0..self.nodes.ledgers.len() {
            let mut any = crate::ledger::testing::ask(limits(0, self.seconds));
            any.now = at(self.seconds);
            any.states(&self.nodes.ledgers[index]).await;
            self.nodes.redis[index].renew(None).await.unwrap();
        }
    }

    async fn reserve(&mut self, node: usize) {
        let ask = self.any_ask();
        match ask.reserve(&self.nodes.ledgers[node]).await.unwrap() {
            Reserved::Held(hold) => {
                self.held.push((hold, ask));
                let (hold, ask) = self.held.last().unwrap();
                for limit in ask
                    .limits
                    .iter()
                    .filter(|it| hold.granted(&it.feature) > Quantity::ZERO)
                {
                    if let Some((settled, reserved)) = self.expected(ask, limit) {
                        let taken = settled.plus(reserved);
                        assert!(taken <= limit.hard.unwrap(), "{taken} is over {limit:?}");
                    }
                }
            }
            Reserved::Over(over) => assert!(!over.violations.is_empty()),
            Reserved::Elsewhen(_) => panic!("the clock is given"),
        }
    }

    fn take_held(&mut self) -> Option<(Hold, Ask)> {
        if self.held.is_empty() {
            return None;
        }
        let index = self.random.random_range(0..self.held.len());
        Some(self.held.swap_remove(index))
    }

    async fn settle(&mut self) {
        let Some((hold, ask)) = self.take_held() else {
            return;
        };
        let event = ask.event(used(
            self.random.random_range(0..3),
            self.random.random_range(0..40),
        ));
        let seq = self.nodes.base.append(event.clone());
        hold.settle(seq, &event).await;
    }

    /// The server answers nothing while things end, are reported and drained.
    async fn away(&mut self) {
        self.nodes.server.freeze();
        for _ in 0..4 {
            match self.random.random_range(0..4) {
                0 => self.settle().await,
                1 => drop(self.take_held()),
                2 => {
                    let node = self.node();
                    self.nodes.drain(node).await;
                }
                _ => {
                    let (node, ask) = (self.node(), self.any_ask());
                    assert!(ask.reserve(&self.nodes.ledgers[node]).await.is_err());
                }
            }
        }
        self.nodes.noticed().await;
        self.nodes.server.thaw();
        self.nodes.ready().await;
    }

    async fn back(&mut self) {
        self.nodes.noticed().await;
        self.nodes.ready().await;
    }

    /// Settled and reserved, as the model says; `None` where the limit does not apply.
    fn expected(&self, ask: &Ask, limit: &ActiveLimit) -> Option<(Quantity, Quantity)> {
        let who = |ask: &'_ Ask| (ask.key, ask.user.clone());
        let (key, user) = who(ask);
        let subject = Who { key, user: &user }.in_scope(limit.scope)?;
        let counter = CounterOf {
            subject: subject.into(),
            feature: limit.feature.clone(),
            window: limit.window,
        };
        let base = &self.nodes.base;
        let settled = base.sum(ask.tenant, &counter, base.last());
        let reserved = self.held.iter().filter(|(_, of)| {
            let (key, user) = who(of);
            let is_of = Who { key, user: &user }.subjects().any(|it| it == subject);
            of.tenant == ask.tenant && is_of && limit.window.contains(of.now)
        });
        let reserved = reserved.map(|(hold, _)| hold.granted(&limit.feature)).sum();
        Some((settled, reserved))
    }

    async fn check(&mut self) {
        for node in &self.nodes.ledgers {
            for tenant_number in 1..3 {
                // What was given back without waiting for it comes before this.
                let mut any = crate::ledger::testing::ask(limits(0, self.seconds));
                any.tenant = tenant(tenant_number);
                any.now = at(self.seconds);
                any.states(node).await;
            }
        }
        for _ in 0..6 {
            let ask = self.any_ask();
            for node in &self.nodes.ledgers {
                for state in ask.states(node).await {
                    let (settled, reserved) = self.expected(&ask, &state.limit).unwrap();
                    let stands = (state.settled, state.reserved);
                    assert_eq!(stands, (settled, reserved), "{:?} of {ask:?}", state.limit);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_every_counter_is_the_sum_of_what_belongs_to_it() {
    for seed in crate::torture::rounds(3, "HISTORIES") {
        let mut history = History {
            nodes: Nodes::start(2).await,
            random: StdRng::seed_from_u64(seed),
            held: Vec::new(),
            seconds: 0,
        };
        for step in 0..OPERATIONS {
            history.step().await;
            if step % CHECK_EVERY == 0 {
                history.check().await;
            }
        }
        history.held.clear();
        history.check().await;
    }
}
