//! The data directory: made for the owner alone, and used by one process at a time. And the database of SQLite, which may
//! lie elsewhere: of two servers on one, neither would know what the other lets through.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::OFlags;

/// The name of the journal's file in the data dir.
const JOURNAL_FILE: &str = "cache.redb";
/// The file whose lock says that the directory is in use; it stays when the lock is gone.
const LOCK_FILE: &str = "tollgate.lock";

/// The journal's file.
#[must_use]
pub fn journal_path(data_dir: &Path) -> PathBuf {
    data_dir.join(JOURNAL_FILE)
}

/// The file whose lock says that the database at `path` is in use. Beside it, since closing any other handle of a database
/// takes the locks away that SQLite holds on it.
#[must_use]
pub fn database_lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

/// Whether a file of this name is of a running process only, and holds nothing.
pub(crate) fn is_of_process(name: &str) -> bool {
    name == LOCK_FILE || name == crate::control::SOCKET_FILE
}

/// A data directory that this process holds until the value is dropped, or the process ends in any way.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// How long a server that starts waits for one that ends: after `kill -9` the kernel takes a moment to let go of what a
/// process had open.
const PATIENCE: Duration = Duration::from_secs(1);
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// Why a data directory can't be used; each is one line for people.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("another server runs on data dir {}; stop it, or choose another with TOLLGATE_DATA_DIR", .0.display())]
    InUse(PathBuf),
    #[error("data dir {} can't be used: {cause}; make it a directory that this user may write, or choose another with TOLLGATE_DATA_DIR", path.display())]
    Unusable { path: PathBuf, cause: io::Error },
    #[error("another server{} runs on the database {}; stop it, or choose another with DATABASE_URL (of Postgres several servers can share one)", in_words(by), path.display())]
    DatabaseInUse {
        path: PathBuf,
        /// Its data dir; empty if it has only just begun.
        by: String,
    },
    #[error("the database {} can't be used: {cause}; make its directory one that this user may write, or choose another with DATABASE_URL", path.display())]
    UnusableDatabase { path: PathBuf, cause: io::Error },
}

fn in_words(data_dir: &str) -> String {
    match data_dir {
        "" => String::new(),
        data_dir => format!(" (data dir {data_dir})"),
    }
}

impl DataDir {
    /// Makes the directory if need be (mode 0700) and takes its lock, without waiting.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let unusable = |cause| DataDirError::Unusable {
            path: path.to_owned(),
            cause,
        };
        make(path).map_err(unusable)?;
        // An absolute path survives a change of the working directory.
        let path = fs::canonicalize(path).map_err(unusable)?;
        let lock = lock_file(&path.join(LOCK_FILE)).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(DataDirError::InUse(path)),
            Err(TryLockError::Error(cause)) => Err(unusable(cause)),
        }
    }

    /// As [`open`](Self::open), for a server that may be started in place of one that has just been killed.
    ///
    /// # Errors
    /// [`DataDirError`]; that it is in use only after a second.
    pub async fn open_patiently(path: &Path) -> Result<Self, DataDirError> {
        patiently(|| Self::open(path)).await
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A database of SQLite that a server, or who replaces it, holds until the value is dropped. Other commands take no such
/// lock: what they change, a server sees as it sees what they change beside it.
#[derive(Debug)]
pub struct DatabaseLock {
    _lock: File,
}

/// With whom a database of SQLite may be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    Alone,
    /// With servers that share their live totals too, in Redis.
    Together,
}

impl DatabaseLock {
    /// Takes the lock of the database at `path` for whoever holds `data_dir`, without waiting. The directory of the
    /// database must be there.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub fn take(path: &Path, data_dir: &DataDir, share: Share) -> Result<Self, DataDirError> {
        let path = real(path);
        let unusable = |cause| DataDirError::UnusableDatabase {
            path: path.clone(),
            cause,
        };
        let mut lock = lock_file(&database_lock_path(&path)).map_err(unusable)?;
        let locked = match share {
            Share::Alone => lock.try_lock(),
            Share::Together => lock.try_lock_shared(),
        };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut by = String::new();
                let _ = lock.read_to_string(&mut by);
                return Err(DataDirError::DatabaseInUse { path, by });
            }
            Err(TryLockError::Error(cause)) => return Err(unusable(cause)),
        }
        let name = data_dir.path.display().to_string();
        let written = lock
            .set_len(0)
            .and_then(|()| lock.write_all(name.as_bytes()));
        written.map_err(unusable)?;
        Ok(Self { _lock: lock })
    }

    /// As [`take`](Self::take), for a server that may be started in place of one that has just been killed.
    ///
    /// # Errors
    /// [`DataDirError`]; that it is in use only after a second.
    pub async fn take_patiently(
        path: &Path,
        data_dir: &DataDir,
        share: Share,
    ) -> Result<Self, DataDirError> {
        patiently(|| Self::take(path, data_dir, share)).await
    }
}

/// The path by which all know the file, through whichever links they came.
fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| {
        let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
        let directory = fs::canonicalize(directory.unwrap_or(Path::new(".")));
        match (directory, path.file_name()) {
            (Ok(directory), Some(name)) => directory.join(name),
            _ => path.to_owned(),
        }
    })
}

/// The file at the absolute `path`, made if need be. It belongs to the owner of its directory: what root has made could
/// not be opened by the server's own user.
fn lock_file(path: &Path) -> io::Result<File> {
    // The owner of the directory could have put a link there, for root to write to where it leads.
    let no_link = OFlags::NOFOLLOW.bits().cast_signed();
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(no_link)
        .open(path)?;
    let directory = path.parent().unwrap_or(path);
    let (owner, is) = (fs::metadata(directory)?, lock.metadata()?);
    if owner.uid() != is.uid() {
        // Nobody but root can, and who else could open it has no need to.
        let _ = fchown(&lock, Some(owner.uid()), Some(owner.gid()));
    }
    Ok(lock)
}

async fn patiently<T>(open: impl Fn() -> Result<T, DataDirError>) -> Result<T, DataDirError> {
    let begun = Instant::now();
    loop {
        match open() {
            Err(DataDirError::InUse(_) | DataDirError::DatabaseInUse { .. })
                if begun.elapsed() < PATIENCE =>
            {
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
            opened => return opened,
        }
    }
}

/// Makes the directory and those above it, as far as they are missing, so that power loss leaves them there: a
/// directory that it takes out of the one above is lost with all that is in it, however well that was synced.
fn make(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path
        .ancestors()
        .take_while(|it| !it.as_os_str().is_empty() && !it.exists())
        .collect();
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    for made in missing {
        let above = made.parent().filter(|it| !it.as_os_str().is_empty());
        File::open(above.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_data_dir_is_made_for_its_owner_alone() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let opened = DataDir::open(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join(LOCK_FILE)), 0o600);
        assert_eq!(opened.path(), fs::canonicalize(&path).unwrap());
    }

    #[test]
    fn a_data_dir_is_held_once_and_free_again_when_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let held = DataDir::open(directory.path()).unwrap();
        let refused = DataDir::open(directory.path()).unwrap_err().to_string();
        assert!(
            refused.starts_with("another server runs on data dir /"),
            "{refused}"
        );
        drop(held);
        DataDir::open(directory.path()).unwrap();
    }

    #[test]
    fn a_database_is_held_once_through_whichever_link_and_names_its_holder() {
        let directory = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| DataDir::open(&directory.path().join(name)).unwrap());
        let database = directory.path().join("t.db");
        let held = DatabaseLock::take(&database, &a, Share::Alone).unwrap();
        fs::write(&database, "").unwrap();
        let link = b.path().join("link.db");
        std::os::unix::fs::symlink(&database, &link).unwrap();
        for path in [&database, &link] {
            let refused = DatabaseLock::take(path, &b, Share::Alone)
                .unwrap_err()
                .to_string();
            let named = format!("another server (data dir {}) runs on", a.path().display());
            assert!(refused.starts_with(&named), "{refused}");
        }
        drop(held);
        DatabaseLock::take(&link, &b, Share::Alone).unwrap();
        let together =
            [&a, &b].map(|it| DatabaseLock::take(&database, it, Share::Together).unwrap());
        assert!(DatabaseLock::take(&database, &a, Share::Alone).is_err());
        drop(together);
    }

    #[tokio::test]
    async fn who_starts_while_another_ends_waits_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let held = DataDir::open(directory.path()).unwrap();
        let starting = DataDir::open_patiently(directory.path());
        let ending = async {
            tokio::task::yield_now().await; // the other has found it in use
            drop(held);
        };
        let (started, ()) = tokio::join!(starting, ending);
        started.unwrap();
    }

    #[test]
    fn a_file_in_its_place_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = DataDir::open(file.path()).unwrap_err().to_string();
        assert!(
            refused.contains(&file.path().display().to_string()),
            "{refused}"
        );
        assert!(!refused.contains('\n'), "{refused}");
    }
}
