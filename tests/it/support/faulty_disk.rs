//! The disk of a running server, made to fail: `faulty_disk.c`, preloaded, and the control file that arms it.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use super::gate::Serve;

const SOURCE: &str = include_str!("faulty_disk.c");

/// The calls that fail, as bits: `CALL_…` in `faulty_disk.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Calls(u64);

impl Calls {
    pub(crate) const OPEN: Self = Self(1);
    pub(crate) const WRITE: Self = Self(2);
    pub(crate) const SYNC: Self = Self(4);
    pub(crate) const ALL: Self = Self(15);
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// EIO.
    Broken,
    /// ENOSPC.
    Full,
    /// Half of what is to be written is written, and the call says so.
    Short,
}

/// Of the calls on files whose path contains `path`, `good` more work and then `bad` fail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) path: &'static str,
    pub(crate) calls: Calls,
    pub(crate) how: How,
    pub(crate) good: u64,
    pub(crate) bad: u64,
}

/// Makes `NAME.so` in a directory, to be preloaded.
pub(super) fn compile(directory: &Path, name: &str, source: &str) {
    let file = directory.join(name).with_extension("c");
    fs::write(&file, source).expect("a temporary file");
    let compiled = Command::new("cc")
        .args(["-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-o"])
        .args([file.with_extension("so"), file])
        .output()
        .expect("the tests need a C compiler, cc (make deps)");
    let errors = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "{errors}");
}

/// See the file's head. One server at a time may have it.
pub(crate) struct FaultyDisk {
    directory: tempfile::TempDir,
    control: File,
}

impl FaultyDisk {
    pub(crate) fn build() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        compile(directory.path(), "faulty_disk", SOURCE);
        let control = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(directory.path().join("control"))
            .expect("a temporary file");
        control.set_len(CONTROL_BYTES).expect("a temporary file");
        Self { directory, control }
    }

    /// Lets the server work on this disk.
    pub(crate) fn under(&self, serve: Serve) -> Serve {
        let path = |name: &str| -> PathBuf { self.directory.path().join(name) };
        serve
            .set(
                "LD_PRELOAD",
                path("faulty_disk.so").to_str().expect("ASCII"),
            )
            .set("FAULTY_DISK", path("control").to_str().expect("ASCII"))
    }

    pub(crate) fn arm(&self, fault: Fault) {
        self.heal();
        let error = match fault.how {
            How::Broken => rustix::io::Errno::IO.raw_os_error(),
            How::Full => rustix::io::Errno::NOSPC.raw_os_error(),
            How::Short => 0,
        };
        let error = u64::try_from(error).expect("errors are positive");
        for (place, number) in [
            (GOOD, fault.good),
            (BAD, fault.bad),
            (ERROR, error),
            (FAILED, 0),
        ] {
            self.set(place, number);
        }
        let mut path = fault.path.as_bytes().to_vec();
        path.push(0);
        self.control
            .write_all_at(&path, PATH)
            .expect("the file is ours");
        // Last: from here on it counts.
        self.set(CALLS, fault.calls.0);
    }

    /// Every call works from now on.
    pub(crate) fn heal(&self) {
        self.set(CALLS, 0);
    }

    /// How many calls have failed since it was armed.
    pub(crate) fn failed(&self) -> u64 {
        let mut bytes = [0; 8];
        let read = self.control.read_exact_at(&mut bytes, FAILED);
        read.expect("the file is ours");
        u64::from_ne_bytes(bytes)
    }

    fn set(&self, place: u64, number: u64) {
        let written = self.control.write_all_at(&number.to_ne_bytes(), place);
        written.expect("the file is ours");
    }
}

// Where each number of `struct control` lies in the file.
const CALLS: u64 = 0;
const GOOD: u64 = 8;
const BAD: u64 = 16;
const ERROR: u64 = 24;
const FAILED: u64 = 32;
const PATH: u64 = 40;
const CONTROL_BYTES: u64 = 256;
