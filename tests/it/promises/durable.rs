//! What a client has its answer for is on disk; nothing is counted twice.

use futures_util::StreamExt;
use serde_json::json;

use super::serve;
use crate::support::{FakeOpenAi, Frames};

#[tokio::test]
async fn a_clean_stop_leaves_everything_in_the_store() {
    let mut gate = serve().start().await;
    let acme = gate.tenant("acme").create().await;
    for _ in 0..10 {
        acme.chat("hi").await.expect_ok();
    }
    assert_eq!(gate.terminate().await, 0, "{}", gate.log());
    let gate = gate.restart().await;
    let acme = acme.at(&gate);
    assert_eq!(
        (acme.used("messages").await, acme.total("messages").await),
        (10, 10)
    );
    gate.finish().await;
}

#[tokio::test]
async fn totals_are_rebuilt_from_the_store_where_they_are_not_kept() {
    let gate = serve()
        .set("USAGE_GUARDRAIL_CACHE_BACKEND", "memory")
        .start()
        .await;
    let acme = gate.tenant("acme").create().await;
    for _ in 0..5 {
        acme.with_user("ann").chat("hi").await.expect_ok();
    }
    let gate = gate.restart().await;
    assert_eq!(acme.at(&gate).used("messages").await, 5);
    gate.finish().await;
}

#[tokio::test]
async fn a_stop_lets_streams_end() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Frames::words(3));
    let mut gate = serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    let mut stream = acme.open(json!({})).await.bytes_stream();
    upstream.hold();
    stream.next().await.expect("the first frame").unwrap();
    let stopping = tokio::spawn(async move {
        let code = gate.terminate().await;
        (code, gate)
    });
    upstream.release();
    let mut last = Vec::new();
    while let Some(chunk) = stream.next().await {
        last = chunk.expect("the stream ends well").to_vec();
    }
    assert!(last.ends_with(b"data: [DONE]\n\n"));
    let (code, gate) = stopping.await.unwrap();
    assert_eq!(code, 0, "{}", gate.log());
    let gate = gate.restart().await;
    assert_eq!(acme.at(&gate).used("messages").await, 1);
    gate.finish().await;
}
