//! What the handles and the writer thread share: the open database, how far it goes, and whether it can be written.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
};

use redb::{Database, ReadTransaction, ReadableDatabase};
use tokio::sync::Notify;
use uuid::Uuid;

use super::{
    JournalError, JournalStatus,
    company::Company,
    tables::{self, Position, TableFault},
};
use crate::{
    domain::ids::TenantId,
    redb_file::{OpenFault, RedbFile},
    store::usage::Seq,
};

pub(super) struct Shared {
    /// `None` while it is being reopened, and after it was closed.
    database: RwLock<Option<Database>>,
    progress: Mutex<Progress>,
    availability: Mutex<Availability>,
    pub(super) company: Company,
    /// Told of each commit of events.
    pub(super) written: Notify,
    /// Told when it begins or ceases to be failing.
    pub(super) turned: Notify,
}

/// How far the journal is written and drained.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) last: Seq,
    pub(super) drained: Seq,
    /// The last seq of each tenant that has events after `drained`.
    last_of: HashMap<TenantId, Seq>,
}

enum Availability {
    Open,
    Failing(String),
    Closed,
}

impl Progress {
    pub(super) fn last_of(&self, tenant: TenantId) -> Seq {
        self.last_of.get(&tenant).copied().unwrap_or_default()
    }

    pub(super) fn pending(&self) -> u64 {
        self.last.0 - self.drained.0
    }

    /// Counts one more durable event.
    pub(super) fn push(&mut self, tenant: TenantId) -> Seq {
        self.last = Seq(self.last.0 + 1);
        self.last_of.insert(tenant, self.last);
        self.last
    }

    /// Notes a mark that is durable.
    pub(super) fn drain(&mut self, upto: Seq) {
        let upto = upto.min(self.last);
        if self.drained < upto {
            self.drained = upto;
            self.last_of.retain(|_, seq| upto < *seq);
        }
    }
}

impl Shared {
    /// Opens the file and reads where it stands.
    pub(super) fn open(file: &RedbFile) -> Result<(Self, Uuid), OpenFault> {
        let database = file.open()?;
        tables::prepare(&database)?;
        let read = database.begin_read().map_err(TableFault::from)?;
        let Position { id, last, drained } = tables::position(&read)?;
        let progress = Progress {
            last,
            drained,
            last_of: tables::survey(&read)?,
        };
        let shared = Self {
            database: RwLock::new(Some(database)),
            progress: Mutex::new(progress),
            availability: Mutex::new(Availability::Open),
            company: Company::new(),
            written: Notify::new(),
            turned: Notify::new(),
        };
        Ok((shared, id))
    }

    pub(super) fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn status(&self) -> JournalStatus {
        let detail = match &*self.availability() {
            Availability::Open => return JournalStatus::Ok,
            Availability::Failing(detail) => detail.clone(),
            Availability::Closed => JournalError::Closed.to_string(),
        };
        JournalStatus::Failing { detail }
    }

    pub(super) fn check_writable(&self) -> Result<(), JournalError> {
        match &*self.availability() {
            Availability::Open => Ok(()),
            Availability::Failing(detail) => Err(JournalError::Failing(detail.clone())),
            Availability::Closed => Err(JournalError::Closed),
        }
    }

    pub(super) fn set_failing(&self, detail: String) {
        *self.availability() = Availability::Failing(detail);
        self.turned.notify_one();
    }

    pub(super) fn set_writable(&self) {
        *self.availability() = Availability::Open;
        self.turned.notify_one();
    }

    fn availability(&self) -> MutexGuard<'_, Availability> {
        self.availability
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to read what is durable now. This keeps nothing open: reads fail once the database is closed.
    pub(super) fn begin_read(&self) -> Result<ReadTransaction, JournalError> {
        match &*self.database() {
            Some(database) => database
                .begin_read()
                .map_err(|error| JournalError::Unreadable(error.to_string())),
            None => {
                self.check_writable()?;
                Err(JournalError::Failing("it is being reopened".to_owned()))
            }
        }
    }

    pub(super) fn database(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the database, which releases the file.
    pub(super) fn close_database(&self) {
        self.replace_database(None);
    }

    pub(super) fn set_database(&self, database: Database) {
        self.replace_database(Some(database));
    }

    fn replace_database(&self, database: Option<Database>) {
        let mut slot = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *slot = database;
    }

    /// From now on every call is an error.
    pub(super) fn set_closed(&self) {
        *self.availability() = Availability::Closed;
    }
}

impl From<TableFault> for OpenFault {
    fn from(fault: TableFault) -> Self {
        let detail = fault.to_string();
        match fault {
            TableFault::Newer(_) => Self::Newer(detail),
            TableFault::Damaged(_) => Self::Damaged(detail),
            TableFault::Closed => Self::Failed(detail),
            TableFault::Redb(error) => match *error {
                redb::Error::Corrupted(_)
                | redb::Error::TableDoesNotExist(_)
                | redb::Error::TableTypeMismatch { .. }
                | redb::Error::TableIsMultimap(_)
                | redb::Error::TypeDefinitionChanged { .. } => Self::Damaged(detail),
                _ => Self::Failed(detail),
            },
        }
    }
}
