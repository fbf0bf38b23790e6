//! Taking in everything of a SQLite database, in one transaction: all of it, or nothing.

use std::pin::pin;

use rusqlite::types::Value;
use tokio_postgres::{
    binary_copy::BinaryCopyInWriter,
    types::{ToSql, Type},
};
use uuid::Uuid;

use super::{
    Failed, PostgresStore, partitions,
    pool::{Kind, Tx},
    rows::{self, params},
};
use crate::store::{
    StoreError, StoreResult,
    sqlite::export::{Chunk, Export, ExportedTable},
};

/// Tables that are never empty, and what only this store has.
const SEEDED: [&str; 3] = [
    "refinery_schema_history",
    "usage_horizon",
    "catalogue_version",
];

/// Told how many rows are there, and how many there will be.
pub type Steps<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

impl PostgresStore {
    /// Copies all tables; each has as many rows as its original, or nothing was copied.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], which says why: the database is not empty, a row can't be taken, a table lacks one.
    pub async fn import(&self, export: &Export, steps: Steps<'_>) -> StoreResult<()> {
        self.pool
            .transact("store.import", Kind::WRITE_AT_LEISURE, |tx| async move {
                import(&tx, export, steps).await
            })
            .await?;
        self.forget_months();
        // Statistics, so that the first questions are answered well.
        let analyzed = self.pool.statement("ANALYZE").await;
        if let Err(error) = analyzed {
            tracing::debug!(%error, "the tables could not be analyzed");
        }
        Ok(())
    }
}

async fn import(tx: &Tx, export: &Export, steps: Steps<'_>) -> Result<(), Failed> {
    refuse_full(tx).await?;
    let total = export.tables().iter().map(|table| table.rows).sum();
    let mut done = 0;
    for table in export.tables() {
        steps(done, total);
        copy(tx, export, table, |rows| {
            done += rows;
            steps(done, total);
        })
        .await?;
    }
    rows::run(
        tx,
        "UPDATE catalogue_version SET version = $1",
        params![export.catalogue_version()],
    )
    .await?;
    rows::run(
        tx,
        "SELECT setval(pg_get_serial_sequence('audit_log', 'audit_id'), max(audit_id)) FROM audit_log HAVING count(*) > 0",
        params![],
    )
    .await?;
    Ok(())
}

fn refused(why: String) -> Failed {
    Failed::Refused(StoreError::Unavailable(why))
}

async fn refuse_full(tx: &Tx) -> Result<(), Failed> {
    let tables: Vec<String> = rows::list(
        tx,
        "pg_class",
        "SELECT relname::text AS name FROM pg_class
         WHERE relnamespace = to_regnamespace(current_schema()) AND relkind IN ('r', 'p') ORDER BY relname",
        params![],
        |cells| cells.get("name"),
    )
    .await?;
    for table in tables
        .iter()
        .filter(|name| !SEEDED.contains(&name.as_str()))
    {
        let sql = format!("SELECT 1 FROM \"{table}\" LIMIT 1");
        if rows::exists(tx, &sql, params![]).await? {
            return Err(refused(format!(
                "the database to move to is not empty: table {table} has rows; make a new one (CREATE DATABASE)"
            )));
        }
    }
    Ok(())
}

/// A column: its name and type here.
struct Column {
    name: String,
    kind: Type,
}

async fn copy(
    tx: &Tx,
    export: &Export,
    table: &ExportedTable,
    mut copied: impl FnMut(u64),
) -> Result<(), Failed> {
    let name = table.name.as_str();
    let columns = columns(tx, name).await?;
    // What only this store has follows from the rest.
    let (own, shared): (Vec<_>, Vec<_>) = columns.iter().partition(|it| it.name == "id_time");
    let names: Vec<String> = shared.iter().map(|column| column.name.clone()).collect();
    if SEEDED.contains(&name) {
        tx.batch_execute(&format!("DELETE FROM \"{name}\"")).await?;
    }
    // The feed says what caches are to drop; nobody has cached anything yet.
    tx.batch_execute(&format!("ALTER TABLE \"{name}\" DISABLE TRIGGER USER"))
        .await?;
    let mut chunks = export.read(name, &names);
    while let Some(chunk) = chunks.recv().await {
        let chunk = chunk.map_err(|why| refused(format!("table {name}: {why}")))?;
        let rows = chunk.len() as u64;
        write(tx, name, &shared, !own.is_empty(), chunk).await?;
        copied(rows);
    }
    tx.batch_execute(&format!("ALTER TABLE \"{name}\" ENABLE TRIGGER USER"))
        .await?;
    let sql = format!("SELECT count(*) AS rows FROM \"{name}\"");
    let found = rows::find(tx, "usage_events", &sql, params![], |cells| {
        cells.get::<i64>("rows")
    });
    let found = found.await?.unwrap_or(0);
    if u64::try_from(found) != Ok(table.rows) {
        return Err(refused(format!(
            "table {name} has {} rows, and {found} arrived",
            table.rows
        )));
    }
    Ok(())
}

async fn columns(tx: &Tx, table: &str) -> Result<Vec<Column>, Failed> {
    let columns = rows::list(
        tx,
        "information_schema.columns",
        "SELECT column_name::text AS name, udt_name::text AS kind FROM information_schema.columns
         WHERE table_schema = current_schema() AND table_name = $1 ORDER BY ordinal_position",
        params![table],
        |cells| {
            let kinds = [Type::INT8, Type::BOOL, Type::UUID, Type::BYTEA, Type::TEXT];
            let kind: String = cells.get("kind")?;
            let known = kinds.into_iter().find(|it| it.name() == kind);
            Ok(Column {
                name: cells.get("name")?,
                kind: cells.check("udt_name", known.ok_or(format!("type {kind} is not known")))?,
            })
        },
    )
    .await?;
    if columns.is_empty() {
        return Err(refused(format!("there is no table {table} to copy to")));
    }
    Ok(columns)
}

async fn write(
    tx: &Tx,
    table: &str,
    columns: &[&Column],
    has_id_time: bool,
    chunk: Chunk,
) -> Result<(), Failed> {
    let mut names: Vec<String> = columns
        .iter()
        .map(|it| format!("\"{}\"", it.name))
        .collect();
    let mut kinds: Vec<Type> = columns.iter().map(|it| it.kind.clone()).collect();
    let id = columns.iter().position(|column| column.name == "event_id");
    let id_of = |row: &[Value]| match id.map(|column| &row[column]) {
        Some(Value::Blob(bytes)) => Uuid::from_slice(bytes).unwrap_or_default(),
        _ => Uuid::nil(),
    };
    if has_id_time {
        names.push("id_time".to_owned());
        kinds.push(Type::INT8);
        partitions::make_for(tx, chunk.iter().map(|row| id_of(row))).await?;
    }
    let sql = format!(
        "COPY \"{table}\" ({}) FROM STDIN (FORMAT binary)",
        names.join(", ")
    );
    let sink = tx.copy_in(&sql).await?;
    let mut writer = pin!(BinaryCopyInWriter::new(sink, &kinds));
    for row in chunk {
        let id_time = partitions::id_time(id_of(&row));
        let mut cells = Vec::with_capacity(kinds.len());
        for (column, value) in columns.iter().zip(row) {
            cells.push(Cell::of(value, &column.kind).ok_or_else(|| {
                refused(format!(
                    "table {table}: a row is damaged in column {}",
                    column.name
                ))
            })?);
        }
        let mut values: Vec<&(dyn ToSql + Sync)> = cells.iter().map(Cell::as_sql).collect();
        if has_id_time {
            values.push(&id_time);
        }
        writer.as_mut().write(&values).await?;
    }
    writer.finish().await?;
    Ok(())
}

/// A value as its column takes it.
enum Cell {
    Number(Option<i64>),
    Truth(Option<bool>),
    Id(Option<Uuid>),
    Bytes(Option<Vec<u8>>),
    Text(Option<String>),
}

impl Cell {
    fn of(value: Value, kind: &Type) -> Option<Self> {
        Some(match (kind, value) {
            (kind, Value::Null) if *kind == Type::INT8 => Self::Number(None),
            (kind, Value::Null) if *kind == Type::BOOL => Self::Truth(None),
            (kind, Value::Null) if *kind == Type::UUID => Self::Id(None),
            (kind, Value::Null) if *kind == Type::BYTEA => Self::Bytes(None),
            (_, Value::Null) => Self::Text(None),
            (kind, Value::Integer(number)) if *kind == Type::INT8 => Self::Number(Some(number)),
            (kind, Value::Integer(number)) if *kind == Type::BOOL => Self::Truth(Some(number != 0)),
            (kind, Value::Blob(bytes)) if *kind == Type::UUID => {
                Self::Id(Some(Uuid::from_slice(&bytes).ok()?))
            }
            (kind, Value::Blob(bytes)) if *kind == Type::BYTEA => Self::Bytes(Some(bytes)),
            (kind, Value::Text(text)) if *kind == Type::TEXT => {
                Self::Text(Some(rows::text(&text).into_owned()))
            }
            _ => return None,
        })
    }

    fn as_sql(&self) -> &(dyn ToSql + Sync) {
        match self {
            Self::Number(value) => value,
            Self::Truth(value) => value,
            Self::Id(value) => value,
            Self::Bytes(value) => value,
            Self::Text(value) => value,
        }
    }
}
