//! The store in one SQLite file: one writer, a few readers, no server.
//!
//! Each trait's file ends in plain blocking functions on a transaction; `pool.rs` is the only one that knows of
//! threads. Nothing here reads a clock.

mod audit;
mod catalogue;
mod check;
mod conversations;
pub mod export;
mod forget;
mod keys;
pub mod maintenance;
mod migrate;
mod notices;
mod outbox;
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
mod usage;
mod watch;
mod webhooks;

use std::{path::Path, sync::Arc};

use rusqlite::Transaction;

use super::{StoreError, StoreResult};
use pool::Pool;

/// The system of record in one SQLite file.
pub struct SqliteStore {
    pool: Pool,
    faults: Option<Faults>,
}

/// How far an operation is when a fault may strike it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Nothing is done; nothing will be.
    Before,
    /// What it writes is durable: only its answer gets lost.
    Committed,
}

/// Asked of every operation by its name, such as `usage.record`; an error is what the operation's caller gets. So a
/// test takes the store away, or lets it die, at any point.
pub type Faults = Arc<dyn Fn(&'static str, Moment) -> Result<(), String> + Send + Sync>;

impl SqliteStore {
    /// Opens the database at `path`, made with mode 0600 if there is none, and brings its schema up to date.
    /// Blocks; its directory must be there. What is open closes when the store is dropped.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the file can't be made, read or migrated, and if a newer tollgate wrote it.
    pub fn open(path: &Path) -> StoreResult<Self> {
        Ok(Self {
            pool: Pool::open(path)?,
            faults: None,
        })
    }

    /// As [`open`](Self::open), with faults in its operations.
    ///
    /// # Errors
    /// As of [`open`](Self::open).
    pub fn open_with(path: &Path, faults: Faults) -> StoreResult<Self> {
        Ok(Self {
            faults: Some(faults),
            ..Self::open(path)?
        })
    }

    /// Whether the file at `path` can be opened as it is; it is not changed.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it is no database, or a newer tollgate's.
    pub fn look_at(path: &Path) -> StoreResult<()> {
        pool::look_at(path)
    }

    /// Runs `work` in a read transaction: all it reads is of one instant.
    async fn read<T, F>(&self, name: &'static str, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, Failed> + Send + 'static,
    {
        self.strike(name, Moment::Before)?;
        self.pool.read(name, work).await
    }

    /// [`read`](Self::read) for what may look at much.
    async fn read_much<T, F>(&self, name: &'static str, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, Failed> + Send + 'static,
    {
        self.strike(name, Moment::Before)?;
        self.pool.read_much(name, work).await
    }

    /// Runs `work` in a write transaction, after the writes asked for before it; durable when this returns `Ok`.
    /// If `work` fails, nothing of it stays.
    async fn write<T, F>(&self, name: &'static str, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, Failed> + Send + 'static,
    {
        self.strike(name, Moment::Before)?;
        let done = self.pool.write(name, work).await?;
        self.strike(name, Moment::Committed)?;
        Ok(done)
    }

    fn strike(&self, name: &'static str, moment: Moment) -> StoreResult<()> {
        let struck = self.faults.as_ref().map(|faults| faults(name, moment));
        struck
            .unwrap_or(Ok(()))
            .map_err(|why| StoreError::Unavailable(format!("{name}: {why}")))
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
