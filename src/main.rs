//! Parses, starts the logs, dispatches and ends with an exit code.

use std::process::ExitCode;

use tollgate::{config::Config, telemetry::logs};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tollgate::cli::main(start_logs)
}

fn start_logs(config: &Config) -> anyhow::Result<()> {
    Ok(logs::init(config.log_format, &config.log_filter)?)
}
