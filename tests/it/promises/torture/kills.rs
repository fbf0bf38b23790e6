//! `kill -9` under load, as often as asked for.

use std::{
    os::unix::fs::MetadataExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use serde_json::json;

use crate::support::{FakeOpenAi, Frames, Tenant, Tollgate, eventually, torture};

/// Asks until it is stopped; counts answers that came whole, streams and whole ones by turns.
async fn load(acme: Tenant, answered: Arc<AtomicI64>, stop: Arc<AtomicBool>, streams: bool) {
    while !stop.load(Ordering::SeqCst) {
        let is_answered = if streams {
            read_stream(&acme).await
        } else {
            read_whole(&acme).await
        };
        match is_answered {
            Some(true) => _ = answered.fetch_add(1, Ordering::SeqCst),
            Some(false) => panic!("a request was refused"),
            None => return, // the server was killed under it
        }
    }
}

async fn read_whole(acme: &Tenant) -> Option<bool> {
    let body = json!({ "model": "gpt-5.1", "messages": [{ "role": "user", "content": "hi" }] });
    acme.try_post("/v1/chat/completions", &body)
        .await
        .ok()
        .map(|answer| answer.status == 200)
}

async fn read_stream(acme: &Tenant) -> Option<bool> {
    let body = json!({ "model": "gpt-5.1", "stream": true, "messages": [{ "role": "user", "content": "hi" }] });
    let request = acme
        .request(reqwest::Method::POST, "/v1/chat/completions")
        .body(body.to_string());
    let mut stream = request.send().await.ok()?.bytes_stream();
    let mut last = Vec::new();
    while let Some(chunk) = stream.next().await {
        last = chunk.ok()?.to_vec();
    }
    last.ends_with(b"data: [DONE]\n\n").then_some(true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answered_request_is_counted_once_however_often_the_process_is_killed() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Frames::words(2));
    let mut gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    let answered = Arc::new(AtomicI64::new(0));
    let mut called = 0;
    for round in torture::rounds(20, "KILLS") {
        let stop = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..8)
            .map(|index| {
                let (acme, answered, stop) =
                    (acme.at(&gate), Arc::clone(&answered), Arc::clone(&stop));
                tokio::spawn(load(acme, answered, stop, index % 2 == 0))
            })
            .collect();
        let before = answered.load(Ordering::SeqCst);
        eventually("requests are answered", || async {
            (answered.load(Ordering::SeqCst)
                > before + 5 + i64::try_from(round % 40 * 7 % 40).unwrap())
            .then_some(())
        })
        .await;
        gate.kill9();
        stop.store(true, Ordering::SeqCst);
        for client in clients {
            client.await.expect("no client was refused");
        }
        if round % 4 == 3 {
            kill_while_it_recovers(&gate).await;
        }
        let begun = Instant::now();
        gate = gate.restart().await;
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "ready again after {:?}",
            begun.elapsed()
        );
        called = i64::try_from(upstream.calls()).unwrap();
        let counted = acme.at(&gate).total("messages").await;
        let released = answered.load(Ordering::SeqCst);
        assert!(
            released <= counted,
            "round {round}: {released} were answered, {counted} are counted"
        );
        assert!(
            counted <= called,
            "round {round}: {counted} are counted of {called} that ran"
        );
        assert_eq!(
            acme.at(&gate).used("messages").await,
            counted,
            "round {round}: live totals equal the store's"
        );
        assert_eq!(
            acme.at(&gate).total("output_tokens").await,
            2 * counted,
            "round {round}: each counted whole"
        );
    }
    assert!(called > 100, "there was load: {called} calls");
    gate.finish().await;
}

/// Starts the server once more, and kills it as soon as it has taken the data dir.
async fn kill_while_it_recovers(gate: &Tollgate) {
    let lock = gate.settings().data_dir().join("tollgate.lock");
    let inode = format!(":{} ", std::fs::metadata(lock).unwrap().ino());
    let mut recovering = gate.settings().command(&["serve"]).spawn().unwrap();
    eventually("the server takes the data dir", || async {
        std::fs::read_to_string("/proc/locks")
            .unwrap()
            .contains(&inode)
            .then_some(())
    })
    .await;
    recovering.kill().unwrap();
    recovering.wait().unwrap();
}
