//! The journal's file: how much of it is held in memory, and what a durable write is.

use std::{io, ops::Bound, path::Path, sync::Arc};

use redb::{BackendError, StorageBackend};

use super::Durability;
use crate::redb_file::{self, Opener, RedbFile};

/// Rows are written once and read once, by the drainer, soon after: redb fills whatever it gets, and its default is
/// 1 GiB.
const CACHE_BYTES: usize = 4 << 20;

pub(super) fn journal_file(path: &Path, opener: Opener) -> RedbFile {
    RedbFile::new(path, CACHE_BYTES, opener)
}

pub(super) fn opener(durability: Durability) -> Opener {
    match durability {
        Durability::Full => redb_file::on_disk(),
        Durability::Process => {
            Arc::new(|builder, file| builder.create_with_backend(Unsynced(file)))
        }
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
