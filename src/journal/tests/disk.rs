//! A disk in memory. It remembers what was done to it, fails when told to, and forgets what it was never told to sync.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use redb::{DatabaseError, StorageBackend, backends::FileBackend};

use super::super::{Durability, file::Unsynced};
use crate::redb_file::Opener;

/// One change of the disk.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write { offset: usize, data: Vec<u8> },
    SetLen(usize),
    Sync,
}

impl Change {
    pub(super) fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Sync => {}
            Self::SetLen(len) => bytes.resize(*len, 0),
            Self::Write { offset, data } => {
                let end = offset + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset..end].copy_from_slice(data);
            }
        }
    }
}

/// Which call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// A write, a sync or a change of the length.
    Change,
    Write,
    Sync,
    Read,
    Open,
}

/// How it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// EIO. A failed sync loses what it should have written, as Linux does: the pages are dropped, and the next sync
    /// knows nothing of them.
    Broken,
    /// ENOSPC.
    Full,
    /// A write that ends in the middle.
    Short,
}

/// After the next `good` calls, `bad` of them fail; the next fault waits until this one is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) call: Call,
    pub(crate) how: How,
    pub(crate) good: u64,
    pub(crate) bad: u64,
}

impl Fault {
    pub(super) fn for_ever(good: u64) -> Self {
        Self {
            call: Call::Change,
            how: How::Broken,
            good,
            bad: u64::MAX,
        }
    }
}

/// A handle of the disk; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// What a read sees.
    bytes: Vec<u8>,
    /// What power loss leaves for sure.
    synced: Vec<u8>,
    /// From `synced` to `bytes`.
    unsynced: Vec<Change>,
    changes: Vec<Change>,
    faults: VecDeque<Fault>,
    was_opened: bool,
}

impl Disk {
    /// A disk after a restart: whatever is on it is synced.
    pub(super) fn holding(bytes: Vec<u8>) -> Self {
        let disk = Self::default();
        {
            let mut state = disk.lock();
            state.synced.clone_from(&bytes);
            state.bytes = bytes;
        }
        disk
    }

    /// It takes no locks: tests open what a crash would leave beside the journal that is still open.
    pub(crate) fn opener(&self, durability: Durability) -> Opener {
        let disk = self.clone();
        Arc::new(move |builder, file| {
            let opened = disk.lock().open(&file);
            opened.map_err(|error| DatabaseError::Storage(error.into()))?;
            match durability {
                Durability::Full => builder.create_with_backend(disk.clone()),
                Durability::Process => builder.create_with_backend(Unsynced(disk.clone())),
            }
        })
    }

    pub(crate) fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults = faults.into_iter().collect();
    }

    pub(crate) fn heal(&self) {
        self.fail([]);
    }

    /// Whether all the faults have happened.
    pub(super) fn is_healed(&self) -> bool {
        self.lock().faults.is_empty()
    }

    /// What a restart finds after power loss that took all it could.
    pub(super) fn synced(&self) -> Vec<u8> {
        self.lock().synced.clone()
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    pub(super) fn replace(&self, bytes: Vec<u8>) {
        self.lock().bytes = bytes;
    }

    pub(super) fn changes(&self) -> Vec<Change> {
        self.lock().changes.clone()
    }

    pub(super) fn change_count(&self) -> usize {
        self.lock().changes.len()
    }

    pub(super) fn sync_count(&self) -> usize {
        let is_sync = |change: &&Change| matches!(change, Change::Sync);
        self.lock().changes.iter().filter(is_sync).count()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    /// `file` is the one that the journal opened; nothing but its length is used.
    fn open(&mut self, file: &FileBackend) -> io::Result<()> {
        self.check(Call::Open).map_err(|(_, error)| error)?;
        if self.was_opened && file.len()? == 0 {
            // The journal has moved its file aside and made another: so does the disk.
            self.change(Change::SetLen(0));
        }
        self.was_opened = true;
        file.set_len(1)
    }

    /// # Errors
    /// How this call is to fail.
    fn check(&mut self, call: Call) -> Result<(), (How, io::Error)> {
        let Some(fault) = self.faults.front_mut() else {
            return Ok(());
        };
        let is_change = matches!(call, Call::Write | Call::Sync | Call::Change);
        if fault.call != call && !(fault.call == Call::Change && is_change) {
            return Ok(());
        }
        if fault.good > 0 {
            fault.good -= 1;
            return Ok(());
        }
        fault.bad -= 1;
        let how = fault.how;
        if fault.bad == 0 {
            self.faults.pop_front();
        }
        let code = match how {
            How::Broken => rustix::io::Errno::IO,
            How::Full | How::Short => rustix::io::Errno::NOSPC,
        };
        Err((how, code.into()))
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.bytes);
        self.unsynced.push(change.clone());
        self.changes.push(change);
    }

    fn write(&mut self, offset: usize, data: &[u8]) -> io::Result<()> {
        let checked = self.check(Call::Write);
        let written = match &checked {
            Ok(()) => data.len(),
            Err((How::Broken | How::Full, _)) => 0,
            Err((How::Short, _)) => data.len() / 2,
        };
        if written > 0 {
            let data = data[..written].to_vec();
            self.change(Change::Write { offset, data });
        }
        checked.map_err(|(_, error)| error)
    }

    fn sync(&mut self) -> io::Result<()> {
        match self.check(Call::Sync) {
            Ok(()) => {
                for change in self.unsynced.drain(..) {
                    change.apply(&mut self.synced);
                }
                self.changes.push(Change::Sync);
                Ok(())
            }
            Err((How::Broken, error)) => {
                self.unsynced.clear();
                self.bytes.clone_from(&self.synced);
                Err(error)
            }
            Err((How::Full | How::Short, error)) => Err(error),
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(u64::try_from(self.lock().bytes.len()).unwrap())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.lock();
        state.check(Call::Read).map_err(|(_, error)| error)?;
        let begin = usize::try_from(offset).unwrap();
        let found = state.bytes.get(begin..begin + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.check(Call::Change).map_err(|(_, error)| error)?;
        state.change(Change::SetLen(usize::try_from(len).unwrap()));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.lock().sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        state.write(usize::try_from(offset).unwrap(), data)
    }
}
