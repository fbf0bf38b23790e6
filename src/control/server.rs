//! The server's side.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Backend, COMMAND_TIME, Failure, LARGEST_REQUEST, Progress, REQUEST_TIME, Reply, Request,
    SOCKET_FILE, SocketAddress, Step, Typed,
};
use crate::cli;

/// Commands that run at once; more wait to be accepted.
const AT_ONCE: usize = 16;
/// For running commands to end when the server stops.
const STOP_TIME: Duration = Duration::from_secs(10);

/// The bound socket; its file goes when it is dropped.
#[derive(Debug)]
pub struct ControlListener {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for ControlListener {
    fn drop(&mut self) {
        // Left behind it would do no harm: nobody answers, so commands open the stores themselves.
        let _ = fs::remove_file(&self.path);
    }
}

/// Binds the control socket of a data dir that this process has locked: an old socket there is nobody's.
///
/// # Errors
/// Of the file system.
pub fn bind(data_dir: &Path) -> io::Result<ControlListener> {
    let path = data_dir.join(SOCKET_FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let address = SocketAddress::of(data_dir)?;
    let listener = UnixListener::bind(address.path())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(ControlListener { listener, path })
}

/// Runs a command by its words.
pub trait Runner: Send + Sync {
    fn run<'a>(&'a self, typed: Typed, progress: &'a Progress) -> BoxFuture<'a, Reply>;
}

impl Runner for Backend {
    fn run<'a>(&'a self, typed: Typed, progress: &'a Progress) -> BoxFuture<'a, Reply> {
        Box::pin(async move {
            let backend = Self {
                directory: typed.directory.clone(),
                ..self.clone()
            };
            match cli::run_asked(typed, &backend, progress).await {
                Ok(output) => Reply::Ok(output),
                Err(failure) => Reply::Error(failure),
            }
        })
    }
}

/// Answers commands until `shutdown`; then the running ones have a while to end.
pub async fn serve(
    listener: ControlListener,
    runner: Arc<dyn Runner>,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = JoinSet::new();
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            let place = place.expect("the semaphore is never closed");
            listener
                .listener
                .accept()
                .await
                .map(|(stream, _)| (stream, place))
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = next => accepted,
        };
        let (stream, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a command could not reach the control socket");
                // Out of descriptors: trying again at once would spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let runner = Arc::clone(&runner);
        running.spawn(async move {
            if let Err(error) = answer(stream, runner.as_ref()).await {
                tracing::debug!(%error, "a command went away before its answer");
            }
            drop(place);
        });
        // Ended ones are forgotten, so that the set does not grow.
        while running.try_join_next().is_some() {}
    }
    drop(listener);
    let ended = async { while running.join_next().await.is_some() {} };
    if timeout(STOP_TIME, ended).await.is_err() {
        tracing::warn!("a command was still running when the server stopped");
    }
}

async fn answer(stream: UnixStream, runner: &dyn Runner) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let reply = match read_request(&mut stream).await {
        Ok(request) => run_reporting(request, runner, &mut stream).await,
        Err(failure) => Reply::Error(failure),
    };
    send(&mut stream, &reply).await
}

/// Runs the command, and sends the newest of its steps whenever the client has taken the one before.
async fn run_reporting(
    request: Request,
    runner: &dyn Runner,
    stream: &mut BufReader<UnixStream>,
) -> Reply {
    let (sender, mut steps) = watch::channel(Step::default());
    let progress: Progress = Arc::new(move |step| {
        let _before = sender.send_replace(step);
    });
    let running = run(request, runner, &progress);
    tokio::pin!(running);
    loop {
        let step = tokio::select! {
            reply = &mut running => return reply,
            Ok(()) = steps.changed() => *steps.borrow_and_update(),
        };
        // A client that has gone is no reason to leave a command half done.
        if send(stream, &Reply::Progress(step)).await.is_err() {
            return running.await;
        }
    }
}

async fn send(stream: &mut BufReader<UnixStream>, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.flush().await
}

async fn read_request(stream: &mut BufReader<UnixStream>) -> Result<Request, Failure> {
    let mut line = vec![];
    let mut bounded = stream.take(LARGEST_REQUEST);
    let read = timeout(REQUEST_TIME, bounded.read_until(b'\n', &mut line)).await;
    match read {
        Err(_) => Err(failed("the command did not arrive in time")),
        Ok(Err(error)) => Err(failed(&format!("the command can't be read: {error}"))),
        Ok(Ok(_)) if line.last() != Some(&b'\n') => {
            Err(failed("the command is cut off or too long"))
        }
        Ok(Ok(_)) => serde_json::from_slice(&line)
            .map_err(|_| failed("the command is not what a client sends")),
    }
}

async fn run(request: Request, runner: &dyn Runner, progress: &Progress) -> Reply {
    let own = env!("CARGO_PKG_VERSION");
    if request.version != own {
        let theirs = request.version.escape_debug();
        return Reply::Error(failed(&format!(
            "the running server is tollgate {own} and this command is {theirs}; use the server's version, or restart the server with this one"
        )));
    }
    match timeout(COMMAND_TIME, runner.run(request.typed, progress)).await {
        Ok(reply) => reply,
        Err(_) => Reply::Error(failed("the command took too long and was stopped")),
    }
}

fn failed(message: &str) -> Failure {
    Failure {
        message: message.to_owned(),
        exit_code: 1,
    }
}
