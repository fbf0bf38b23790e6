//! tollgate itself, in the ways that are measured.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use super::{load::Call, process::Running};

/// More than any run uses.
const PLENTY: &str = "1000000000000";

/// How a server is started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Guardrails off.
    Bare,
    /// Usage survives the process, not power loss.
    Process,
    /// Usage is on disk before its answer leaves.
    Full,
}

pub(crate) struct Gate {
    pub(crate) running: Running,
    pub(crate) address: SocketAddr,
    /// Of a tenant with hard limits on three features, far from all of them.
    pub(crate) key: String,
    /// Of a tenant that may send no message.
    pub(crate) spent_key: String,
    settings: Settings,
}

#[derive(Clone)]
struct Settings {
    kind: Kind,
    directory: PathBuf,
    upstream: SocketAddr,
}

impl Settings {
    fn command(&self, arguments: &[&str]) -> Command {
        let (guardrails, durability) = match self.kind {
            Kind::Bare => ("false", "full"),
            Kind::Process => ("true", "process"),
            Kind::Full => ("true", "full"),
        };
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .env("TOLLGATE_DATA_DIR", &self.directory)
            .env("TOLLGATE_LISTEN", "127.0.0.1:0")
            .env("ENABLE_USAGE_GUARDRAILS", guardrails)
            .env("USAGE_DURABILITY", durability)
            .env("OPENAI_BASE_URL", format!("http://{}/v1", self.upstream));
        command
    }

    fn cli(&self, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let output = self
            .command(arguments)
            .args(["--output", "json"])
            .output()?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            bail!("tollgate {}: {why}", arguments.join(" "));
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Makes the two tenants, and gives their keys.
    fn make_tenants(&self) -> anyhow::Result<(String, String)> {
        for (plan, messages) in [("plenty", PLENTY), ("none", "0")] {
            self.cli(&["plan", "create", plan, "--name", plan])?;
            let limits = [
                ("messages", messages),
                ("input_tokens", PLENTY),
                ("output_tokens", PLENTY),
            ];
            for (feature, hard) in limits {
                self.cli(&["plan", "feature", "set", plan, feature, "--hard", hard])?;
            }
        }
        Ok((
            self.make_key("busy", "plenty")?,
            self.make_key("spent", "none")?,
        ))
    }

    fn make_key(&self, tenant: &str, plan: &str) -> anyhow::Result<String> {
        self.cli(&["tenant", "create", tenant, "--name", tenant, "--plan", plan])?;
        let made = self.cli(&["key", "create", tenant, "--name", "bench"])?;
        let key = made["key"].as_str().context("a key was made without one")?;
        Ok(key.to_owned())
    }
}

impl Gate {
    /// Makes a data dir below `parent`, with two tenants, and starts the server.
    pub(crate) fn start(kind: Kind, parent: &Path, upstream: SocketAddr) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("gate-")
            .tempdir_in(parent)?
            .keep();
        let settings = Settings {
            kind,
            directory,
            upstream,
        };
        let (running, address) = launch(&settings)?;
        let (key, spent_key) = settings.make_tenants()?;
        Ok(Self {
            running,
            address,
            key,
            spent_key,
            settings,
        })
    }

    /// Starts once more on the same data dir; gives how long it took until the first chat completion was answered.
    pub(crate) fn restart(self) -> anyhow::Result<(Self, Duration)> {
        let Self {
            running,
            key,
            spent_key,
            settings,
            ..
        } = self;
        drop(running);
        let begun = Instant::now();
        let (running, address) = launch(&settings)?;
        let call = Call::chat(address, &key, super::stage::PROMPT);
        super::stage::ask_once(&call)?;
        let took = begun.elapsed();
        let gate = Self {
            running,
            address,
            key,
            spent_key,
            settings,
        };
        Ok((gate, took))
    }

    pub(crate) fn chat(&self, body: &str) -> Call {
        Call::chat(self.address, &self.key, body)
    }
}

/// What is measured: cargo's own build, or `BENCH_BINARY`.
pub(crate) fn binary() -> PathBuf {
    let built = || env!("CARGO_BIN_EXE_tollgate").into();
    env::var_os("BENCH_BINARY").map_or_else(built, PathBuf::from)
}

fn launch(settings: &Settings) -> anyhow::Result<(Running, SocketAddr)> {
    let mut running = Running::start(&settings.command(&["serve"]))?;
    let line = running.first_line()?;
    let address = line
        .strip_prefix("tollgate listening on http://")
        .with_context(|| format!("tollgate printed '{line}' instead of its address"))?;
    let address = address.parse()?;
    Ok((running, address))
}

/// The size of the binary in MB (10^6 bytes).
pub(crate) fn binary_mb() -> anyhow::Result<f64> {
    let bytes = fs::metadata(binary())?.len();
    Ok(f64::from(u32::try_from(bytes / 1_000)?) / 1e3)
}
