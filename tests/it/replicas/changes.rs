//! What is changed at one replica, and how soon it holds at the others.

use std::time::{Duration, Instant};

use serde_json::json;

use super::Replicas;
use crate::support::{Tenant, hard};

/// Asks until what is answered shows that the limit is in force; how many were answered.
async fn until(tenant: &Tenant, status: u16) -> i64 {
    let mut answered = 0;
    let begun = Instant::now();
    loop {
        let answer = tenant.complete(json!({})).await;
        answered += i64::from(answer.status == 200);
        if answer.status == status {
            return answered;
        }
        assert!(matches!(answer.status, 200 | 429 | 503), "{}", answer.text);
        assert!(begun.elapsed() < Duration::from_secs(10), "{}", answer.text);
    }
}

/// By turns a limit is raised, and lowered to what is used, at one replica after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_changed_at_one_replica_is_held_at_the_others_within_a_second_a_hundred_times() {
    let replicas = Replicas::start(3, "closed").await;
    let acme = replicas.gates[0].tenant("acme");
    let acme = acme.limit("messages", hard(0)).create().await;
    let everywhere = replicas.everywhere(&acme);
    let (mut used, mut slowest) = (0, Duration::ZERO);
    for round in 0..100_usize {
        let (limit, status) = if round % 2 == 0 {
            (used + 1_000, 200)
        } else {
            (used, 429)
        };
        let at = round / 2 % 3;
        let limit = limit.to_string();
        let set = ["plan", "feature", "set", &acme.plan, "messages"];
        let set = [&set[..], &["--hard", &limit]].concat();
        replicas.gates[at].cli_json(&set).await;
        let changed = Instant::now();
        // Where it was changed it holds at once.
        let here = everywhere[at].complete(json!({})).await;
        assert_eq!(here.status, status, "round {round}: {}", here.text);
        used += i64::from(here.status == 200);
        for elsewhere in [(at + 1) % 3, (at + 2) % 3] {
            used += until(&everywhere[elsewhere], status).await;
        }
        slowest = slowest.max(changed.elapsed());
    }
    eprintln!("a change held at the other replicas after {slowest:.1?} at most");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    replicas.finish(used, &acme).await;
}
