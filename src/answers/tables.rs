//! The tables of the answers' file, and what is done on them in one transaction. All of it blocks.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | `records` | hash of tenant, route and key | a [`Record`] in postcard |
//! | `bodies` | the same | an [`Answer`] in postcard |
//! | `by_time` | µs at which the record began, the same | – |
//! | `kept` | the same as `by_time`, for records that have a body | its bytes |

use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Answer, Hash, KEPT_FOR};
use crate::domain::time::Timestamp;

const RECORDS: TableDefinition<&Hash, &[u8]> = TableDefinition::new("records");
const BODIES: TableDefinition<&Hash, &[u8]> = TableDefinition::new("bodies");
const BY_TIME: TableDefinition<(i64, &Hash), ()> = TableDefinition::new("by_time");
const KEPT: TableDefinition<(i64, &Hash), u64> = TableDefinition::new("kept");

/// How many records one transaction forgets at most, so that requests get their turn.
const FORGOTTEN_AT_ONCE: usize = 10_000;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    body: Hash,
    begun_at: i64,
    state: State,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    /// Runs in this process, or ran in one that is gone.
    Running {
        process: [u8; 16],
    },
    Answered,
    /// The answer was too large, or had to make room.
    NotKept,
}

impl Record {
    pub(super) fn running(body: Hash, begun_at: Timestamp, process: Uuid) -> Self {
        Self {
            body,
            begun_at: begun_at.micros(),
            state: State::Running {
                process: process.into_bytes(),
            },
        }
    }

    fn runs_in(&self, process: Uuid) -> bool {
        matches!(self.state, State::Running { process: its } if Uuid::from_bytes(its) == process)
    }
}

/// What is known of a request.
pub(super) enum Found {
    Run { begun_at: Timestamp, is_rerun: bool },
    InFlight,
    OtherBody,
    Answered(Answer),
    NotKept,
}

pub(super) type TableResult<T> = Result<T, redb::Error>;

/// Makes the tables; how many bytes the answers take.
pub(super) fn prepare(tx: &WriteTransaction) -> TableResult<u64> {
    tx.open_table(RECORDS)?;
    tx.open_table(BODIES)?;
    tx.open_table(BY_TIME)?;
    let kept = tx.open_table(KEPT)?;
    let mut bytes = 0;
    for entry in kept.iter()? {
        bytes += entry?.1.value();
    }
    Ok(bytes)
}

/// Looks a request up; claims it for `process` if it is to run.
pub(super) fn begin(
    tx: &WriteTransaction,
    id: &Hash,
    body: Hash,
    now: Timestamp,
    process: Uuid,
) -> TableResult<(Found, u64)> {
    let mut freed = 0;
    let (mut begun_at, mut is_rerun) = (now, false);
    if let Some(record) = find(tx, id)? {
        let began = Timestamp::from_micros(record.begun_at);
        if began.plus(KEPT_FOR) <= now && !record.runs_in(process) {
            freed = forget(tx, id, &record)?;
        } else if record.body != body {
            return Ok((Found::OtherBody, 0));
        } else {
            match record.state {
                State::Answered => return Ok((answer(tx, id)?, 0)),
                State::NotKept => return Ok((Found::NotKept, 0)),
                State::Running { .. } if record.runs_in(process) => {
                    return Ok((Found::InFlight, 0));
                }
                State::Running { .. } => (begun_at, is_rerun) = (began, true),
            }
        }
    }
    add(tx, id, &Record::running(body, begun_at, process))?;
    Ok((Found::Run { begun_at, is_rerun }, freed))
}

/// Keeps the answer of a claimed request, or that it had one; the bytes that takes.
pub(super) fn end(tx: &WriteTransaction, id: &Hash, answer: Option<&[u8]>) -> TableResult<u64> {
    let Some(mut record) = find(tx, id)? else {
        return Ok(0); // older than it may be repeated
    };
    let Some(answer) = answer else {
        record.state = State::NotKept;
        put(tx, id, &record)?;
        return Ok(0);
    };
    record.state = State::Answered;
    put(tx, id, &record)?;
    tx.open_table(BODIES)?.insert(id, answer)?;
    let bytes = u64::try_from(answer.len()).unwrap_or(u64::MAX);
    tx.open_table(KEPT)?.insert((record.begun_at, id), bytes)?;
    Ok(bytes)
}

/// Puts a claimed request into a file that does not know it: one in the place of a damaged one.
pub(super) fn restore(tx: &WriteTransaction, id: &Hash, claimed: &Record) -> TableResult<()> {
    match find(tx, id)? {
        Some(_) => Ok(()),
        None => add(tx, id, claimed),
    }
}

/// Notes of a claimed request that it had an answer, which could not be kept.
pub(super) fn give_up_keeping(
    tx: &WriteTransaction,
    id: &Hash,
    claimed: &Record,
) -> TableResult<()> {
    restore(tx, id, claimed)?;
    match find(tx, id)? {
        Some(mut record) if matches!(record.state, State::Running { .. }) => {
            record.state = State::NotKept;
            put(tx, id, &record)
        }
        _ => Ok(()),
    }
}

/// Forgets a claimed request that had no answer to keep.
pub(super) fn give_up(tx: &WriteTransaction, id: &Hash) -> TableResult<()> {
    match find(tx, id)? {
        Some(record) if matches!(record.state, State::Running { .. }) => {
            forget(tx, id, &record).map(|_| ())
        }
        _ => Ok(()),
    }
}

/// Takes the oldest answers' bodies away until `over` bytes are free; that there was an answer stays known.
pub(super) fn make_room(tx: &WriteTransaction, over: u64) -> TableResult<u64> {
    let mut oldest: Vec<(i64, Hash, u64)> = Vec::new();
    let mut freed = 0;
    for entry in tx.open_table(KEPT)?.iter()? {
        let (key, bytes) = entry?;
        let (at, id) = key.value();
        oldest.push((at, *id, bytes.value()));
        freed += bytes.value();
        if freed >= over {
            break;
        }
    }
    for (at, id, _) in &oldest {
        tx.open_table(KEPT)?.remove((*at, id))?;
        tx.open_table(BODIES)?.remove(id)?;
        if let Some(mut record) = find(tx, id)? {
            record.state = State::NotKept;
            put(tx, id, &record)?;
        }
    }
    Ok(freed)
}

/// Forgets what began before `before`, but for what still runs, as much as one transaction should; the bytes freed. The
/// rest goes with the next call.
pub(super) fn expire(tx: &WriteTransaction, before: Timestamp, process: Uuid) -> TableResult<u64> {
    let mut old: Vec<(Hash, Record)> = Vec::new();
    for entry in tx.open_table(BY_TIME)?.iter()? {
        let (key, _) = entry?;
        let (at, id) = key.value();
        if at >= before.micros() || old.len() >= FORGOTTEN_AT_ONCE {
            break;
        }
        let record = find(tx, id)?.filter(|record| !record.runs_in(process));
        old.extend(record.map(|record| (*id, record)));
    }
    let mut freed = 0;
    for (id, record) in &old {
        freed += forget(tx, id, record)?;
    }
    Ok(freed)
}

fn find(tx: &WriteTransaction, id: &Hash) -> TableResult<Option<Record>> {
    let records = tx.open_table(RECORDS)?;
    let found = records.get(id)?;
    // A record that can't be read is as good as none: a file of another version, or damage.
    Ok(found.and_then(|found| postcard::from_bytes(found.value()).ok()))
}

fn add(tx: &WriteTransaction, id: &Hash, record: &Record) -> TableResult<()> {
    put(tx, id, record)?;
    tx.open_table(BY_TIME)?.insert((record.begun_at, id), ())?;
    Ok(())
}

fn put(tx: &WriteTransaction, id: &Hash, record: &Record) -> TableResult<()> {
    let encoded = postcard::to_stdvec(record).expect("a growing buffer takes any plain struct");
    tx.open_table(RECORDS)?.insert(id, encoded.as_slice())?;
    Ok(())
}

fn forget(tx: &WriteTransaction, id: &Hash, record: &Record) -> TableResult<u64> {
    tx.open_table(RECORDS)?.remove(id)?;
    tx.open_table(BODIES)?.remove(id)?;
    tx.open_table(BY_TIME)?.remove((record.begun_at, id))?;
    let mut kept = tx.open_table(KEPT)?;
    let bytes = kept.remove((record.begun_at, id))?;
    Ok(bytes.map_or(0, |bytes| bytes.value()))
}

fn answer(tx: &WriteTransaction, id: &Hash) -> TableResult<Found> {
    let bodies = tx.open_table(BODIES)?;
    let found = bodies.get(id)?;
    let answer = found.and_then(|found| postcard::from_bytes(found.value()).ok());
    Ok(answer.map_or(Found::NotKept, Found::Answered))
}
