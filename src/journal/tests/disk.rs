//! A disk that fails when told to, and remembers what was done to it.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use redb::{StorageBackend, backends::FileBackend};

use super::super::{
    Durability,
    file::{Opener, Unsynced},
};

/// One change of the disk.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write { offset: u64, data: Vec<u8> },
    SetLen(u64),
    Sync,
}

/// Which changes fail: those after the next `good`, `bad` of them.
#[derive(Debug)]
struct Faults {
    good: u64,
    bad: u64,
}

/// Stands beside the disk and tells it what to do.
#[derive(Debug, Default)]
pub(super) struct Watch {
    faults: Mutex<Option<Faults>>,
    changes: Mutex<Vec<Change>>,
    syncs: AtomicU64,
}

impl Watch {
    pub(super) fn opener(self: &Arc<Self>, durability: Durability) -> Opener {
        let watch = Arc::clone(self);
        Arc::new(move |builder, file| {
            let disk = Disk {
                file,
                watch: Arc::clone(&watch),
            };
            match durability {
                Durability::Full => builder.create_with_backend(disk),
                Durability::Process => builder.create_with_backend(Unsynced(disk)),
            }
        })
    }

    pub(super) fn fail(&self, good: u64, bad: u64) {
        *self.faults.lock().unwrap() = Some(Faults { good, bad });
    }

    pub(super) fn heal(&self) {
        *self.faults.lock().unwrap() = None;
    }

    /// Whether all the faults have happened.
    pub(super) fn is_healed(&self) -> bool {
        self.faults.lock().unwrap().is_none()
    }

    pub(super) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::SeqCst)
    }

    pub(super) fn changes(&self) -> Vec<Change> {
        self.changes.lock().unwrap().clone()
    }

    pub(super) fn change_count(&self) -> usize {
        self.changes.lock().unwrap().len()
    }

    fn check(&self) -> io::Result<()> {
        let mut faults = self.faults.lock().unwrap();
        match &mut *faults {
            None => Ok(()),
            Some(Faults { good: 0, bad: 0 }) => {
                *faults = None;
                Ok(())
            }
            Some(Faults { good: 0, bad }) => {
                *bad -= 1;
                Err(io::Error::other("the disk fails"))
            }
            Some(Faults { good, .. }) => {
                *good -= 1;
                Ok(())
            }
        }
    }

    fn note(&self, change: Change) {
        self.changes.lock().unwrap().push(change);
    }
}

/// The file takes no locks: these tests open copies side by side.
#[derive(Debug)]
struct Disk {
    file: FileBackend,
    watch: Arc<Watch>,
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.watch.check()?;
        self.watch.note(Change::SetLen(len));
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        // Whether the real disk would take it changes nothing here, only the time it takes.
        self.watch.check()?;
        self.watch.note(Change::Sync);
        self.watch.syncs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if let Err(error) = self.watch.check() {
            // A failing disk may have taken a part.
            self.file.write(offset, &data[..data.len() / 2])?;
            return Err(error);
        }
        self.watch.note(Change::Write {
            offset,
            data: data.to_vec(),
        });
        self.file.write(offset, data)
    }
}
