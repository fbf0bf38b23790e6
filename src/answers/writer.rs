//! The thread that opens, reads and writes the answers' file. What waits at the same moment shares one durable
//! transaction.

use std::{
    collections::HashMap,
    panic::{self, AssertUnwindSafe},
    sync::mpsc::{self, Receiver, Sender},
    thread,
};

use redb::Database;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{
    AnswersError, Attempt, Hash, Question,
    tables::{self, Found, Record},
};
use crate::{
    clock::Clock,
    domain::time::Timestamp,
    redb_file::{OpenFault, RedbFile},
};

/// The most jobs of one transaction.
const BATCH: usize = 256;
/// How many requests that may have been claimed in vain are remembered.
const MOST_UNHEARD: usize = 10_000;

type Reply<T> = oneshot::Sender<Result<T, AnswersError>>;

#[derive(Debug)]
pub(super) enum Job {
    Begin(Question),
    End {
        attempt: Attempt,
        /// `None`: it was too large.
        answer: Option<Vec<u8>>,
        reply: Reply<()>,
    },
    Forget {
        attempt: Attempt,
        /// `None`: nobody waits.
        reply: Option<Reply<()>>,
    },
    Expire {
        before: Timestamp,
        reply: Reply<()>,
    },
    Close(oneshot::Sender<()>),
}

impl std::fmt::Debug for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Found") // an answer is not for logs
    }
}

/// Why a transaction failed.
enum Fault {
    Failed(String),
    /// The file is not what was written to it.
    Damaged(String),
}

/// How a claim ended, as it is to be noted once the file can be written.
enum Owed {
    /// With an answer, which could not be kept.
    NotKept(Record),
    /// Without one, or nobody heard of it.
    Forgotten,
}

pub(super) struct Writer {
    file: RedbFile,
    clock: Clock,
    process: Uuid,
    /// What all answers may take.
    room: u64,
    queue: Receiver<Job>,
    open: Option<Open>,
    /// What this process runs: a file that takes a damaged one's place has to know it.
    running: HashMap<Hash, Record>,
    /// What could not be written of claims that are none any more, to be made up for.
    owed: HashMap<Hash, Owed>,
}

struct Open {
    database: Database,
    /// What all answers take.
    bytes: u64,
}

impl Writer {
    /// Starts the thread; it ends when the last sender is dropped.
    pub(super) fn start(file: RedbFile, clock: Clock, process: Uuid, room: u64) -> Sender<Job> {
        let (jobs, queue) = mpsc::channel();
        let writer = Self {
            file,
            clock,
            process,
            room,
            queue,
            open: None,
            running: HashMap::new(),
            owed: HashMap::new(),
        };
        let thread = thread::Builder::new().name("answers".to_owned());
        if let Err(error) = thread.spawn(move || writer.run()) {
            tracing::error!(%error, "the thread that keeps answers can't be started");
        }
        jobs
    }

    fn run(mut self) {
        while let Ok(first) = self.queue.recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH {
                match self.queue.try_recv() {
                    Ok(job) => batch.push(job),
                    Err(_) => break,
                }
            }
            let close = match batch.iter().position(|job| matches!(job, Job::Close(_))) {
                Some(at) => batch.split_off(at).into_iter().next(),
                None => None,
            };
            self.work_off(batch);
            if let Some(Job::Close(reply)) = close {
                self.close_file();
                let _ = reply.send(()); // who asked may have gone
                return;
            }
        }
    }

    fn work_off(&mut self, batch: Vec<Job>) {
        if batch.is_empty() {
            return;
        }
        match self.write(&batch) {
            Ok(found) => {
                self.owed.clear();
                for (job, found) in batch.into_iter().zip(found) {
                    self.note_written(&job, found.as_ref());
                    job.tell(found);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "answers can't be kept");
                let error = AnswersError(error);
                for job in batch {
                    self.note_failed(&job);
                    job.fail(&error);
                }
            }
        }
    }

    /// Writes a batch; what was found for each that begins. Once more into a new file, if this one turns out damaged.
    fn write(&mut self, batch: &[Job]) -> Result<Vec<Option<Found>>, String> {
        let mut detail = String::new();
        for _attempt in 0..2 {
            // As for the journal: the check when the file is opened does not find all that redb panics on.
            let written = panic::catch_unwind(AssertUnwindSafe(|| self.transact(batch)));
            detail = match written {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(Fault::Failed(error))) => {
                    // After an I/O error redb refuses all work until the file is opened again.
                    self.close_file();
                    return Err(error);
                }
                Ok(Err(Fault::Damaged(detail))) => detail,
                Err(_) => "working on it panicked".to_owned(),
            };
            self.close_file();
            self.move_aside(&detail)?;
        }
        Err(detail)
    }

    fn transact(&mut self, batch: &[Job]) -> Result<Vec<Option<Found>>, Fault> {
        let (process, room) = (self.process, self.room);
        let open = match self.open.take() {
            Some(open) => open,
            None => self.opened()?,
        };
        let open = self.open.insert(open);
        let tx = open.database.begin_write()?;
        for (record, owed) in &self.owed {
            match owed {
                Owed::NotKept(begun) => tables::give_up_keeping(&tx, record, begun)?,
                Owed::Forgotten => tables::give_up(&tx, record)?,
            }
        }
        let mut bytes = open.bytes;
        let mut found = Vec::with_capacity(batch.len());
        for job in batch {
            found.push(apply(&tx, job, process, &mut bytes)?);
        }
        if bytes > room {
            bytes = bytes.saturating_sub(tables::make_room(&tx, bytes - room)?);
        }
        tx.commit()?;
        open.bytes = bytes;
        Ok(found)
    }

    fn opened(&self) -> Result<Open, Fault> {
        let database = self.file.open()?;
        let tx = database.begin_write()?;
        let bytes = tables::prepare(&tx)?;
        for (id, record) in &self.running {
            tables::restore(&tx, id, record)?;
        }
        tx.commit()?;
        Ok(Open { database, bytes })
    }

    fn close_file(&mut self) {
        let open = self.open.take();
        // Closing reads and writes too.
        let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(open)));
    }

    fn move_aside(&self, detail: &str) -> Result<(), String> {
        let moved_to = self.file.move_aside(self.clock.now());
        let moved_to = moved_to.map_err(|error| format!("{detail}; moving it aside: {error}"))?;
        tracing::error!(
            code = "answers_damaged",
            detail,
            moved_to = %moved_to.display(),
            "the kept answers are damaged and were moved aside; repeats of what they held run again"
        );
        Ok(())
    }

    /// Follows what is in the file.
    fn note_written(&mut self, job: &Job, found: Option<&Found>) {
        match job {
            Job::Begin(question) => {
                if let Some(Found::Run { begun_at, .. }) = found {
                    let record = Record::running(question.body, *begun_at, self.process);
                    self.running.insert(question.attempt.record, record);
                }
            }
            Job::End { attempt, .. } | Job::Forget { attempt, .. } => {
                self.running.remove(&attempt.record);
            }
            Job::Expire { .. } | Job::Close(_) => {}
        }
    }

    /// Notes what is to be made up for: whether any of a batch that failed is in the file nobody knows.
    fn note_failed(&mut self, job: &Job) {
        let (record, owed) = match job {
            Job::Begin(question) => {
                let record = question.attempt.record;
                let is_known =
                    self.running.contains_key(&record) || self.owed.contains_key(&record);
                if is_known || self.owed.len() >= MOST_UNHEARD {
                    return;
                }
                (record, Owed::Forgotten)
            }
            Job::End { attempt, .. } => match self.running.remove(&attempt.record) {
                Some(begun) => (attempt.record, Owed::NotKept(begun)),
                None => return,
            },
            Job::Forget { attempt, .. } => {
                self.running.remove(&attempt.record);
                (attempt.record, Owed::Forgotten)
            }
            Job::Expire { .. } | Job::Close(_) => return,
        };
        self.owed.insert(record, owed);
    }
}

/// Does one job in the transaction; what was found for one that begins.
fn apply(
    tx: &redb::WriteTransaction,
    job: &Job,
    process: Uuid,
    bytes: &mut u64,
) -> tables::TableResult<Option<Found>> {
    match job {
        Job::Begin(question) => {
            let record = &question.attempt.record;
            let (found, freed) = tables::begin(tx, record, question.body, question.now, process)?;
            *bytes = bytes.saturating_sub(freed);
            return Ok(Some(found));
        }
        Job::End {
            attempt, answer, ..
        } => *bytes += tables::end(tx, &attempt.record, answer.as_deref())?,
        Job::Forget { attempt, .. } => tables::give_up(tx, &attempt.record)?,
        Job::Expire { before, .. } => {
            *bytes = bytes.saturating_sub(tables::expire(tx, *before, process)?);
        }
        Job::Close(_) => {} // taken out of the batch before
    }
    Ok(None)
}

impl Job {
    /// Tells who waits, once it is on disk.
    fn tell(self, found: Option<Found>) {
        match (self, found) {
            (Self::Begin(question), Some(found)) => question.answer(Ok(found)),
            (Self::Begin(question), None) => question.answer(Err(super::closed())), // each has found something
            (job, _) => job.end(Ok(())),
        }
    }

    fn fail(self, error: &AnswersError) {
        match self {
            Self::Begin(question) => question.answer(Err(error.clone())),
            job => job.end(Err(error.clone())),
        }
    }

    fn end(self, ended: Result<(), AnswersError>) {
        match self {
            Self::End { reply, .. }
            | Self::Expire { reply, .. }
            | Self::Forget {
                reply: Some(reply), ..
            } => drop(reply.send(ended)),
            Self::Begin(_) | Self::Forget { reply: None, .. } | Self::Close(_) => {}
        }
    }
}

impl<E: Into<redb::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        match error.into() {
            redb::Error::Corrupted(detail) => Self::Damaged(detail),
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<OpenFault> for Fault {
    fn from(fault: OpenFault) -> Self {
        match fault {
            OpenFault::Damaged(detail) => Self::Damaged(detail),
            fault @ (OpenFault::Locked | OpenFault::Newer(_) | OpenFault::Failed(_)) => {
                Self::Failed(fault.to_string())
            }
        }
    }
}
