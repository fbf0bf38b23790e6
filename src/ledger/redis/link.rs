//! Connections to the server or cluster, and the lanes that calls go along.
//!
//! A lane sends what waits in it as one pipeline, in order, and the next when that has been answered: what is asked of
//! one tenant is done in the order in which it was asked, and decisions that wait at the same moment share a round
//! trip. Lanes share a connection.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, ErrorKind, IntoConnectionInfo as _, RedisError, RedisFuture, Value,
    aio::{ConnectionLike as _, MultiplexedConnection},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    io::AsyncDNSResolver,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task::JoinHandle,
};
use tokio_rustls::TlsConnector;

use super::{
    bucket::{Bucket, Term},
    scripts::{self, Call},
};
use crate::{
    domain::ids::{ReservationId, TenantId},
    provider::{
        connect::dial,
        resolve::Resolver,
        tls::{self, Roots},
    },
};

/// How long making a connection may take: over a long way, with TLS and a password, that is many round trips.
const CONNECTED_WITHIN: Duration = Duration::from_secs(5);
/// No request waits longer for a part that is away or slow.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);
/// Calls in one pipeline at most.
const SENT_AT_ONCE: usize = 256;
/// Commands that may wait for the socket.
const ROOM: usize = 1024;

/// Why a call was not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Not within [`PATIENCE`]; it may be carried out yet.
    TimedOut,
    /// No connection, or a server that can't serve now.
    Away(String),
    /// The server served it, with an error.
    Refused(String),
}

/// Where the server or cluster is.
pub(super) struct Link {
    urls: Vec<SecretString>,
    resolver: Resolver,
    current: Mutex<Current>,
}

/// The connection that calls go over.
#[derive(Default)]
enum Current {
    #[default]
    None,
    /// By a task of its own: whoever waits for it gives up before it may be there.
    Making(JoinHandle<Result<Connection, RedisError>>),
    Made(Connection),
}

#[derive(Clone)]
enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Link {
    pub(super) fn new(urls: Vec<SecretString>) -> Self {
        Self {
            urls,
            resolver: Resolver::default(),
            current: Mutex::default(),
        }
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.urls.len() > 1
    }

    async fn connection(self: &Arc<Self>) -> Result<Connection, RedisError> {
        let mut current = self.current.lock().await;
        if let Current::None = &*current {
            *current = Current::Making(start_making(Arc::clone(self)));
        }
        let made = match &mut *current {
            Current::Made(connection) => return Ok(connection.clone()),
            Current::Making(task) => task.await,
            Current::None => unreachable!("it is being made"),
        };
        *current = Current::None;
        let connection = made.map_err(io::Error::other)??;
        *current = Current::Made(connection.clone());
        Ok(connection)
    }

    /// Connects, and makes the scripts known.
    async fn make(&self) -> Result<Connection, RedisError> {
        if self.is_cluster() {
            let mut made = Connection::Cluster(self.connect_cluster().await?);
            for load in scripts::load_all() {
                made.ask(&load).await?; // on every server
            }
            return Ok(made);
        }
        let mut made = Connection::Single(self.connect_single().await?);
        let mut loads = redis::pipe();
        for load in scripts::load_all() {
            loads.add_command(load);
        }
        for loaded in made.run(&loads, loads.len()).await? {
            loaded.extract_error()?;
        }
        Ok(made)
    }

    /// Has the next call connect anew. One that is being made is new.
    pub(super) async fn reset(&self) {
        let mut current = self.current.lock().await;
        if let Current::Made(_) = &*current {
            *current = Current::None;
        }
    }

    /// With the program's own resolver and roots of trust.
    async fn connect_single(&self) -> Result<MultiplexedConnection, RedisError> {
        let url = self.urls.first().map_or("", |url| url.expose_secret());
        let info = url.into_connection_info()?;
        let (host, port, is_tls) = match info.addr() {
            redis::ConnectionAddr::Tcp(host, port) => (host, *port, false),
            redis::ConnectionAddr::TcpTls { host, port, .. } => (host, *port, true),
            _ => return Err(refused("it is no redis:// or rediss:// address")),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let addresses = self.resolver.resolve(host).await?;
        let addresses: Vec<SocketAddr> = addresses
            .into_iter()
            .map(|ip| SocketAddr::new(ip, port))
            .collect();
        let stream = dial(&addresses).await?;
        stream.set_nodelay(true)?;
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_pipeline_buffer_size(ROOM);
        let settings = info.redis_settings();
        if is_tls {
            let tls = tls::client_config(&Roots::Environment, &[]).map_err(io::Error::other)?;
            let name = host.to_owned().try_into().map_err(io::Error::other)?;
            let stream = TlsConnector::from(Arc::new(tls))
                .connect(name, stream)
                .await?;
            let (connection, driver) =
                MultiplexedConnection::new_with_config(settings, stream, config).await?;
            drive(driver);
            return Ok(connection);
        }
        let (connection, driver) =
            MultiplexedConnection::new_with_config(settings, stream, config).await?;
        drive(driver);
        Ok(connection)
    }

    async fn connect_cluster(&self) -> Result<ClusterConnection, RedisError> {
        let urls = self.urls.iter().map(ExposeSecret::expose_secret);
        ClusterClient::builder(urls)
            .connection_timeout(4 * PATIENCE)
            .response_timeout(PATIENCE)
            .retries(1)
            .max_retry_wait(50)
            .async_dns_resolver(ClusterResolver(self.resolver.clone()))
            .build()?
            .get_async_connection()
            .await
    }

    /// Sends calls as one pipeline; all of them must lie in one slot.
    async fn send(
        self: &Arc<Self>,
        calls: impl ExactSizeIterator<Item = &Call>,
    ) -> Result<Vec<Value>, RedisError> {
        let count = calls.len();
        let mut pipeline = redis::pipe();
        for call in calls {
            pipeline.add_command(call.by_name().clone());
        }
        let mut connection = self.connection().await?;
        connection.run(&pipeline, count).await
    }

    async fn send_text(self: &Arc<Self>, call: &Call) -> Result<Value, RedisError> {
        let mut pipeline = redis::pipe();
        pipeline.add_command(call.by_text());
        let mut connection = self.connection().await?;
        let mut values = connection.run(&pipeline, 1).await?;
        values.pop().ok_or_else(|| refused("it gave no answer"))
    }

    /// One command that is no script; for people.
    pub(super) async fn ask(self: &Arc<Self>, command: redis::Cmd) -> Result<Value, Fault> {
        let asked = async {
            let mut connection = self.connection().await?;
            connection.ask(&command).await
        };
        match tokio::time::timeout(4 * PATIENCE, asked).await {
            Err(_elapsed) => Err(Fault::TimedOut),
            Ok(answered) => answered.map_err(|error| fault_of(&error)),
        }
    }
}

impl Connection {
    async fn ask(&mut self, command: &redis::Cmd) -> Result<Value, RedisError> {
        match self {
            Self::Single(it) => it.req_packed_command(command).await,
            Self::Cluster(it) => it.req_packed_command(command).await,
        }
    }

    async fn run(
        &mut self,
        pipeline: &redis::Pipeline,
        count: usize,
    ) -> Result<Vec<Value>, RedisError> {
        match self {
            Self::Single(it) => it.req_packed_commands(pipeline, 0, count).await,
            Self::Cluster(it) => it.req_packed_commands(pipeline, 0, count).await,
        }
    }
}

fn refused(why: &'static str) -> RedisError {
    RedisError::from((ErrorKind::InvalidClientConfig, why))
}

#[expect(
    clippy::disallowed_methods,
    reason = "it only moves bytes, and ends when the last handle of its connection is dropped"
)]
fn drive(driver: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(driver);
}

/// It ends within [`CONNECTED_WITHIN`].
#[expect(
    clippy::disallowed_methods,
    reason = "it ends by itself soon, and holds nothing but a connection"
)]
fn start_making(link: Arc<Link>) -> JoinHandle<Result<Connection, RedisError>> {
    tokio::spawn(async move {
        let made = tokio::time::timeout(CONNECTED_WITHIN, link.make()).await;
        made.unwrap_or_else(|_elapsed| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    })
}

struct ClusterResolver(Resolver);

impl AsyncDNSResolver for ClusterResolver {
    fn resolve<'a, 'b: 'a>(
        &'a self,
        host: &'b str,
        port: u16,
    ) -> RedisFuture<'a, Box<dyn Iterator<Item = SocketAddr> + Send + 'a>> {
        Box::pin(async move {
            let addresses = self.0.resolve(host).await?.into_iter();
            let addresses = addresses.map(move |ip| SocketAddr::new(ip, port));
            Ok(Box::new(addresses) as Box<dyn Iterator<Item = SocketAddr> + Send>)
        })
    }
}

fn fault_of(error: &RedisError) -> Fault {
    /// What a server says that can't serve for now: it starts, is a replica, or has lost its cluster.
    const FOR_NOW: [&str; 7] = [
        "LOADING",
        "CLUSTERDOWN",
        "MASTERDOWN",
        "READONLY",
        "TRYAGAIN",
        "BUSY",
        "OOM",
    ];
    if error.is_timeout() {
        return Fault::TimedOut;
    }
    match error.code() {
        Some(code) if !FOR_NOW.contains(&code) => Fault::Refused(error.to_string()),
        _ => Fault::Away(error.to_string()),
    }
}

/// What a call comes to.
pub(super) type Answer = Result<Vec<u8>, Fault>;

/// A call on its way.
pub(super) struct Job {
    pub(super) call: Call,
    /// `None`: a heartbeat, which finds out whether there is any.
    pub(super) term: Option<Term>,
    pub(super) reply: oneshot::Sender<Answer>,
    /// What it gives back, should it fail.
    pub(super) gives_back: Option<Hold>,
}

/// A hold by its tenant and id.
pub(super) type Hold = (TenantId, ReservationId);

/// Holds that could not be given back yet.
pub(super) type Unreleased = Arc<std::sync::Mutex<Vec<Hold>>>;

/// Where calls are given; they are sent in this order.
pub(super) type Lane = mpsc::UnboundedSender<Job>;

impl Job {
    fn end(self, answer: Answer, unreleased: &Unreleased) {
        if let (Err(_), Some(hold)) = (&answer, self.gives_back) {
            super::lock(unreleased).push(hold);
        }
        drop(self.reply.send(answer)); // who asked may have gone
    }
}

/// Starts a lane to a bucket, which ends when its last handle is dropped. A pipeline that fails takes the bucket down,
/// and with it the calls that wait behind; holds whose release failed are kept in `unreleased`.
#[expect(
    clippy::disallowed_methods,
    reason = "it ends with the ledger, whose calls wait for it"
)]
pub(super) fn start_lane(link: Arc<Link>, bucket: Arc<Bucket>, unreleased: Unreleased) -> Lane {
    let (lane, mut jobs) = mpsc::unbounded_channel::<Job>();
    tokio::spawn(async move {
        let mut waiting = Vec::new();
        while jobs.recv_many(&mut waiting, SENT_AT_ONCE).await > 0 {
            let is_old = |job: &mut Job| {
                let term = job.term.as_ref();
                term.is_some_and(|term| bucket.was_away_since(term))
            };
            for job in waiting.extract_if(.., is_old) {
                let why = Fault::Away("it was away meanwhile".to_owned());
                job.end(Err(why), &unreleased);
            }
            let (answers, is_broken) = run(&link, waiting.iter().map(|job| &job.call)).await;
            if let Some(Err(fault @ (Fault::TimedOut | Fault::Away(_)))) = answers.first() {
                bucket.fail(fault);
            }
            if is_broken {
                link.reset().await; // only now, so that no call but a heartbeat goes over the next connection first
            }
            for (job, answer) in waiting.drain(..).zip(answers) {
                job.end(answer, &unreleased);
            }
        }
    });
    lane
}

/// An answer to each call, and whether the connection is of no more use.
async fn run(
    link: &Arc<Link>,
    calls: impl ExactSizeIterator<Item = &Call> + Clone,
) -> (Vec<Answer>, bool) {
    let count = calls.len();
    if count == 0 {
        return (Vec::new(), false);
    }
    let sent = tokio::time::timeout(PATIENCE, link.send(calls.clone())).await;
    let values = match sent {
        Err(_elapsed) => return (vec![Err(Fault::TimedOut); count], false),
        Ok(Err(error)) => {
            // A cluster's connection mends itself.
            let is_broken = !link.is_cluster() || error.is_unrecoverable_error();
            return (vec![Err(fault_of(&error)); count], is_broken);
        }
        Ok(Ok(values)) => values,
    };
    let mut answers = Vec::with_capacity(count);
    for (call, value) in calls.zip(values) {
        let value = match value {
            Value::ServerError(error) if error.code() == "NOSCRIPT" => {
                match tokio::time::timeout(PATIENCE, link.send_text(call)).await {
                    Err(_elapsed) => Err(Fault::TimedOut),
                    Ok(sent) => sent.map_err(|error| fault_of(&error)),
                }
            }
            value => Ok(value),
        };
        answers.push(value.and_then(bytes_of));
    }
    (answers, false)
}

fn bytes_of(value: Value) -> Answer {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        Value::ServerError(error) => Err(fault_of(&error.into())),
        other => Err(Fault::Refused(format!(
            "an answer of another kind: {other:?}"
        ))),
    }
}
