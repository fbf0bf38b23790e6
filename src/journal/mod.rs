//! The local durable log that a usage event enters before its answer is released.
//!
//! Appends that wait at the same moment share one durable transaction (group commit), written by one thread of the
//! journal's own. The drainer reads what is there, brings it to the store, and marks it drained; the totals as of
//! that mark lie in the same file, so that these and the events after the mark are the totals after any crash.
//!
//! Nothing here knows of limits, plans or the store. What an event says never reaches a log or an error: those
//! name seqs and paths.

mod company;
mod file;
mod frozen;
mod pace;
mod relay;
mod row;
mod state;
mod tables;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

use std::{
    borrow::Borrow,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, oneshot};
use uuid::Uuid;

pub use self::{
    frozen::{Frozen, read_row},
    relay::relay_answers,
};
use self::{
    relay::Waiter,
    state::Shared,
    tables::TableFault,
    writer::{Append, Job, MarkDrained, Writer},
};
pub use crate::redb_file::Opener;
use crate::{
    clock::Clock,
    domain::{ids::TenantId, quantity::Quantity, usage::UsageEvent},
    ledger::CounterKey,
    redb_file::OpenFault,
    store::usage::Seq,
};

/// Appends that may wait at once; more wait for a place.
const ROOM: usize = 4096;

/// What written usage survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Power loss: every commit waits until the disk has it.
    #[default]
    Full,
    /// The end of the process, `kill -9` included: every commit waits until the operating system has it.
    Process,
}

/// Settled totals of the counters that changed since the last mark, as of the new one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub changed: Vec<(CounterKey, Quantity)>,
    pub removed: Vec<CounterKey>,
}

/// Whether events can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JournalStatus {
    Ok,
    /// The disk is full or failing. Tried again by itself; no restart is needed.
    Failing {
        detail: String,
    },
}

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum JournalError {
    #[error(
        "the journal {path} is open in another process; stop that one, or choose another data directory",
        path = .0.display()
    )]
    Locked(PathBuf),
    #[error("the journal {path} cannot be opened: {detail}", path = .path.display())]
    Open { path: PathBuf, detail: String },
    #[error("the journal cannot be written: {0}")]
    Failing(String),
    #[error("the journal cannot be read: {0}")]
    Unreadable(String),
    #[error("the journal is closed")]
    Closed,
}

/// A handle of the journal; clones share it.
///
/// When the last one is dropped the thread ends by itself; [`Journal::close`] waits for that.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    id: Uuid,
    damaged_moved_to: Option<PathBuf>,
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
    shared: Arc<Shared>,
}

impl Journal {
    /// Opens or makes the file and starts its writer thread.
    ///
    /// A damaged file is moved aside to `NAME.damaged-TIME` (see [`Journal::damaged_moved_to`]) and a new one
    /// begun; what it held and the store had not is gone, and the totals are the store's. A file of a newer
    /// version is left alone.
    ///
    /// # Errors
    /// [`JournalError::Locked`] if another process has it, [`JournalError::Open`] if it cannot be read or written.
    pub fn open(path: &Path, durability: Durability, clock: Clock) -> Result<Self, JournalError> {
        Self::open_with(path, file::opener(durability), &clock)
    }

    /// Looks at a journal that nobody has open, without moving it aside if it is damaged; gives the number of
    /// undrained events, `None` if there is no file. Blocks.
    ///
    /// # Errors
    /// Why it can't be opened, as a line for people.
    pub fn inspect(path: &Path) -> Result<Option<u64>, String> {
        if !path.exists() {
            return Ok(None);
        }
        let file = file::journal_file(path, file::opener(Durability::Full));
        match Shared::open(&file) {
            Ok((shared, _)) => Ok(Some(shared.progress().pending())),
            Err(fault) => Err(fault.to_string()),
        }
    }

    /// As [`Journal::open`], on a disk that the caller brings; how durable that is, it says itself.
    ///
    /// # Errors
    /// As of [`Journal::open`].
    pub fn open_with(path: &Path, opener: Opener, clock: &Clock) -> Result<Self, JournalError> {
        let file = file::journal_file(path, opener);
        let mut damaged_moved_to = None;
        let (shared, id) = match Shared::open(&file) {
            Err(OpenFault::Damaged(_)) => {
                let moved = file.move_aside(clock.now());
                damaged_moved_to = Some(moved.map_err(|error| open_error(path, &error))?);
                Shared::open(&file)
            }
            opened => opened,
        }
        .map_err(|fault| match fault {
            OpenFault::Locked => JournalError::Locked(path.to_owned()),
            fault => open_error(path, &fault),
        })?;

        let shared = Arc::new(shared);
        let (jobs, queue) = mpsc::channel();
        Writer::new(id, file, queue, Arc::clone(&shared))
            .start()
            .map_err(|error| open_error(path, &error))?;
        Ok(Self {
            inner: Arc::new(Inner {
                id,
                damaged_moved_to,
                jobs,
                room: Arc::new(Semaphore::new(ROOM)),
                shared,
            }),
        })
    }

    /// Made with the file: another file is another journal, whose seqs mean something else.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.inner.id
    }

    /// Writes `event` down. `Ok` once it is durable, with its seq.
    ///
    /// Dropping the future takes nothing back: the event may still be written.
    ///
    /// # Errors
    /// The event is not written and will not count, at once while the journal is failing. (One way is left for it
    /// to count all the same: its commit failed and the process died before the file could be opened again.)
    pub async fn append(&self, event: impl Borrow<UsageEvent>) -> Result<Seq, JournalError> {
        let Inner {
            jobs, room, shared, ..
        } = &*self.inner;
        shared.check_writable()?;
        let tenant = event.borrow().tenant_id;
        let encoded = row::encode_event(event.borrow());
        let place = Arc::clone(room)
            .acquire_owned()
            .await
            .map_err(|_| JournalError::Closed)?;
        // It may have begun to fail while this waited for a place.
        shared.check_writable()?;
        let (waiter, answer) = Waiter::new();
        jobs.send(Job::Append(Append {
            tenant,
            event: encoded,
            waiter,
            _place: place,
        }))
        .map_err(|_| JournalError::Closed)?;
        shared.company.came();
        answer.await.unwrap_or(Err(JournalError::Closed))
    }

    /// The last durable event's; 0 if there never was one.
    #[must_use]
    pub fn last_seq(&self) -> Seq {
        self.inner.shared.progress().last
    }

    /// The tenant's last durable event that is not yet drained; 0 if all are.
    #[must_use]
    pub fn last_seq_of(&self, tenant: TenantId) -> Seq {
        self.inner.shared.progress().last_of(tenant)
    }

    /// Up to where events have been brought to the store.
    #[must_use]
    pub fn drained(&self) -> Seq {
        self.inner.shared.progress().drained
    }

    /// How many events are durable and not yet drained.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.inner.shared.progress().pending()
    }

    /// Waits until events have become durable since this was last waited for. One at a time may wait.
    pub async fn written(&self) {
        self.inner.shared.written.notified().await;
    }

    /// Waits until [`status`](Self::status) may have changed since this was last waited for. One at a time may wait.
    pub async fn turned(&self) {
        self.inner.shared.turned.notified().await;
    }

    /// The oldest events not yet drained, at most `limit`, in order.
    ///
    /// # Errors
    /// [`JournalError::Unreadable`], [`JournalError::Failing`] while the file is being reopened.
    pub async fn read_undrained(
        &self,
        limit: usize,
    ) -> Result<Vec<(Seq, UsageEvent)>, JournalError> {
        let pending = usize::try_from(self.pending()).unwrap_or(usize::MAX);
        self.read(move |read| tables::read_undrained(read, limit, pending))
            .await
    }

    /// Forgets the events up to `upto`, and sets the totals to those as of `upto`: in one durable transaction.
    ///
    /// An `upto` beyond the last event stands for the last, one before the present mark for that mark.
    ///
    /// # Errors
    /// [`JournalError::Failing`]: it may or may not be done. Doing it again is safe.
    pub async fn mark_drained(&self, upto: Seq, snapshot: Snapshot) -> Result<(), JournalError> {
        self.inner.shared.check_writable()?;
        let (reply, answer) = oneshot::channel();
        self.inner
            .jobs
            .send(Job::MarkDrained(MarkDrained {
                upto,
                snapshot,
                reply,
            }))
            .map_err(|_| JournalError::Closed)?;
        answer.await.unwrap_or(Err(JournalError::Closed))
    }

    /// The totals as of [`Journal::drained`].
    ///
    /// # Errors
    /// As of [`Journal::read_undrained`].
    pub async fn load_snapshot(&self) -> Result<Vec<(CounterKey, Quantity)>, JournalError> {
        self.read(tables::load_snapshot).await
    }

    /// Keeps what is not drained now for a backup.
    ///
    /// # Errors
    /// As of [`Journal::read_undrained`].
    pub fn freeze(&self) -> Result<Frozen, JournalError> {
        Frozen::of(self.inner.shared.begin_read()?)
    }

    #[must_use]
    pub fn status(&self) -> JournalStatus {
        self.inner.shared.status()
    }

    /// Where a damaged file went when this journal was opened.
    #[must_use]
    pub fn damaged_moved_to(&self) -> Option<&Path> {
        self.inner.damaged_moved_to.as_deref()
    }

    /// Writes what waits, ends the thread and releases the file. From then on every call is an error.
    pub async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        if self.inner.jobs.send(Job::Close(reply)).is_ok() {
            // An error says that another call closed it first.
            let _ = closed.await;
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a read of many rows blocks; only the drainer and a start read, one call at a time"
    )]
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&redb::ReadTransaction) -> Result<T, TableFault> + Send + 'static,
    ) -> Result<T, JournalError> {
        let shared = Arc::clone(&self.inner.shared);
        tokio::task::spawn_blocking(move || {
            let transaction = shared.begin_read()?;
            read(&transaction).map_err(|fault| JournalError::Unreadable(fault.to_string()))
        })
        .await
        .map_err(|error| JournalError::Unreadable(error.to_string()))?
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("id", &self.inner.id)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

fn open_error(path: &Path, detail: &dyn fmt::Display) -> JournalError {
    JournalError::Open {
        path: path.to_owned(),
        detail: detail.to_string(),
    }
}
