//! Keeps connections to the one upstream alive between requests.
//!
//! HTTP/1.1: idle connections, the one used last is taken first, so that the others grow old and are closed.
//! HTTP/2: connections that are shared, up to [`MAX_STREAMS`] requests each. What is spoken is agreed on anew with each
//! connection, so both may be there at once.
//!
//! A connection is driven by a task of the runtime that it was opened on, and serves the requests of that runtime
//! alone: another thread would have to be woken for each step of a request.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, WeakShared, poll_immediate},
};
use http::{Request, Response};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use tokio::{
    runtime::{self, Handle},
    time::Instant,
};

use super::{
    ProviderError,
    connect::{Connection, Connector},
};

/// Below what load balancers commonly allow (nginx 75 s), so that mostly we close first.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_IDLE: usize = 1024;

/// The least that a peer should allow (RFC 9113 §6.5.2); beyond it requests would wait for each other unseen.
const MAX_STREAMS: usize = 100;

/// How long a connection whose answer was just read may take to be ready again: its task has to run once.
const READY_WITHIN: Duration = Duration::from_millis(10);

pub(super) struct Pool {
    connector: Connector,
    kept: Mutex<HashMap<runtime::Id, Kept>>,
    /// Whether the connection opened last does. While it is set, requests of a runtime that find no connection wait
    /// for one attempt: what it opens will most likely serve them all.
    speaks_http2: AtomicBool,
}

/// What one runtime has.
#[derive(Default)]
struct Kept {
    idle: VecDeque<Idle>,
    shared: Vec<Shared>,
    attempt: Option<WeakAttempt>,
}

/// Opens a connection for all who wait for it, and tells all of them how it went. It is run by whichever of them is
/// left, and dropped with the last.
type Attempt = futures_util::future::Shared<BoxFuture<'static, Result<(), ProviderError>>>;
type WeakAttempt = WeakShared<BoxFuture<'static, Result<(), ProviderError>>>;

struct Idle {
    sender: http1::SendRequest<Full<Bytes>>,
    since: Instant,
}

struct Shared {
    sender: http2::SendRequest<Full<Bytes>>,
    streams: Arc<AtomicUsize>,
}

/// A connection for one request. Dropped without [`Lease::hand_back`] it is closed.
pub(super) struct Lease {
    pool: Arc<Pool>,
    /// Where the connection is driven.
    runtime: runtime::Id,
    connection: Leased,
}

enum Leased {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2 {
        sender: http2::SendRequest<Full<Bytes>>,
        _stream: Stream,
    },
}

/// One of the requests on a shared connection.
struct Stream(Arc<AtomicUsize>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A request that got no answer.
pub(super) struct Unanswered {
    pub(super) error: hyper::Error,
    /// The request, if the connection was closed before a byte of it was written.
    pub(super) unsent: Option<Box<Request<Full<Bytes>>>>,
}

impl Pool {
    pub(super) fn new(connector: Connector) -> Arc<Self> {
        Arc::new(Self {
            connector,
            kept: Mutex::default(),
            speaks_http2: AtomicBool::new(false),
        })
    }

    /// A connection kept alive until `now`, or a fresh one.
    pub(super) async fn take(self: &Arc<Self>, now: Instant) -> Result<Lease, ProviderError> {
        match self.take_kept(now).await {
            Some(lease) => Ok(lease),
            None => self.take_fresh(now).await,
        }
    }

    /// A connection that was opened since it was asked for, or was being opened then.
    pub(super) async fn take_fresh(self: &Arc<Self>, now: Instant) -> Result<Lease, ProviderError> {
        while self.speaks_http2.load(Ordering::Acquire) {
            self.attempt().await?;
            // Nothing is left where more waited than it takes, or than one of HTTP/1.1 serves.
            if let Some(lease) = self.take_kept(now).await {
                return Ok(lease);
            }
        }
        self.connect().await
    }

    async fn connect(self: &Arc<Self>) -> Result<Lease, ProviderError> {
        // Boxed: few requests connect, and all would have room for what a handshake takes.
        let connection = Box::pin(self.connector.connect()).await?;
        let speaks_http2 = matches!(connection, Connection::Http2(_));
        let connection = match connection {
            Connection::Http1(sender) => Leased::Http1(sender),
            Connection::Http2(sender) => {
                let shared = Shared {
                    sender,
                    streams: Arc::default(),
                };
                let leased = shared.lease();
                self.lock().entry(here()).or_default().shared.push(shared);
                leased
            }
        };
        self.speaks_http2.store(speaks_http2, Ordering::Release);
        Ok(self.lease(connection))
    }

    /// The attempt to connect that this runtime makes, begun if there is none. What it opens is kept.
    fn attempt(self: &Arc<Self>) -> Attempt {
        let here = here();
        let mut runtimes = self.lock();
        let kept = runtimes.entry(here).or_default();
        if let Some(attempt) = kept.attempt.as_ref().and_then(WeakShared::upgrade) {
            return attempt;
        }
        let pool = Arc::clone(self);
        let attempt = async move {
            let opened = pool.connect().await;
            // Before it is told: who hears of it and needs another connection must not find this attempt again.
            pool.lock().entry(here).or_default().attempt = None;
            opened.map(Lease::hand_back)
        }
        .boxed()
        .shared();
        kept.attempt = attempt.downgrade();
        attempt
    }

    fn lease(self: &Arc<Self>, connection: Leased) -> Lease {
        Lease {
            pool: Arc::clone(self),
            runtime: here(),
            connection,
        }
    }

    async fn take_kept(self: &Arc<Self>, now: Instant) -> Option<Lease> {
        // The runtime asks the system what came before it goes on with this, so the tasks of connections that the peer
        // has closed meanwhile have seen it. A request written to one would be lost.
        tokio::task::yield_now().await;
        loop {
            let mut sender = match self.lock().get_mut(&here())?.take(now)? {
                Leased::Http1(sender) => sender,
                shared @ Leased::Http2 { .. } => return Some(self.lease(shared)),
            };
            // It nearly always is, and a timer would only be made to be thrown away.
            let is_ready = match poll_immediate(sender.ready()).await {
                Some(ready) => ready.is_ok(),
                None => {
                    let ready = tokio::time::timeout(READY_WITHIN, sender.ready()).await;
                    matches!(ready, Ok(Ok(())))
                }
            };
            if is_ready {
                return Some(self.lease(Leased::Http1(sender)));
            }
        }
    }

    fn keep(&self, runtime: runtime::Id, sender: http1::SendRequest<Full<Bytes>>) {
        if sender.is_closed() {
            return;
        }
        let since = Instant::now();
        let mut runtimes = self.lock();
        let idle = &mut runtimes.entry(runtime).or_default().idle;
        while idle
            .front()
            .is_some_and(|oldest| since.duration_since(oldest.since) > IDLE_TIMEOUT)
            || idle.len() >= MAX_IDLE
        {
            idle.pop_front();
        }
        idle.push_back(Idle { sender, since });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<runtime::Id, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn take(&mut self, now: Instant) -> Option<Leased> {
        self.shared
            .retain(|connection| !connection.sender.is_closed());
        let free = self
            .shared
            .iter()
            .find(|connection| connection.streams.load(Ordering::Acquire) < MAX_STREAMS);
        if let Some(free) = free {
            return Some(free.lease());
        }
        let newest = self.idle.pop_back()?;
        if now.saturating_duration_since(newest.since) > IDLE_TIMEOUT {
            // What lies below it is older still.
            self.idle.clear();
            return None;
        }
        Some(Leased::Http1(newest.sender))
    }
}

impl Shared {
    fn lease(&self) -> Leased {
        self.streams.fetch_add(1, Ordering::AcqRel);
        Leased::Http2 {
            sender: self.sender.clone(),
            _stream: Stream(Arc::clone(&self.streams)),
        }
    }
}

impl Lease {
    pub(super) fn version(&self) -> http::Version {
        match self.connection {
            Leased::Http1(_) => http::Version::HTTP_11,
            Leased::Http2 { .. } => http::Version::HTTP_2,
        }
    }

    /// Sends `request` and waits for the answer's head.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Unanswered> {
        let answered = match &mut self.connection {
            Leased::Http1(sender) => sender.try_send_request(request).await,
            Leased::Http2 { sender, .. } => sender.try_send_request(request).await,
        };
        answered.map_err(|mut failure| Unanswered {
            // Given back only where it was still waiting to be written; anything else may have reached the peer.
            unsent: failure.take_message().map(Box::new),
            error: failure.into_error(),
        })
    }

    /// The answer was read to its end.
    pub(super) fn hand_back(self) {
        match self.connection {
            Leased::Http1(sender) => self.pool.keep(self.runtime, sender),
            // Shared all the time; dropping the stream's count is all there is to do.
            Leased::Http2 { .. } => {}
        }
    }
}

/// The runtime that asks.
fn here() -> runtime::Id {
    Handle::current().id()
}
