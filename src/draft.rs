//! Files that appear whole: written under a name of their own, then given the one that was asked.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Seek as _, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

/// Where a draft goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A file, there or not. A link stays one: this is what it points to.
    File(PathBuf),
    /// A device, pipe or socket, which stays what it is and is written to.
    Stream(PathBuf),
}

impl Place {
    /// # Errors
    /// What is there can't be looked at.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        match fs::metadata(path) {
            Ok(found) if found.is_file() => fs::canonicalize(path).map(Self::File),
            Ok(found) if !found.is_dir() => Ok(Self::Stream(path.to_owned())),
            Ok(_) => Ok(Self::File(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::File(
                fs::read_link(path)
                    .map_or_else(|_| path.to_owned(), |to| directory_of(path).join(to)),
            )),
            Err(error) => Err(error),
        }
    }
}

/// A file that is not in its place yet, and goes if it never is.
#[derive(Debug)]
pub(crate) struct Draft {
    file: NamedTempFile,
    place: Place,
}

impl Draft {
    /// For `path`, in the same directory; `mode` is that of a new file, less what the process's mask takes away.
    ///
    /// # Errors
    /// It can't be written there.
    pub(crate) fn of(path: &Path, mode: u32) -> io::Result<Self> {
        let place = Place::of(path)?;
        let mut builder = tempfile::Builder::new();
        builder
            .prefix(".tollgate-")
            .permissions(Permissions::from_mode(mode));
        let file = match &place {
            Place::File(path) => builder.tempfile_in(directory_of(path))?,
            Place::Stream(_) => builder.tempfile()?,
        };
        Ok(Self { file, place })
    }

    /// Gives up the name: what is written goes with the last handle.
    pub(crate) fn into_file(self) -> File {
        self.file.into_file()
    }

    /// The name survives power loss; so does what was written, if it was synced before.
    ///
    /// # Errors
    /// What is in its place is as it was, unless it is a stream.
    pub(crate) fn take_its_place(self) -> io::Result<()> {
        match self.place {
            Place::File(path) => {
                self.file.persist(&path).map_err(|error| error.error)?;
                File::open(directory_of(&path))?.sync_all()
            }
            Place::Stream(path) => {
                let mut written = self.file.into_file();
                written.rewind()?;
                let mut stream = OpenOptions::new().write(true).open(path)?;
                io::copy(&mut written, &mut stream).map(drop)
            }
        }
    }

    /// # Errors
    /// It is not on the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.as_file().sync_all()
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        os::unix::fs::{FileTypeExt as _, symlink},
    };

    use super::*;

    fn put(path: &Path, text: &str) {
        let mut draft = Draft::of(path, 0o600).unwrap();
        draft.write_all(text.as_bytes()).unwrap();
        draft.sync().unwrap();
        draft.take_its_place().unwrap();
    }

    #[test]
    fn a_file_is_replaced_and_a_link_stays_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("there"), "old").unwrap();
        symlink("there", at("link")).unwrap();
        symlink("missing", at("dangling")).unwrap();
        for (name, read_at) in [
            ("new", "new"),
            ("there", "there"),
            ("link", "there"),
            ("dangling", "missing"),
        ] {
            put(&at(name), name);
            assert_eq!(fs::read_to_string(at(read_at)).unwrap(), name);
        }
        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            5,
            "no drafts"
        );
    }

    #[test]
    fn a_draft_that_is_dropped_leaves_all_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("there");
        fs::write(&path, "old").unwrap();
        let mut draft = Draft::of(&path, 0o600).unwrap();
        draft.write_all(b"half").unwrap();
        drop(draft);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_pipe_stays_one_and_gets_all_that_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let reading = std::thread::spawn({
            let path = path.clone();
            move || {
                let mut text = String::new();
                File::open(path).unwrap().read_to_string(&mut text).unwrap();
                text
            }
        });
        put(&path, "through the pipe");
        assert_eq!(reading.join().unwrap(), "through the pipe");
        assert!(fs::metadata(&path).unwrap().file_type().is_fifo());
    }
}
