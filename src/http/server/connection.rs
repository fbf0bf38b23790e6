//! One connection: its protocol, its requests, and the watch over it.

use std::{
    convert::Infallible, future::Future, net::SocketAddr, pin::Pin, sync::Arc, time::Duration,
};

use axum::body::Body;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use http::{Request, Response, StatusCode, Version};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, runtime::Handle, time::Instant};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use super::{
    Peer, Routes, ServerOptions,
    activity::{Activity, RequestGuard, Verdict},
    socket::{Protocol, Socket},
    unread::Unread,
};
use crate::http::overload::Guarded;

const MOST_HEAD_BYTES: u32 = 64 * 1024;
/// hyper's own limit for HTTP/1, which costs nothing as long as it is not set to another.
const MOST_HEAD_FIELDS: usize = 100;
/// Of HTTP/1, for reading and for writing; a head has to fit in.
const MOST_BUFFERED_BYTES: usize = 128 * 1024;
const MOST_STREAMS: u32 = 256;
/// An idle HTTP/2 client is told to go, and has so long to do it.
const GO_AWAY: Duration = Duration::from_secs(1);

pub(super) struct Connection<R> {
    handler: Handler<R>,
    activity: Arc<Activity>,
    stopping: CancellationToken,
    stop_time: Duration,
}

impl<R: Routes> Connection<R> {
    /// Called on the runtime where requests run that may take long.
    pub(super) fn new(
        routes: R,
        peer: SocketAddr,
        shutdown: &CancellationToken,
        options: &ServerOptions,
    ) -> Self {
        let activity = Activity::begin();
        Self {
            handler: Handler {
                routes,
                peer,
                activity: Arc::clone(&activity),
                tracker: options.tracker.clone(),
                elsewhere: Handle::current(),
                unread: Unread::default(),
            },
            activity,
            // A child of its own: waking up looks at the token, and all connections would meet at one lock.
            stopping: shutdown.child_token(),
            stop_time: options.stop_time,
        }
    }

    /// Serves the connection to its end, on the runtime that this is called on.
    pub(super) async fn run(self, stream: std::net::TcpStream) {
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(code = "accept_failed", %error, "a connection can't be taken");
                return;
            }
        };
        // Answers are written whole, frames of streams one by one: waiting for more to send would only delay them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was refused");
        }
        let opened = tokio::select! {
            opened = Socket::open(stream, Arc::clone(&self.activity)) => opened,
            () = self.silence() => return,
            () = self.stopping.cancelled() => return,
        };
        let Ok(Some((socket, protocol))) = opened else {
            return; // the client has gone without a word
        };
        match protocol {
            Protocol::Http1 => {
                let connection =
                    http1().serve_connection(TokioIo::new(socket), self.handler.clone());
                self.watch(connection).await;
            }
            Protocol::Http2 => {
                let connection = http2(Executor(self.handler.tracker.clone()))
                    .serve_connection(TokioIo::new(socket), self.handler.clone());
                self.watch(connection).await;
            }
        }
    }

    /// Ends when the connection has been idle for too long.
    async fn silence(&self) {
        while let Verdict::LookAgainAt(when) = self.activity.verdict() {
            tokio::time::sleep_until(when).await;
        }
    }

    /// Runs a connection until it ends, is idle or stalled, or the server stops.
    async fn watch<C: Graceful>(&self, connection: C) {
        tokio::pin!(connection);
        let look = tokio::time::sleep_until(first_look(&self.activity));
        tokio::pin!(look);
        // Looking at the token takes locks: the set does so only when the token has something to tell.
        let mut told = FuturesUnordered::from_iter([self.stopping.cancelled()]);
        let mut forced_at: Option<Instant> = None;
        loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, peer = %self.handler.peer, "a connection ended early");
                    }
                    return;
                }
                Some(()) = told.next() => {
                    if forced_at.is_none() {
                        connection.as_mut().begin_close();
                        forced_at = Some(Instant::now() + self.stop_time);
                    }
                }
                () = look.as_mut() => match self.activity.verdict() {
                    _ if forced_at.is_some_and(|at| at <= Instant::now()) => return,
                    Verdict::Close if C::TELLS_ITS_END && forced_at.is_none() => {
                        connection.as_mut().begin_close();
                        forced_at = Some(Instant::now() + GO_AWAY);
                    }
                    Verdict::Close => return,
                    Verdict::LookAgainAt(when) => look.as_mut().reset(when),
                }
            }
            if let Some(at) = forced_at {
                let next = look.deadline().min(at).max(Instant::now());
                look.as_mut().reset(next);
            }
        }
    }
}

fn first_look(activity: &Activity) -> Instant {
    match activity.verdict() {
        Verdict::Close => Instant::now(),
        Verdict::LookAgainAt(when) => when,
    }
}

fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // `watch` counts from the connection's start or its last answer, the client's first bytes included.
        .header_read_timeout(None)
        .max_header_size(usize::try_from(MOST_HEAD_BYTES).unwrap_or(usize::MAX))
        .max_buf_size(MOST_BUFFERED_BYTES);
    builder
}

fn http2(executor: Executor) -> http2::Builder<Executor> {
    let mut builder = http2::Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(MOST_HEAD_BYTES)
        .max_concurrent_streams(MOST_STREAMS)
        // Pings would count as something sent; who stops reading is noticed all the same.
        .keep_alive_interval(None);
    builder
}

/// A connection of either protocol.
trait Graceful: Future<Output = hyper::Result<()>> {
    /// Whether the protocol has words for "nothing new, please": HTTP/1 just closes.
    const TELLS_ITS_END: bool;

    /// Nothing new is taken; what is in flight may end.
    fn begin_close(self: Pin<&mut Self>);
}

impl<R: Routes> Graceful for http1::Connection<TokioIo<Socket>, Handler<R>> {
    const TELLS_ITS_END: bool = false;

    fn begin_close(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<R: Routes> Graceful for http2::Connection<TokioIo<Socket>, Handler<R>, Executor> {
    const TELLS_ITS_END: bool = true;

    fn begin_close(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Runs the streams of HTTP/2 connections, each in a task that ends with its connection.
#[derive(Clone)]
struct Executor(TaskTracker);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        self.0.spawn(async move {
            future.await;
        });
    }
}

/// Hands requests to the routes.
#[derive(Clone)]
struct Handler<R> {
    routes: R,
    peer: SocketAddr,
    activity: Arc<Activity>,
    tracker: TaskTracker,
    /// Where requests run that may take long.
    elsewhere: Handle,
    /// Of HTTP/1: a connection of HTTP/2 has many requests at a time, and needs none of their bodies read.
    unread: Unread,
}

type Answer = Response<Guarded<Body, RequestGuard>>;

impl<R: Routes> hyper::service::Service<Request<Incoming>> for Handler<R> {
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let guard = self.activity.request();
        let is_http_2 = request.version() == Version::HTTP_2;
        if is_http_2 && request.headers().len() > MOST_HEAD_FIELDS {
            let refused = status_only(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
            return Box::pin(std::future::ready(Ok(guarded(refused, guard))));
        }
        let passes_through = passes_through(request.uri().path());
        if !passes_through {
            request.extensions_mut().insert(Peer(self.peer));
        }
        let unread = self.unread.clone();
        let (head, body) = request.into_parts();
        let body = if is_http_2 {
            Body::new(body)
        } else {
            unread.watch(&head.headers, body)
        };
        let request = Request::from_parts(head, body);
        let answer = self.routes.clone().call(request);
        if passes_through {
            return Box::pin(async move {
                let mut answer = answer.await?;
                unread.read_before(&mut answer).await;
                Ok(guarded(answer, guard))
            });
        }
        // Dropped with the request if the client hangs up, as it would be here.
        let running = AbortOnDropHandle::new(self.tracker.spawn_on(answer, &self.elsewhere));
        Box::pin(async move {
            let mut answer = match running.await {
                Ok(Ok(answer)) => answer,
                Ok(Err(never)) => match never {},
                // The runtime ends: so does the server.
                Err(_) => status_only(StatusCode::SERVICE_UNAVAILABLE),
            };
            unread.read_before(&mut answer).await;
            Ok(guarded(answer, guard))
        })
    }
}

/// Whether a request goes to the model: it waits, and works little. All others may work long on what they answer, and
/// those that pass through on this core would wait for them.
fn passes_through(path: &str) -> bool {
    ["/v1/", "/api/v1/chat"]
        .iter()
        .any(|begin| path.starts_with(begin))
}

fn status_only(status: StatusCode) -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    answer
}

/// The request is in flight until its answer's body has ended.
fn guarded(answer: Response<Body>, guard: RequestGuard) -> Answer {
    answer.map(|body| Guarded {
        body,
        _guard: guard,
    })
}
