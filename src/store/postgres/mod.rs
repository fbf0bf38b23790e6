//! The store in a Postgres database, which many replicas share.
//!
//! The files are named as SQLite's, and their functions follow each other as there. Where SQLite has one writer at a
//! time, here a transaction says what it needs: `change` is alone among all that change the catalogue, on all replicas;
//! `write` locks the rows that it decides on; `read` sees one instant. Nothing here reads a clock.

mod audit;
mod catalogue;
mod check;
mod connect;
mod conversations;
mod forget;
pub mod import;
mod keys;
mod maintenance;
mod migrate;
mod notices;
mod outbox;
mod partitions;
mod plans;
mod pool;
mod reservations;
mod rows;
mod sessions;
mod stripe;
mod sums;
mod tenant_sums;
mod tenants;
mod trends;
mod url;
mod usage;
mod watch;
mod webhooks;

use std::future::Future;

use super::{StoreError, StoreResult};
use crate::provider::resolve::Resolver;
use connect::Connector;
use partitions::Partitions;
use pool::{Kind, Pool, Tx};

pub(crate) use maintenance::NO_COPY;
pub use maintenance::{Inspected, inspect, newest_schema_version};
pub use url::PostgresUrl;

/// The system of record in a Postgres database.
pub struct PostgresStore {
    pool: Pool,
    partitions: Partitions,
}

impl PostgresStore {
    /// Connects and brings the schema up to date. What is open closes when the store is dropped.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the database can't be reached or migrated, and if a newer tollgate migrated it.
    pub async fn open(url: &PostgresUrl) -> StoreResult<Self> {
        let unavailable = |why: String| StoreError::Unavailable(format!("{url}: {why}"));
        let connector = Connector::new(url.clone(), Resolver::default()).map_err(unavailable)?;
        let (mut client, driven) = connector.open_driven().await.map_err(unavailable)?;
        let migrated = migrate::migrate(&mut client).await;
        drop(client); // ends the connection in good order
        let _ = driven.await;
        migrated.map_err(unavailable)?;
        Ok(Self {
            pool: Pool::new(connector)?,
            partitions: Partitions::default(),
        })
    }

    /// Reads for somebody who waits: all of one instant.
    async fn read<T, W>(&self, name: &'static str, work: impl Fn(Tx) -> W) -> StoreResult<T>
    where
        W: Future<Output = Result<T, Failed>>,
    {
        self.pool.transact(name, Kind::READ, work).await
    }

    /// [`read`](Self::read) for what may look at much.
    async fn read_much<T, W>(&self, name: &'static str, work: impl Fn(Tx) -> W) -> StoreResult<T>
    where
        W: Future<Output = Result<T, Failed>>,
    {
        let _turn = self.pool.turn_of_report(name).await?;
        self.pool.transact(name, Kind::READ, work).await
    }

    /// Reads what may take long.
    async fn read_at_leisure<T, W>(
        &self,
        name: &'static str,
        work: impl Fn(Tx) -> W,
    ) -> StoreResult<T>
    where
        W: Future<Output = Result<T, Failed>>,
    {
        self.pool.transact(name, Kind::READ_AT_LEISURE, work).await
    }

    /// Writes for somebody who waits; durable when this returns `Ok`. If `work` fails, nothing of it stays.
    async fn write<T, W>(&self, name: &'static str, work: impl Fn(Tx) -> W) -> StoreResult<T>
    where
        W: Future<Output = Result<T, Failed>>,
    {
        self.pool.transact(name, Kind::WRITE, work).await
    }

    /// Writes in the background: no request waits for it, and it may wait for a slow server.
    async fn write_at_leisure<T, W>(
        &self,
        name: &'static str,
        work: impl Fn(Tx) -> W,
    ) -> StoreResult<T>
    where
        W: Future<Output = Result<T, Failed>>,
    {
        self.pool.transact(name, Kind::WRITE_AT_LEISURE, work).await
    }

    /// Changes the catalogue or the audit log: alone among all that do.
    async fn change<T, W>(&self, name: &'static str, work: impl Fn(Tx) -> W) -> StoreResult<T>
    where
        W: Future<Output = Result<T, Failed>>,
    {
        self.pool.transact(name, Kind::CHANGE, work).await
    }
}

/// Why an operation was given up and rolled back.
#[derive(Debug)]
enum Failed {
    /// Postgres could not do it.
    Sql(tokio_postgres::Error),
    /// A row holds what no tollgate has written.
    Corrupt(String),
    /// Nothing could be asked.
    NoConnection(String),
    /// It must not be done.
    Refused(StoreError),
}

impl From<tokio_postgres::Error> for Failed {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

/// What went wrong, in the server's words where it said any. Not its details, which may quote rows.
fn text_of(error: &tokio_postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        return format!("{} ({})", error.message(), error.code().code());
    }
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn not_found(what: &'static str, name: impl ToString) -> Failed {
    Failed::Refused(StoreError::NotFound {
        what,
        name: name.to_string(),
    })
}

fn already_exists(what: &'static str, name: impl ToString) -> Failed {
    Failed::Refused(StoreError::AlreadyExists {
        what,
        name: name.to_string(),
    })
}

#[cfg(test)]
mod tests;
