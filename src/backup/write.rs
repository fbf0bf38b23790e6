//! Writing a backup: under a temporary name, synced, then renamed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::{
    BackupError,
    format::{self, Manifest},
};
use crate::{
    clock, domain::time::Timestamp, draft::place_of, journal::Frozen, store::maintenance::StoreCopy,
};

/// What a backup is made of, all as of one instant.
pub struct Parts {
    pub database: Box<dyn StoreCopy>,
    /// `None`: there is no journal.
    pub journal: Option<Frozen>,
    pub at: Timestamp,
}

/// Writes the backup to `path`, for its owner alone, and gives what is in it. What was there is replaced, and only
/// when the new one is whole and on the disk. Goes on to its end if nobody waits for it any more.
///
/// # Errors
/// [`BackupError`]; nothing of it stays.
#[expect(
    clippy::disallowed_methods,
    reason = "reading and writing all of the data blocks; an operator's command comes here, one at a time"
)]
pub async fn write(path: PathBuf, parts: Parts) -> Result<Manifest, BackupError> {
    let target = path.clone();
    match tokio::task::spawn_blocking(move || write_now(&target, parts)).await {
        Ok(written) => written,
        Err(error) => Err(BackupError::Unwritable {
            path,
            cause: io::Error::other(error),
        }),
    }
}

fn write_now(path: &Path, parts: Parts) -> Result<Manifest, BackupError> {
    if path.is_dir() {
        return Err(BackupError::Directory(path.to_owned()));
    }
    let unwritable = |cause| BackupError::Unwritable {
        path: path.to_owned(),
        cause,
    };
    let place = place_of(path).map_err(unwritable)?;
    let temporary = Temporary::beside(&place).map_err(unwritable)?;
    let schema_version = parts.database.schema_version();
    parts.database.write_to(&temporary.path)?;

    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&temporary.path)
        .map_err(unwritable)?;
    let database_bytes = file.seek(SeekFrom::End(0)).map_err(unwritable)?;
    let mut journal_bytes = 0;
    let mut events = 0;
    if let Some(journal) = &parts.journal {
        let mut rows = BufWriter::new(&file);
        events = journal.each_row(|row| {
            journal_bytes += write_row(&mut rows, row).map_err(unwritable)?;
            Ok::<(), BackupError>(())
        })?;
        rows.flush().map_err(unwritable)?;
    }
    let manifest = Manifest {
        tollgate: env!("CARGO_PKG_VERSION").to_owned(),
        made_at: parts.at,
        schema_version,
        database_bytes,
        journal_bytes,
        events,
        journal: parts.journal.as_ref().map_or(Uuid::nil(), Frozen::id),
        journal_seq: parts.journal.as_ref().map_or(0, |journal| journal.last().0),
    };
    finish(&mut file, &manifest).map_err(unwritable)?;
    temporary.rename_to(&place).map_err(unwritable)?;
    Ok(manifest)
}

fn write_row(rows: &mut impl Write, row: &[u8]) -> io::Result<u64> {
    let length = u32::try_from(row.len()).map_err(io::Error::other)?;
    rows.write_all(&length.to_le_bytes())?;
    rows.write_all(row)?;
    Ok(4 + u64::from(length))
}

/// Manifest, footer and sum; on the disk when this returns.
fn finish(file: &mut File, manifest: &Manifest) -> io::Result<()> {
    let manifest = serde_json::to_vec(manifest)?;
    file.write_all(&manifest)?;
    file.write_all(&format::footer(manifest.len() as u64))?;
    let length = file.seek(SeekFrom::End(0))?;
    let sum = format::sum(file, length)?;
    file.seek(SeekFrom::End(0))?;
    file.write_all(&sum)?;
    file.sync_all()
}

/// A file that goes when it is not renamed.
struct Temporary {
    path: PathBuf,
    is_kept: bool,
}

impl Temporary {
    /// In the same directory, so that the renaming can't fail for another file system.
    fn beside(path: &Path) -> io::Result<Self> {
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::other("it has no file name"))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".partial-{}", clock::new_id().simple()));
        let temporary = path.with_file_name(hidden);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        Ok(Self {
            path: temporary,
            is_kept: false,
        })
    }

    fn rename_to(mut self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        self.is_kept = true;
        sync_directory_of(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// So that power loss does not undo what happened to the file's name.
pub(super) fn sync_directory_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}
