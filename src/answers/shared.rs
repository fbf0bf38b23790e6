//! Keeping answers in Redis: the jobs of the file's thread, done by calls.

use std::sync::Arc;

use tokio::sync::mpsc::{self, UnboundedSender};

use super::{AnswersError, Attempt, KEPT_FOR, tables::Found, writer::Job};
use crate::ledger::{Claimed, Keep, RedisLedger, Shared};

/// Starts a task that puts jobs on their way in the order in which they come; it ends when the last sender is dropped.
#[expect(
    clippy::disallowed_methods,
    reason = "it ends with the answers, whose requests wait for it"
)]
pub(super) fn start(redis: Arc<RedisLedger>, bytes: u64) -> UnboundedSender<Job> {
    let keep = Keep {
        kept_for: KEPT_FOR,
        bytes,
    };
    let (jobs, mut queue) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(job) = queue.recv().await {
            if let Job::Close(reply) = job {
                let _ = reply.send(()); // who asked may have gone
                return;
            }
            let mut done = Box::pin(run(Arc::clone(&redis), job, keep));
            // Once polled it is in its lane; for the answer the next job need not wait.
            if futures_util::poll!(&mut done).is_pending() {
                tokio::spawn(done);
            }
        }
    });
    jobs
}

async fn run(redis: Arc<RedisLedger>, job: Job, keep: Keep) {
    let now = redis.now();
    match job {
        Job::Begin(question) => {
            let found =
                redis.begin_answer(question.attempt.into(), question.body, keep, question.now);
            let found = found.await;
            let found = found.map(|found| match found {
                Shared::Run { begun_at, is_rerun } => Found::Run { begun_at, is_rerun },
                Shared::Running => Found::InFlight,
                Shared::OtherBody => Found::OtherBody,
                Shared::NotKept => Found::NotKept,
                Shared::Answered(answer) => {
                    postcard::from_bytes(&answer).map_or(Found::NotKept, Found::Answered)
                }
            });
            question.answer(found.map_err(AnswersError));
        }
        Job::End {
            attempt,
            answer,
            reply,
        } => {
            let kept = redis.end_answer(attempt.into(), answer, keep, now).await;
            drop(reply.send(kept.map_err(AnswersError)));
        }
        Job::Forget { attempt, reply } => {
            let forgotten = redis.forget_answer(attempt.into(), keep, now).await;
            if let Some(reply) = reply {
                drop(reply.send(forgotten.map_err(AnswersError)));
            }
        }
        Job::Expire { reply, .. } => drop(reply.send(Ok(()))),
        Job::Close(_) => {} // taken out before
    }
}

impl From<Attempt> for Claimed {
    fn from(attempt: Attempt) -> Self {
        Self {
            record: attempt.record,
            attempt: attempt.id,
        }
    }
}
