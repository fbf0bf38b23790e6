//! How a command reaches a running server: one JSON line each way through a Unix socket in the data dir.
//!
//! The server parses the command's own words with the command line's own parser and runs it against its own parts,
//! so that a command does the same beside a server as without one.

pub mod client;
pub mod server;

use std::{
    fs::File,
    io,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::{
    billing::stripe::Stripe,
    cli::output::Output,
    clock::Clock,
    services::{
        UsageOperations, administrators::Administrators, notices::Notices, operation::Operation,
        prices::Prices,
    },
    store::SharedStore,
};

pub use client::{Asked, ask, is_served};
pub use server::{bind, serve};

pub(crate) const SOCKET_FILE: &str = "tollgate.sock";
/// More than any command line (Linux allows 128 KiB for one argument) and any file that travels with one.
const LARGEST_REQUEST: u64 = 16 * 1024 * 1024;
/// For the words of a command to arrive.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// For a command to run: a backup or a report of millions of rows ends well within.
const COMMAND_TIME: Duration = Duration::from_secs(600);

/// What commands run against: the same parts beside a server and without one.
#[derive(Clone)]
pub struct Backend {
    pub data_dir: PathBuf,
    pub store: SharedStore,
    pub clock: Clock,
    pub administrators: Administrators,
    pub usage: Option<Arc<dyn UsageOperations>>,
    pub prices: Option<Arc<Prices>>,
    /// `None` if no notices are wanted.
    pub notices: Option<Arc<Notices>>,
    /// `None` if Stripe is off.
    pub stripe: Option<Arc<Stripe>>,
    pub operation: Arc<dyn Operation>,
    /// Where the command was typed: the paths that it names are relative to this.
    pub directory: PathBuf,
    /// Told after each command, so that what it changed holds before it answers.
    pub refresh: Option<Arc<dyn Refresh>>,
}

/// Something that keeps copies of the catalogue.
pub trait Refresh: Send + Sync {
    /// Drops what the store has changed since; returns when that holds for the next request.
    fn refresh(&self) -> BoxFuture<'_, ()>;
}

/// A command as it was typed: its words, and what they mean where they were typed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Typed {
    /// Without the program's name.
    pub argv: Vec<String>,
    /// The working directory: relative paths among the words start here.
    #[serde(default)]
    pub directory: PathBuf,
    /// The file that the words name, read where they were typed: a server may not see it, or may not read it.
    #[serde(default)]
    pub input: Option<Input>,
}

/// A file that travels with a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// As messages name it.
    pub path: String,
    pub text: String,
}

/// How far a long command has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub done: u64,
    /// 0 while it is not known.
    pub total: u64,
}

/// Told of each step; called often, and must not block.
pub type Progress = Arc<dyn Fn(Step) + Send + Sync>;

/// What a client sends.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// The client's version: words may mean something else to another.
    pub version: String,
    #[serde(flatten)]
    pub typed: Typed,
}

/// What became of a command, or becomes of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// It goes on; another reply follows.
    Progress(Step),
    Ok(Output),
    Error(Failure),
}

/// A command that failed: one line for people, and the exit code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub message: String,
    pub exit_code: u8,
}

/// An address of the socket that is short however deep the data dir is.
///
/// A socket's path may have 107 bytes (`unix(7)`), so it is named through the directory's descriptor; the address
/// is good as long as the value lives. Without `/proc` (an empty root) it is named by its path.
struct SocketAddress {
    /// Held open: the path goes through it.
    _directory: File,
    path: PathBuf,
}

impl SocketAddress {
    fn of(data_dir: &Path) -> io::Result<Self> {
        let directory = File::open(data_dir)?;
        let by_descriptor = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        let base = if by_descriptor.exists() {
            by_descriptor
        } else {
            data_dir.to_owned()
        };
        Ok(Self {
            _directory: directory,
            path: base.join(SOCKET_FILE),
        })
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests;
