//! What is set up for a run: the upstream, nginx, and three servers; and how a target is loaded and timed.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use super::{
    gate::{Gate, Kind},
    load::{self, Call},
    nginx::{self, Nginx},
    process::Running,
};

pub(crate) const PROMPT: &str = r#"{"model":"gpt-4o","messages":[{"role":"user","content":"What does a tollgate do?"}],"max_tokens":200}"#;
const WARM_UP: Duration = Duration::from_millis(300);
/// Long enough for anything that starts.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Stage {
    pub(crate) nginx: Nginx,
    pub(crate) bare: Gate,
    pub(crate) process: Gate,
    pub(crate) full: Gate,
    pub(crate) upstream: Upstream,
}

impl Stage {
    pub(crate) fn set(directory: &Path) -> anyhow::Result<Self> {
        let upstream = Upstream::start()?;
        let gate = |kind| Gate::start(kind, directory, upstream.address);
        Ok(Self {
            nginx: nginx::start(directory, upstream.address)?,
            bare: gate(Kind::Bare)?,
            process: gate(Kind::Process)?,
            full: gate(Kind::Full)?,
            upstream,
        })
    }
}

/// The fake model, in a process of its own: this program with the argument `upstream`. It ends when its stdin does.
pub(crate) struct Upstream {
    child: Child,
    _stdin: ChildStdin,
    pub(crate) address: SocketAddr,
}

impl Upstream {
    fn start() -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("upstream")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().context("piped")?;
        let mut line = String::new();
        let mut stdout = child.stdout.take().context("piped")?;
        let mut byte = [0];
        while stdout.read(&mut byte)? == 1 && byte != *b"\n" {
            line.push(char::from(byte[0]));
        }
        Ok(Self {
            child,
            _stdin: stdin,
            address: line.parse().context("the upstream printed no address")?,
        })
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a round of load cost its target.
pub(crate) struct Round {
    /// User and system time a request, in microseconds.
    pub(crate) processor_us: f64,
    pub(crate) per_second: f64,
}

/// One round of a closed loop. The processor time counts until the target rests again, so that what it put off (the
/// drain to its store) is not left out.
pub(crate) async fn round(
    target: &Running,
    call: &Call,
    clients: usize,
    time: Duration,
) -> anyhow::Result<Round> {
    let before = target.processor_time()?;
    let answered = load::closed(call, clients, WARM_UP, time).await?;
    let used = rested(target).await? - before;
    let requests = load::count(usize::try_from(answered.requests)?);
    Ok(Round {
        processor_us: used.as_secs_f64() * 1e6 / requests,
        per_second: answered.per_second,
    })
}

/// Waits until a process uses next to nothing for a while, and gives its processor time then.
pub(crate) async fn rested(target: &Running) -> anyhow::Result<Duration> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = target.processor_time()?;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = target.processor_time()?;
        if now - last <= Duration::from_millis(10) {
            return Ok(now);
        }
        if deadline < Instant::now() {
            bail!("a process does not come to rest after its load");
        }
        last = now;
    }
}

/// Sends a request over a connection of its own, and waits for the answer's first bytes.
pub(crate) fn ask_once(call: &Call) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(call.address)?;
    stream.write_all(&call.request)?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    let expected = format!("HTTP/1.1 {}", call.status);
    if head != expected.as_bytes() {
        bail!("an answer begins '{}'", String::from_utf8_lossy(&head));
    }
    Ok(())
}

/// An address of this machine where nobody listens for now.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

pub(crate) fn wait_until_listening(address: SocketAddr) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        if deadline < Instant::now() {
            bail!("nobody listens on {address}");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
