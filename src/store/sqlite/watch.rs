//! Whether anything was committed, by this process or by another: a thread that asks SQLite now and then.
//!
//! That is a look at shared memory. A query on a reader's connection would wake several threads for it each time.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use rusqlite::{Connection, OpenFlags};
use tokio::sync::Notify;

use super::pool::BUSY_TIMEOUT;
use crate::store::catalogue::LOOK_EVERY;

/// Dropping it ends the thread and closes its connection.
pub(super) struct Watch {
    changed: Arc<Notify>,
    going: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn start(path: &Path) -> io::Result<Self> {
        let changed = Arc::new(Notify::new());
        let (going, ended) = mpsc::channel::<()>();
        let mut look = Look::new(path);
        let thread = std::thread::Builder::new()
            .name("sqlite-watch".to_owned())
            .spawn({
                let changed = Arc::clone(&changed);
                move || {
                    loop {
                        if look.has_changed() {
                            changed.notify_one();
                        }
                        if ended.recv_timeout(LOOK_EVERY) != Err(mpsc::RecvTimeoutError::Timeout) {
                            return;
                        }
                    }
                }
            })?;
        Ok(Self {
            changed,
            going: Some(going),
            thread: Some(thread),
        })
    }

    /// Comes back when something may have been committed since the last call; the first time at once.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.going = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What was seen at the last look.
struct Look {
    path: PathBuf,
    connection: Option<Connection>,
    version: Option<i64>,
}

impl Look {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            connection: None,
            version: None,
        }
    }

    /// Whether anything may have been committed since the last call; yes while it can't be told, and the first time.
    fn has_changed(&mut self) -> bool {
        let seen = self.data_version().ok();
        if seen.is_none() {
            self.connection = None;
        }
        let before = std::mem::replace(&mut self.version, seen);
        seen.is_none() || seen != before
    }

    /// Of this connection alone: another number when another connection has committed
    /// (<https://sqlite.org/pragma.html#pragma_data_version>).
    fn data_version(&mut self) -> rusqlite::Result<i64> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                // What was seen by another connection says nothing.
                self.version = None;
                let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                let connection = Connection::open_with_flags(&self.path, flags)?;
                connection.busy_timeout(BUSY_TIMEOUT)?;
                connection
            }
        };
        let connection = self.connection.insert(connection);
        connection
            .prepare_cached("PRAGMA data_version")?
            .query_row([], |row| row.get(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_of_another_connection_is_seen_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.db");
        let other = Connection::open(&path).unwrap();
        let execute = |sql: &str| other.execute_batch(sql).unwrap();
        execute("PRAGMA journal_mode = WAL; CREATE TABLE numbers (number INTEGER)");
        let mut look = Look::new(&path);
        assert!(look.has_changed(), "nothing was seen before");
        assert!(!look.has_changed());
        execute("BEGIN; INSERT INTO numbers VALUES (1)");
        assert!(!look.has_changed(), "it may still be rolled back");
        execute("COMMIT");
        assert!(look.has_changed());
        assert!(!look.has_changed());
    }

    #[test]
    fn what_cannot_be_looked_at_may_have_changed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.db");
        let mut look = Look::new(&path);
        assert!(look.has_changed());
        assert!(look.has_changed());
        Connection::open(&path)
            .unwrap()
            .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE numbers (number INTEGER)")
            .unwrap();
        assert!(look.has_changed());
        assert!(!look.has_changed());
    }
}
