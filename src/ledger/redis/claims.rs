//! Claims of keyed requests whose end Redis did not hear of, and those that it took while nobody heard of them.

use std::{pin::pin, sync::Arc};

use super::{tests::Nodes, *};
use crate::{
    answers::{Answer, Answers, AskedBy, Begun, Claim},
    ledger::testing::{at, tenant},
};

fn asked(key: &str) -> AskedBy<'_> {
    AskedBy {
        tenant: tenant(1),
        route: "/v1/chat/completions",
        key,
    }
}

fn answer(length: usize) -> Answer {
    Answer {
        status: 200,
        headers: Vec::new(),
        body: vec![b'x'; length],
    }
}

/// The answers of each node.
fn answers_of(nodes: &Nodes) -> Vec<Answers> {
    let redis = nodes.redis.iter().map(Arc::clone);
    redis.map(Answers::in_redis).collect()
}

async fn begun(answers: &Answers, key: &str) -> Begun {
    let begun = answers.begin(asked(key), b"body", at(0)).await;
    begun.unwrap_or_else(|error| panic!("{key}: {error}"))
}

async fn claimed(answers: &Answers, key: &str) -> Claim {
    match begun(answers, key).await {
        Begun::Run(claim) => claim,
        other => panic!("{key}: {other:?}"),
    }
}

/// What becomes of a request that is in flight for no longer than it takes to tell.
async fn no_longer_in_flight(answers: &Answers, key: &str) -> Begun {
    for _ in 0..300 {
        match begun(answers, key).await {
            Begun::InFlight => tokio::time::sleep(Duration::from_millis(10)).await,
            other => return other,
        }
    }
    panic!("{key} is in flight for ever");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_redis_missed_are_kept_once_it_is_back() {
    const COUNT: usize = 40;
    let nodes = Nodes::start(2).await;
    let [first, second] = &answers_of(&nodes)[..] else {
        unreachable!()
    };
    let keys: Vec<String> = (0..COUNT).map(|number| format!("k{number}")).collect();
    let mut claims = Vec::new();
    for key in &keys {
        claims.push(claimed(first, key).await);
    }
    let large = claimed(first, "large").await;
    nodes.server.freeze();
    for claim in claims {
        assert!(claim.keep(&answer(100_000)).await.is_err());
    }
    assert!(large.keep(&answer((1 << 20) + 1)).await.is_err());
    nodes.server.thaw();
    nodes.ready().await;
    for key in &keys {
        match no_longer_in_flight(second, key).await {
            Begun::Answered(found) => assert_eq!(found, answer(100_000)),
            other => panic!("{key}: {other:?}"),
        }
    }
    let large = no_longer_in_flight(second, "large").await;
    assert!(matches!(large, Begun::NotKept), "{large:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_that_could_not_be_given_back_are_once_redis_is_back() {
    let nodes = Nodes::start(2).await;
    let [first, second] = &answers_of(&nodes)[..] else {
        unreachable!()
    };
    let (forgotten, dropped) = (
        claimed(first, "forgotten").await,
        claimed(first, "dropped").await,
    );
    let running = claimed(first, "running").await;
    nodes.server.freeze();
    forgotten.forget().await;
    drop(dropped);
    // Of those that are asked for Redis may take some all the same, later.
    let asks = ["unheard", "running"].map(|key| first.begin(asked(key), b"body", at(0)));
    for begun in futures_util::future::join_all(asks).await {
        assert!(begun.is_err(), "{begun:?}");
    }
    nodes.server.thaw();
    nodes.ready().await;
    for key in ["forgotten", "dropped", "unheard"] {
        let begun = no_longer_in_flight(second, key).await;
        assert!(matches!(begun, Begun::Run(_)), "{key}: {begun:?}");
    }
    for _ in 0..20 {
        for answers in [first, second] {
            let begun = begun(answers, "running").await;
            assert!(matches!(begun, Begun::InFlight), "{begun:?}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    running.keep(&answer(1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_in_redis_that_nobody_waits_for_is_given_back() {
    let nodes = Nodes::start(2).await;
    let [first, second] = &answers_of(&nodes)[..] else {
        unreachable!()
    };
    for (number, waits) in [0, 0, 100, 300, 1_000, 3_000].into_iter().enumerate() {
        let key = format!("k{number}");
        {
            let mut begin = pin!(first.begin(asked(&key), b"body", at(0)));
            let polled = futures_util::poll!(&mut begin);
            if polled.is_pending() {
                // It is not polled meanwhile: its answer may lie there, unread.
                tokio::time::sleep(Duration::from_micros(waits)).await;
            }
            drop(polled); // one that was quick enough has its claim, and nobody to run it
        }
        let begun = no_longer_in_flight(second, &key).await;
        assert!(matches!(begun, Begun::Run(_)), "{key}: {begun:?}");
    }
}
