//! An OpenAI-compatible server whose answers a test writes.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
};

type Body = BoxBody<Bytes, std::io::Error>;

/// What the upstream answers.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// A status and a body, as they are.
    Raw(u16, Vec<(&'static str, &'static str)>, String),
    /// An OpenAI answer with this text and usage.
    Text { text: String, usage: Value },
    /// A stream: these texts as chunks, then usage if asked for, then `[DONE]`.
    Stream {
        texts: Vec<String>,
        usage: Option<Value>,
        ends: Ends,
    },
    /// Never.
    Hang,
}

/// How a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    Well,
    /// The connection closes in the middle.
    BreaksOff,
    /// Nothing comes any more.
    Hangs,
}

/// Scripts for streams.
pub(crate) struct Frames;

impl Frames {
    /// `count` words, with honest usage.
    pub(crate) fn words(count: usize) -> Reply {
        Reply::Stream {
            texts: vec![" word".to_owned(); count],
            usage: Some(usage(7, count)),
            ends: Ends::Well,
        }
    }

    pub(crate) fn breaking_off(count: usize) -> Reply {
        Reply::Stream {
            texts: vec![" word".to_owned(); count],
            usage: None,
            ends: Ends::BreaksOff,
        }
    }

    /// `count` words, and no word of usage.
    pub(crate) fn without_usage(count: usize) -> Reply {
        Reply::Stream {
            texts: vec![" word".to_owned(); count],
            usage: None,
            ends: Ends::Well,
        }
    }

    pub(crate) fn hanging(count: usize) -> Reply {
        Reply::Stream {
            texts: vec![" word".to_owned(); count],
            usage: None,
            ends: Ends::Hangs,
        }
    }
}

pub(crate) fn usage(input: usize, output: usize) -> Value {
    json!({ "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output })
}

impl Reply {
    pub(crate) fn text(text: &str, input: usize, output: usize) -> Self {
        Self::Text {
            text: text.to_owned(),
            usage: usage(input, output),
        }
    }
}

/// A request that arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

#[derive(Default)]
struct Script {
    replies: Mutex<VecDeque<Reply>>,
    always: Mutex<Option<Reply>>,
    seen: Mutex<Vec<Seen>>,
    calls: AtomicU64,
    /// Streams wait here before each frame while it is closed.
    gate: Gate,
}

#[derive(Default)]
struct Gate {
    is_closed: std::sync::atomic::AtomicBool,
    opened: Notify,
}

impl Gate {
    async fn pass(&self) {
        loop {
            let opened = self.opened.notified();
            if !self.is_closed.load(Ordering::SeqCst) {
                return;
            }
            opened.await;
        }
    }
}

/// The server; it ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct FakeOpenAi {
    address: std::net::SocketAddr,
    script: Arc<Script>,
}

impl FakeOpenAi {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let script = Arc::new(Script::default());
        let accepting = Arc::clone(&script);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).expect("a socket");
                let script = Arc::clone(&accepting);
                let service =
                    hyper::service::service_fn(move |request| answer(Arc::clone(&script), request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, script }
    }

    pub(crate) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Answers the next request so.
    pub(crate) fn next(&self, reply: Reply) {
        self.script.replies.lock().unwrap().push_back(reply);
    }

    /// Answers every request so that no `next` is there for.
    pub(crate) fn always(&self, reply: Reply) {
        *self.script.always.lock().unwrap() = Some(reply);
    }

    pub(crate) fn calls(&self) -> u64 {
        self.script.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.script.seen.lock().unwrap().clone()
    }

    pub(crate) fn last(&self) -> Seen {
        self.seen().pop().expect("a request arrived")
    }

    /// Answers wait from now on.
    pub(crate) fn hold(&self) {
        self.script.gate.is_closed.store(true, Ordering::SeqCst);
    }

    /// Answers go on.
    pub(crate) fn release(&self) {
        self.script.gate.is_closed.store(false, Ordering::SeqCst);
        self.script.gate.opened.notify_waiters();
    }
}

async fn answer(
    script: Arc<Script>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::io::Error> {
    let (head, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .map_err(std::io::Error::other)?
        .to_bytes();
    let seen = Seen {
        headers: head.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    let asked: Value = serde_json::from_str(&seen.body).unwrap_or(Value::Null);
    script.seen.lock().unwrap().push(seen);
    script.calls.fetch_add(1, Ordering::SeqCst);
    let queued = script.replies.lock().unwrap().pop_front();
    let reply = queued
        .or_else(|| script.always.lock().unwrap().clone())
        .unwrap_or(Reply::text("hello", 7, 2));
    match reply {
        Reply::Raw(status, headers, body) => {
            script.gate.pass().await;
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            Ok(response.body(full(body)).expect("a response"))
        }
        Reply::Text { text, usage } => {
            script.gate.pass().await;
            Ok(whole(&asked, &text, &Some(usage)))
        }
        Reply::Stream { texts, usage, .. } if asked["stream"] != true => {
            Ok(whole(&asked, &texts.concat(), &usage))
        }
        Reply::Stream { texts, usage, ends } => Ok(stream(script, &asked, texts, usage, ends)),
        Reply::Hang => std::future::pending().await,
    }
}

fn whole(asked: &Value, text: &str, usage: &Option<Value>) -> Response<Body> {
    let body = json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": asked["model"],
        "choices": [{ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": "stop" }],
        "usage": usage,
    });
    let response = Response::builder().header("content-type", "application/json");
    response.body(full(body.to_string())).expect("a response")
}

fn full(body: String) -> Body {
    http_body_util::Full::new(Bytes::from(body))
        .map_err(|never: Infallible| match never {})
        .boxed()
}

fn stream(
    script: Arc<Script>,
    asked: &Value,
    texts: Vec<String>,
    usage: Option<Value>,
    ends: Ends,
) -> Response<Body> {
    let asks_usage = asked["stream_options"]["include_usage"] == true;
    let model = asked["model"].clone();
    let chunk = move |choices: Value, usage: Value| {
        let mut chunk = json!({ "id": "chatcmpl-1", "object": "chat.completion.chunk", "model": model, "choices": choices });
        if asks_usage {
            chunk["usage"] = usage;
        }
        format!("data: {chunk}\n\n")
    };
    let (sender, mut receiver) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(1);
    tokio::spawn(async move {
        let delta = |delta: Value, reason: Value| json!([{ "index": 0, "delta": delta, "finish_reason": reason }]);
        let mut frames = vec![chunk(
            delta(json!({ "role": "assistant", "content": "" }), Value::Null),
            Value::Null,
        )];
        frames.extend(
            texts
                .iter()
                .map(|text| chunk(delta(json!({ "content": text }), Value::Null), Value::Null)),
        );
        if ends == Ends::Well {
            frames.push(chunk(delta(json!({}), json!("stop")), Value::Null));
            frames.extend(
                usage
                    .filter(|_| asks_usage)
                    .map(|usage| chunk(json!([]), usage)),
            );
            frames.push("data: [DONE]\n\n".to_owned());
        }
        for frame in frames {
            script.gate.pass().await;
            if sender.send(Ok(Frame::data(frame.into()))).await.is_err() {
                return;
            }
        }
        match ends {
            Ends::Well => {}
            Ends::BreaksOff => drop(sender.send(Err(std::io::Error::other("broke off"))).await),
            Ends::Hangs => sender.closed().await,
        }
    });
    let frames = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
    Response::builder()
        .header("content-type", "text/event-stream")
        .body(BodyExt::boxed(SyncBody(StreamBody::new(frames))))
        .expect("a response")
}

/// A channel's receiver is `Sync`, and so is a body over it.
struct SyncBody<B>(B);

impl<B> http_body::Body for SyncBody<B>
where
    B: http_body::Body + Unpin,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        std::pin::Pin::new(&mut self.0).poll_frame(context)
    }
}
