//! Whoever is to know is told once, however many replicas could tell.

use futures_util::future::join_all;

use super::{Replicas, Store};
use crate::{
    promises::notices::{is_told, told},
    support::{Receiver, RedisServer, eventually, hard},
};

const LIMIT: i64 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_threshold_is_told_once_whichever_replicas_the_usage_went_through() {
    let receiver = Receiver::start().await;
    let prepare = |_, serve: crate::support::Serve| {
        serve
            .set("USAGE_GUARDRAIL_FAIL_MODE", "closed")
            .set("USAGE_WEBHOOK_URL", &receiver.url())
    };
    let replicas = Replicas::start_with(RedisServer::start(), Store::postgres(), 3, prepare).await;
    let mut tenants = Vec::new();
    for slug in ["acme", "beta", "last"] {
        let tenant = replicas.gates[tenants.len()].tenant(slug);
        tenants.push(tenant.limit("messages", hard(LIMIT)).create().await);
    }
    // Each replica counts a third of what passes a threshold, and each refuses.
    let once = [
        ("limit_reached", 1),
        ("threshold_reached 100", 1),
        ("threshold_reached 80", 1),
    ];
    for (tenant, slug) in tenants.iter().zip(["acme", "beta", "last"]) {
        let everywhere = replicas.everywhere(tenant);
        let asking = everywhere.iter().cycle().take(2 * 100);
        let answers = join_all(asking.map(|it| it.complete(serde_json::json!({})))).await;
        let answered = answers.iter().filter(|it| it.status == 200).count();
        let left = super::use_up(&everywhere).await;
        assert_eq!(i64::try_from(answered).unwrap() + left, LIMIT);
        is_told(&receiver, slug, &once).await;
    }
    // Whatever was to be told a second time has been by now: usage and refusals of later tenants have come after it.
    for gate in &replicas.gates {
        gate.is_drained().await;
    }
    let waiting = r#"status="pending""#;
    eventually("nothing waits to be told", || async {
        let gate = &replicas.gates[0];
        (gate.metric("usage_outbox_entries", waiting).await == 0).then_some(())
    })
    .await;
    for slug in ["acme", "beta", "last"] {
        assert!(told(&receiver, slug).values().all(|count| *count == 1));
    }
    replicas.finish(LIMIT, &tenants[0]).await;
}
