//! Answers to requests with an `Idempotency-Key`, kept where every node finds them (`lua/answer.lua`).

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::Serialize;
use uuid::Uuid;

use super::{Asked, Question, RedisLedger, Script, decide::micros};
use crate::domain::{ids::TenantId, time::Timestamp};

/// A node without a sign of life for so long runs nothing any more.
const SILENT: Duration = super::LEASE;

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
    body: String,
    at: i64,
    kept: i64,
    answer: String,
    room: i64,
    silent: i64,
}

/// A call on its way; see [`RedisLedger::begin_answer`].
pub(crate) type OnItsWay<'a, T> =
    std::pin::Pin<Box<dyn Future<Output = Result<T, String>> + Send + 'a>>;

impl RedisLedger {
    fn ask_answer(&self, record: [u8; 32], ask: &Ask<'_>) -> Result<Asked<'_>, String> {
        let place = place(record);
        self.send(place, Script::Answer, &Question::named(ask))
            .map_err(|fault| fault.to_string())
    }

    fn answer_ask(&self, op: &'static str, keep: Keep, at: Timestamp) -> Ask<'_> {
        let buckets = u64::try_from(self.buckets.len()).unwrap_or(1);
        Ask {
            op,
            node: &self.node,
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
        record: [u8; 32],
        body: [u8; 32],
        keep: Keep,
        now: Timestamp,
    ) -> OnItsWay<'_, Shared> {
        let ask = Ask {
            body: BASE64.encode(body),
            ..self.answer_ask("begin", keep, now)
        };
        let asked = self.ask_answer(record, &ask);
        Box::pin(async move {
            let reply = asked?.answer().await.map_err(|fault| fault.to_string())?;
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

    /// Keeps the answer of a claimed request, or (`None`) that it had one.
    pub(crate) fn end_answer(
        &self,
        record: [u8; 32],
        answer: Option<&[u8]>,
        keep: Keep,
        now: Timestamp,
    ) -> OnItsWay<'_, ()> {
        let ask = Ask {
            answer: answer.map_or_else(String::new, |answer| BASE64.encode(answer)),
            ..self.answer_ask("end", keep, now)
        };
        self.done(record, &ask)
    }

    /// Gives a claim back.
    pub(crate) fn forget_answer(
        &self,
        record: [u8; 32],
        keep: Keep,
        now: Timestamp,
    ) -> OnItsWay<'_, ()> {
        self.done(record, &self.answer_ask("forget", keep, now))
    }

    fn done(&self, record: [u8; 32], ask: &Ask<'_>) -> OnItsWay<'_, ()> {
        let asked = self.ask_answer(record, ask);
        Box::pin(async move {
            let answer = asked?.answer().await;
            answer.map(drop).map_err(|fault| fault.to_string())
        })
    }
}

/// Where a request's record lies: among the tenants, by its own hash.
fn place(record: [u8; 32]) -> TenantId {
    let [bytes @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = record;
    TenantId::new(Uuid::from_bytes(bytes))
}
