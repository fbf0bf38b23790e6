//! The answers to requests with an `Idempotency-Key`, so that a repeat is replayed and never run twice.
//!
//! A file of its own (`answers.redb` in the data dir), opened by the first request that needs it and written by one
//! thread: requests without the header never come here. Where totals are shared in Redis, answers are too (`shared`). A record is durable before its request runs, and its
//! answer before the last of it leaves. Bounded in time (24 h), in the size of one answer (1 MiB) and of all (1 GiB):
//! past the last, the oldest answers go, but it stays known that there was one.

mod shared;
mod tables;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    path::Path,
    sync::{Arc, OnceLock, mpsc},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use uuid::Uuid;

use self::{
    tables::Found,
    writer::{Job, Writer},
};
use crate::{
    clock::{self, Clock},
    domain::{
        ids::{EventId, TenantId},
        time::Timestamp,
        usage::{Source, event_id_of},
    },
    ledger::RedisLedger,
    redb_file::{self, RedbFile},
};

/// How long an answer can be repeated, from its request on.
pub const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
/// The longest body that is kept.
pub const LONGEST_BODY: usize = 1 << 20;
/// What all answers may take together.
const ALL_BYTES: u64 = 1 << 30;
/// Answers are written once and rarely read: redb's default of 1 GiB would only hold memory.
const CACHE_BYTES: usize = 8 << 20;

/// An answer that can be sent again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
}

/// Names a request: the same of the same tenant on the same route is a repeat.
#[derive(Clone, Copy, Debug)]
pub struct AskedBy<'a> {
    pub tenant: TenantId,
    pub route: &'a str,
    pub key: &'a str,
}

/// A SHA-256 hash.
pub(crate) type Hash = [u8; 32];

/// What is known of a request.
#[derive(Debug)]
pub enum Begun {
    /// Nothing, or that it was cut off by a crash: it is to run, and the claim keeps others from running it.
    Run(Claim),
    InFlight,
    /// Its key was used with another body.
    OtherBody,
    Answered(Answer),
    /// It was answered, but the answer was too large, or had to make room.
    NotKept,
}

/// A request, and which attempt to run it: what one has claimed no other gives back.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    record: Hash,
    id: Uuid,
}

/// The right to run a request. Dropped without an answer, another may run it.
#[derive(Debug)]
pub struct Claim {
    attempt: Attempt,
    jobs: Jobs,
    is_ended: bool,
    /// When its key was first used.
    pub begun_at: Timestamp,
    /// An earlier run of it was cut off by a crash, maybe after its usage was recorded.
    pub is_rerun: bool,
}

/// A request, and who asks whether it is to run.
#[derive(Debug)]
struct Question {
    attempt: Attempt,
    /// Of its body.
    body: Hash,
    now: Timestamp,
    /// For the claim.
    jobs: Jobs,
    reply: oneshot::Sender<Result<Begun, AnswersError>>,
}

/// Answers can't be kept or looked up: the disk is full or failing, or the server stops.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("answers can't be kept: {0}")]
pub struct AnswersError(String);

/// The kept answers; clones share them.
#[derive(Clone)]
pub struct Answers {
    shared: Arc<Shared>,
}

struct Shared {
    place: Place,
    jobs: OnceLock<Jobs>,
}

/// Where answers are kept.
enum Place {
    File {
        file: RedbFile,
        clock: Clock,
        /// Of this process: a request that another one claimed was cut off.
        process: Uuid,
        all_bytes: u64,
    },
    Redis(Arc<RedisLedger>),
}

/// To whoever keeps them; what is sent is done in this order.
#[derive(Clone, Debug)]
enum Jobs {
    File(mpsc::Sender<Job>),
    Redis(tokio::sync::mpsc::UnboundedSender<Job>),
}

impl Jobs {
    fn send(&self, job: Job) -> Result<(), AnswersError> {
        let sent = match self {
            Self::File(jobs) => jobs.send(job).is_ok(),
            Self::Redis(jobs) => jobs.send(job).is_ok(),
        };
        if sent { Ok(()) } else { Err(closed()) }
    }
}

impl Answers {
    /// Opens nothing yet.
    #[must_use]
    pub fn new(path: &Path, clock: Clock) -> Self {
        let file = RedbFile::new(path, CACHE_BYTES, redb_file::on_disk());
        Self::in_file(file, clock, ALL_BYTES)
    }

    fn in_file(file: RedbFile, clock: Clock, all_bytes: u64) -> Self {
        Self::at(Place::File {
            file,
            clock,
            process: clock::new_id(),
            all_bytes,
        })
    }

    /// Kept where all nodes find them.
    #[must_use]
    pub fn in_redis(redis: Arc<RedisLedger>) -> Self {
        Self::at(Place::Redis(redis))
    }

    fn at(place: Place) -> Self {
        Self {
            shared: Arc::new(Shared {
                place,
                jobs: OnceLock::new(),
            }),
        }
    }

    fn jobs(&self) -> &Jobs {
        let Shared { place, jobs } = &*self.shared;
        jobs.get_or_init(|| match place {
            Place::File {
                file,
                clock,
                process,
                all_bytes,
            } => {
                let (file, clock) = (file.clone(), clock.clone());
                Jobs::File(Writer::start(file, clock, *process, *all_bytes))
            }
            Place::Redis(redis) => Jobs::Redis(shared::start(Arc::clone(redis), ALL_BYTES)),
        })
    }

    /// Looks a request up, and claims it if it is to run. Durable when it returns.
    ///
    /// # Errors
    /// [`AnswersError`]: nothing is claimed.
    pub async fn begin(
        &self,
        asked: AskedBy<'_>,
        body: &[u8],
        now: Timestamp,
    ) -> Result<Begun, AnswersError> {
        let (reply, answer) = oneshot::channel();
        let jobs = self.jobs();
        let question = Question {
            attempt: Attempt {
                record: record_of(asked),
                id: clock::new_id(),
            },
            body: Sha256::digest(body).into(),
            now,
            jobs: jobs.clone(),
            reply,
        };
        jobs.send(Job::Begin(question))?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Forgets what is older than it may be repeated.
    ///
    /// # Errors
    /// [`AnswersError`]: the next call makes up for it.
    pub async fn expire(&self, now: Timestamp) -> Result<(), AnswersError> {
        match &self.shared.place {
            Place::File { file, .. }
                if self.shared.jobs.get().is_some() || file.path().exists() => {}
            // Redis forgets by itself.
            Place::File { .. } | Place::Redis(_) => return Ok(()),
        }
        let (reply, answer) = oneshot::channel();
        let before = now.minus(KEPT_FOR);
        let job = Job::Expire { before, reply };
        self.jobs().send(job)?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Writes what waits and closes the file, if it was opened.
    pub async fn close(&self) {
        if let Some(jobs) = self.shared.jobs.get() {
            let (reply, answer) = oneshot::channel();
            if jobs.send(Job::Close(reply)).is_ok() {
                drop(answer.await);
            }
        }
    }
}

impl Question {
    /// The claim goes with the answer: a client that hangs up may leave that unread, or find nobody to take it, and
    /// the claim is dropped with it.
    fn answer(self, found: Result<Found, AnswersError>) {
        let begun = found.map(|found| match found {
            Found::Run { begun_at, is_rerun } => Begun::Run(Claim {
                attempt: self.attempt,
                jobs: self.jobs,
                is_ended: false,
                begun_at,
                is_rerun,
            }),
            Found::InFlight => Begun::InFlight,
            Found::OtherBody => Begun::OtherBody,
            Found::Answered(answer) => Begun::Answered(answer),
            Found::NotKept => Begun::NotKept,
        });
        drop(self.reply.send(begun));
    }
}

impl Claim {
    /// Keeps the answer, unless its body is too long. Durable when it returns.
    ///
    /// # Errors
    /// [`AnswersError`]: it stays claimed, until its answer can be kept (in Redis), or it can be noted that it is not.
    pub async fn keep(self, answer: &Answer) -> Result<(), AnswersError> {
        if answer.body.len() > LONGEST_BODY {
            return self.keep_no_answer().await;
        }
        let encoded = postcard::to_stdvec(answer).expect("a growing buffer takes any plain struct");
        self.end(Some(encoded)).await
    }

    /// Notes that there was an answer, but that it was too large to be kept.
    ///
    /// # Errors
    /// As [`keep`](Self::keep).
    pub async fn keep_no_answer(self) -> Result<(), AnswersError> {
        self.end(None).await
    }

    /// Gives the claim back: a repeat may run from now on.
    pub async fn forget(mut self) {
        let (reply, ended) = oneshot::channel();
        let job = Job::Forget {
            attempt: self.attempt,
            reply: Some(reply),
        };
        // Whoever keeps it makes up for it if that fails: told again, it could end the next claim.
        self.is_ended = true;
        if self.jobs.send(job).is_ok() {
            drop(ended.await);
        }
    }

    async fn end(mut self, answer: Option<Vec<u8>>) -> Result<(), AnswersError> {
        let (reply, ended) = oneshot::channel();
        let job = Job::End {
            attempt: self.attempt,
            answer,
            reply,
        };
        // Once it has run it is not given back: a repeat would run again, and be charged.
        self.is_ended = true;
        self.jobs.send(job)?;
        ended.await.unwrap_or_else(|_| Err(closed()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.is_ended {
            // The thread takes jobs in order, so a request that begins after this finds nothing.
            let job = Job::Forget {
                attempt: self.attempt,
                reply: None,
            };
            drop(self.jobs.send(job));
        }
    }
}

impl AskedBy<'_> {
    /// The id of the usage event of the run that began at `begun_at`: a run after a crash finds the first one's.
    /// The time is in it, so that a key that is used again after its 24 h is charged again.
    #[must_use]
    pub fn event_id(&self, begun_at: Timestamp) -> EventId {
        let Self { route, key, .. } = self;
        let name = format!("{route}\0{key}\0{}", begun_at.micros());
        event_id_of(self.tenant, Source::Chat, &name)
    }
}

fn record_of(asked: AskedBy<'_>) -> Hash {
    let mut hash = Sha256::new();
    hash.update(asked.tenant.uuid().as_bytes());
    for part in [asked.route, asked.key] {
        hash.update(part.len().to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}

fn closed() -> AnswersError {
    AnswersError("the server is stopping".to_owned())
}
