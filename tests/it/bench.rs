//! The benchmarks' own load and model, for a moment, so that what `make bench` runs on can't rot unseen.

#[path = "../bench/http/clock.rs"]
mod clock;
#[expect(dead_code, reason = "the benchmarks use all of it")]
#[path = "../bench/http/load.rs"]
mod load;
#[path = "../bench/http/upstream.rs"]
mod upstream;

use std::{net::SocketAddr, time::Duration};

use crate::support::{Tollgate, hard};

const PROMPT: &str =
    r#"{"model":"gpt-4o","messages":[{"role":"user","content":"hi"}],"max_tokens":200}"#;

#[tokio::test]
async fn the_benchmarks_load_and_model_work() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let model = listener.local_addr().unwrap();
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(upstream::serve(listener));
    let gate = Tollgate::serve()
        .set("TOLLGATE_PROVIDER", "openai")
        .set("OPENAI_BASE_URL", &format!("http://{model}/v1"))
        .start()
        .await;
    let busy = gate.tenant("busy").limit("messages", hard(1_000_000));
    let busy = busy.create().await;
    let address: SocketAddr = gate.base.trim_start_matches("http://").parse().unwrap();

    let call = load::Call::chat(address, &busy.key, PROMPT);
    let (warm_up, time) = (Duration::ZERO, Duration::from_millis(50));
    let answered = load::closed(&call, 4, warm_up, time).await.unwrap();
    assert!(0 < answered.requests);
    let answered = load::open(&call, 100, time).await.unwrap();
    assert_eq!(answered.requests, 5);

    let stream = PROMPT.replacen(
        '{',
        r#"{"stream":true,"stream_options":{"include_usage":true},"#,
        1,
    );
    let call = load::Call::chat(address, &busy.key, &stream);
    let streamed = load::streams(&call, 2, Duration::from_millis(1))
        .await
        .unwrap();
    assert_eq!(streamed.streams, 2);
    let sent = upstream::FRAMES + 2;
    assert_eq!(streamed.frames, [sent, sent], "frames one to one");
    assert_eq!(streamed.end_late_ms.len(), 2);
    gate.finish().await;
}
