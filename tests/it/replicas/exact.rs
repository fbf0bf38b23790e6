//! Limits across replicas: to the last unit, and never beyond.

use futures_util::{StreamExt as _, stream};
use serde_json::json;

use super::{Replicas, use_up};
use crate::support::{Tenant, eventually, hard};

/// Requests on their way at once: as many as a client opens connections for.
const AT_ONCE: usize = 200;

/// Sends `count` requests, taking turns among replicas and users; how many were answered, the others were refused. What
/// a busy machine could not decide in time is sent again.
async fn complete(tenants: &[Tenant], count: usize) -> i64 {
    let requests = (0..count).map(|number| {
        let tenant = &tenants[number % tenants.len()];
        async move {
            loop {
                let answer = tenant.complete(json!({})).await;
                match answer.status {
                    200 => return 1,
                    429 => return 0,
                    _ => drop(answer.expect(503, "usage_store_unavailable")),
                }
            }
        }
    });
    let answered = stream::iter(requests).buffer_unordered(AT_ONCE);
    answered.fold(0, async |sum, one| sum + one).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_thousand_requests_to_three_replicas_get_exactly_a_thousand_answers() {
    let replicas = Replicas::start(3, "closed").await;
    let acme = replicas.gates[0].tenant("acme");
    let acme = acme.limit("messages", hard(1000)).create().await;
    let everywhere = replicas.everywhere(&acme);
    let answered = complete(&everywhere, 3000).await;
    let answered = answered + use_up(&everywhere).await;
    assert_eq!(answered, 1000);
    assert_eq!(replicas.upstream.calls(), 1000);
    replicas.finish(1000, &acme).await;
}

/// A limit of the tenant, one of each user, and one of output that lowers what requests ask for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_several_scopes_and_features_hold_at_once() {
    let replicas = Replicas::start(3, "closed").await;
    let acme = replicas.gates[0].tenant("acme");
    let acme = acme
        .limit("messages", hard(200))
        .limit("messages", hard(80).scope("user"))
        .limit("output_tokens", hard(1_000))
        .limit("cost", hard(1_000_000))
        .create()
        .await;
    let users: Vec<Tenant> = ["ann", "bob", "cy"]
        .iter()
        .flat_map(|user| replicas.everywhere(&acme.with_user(user)))
        .collect();
    let answered = complete(&users, 600).await;
    let answered = answered + use_up(&users).await;
    assert_eq!(
        answered, 200,
        "80 each would be 240; the tenant has 200, and output for all of them"
    );
    assert_eq!(acme.used("output_tokens").await, 600);
    replicas.finish(200, &acme).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_and_cost_are_never_passed() {
    let replicas = Replicas::start(3, "closed").await;
    let acme = replicas.gates[0].tenant("acme");
    let acme = acme.limit("output_tokens", hard(300)).create().await;
    let everywhere = replicas.everywhere(&acme);
    complete(&everywhere, 300).await;
    use_up(&everywhere).await;
    let used = acme.used("output_tokens").await;
    assert!(
        (300 - 15..=300).contains(&used),
        "{used} of 300, in steps of 3, least 16 free"
    );

    let dear = replicas.gates[1].tenant("dear");
    let dear = dear.limit("cost", hard(9_000)).create().await;
    let everywhere = replicas.everywhere(&dear);
    complete(&everywhere, 300).await;
    use_up(&everywhere).await;
    let cost = dear.used("cost").await;
    assert!(cost <= 9_000, "{cost}");
    assert!(cost > 4_500, "{cost}");
    let messages = acme.used("messages").await;
    replicas.finish(messages, &acme).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_replica_held_is_back_within_its_lease_and_the_limit_is_used_up() {
    let mut replicas = Replicas::start(2, "closed").await;
    let acme = replicas.gates[0].tenant("acme");
    let acme = acme.limit("messages", hard(10)).create().await;
    let [first, second] = [0, 1].map(|at| acme.at(&replicas.gates[at]));
    second.complete(json!({})).await.expect_ok();
    replicas.upstream.hold();
    let in_flight: Vec<_> = (0..6)
        .map(|_| {
            let first = first.clone();
            tokio::spawn(async move { first.complete(json!({})).await })
        })
        .collect();
    eventually("six are held", || async {
        (second.reserved("messages").await == 6).then_some(())
    })
    .await;
    replicas.gates[0].kill9();
    let died = std::time::Instant::now();
    replicas.upstream.release();
    for request in in_flight {
        drop(request.await);
    }
    for _ in 0..3 {
        second.complete(json!({})).await.expect_ok();
    }
    second
        .complete(json!({}))
        .await
        .expect(429, "usage_limit_reserved");
    while second.reserved("messages").await > 0 {
        assert!(died.elapsed().as_secs() < 32, "the lease is 30 s");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    assert_eq!(use_up(std::slice::from_ref(&second)).await, 6);
    assert!(
        replicas.gates[1]
            .metric("usage_reservations_total", r#"end="reaped""#)
            .await
            >= 6
    );
    replicas.gates.remove(0);
    replicas.finish(10, &acme).await;
}
