//! Bringing a backup back into a data dir that nobody uses.
//!
//! Everything is built in a directory of its own first, and moved into place by renaming. The journal is not
//! restored as a file: its events are recorded in the database, and the next start begins a new journal whose totals
//! are the database's.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::{BackupError, format::OpenedBackup, write::sync_directory_of};
use crate::{
    app::data_dir::{self, DataDir},
    domain::time::Timestamp,
    journal::read_row,
    store::{
        sqlite::{SqliteStore, maintenance::files_of},
        stripe::{StripeStore as _, Which},
        usage::{JournalPosition, Recorded, Seq, Tell, UsageStore as _},
    },
};

/// Where what is replaced goes, in the data dir; the time is added.
const ASIDE: &str = "replaced-";
const STAGING: &str = "restoring";

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Events of the backup's journal that were not in its database.
    pub events_added: u64,
    /// Where what was there before is now; `None` if there was nothing.
    pub moved_to: Option<PathBuf>,
}

/// What a restore would replace: the data dir's contents, and the database where it lies elsewhere.
///
/// # Errors
/// If a directory is there and can't be read.
pub fn in_the_way(data_dir: &Path, database: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let lock = data_dir::database_lock_path(database);
    let lock_name = lock.file_name().unwrap_or_default();
    match fs::read_dir(data_dir) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry?;
                let is_lock = entry.file_name() == lock_name;
                if !is_lock && !stays(&entry.file_name().to_string_lossy()) {
                    found.push(entry.path());
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let is_elsewhere = !is_in(database, data_dir);
    found.extend(
        files_of(database)
            .into_iter()
            .filter(|file| is_elsewhere && file.exists()),
    );
    found.sort();
    found.dedup();
    Ok(found)
}

/// Both may be relative, and the directory a link.
fn is_in(file: &Path, directory: &Path) -> bool {
    let parent = file.parent().unwrap_or(Path::new(""));
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    parent == directory || real(parent) == real(directory)
}

/// What holds nothing of a server's state: its lock and socket, and what earlier restores have left.
fn stays(name: &str) -> bool {
    data_dir::is_of_process(name) || name.starts_with(ASIDE) || name == STAGING
}

/// Puts the backup in the place of what is in `data_dir`, which the caller holds, and at `database`.
///
/// # Errors
/// [`BackupError`]; what was there is still there.
pub async fn restore(
    mut backup: OpenedBackup,
    data_dir: &DataDir,
    database: &Path,
    now: Timestamp,
) -> Result<Restored, BackupError> {
    let unwritable = |path: &Path| {
        let path = path.to_owned();
        move |cause| BackupError::Unwritable { path, cause }
    };
    let staging = data_dir.path().join(STAGING);
    begin_staging(&staging).map_err(unwritable(&staging))?;
    let staged = staging.join("tollgate.db");
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&staged)
        .map_err(unwritable(&staged))?;
    backup
        .copy_database(&mut file)
        .map_err(unwritable(&staged))?;
    drop(file);
    let added = record_events(&mut backup, &staged).await?;

    refuse_log(&staged).map_err(unwritable(&staged))?;

    let moved_to =
        move_aside(data_dir.path(), database, now).map_err(unwritable(data_dir.path()))?;
    // The database may lie on another file system than the data dir.
    rename_or_copy(&staged, database).map_err(unwritable(database))?;
    fs::remove_dir_all(&staging).map_err(unwritable(&staging))?;
    sync_directory_of(&staging).map_err(unwritable(data_dir.path()))?;
    for path in moved_to.iter().map(PathBuf::as_path).chain([database]) {
        give_to_owner_of(data_dir.path(), path).map_err(unwritable(path))?;
    }
    Ok(Restored {
        events_added: added,
        moved_to,
    })
}

/// What an interrupted restore has left is no use to this one.
fn begin_staging(staging: &Path) -> io::Result<()> {
    match fs::remove_dir_all(staging) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::DirBuilder::new().mode(0o700).create(staging)
}

/// Brings the staged database's schema up to date and records what had not arrived there.
async fn record_events(backup: &mut OpenedBackup, staged: &Path) -> Result<u64, BackupError> {
    let store = SqliteStore::open(staged)?;
    let position = JournalPosition {
        journal: backup.manifest.journal,
        seq: Seq(backup.manifest.journal_seq),
    };
    let mut added = 0;
    let mut rows = backup.rows()?;
    while let Some(row) = rows.next_row()? {
        let events = read_row(&row).map_err(|why| BackupError::NotWhole {
            path: rows.path().to_owned(),
            why: format!("its events can't be read: {why}"),
        })?;
        let batch = events.into_iter().collect();
        let Recorded { inserted, .. } = store.record(batch, position, Tell::default()).await?;
        added += inserted;
    }
    doubt_what_stripe_is_to_be_told(&store, backup.manifest.made_at).await?;
    Ok(added)
}

/// Stripe may have been told since the backup of what is to be told in it. What waits becomes the entries that it became
/// then, with the same identifiers, and of what Stripe may have forgotten its sums decide.
async fn doubt_what_stripe_is_to_be_told(
    store: &SqliteStore,
    made_at: Timestamp,
) -> Result<(), BackupError> {
    const SLOTS: usize = 10_000;
    while store
        .hand_on(Which::All, made_at, made_at, SLOTS)
        .await?
        .is_more
    {}
    store.doubt_pending().await?;
    Ok(())
}

/// The staged file must be all of the database when it is moved.
fn refuse_log(staged: &Path) -> io::Result<()> {
    // What SQLite shares in memory (`-shm`) may linger while a reader closes; it holds nothing.
    let [_, log, _, journal] = files_of(staged);
    let has_log = |file: &PathBuf| fs::metadata(file).is_ok_and(|metadata| metadata.len() > 0);
    match [log, journal].iter().find(|file| has_log(file)) {
        Some(log) => Err(io::Error::other(format!(
            "{} was left behind",
            log.display()
        ))),
        None => Ok(()),
    }
}

/// Moves what is in the way to a directory of its own in the data dir; a database that lies elsewhere stays in its
/// directory, under a new name.
fn move_aside(data_dir: &Path, database: &Path, now: Timestamp) -> io::Result<Option<PathBuf>> {
    let found = in_the_way(data_dir, database)?;
    if found.is_empty() {
        return Ok(None);
    }
    let time = now.to_whole_second().to_string().replace(['-', ':'], "");
    let aside = unused(&data_dir.join(format!("{ASIDE}{time}")));
    fs::DirBuilder::new().mode(0o700).create(&aside)?;
    for path in found {
        let name = path.file_name().unwrap_or_default();
        let target = if is_in(&path, data_dir) {
            aside.join(name)
        } else {
            let mut renamed = name.to_owned();
            renamed.push(format!(".{ASIDE}{time}"));
            unused(&path.with_file_name(renamed))
        };
        fs::rename(&path, target)?;
        sync_directory_of(&path)?;
    }
    Ok(Some(aside))
}

/// Whoever restores as root does so for the user that the server runs as.
fn give_to_owner_of(data_dir: &Path, path: &Path) -> io::Result<()> {
    let owner = |path: &Path| fs::metadata(path).map(|it| (it.uid(), it.gid()));
    let (uid, gid) = owner(data_dir)?;
    if owner(path)? == (uid, gid) {
        return Ok(());
    }
    std::os::unix::fs::chown(path, Some(uid), Some(gid))
}

fn unused(path: &Path) -> PathBuf {
    let numbered = |number| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("-{number}"));
        PathBuf::from(name)
    };
    std::iter::once(path.to_owned())
        .chain((2..).map(numbered))
        .find(|path| !path.exists())
        .expect("numbers do not end")
}

fn rename_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            fs::copy(from, to)?;
            fs::File::open(to)?.sync_all()?;
        }
        renamed => renamed?,
    }
    sync_directory_of(to)
}
