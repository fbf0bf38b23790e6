//! What the layout of a tenant's keys must stand: very many counters, and any key that goes alone.

use super::{
    tests::{Nodes, per_minute},
    *,
};
use crate::{
    domain::{
        feature::FeatureKey::{self, Messages},
        limit::{Scope, Subject},
        usage::Quantities,
        window::WindowKind::Lifetime,
    },
    ledger::{
        Hold,
        testing::{Ask, ask, at, exact, limit, tenant},
    },
};

/// Lua's functions take and give some thousand values, and a counter has six.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_may_have_very_many_counters() {
    let nodes = Nodes::start(2).await;
    let asks: Vec<Ask> = (0..7)
        .map(|part| {
            let of_part = (0..200).map(|number| format!("feature-{part}-{number}"));
            let features: Vec<FeatureKey> = of_part.map(|it| it.parse().unwrap()).collect();
            let features = features.into_iter();
            let limits = features
                .clone()
                .map(|it| limit(it, Scope::Tenant, Lifetime, 3, at(0)));
            ask(limits.collect()).wanting(features.map(|it| exact(it, 2)).collect())
        })
        .collect();
    for ask in asks.iter().chain(&asks) {
        let hold = ask.hold(&nodes.ledgers[0]).await;
        assert!(ask.is_refused(&nodes.ledgers[1]).await);
        drop(hold);
    }
    let features = || {
        let wants = asks.iter().flat_map(|ask| &ask.wants);
        wants.map(|want| want.feature.clone())
    };
    let event = asks[0].event(features().map(|it| (it, Quantity::ONE)).collect());
    let seq = nodes.base.append(event.clone());
    nodes.ledgers[0].record(seq, &event, &|_| None).await;
    for ask in &asks {
        assert_eq!(ask.totals(&nodes.ledgers[1]).await, [(1, 0); 200]);
    }
    // Their names are known to whoever compares them with the store.
    nodes.drain(0).await;
    let by_hand = Quantities::default().with(asks[6].wants[7].feature.clone(), Quantity::ONE);
    nodes.base.append_stored(asks[0].event(by_hand));
    let found = nodes.ledgers[1].repair(tenant(1), Timestamp::EPOCH).await;
    assert_eq!(found.unwrap().len(), 1);
}

/// Of the keys of a tenant, each may go alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_key_is_evicted_what_it_held_is_found_again() {
    for name in ["", "u:", "e", "d", "s"] {
        let mut nodes = Nodes::start(3).await;
        let ask = per_minute(50);
        nodes.use_one(0, &ask, 3).await;
        nodes.drain(0).await;
        nodes.use_one(1, &ask, 4).await; // not in the store
        let hold = ask.hold(&nodes.ledgers[0]).await;
        let Hold::Redis(mut dead) = ask.hold(&nodes.ledgers[2]).await else {
            unreachable!();
        };
        // Its node ends without a word.
        for redis in &nodes.redis {
            redis.renew(None).await.unwrap();
        }
        dead.is_ended = true;
        nodes.redis.pop();
        nodes.ledgers.pop();
        drop(dead);

        let root = nodes.redis[0].bucket(tenant(1)).root(tenant(1));
        let key = format!("{root}{name}");
        assert_eq!(nodes.server.ask(&["DEL", &key]), ":1", "{name}");
        // Nodes tell of what they hold, and of what the store has not, by and by.
        nodes.redis[0].renew(None).await.unwrap();
        nodes.drain(1).await;
        let dead = if name.is_empty() { 0 } else { 1 };
        assert_eq!(nodes.agree(&ask).await, 1 + dead, "{name}");
        // A lease later at the latest, it is noticed that a hold had no deadline any more; another, and it is over.
        for seconds in [31, 62] {
            let later = ask.clone().at(at(seconds));
            for redis in &nodes.redis {
                later.states(&nodes.ledgers[0]).await;
                redis.note_now(at(seconds));
                redis.renew(None).await.unwrap();
            }
        }
        let month = nodes.base.sum(
            tenant(1),
            &CounterOf {
                subject: Subject::Tenant,
                feature: Messages,
                window: ask.limits[0].window,
            },
            nodes.base.last(),
        );
        let later = ask.clone().at(at(62));
        assert_eq!(
            later.totals(&nodes.ledgers[1]).await[0],
            (month.get(), 1),
            "{name}"
        );
        drop(hold);
        assert_eq!(nodes.agree(&ask).await, 0, "{name}");
    }
}
