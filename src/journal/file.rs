//! The journal's file: how it is opened, synced, and moved aside when it is damaged.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io,
    ops::Bound,
    os::unix::fs::OpenOptionsExt,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{
    BackendError, Builder, Database, DatabaseError, StorageBackend, StorageError,
    backends::FileBackend,
};

use super::Durability;
use crate::domain::time::Timestamp;

/// Rows are written once and read once, by the drainer, soon after: redb fills whatever it gets, and its default is
/// 1 GiB.
const CACHE_BYTES: usize = 4 << 20;

/// Makes the database of an open file; tests put a disk of their own in between.
pub type Opener =
    Arc<dyn Fn(&Builder, FileBackend) -> Result<Database, DatabaseError> + Send + Sync>;

pub(super) fn opener(durability: Durability) -> Opener {
    match durability {
        Durability::Full => Arc::new(|builder, file| builder.create_with_backend(file)),
        Durability::Process => {
            Arc::new(|builder, file| builder.create_with_backend(Unsynced(file)))
        }
    }
}

/// Why the file could not be opened.
#[derive(Debug)]
pub(super) enum OpenFault {
    /// Another process has it.
    Locked,
    /// It is not a journal, or no longer a whole one.
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

/// Where the journal is, and how to open it.
#[derive(Clone)]
pub(super) struct JournalFile {
    path: PathBuf,
    opener: Opener,
}

impl JournalFile {
    pub(super) fn new(path: &Path, opener: Opener) -> Self {
        Self {
            path: path.to_owned(),
            opener,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file, or makes it, readable by its owner only.
    pub(super) fn open(&self) -> Result<Database, OpenFault> {
        let file = self.open_file(Absent::Create).map_err(failed)?;
        // A file that power loss takes out of its directory again is lost however well it was synced.
        self.sync_directory().map_err(failed)?;
        self.open_database(file)
    }

    /// Opens the file again after an I/O error.
    pub(super) fn reopen(&self) -> Result<Database, OpenFault> {
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
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true);
        // redb panics on some damage in debug builds, and promises not to only as far as the check goes.
        let opened = panic::catch_unwind(AssertUnwindSafe(|| (self.opener)(&builder, backend)));
        match opened {
            Ok(result) => result.map_err(fault_of),
            Err(_) => Err(OpenFault::Damaged("reading it panicked".to_owned())),
        }
    }

    /// Renames the damaged file to `NAME.damaged-TIME`, and gives its new path.
    pub(super) fn move_aside(&self, now: Timestamp) -> io::Result<PathBuf> {
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
        // No journal was ever written in these older formats.
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

/// A backend that leaves it to the operating system when writes reach the disk.
///
/// Every commit is written out in full, so it survives the end of the process, `kill -9` included; power loss it
/// does not. (redb's own `Durability::None` is something else: such a commit stays in the process's memory.)
#[derive(Debug)]
pub(super) struct Unsynced<B>(pub(super) B);

impl<B: StorageBackend> StorageBackend for Unsynced<B> {
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}
