//! What design.md §6 promises of the way from socket to socket: rows 1, 2, 3, 5, 6, 7, 11 and 14.
//!
//! Everything runs on this machine: the load in this process, a fake model in another, nginx, and three servers
//! (guardrails off; usage that survives the process; usage on disk). Targets take turns in rounds, and figures are
//! medians, as ratios within the run. Row 4 (peers) is left to whoever has them installed.
//!
//! `BENCH_ROWS=1,5` measures some rows only; `BENCH_ROUNDS` and `BENCH_SECONDS` say how long, `BENCH_BINARY` of which
//! tollgate (without it: of cargo's release build).

mod clock;
mod gate;
mod load;
mod machine;
mod nginx;
mod process;
mod report;
mod rows;
mod stage;
mod upstream;

use std::{
    collections::BTreeSet,
    env,
    io::Read as _,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use self::{
    report::{Report, note},
    rows::Bench,
    stage::Stage,
};

/// Rows measured here; those that come out of the same rounds stand together.
const ROWS: [&str; 8] = ["1", "2", "3", "5", "6", "7", "11", "14"];

/// What the environment asks for.
pub(crate) struct Options {
    rows: BTreeSet<String>,
    pub(crate) rounds: usize,
    /// How long one round of one target is watched.
    pub(crate) seconds: Duration,
}

impl Options {
    fn from_environment() -> anyhow::Result<Self> {
        let number = |name: &str, default: f64| -> anyhow::Result<f64> {
            match env::var(name) {
                Ok(text) => match text.parse() {
                    Ok(number) if number > 0.0 => Ok(number),
                    _ => bail!("{name} is '{text}'; write a number above 0"),
                },
                Err(_) => Ok(default),
            }
        };
        let rows = env::var("BENCH_ROWS").unwrap_or_else(|_| ROWS.join(","));
        let rounds = number("BENCH_ROUNDS", 5.0)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "above 0; nobody asks for more rounds than fit"
        )]
        let rounds = rounds.ceil() as usize;
        Ok(Self {
            rows: rows.split(',').map(|row| row.trim().to_owned()).collect(),
            rounds,
            seconds: Duration::try_from_secs_f64(number("BENCH_SECONDS", 1.5)?)?,
        })
    }

    fn wants(&self, rows: &[&str]) -> bool {
        rows.iter().any(|row| self.rows.contains(*row))
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if env::args().nth(1).as_deref() == Some("upstream") {
        return runtime.block_on(upstream());
    }
    let options = Options::from_environment()?;
    if !options.wants(&ROWS) {
        return Ok(ExitCode::SUCCESS); // another benchmark has them
    }
    runtime.block_on(run(options))
}

/// Serves as the model until stdin ends, which it does with the process that started this one.
async fn upstream() -> anyhow::Result<ExitCode> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    note(&listener.local_addr()?.to_string())?;
    let (sender, ended) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        drop(sender);
    });
    tokio::select! {
        served = upstream::serve(listener) => served?,
        _ = ended => {}
    }
    Ok(ExitCode::SUCCESS)
}

async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let directory = tempfile::Builder::new()
        .prefix("bench-")
        // Beside the build, which is on a disk; the usual place may be in memory, where nothing is durable.
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let cores = std::thread::available_parallelism()?;
    let fdatasync_ms = machine::fdatasync_ms(directory.path())?;
    let binary = gate::binary();
    if !binary.is_file() {
        let path = binary.display();
        bail!("BENCH_BINARY is '{path}', where there is no file; write the path of a tollgate");
    }
    note(&format!("measures {}", binary.display()))?;
    note(&format!(
        "{cores} cores; fdatasync after a small write takes {fdatasync_ms:.3} ms"
    ))?;
    let stage = Stage::set(directory.path()).context("the processes can't be started")?;
    let mut bench = Bench {
        stage,
        options,
        directory: directory.path().to_owned(),
        fdatasync_ms,
        report: Report::default(),
    };
    if bench.options.wants(&["1", "2", "3"]) {
        bench.whole_answers().await?;
    }
    if bench.options.wants(&["5"]) {
        bench.latency().await?;
    }
    if bench.options.wants(&["6"]) {
        bench.streams().await?;
    }
    if bench.options.wants(&["7"]) {
        bench.large_prompts().await?;
    }
    if bench.options.wants(&["11"]) {
        bench.refusals().await?;
    }
    if bench.options.wants(&["14"]) {
        bench.idle().await?;
    }
    let again = machine::fdatasync_ms(&bench.directory)?;
    note(&format!(
        "fdatasync at the end: {again:.3} ms; {} goals missed; took {:.0} s",
        bench.report.missed(),
        begun.elapsed().as_secs_f64()
    ))?;
    Ok(ExitCode::SUCCESS)
}
