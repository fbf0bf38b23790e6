//! The command's side.

use std::{io, path::Path};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    time::timeout,
};

use super::{COMMAND_TIME, Failure, Progress, REQUEST_TIME, Reply, Request, SocketAddress, Typed};
use crate::cli::output::Output;

/// What came of asking.
#[derive(Debug)]
pub enum Asked {
    /// No server runs on the data dir, or none that listens yet.
    NoServer,
    Answered(Result<Output, Failure>),
}

/// Why a server that is there could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("can't reach the server on data dir {data_dir}: {cause}")]
    Unreachable { data_dir: String, cause: io::Error },
    #[error("the server on data dir {0} ended the connection without an answer; its log says why")]
    NoAnswer(String),
    #[error(
        "the server on data dir {0} did not answer in time; the command may still be running there"
    )]
    TooSlow(String),
}

/// Has the server on `data_dir`, if one runs, run the command; `progress` hears how far it has come.
///
/// # Errors
/// [`AskError`] if a server is there and can't be asked.
pub async fn ask(data_dir: &Path, typed: &Typed, progress: &Progress) -> Result<Asked, AskError> {
    let name = || data_dir.display().to_string();
    let unreachable = |cause| AskError::Unreachable {
        data_dir: name(),
        cause,
    };
    let Some(stream) = connect(data_dir).await.map_err(unreachable)? else {
        return Ok(Asked::NoServer);
    };
    let request = Request {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        typed: typed.clone(),
    };
    // The server ends a slow command first, and says so.
    let answer = timeout(
        COMMAND_TIME + 2 * REQUEST_TIME,
        exchange(stream, &request, progress),
    )
    .await;
    let answer = answer
        .map_err(|_| AskError::TooSlow(name()))?
        .map_err(unreachable)?;
    match answer {
        Some(answer) => Ok(Asked::Answered(answer)),
        None => Err(AskError::NoAnswer(name())),
    }
}

/// Whether a server runs on `data_dir` and listens.
pub async fn is_served(data_dir: &Path) -> bool {
    matches!(connect(data_dir).await, Ok(Some(_)))
}

async fn connect(data_dir: &Path) -> io::Result<Option<UnixStream>> {
    let is_absent = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
        )
    };
    let address = match SocketAddress::of(data_dir) {
        Ok(address) => address,
        Err(error) if is_absent(&error) => return Ok(None),
        // A file in its place: opening the stores names that better.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(None),
        Err(error) => return Err(error),
    };
    match UnixStream::connect(address.path()).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if is_absent(&error) || error.kind() == io::ErrorKind::NotADirectory => Ok(None),
        Err(error) => Err(error),
    }
}

/// `None` if the connection ended, or what came is no reply.
async fn exchange(
    stream: UnixStream,
    request: &Request,
    progress: &Progress,
) -> io::Result<Option<Result<Output, Failure>>> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let mut stream = BufReader::new(stream);
    stream.write_all(&line).await?;
    loop {
        let mut answer = String::new();
        stream.read_line(&mut answer).await?;
        match serde_json::from_str(&answer) {
            Ok(Reply::Progress(step)) => progress(step),
            Ok(Reply::Ok(output)) => return Ok(Some(Ok(output))),
            Ok(Reply::Error(failure)) => return Ok(Some(Err(failure))),
            Err(_) => return Ok(None),
        }
    }
}
