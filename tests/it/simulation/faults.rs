//! A disk that loses its power after so many writes, and a store that goes away: what a crash leaves is what had been
//! written until then, never what memory knew.

use std::{
    io,
    ops::Bound,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use redb::{BackendError, DatabaseError, StorageBackend, StorageError, backends::FileBackend};
use tollgate::{
    journal::Opener,
    store::sqlite::{Faults, Moment},
};

/// How the store fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoreState {
    Up,
    Away,
    /// The next batch of usage meets this, once.
    FailsNextRecord(Moment),
    /// The same, and with it everything ends.
    DiesAtNextRecord(Moment),
}

/// The power of one life of the process: once it is cut, nothing is written any more, by nobody.
pub(super) struct Power {
    is_cut: AtomicBool,
    /// Writes of the journal until it is cut by itself.
    writes_left: AtomicI64,
    store: Mutex<StoreState>,
}

impl Power {
    pub(super) fn on() -> Arc<Self> {
        Arc::new(Self {
            is_cut: AtomicBool::new(false),
            writes_left: AtomicI64::new(i64::MAX),
            store: Mutex::new(StoreState::Up),
        })
    }

    pub(super) fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::SeqCst)
    }

    pub(super) fn cut_after(&self, journal_writes: i64) {
        self.writes_left.store(journal_writes, Ordering::SeqCst);
    }

    pub(super) fn set_store(&self, state: StoreState) {
        *self.store.lock().unwrap() = state;
    }

    pub(super) fn opener(self: &Arc<Self>) -> Opener {
        let power = Arc::clone(self);
        Arc::new(move |builder, file| {
            power
                .check()
                .map_err(|error| DatabaseError::Storage(StorageError::Io(error)))?;
            let power = Arc::clone(&power);
            builder.create_with_backend(Disk { file, power })
        })
    }

    pub(super) fn store_faults(self: &Arc<Self>) -> Faults {
        let power = Arc::clone(self);
        Arc::new(move |name, moment| power.strike_store(name, moment))
    }

    fn strike_store(&self, name: &str, moment: Moment) -> Result<(), String> {
        self.check().map_err(|error| error.to_string())?;
        let mut state = self.store.lock().unwrap();
        let is_due = |at| name == "usage.record" && moment == at;
        match *state {
            StoreState::Away if moment == Moment::Before => Err("it is away".to_owned()),
            StoreState::FailsNextRecord(at) if is_due(at) => {
                *state = StoreState::Up;
                Err("it fails once".to_owned())
            }
            StoreState::DiesAtNextRecord(at) if is_due(at) => {
                self.cut();
                Err("the power is cut".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn check(&self) -> io::Result<()> {
        match self.is_cut() {
            true => Err(io::Error::other("the power is cut")),
            false => Ok(()),
        }
    }

    fn write(&self) -> io::Result<()> {
        self.check()?;
        if self.writes_left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            self.cut();
        }
        self.check()
    }
}

/// Every write goes to the operating system at once: what was written before the cut survives the process, as with
/// `process` durability.
#[derive(Debug)]
struct Disk {
    file: FileBackend,
    power: Arc<Power>,
}

impl std::fmt::Debug for Power {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Power")
            .field("is_cut", &self.is_cut())
            .finish_non_exhaustive()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.power.write()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.power.check()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.power.write()?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
