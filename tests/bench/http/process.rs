//! Processes that are measured; each ends with the run, however that ends.

use std::{
    io::{self, BufRead as _, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use super::machine;

/// How long a process may take to end by itself.
const END_TIME: Duration = Duration::from_secs(5);

/// A running program; told to end when dropped.
pub(crate) struct Running {
    child: Child,
}

impl Running {
    /// Starts `command`, so that it is told to end even if this process is killed.
    pub(crate) fn start(command: &Command) -> anyhow::Result<Self> {
        let mut wrapped = Command::new("setpriv");
        wrapped
            .args(["--pdeathsig", "TERM", "--"])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                wrapped.env(name, value);
            }
        }
        let program = command.get_program().display().to_string();
        let child = wrapped
            .spawn()
            .with_context(|| format!("{program} can't be started through setpriv (util-linux)"))?;
        Ok(Self { child })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn processor_time(&self) -> anyhow::Result<Duration> {
        machine::processor_time(self.id())
    }

    pub(crate) fn resident_kib(&self) -> anyhow::Result<u64> {
        machine::resident_kib(self.id())
    }

    /// The first line that it prints; what follows is thrown away.
    pub(crate) fn first_line(&mut self) -> anyhow::Result<String> {
        let stdout = self.child.stdout.take().context("asked for already")?;
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        drain(stdout)?;
        Ok(line.trim_end().to_owned())
    }
}

/// Reads on, so that the program never waits for a full pipe.
fn drain(mut from: BufReader<ChildStdout>) -> io::Result<()> {
    thread::Builder::new()
        .name("drain".to_owned())
        .spawn(move || io::copy(&mut from, &mut io::sink()))
        .map(drop)
}

impl Drop for Running {
    fn drop(&mut self) {
        let process = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        if let Some(process) = process {
            // Not killed at once: nginx would leave its workers behind.
            let _ = kill_process(process, Signal::TERM);
        }
        let deadline = Instant::now() + END_TIME;
        while matches!(self.child.try_wait(), Ok(None)) {
            if deadline < Instant::now() {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}
