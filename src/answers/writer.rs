//! The thread that opens, reads and writes the answers' file. What waits at the same moment shares one durable
//! transaction.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::mpsc::{self, Receiver, Sender},
    thread,
};

use redb::{Builder, Database, DatabaseError, StorageError, backends::FileBackend};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{
    AnswersError, Attempt, Hash, Question,
    tables::{self, Found},
};
use crate::domain::time::Timestamp;

/// Answers are written once and rarely read: redb's default of 1 GiB would only hold memory.
const CACHE_BYTES: usize = 8 << 20;
/// The most jobs of one transaction.
const BATCH: usize = 256;

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

/// What to tell whom, once the transaction is on disk.
enum Told {
    Begun(Question, Found),
    Done(Reply<()>),
    Nobody,
}

pub(super) struct Writer {
    path: PathBuf,
    process: Uuid,
    /// What all answers may take.
    room: u64,
    queue: Receiver<Job>,
    open: Option<Open>,
    /// Requests that had an answer which could not be kept.
    unkept: Vec<Hash>,
}

struct Open {
    database: Database,
    /// What all answers take.
    bytes: u64,
}

impl Writer {
    /// Starts the thread; it ends when the last sender is dropped.
    pub(super) fn start(path: PathBuf, process: Uuid, room: u64) -> Sender<Job> {
        let (jobs, queue) = mpsc::channel();
        let writer = Self {
            path,
            process,
            room,
            queue,
            open: None,
            unkept: Vec::new(),
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
                self.open = None;
                let _ = reply.send(()); // who asked may have gone
                return;
            }
        }
    }

    fn work_off(&mut self, batch: Vec<Job>) {
        if batch.is_empty() {
            return;
        }
        let ends = batch.iter().filter_map(|job| match job {
            Job::End { attempt, .. } => Some(attempt.record),
            Job::Begin(_) | Job::Forget { .. } | Job::Expire { .. } | Job::Close(_) => None,
        });
        let ends: Vec<Hash> = ends.collect();
        let mut told = Vec::with_capacity(batch.len());
        let mut unheard = batch.into_iter();
        let result = self.transact(&mut unheard, &mut told);
        match result {
            Ok(()) => {
                self.unkept.clear();
                told.into_iter().for_each(Told::tell);
            }
            Err(error) => {
                self.unkept.extend(ends);
                tracing::warn!(%error, "answers can't be kept");
                // After an I/O error redb refuses all work until the file is opened again.
                self.open = None;
                let error = AnswersError(error);
                told.into_iter().for_each(|told| told.fail(&error));
                unheard.for_each(|job| job.fail(&error));
            }
        }
    }

    fn transact(
        &mut self,
        batch: &mut impl Iterator<Item = Job>,
        told: &mut Vec<Told>,
    ) -> Result<(), String> {
        let (process, room) = (self.process, self.room);
        let unkept = self.unkept.clone();
        let open = self.opened()?;
        let tx = open.database.begin_write().map_err(say)?;
        for record in &unkept {
            tables::give_up_keeping(&tx, record).map_err(say)?;
        }
        let mut bytes = open.bytes;
        for job in batch {
            let (done, failed) = apply(&tx, job, process, &mut bytes);
            told.push(done);
            if let Some(error) = failed {
                return Err(say(error));
            }
        }
        if bytes > room {
            bytes = bytes.saturating_sub(tables::make_room(&tx, bytes - room).map_err(say)?);
        }
        tx.commit().map_err(say)?;
        open.bytes = bytes;
        Ok(())
    }

    fn opened(&mut self) -> Result<&mut Open, String> {
        if self.open.is_none() {
            let database = self.open_file()?;
            let tx = database.begin_write().map_err(say)?;
            let bytes = tables::prepare(&tx).map_err(say)?;
            tx.commit().map_err(say)?;
            self.open = Some(Open { database, bytes });
        }
        self.open.as_mut().ok_or_else(|| "it is closed".to_owned())
    }

    /// Opens the file, or makes it, readable by its owner only; a damaged one is moved aside.
    fn open_file(&self) -> Result<Database, String> {
        match self.try_open() {
            Err(DatabaseError::Storage(StorageError::Corrupted(detail))) => {
                let aside = self.path.with_extension("redb.damaged");
                fs::rename(&self.path, &aside).map_err(say)?;
                tracing::error!(
                    code = "answers_damaged",
                    detail,
                    moved_to = %aside.display(),
                    "the kept answers are damaged; repeats of them run again"
                );
                self.try_open().map_err(say)
            }
            opened => opened.map_err(say),
        }
    }

    fn try_open(&self) -> Result<Database, DatabaseError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.path)
            .map_err(|error| DatabaseError::Storage(StorageError::Io(error)))?;
        Builder::new()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(FileBackend::new(file)?)
    }
}

/// Does one job in the transaction. In any case it gives back who waits.
fn apply(
    tx: &redb::WriteTransaction,
    job: Job,
    process: Uuid,
    bytes: &mut u64,
) -> (Told, Option<redb::Error>) {
    match job {
        Job::Begin(asked) => {
            match tables::begin(tx, &asked.attempt.record, asked.body, asked.now, process) {
                Ok((found, freed)) => {
                    *bytes = bytes.saturating_sub(freed);
                    (Told::Begun(asked, found), None)
                }
                Err(error) => (Told::Begun(asked, Found::InFlight), Some(error)),
            }
        }
        Job::End {
            attempt,
            answer,
            reply,
        } => match tables::end(tx, &attempt.record, answer.as_deref()) {
            Ok(added) => {
                *bytes += added;
                (Told::Done(reply), None)
            }
            Err(error) => (Told::Done(reply), Some(error)),
        },
        Job::Forget { attempt, reply } => {
            let told = reply.map_or(Told::Nobody, Told::Done);
            match tables::give_up(tx, &attempt.record) {
                Ok(()) => (told, None),
                Err(error) => (told, Some(error)),
            }
        }
        Job::Expire { before, reply } => match tables::expire(tx, before, process) {
            Ok(freed) => {
                *bytes = bytes.saturating_sub(freed);
                (Told::Done(reply), None)
            }
            Err(error) => (Told::Done(reply), Some(error)),
        },
        Job::Close(_) => (Told::Nobody, None), // taken out of the batch before
    }
}

impl Told {
    fn tell(self) {
        match self {
            Self::Begun(question, found) => question.answer(Ok(found)),
            Self::Done(reply) => drop(reply.send(Ok(()))),
            Self::Nobody => {}
        }
    }

    fn fail(self, error: &AnswersError) {
        match self {
            Self::Begun(question, _) => question.answer(Err(error.clone())),
            Self::Done(reply) => drop(reply.send(Err(error.clone()))),
            Self::Nobody => {}
        }
    }
}

impl Job {
    fn fail(self, error: &AnswersError) {
        match self {
            Self::Begin(question) => question.answer(Err(error.clone())),
            Self::End { reply, .. } | Self::Expire { reply, .. } => {
                drop(reply.send(Err(error.clone())));
            }
            Self::Forget {
                reply: Some(reply), ..
            } => drop(reply.send(Err(error.clone()))),
            Self::Forget { reply: None, .. } | Self::Close(_) => {}
        }
    }
}

fn say(error: impl std::fmt::Display) -> String {
    error.to_string()
}
