//! How a backup lies in its file. `docs/reference/backup-format.md` says the same for others; change both together.
//!
//! | part | length |
//! | --- | --- |
//! | the database, a SQLite file | `database_bytes` |
//! | rows of events: a length (u32, little endian), then the row as the journal keeps it | `journal_bytes` |
//! | the manifest, JSON | the footer's first field |
//! | the footer: length of the manifest (u64), format (u32), [`MAGIC`], SHA-256 of all bytes before the sum | 56 |

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::BackupError;
use crate::{domain::time::Timestamp, store::sqlite::maintenance::newest_schema_version};

pub(super) const FORMAT: u32 = 1;
pub(super) const MAGIC: &[u8; 12] = b"tollgate-bak";
const SUM_BYTES: u64 = 32;
pub(super) const FOOTER_BYTES: u64 = 56;
/// More than any manifest: what claims to be longer is damaged.
const LARGEST_MANIFEST: u64 = 64 * 1024;
/// What is read at once.
const CHUNK: usize = 1 << 20;

/// What is in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the tollgate that wrote it.
    pub tollgate: String,
    /// The instant that it shows.
    pub made_at: Timestamp,
    pub schema_version: i64,
    pub database_bytes: u64,
    pub journal_bytes: u64,
    /// Events in the journal's part.
    pub events: u64,
    /// The journal that these come from, and its last event's place.
    pub journal: Uuid,
    pub journal_seq: u64,
}

impl Manifest {
    /// The length of the whole file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        let manifest = serde_json::to_vec(self).map_or(0, |text| text.len() as u64);
        self.database_bytes + self.journal_bytes + manifest + FOOTER_BYTES
    }
}

/// The footer without its sum.
pub(super) fn footer(manifest_bytes: u64) -> Vec<u8> {
    let mut footer = manifest_bytes.to_le_bytes().to_vec();
    footer.extend_from_slice(&FORMAT.to_le_bytes());
    footer.extend_from_slice(MAGIC);
    footer
}

/// The SHA-256 of the first `length` bytes.
pub(super) fn sum(file: &File, length: u64) -> io::Result<[u8; 32]> {
    let mut file = file;
    file.seek(SeekFrom::Start(0))?;
    let mut rest = file.take(length);
    let mut sum = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut read = 0;
    while let count @ 1.. = rest.read(&mut chunk)? {
        sum.update(&chunk[..count]);
        read += count as u64;
    }
    if read < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(sum.finalize().into())
}

/// A backup whose checksum is right, and that this version can read.
#[derive(Debug)]
pub struct OpenedBackup {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub manifest: Manifest,
}

impl OpenedBackup {
    /// Reads all of the file, and writes nothing.
    ///
    /// # Errors
    /// [`BackupError`] if it can't be read, is cut, altered, or written by a newer version.
    pub fn open(path: &Path) -> Result<Self, BackupError> {
        let unreadable = |cause| BackupError::Unreadable {
            path: path.to_owned(),
            cause,
        };
        let not_whole = |why: &str| BackupError::NotWhole {
            path: path.to_owned(),
            why: why.to_owned(),
        };
        if path.is_dir() {
            return Err(BackupError::Directory(path.to_owned()));
        }
        let mut file = File::open(path).map_err(unreadable)?;
        let length = file.metadata().map_err(unreadable)?.len();
        let Some(before_footer) = length.checked_sub(FOOTER_BYTES) else {
            return Err(not_whole("it is too short"));
        };
        let mut footer = [0; 56];
        file.seek(SeekFrom::Start(before_footer))
            .and_then(|_| file.read_exact(&mut footer))
            .map_err(unreadable)?;
        let (manifest_bytes, rest) = footer.split_at(8);
        let (format, rest) = rest.split_at(4);
        let (magic, expected) = rest.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(not_whole(
                "it does not end as one does, so it is cut off or something else",
            ));
        }
        let format = u32::from_le_bytes(format.try_into().expect("four bytes"));
        if format > FORMAT {
            return Err(BackupError::NewerFormat {
                path: path.to_owned(),
                found: format,
                known: FORMAT,
            });
        }
        let found = sum(&file, length - SUM_BYTES).map_err(unreadable)?;
        if found != expected {
            return Err(not_whole("its checksum is wrong, so it was altered"));
        }
        let manifest_bytes = u64::from_le_bytes(manifest_bytes.try_into().expect("eight bytes"));
        let manifest = read_manifest(&mut file, before_footer, manifest_bytes)
            .map_err(|why| not_whole(&why))?;
        if manifest.schema_version > newest_schema_version() {
            return Err(BackupError::NewerSchema {
                path: path.to_owned(),
                found: manifest.schema_version,
                known: newest_schema_version(),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            manifest,
        })
    }

    /// Writes the database to an empty file.
    pub(super) fn copy_database(&mut self, to: &mut File) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        let mut database = (&self.file).take(self.manifest.database_bytes);
        io::copy(&mut database, to)?;
        to.sync_all()
    }

    /// The rows of events, in order.
    pub(super) fn rows(&self) -> Result<Rows<'_>, BackupError> {
        let rows = Rows {
            path: &self.path,
            left: self.manifest.journal_bytes,
            file: BufReader::new(&self.file),
        };
        (&self.file)
            .seek(SeekFrom::Start(self.manifest.database_bytes))
            .map_err(|cause| rows.unreadable(cause))?;
        Ok(rows)
    }
}

/// Reads the rows of events one by one.
pub(super) struct Rows<'a> {
    path: &'a Path,
    left: u64,
    file: BufReader<&'a File>,
}

impl Rows<'_> {
    pub(super) fn path(&self) -> &Path {
        self.path
    }

    pub(super) fn next_row(&mut self) -> Result<Option<Vec<u8>>, BackupError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.read()
            .map(Some)
            .map_err(|cause| self.unreadable(cause))
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.file.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        self.left = self
            .left
            .checked_sub(4 + u64::from(length))
            .ok_or(io::ErrorKind::InvalidData)?;
        let mut row = vec![0; length as usize];
        self.file.read_exact(&mut row)?;
        Ok(row)
    }

    fn unreadable(&self, cause: io::Error) -> BackupError {
        BackupError::Unreadable {
            path: self.path.to_owned(),
            cause,
        }
    }
}

fn read_manifest(file: &mut File, before_footer: u64, length: u64) -> Result<Manifest, String> {
    let start = before_footer
        .checked_sub(length)
        .filter(|_| length <= LARGEST_MANIFEST)
        .ok_or("its manifest is longer than it")?;
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(start))
        .and_then(|_| file.take(length).read_to_end(&mut text))
        .map_err(|error| error.to_string())?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| format!("its manifest: {error}"))?;
    let parts = manifest.database_bytes.checked_add(manifest.journal_bytes);
    if parts != Some(start) {
        return Err("its parts are not as long as its manifest says".to_owned());
    }
    Ok(manifest)
}
