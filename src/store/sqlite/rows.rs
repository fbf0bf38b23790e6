//! Reading and writing cells: ids, instants, quantities, names. A cell that does not hold what its column should is
//! an error that names table, column and content.

use std::{fmt::Display, str::FromStr};

use rusqlite::{Params, Row, Transaction, types::FromSql};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::Failed;
use crate::domain::{quantity::Quantity, time::Timestamp};

/// A row of `table`.
pub(super) struct Cells<'r> {
    row: &'r Row<'r>,
    table: &'static str,
}

impl Cells<'_> {
    pub(super) fn get<T: FromSql>(&self, column: &str) -> Result<T, Failed> {
        self.row.get(column).map_err(|error| match error {
            rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..) => self.corrupt(column, error),
            other => Failed::Sql(other),
        })
    }

    fn corrupt(&self, column: &str, problem: impl Display) -> Failed {
        Failed::Corrupt(format!(
            "a row of {} is damaged in column {column}: {problem}",
            self.table
        ))
    }

    pub(super) fn uuid(&self, column: &str) -> Result<Uuid, Failed> {
        self.get::<[u8; 16]>(column).map(Uuid::from_bytes)
    }

    pub(super) fn optional_uuid(&self, column: &str) -> Result<Option<Uuid>, Failed> {
        let bytes: Option<[u8; 16]> = self.get(column)?;
        Ok(bytes.map(Uuid::from_bytes))
    }

    pub(super) fn time(&self, column: &str) -> Result<Timestamp, Failed> {
        self.get(column).map(Timestamp::from_micros)
    }

    pub(super) fn optional_time(&self, column: &str) -> Result<Option<Timestamp>, Failed> {
        let micros: Option<i64> = self.get(column)?;
        Ok(micros.map(Timestamp::from_micros))
    }

    pub(super) fn quantity(&self, column: &str) -> Result<Quantity, Failed> {
        self.get(column).map(Quantity::new)
    }

    pub(super) fn optional_quantity(&self, column: &str) -> Result<Option<Quantity>, Failed> {
        let value: Option<i64> = self.get(column)?;
        Ok(value.map(Quantity::new))
    }

    /// A text that is the name or code of something.
    pub(super) fn parse<T>(&self, column: &str) -> Result<T, Failed>
    where
        T: FromStr<Err: Display>,
    {
        let text: String = self.get(column)?;
        text.parse().map_err(|error| self.corrupt(column, error))
    }

    pub(super) fn json<T: DeserializeOwned>(&self, column: &str) -> Result<T, Failed> {
        let text: String = self.get(column)?;
        serde_json::from_str(&text).map_err(|error| self.corrupt(column, error))
    }

    pub(super) fn optional_json<T: DeserializeOwned>(
        &self,
        column: &str,
    ) -> Result<Option<T>, Failed> {
        let text: Option<String> = self.get(column)?;
        text.map(|text| serde_json::from_str(&text))
            .transpose()
            .map_err(|error| self.corrupt(column, error))
    }

    /// One of `all`, by the name that `name` gives it.
    pub(super) fn one_of<T: Copy>(
        &self,
        column: &str,
        all: &[T],
        name: fn(T) -> &'static str,
    ) -> Result<T, Failed> {
        let text: String = self.get(column)?;
        all.iter()
            .copied()
            .find(|value| name(*value) == text)
            .ok_or_else(|| self.corrupt(column, format_args!("'{text}' is not known")))
    }

    /// What `make` builds from cells of this row that belong together.
    pub(super) fn check<T, E: Display>(
        &self,
        columns: &str,
        made: Result<T, E>,
    ) -> Result<T, Failed> {
        made.map_err(|error| self.corrupt(columns, error))
    }
}

/// All rows of a query on `table`, in order.
pub(super) fn list<T>(
    tx: &Transaction<'_>,
    table: &'static str,
    sql: &str,
    params: impl Params,
    mut read: impl FnMut(&Cells<'_>) -> Result<T, Failed>,
) -> Result<Vec<T>, Failed> {
    let mut statement = tx.prepare_cached(sql)?;
    let rows = statement.query_and_then(params, |row| read(&Cells { row, table }))?;
    rows.collect()
}

/// Shows every row of a query on `table`, one at a time.
pub(super) fn each(
    tx: &Transaction<'_>,
    table: &'static str,
    sql: &str,
    params: impl Params,
    mut show: impl FnMut(&Cells<'_>) -> Result<(), Failed>,
) -> Result<(), Failed> {
    let mut statement = tx.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    while let Some(row) = rows.next()? {
        show(&Cells { row, table })?;
    }
    Ok(())
}

/// The first row of a query on `table`.
pub(super) fn find<T>(
    tx: &Transaction<'_>,
    table: &'static str,
    sql: &str,
    params: impl Params,
    mut read: impl FnMut(&Cells<'_>) -> Result<T, Failed>,
) -> Result<Option<T>, Failed> {
    let mut statement = tx.prepare_cached(sql)?;
    let mut rows = statement.query_and_then(params, |row| read(&Cells { row, table }))?;
    rows.next().transpose()
}

/// Whether a query has any row.
pub(super) fn exists(tx: &Transaction<'_>, sql: &str, params: impl Params) -> Result<bool, Failed> {
    Ok(tx.prepare_cached(sql)?.exists(params)?)
}

/// Runs a statement that gives no rows; how many it changed.
pub(super) fn run(tx: &Transaction<'_>, sql: &str, params: impl Params) -> Result<u64, Failed> {
    let changed = tx.prepare_cached(sql)?.execute(params)?;
    Ok(u64::try_from(changed).unwrap_or(u64::MAX))
}

/// An id as its column has it.
pub(super) fn blob(id: Uuid) -> [u8; 16] {
    id.into_bytes()
}

pub(super) fn micros(at: Option<Timestamp>) -> Option<i64> {
    at.map(Timestamp::micros)
}

pub(super) fn units(quantity: Option<Quantity>) -> Option<i64> {
    quantity.map(Quantity::get)
}

/// `count` as SQLite's LIMIT takes it.
pub(super) fn limit(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

pub(super) fn to_json(value: &impl Serialize) -> Result<String, Failed> {
    serde_json::to_string(value)
        .map_err(|error| Failed::Corrupt(format!("can't be written as JSON: {error}")))
}
