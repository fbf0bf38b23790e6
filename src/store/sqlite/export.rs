//! Everything in a database, table by table, for moving it to another store.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use rusqlite::{Connection, OpenFlags, types::Value};
use tokio::sync::mpsc;

use super::{Failed, migrate, pool::BUSY_TIMEOUT};
use crate::store::{StoreError, StoreResult};

/// Rows that travel together.
const CHUNK: usize = 10_000;
/// Chunks that wait for whoever takes them: what is in memory at once.
const WAITING: usize = 2;
/// What is of no use elsewhere: how the schema came about, and what caches of this database are to drop.
const LEFT: [&str; 2] = ["refinery_schema_history", "catalogue_changes"];

/// A database as it was at one instant, whatever is written to it meanwhile.
pub struct Export {
    connection: Arc<Mutex<Connection>>,
    tables: Vec<ExportedTable>,
    catalogue_version: i64,
}

/// A table that goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedTable {
    pub name: String,
    pub rows: u64,
}

/// Rows of the columns asked for, in their order.
pub(in crate::store) type Chunk = Vec<Vec<Value>>;

impl Export {
    /// Blocks.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it can't be read, or its schema is not this version's.
    pub fn open(path: &Path) -> StoreResult<Self> {
        let export = || -> Result<Self, Failed> {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(path, flags)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            // The first read of the transaction fixes what it sees.
            connection.execute_batch("BEGIN")?;
            let (found, known) = (
                migrate::version_of(&connection).map_err(Failed::Corrupt)?,
                migrate::newest_known(),
            );
            if found != known {
                return Err(Failed::Corrupt(format!(
                    "its schema is at version {found}, and this tollgate's is {known}; run `tollgate migrate` on it first"
                )));
            }
            let catalogue_version = connection.query_row(
                "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'catalogue_changes'",
                [],
                |row| row.get(0),
            )?;
            Ok(Self {
                tables: tables(&connection)?,
                connection: Arc::new(Mutex::new(connection)),
                catalogue_version,
            })
        };
        export().map_err(|failed| match failed.into_error("store.export") {
            StoreError::Unavailable(why) => {
                StoreError::Unavailable(format!("{}: {why}", path.display()))
            }
            other => other,
        })
    }

    /// In an order in which each comes after all that it refers to.
    #[must_use]
    pub fn tables(&self) -> &[ExportedTable] {
        &self.tables
    }

    /// The version that the change feed has reached.
    pub(in crate::store) fn catalogue_version(&self) -> i64 {
        self.catalogue_version
    }

    /// Reads `columns` of all rows of `table`, a chunk at a time, as fast as they are taken.
    pub(in crate::store) fn read(
        &self,
        table: &str,
        columns: &[String],
    ) -> mpsc::Receiver<Result<Chunk, String>> {
        let (send, chunks) = mpsc::channel(WAITING);
        let connection = Arc::clone(&self.connection);
        let columns: Vec<String> = columns.iter().map(|name| format!("\"{name}\"")).collect();
        let sql = format!("SELECT {} FROM \"{table}\"", columns.join(", "));
        std::thread::spawn(move || {
            let connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = send_rows(&connection, &sql, columns.len(), &send) {
                let _ = send.blocking_send(Err(error.to_string()));
            }
        });
        chunks
    }
}

fn send_rows(
    connection: &Connection,
    sql: &str,
    columns: usize,
    send: &mpsc::Sender<Result<Chunk, String>>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    let mut chunk = Vec::new();
    while let Some(row) = rows.next()? {
        let cells = (0..columns).map(|column| row.get(column));
        chunk.push(cells.collect::<rusqlite::Result<Vec<Value>>>()?);
        if chunk.len() == CHUNK && send.blocking_send(Ok(std::mem::take(&mut chunk))).is_err() {
            return Ok(()); // nobody takes them any more
        }
    }
    let _ = send.blocking_send(Ok(chunk));
    Ok(())
}

/// Those that go, each after all that it refers to.
fn tables(connection: &Connection) -> Result<Vec<ExportedTable>, Failed> {
    let mut statement = connection.prepare(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name",
    )?;
    let names: Vec<String> = statement
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut waiting: Vec<(String, Vec<String>)> = Vec::new();
    for name in names {
        if LEFT.contains(&name.as_str()) {
            continue;
        }
        let mut statement =
            connection.prepare("SELECT \"table\" FROM pragma_foreign_key_list(?1)")?;
        let referred = statement.query_map([&name], |row| row.get(0))?;
        waiting.push((name.clone(), referred.collect::<Result<_, _>>()?));
    }
    let mut tables: Vec<ExportedTable> = Vec::new();
    while !waiting.is_empty() {
        let is_there = |name: &String| tables.iter().any(|table| table.name == *name);
        let next = waiting
            .iter()
            .position(|(name, referred)| referred.iter().all(|it| it == name || is_there(it)))
            .ok_or_else(|| {
                Failed::Corrupt("its tables refer to each other in a ring".to_owned())
            })?;
        let (name, _) = waiting.remove(next);
        let sql = format!("SELECT count(*) FROM \"{name}\"");
        let rows: i64 = connection.query_row(&sql, [], |row| row.get(0))?;
        tables.push(ExportedTable {
            name,
            rows: u64::try_from(rows).unwrap_or(0),
        });
    }
    Ok(tables)
}
