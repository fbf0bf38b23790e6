//! The store in one SQLite file: one writer, a few readers, no server.
//!
//! Each trait's file ends in plain blocking functions on a transaction; `pool.rs` is the only one that knows of
//! threads. Nothing here reads a clock.

mod audit;
mod catalogue;
mod check;
mod conversations;
mod keys;
pub mod maintenance;
mod migrate;
mod plans;
mod pool;
mod rows;
mod sums;
mod tenants;
mod usage;

use std::path::Path;

use rusqlite::Transaction;

use super::{StoreError, StoreResult};
use pool::Pool;

/// The system of record in one SQLite file.
pub struct SqliteStore {
    pool: Pool,
}

impl SqliteStore {
    /// Opens the database at `path`, made with mode 0600 if there is none, and brings its schema up to date.
    /// Blocks; its directory must be there. What is open closes when the store is dropped.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the file can't be made, read or migrated, and if a newer tollgate wrote it.
    pub fn open(path: &Path) -> StoreResult<Self> {
        Ok(Self {
            pool: Pool::open(path)?,
        })
    }

    /// Runs `work` in a read transaction: all it reads is of one instant.
    async fn read<T, F>(&self, name: &'static str, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, Failed> + Send + 'static,
    {
        self.pool.read(name, work).await
    }

    /// Runs `work` in a write transaction, after the writes asked for before it; durable when this returns `Ok`.
    /// If `work` fails, nothing of it stays.
    async fn write<T, F>(&self, name: &'static str, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, Failed> + Send + 'static,
    {
        self.pool.write(name, work).await
    }
}

/// Why an operation was given up and rolled back.
enum Failed {
    /// SQLite could not do it.
    Sql(rusqlite::Error),
    /// A row holds what no tollgate has written.
    Corrupt(String),
    /// It must not be done.
    Refused(StoreError),
}

impl Failed {
    /// As callers see it; `name` is the operation's.
    fn into_error(self, name: &'static str) -> StoreError {
        match self {
            Self::Sql(error) => StoreError::Unavailable(format!("{name}: {error}")),
            Self::Corrupt(what) => StoreError::Unavailable(format!("{name}: {what}")),
            Self::Refused(error) => error,
        }
    }
}

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
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
