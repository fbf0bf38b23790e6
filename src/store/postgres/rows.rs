//! Reading and writing cells: ids, instants, quantities, names. A cell that does not hold what its column should is
//! an error that names table, column and content.

use std::{borrow::Cow, collections::HashMap, fmt::Display, str::FromStr};

use futures_util::TryStreamExt as _;
use serde::{Serialize, de::DeserializeOwned};
use tokio_postgres::{
    Row,
    types::{FromSqlOwned, ToSql},
};
use uuid::Uuid;

use super::{Failed, pool::Tx};
use crate::domain::{ids::TenantId, quantity::Quantity, time::Timestamp};

/// What stands for `$1`, `$2`, … in a statement.
pub(super) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Values as [`Params`].
macro_rules! params {
    ($($value:expr),* $(,)?) => { &[$(&$value as &(dyn tokio_postgres::types::ToSql + Sync)),*] };
}
pub(super) use params;

/// A row of `table`.
pub(super) struct Cells<'r> {
    row: &'r Row,
    table: &'static str,
}

impl Cells<'_> {
    pub(super) fn get<T: FromSqlOwned>(&self, column: &str) -> Result<T, Failed> {
        self.row
            .try_get(column)
            .map_err(|error| self.corrupt(column, super::text_of(&error)))
    }

    fn corrupt(&self, column: &str, problem: impl Display) -> Failed {
        Failed::Corrupt(format!(
            "a row of {} is damaged in column {column}: {problem}",
            self.table
        ))
    }

    pub(super) fn uuid(&self, column: &str) -> Result<Uuid, Failed> {
        self.get(column)
    }

    pub(super) fn optional_uuid(&self, column: &str) -> Result<Option<Uuid>, Failed> {
        self.get(column)
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

    /// A sum, which the statement gives as text: it may pass 64 bits.
    pub(super) fn sum(&self, column: &str) -> Result<i128, Failed> {
        self.parse(column)
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
pub(super) async fn list<T>(
    tx: &Tx,
    table: &'static str,
    sql: &str,
    params: Params<'_>,
    mut read: impl FnMut(&Cells<'_>) -> Result<T, Failed>,
) -> Result<Vec<T>, Failed> {
    let statement = tx.prepare_cached(sql).await?;
    let rows = tx.query(&statement, params).await?;
    rows.iter().map(|row| read(&Cells { row, table })).collect()
}

/// Shows every row of a query on `table`, one at a time.
pub(super) async fn each(
    tx: &Tx,
    table: &'static str,
    sql: &str,
    params: Params<'_>,
    mut show: impl FnMut(&Cells<'_>) -> Result<(), Failed>,
) -> Result<(), Failed> {
    let statement = tx.prepare_cached(sql).await?;
    let rows = tx.query_raw(&statement, params.iter().copied()).await?;
    let mut rows = std::pin::pin!(rows);
    while let Some(row) = rows.try_next().await? {
        show(&Cells { row: &row, table })?;
    }
    Ok(())
}

/// The first row of a query on `table`.
pub(super) async fn find<T>(
    tx: &Tx,
    table: &'static str,
    sql: &str,
    params: Params<'_>,
    read: impl FnMut(&Cells<'_>) -> Result<T, Failed>,
) -> Result<Option<T>, Failed> {
    let found = list(tx, table, sql, params, read).await?;
    Ok(found.into_iter().next())
}

/// Waits until nobody else holds the advisory lock `key`, and holds it until the transaction is over.
pub(super) async fn lock(tx: &Tx, key: i64) -> Result<(), Failed> {
    run(tx, "SELECT pg_advisory_xact_lock($1)", params![key]).await?;
    Ok(())
}

/// As [`lock`], beside others that hold it so.
pub(super) async fn lock_shared(tx: &Tx, key: i64) -> Result<(), Failed> {
    run(tx, "SELECT pg_advisory_xact_lock_shared($1)", params![key]).await?;
    Ok(())
}

/// Whether a query has any row. What it selects is not even computed: a function there that does something is not
/// called.
pub(super) async fn exists(tx: &Tx, sql: &str, params: Params<'_>) -> Result<bool, Failed> {
    let statement = tx.prepare_cached(&format!("SELECT EXISTS ({sql})")).await?;
    Ok(tx.query_one(&statement, params).await?.try_get(0)?)
}

/// Runs a statement that gives no rows; how many it changed.
pub(super) async fn run(tx: &Tx, sql: &str, params: Params<'_>) -> Result<u64, Failed> {
    let statement = tx.prepare_cached(sql).await?;
    Ok(tx.execute(&statement, params).await?)
}

/// What was found of each of `tenants`, in their order; one that is named twice gets it twice.
pub(super) fn by_tenant<T: Clone>(
    tenants: &[TenantId],
    found: impl IntoIterator<Item = (TenantId, T)>,
) -> Vec<Vec<T>> {
    let mut of: HashMap<TenantId, Vec<T>> = HashMap::new();
    for (tenant, item) in found {
        of.entry(tenant).or_default().push(item);
    }
    let each = tenants.iter();
    each.map(|tenant| of.get(tenant).cloned().unwrap_or_default())
        .collect()
}

pub(super) fn micros(at: Option<Timestamp>) -> Option<i64> {
    at.map(Timestamp::micros)
}

pub(super) fn units(quantity: Option<Quantity>) -> Option<i64> {
    quantity.map(Quantity::get)
}

/// `count` as Postgres's LIMIT takes it.
pub(super) fn limit(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

pub(super) fn to_json(value: &impl Serialize) -> Result<String, Failed> {
    serde_json::to_string(value)
        .map_err(|error| Failed::Corrupt(format!("can't be written as JSON: {error}")))
}

/// A text of other people's as Postgres takes it: it has no place for a NUL, and one event with a NUL in its user's name
/// would keep its whole batch from ever being written.
pub(super) fn text(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{FFFD}"))
    } else {
        Cow::Borrowed(text)
    }
}
