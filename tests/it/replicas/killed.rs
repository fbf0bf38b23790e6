//! Replicas that are killed, one after the other, with requests on their way everywhere.

use std::sync::atomic::{AtomicI64, Ordering};

use futures_util::future::join_all;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{PAUSE, Replicas};
use crate::support::{Tenant, eventually};

/// On each replica.
const ASKERS: i64 = 4;

/// Until it is told to stop, or its replica is gone.
async fn ask_on(tenant: &Tenant, answered: &AtomicI64, until: &CancellationToken) {
    let body = json!({ "model": "gpt-5.1", "messages": [{ "role": "user", "content": "hi" }] });
    while !until.is_cancelled() {
        match tenant.try_post("/v1/chat/completions", &body).await {
            Ok(answer) if answer.status == 200 => {
                answered.fetch_add(1, Ordering::SeqCst);
            }
            // A busy machine; closed.
            Ok(answer) => drop(answer.expect(503, "usage_store_unavailable")),
            Err(_it_was_killed) => return,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_answered_is_counted_once_though_one_replica_after_the_other_is_killed() {
    let mut replicas = Replicas::start(3, "closed").await;
    let acme = replicas.gates[0].tenant("acme").create().await;
    let answered = AtomicI64::new(0);
    for killed in [0, 1, 2, 0] {
        let everywhere = replicas.everywhere(&acme);
        let (until, before) = (CancellationToken::new(), answered.load(Ordering::SeqCst));
        let loads = everywhere
            .iter()
            .flat_map(|tenant| (0..ASKERS).map(|_| ask_on(tenant, &answered, &until)));
        let killing = async {
            eventually("there is load", || async {
                (answered.load(Ordering::SeqCst) > before + 60).then_some(())
            })
            .await;
            replicas.gates[killed].kill9();
            until.cancel();
        };
        tokio::join!(join_all(loads), killing);
        let gate = replicas.gates.remove(killed);
        replicas.gates.insert(killed, gate.restart().await);
    }
    for gate in &replicas.gates {
        gate.is_drained().await;
    }
    let answered = answered.into_inner();
    let acme = acme.at(&replicas.gates[0]);
    let counted = acme.total("messages").await;
    // What was written down when the kill came may have had no answer yet.
    assert!(
        answered <= counted && counted <= answered + 4 * ASKERS,
        "{answered} answered, {counted} counted"
    );
    replicas.finish(counted, &acme).await;
}
