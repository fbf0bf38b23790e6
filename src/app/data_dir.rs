//! The data directory: made for the owner alone, and used by one process at a time.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The name of the journal's file in the data dir.
const JOURNAL_FILE: &str = "cache.redb";
/// The file whose lock says that the directory is in use; it stays when the lock is gone.
const LOCK_FILE: &str = "tollgate.lock";

/// The journal's file.
#[must_use]
pub fn journal_path(data_dir: &Path) -> PathBuf {
    data_dir.join(JOURNAL_FILE)
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
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK_FILE))
            .map_err(unusable)?;
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
        let begun = Instant::now();
        loop {
            match Self::open(path) {
                Err(DataDirError::InUse(_)) if begun.elapsed() < PATIENCE => {
                    tokio::time::sleep(BETWEEN_LOOKS).await;
                }
                opened => return opened,
            }
        }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
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
