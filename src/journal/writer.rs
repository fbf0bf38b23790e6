//! The thread that writes: group commit, and what it does when the disk fails.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use redb::ReadableDatabase;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use uuid::Uuid;

use super::{
    JournalError, Snapshot,
    pace::Pace,
    relay::{Answers, Waiter},
    row,
    state::Shared,
    tables::{self, Mark, TableFault},
};
use crate::{domain::ids::TenantId, redb_file::RedbFile, store::usage::Seq};

/// A row stays well below a large allocation in redb, which takes pages by powers of two.
const MAX_ROW_BYTES: usize = 1 << 20;
/// The pause after the first failed attempt to reopen; it doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// What must be writable before a failed journal takes events again, unless what failed was larger.
const MIN_PROOF_BYTES: usize = 64 << 10;

/// About what a counter takes in the file.
const BYTES_OF_COUNTER: usize = 128;

type Reply<T> = oneshot::Sender<Result<T, JournalError>>;

pub(super) enum Job {
    Append(Append),
    MarkDrained(MarkDrained),
    Close(oneshot::Sender<()>),
}

pub(super) struct Append {
    pub(super) tenant: TenantId,
    pub(super) event: Vec<u8>,
    pub(super) waiter: Waiter,
    /// Its place among those that may wait; given back when this is dropped.
    pub(super) _place: OwnedSemaphorePermit,
}

pub(super) struct MarkDrained {
    pub(super) upto: Seq,
    pub(super) snapshot: Snapshot,
    pub(super) reply: Reply<()>,
}

/// What goes into one transaction.
#[derive(Default)]
struct Batch {
    appends: Vec<Append>,
    marks: Vec<MarkDrained>,
    bytes: usize,
}

/// What the thread does next.
enum Next {
    GoOn,
    /// It was told to close, and tells when it has; `None` if nobody is left to tell.
    Close(Option<oneshot::Sender<()>>),
}

pub(super) struct Writer {
    journal: Uuid,
    file: RedbFile,
    queue: Receiver<Job>,
    shared: Arc<Shared>,
    pace: Pace,
}

impl Writer {
    pub(super) fn new(
        journal: Uuid,
        file: RedbFile,
        queue: Receiver<Job>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            journal,
            file,
            queue,
            shared,
            pace: Pace::new(Instant::now()),
        }
    }

    /// Starts the thread. It ends when told to close, or when the last handle is gone.
    pub(super) fn start(self) -> io::Result<()> {
        let alarm = Alarm(Arc::clone(&self.shared));
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || {
                self.shared.company.wake_this_thread();
                self.run();
                drop(alarm);
            })
            .map(drop)
    }

    fn run(mut self) {
        let closed = loop {
            let Ok(first) = self.queue.recv() else {
                break None;
            };
            if let Some(wait) = self.pace.wait() {
                self.shared.company.wait_for(wait);
            }
            let (batch, mut next) = self.gather(first);
            if !batch.is_empty()
                && let Err((detail, bytes)) = self.commit(batch)
                && matches!(next, Next::GoOn)
            {
                next = self.heal(detail, bytes);
            }
            if let Next::Close(reply) = next {
                break reply;
            }
        };
        if self.shared.database().is_none() {
            // It ends while it fails: a last chance to take out what the failed commit may have left.
            let _ = self.reopen(0);
        }
        self.shared.set_closed();
        self.shared.close_database();
        if let Some(reply) = closed {
            let _ = reply.send(());
        }
    }

    /// `first` and all that waits behind it, as far as one row takes it.
    fn gather(&self, first: Job) -> (Batch, Next) {
        let mut batch = Batch::default();
        let mut job = Some(first);
        while let Some(next) = job {
            match next {
                Job::Append(append) => {
                    batch.bytes += append.event.len();
                    batch.appends.push(append);
                }
                Job::MarkDrained(mark) => {
                    batch.bytes += mark.snapshot.changed.len() * BYTES_OF_COUNTER;
                    batch.marks.push(mark);
                }
                Job::Close(reply) => return (batch, Next::Close(Some(reply))),
            }
            job = (batch.bytes < MAX_ROW_BYTES)
                .then(|| self.queue.try_recv().ok())
                .flatten();
        }
        self.shared.company.taken(batch.appends.len());
        (batch, Next::GoOn)
    }

    /// Writes `batch` and answers those who wait for it.
    ///
    /// A failed attempt is made once more on the reopened file: one bad moment of a disk is no reason to refuse.
    /// Nobody is told that an event is not written before the file has been seen to be without it.
    ///
    /// # Errors
    /// Why the file cannot be reopened, and how many bytes could not be written.
    fn commit(&mut self, batch: Batch) -> Result<(), (String, usize)> {
        let mut detail = String::new();
        for _attempt in 0..2 {
            match self.write(&batch) {
                Ok(()) => {
                    let shared_by = batch.appends.len();
                    self.publish(batch);
                    self.pace.committed(shared_by, Instant::now());
                    return Ok(());
                }
                Err(fault) => detail = fault.to_string(),
            }
            tracing::warn!(detail, "the journal could not be written; reopening it");
            if let Err(still) = self.reopen(batch.bytes) {
                let bytes = batch.bytes;
                self.shared.set_failing(still.clone());
                batch.refuse(&still);
                return Err((still, bytes));
            }
        }
        batch.refuse(&detail);
        Ok(())
    }

    fn write(&self, batch: &Batch) -> Result<(), TableFault> {
        let last = self.shared.progress().last;
        let row = (!batch.appends.is_empty()).then(|| {
            let events = batch.appends.iter().map(|append| append.event.as_slice());
            row::encode_row(events)
        });
        let marks: Vec<_> = batch
            .marks
            .iter()
            .map(|mark| Mark {
                upto: mark.upto.min(last),
                snapshot: &mark.snapshot,
            })
            .collect();
        let database = self.shared.database();
        let Some(database) = &*database else {
            return Err(TableFault::Closed);
        };
        let row = row.as_deref().map(|row| (Seq(last.0 + 1), row));
        tables::commit(database, row, &marks)
    }

    /// Counts what is durable, then answers: who has an answer finds its event in every total.
    fn publish(&self, batch: Batch) {
        let mut seqs = Vec::with_capacity(batch.appends.len());
        {
            let mut progress = self.shared.progress();
            // Marks were bounded by the last event before these.
            for mark in &batch.marks {
                progress.drain(mark.upto);
            }
            for append in &batch.appends {
                seqs.push(progress.push(append.tenant));
            }
        }
        let is_written = !seqs.is_empty();
        let mut answers = Answers::default();
        for (append, seq) in batch.appends.into_iter().zip(seqs) {
            answers.send(append.waiter, seq);
        }
        drop(answers);
        for mark in batch.marks {
            let _ = mark.reply.send(Ok(()));
        }
        // Last: waking somebody takes a while, and answers go first.
        if is_written {
            self.shared.written.notify_one();
        }
    }

    /// Opens the file again, takes out what a failed commit may have left, and proves that it can be written.
    fn reopen(&self, bytes: usize) -> Result<(), String> {
        self.shared.close_database();
        let database = self.file.reopen().map_err(|fault| fault.to_string())?;
        let found = database
            .begin_read()
            .map_err(TableFault::from)
            .and_then(|read| tables::position(&read))
            .map_err(|fault| fault.to_string())?;
        if found.id != self.journal {
            return Err("another file has taken its place".to_owned());
        }
        let last = self.shared.progress().last;
        if found.last < last {
            return Err(format!(
                "it ends at event {}, but event {} was durable",
                found.last.0, last.0
            ));
        }
        tables::forget_after(&database, last)
            .and_then(|()| tables::prove_writable(&database, bytes.max(MIN_PROOF_BYTES)))
            .map_err(|fault| fault.to_string())?;
        // A mark whose commit failed may have been set: the file decides.
        self.shared.progress().drain(found.drained);
        self.shared.set_database(database);
        Ok(())
    }

    /// Refuses everything at once, and tries again with growing pauses, until the file can be written.
    fn heal(&self, mut detail: String, bytes: usize) -> Next {
        tracing::error!(
            path = %self.file.path().display(),
            detail,
            "the journal cannot be written; usage is refused until it can"
        );
        let mut pause = MIN_PAUSE;
        loop {
            if let Next::Close(reply) = self.refuse_for(pause, &detail) {
                return Next::Close(reply);
            }
            match self.reopen(bytes) {
                Ok(()) => {
                    self.shared.set_writable();
                    tracing::info!("the journal can be written again");
                    return Next::GoOn;
                }
                Err(still) => detail = still,
            }
            self.shared.set_failing(detail.clone());
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    fn refuse_for(&self, pause: Duration, detail: &str) -> Next {
        let begin = Instant::now();
        while let Some(left) = pause.checked_sub(begin.elapsed()) {
            match self.queue.recv_timeout(left) {
                Ok(Job::Append(append)) => {
                    self.shared.company.taken(1);
                    append.waiter.refuse(failing(detail));
                }
                Ok(Job::MarkDrained(mark)) => refuse(mark.reply, detail),
                Ok(Job::Close(reply)) => return Next::Close(Some(reply)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Next::Close(None),
            }
        }
        Next::GoOn
    }
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.appends.is_empty() && self.marks.is_empty()
    }

    fn refuse(self, detail: &str) {
        for append in self.appends {
            append.waiter.refuse(failing(detail));
        }
        for mark in self.marks {
            refuse(mark.reply, detail);
        }
    }
}

fn refuse<T>(reply: Reply<T>, detail: &str) {
    let _ = reply.send(Err(failing(detail)));
}

fn failing(detail: &str) -> JournalError {
    JournalError::Failing(detail.to_owned())
}

/// Says so if the thread ends by a panic: without it, a status of `Ok` would stand for ever.
struct Alarm(Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0
                .set_failing("its thread has ended by a fault; restart the server".to_owned());
        }
    }
}
