//! Whoever takes notices and batches: a real HTTP server that keeps what it was sent.

use std::{
    collections::VecDeque,
    io::Read as _,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use flate2::read::GzDecoder;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;

/// What it does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    Status(u16),
    /// 429 with `Retry-After` in seconds.
    Later(&'static str),
    /// Closes the connection without an answer.
    Nothing,
    /// Never answers.
    Hangs,
}

/// A request that it took with a 2xx, or did not.
#[derive(Clone, Debug)]
pub(crate) struct Post {
    pub(crate) headers: HeaderMap,
    /// As it came over the wire.
    pub(crate) body: Vec<u8>,
    pub(crate) said: Says,
}

impl Post {
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().expect("ASCII"))
    }

    pub(crate) fn is_taken(&self) -> bool {
        matches!(self.said, Says::Status(200..=299))
    }

    /// Decompressed if need be.
    pub(crate) fn json(&self) -> Value {
        let mut text = String::new();
        if self.header("content-encoding") == "gzip" {
            GzDecoder::new(&*self.body)
                .read_to_string(&mut text)
                .expect("gzip of UTF-8");
        } else {
            text = String::from_utf8(self.body.clone()).expect("UTF-8");
        }
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

#[derive(Default)]
struct Script {
    next: Mutex<VecDeque<Says>>,
    always: Mutex<Option<Says>>,
    posts: Mutex<Vec<Post>>,
}

/// The server; it ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct Receiver {
    address: std::net::SocketAddr,
    script: Arc<Script>,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let script = Arc::new(Script::default());
        let accepting = Arc::clone(&script);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let script = Arc::clone(&accepting);
                let service =
                    hyper::service::service_fn(move |request| take(Arc::clone(&script), request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, script }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/hook?token=EXAMPLE", self.address)
    }

    /// Says this to the next request.
    pub(crate) fn next(&self, says: Says) {
        self.script.next.lock().unwrap().push_back(says);
    }

    /// Says this to every request that no `next` is there for; 200 unless it is told else.
    pub(crate) fn always(&self, says: Says) {
        *self.script.always.lock().unwrap() = Some(says);
    }

    pub(crate) fn posts(&self) -> Vec<Post> {
        self.script.posts.lock().unwrap().clone()
    }

    /// What it took, in order.
    pub(crate) fn taken(&self) -> Vec<Post> {
        let mut posts = self.posts();
        posts.retain(Post::is_taken);
        posts
    }
}

async fn take(
    script: Arc<Script>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?;
    let next = script.next.lock().unwrap().pop_front();
    let said = next
        .or(*script.always.lock().unwrap())
        .unwrap_or(Says::Status(200));
    script.posts.lock().unwrap().push(Post {
        headers: head.headers,
        body: body.to_bytes().to_vec(),
        said,
    });
    let response = match said {
        Says::Status(status) => Response::builder().status(status),
        Says::Later(seconds) => Response::builder()
            .status(429)
            .header("retry-after", seconds),
        Says::Nothing => return Err(std::io::Error::other("it hangs up")),
        Says::Hangs => std::future::pending().await,
    };
    Ok(response.body(Full::default()).expect("a response"))
}
