//! A file of redb's, such as the journal: how it is opened, checked, and moved aside when it is damaged.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{Builder, Database, DatabaseError, StorageError, backends::FileBackend};

use crate::domain::time::Timestamp;

/// Makes the database of an open file; tests put a disk of their own in between.
pub type Opener =
    Arc<dyn Fn(&Builder, FileBackend) -> Result<Database, DatabaseError> + Send + Sync>;

/// Every commit is on disk when it returns.
pub(crate) fn on_disk() -> Opener {
    Arc::new(|builder, file| builder.create_with_backend(file))
}

/// Why the file could not be opened.
#[derive(Debug)]
pub(crate) enum OpenFault {
    /// Another process has it.
    Locked,
    /// It is no file of redb's, or no longer a whole one.
    Damaged(String),
    /// A newer version wrote it.
    Newer(String),
    /// It could not be read or written.
    Failed(String),
}

impl fmt::Display for OpenFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked => f.write_str("another process has it open"),
            Self::Damaged(detail) => write!(f, "it is damaged: {detail}"),
            Self::Newer(detail) | Self::Failed(detail) => f.write_str(detail),
        }
    }
}

/// What to do if there is no file.
#[derive(Clone, Copy)]
enum Absent {
    Create,
    Fail,
}

/// Where a file is, and how to open it.
#[derive(Clone)]
pub(crate) struct RedbFile {
    path: PathBuf,
    cache_bytes: usize,
    opener: Opener,
}

impl RedbFile {
    /// Holds up to `cache_bytes` of it in memory.
    pub(crate) fn new(path: &Path, cache_bytes: usize, opener: Opener) -> Self {
        Self {
            path: path.to_owned(),
            cache_bytes,
            opener,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file, or makes it, readable by its owner only.
    pub(crate) fn open(&self) -> Result<Database, OpenFault> {
        let file = self.open_file(Absent::Create).map_err(failed)?;
        // A file that power loss takes out of its directory again is lost however well it was synced.
        self.sync_directory().map_err(failed)?;
        self.open_database(file)
    }

    /// Opens the file again after an I/O error.
    pub(crate) fn reopen(&self) -> Result<Database, OpenFault> {
        let file = self.open_file(Absent::Fail).map_err(failed)?;
        self.open_database(file)
    }

    fn open_file(&self, absent: Absent) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(matches!(absent, Absent::Create))
            .truncate(false)
            .mode(0o600)
            .open(&self.path)
    }

    fn open_database(&self, file: File) -> Result<Database, OpenFault> {
        // After a failed sync Linux keeps the pages that did not reach the disk, marked as clean: read back, by the
        // next process too, they look written, and the next sync says nothing of them. Dropped from the cache, they
        // are read as they are.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
            .map_err(|error| failed(error.into()))?;
        let backend = FileBackend::new(file).map_err(fault_of)?;
        let mut builder = Builder::new();
        // Without the check, redb trusts a cleanly closed file, and may panic on a damaged one much later.
        builder
            .set_cache_size(self.cache_bytes)
            .set_check_integrity_on_open(true);
        // redb panics on some damage in debug builds, and promises not to only as far as the check goes.
        let opened = panic::catch_unwind(AssertUnwindSafe(|| (self.opener)(&builder, backend)));
        match opened {
            Ok(result) => result.map_err(fault_of),
            Err(_) => Err(OpenFault::Damaged("reading it panicked".to_owned())),
        }
    }

    /// Renames the damaged file to `NAME.damaged-TIME`, and gives its new path.
    pub(crate) fn move_aside(&self, now: Timestamp) -> io::Result<PathBuf> {
        let time = now.to_whole_second().to_string().replace(['-', ':'], "");
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".damaged-{time}"));
        let mut target = PathBuf::from(&name);
        let mut copy = 2;
        while target.try_exists()? {
            let mut numbered = name.clone();
            numbered.push(format!("-{copy}"));
            target = PathBuf::from(numbered);
            copy += 1;
        }
        fs::rename(&self.path, &target)?;
        self.sync_directory()?;
        Ok(target)
    }

    fn sync_directory(&self) -> io::Result<()> {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
            _ => File::open(".")?.sync_all(),
        }
    }
}

fn failed(error: io::Error) -> OpenFault {
    OpenFault::Failed(error.to_string())
}

fn fault_of(error: DatabaseError) -> OpenFault {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            OpenFault::Locked
        }
        // None of ours was ever written in these older formats.
        DatabaseError::UpgradeRequired(_) => OpenFault::Damaged(error.to_string()),
        DatabaseError::Storage(StorageError::Corrupted(detail)) => OpenFault::Damaged(detail),
        DatabaseError::Storage(StorageError::Io(error))
            if matches!(
                error.kind(),
                // Not a redb file; a file that ends before what its header promises.
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            OpenFault::Damaged(error.to_string())
        }
        other => OpenFault::Failed(other.to_string()),
    }
}
