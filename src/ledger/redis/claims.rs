//! Claims of keyed requests that nobody heard of.

use std::{pin::pin, sync::Arc};

use super::{tests::Nodes, *};
use crate::{
    answers::{Answers, AskedBy, Begun},
    ledger::testing::{at, tenant},
};

fn asked(key: &str) -> AskedBy<'_> {
    AskedBy {
        tenant: tenant(1),
        route: "/v1/chat/completions",
        key,
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
async fn a_claim_in_redis_that_nobody_waits_for_is_given_back() {
    let nodes = Nodes::start(2).await;
    let [first, second] = &answers_of(&nodes)[..] else {
        unreachable!()
    };
    for (number, waits) in [0, 0, 100, 300, 1_000, 3_000].into_iter().enumerate() {
        let key = format!("k{number}");
        {
            let mut begin = pin!(first.begin(asked(&key), b"body", at(0)));
            assert!(futures_util::poll!(&mut begin).is_pending());
            // It is not polled meanwhile: its answer may lie there, unread.
            tokio::time::sleep(Duration::from_micros(waits)).await;
        }
        let begun = no_longer_in_flight(second, &key).await;
        assert!(matches!(begun, Begun::Run(_)), "{key}: {begun:?}");
    }
}
