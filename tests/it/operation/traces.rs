//! W3C Trace Context: what a caller says of its trace goes on to the upstream, and stands on the request's log lines.

use http::HeaderMap;
use serde_json::{Value, json};

use crate::support::{FakeOpenAi, Frames, Reply, Tenant, Tollgate, eventually, hard, soft};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const STATE: &str = "vendor=00f067aa0ba902b7";

async fn ask(tenant: &Tenant, path: &str, body: Value, parent: Option<&str>) -> u16 {
    let mut request = tenant.request(reqwest::Method::POST, path);
    if let Some(parent) = parent {
        request = request
            .header("traceparent", parent)
            .header("tracestate", STATE);
    }
    let answer = request.body(body.to_string()).send().await.unwrap();
    let status = answer.status().as_u16();
    answer.text().await.unwrap(); // a stream is settled at its end
    status
}

fn completion(stream: bool) -> Value {
    json!({ "model": "gpt-5.1", "stream": stream, "messages": [{ "role": "user", "content": "hi" }] })
}

/// The lines logged with this `code`.
fn lines_of(gate: &Tollgate, code: &str) -> Vec<Value> {
    let log = gate.log();
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["code"] == code).collect()
}

fn trace_headers(headers: &HeaderMap) -> (Option<&str>, Option<&str>) {
    let text = |name| {
        headers
            .get(name)
            .map(|value: &http::HeaderValue| value.to_str().unwrap())
    };
    (text("traceparent"), text("tracestate"))
}

#[tokio::test]
async fn a_callers_trace_goes_on_upstream_as_it_came() {
    let upstream = FakeOpenAi::start().await;
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    let chat = json!({ "message": "hi" });
    for (path, body) in [
        ("/v1/chat/completions", completion(false)),
        ("/api/v1/chat", chat.clone()),
        ("/api/v1/chat/stream", chat),
    ] {
        upstream.always(Frames::words(2));
        assert_eq!(ask(&acme, path, body.clone(), Some(PARENT)).await, 200);
        let seen = upstream.last();
        assert_eq!(
            trace_headers(&seen.headers),
            (Some(PARENT), Some(STATE)),
            "{path}"
        );
        assert_eq!(ask(&acme, path, body, None).await, 200);
        let seen = upstream.last();
        assert_eq!(
            trace_headers(&seen.headers),
            (None, None),
            "none is made up: {path}"
        );
    }
    gate.finish().await;
}

#[tokio::test]
async fn every_log_line_of_a_traced_request_names_its_trace() {
    let upstream = FakeOpenAi::start().await;
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let warned = gate
        .tenant("warned")
        .limit("messages", soft(0))
        .create()
        .await;
    let refused = gate
        .tenant("refused")
        .limit("messages", hard(0))
        .create()
        .await;
    let over = gate
        .tenant("over")
        .limit("output_tokens", hard(100))
        .create()
        .await;
    upstream.always(Reply::text("hello", 7, 2));
    for parent in [Some(PARENT), None, Some("00-not-a-trace")] {
        assert_eq!(
            ask(&warned, "/v1/chat/completions", completion(false), parent).await,
            200
        );
        assert_eq!(
            ask(&refused, "/api/v1/chat", json!({ "message": "hi" }), parent).await,
            429
        );
    }
    // Settled while the stream is sent, and after its client has gone.
    upstream.next(Reply::Stream {
        texts: vec![" word".to_owned()],
        usage: Some(json!({ "prompt_tokens": 7, "completion_tokens": 150, "total_tokens": 157 })),
        ends: crate::support::Ends::Well,
    });
    assert_eq!(
        ask(
            &over,
            "/v1/chat/completions",
            completion(true),
            Some(PARENT)
        )
        .await,
        200
    );
    for (code, traced, untraced) in [
        ("usage_soft_limit_exceeded", 1, 2),
        ("usage_limit_exceeded", 1, 2),
        ("usage_overshoot", 1, 0),
    ] {
        let lines = eventually(code, || async {
            let lines = lines_of(&gate, code);
            (lines.len() >= traced + untraced).then_some(lines)
        })
        .await;
        let (with, without): (Vec<_>, Vec<_>) =
            lines.iter().partition(|line| line["trace_id"] == TRACE_ID);
        assert_eq!(
            (with.len(), without.len()),
            (traced, untraced),
            "{code}: {lines:#?}"
        );
        assert!(
            without.iter().all(|line| line.get("trace_id").is_none()),
            "{lines:#?}"
        );
    }
    gate.finish().await;
}

#[tokio::test]
async fn a_stream_whose_client_has_gone_stays_in_its_trace() {
    let upstream = FakeOpenAi::start().await;
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let over = gate
        .tenant("over")
        .limit("output_tokens", hard(100))
        .create()
        .await;
    upstream.next(Reply::Stream {
        texts: vec![" word".to_owned(); 3],
        usage: Some(json!({ "prompt_tokens": 7, "completion_tokens": 150, "total_tokens": 157 })),
        ends: crate::support::Ends::Well,
    });
    upstream.hold();
    let request = over.request(reqwest::Method::POST, "/v1/chat/completions");
    let request = request
        .header("traceparent", PARENT)
        .body(completion(true).to_string());
    let answer = request.send();
    let answer = tokio::spawn(answer);
    eventually("it is upstream", || async {
        (upstream.calls() == 1).then_some(())
    })
    .await;
    drop(answer.await.unwrap().unwrap()); // its head has come, none of its frames has
    eventually("its client has gone", || async {
        (gate.metric("usage_reservations", "detached").await == 1).then_some(())
    })
    .await;
    upstream.release();
    gate.logged("usage_overshoot").await;
    let lines = lines_of(&gate, "usage_overshoot");
    assert_eq!(lines[0]["trace_id"], TRACE_ID, "{lines:#?}");
    gate.finish().await;
}
