//! The accept loop: connections with limits of their own (interface.md §3, "Limits of the connection").
//!
//! hyper's builders are used without `axum::serve`, which sets no time limit and no limit to a head. hyper-util's
//! automatic builder is not used either: it waits for a connection's first bytes for ever, and can't be told how
//! large a head may be.

mod activity;
mod connection;
mod socket;
mod unread;

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{extract::Request, response::Response};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;

use self::connection::Connection;

/// More connections than this wait in the kernel's queue until one closes: an idle one costs little, and closes
/// after 30 seconds.
const MOST_CONNECTIONS: u32 = 32_768;
/// After an accept that failed for want of something (file descriptors, memory): doubled each time it fails again.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The other end's address, in the extensions of every request that does not go to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// What answers requests; cheap to clone.
pub trait Routes:
    Service<Request, Response = Response, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<R> Routes for R where
    R: Service<Request, Response = Response, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where connections run, and the requests that pass through: each connection on the one that has the fewest. At
    /// least one; they outlive the server.
    pub cores: Vec<Handle>,
    /// Counts the connections' tasks.
    pub tracker: TaskTracker,
    /// What is in flight when the server is told to stop has this long to end.
    pub stop_time: Duration,
}

/// Serves until `shutdown`; then takes nothing new, closes idle connections, and returns when what was in flight
/// has ended, or `stop_time` is over. Requests that may take long run on the runtime that this is called on.
pub async fn serve<R: Routes>(
    listener: TcpListener,
    routes: R,
    options: ServerOptions,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(
        usize::try_from(MOST_CONNECTIONS).unwrap_or(usize::MAX),
    ));
    let mut acceptor = Acceptor {
        listener,
        places: Arc::clone(&places),
        pause: FIRST_PAUSE,
    };
    let cores: Vec<Core> = options.cores.iter().cloned().map(Core::new).collect();
    loop {
        let (stream, peer, place) = tokio::select! {
            accepted = acceptor.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let Some(core) = cores.iter().min_by_key(|core| core.connections()) else {
            break;
        };
        let Ok(stream) = stream.into_std() else {
            continue; // it can't be moved to its core: the client sees it closed
        };
        let connection = Connection::new(routes.clone(), peer, &shutdown, &options);
        let counted = Arc::clone(&core.counter);
        let serving = async move {
            connection.run(stream).await;
            drop((place, counted));
        };
        options.tracker.spawn_on(serving, &core.handle);
    }
    drop(acceptor);
    // Each connection ends itself, at the latest after `stop_time`: then all places are free.
    let _all = places.acquire_many(MOST_CONNECTIONS).await;
}

/// A runtime that connections run on.
struct Core {
    handle: Handle,
    /// Each of its connections has a clone.
    counter: Arc<()>,
}

impl Core {
    fn new(handle: Handle) -> Self {
        Self {
            handle,
            counter: Arc::default(),
        }
    }

    fn connections(&self) -> usize {
        Arc::strong_count(&self.counter) - 1
    }
}

struct Acceptor {
    listener: TcpListener,
    places: Arc<Semaphore>,
    pause: Duration,
}

impl Acceptor {
    /// The next connection, when there is a place for it.
    async fn accept(&mut self) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
        let place = Arc::clone(&self.places)
            .acquire_owned()
            .await
            .expect("this semaphore is never closed");
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    self.pause = FIRST_PAUSE;
                    return (stream, peer, place);
                }
                Err(error) => self.rest(&error).await,
            }
        }
    }

    /// Waits after an accept that failed, so that a full table of file descriptors does not keep a core busy.
    async fn rest(&mut self, error: &io::Error) {
        if is_of_one_connection(error) {
            return;
        }
        if self.pause == FIRST_PAUSE {
            tracing::warn!(code = "accept_failed", %error, "no connection can be taken for now");
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

/// The client went away before it was accepted; the next one may be waiting.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests;
