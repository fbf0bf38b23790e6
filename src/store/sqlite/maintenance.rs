//! Copying the database while it is in use, and checking its structure.

use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;
use rusqlite::{
    Connection, OpenFlags, Transaction,
    backup::{Backup, StepResult},
};

use super::{Failed, SqliteStore, migrate};
use crate::{
    domain::{feature::FeatureKey, time::Timestamp},
    store::{
        StoreError, StoreResult,
        maintenance::{MaintenanceStore, StoreCopy},
    },
};

/// Faults that are listed; the first ones tell the story.
const MOST_FAULTS: i64 = 20;

impl MaintenanceStore for SqliteStore {
    fn begin_copy(&self) -> BoxFuture<'_, StoreResult<Box<dyn StoreCopy>>> {
        Box::pin(async move {
            let path = self.pool.path().to_owned();
            let copy = self
                .pool
                .block("store.begin_copy", move || open_copy(&path));
            let copy: Box<dyn StoreCopy> = Box::new(copy.await?);
            Ok(copy)
        })
    }

    fn check_integrity(&self) -> BoxFuture<'_, StoreResult<Vec<String>>> {
        Box::pin(self.read("store.check_integrity", check_integrity))
    }

    fn last_recorded_at(&self) -> BoxFuture<'_, StoreResult<Option<Timestamp>>> {
        Box::pin(self.read("store.last_recorded_at", move |tx| {
            let last: Option<i64> =
                tx.query_row("SELECT max(recorded_at) FROM usage_events", [], |row| {
                    row.get(0)
                })?;
            Ok(last.map(Timestamp::from_micros))
        }))
    }

    fn is_feature_used<'a>(&'a self, feature: &'a FeatureKey) -> BoxFuture<'a, StoreResult<bool>> {
        let feature = feature.clone();
        Box::pin(self.read("store.is_feature_used", move |tx| {
            let mut statement =
                tx.prepare("SELECT 1 FROM usage_rollups WHERE feature_key = ?1 LIMIT 1")?;
            Ok(statement.exists([feature.as_str()])?)
        }))
    }

    fn schema_version(&self) -> BoxFuture<'_, StoreResult<i64>> {
        Box::pin(self.read("store.schema_version", move |tx| {
            migrate::version_of(tx).map_err(Failed::Corrupt)
        }))
    }
}

/// A connection of its own whose read transaction stays open: the copy is made when nobody waits for it.
struct SqliteCopy {
    connection: Connection,
    schema_version: i64,
}

/// The database at `path` as it is now, of whatever version its schema is. Blocks.
///
/// # Errors
/// [`StoreError::Unavailable`] if it can't be read.
pub fn copy_of(path: &Path) -> StoreResult<Box<dyn StoreCopy>> {
    let copy = open_copy(path).map_err(|failed| failed.into_error("store.begin_copy"))?;
    Ok(Box::new(copy))
}

fn open_copy(path: &Path) -> Result<SqliteCopy, Failed> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(super::pool::BUSY_TIMEOUT)?;
    // The first read of a transaction fixes what it sees.
    connection.execute_batch("BEGIN")?;
    let schema_version = migrate::version_of(&connection).map_err(Failed::Corrupt)?;
    Ok(SqliteCopy {
        connection,
        schema_version,
    })
}

impl StoreCopy for SqliteCopy {
    fn schema_version(&self) -> i64 {
        self.schema_version
    }

    fn write_to(self: Box<Self>, path: &Path) -> StoreResult<()> {
        self.copy(path).map_err(|error| unavailable(path, &error))
    }
}

impl SqliteCopy {
    fn copy(&self, path: &Path) -> rusqlite::Result<()> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut target = Connection::open_with_flags(path, flags)?;
        // Half a copy is thrown away, so nothing needs to be rolled back or synced on the way.
        target.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")?;
        // All pages in one step: with the transaction open they are of one instant, and no writer waits for them.
        let done = Backup::new(&self.connection, &mut target)?.step(-1)?;
        if done != StepResult::Done {
            return Err(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
                Some("the copy did not come to its end".to_owned()),
            ));
        }
        // The pages say that a log lies beside the file; a copy is one file.
        target.execute_batch("PRAGMA journal_mode = DELETE;")?;
        target.close().map_err(|(_, error)| error)
    }
}

fn unavailable(path: &Path, error: &rusqlite::Error) -> StoreError {
    StoreError::Unavailable(format!("store.copy to {}: {error}", path.display()))
}

fn check_integrity(tx: &Transaction<'_>) -> Result<Vec<String>, Failed> {
    let mut statement = tx.prepare(&format!("PRAGMA integrity_check({MOST_FAULTS})"))?;
    let lines = statement.query_map([], |row| row.get::<_, String>(0))?;
    let lines: Vec<String> = lines.collect::<Result<_, _>>()?;
    Ok(lines.into_iter().filter(|line| line != "ok").collect())
}

/// The version of the schema of the database at `path`; `None` if there is no file. Blocks.
///
/// # Errors
/// [`StoreError::Unavailable`] if it can't be read, or is no database.
pub fn schema_version_of(path: &Path) -> StoreResult<Option<i64>> {
    if !path.exists() {
        return Ok(None);
    }
    let copy = open_copy(path).map_err(|failed| failed.into_error("store.schema_version"))?;
    Ok(Some(copy.schema_version))
}

/// What a database file is found to be, without changing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// The version of its schema; 0 if it holds none.
    pub schema_version: i64,
    /// As of [`MaintenanceStore::check_integrity`].
    pub faults: Vec<String>,
}

/// Looks at the database at `path` without migrating it; `None` if there is no file. Blocks.
///
/// # Errors
/// [`StoreError::Unavailable`] if it can't be read, or is no database.
pub fn inspect(path: &Path) -> StoreResult<Option<Inspected>> {
    if !path.exists() {
        return Ok(None);
    }
    let look = || -> Result<Inspected, Failed> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(super::pool::BUSY_TIMEOUT)?;
        let tx = connection.transaction()?;
        Ok(Inspected {
            schema_version: migrate::version_of(&tx).map_err(Failed::Corrupt)?,
            faults: check_integrity(&tx)?,
        })
    };
    look()
        .map(Some)
        .map_err(|failed| failed.into_error("store.inspect"))
}

/// The files of the database at `path`: itself and what SQLite keeps beside it.
#[must_use]
pub fn files_of(path: &Path) -> [PathBuf; 4] {
    ["", "-wal", "-shm", "-journal"].map(|suffix| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    })
}

/// The newest schema version that this program knows.
#[must_use]
pub fn newest_schema_version() -> i64 {
    migrate::newest_known()
}
