//! Connections, and transactions on them: named, and run again where Postgres asks for it.

use std::{
    future::Future,
    ops::Deref,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use deadpool::{
    Runtime,
    managed::{self, Object, PoolError, TimeoutType, Timeouts},
};
use deadpool_postgres::ClientWrapper;
use futures_util::future::{Either, select};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_postgres::error::SqlState;

use super::{
    Failed,
    connect::Connector,
    text_of,
    watch::{Patience, Watch},
};
use crate::store::{
    StoreError, StoreResult,
    maintenance::{Measure, Transacted},
};

/// Connections for transactions; the watch has one more.
const CONNECTIONS: usize = 8;
/// How many of them may be with what looks at much: the others stay for what decides on requests.
const REPORTERS: usize = 4;
/// How long a request waits for a connection while the server answers: many new tenants at once are no reason to let
/// them by uncounted. For a server that does not answer it waits 250 ms, whatever it is doing ([`Watch`]).
const REQUEST_WAIT: Duration = Duration::from_secs(2);
const WORK_WAIT: Duration = Duration::from_secs(5);
/// How often a transaction is run, should Postgres undo it or a connection turn out to be dead.
const ATTEMPTS: u32 = 6;
/// Before it is run again; grows with every attempt.
const PAUSE: Duration = Duration::from_millis(5);

/// What kind of transaction it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    begin: &'static str,
    /// Whether somebody waits for it who must not wait for a server that is gone.
    is_request: bool,
}

impl Kind {
    /// All that is read is of one instant.
    pub(super) const READ: Self = Self {
        begin: "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY",
        is_request: true,
    };
    pub(super) const READ_AT_LEISURE: Self = Self {
        is_request: false,
        ..Self::READ
    };
    /// Each statement sees what others have committed before it; what must not change meanwhile is locked.
    pub(super) const WRITE: Self = Self {
        begin: "BEGIN ISOLATION LEVEL READ COMMITTED, READ WRITE",
        is_request: true,
    };
    pub(super) const WRITE_AT_LEISURE: Self = Self {
        is_request: false,
        ..Self::WRITE
    };
    /// One at a time, on all replicas together: what is looked at stays so until it is committed, and the versions of
    /// the change feed are committed in their order. The lock comes first, before anything is seen.
    pub(super) const CHANGE: Self = Self {
        begin: "BEGIN ISOLATION LEVEL READ COMMITTED, READ WRITE;
                LOCK TABLE catalogue_version IN SHARE ROW EXCLUSIVE MODE",
        is_request: true,
    };
}

/// The connections to one database.
pub(super) struct Pool {
    connections: managed::Pool<Connector>,
    free_reporters: Semaphore,
    watch: Watch,
    /// As in errors.
    place: String,
    measure: OnceLock<Measure>,
}

impl Pool {
    pub(super) fn new(connector: Connector) -> StoreResult<Self> {
        let place = connector.url().to_string();
        let connections = managed::Pool::builder(connector.clone())
            .max_size(CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| StoreError::Unavailable(error.to_string()))?;
        Ok(Self {
            connections,
            free_reporters: Semaphore::new(REPORTERS),
            watch: Watch::start(connector),
            place,
            measure: OnceLock::new(),
        })
    }

    pub(super) fn measure_with(&self, measure: Measure) {
        let _ = self.measure.set(measure);
    }

    pub(super) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Runs `work` in a transaction of its own and commits it, again and again if Postgres undoes it; what it does must
    /// bear that. If it fails, nothing of it stays. If the connection is lost at the commit, whether it was done can't
    /// be told.
    pub(super) async fn transact<T, W>(
        &self,
        name: &'static str,
        kind: Kind,
        work: impl Fn(Tx) -> W,
    ) -> StoreResult<T>
    where
        W: Future<Output = Result<T, Failed>>,
    {
        let patience = if kind.is_request {
            if let Some(why) = self.watch.fault() {
                return Err(self.unavailable(name, &why));
            }
            Patience::REQUEST
        } else {
            Patience::WORK
        };
        let (begun, count) = (Instant::now(), AtomicU32::new(0));
        let attempts = std::pin::pin!(self.attempts(kind, work, &count));
        let gone = std::pin::pin!(self.watch.gone(patience));
        let ended = select(attempts, gone).await;
        if let Some(measure) = self.measure.get() {
            let is_done = matches!(&ended, Either::Left((Ok(_) | Err(Failed::Refused(_)), _)));
            measure(Transacted {
                name,
                took: begun.elapsed(),
                attempts: count.load(Ordering::Relaxed),
                is_done,
            });
        }
        match ended {
            Either::Left((Ok(done), _)) => Ok(done),
            Either::Left((Err(failed), _)) => Err(match failed {
                Failed::Refused(error) => error,
                Failed::Sql(error) => self.unavailable(name, &text_of(&error)),
                Failed::Corrupt(why) | Failed::NoConnection(why) => self.unavailable(name, &why),
            }),
            Either::Right((why, _)) => Err(self.unavailable(name, &why)),
        }
    }

    /// A turn of something that looks at much, kept until it ends.
    pub(super) async fn turn_of_report(
        &self,
        name: &'static str,
    ) -> StoreResult<SemaphorePermit<'_>> {
        let turn = tokio::time::timeout(REQUEST_WAIT, self.free_reporters.acquire()).await;
        match turn {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => {
                Err(self.unavailable(name, "others were being summed up for 2 s"))
            }
        }
    }

    /// Runs a statement that no transaction may hold.
    pub(super) async fn statement(&self, sql: &'static str) -> StoreResult<()> {
        let timeouts = Timeouts {
            wait: Some(WORK_WAIT),
            create: Some(WORK_WAIT),
            recycle: None,
        };
        let connection = self.connections.timeout_get(&timeouts).await;
        let connection = connection.map_err(|error| self.unavailable(sql, &error.to_string()))?;
        let done = connection.batch_execute(sql).await;
        done.map_err(|error| self.unavailable(sql, &text_of(&error)))
    }

    fn unavailable(&self, name: &'static str, why: &str) -> StoreError {
        StoreError::Unavailable(format!("{name}: {}: {why}", self.place))
    }

    async fn attempts<T, W>(
        &self,
        kind: Kind,
        work: impl Fn(Tx) -> W,
        count: &AtomicU32,
    ) -> Result<T, Failed>
    where
        W: Future<Output = Result<T, Failed>>,
    {
        let mut attempt = 1;
        loop {
            count.store(attempt, Ordering::Relaxed);
            let failed = match self.attempt(kind, &work).await {
                Ok(done) => return Ok(done),
                Err(failed) => failed,
            };
            if attempt == ATTEMPTS || !failed.is_worth_another_try() {
                return Err(failed.0);
            }
            tokio::time::sleep(PAUSE * attempt).await;
            attempt += 1;
        }
    }

    async fn attempt<T, W>(&self, kind: Kind, work: &impl Fn(Tx) -> W) -> Result<T, Attempt>
    where
        W: Future<Output = Result<T, Failed>>,
    {
        let before = |failed| Attempt(failed, Commit::NotTried);
        let tx = self.begin(kind).await.map_err(before)?;
        match work(tx.clone()).await {
            Ok(done) => match tx.batch_execute("COMMIT").await {
                Ok(()) => {
                    tx.end();
                    Ok(done)
                }
                Err(error) => Err(Attempt(Failed::Sql(error), Commit::Tried)),
            },
            Err(failed) => {
                if !is_out_of_date(&failed) && tx.batch_execute("ROLLBACK").await.is_ok() {
                    tx.end();
                }
                Err(before(failed))
            }
        }
    }

    async fn begin(&self, kind: Kind) -> Result<Tx, Failed> {
        let wait = if kind.is_request {
            REQUEST_WAIT
        } else {
            WORK_WAIT
        };
        let timeouts = Timeouts {
            wait: Some(wait),
            create: Some(wait),
            recycle: None,
        };
        let connection = self.connections.timeout_get(&timeouts).await;
        let connection = connection.map_err(|error| {
            Failed::NoConnection(match error {
                PoolError::Timeout(TimeoutType::Wait) => {
                    format!("no connection was free in {} ms", wait.as_millis())
                }
                PoolError::Timeout(_) => {
                    format!("no connection could be made in {} ms", wait.as_millis())
                }
                PoolError::Backend(why) => why,
                other => other.to_string(),
            })
        })?;
        let tx = Tx(Arc::new(Open {
            connection: Some(connection),
            has_ended: AtomicBool::new(false),
        }));
        tx.batch_execute(kind.begin).await?;
        Ok(tx)
    }
}

/// How an attempt failed.
struct Attempt(Failed, Commit);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Commit {
    NotTried,
    Tried,
}

impl Attempt {
    /// Undone by Postgres, or lost with its connection before it could be done.
    fn is_worth_another_try(&self) -> bool {
        let Failed::Sql(error) = &self.0 else {
            return false;
        };
        let is_undone = [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
        ]
        .iter()
        .any(|code| error.code() == Some(code));
        is_undone || is_out_of_date(&self.0) || (self.1 == Commit::NotTried && is_lost(error))
    }
}

/// Whether a newer replica has changed a table under a statement that was prepared before: a new connection prepares it
/// anew.
fn is_out_of_date(failed: &Failed) -> bool {
    let Failed::Sql(error) = failed else {
        return false;
    };
    error.as_db_error().is_some_and(|error| {
        *error.code() == SqlState::FEATURE_NOT_SUPPORTED && error.message().contains("cached plan")
    })
}

/// Whether the connection is of no more use.
fn is_lost(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        None => {
            error.is_closed()
                || std::error::Error::source(error).is_some_and(|it| it.is::<std::io::Error>())
        }
        Some(code) => [
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        ]
        .contains(code),
    }
}

/// An open transaction; cheap to clone. Dropped before its end, it takes its connection with it, and the server rolls
/// back.
#[derive(Clone)]
pub(super) struct Tx(Arc<Open>);

struct Open {
    /// `None` only while it is dropped.
    connection: Option<Object<Connector>>,
    has_ended: AtomicBool,
}

impl Tx {
    fn end(&self) {
        self.0.has_ended.store(true, Ordering::Release);
    }
}

impl Deref for Tx {
    type Target = ClientWrapper;

    fn deref(&self) -> &ClientWrapper {
        let connection = self.0.connection.as_ref();
        connection.expect("the connection is there until it is dropped")
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.has_ended.load(Ordering::Acquire)
            && let Some(connection) = self.connection.take()
        {
            drop(Object::take(connection));
        }
    }
}
