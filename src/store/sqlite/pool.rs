//! One writer connection on a thread of its own, and a few readers.
//!
//! SQLite takes one writer at a time. Here writes wait in a queue instead of for a lock, so none fails with "database
//! is locked", and a large batch of usage delays a catalogue change by one transaction at most. Readers see the last
//! commit and wait for nobody (WAL). A connection that has met an I/O error or a damaged page is closed and opened
//! again by whoever comes next, so that a disk that has healed heals the store.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    thread::JoinHandle,
    time::Duration,
};

use r2d2::ManageConnection;
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};
use rustix::fs::Advice;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{Failed, migrate, watch::Watch};
use crate::store::{StoreError, StoreResult, catalogue::LOOK_EVERY};

/// How many may read at once. More would not read faster on a few cores, and each has a page cache of its own.
pub(super) const READERS: u32 = 4;
/// How long a read waits for a reader before it gives up.
const READER_WAIT: Duration = Duration::from_millis(250);
/// How many of the readers may be with what looks at much: the others stay for what decides on requests.
const REPORTERS: usize = 2;
/// How long such a read waits for its turn.
const REPORT_WAIT: Duration = Duration::from_secs(2);
/// Writes that wait; the next one waits to get in line.
const QUEUE: usize = 256;
/// Another process (`sqlite3` by hand) may hold the write lock for a moment.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// FULL fsyncs the log at every commit: the journal forgets what is recorded here. The log may grow to 32 MiB before
/// it is written back, which spares a busy drain from rewriting the same pages again and again. No `mmap`: a read
/// error in mapped memory is a signal that kills the process, not an error that can be answered.
const WRITER_PRAGMAS: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA foreign_keys = ON;
    PRAGMA cache_size = -16384;
    PRAGMA wal_autocheckpoint = 8192;
    PRAGMA journal_size_limit = 67108864;
    PRAGMA temp_store = MEMORY;
    PRAGMA mmap_size = 0;
";
const READER_PRAGMAS: &str = "
    PRAGMA query_only = ON;
    PRAGMA cache_size = -4096;
    PRAGMA temp_store = MEMORY;
    PRAGMA mmap_size = 0;
";
/// Statements that a connection keeps prepared: all that there are.
const STATEMENTS: usize = 128;

/// The connections to one file. Readers come first, so that the writer closes last and tidies the log away.
pub(super) struct Pool {
    path: PathBuf,
    readers: r2d2::Pool<ReaderManager>,
    free_readers: Arc<Semaphore>,
    free_reporters: Arc<Semaphore>,
    /// Begun by the first who asks; none if the kernel can't tell.
    watch: OnceLock<Option<Watch>>,
    writer: Writer,
}

impl Pool {
    pub(super) fn open(path: &Path) -> StoreResult<Self> {
        let unavailable =
            |why: String| StoreError::Unavailable(format!("{}: {why}", path.display()));
        create_private(path).map_err(|error| unavailable(error.to_string()))?;
        forget_cached_log(path).map_err(|error| unavailable(error.to_string()))?;
        let mut connection = open_writer(path).map_err(|error| unavailable(error.to_string()))?;
        migrate::migrate(&mut connection).map_err(unavailable)?;
        let readers = r2d2::Pool::builder()
            .max_size(READERS)
            // As many are open as have read at once, and one to spare: each takes half a megabyte.
            .min_idle(Some(1))
            // Connections live for ever: they hold prepared statements, and a broken one is replaced at once.
            .max_lifetime(None)
            .idle_timeout(None)
            .test_on_check_out(false)
            .connection_timeout(READER_WAIT)
            // The reason comes with the error that the caller gets.
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .build_unchecked(ReaderManager::new(path));
        // The first reader is opened in peace: on a busy machine that may take longer than a request would wait.
        readers
            .get_timeout(BUSY_TIMEOUT)
            .map_err(|error| unavailable(error.to_string()))?;
        Ok(Self {
            path: path.to_owned(),
            readers,
            free_readers: Arc::new(Semaphore::new(
                usize::try_from(READERS).expect("a small number"),
            )),
            free_reporters: Arc::new(Semaphore::new(REPORTERS)),
            watch: OnceLock::new(),
            writer: Writer::start(path, connection)
                .map_err(|error| unavailable(error.to_string()))?,
        })
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "SQLite blocks; the semaphore bounds how many threads do"
    )]
    pub(super) async fn read<T, F>(&self, name: &'static str, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, Failed> + Send + 'static,
    {
        let busy = || StoreError::Unavailable(format!("{name}: no reader was free in 250 ms"));
        let waiting = Arc::clone(&self.free_readers).acquire_owned();
        let turn = tokio::time::timeout(READER_WAIT, waiting)
            .await
            .map_err(|_| busy())?
            .map_err(|_| busy())?;
        let readers = self.readers.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn; // kept until the work ends, even if nobody waits for it any more
            let mut reader = readers
                .get_timeout(READER_WAIT)
                .map_err(|error| StoreError::Unavailable(format!("{name}: {error}")))?;
            let done = attempt(&mut reader.connection, TransactionBehavior::Deferred, work);
            reader.is_broken = done.as_ref().is_err_and(Failed::breaks_connection);
            done.map_err(|failed| failed.into_error(name))
        });
        reading.await.unwrap_or_else(|_| {
            Err(StoreError::Unavailable(format!(
                "{name}: the runtime is shutting down"
            )))
        })
    }

    /// [`read`](Self::read) for what may look at much: sums, lists and searches, as many of them at once as leave readers
    /// to others.
    pub(super) async fn read_much<T, F>(&self, name: &'static str, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, Failed> + Send + 'static,
    {
        let waiting = Arc::clone(&self.free_reporters).acquire_owned();
        let turn = tokio::time::timeout(REPORT_WAIT, waiting).await;
        let turn = turn.map_err(|_| {
            StoreError::Unavailable(format!("{name}: others were being summed up for 2 s"))
        })?;
        self.read(name, move |tx| {
            let _turn = turn; // kept until the work ends, as a reader's is
            work(tx)
        })
        .await
    }

    /// Comes back when something may have been committed since the last call.
    pub(super) async fn changed(&self) {
        let Some(watch) = self.watch.get() else {
            // What was committed before it began is not told.
            self.watch.get_or_init(|| Watch::start(&self.path).ok());
            return;
        };
        match watch {
            Some(watch) => watch.changed().await,
            None => tokio::time::sleep(LOOK_EVERY).await,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work`, which opens a connection of its own, where blocking harms nobody.
    #[expect(
        clippy::disallowed_methods,
        reason = "SQLite blocks; only an operator's command comes here, one at a time"
    )]
    pub(super) async fn block<T, F>(&self, name: &'static str, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, Failed> + Send + 'static,
    {
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| StoreError::Unavailable(format!("{name}: {error}")))?
            .map_err(|failed| failed.into_error(name))
    }

    pub(super) async fn write<T, F>(&self, name: &'static str, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, Failed> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |slot| {
            // Whoever asked may be gone; what was asked is done all the same.
            let _ = answer.send(slot.run(name, work));
        });
        self.writer.submit(job).await;
        answered.await.unwrap_or_else(|_| {
            Err(StoreError::Unavailable(format!(
                "{name}: the writer has stopped"
            )))
        })
    }
}

/// Runs `work` in a transaction and commits it. A panic in it is an error: the connection is not used again.
fn attempt<T>(
    connection: &mut Connection,
    behavior: TransactionBehavior,
    work: impl FnOnce(&Transaction<'_>) -> Result<T, Failed>,
) -> Result<T, Failed> {
    let transacted = AssertUnwindSafe(|| {
        let tx = connection.transaction_with_behavior(behavior)?;
        let value = work(&tx)?;
        tx.commit()?;
        Ok(value)
    });
    catch_unwind(transacted).unwrap_or_else(|_| {
        Err(Failed::Sql(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_INTERNAL),
            Some("the operation panicked; this is a bug".to_owned()),
        )))
    })
}

impl Failed {
    /// Whether the connection should not be used again: anything that SQLite itself reports, but for what says
    /// nothing about the file.
    fn breaks_connection(&self) -> bool {
        let Self::Sql(error) = self else {
            return false;
        };
        error.sqlite_error_code().is_some_and(|code| {
            !matches!(
                code,
                ErrorCode::ConstraintViolation
                    | ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::OperationInterrupted
                    | ErrorCode::TooBig
            )
        })
    }
}

/// Makes an empty file for its owner alone, unless there is one; SQLite gives its log and index the same mode.
fn create_private(path: &Path) -> io::Result<()> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map(|_| ())
}

/// Whether the file can be opened as it is.
pub(super) fn look_at(path: &Path) -> StoreResult<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let looked = Connection::open_with_flags(path, flags)
        .map_err(|error| error.to_string())
        .and_then(|connection| migrate::look_at(&connection));
    looked.map_err(|why| StoreError::Unavailable(format!("{}: {why}", path.display())))
}

/// The log of the database at `path`: beside the file itself, where that is a link.
pub(super) fn log_of(path: &Path) -> PathBuf {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut log = path.into_os_string();
    log.push("-wal");
    log.into()
}

/// After a failed sync Linux keeps the pages that did not reach the disk, marked as clean. A log that ends in such
/// pages would be read back as recorded, the journal would forget what it says, and power loss would take it.
fn forget_cached_log(path: &Path) -> io::Result<()> {
    match File::open(log_of(path)) {
        Ok(log) => Ok(rustix::fs::fadvise(&log, 0, None, Advice::DontNeed)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Never makes a file: a database that has vanished is an error, not an empty one.
fn open_writer(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.execute_batch(WRITER_PRAGMAS)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// What the writer's thread is asked to do.
type Job = Box<dyn FnOnce(&mut WriterSlot) + Send>;

/// The thread that writes. Dropping it finishes what is in line and waits for the file to be closed.
struct Writer {
    queue: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(path: &Path, connection: Connection) -> io::Result<Self> {
        let (queue, mut jobs) = mpsc::channel::<Job>(QUEUE);
        let mut slot = WriterSlot {
            path: path.to_owned(),
            connection: Some(connection),
        };
        let thread = std::thread::Builder::new()
            .name("sqlite-writer".to_owned())
            .spawn(move || {
                while let Some(job) = jobs.blocking_recv() {
                    job(&mut slot);
                }
                slot.close();
            })?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
        })
    }

    /// Puts `job` in line. If the thread is gone, the job is dropped, and with it the sender of its answer.
    async fn submit(&self, job: Job) {
        if let Some(queue) = &self.queue {
            let _ = queue.send(job).await;
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The writer's connection; none after an error that spoils it, until the next job opens it again.
struct WriterSlot {
    path: PathBuf,
    connection: Option<Connection>,
}

impl WriterSlot {
    fn run<T>(
        &mut self,
        name: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Failed>,
    ) -> StoreResult<T> {
        let done = match self.open() {
            Ok(connection) => attempt(connection, TransactionBehavior::Immediate, work),
            Err(failed) => Err(failed),
        };
        if done.as_ref().is_err_and(Failed::breaks_connection) {
            self.connection = None;
        }
        done.map_err(|failed| failed.into_error(name))
    }

    fn open(&mut self) -> Result<&mut Connection, Failed> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let connection = open_writer(&self.path)?;
                migrate::check(&connection).map_err(Failed::Corrupt)?;
                connection
            }
        };
        Ok(self.connection.insert(connection))
    }

    /// Writes the log back, so that the file alone holds everything even if a reader is still closing.
    fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            // If it can't be done now, whoever opens the file next does it.
            let _ = connection.busy_timeout(READER_WAIT);
            let _ = connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
        }
    }
}

/// Opens readers, and lets the pool know which of them to replace.
struct ReaderManager(SqliteConnectionManager);

struct Reader {
    connection: Connection,
    is_broken: bool,
}

impl ReaderManager {
    fn new(path: &Path) -> Self {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let manager = SqliteConnectionManager::file(path)
            .with_flags(flags)
            .with_init(|connection| {
                connection.busy_timeout(BUSY_TIMEOUT)?;
                connection.execute_batch(READER_PRAGMAS)?;
                connection.set_prepared_statement_cache_capacity(STATEMENTS);
                Ok(())
            });
        Self(manager)
    }
}

impl ManageConnection for ReaderManager {
    type Connection = Reader;
    type Error = rusqlite::Error;

    fn connect(&self) -> Result<Reader, rusqlite::Error> {
        Ok(Reader {
            connection: self.0.connect()?,
            is_broken: false,
        })
    }

    fn is_valid(&self, _: &mut Reader) -> Result<(), rusqlite::Error> {
        Ok(())
    }

    fn has_broken(&self, reader: &mut Reader) -> bool {
        reader.is_broken
    }
}
