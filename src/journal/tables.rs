//! The journal's tables in redb, and what is done in one transaction on them. All of it blocks.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | `events` | seq of the row's first event | the row ([`row`]); seqs count on within it and into the next |
//! | `counters` | a [`CounterKey`] in postcard | its settled total at `drained` |
//! | `meta` | `format`, `id`, `drained` | a number |
//!
//! `counters` + the events after `drained` = the totals, after any crash: all three change in one transaction.
//! A row leaves when its last event is drained; until then `drained` says where in it the rest begins.
//! The last seq is not kept: it is the last event's, or `drained` when none is left.

use std::{collections::HashMap, ops::ControlFlow};

use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableError,
    WriteTransaction,
};
use uuid::Uuid;

use super::{
    Snapshot,
    row::{self, RowError},
};
use crate::{
    clock,
    domain::{ids::TenantId, quantity::Quantity, usage::UsageEvent},
    ledger::CounterKey,
    store::usage::Seq,
};

const EVENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("events");
const COUNTERS: TableDefinition<&[u8], i64> = TableDefinition::new("counters");
const META: TableDefinition<&str, u128> = TableDefinition::new("meta");
/// Holds something only while [`prove_writable`] runs.
const PROBE: TableDefinition<u8, &[u8]> = TableDefinition::new("probe");

const FORMAT: u128 = 1;

/// Why a table could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum TableFault {
    #[error("{0}")]
    Redb(#[source] Box<redb::Error>),
    #[error("{0}")]
    Damaged(String),
    #[error("{0}")]
    Newer(String),
    #[error("it is closed")]
    Closed,
}

impl<E: Into<redb::Error>> From<E> for TableFault {
    fn from(error: E) -> Self {
        Self::Redb(Box::new(error.into()))
    }
}

type TableResult<T> = Result<T, TableFault>;

/// Which journal this is, and how far it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) id: Uuid,
    pub(super) last: Seq,
    pub(super) drained: Seq,
}

/// A mark of the drainer: the store has everything up to here, and these totals say so.
pub(super) struct Mark<'a> {
    pub(super) upto: Seq,
    pub(super) snapshot: &'a Snapshot,
}

/// Makes the tables in a new file, and brings a file begun by a crash to the same state.
pub(super) fn prepare(database: &Database) -> TableResult<()> {
    match database.begin_read()?.open_table(META) {
        Ok(meta) if meta.get("id")?.is_some() => return check_format(&meta),
        Ok(_) => {
            return Err(TableFault::Damaged("its id is missing".to_owned()));
        }
        Err(TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert("format", FORMAT)?;
        meta.insert("id", clock::new_id().as_u128())?;
        meta.insert("drained", 0)?;
        transaction.open_table(EVENTS)?;
        transaction.open_table(COUNTERS)?;
    }
    transaction.commit()?;
    Ok(())
}

fn check_format(meta: &impl ReadableTable<&'static str, u128>) -> TableResult<()> {
    match number(meta, "format")? {
        FORMAT => Ok(()),
        other => Err(TableFault::Newer(format!(
            "it has format {other}, this version knows {FORMAT}; start the newer version that wrote it"
        ))),
    }
}

/// Reads where the journal stands.
pub(super) fn position(read: &ReadTransaction) -> TableResult<Position> {
    let meta = read.open_table(META)?;
    let drained = drained(&meta)?;
    let last = match read.open_table(EVENTS)?.last()? {
        None => drained,
        Some((first, row)) => last_of_row(first.value(), row.value())?.max(drained),
    };
    Ok(Position {
        id: Uuid::from_u128(number(&meta, "id")?),
        last,
        drained,
    })
}

/// The last seq of each tenant that has events not yet drained.
///
/// Reads every row and counter, so that what cannot be decoded is found at the start and not by the drainer.
pub(super) fn survey(read: &ReadTransaction) -> TableResult<HashMap<TenantId, Seq>> {
    load_snapshot(read)?;
    let mut last_of = HashMap::new();
    each_undrained(read, |seq, event| {
        last_of.insert(event.tenant_id, seq);
        ControlFlow::Continue(())
    })?;
    Ok(last_of)
}

/// The oldest events not yet drained, at most `limit`, of about `pending`.
pub(super) fn read_undrained(
    read: &ReadTransaction,
    limit: usize,
    pending: usize,
) -> TableResult<Vec<(Seq, UsageEvent)>> {
    let mut events = Vec::with_capacity(limit.min(pending));
    each_undrained(read, |seq, event| {
        if events.len() == limit {
            return ControlFlow::Break(());
        }
        events.push((seq, event));
        ControlFlow::Continue(())
    })?;
    Ok(events)
}

pub(super) fn each_undrained(
    read: &ReadTransaction,
    mut visit: impl FnMut(Seq, UsageEvent) -> ControlFlow<()>,
) -> TableResult<()> {
    let drained = drained(&read.open_table(META)?)?;
    for entry in read.open_table(EVENTS)?.iter()? {
        let (first, row) = entry?;
        let first = first.value();
        let events = row::decode_row(row.value()).map_err(|error| fault_of_row(first, error))?;
        for (seq, event) in (first..).map(Seq).zip(events) {
            if drained < seq && visit(seq, event).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The totals as of `drained`.
pub(super) fn load_snapshot(read: &ReadTransaction) -> TableResult<Vec<(CounterKey, Quantity)>> {
    let mut totals = Vec::new();
    for entry in read.open_table(COUNTERS)?.iter()? {
        let (key, total) = entry?;
        let key = postcard::from_bytes(key.value())
            .map_err(|error| TableFault::Damaged(format!("a counter's key: {error}")))?;
        totals.push((key, Quantity::new(total.value())));
    }
    Ok(totals)
}

/// Adds `row`, whose first event is `first`, and sets `marks`: all in one durable commit, or nothing.
///
/// After an error it may have been either; the database must be opened again.
pub(super) fn commit(
    database: &Database,
    row: Option<(Seq, &[u8])>,
    marks: &[Mark<'_>],
) -> TableResult<()> {
    let transaction = database.begin_write()?;
    if let Some((first, row)) = row {
        transaction.open_table(EVENTS)?.insert(first.0, row)?;
    }
    for mark in marks {
        set_mark(&transaction, mark)?;
    }
    transaction.commit()?;
    Ok(())
}

fn set_mark(transaction: &WriteTransaction, mark: &Mark<'_>) -> TableResult<()> {
    let mut meta = transaction.open_table(META)?;
    let upto = mark.upto.max(drained(&meta)?);
    meta.insert("drained", u128::from(upto.0))?;

    let mut events = transaction.open_table(EVENTS)?;
    events.retain_in(..=upto.0, |first, row| {
        // A row that cannot be read stays for someone to look at.
        last_of_row(first, row).map_or(true, |last| upto < last)
    })?;

    let mut counters = transaction.open_table(COUNTERS)?;
    for key in &mark.snapshot.removed {
        counters.remove(encode_key(key).as_slice())?;
    }
    for (key, total) in &mark.snapshot.changed {
        counters.insert(encode_key(key).as_slice(), total.get())?;
    }
    Ok(())
}

/// Deletes the rows that begin after `last`: their commit failed, so nobody was told that they are there.
pub(super) fn forget_after(database: &Database, last: Seq) -> TableResult<()> {
    let transaction = database.begin_write()?;
    transaction
        .open_table(EVENTS)?
        .retain_in(last.0 + 1.., |_, _| false)?;
    transaction.commit()?;
    Ok(())
}

/// Writes `bytes` bytes durably and takes them out again: a full disk may well take small writes into free pages.
pub(super) fn prove_writable(database: &Database, bytes: usize) -> TableResult<()> {
    let transaction = database.begin_write()?;
    transaction
        .open_table(PROBE)?
        .insert(0, vec![0_u8; bytes].as_slice())?;
    transaction.commit()?;

    let transaction = database.begin_write()?;
    transaction.open_table(PROBE)?.remove(0)?;
    transaction.commit()?;
    Ok(())
}

fn drained(meta: &impl ReadableTable<&'static str, u128>) -> TableResult<Seq> {
    let drained = number(meta, "drained")?;
    u64::try_from(drained)
        .map(Seq)
        .map_err(|_| TableFault::Damaged(format!("drained is {drained}")))
}

fn number(meta: &impl ReadableTable<&'static str, u128>, name: &str) -> TableResult<u128> {
    match meta.get(name)? {
        Some(number) => Ok(number.value()),
        None => Err(TableFault::Damaged(format!("its {name} is missing"))),
    }
}

fn last_of_row(first: u64, row: &[u8]) -> TableResult<Seq> {
    let count = row::count_events(row).map_err(|error| fault_of_row(first, error))?;
    Ok(Seq((first + count).saturating_sub(1)))
}

fn fault_of_row(first: u64, error: RowError) -> TableFault {
    let detail = format!("the row of event {first}: {error}");
    match error {
        RowError::UnknownFormat(_) => TableFault::Newer(detail),
        RowError::Damaged(_) => TableFault::Damaged(detail),
    }
}

fn encode_key(key: &CounterKey) -> Vec<u8> {
    postcard::to_stdvec(key).expect("a growing buffer takes any plain struct")
}
