//! "Limits of the connection".

use std::time::{Duration, Instant};

use crate::http::support::{FakeOpenAi, Tollgate};

/// What the built program waits before it gives up a client that says nothing, with some room.
const SILENCE: std::ops::Range<Duration> = Duration::from_secs(29)..Duration::from_secs(40);

async fn exchange(gate: &Tollgate, text: &str) -> String {
    let mut connection = gate.address.raw().await;
    connection.write(text).await;
    connection.read_to_end().await
}

#[tokio::test]
async fn a_head_that_cannot_be_read_gets_a_bare_400_and_is_closed() {
    let gate = Tollgate::serve().start().await;
    for head in [
        "nonsense\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nno colon here\r\n\r\n",
        "GET /a b HTTP/1.1\r\n\r\n",
    ] {
        let answer = exchange(&gate, head).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{head:?}: {answer}");
        assert!(answer.ends_with("\r\n\r\n"), "no body: {answer}");
    }
}

#[tokio::test]
async fn a_head_of_more_than_64_kib_or_100_fields_is_431() {
    let gate = Tollgate::serve().start().await;
    let begin = "GET /healthz HTTP/1.1\r\nconnection: close\r\n";
    let field =
        |length: usize| format!("{begin}x: {}\r\n\r\n", "y".repeat(length - begin.len() - 7));
    let fields = |count: usize| {
        let fields: String = (1..count).map(|i| format!("x-{i}: y\r\n")).collect();
        format!("{begin}{fields}\r\n")
    };
    for (head, status) in [
        (field(64 * 1024), 200),
        (field(64 * 1024 + 1), 431),
        (fields(100), 200),
        (fields(101), 431),
    ] {
        let answer = exchange(&gate, &head).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{} bytes: {answer}",
            head.len()
        );
    }
}

#[tokio::test]
async fn what_is_silent_for_30_seconds_is_closed_and_a_body_that_stands_still_is_408() {
    let gate = Tollgate::serve().start().await;
    let tenant = gate.tenant("acme").create().await;
    let half_a_body = format!(
        "POST /api/v1/chat HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\ncontent-length: 100\r\n\r\n{{\"message\":",
        tenant.key
    );
    let closes = async |text: &str| {
        let mut connection = gate.address.raw().await;
        let began = Instant::now();
        connection.write(text).await;
        let answer = connection.read_to_end_within(SILENCE.end * 2).await;
        (answer, began.elapsed())
    };
    let (nothing, half_a_head, idle, stalled) = tokio::join!(
        closes(""),
        closes("GET /healthz HTTP/1.1\r\nhost:"),
        closes("GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"),
        closes(&half_a_body),
    );
    for (what, (_, elapsed)) in [
        ("nothing", &nothing),
        ("half a head", &half_a_head),
        ("idle", &idle),
        ("body", &stalled),
    ] {
        assert!(SILENCE.contains(elapsed), "{what}: {elapsed:?}");
    }
    assert_eq!(half_a_head.0, "");
    assert!(idle.0.starts_with("HTTP/1.1 200 "), "{}", idle.0);
    assert!(stalled.0.starts_with("HTTP/1.1 408 "), "{}", stalled.0);
    assert!(stalled.0.contains("\"request_timeout\""), "{}", stalled.0);
}

#[tokio::test]
async fn content_length_beside_transfer_encoding_is_read_as_chunked() {
    let upstream = FakeOpenAi::start().await;
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let tenant = gate.tenant("acme").create().await;
    let body = r#"{"message":"hi"}"#;
    let answer = exchange(
        &gate,
        &format!(
            "POST /api/v1/chat HTTP/1.1\r\nhost: a\r\nconnection: close\r\nauthorization: Bearer {}\r\n\
             content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            tenant.key,
            body.len()
        ),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let gate = Tollgate::serve().start().await;
    let mut connection = gate.address.raw().await;
    for _ in 0..3 {
        connection
            .write("GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
            .await;
        let answer = connection.read_until("{\"status\":\"ok\"}").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

#[tokio::test]
async fn a_stopping_server_ends_its_streams_and_takes_nothing_new() {
    let upstream = FakeOpenAi::start().await;
    let mut gate = Tollgate::serve().upstream(&upstream).start().await;
    let tenant = gate.tenant("acme").create().await;
    let pen = upstream.streams();
    let mut stream = tenant.stream(serde_json::json!({})).await;
    pen.text("one").await;
    assert_eq!(
        stream.next_json().await["choices"][0]["delta"]["content"],
        "one"
    );

    let stopping = gate.begin_stop();
    crate::http::support::eventually("a closed door", || async {
        tokio::net::TcpStream::connect(gate.address.get())
            .await
            .err()
    })
    .await;
    pen.text("two").await;
    pen.finish("stop").await;
    pen.usage(3, 2).await;
    pen.done().await;
    assert_eq!(
        stream.next_json().await["choices"][0]["delta"]["content"],
        "two"
    );
    assert_eq!(stream.rest().await.last().unwrap(), "[DONE]");
    assert!(stopping.wait().await.success());

    gate.restart().await;
    assert_eq!(
        gate.cli(&["usage", "show", "--tenant", "acme", "--output", "json"])
            .await
            .expect_ok()
            .json()["tenant_slug"],
        "acme"
    );
}

#[tokio::test]
async fn too_many_requests_in_flight_are_turned_away_but_health_is_told() {
    let upstream = FakeOpenAi::start().await;
    let gate = Tollgate::serve()
        .upstream(&upstream)
        .env("TOLLGATE_MAX_IN_FLIGHT", 1)
        .start()
        .await;
    let tenant = gate.tenant("acme").create().await;
    let pen = upstream.streams();
    let mut stream = tenant.stream(serde_json::json!({})).await;
    pen.text("one").await;
    stream.next_json().await;

    let refused = tenant
        .completion(serde_json::json!({}))
        .await
        .expect(503, "overloaded");
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(refused.body["error"]["type"], "server_error");
    gate.get("/healthz").await.expect_ok();
    gate.get("/readyz").await.expect_ok();

    pen.finish("stop").await;
    pen.done().await;
    stream.rest().await;
    drop(stream);
    crate::http::support::eventually("a free place", || async {
        (tenant.completion(serde_json::json!({})).await.status == 200).then_some(())
    })
    .await;
}
