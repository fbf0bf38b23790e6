//! The clock of a running server, set wrong: `shifted_clock.c`, preloaded, and the file that says by how much.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
};

use super::faulty_disk::compile;

/// See the file's head. Each has a clock of its own.
pub(crate) struct ShiftedClock {
    directory: tempfile::TempDir,
    ahead: File,
}

impl ShiftedClock {
    pub(crate) fn ahead(seconds: i64) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        compile(
            directory.path(),
            "shifted_clock",
            include_str!("shifted_clock.c"),
        );
        let path = directory.path().join("ahead");
        fs::write(&path, [0; 8]).expect("a temporary file");
        let ahead = File::options().write(true).open(path);
        let clock = Self {
            directory,
            ahead: ahead.expect("it was just made"),
        };
        clock.set(seconds * 1_000_000);
        clock
    }

    /// So many µs ahead of what it really is, from now on.
    pub(crate) fn set(&self, ahead_micros: i64) {
        let written = self.ahead.write_all_at(&ahead_micros.to_ne_bytes(), 0);
        written.expect("the file is ours");
    }

    /// What puts a process under this clock.
    pub(crate) fn environment(&self) -> [(String, String); 2] {
        let path = |name: &str| self.directory.path().join(name).display().to_string();
        [
            ("LD_PRELOAD".to_owned(), path("shifted_clock.so")),
            ("SHIFTED_CLOCK".to_owned(), path("ahead")),
        ]
    }
}
