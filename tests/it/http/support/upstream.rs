//! An upstream that speaks OpenAI's API and does as it is told: a real HTTP server on a free port that records what it
//! gets. Nothing waits for time to pass: a stream moves on when the test says so.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::{sync::DropGuard, task::TaskTracker};

use super::{eventually, soon};

type Body = BoxBody<Bytes, io::Error>;

/// A request as it came.
#[derive(Clone, Debug)]
pub(in crate::http) struct Seen {
    pub(in crate::http) path: String,
    pub(in crate::http) headers: HeaderMap,
    pub(in crate::http) body: Bytes,
}

impl Seen {
    /// Null where the body is no JSON.
    pub(in crate::http) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

/// What the upstream says where nothing else is scripted.
#[derive(Clone, Debug)]
pub(in crate::http) struct Usual {
    pub(in crate::http) text: &'static str,
    pub(in crate::http) input_tokens: i64,
    /// Whatever maximum the request names.
    pub(in crate::http) output_tokens: i64,
    pub(in crate::http) reports: Reports,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Reports {
    Usage,
    Nothing,
}

impl Default for Usual {
    fn default() -> Self {
        Self {
            text: "hello",
            input_tokens: 12,
            output_tokens: 5,
            reports: Reports::Usage,
        }
    }
}

enum Script {
    Whole {
        status: u16,
        content_type: &'static str,
        body: Bytes,
    },
    Stream(mpsc::Receiver<Result<Bytes, io::Error>>),
    /// Takes the request and never answers.
    Hang,
}

#[derive(Default)]
struct State {
    scripts: VecDeque<Script>,
    usual: Usual,
    seen: Vec<Seen>,
}

/// The upstream; gone when dropped.
pub(in crate::http) struct FakeOpenAi {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _stop: DropGuard,
}

impl FakeOpenAi {
    pub(in crate::http) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let stop = tokio_util::sync::CancellationToken::new();
        let tasks = TaskTracker::new();
        let accepting = accept(listener, Arc::clone(&state), tasks.clone(), stop.clone());
        let stopped = stop.clone();
        tasks.spawn(async move { stopped.run_until_cancelled(accepting).await });
        Self {
            address,
            state,
            _stop: stop.drop_guard(),
        }
    }

    pub(in crate::http) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// What to say where nothing is scripted.
    pub(in crate::http) fn usually(&self, usual: Usual) {
        self.state.lock().unwrap().usual = usual;
    }

    /// The next answer: a whole one.
    pub(in crate::http) fn answers(&self, status: u16, body: &Value) {
        self.answers_raw(status, "application/json", body.to_string());
    }

    /// The next answer: these bytes.
    pub(in crate::http) fn answers_raw(
        &self,
        status: u16,
        content_type: &'static str,
        body: impl Into<Bytes>,
    ) {
        self.script(Script::Whole {
            status,
            content_type,
            body: body.into(),
        });
    }

    /// The next answer: a stream that the test writes.
    pub(in crate::http) fn streams(&self) -> Pen {
        let (pen, stream) = mpsc::channel(1);
        self.script(Script::Stream(stream));
        Pen(pen)
    }

    /// The next request gets no answer.
    pub(in crate::http) fn hangs(&self) {
        self.script(Script::Hang);
    }

    fn script(&self, script: Script) {
        self.state.lock().unwrap().scripts.push_back(script);
    }

    /// How many requests came.
    pub(in crate::http) fn calls(&self) -> usize {
        self.state.lock().unwrap().seen.len()
    }

    /// The last request; fails the test if none came.
    pub(in crate::http) fn last(&self) -> Seen {
        self.state
            .lock()
            .unwrap()
            .seen
            .last()
            .expect("the upstream was not called")
            .clone()
    }

    /// Waits until `count` requests came.
    pub(in crate::http) async fn called(&self, count: usize) {
        eventually(&format!("call {count} of the upstream"), || async {
            (self.calls() >= count).then_some(())
        })
        .await;
    }
}

/// Writes a stream, piece by piece; dropped, it ends the stream as a whole one ends.
pub(in crate::http) struct Pen(mpsc::Sender<Result<Bytes, io::Error>>);

impl Pen {
    /// Writes bytes; they have left when the next write is taken.
    pub(in crate::http) async fn raw(&self, bytes: impl Into<Bytes>) {
        let _ = soon("room in a stream", self.0.send(Ok(bytes.into()))).await;
    }

    /// One event.
    pub(in crate::http) async fn event(&self, data: &Value) {
        self.raw(format!("data: {data}\n\n")).await;
    }

    /// One piece of text.
    pub(in crate::http) async fn text(&self, text: &str) {
        self.event(&chunk(
            json!([{ "index": 0, "delta": { "content": text }, "finish_reason": null }]),
        ))
        .await;
    }

    /// Why it ends.
    pub(in crate::http) async fn finish(&self, reason: &str) {
        self.event(&chunk(
            json!([{ "index": 0, "delta": {}, "finish_reason": reason }]),
        ))
        .await;
    }

    pub(in crate::http) async fn usage(&self, input_tokens: i64, output_tokens: i64) {
        let mut chunk = chunk(json!([]));
        chunk["usage"] = usage(input_tokens, output_tokens);
        self.event(&chunk).await;
    }

    pub(in crate::http) async fn done(self) {
        self.raw("data: [DONE]\n\n").await;
    }

    /// Ends the connection in the middle.
    pub(in crate::http) async fn break_off(self) {
        let broken = io::Error::other("the test breaks off here");
        let _ = soon("room in a stream", self.0.send(Err(broken))).await;
    }

    /// Waits until nobody reads any more.
    pub(in crate::http) async fn hung_up(&self) {
        soon("the end of the reader", self.0.closed()).await;
    }
}

fn chunk(choices: Value) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "gpt-5.1",
        "choices": choices,
    })
}

fn usage(input_tokens: i64, output_tokens: i64) -> Value {
    json!({
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    })
}

async fn accept(
    listener: TcpListener,
    state: Arc<Mutex<State>>,
    tasks: TaskTracker,
    stop: tokio_util::sync::CancellationToken,
) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let state = Arc::clone(&state);
        let service = service_fn(move |request| answer(Arc::clone(&state), request));
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service);
        let stopped = stop.clone();
        tasks.spawn(async move { stopped.run_until_cancelled(connection).await.map(drop) });
    }
}

async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let Ok(body) = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
    else {
        return Ok(whole(400, "text/plain", "the request broke off".into()));
    };
    let seen = Seen {
        path: parts.uri.path().to_owned(),
        headers: parts.headers,
        body,
    };
    let (script, usual) = {
        let mut state = state.lock().unwrap();
        state.seen.push(seen.clone());
        (state.scripts.pop_front(), state.usual.clone())
    };
    Ok(match script {
        Some(Script::Whole {
            status,
            content_type,
            body,
        }) => whole(status, content_type, body),
        Some(Script::Stream(stream)) => streamed(stream),
        Some(Script::Hang) => std::future::pending().await,
        None => usual_answer(&usual, &seen),
    })
}

fn whole(status: u16, content_type: &str, body: Bytes) -> Response<Body> {
    let body = http_body_util::Full::new(body)
        .map_err(|never| match never {})
        .boxed();
    Response::builder()
        .status(status)
        .header("content-type", content_type)
        .body(body)
        .unwrap()
}

fn streamed(mut pieces: mpsc::Receiver<Result<Bytes, io::Error>>) -> Response<Body> {
    let frames = futures_util::stream::poll_fn(move |context| {
        pieces
            .poll_recv(context)
            .map(|piece| piece.map(|bytes| bytes.map(Frame::data)))
    });
    let body = StreamBody::new(frames).boxed();
    Response::builder()
        .header("content-type", "text/event-stream")
        .body(body)
        .unwrap()
}

fn usual_answer(usual: &Usual, seen: &Seen) -> Response<Body> {
    let request = seen.json();
    let body = match seen.path.as_str() {
        "/v1/models" => {
            json!({ "object": "list", "data": [{ "id": "gpt-5.1", "object": "model" }] })
        }
        "/v1/embeddings" => json!({
            "object": "list", "model": request["model"],
            "data": [{ "object": "embedding", "index": 0, "embedding": [0.5] }],
            "usage": { "prompt_tokens": usual.input_tokens, "total_tokens": usual.input_tokens },
        }),
        "/v1/chat/completions" if request["stream"] == true => {
            return usual_stream(usual, &request);
        }
        "/v1/chat/completions" => usual_completion(usual, &request),
        path => {
            return whole(
                404,
                "application/json",
                json!({ "error": { "message": path } }).to_string().into(),
            );
        }
    };
    whole(200, "application/json", body.to_string().into())
}

fn usual_completion(usual: &Usual, request: &Value) -> Value {
    let mut body = json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": request["model"],
        "choices": [{ "index": 0, "message": { "role": "assistant", "content": usual.text }, "finish_reason": "stop" }],
    });
    if usual.reports == Reports::Usage {
        body["usage"] = usage(usual.input_tokens, usual.output_tokens);
    }
    body
}

fn usual_stream(usual: &Usual, request: &Value) -> Response<Body> {
    let mut events = vec![
        chunk(
            json!([{ "index": 0, "delta": { "role": "assistant", "content": usual.text }, "finish_reason": null }]),
        ),
        chunk(json!([{ "index": 0, "delta": {}, "finish_reason": "stop" }])),
    ];
    if usual.reports == Reports::Usage && request["stream_options"]["include_usage"] == true {
        let mut last = chunk(json!([]));
        last["usage"] = usage(usual.input_tokens, usual.output_tokens);
        events.push(last);
    }
    let mut text: String = events
        .iter()
        .map(|event| format!("data: {event}\n\n"))
        .collect();
    text.push_str("data: [DONE]\n\n");
    whole(200, "text/event-stream", text.into())
}

#[tokio::test]
async fn a_stream_moves_on_when_the_test_says_so() {
    let upstream = FakeOpenAi::start().await;
    let pen = upstream.streams();
    let address = super::http::Address::new(upstream.address);
    let request = Request::post("/v1/chat/completions")
        .body("{}".into())
        .unwrap();
    let mut stream = address.open(request).await;
    pen.text("one").await;
    assert_eq!(
        stream.next_json().await["choices"][0]["delta"]["content"],
        "one"
    );
    pen.finish("stop").await;
    pen.usage(3, 4).await;
    pen.done().await;
    assert_eq!(
        stream.next_json().await["choices"][0]["finish_reason"],
        "stop"
    );
    assert_eq!(stream.next_json().await["usage"]["total_tokens"], 7);
    assert_eq!(stream.rest().await, ["[DONE]"]);

    let pen = upstream.streams();
    let stream = address
        .open(
            Request::post("/v1/chat/completions")
                .body("{}".into())
                .unwrap(),
        )
        .await;
    drop(stream);
    pen.hung_up().await;
    assert_eq!(upstream.calls(), 2);
}

#[tokio::test]
async fn scripted_answers_come_first_and_then_the_usual_one() {
    let upstream = FakeOpenAi::start().await;
    upstream.answers(429, &json!({ "error": { "message": "slow down" } }));
    let address = super::http::Address::new(upstream.address);
    let ask = || {
        Request::post("/v1/chat/completions")
            .body(r#"{"model":"m"}"#.into())
            .unwrap()
    };
    assert_eq!(address.send(ask()).await.status, 429);
    let usual = address.send(ask()).await.expect_ok();
    assert_eq!(usual.body["usage"]["completion_tokens"], 5);
    assert_eq!(upstream.last().json()["model"], "m");
}
