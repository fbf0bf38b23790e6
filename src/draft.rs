//! Files that appear whole: written under a name of their own, then given the one that was asked.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

/// Where a file of this name is or will be: a link stays one, and this is what it points to.
///
/// # Errors
/// It is a device, a pipe or a socket, or one of a process's open files, which nothing may take the place of; or it
/// can't be looked at.
pub(crate) fn place_of(path: &Path) -> io::Result<PathBuf> {
    if ["/dev", "/proc"]
        .iter()
        .any(|of_kernel| path.starts_with(of_kernel))
    {
        return Err(no_file());
    }
    match fs::metadata(path) {
        Ok(found) if found.is_file() => fs::canonicalize(path),
        Ok(found) if !found.is_dir() => Err(no_file()),
        Ok(_) => Ok(path.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(match fs::read_link(path) {
            Ok(to) => directory_of(path).join(to),
            Err(_) => path.to_owned(),
        }),
        Err(error) => Err(error),
    }
}

fn no_file() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "it is a device or a pipe; name a file",
    )
}

/// A file that is not in its place yet, and goes if it never is.
#[derive(Debug)]
pub(crate) struct Draft {
    file: NamedTempFile,
    place: PathBuf,
}

impl Draft {
    /// For `path`, in the same directory; `mode` is that of a new file, less what the process's mask takes away.
    ///
    /// # Errors
    /// It can't be written there.
    pub(crate) fn of(path: &Path, mode: u32) -> io::Result<Self> {
        let place = place_of(path)?;
        let file = tempfile::Builder::new()
            .prefix(".tollgate-")
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(directory_of(&place))?;
        Ok(Self { file, place })
    }

    /// Gives up the name: what is written goes with the last handle.
    pub(crate) fn into_file(self) -> File {
        self.file.into_file()
    }

    /// What was written is on the disk when this returns, under that name.
    ///
    /// # Errors
    /// What is in its place is as it was.
    pub(crate) fn take_its_place(self) -> io::Result<()> {
        self.file.as_file().sync_all()?;
        self.file
            .persist(&self.place)
            .map_err(|error| error.error)?;
        File::open(directory_of(&self.place))?.sync_all()
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
    use std::os::unix::fs::{FileTypeExt as _, symlink};

    use super::*;

    fn put(path: &Path, text: &str) {
        let mut draft = Draft::of(path, 0o600).unwrap();
        draft.write_all(text.as_bytes()).unwrap();
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
    fn what_is_no_file_is_refused_and_stays_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        for path in [
            pipe.as_path(),
            Path::new("/dev/null"),
            Path::new("/dev/stdout"),
        ] {
            let refused = Draft::of(path, 0o600).unwrap_err().to_string();
            assert!(refused.contains("name a file"), "{refused}");
        }
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    }
}
