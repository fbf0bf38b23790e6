//! With a part down, what can go on goes on, and is seen.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Instant,
};

use serde_json::json;

use crate::support::{FakeOpenAi, PATIENCE, Tollgate, eventually};

#[tokio::test]
async fn with_the_store_gone_known_tenants_chat_on_and_usage_waits_in_the_journal() {
    let upstream = FakeOpenAi::start().await;
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    acme.complete(json!({})).await.expect_ok();

    let database = gate.settings().data_dir().join("tollgate.db");
    let lock = rusqlite::Connection::open(&database).unwrap();
    lock.busy_timeout(PATIENCE).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE; CREATE TABLE in_the_way (x)")
        .unwrap();
    let begun = Instant::now();
    for _ in 0..5 {
        acme.complete(json!({})).await.expect_ok();
        acme.chat("hi").await.expect_ok();
    }
    let took = begun.elapsed();
    assert!(took < PATIENCE / 2, "nobody waits for the store: {took:?}");
    assert_eq!(acme.used("messages").await, 11);
    assert!(gate.metric("usage_journal_pending", "").await >= 5);
    lock.execute_batch("ROLLBACK").unwrap();
    drop(lock);
    gate.is_drained().await;
    assert_eq!(acme.total("messages").await, 11);
    gate.finish().await;
}

#[tokio::test]
async fn on_a_full_disk_nothing_is_answered_uncounted_and_room_heals_it_without_a_restart() {
    let gate = Tollgate::serve().on_a_disk_that_may_fill().start().await;
    let acme = gate.tenant("acme").create().await;
    acme.complete(json!({})).await.expect_ok();
    gate.take_writes(false);
    let answered = AtomicI64::new(1);
    eventually("usage can't be written any more", || async {
        let answer = acme.complete(json!({})).await;
        answered.fetch_add(i64::from(answer.status == 200), Ordering::SeqCst);
        (answer.status == 503 && answer.code() == "usage_store_unavailable").then_some(())
    })
    .await;
    let not_ready = gate.get("/readyz").await;
    assert_eq!(not_ready.status, 503, "{}", not_ready.text);
    assert_eq!(not_ready.json()["parts"]["journal"]["status"], "down");
    acme.chat("hi").await.expect(503, "usage_store_unavailable");
    gate.take_writes(true);
    let answered = answered.into_inner();
    eventually("it is ready again", || async {
        (gate.get("/readyz").await.status == 200).then_some(())
    })
    .await;
    acme.complete(json!({})).await.expect_ok();
    assert_eq!(
        acme.used("messages").await,
        answered + 1,
        "what was answered 503 is not charged"
    );
    assert_eq!(acme.total("messages").await, answered + 1);
    gate.finish().await;
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_a_bad_gateway_and_free() {
    let gate = Tollgate::serve()
        .set("TOLLGATE_PROVIDER", "openai")
        .set("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
        .start()
        .await;
    let acme = gate.tenant("acme").create().await;
    let answer = acme.complete(json!({})).await.expect(502, "upstream_error");
    assert_eq!(answer.json()["error"]["type"], "server_error");
    acme.chat("hi").await.expect(502, "upstream_error");
    assert_eq!(
        (acme.used("messages").await, acme.reserved("messages").await),
        (0, 0)
    );
    gate.finish().await;
}

#[tokio::test]
async fn an_upstream_that_never_answers_is_a_gateway_timeout_and_free() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(crate::support::Reply::Hang);
    let gate = Tollgate::serve()
        .upstream(&upstream)
        .set("TOLLGATE_UPSTREAM_TIMEOUT_SECONDS", "1")
        .start()
        .await;
    let acme = gate.tenant("acme").create().await;
    acme.complete(json!({}))
        .await
        .expect(504, "upstream_timeout");
    acme.chat("hi").await.expect(504, "upstream_timeout");
    assert_eq!(
        (acme.used("messages").await, acme.reserved("messages").await),
        (0, 0)
    );
    gate.finish().await;
}
