//! What a request gets while the store is away, as `USAGE_GUARDRAIL_FAIL_MODE` says; and what `USAGE_DURABILITY` keeps.

use serde_json::json;

use crate::support::{
    Calls, FakeOpenAi, Fault, FaultyDisk, How, Serve, Tenant, Tollgate, eventually, hard,
};

/// No call on the database or its log works.
const STORE_AWAY: Fault = Fault {
    path: "/tollgate.db",
    calls: Calls::ALL,
    how: How::Broken,
    good: 0,
    bad: u64::MAX,
};

/// A server whose disk can be taken away, and a tenant each of whose users has a limit.
struct Scene {
    upstream: FakeOpenAi,
    disk: FaultyDisk,
    gate: Tollgate,
    acme: Tenant,
}

impl Scene {
    async fn set(fail_mode: &str) -> Self {
        let upstream = FakeOpenAi::start().await;
        let disk = FaultyDisk::build();
        let serve: Serve = Tollgate::serve()
            .upstream(&upstream)
            .set("USAGE_GUARDRAIL_FAIL_MODE", fail_mode);
        let gate = disk.under(serve).start().await;
        let acme = gate
            .tenant("acme")
            .limit("messages", hard(3).scope("user"))
            .create()
            .await;
        Self {
            upstream,
            disk,
            gate,
            acme,
        }
    }

    /// The tenant's key and plan stay known; what its users have used is not, but for Ann.
    async fn take_the_store_away(&self) {
        let ann = self.acme.with_user("ann");
        ann.complete(json!({})).await.expect_ok();
        // What SQLite has in memory it trusts until something is written: then it must read again.
        self.gate.is_drained().await;
        self.disk.arm(STORE_AWAY);
    }

    async fn store_is(&self, status: &str) {
        eventually("readiness names the store", || async {
            let ready = self.gate.get("/readyz").await.json();
            (ready["parts"]["store"]["status"] == status).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn closed_refuses_what_can_not_be_decided_before_the_model_runs() {
    let scene = Scene::set("closed").await;
    scene.take_the_store_away().await;
    let bob = scene.acme.with_user("bob");
    let calls = scene.upstream.calls();
    for _ in 0..3 {
        let refused = bob.complete(json!({})).await;
        let refused = refused.expect(503, "usage_store_unavailable");
        assert_eq!(refused.json()["error"]["type"], "server_error");
        let native = bob.chat("hi").await;
        native.expect(503, "usage_store_unavailable");
    }
    assert_eq!(scene.upstream.calls(), calls);
    scene.store_is("down").await;
    let not_ready = scene.gate.get("/readyz").await;
    assert_eq!(
        (not_ready.status, &not_ready.json()["status"]),
        (503, &json!("not_ready"))
    );

    scene.disk.heal();
    scene.gate.is_ready().await;
    bob.complete(json!({})).await.expect_ok();
    assert_eq!(bob.total("messages").await, 2, "Ann's and Bob's");
    scene.gate.finish().await;
}

#[tokio::test]
async fn open_lets_it_by_counts_that_and_the_usage_arrives_when_the_store_is_back() {
    let scene = Scene::set("open").await;
    scene.take_the_store_away().await;
    for user in ["bob", "cy", "di"] {
        let user = scene.acme.with_user(user);
        user.complete(json!({})).await.expect_ok();
        user.chat("hi").await.expect_ok();
    }
    let passed = scene
        .gate
        .metric("usage_guardrail_fail_open_total", "")
        .await;
    assert_eq!(passed, 6, "each is counted");
    scene.gate.logged("usage_guardrail_fail_open").await;
    scene.store_is("down").await;
    let ready = scene.gate.get("/readyz").await;
    assert_eq!(
        (ready.status, &ready.json()["status"]),
        (200, &json!("degraded"))
    );

    scene.disk.heal();
    scene.gate.is_ready().await;
    scene.gate.is_drained().await;
    assert_eq!(scene.acme.total("messages").await, 7);
    let bob = scene.acme.with_user("bob");
    bob.complete(json!({})).await.expect_ok();
    let refused = bob.complete(json!({})).await;
    refused.expect(429, "usage_limit_exceeded"); // what was let by counts
    scene.gate.finish().await;
}

#[tokio::test]
async fn a_key_that_is_not_known_is_refused_in_both_modes_while_the_store_is_away() {
    for fail_mode in ["open", "closed"] {
        let scene = Scene::set(fail_mode).await;
        let stranger = scene.gate.tenant("stranger").create().await;
        scene.take_the_store_away().await;
        let calls = scene.upstream.calls();
        stranger
            .complete(json!({}))
            .await
            .expect(503, "usage_store_unavailable");
        let invented = scene.acme.with_key("tg_00000000000000000000000000000000");
        let refused = invented.chat("hi").await;
        assert!(matches!(refused.status, 401 | 503), "{}", refused.text);
        assert_eq!(scene.upstream.calls(), calls, "{fail_mode}");
        scene
            .acme
            .with_user("ann")
            .complete(json!({}))
            .await
            .expect_ok();

        scene.disk.heal();
        scene.gate.is_ready().await;
        stranger.complete(json!({})).await.expect_ok();
        scene.gate.finish().await;
    }
}

#[tokio::test]
async fn process_durability_survives_the_end_of_the_process() {
    let serve = Tollgate::serve().set("USAGE_DURABILITY", "process");
    let mut gate = serve.start().await;
    let acme = gate.tenant("acme").create().await;
    for round in 1..=3 {
        for _ in 0..10 {
            acme.at(&gate).complete(json!({})).await.expect_ok();
        }
        gate.kill9();
        gate = gate.restart().await;
        let acme = acme.at(&gate);
        let counted = (acme.used("messages").await, acme.total("messages").await);
        assert_eq!(counted, (10 * round, 10 * round));
    }
    gate.finish().await;
}
