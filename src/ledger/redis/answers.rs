//! Answers to requests with an `Idempotency-Key`, kept where every node finds them (`lua/answer.lua`).
//!
//! How a claim ended is remembered until Redis has heard of it (`Owed`): else it would stay in flight for as long as
//! this node lives. The heartbeat tells it (`tell_ends`).

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::Serialize;
use uuid::Uuid;

use super::{Asked, Fault, PATIENCE, Question, RedisLedger, Reply, Script, decide::micros, lock};
use crate::domain::{ids::TenantId, time::Timestamp};

/// A node without a sign of life for so long runs nothing any more.
const SILENT: Duration = super::LEASE;

/// What remembered answers may take; of those beyond it is told that they were not kept.
const MOST_OWED_BYTES: usize = 64 << 20;
/// Claims end only where they were made, so that there are no more of them than ran when Redis went away; unless it
/// comes and goes.
const MOST_OWED: usize = 100_000;
/// An answer that Redis could not take in time so often is too large for the way there: each time it takes the bucket
/// down for a moment, and requests with it.
const MOST_TRIES: u32 = 3;

/// What is kept of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Shared {
    /// It is to run; no other may until it has ended, or its node is dead. `is_rerun`: another ran it, and is.
    Run {
        begun_at: Timestamp,
        is_rerun: bool,
    },
    Running,
    OtherBody,
    Answered(Vec<u8>),
    NotKept,
}

/// A request by the hash of its name, and which attempt to run it.
#[derive(Clone, Copy, Debug)]
pub struct Claimed {
    pub record: [u8; 32],
    pub attempt: Uuid,
}

/// How long answers are kept, and what all of them may take.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    pub kept_for: Duration,
    pub bytes: u64,
}

#[derive(Debug, Serialize)]
struct Ask<'a> {
    op: &'static str,
    node: &'a str,
    claim: String,
    body: String,
    at: i64,
    kept: i64,
    answer: String,
    room: i64,
    silent: i64,
}

/// How a claim ended.
#[derive(Debug)]
enum Ending {
    Answered(Vec<u8>),
    NotKept,
    Forgotten,
}

#[derive(Debug)]
struct End {
    claimed: Claimed,
    ending: Ending,
    keep: Keep,
    /// How often Redis did not take it in time.
    tries: u32,
}

/// What Redis has yet to hear of claims that have ended.
#[derive(Debug, Default)]
pub(super) struct Owed {
    ends: Vec<End>,
    bytes: usize,
}

impl Ending {
    fn bytes(&self) -> usize {
        match self {
            Self::Answered(answer) => answer.len(),
            Self::NotKept | Self::Forgotten => 0,
        }
    }

    /// What to tell where this can't be told.
    fn less(self) -> Option<Self> {
        match self {
            Self::Answered(_) => Some(Self::NotKept),
            Self::NotKept | Self::Forgotten => None,
        }
    }
}

impl Owed {
    fn add(&mut self, mut end: End) {
        if self.ends.len() >= MOST_OWED {
            tracing::error!(
                "too many keyed requests have ended unheard by Redis; the key of one stays in use"
            );
            return;
        }
        if self.bytes + end.ending.bytes() > MOST_OWED_BYTES {
            end.ending = Ending::NotKept;
        }
        self.bytes += end.ending.bytes();
        self.ends.push(end);
    }

    fn take(&mut self, is_wanted: impl Fn(&Claimed) -> bool) -> Option<End> {
        let at = self.ends.iter().position(|end| is_wanted(&end.claimed))?;
        let end = self.ends.remove(at);
        self.bytes -= end.ending.bytes();
        Some(end)
    }
}

/// A call on its way; see [`RedisLedger::begin_answer`].
pub(crate) type OnItsWay<'a, T> =
    std::pin::Pin<Box<dyn Future<Output = Result<T, String>> + Send + 'a>>;

impl RedisLedger {
    fn ask_answer(&self, record: [u8; 32], ask: &Ask<'_>) -> Result<Asked<'_>, Fault> {
        self.send(place(record), Script::Answer, &Question::named(ask))
    }

    fn answer_ask(&self, op: &'static str, claimed: Claimed, keep: Keep, at: Timestamp) -> Ask<'_> {
        let buckets = u64::try_from(self.buckets.len()).unwrap_or(1);
        Ask {
            op,
            node: &self.node,
            claim: claimed.attempt.simple().to_string(),
            body: String::new(),
            at: at.micros(),
            kept: i64::try_from(keep.kept_for.as_millis()).unwrap_or(i64::MAX),
            answer: String::new(),
            room: i64::try_from(keep.bytes / buckets).unwrap_or(i64::MAX),
            silent: micros(SILENT),
        }
    }

    /// Looks a request up by the hashes of its name and body, and claims it if it is to run. Calls for one request are
    /// carried out in the order in which these functions were called, whether their futures are waited for or not.
    pub(crate) fn begin_answer(
        &self,
        claimed: Claimed,
        body: [u8; 32],
        keep: Keep,
        now: Timestamp,
    ) -> OnItsWay<'_, Shared> {
        let ask = Ask {
            body: BASE64.encode(body),
            ..self.answer_ask("begin", claimed, keep, now)
        };
        let asked = self.ask_answer(claimed.record, &ask);
        Box::pin(async move {
            let asked = asked.map_err(|fault| fault.to_string())?;
            let reply = match asked.answer().await {
                Ok(reply) => reply,
                Err(fault) => {
                    // It may be carried out all the same, or was, and the answer is lost.
                    self.owe(claimed, Ending::Forgotten, keep);
                    return Err(fault.to_string());
                }
            };
            Ok(match &*reply.found {
                "run" | "again" => Shared::Run {
                    begun_at: Timestamp::from_micros(reply.at),
                    is_rerun: reply.found == "again",
                },
                "running" => Shared::Running,
                "other" => Shared::OtherBody,
                "answered" => match BASE64.decode(&reply.body) {
                    Ok(answer) => Shared::Answered(answer),
                    Err(_) => Shared::NotKept,
                },
                _ => Shared::NotKept,
            })
        })
    }

    /// Keeps the answer of a claimed request, or (`None`) that it had one; if not now, then once Redis is back.
    pub(crate) fn end_answer(
        &self,
        claimed: Claimed,
        answer: Option<Vec<u8>>,
        keep: Keep,
        now: Timestamp,
    ) -> OnItsWay<'_, ()> {
        let ending = answer.map_or(Ending::NotKept, Ending::Answered);
        self.end(claimed, ending, keep, now)
    }

    /// Gives a claim back; if not now, then once Redis is back.
    pub(crate) fn forget_answer(
        &self,
        claimed: Claimed,
        keep: Keep,
        now: Timestamp,
    ) -> OnItsWay<'_, ()> {
        self.end(claimed, Ending::Forgotten, keep, now)
    }

    fn end(
        &self,
        claimed: Claimed,
        ending: Ending,
        keep: Keep,
        now: Timestamp,
    ) -> OnItsWay<'_, ()> {
        let asked = self.ask_end(claimed, &ending, keep, now);
        Box::pin(async move {
            let answer = match asked {
                Ok(asked) => asked.answer().await,
                Err(fault) => Err(fault),
            };
            answer.map(drop).map_err(|fault| {
                self.owe(claimed, ending, keep);
                format!("{fault}; it is told when it is back")
            })
        })
    }

    fn ask_end(
        &self,
        claimed: Claimed,
        ending: &Ending,
        keep: Keep,
        now: Timestamp,
    ) -> Result<Asked<'_>, Fault> {
        let (op, answer) = match ending {
            Ending::Answered(answer) => ("end", BASE64.encode(answer)),
            Ending::NotKept => ("end", String::new()),
            Ending::Forgotten => ("forget", String::new()),
        };
        let ask = Ask {
            answer,
            ..self.answer_ask(op, claimed, keep, now)
        };
        self.ask_answer(claimed.record, &ask)
    }

    fn owe(&self, claimed: Claimed, ending: Ending, keep: Keep) {
        let end = End {
            claimed,
            ending,
            keep,
            tries: 0,
        };
        lock(&self.owed).add(end);
    }

    /// Tells a bucket that is back how claims have ended, one after the other, since answers may be large, and for no
    /// longer than a heartbeat can wait. Whether there is nothing more to be told now.
    pub(super) async fn tell_ends(&self, index: usize) -> bool {
        let begun = Instant::now();
        let is_there = |claimed: &Claimed| self.bucket_index(place(claimed.record)) == index;
        while begun.elapsed() < PATIENCE {
            let next = lock(&self.owed).take(is_there);
            let Some(end) = next else {
                return true;
            };
            if let Err(fault) = self.tell_end(&end).await {
                tracing::debug!(%fault, "Redis could not be told yet how a keyed request ended");
                self.owe_still(end, &fault);
                return true; // the next heartbeat finds out
            }
        }
        false
    }

    async fn tell_end(&self, end: &End) -> Result<Reply, Fault> {
        let asked = self.ask_end(end.claimed, &end.ending, end.keep, self.now())?;
        asked.answer().await
    }

    fn owe_still(&self, mut end: End, fault: &Fault) {
        let is_hopeless = match fault {
            Fault::Away(_) => false,
            Fault::TimedOut => {
                end.tries += 1;
                end.tries >= MOST_TRIES
            }
            Fault::Refused(_) => true,
        };
        if !is_hopeless {
            lock(&self.owed).add(end);
            return;
        }
        let (claimed, keep) = (end.claimed, end.keep);
        match end.ending.less() {
            Some(less) => self.owe(claimed, less, keep),
            None => {
                tracing::error!(%fault, "Redis can't be told how a keyed request ended; its key stays in use");
            }
        }
    }
}

/// Where a request's record lies: among the tenants, by its own hash.
fn place(record: [u8; 32]) -> TenantId {
    let [bytes @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = record;
    TenantId::new(Uuid::from_bytes(bytes))
}
