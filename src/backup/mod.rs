//! The one file that `tollgate backup` writes and `tollgate restore` reads (docs/reference/backup-format.md): the
//! database as it was at one instant, the journal's events that had not arrived there, and a checksum over all.

mod format;
mod restore;
mod write;

use std::{io, path::PathBuf};

pub use format::{Manifest, OpenedBackup};
pub use restore::{Restored, in_the_way, restore};
pub use write::{Parts, write};

use crate::{journal::JournalError, store::StoreError};

/// Why a backup could not be made or read; each is one line for people.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{} can't be written: {cause}", path.display())]
    Unwritable { path: PathBuf, cause: io::Error },
    #[error("{} can't be read: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
    #[error("{} is a directory; name a file in it", .0.display())]
    Directory(PathBuf),
    /// Another kind of file, or the end of one is missing.
    #[error("{} is no whole backup: {why}; nothing was written", path.display())]
    NotWhole { path: PathBuf, why: String },
    #[error(
        "{} has backup format {found}, and this tollgate reads up to {known}; use the tollgate that wrote it, or a newer one",
        path.display()
    )]
    NewerFormat {
        path: PathBuf,
        found: u32,
        known: u32,
    },
    #[error(
        "{} holds schema version {found}, newer than {known}, the newest that this tollgate knows; use the tollgate that wrote it, or a newer one",
        path.display()
    )]
    NewerSchema {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    /// The store has tools of its own.
    #[error("{0}")]
    NotHere(&'static str),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Journal(#[from] JournalError),
}
