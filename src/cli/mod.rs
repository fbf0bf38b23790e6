//! The command line: one file a command, a folder a group.
//!
//! Commands that need the stores run against a [`Backend`]: a running server's, asked through its control socket,
//! or one opened here if no server runs. The others run where they are typed.

mod admin_token;
mod alert;
pub mod arguments;
mod assets;
mod backup;
mod completions;
mod config;
mod confirm;
mod doctor;
mod healthcheck;
mod key;
mod man;
mod migrate;
pub mod output;
mod plan;
mod price;
mod progress;
mod reservation;
mod restore;
mod serve;
mod setup;
mod stripe;
mod tenant;
mod torture;
mod usage;

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::{
    app::{
        self,
        data_dir::{DataDir, DataDirError},
    },
    config::{
        Config, Database, Loaded, LogFormat,
        sources::{SettingFlags, Sources},
    },
    control::{self, Asked, Backend, Failure, Input, Progress, Typed},
    services::AdminError,
};
use output::{Output, OutputMode};
use restore::Confirmed;

/// How long a command waits for another one, or for a server that is just starting, to let go of the data dir.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// tollgate stands between an application and its language model: it meters, limits and bills usage, exactly.
#[derive(Debug, Parser)]
#[command(
    name = "tollgate",
    version,
    after_help = "Every setting is a flag of every command too: `tollgate config` lists them all.\n\nExample: tollgate serve --dev"
)]
pub struct Cli {
    #[command(flatten)]
    settings: SettingFlags,
    /// Form of what is printed [default: table on a terminal, else json]
    #[arg(long, global = true, value_name = "FORM")]
    output: Option<OutputMode>,
    /// Do destructive things without asking
    #[arg(long, global = true)]
    yes: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    #[command(flatten)]
    Stored(Stored),
    Setup(setup::Setup),
    Restore(restore::Restore),
    Migrate(migrate::Migrate),
    Torture(torture::Torture),
    Healthcheck(healthcheck::Healthcheck),
    /// Writes out what comes along: dashboards, alert rules, presets
    #[command(
        subcommand,
        after_help = "Example: tollgate assets export /etc/tollgate/assets"
    )]
    Assets(assets::AssetsCommand),
    Config(config::ShowConfig),
    Completions(completions::Completions),
    Man(man::Man),
}

/// Commands that need the stores.
#[derive(Debug, Subcommand)]
enum Stored {
    /// Shows and changes plans
    #[command(subcommand, after_help = "Example: tollgate plan list")]
    Plan(plan::PlanCommand),
    /// Shows and changes tenants, their subscriptions, limits and grants
    #[command(
        subcommand,
        after_help = "Example: tollgate tenant create acme --name 'Acme Inc' --plan starter"
    )]
    Tenant(tenant::TenantCommand),
    /// Makes and ends tenants' API keys
    #[command(
        subcommand,
        after_help = "Example: tollgate key create acme --name laptop"
    )]
    Key(key::KeyCommand),
    /// Makes, lists and ends administrators' tokens
    #[command(
        subcommand,
        after_help = "Example: tollgate admin-token create ada --role owner"
    )]
    AdminToken(admin_token::AdminTokenCommand),
    /// Shows and records usage
    #[command(subcommand, after_help = "Example: tollgate usage show --tenant acme")]
    Usage(usage::UsageCommand),
    /// Shows and ends requests in flight
    #[command(subcommand, after_help = "Example: tollgate reservation list")]
    Reservation(reservation::ReservationCommand),
    /// Shows what models cost, and brings prices of your own in
    #[command(subcommand, after_help = "Example: tollgate price check gpt-5.1")]
    Price(price::PriceCommand),
    /// Tests, lists and sends notices again
    #[command(subcommand, after_help = "Example: tollgate alert test")]
    Alert(alert::AlertCommand),
    /// Tells Stripe of usage, compares, and takes from it what its subscriptions say
    #[command(subcommand, after_help = "Example: tollgate stripe reconcile")]
    Stripe(stripe::StripeCommand),
    Backup(backup::Backup),
    Doctor(doctor::Examine),
}

impl Stored {
    /// What to ask before it is done; `None` if nothing is destroyed.
    fn question(&self) -> Option<String> {
        match self {
            Self::Plan(command) => command.question(),
            Self::Tenant(command) => command.question(),
            Self::Key(command) => command.question(),
            Self::Reservation(command) => command.question(),
            Self::AdminToken(command) => command.question(),
            Self::Usage(_)
            | Self::Price(_)
            | Self::Alert(_)
            | Self::Stripe(_)
            | Self::Doctor(_) => None,
            Self::Backup(command) => command.question(),
        }
    }

    /// Whether one that it would make itself is of no use to it.
    fn wants_a_database(&self) -> bool {
        matches!(self, Self::Backup(_))
    }

    /// Whether it shows itself again and again until it is interrupted.
    fn is_watching(&self) -> bool {
        matches!(self, Self::Usage(command) if command.is_watching())
    }

    /// The file that goes with it to wherever it runs; `None` if it reads none.
    fn input(&self, data_dir: &Path) -> anyhow::Result<Option<Input>> {
        match self {
            Self::Usage(command) => command.input(data_dir),
            Self::Price(command) => command.input(),
            Self::Plan(_)
            | Self::Tenant(_)
            | Self::Key(_)
            | Self::Reservation(_)
            | Self::AdminToken(_)
            | Self::Alert(_)
            | Self::Stripe(_)
            | Self::Backup(_)
            | Self::Doctor(_) => Ok(None),
        }
    }

    async fn run(
        self,
        backend: &Backend,
        typed: &Typed,
        progress: &Progress,
    ) -> anyhow::Result<Output> {
        let output = match self {
            Self::Plan(command) => Box::pin(command.run(backend)).await,
            Self::Tenant(command) => Box::pin(command.run(backend)).await,
            Self::Key(command) => Box::pin(command.run(backend)).await,
            Self::AdminToken(command) => Box::pin(command.run(backend)).await,
            Self::Usage(command) => Box::pin(command.run(backend, typed, progress)).await,
            Self::Reservation(command) => Box::pin(command.run(backend)).await,
            Self::Price(command) => Box::pin(command.run(backend, typed)).await,
            Self::Alert(command) => Box::pin(command.run(backend)).await,
            Self::Stripe(command) => Box::pin(command.run(backend)).await,
            Self::Backup(command) => Box::pin(command.run(backend)).await,
            Self::Doctor(command) => Box::pin(command.run(backend)).await,
        };
        if let Some(refresh) = &backend.refresh {
            refresh.refresh().await;
        }
        output
    }
}

/// The parser, as it reads.
#[must_use]
pub fn parser() -> clap::Command {
    Cli::command().mut_subcommand("serve", |serve| serve.after_long_help(serve::long_help()))
}

/// The parser with its settings' flags unhidden, for completions and manual pages.
fn whole_parser() -> clap::Command {
    parser().mut_args(|argument| {
        let is_setting = argument.get_help_heading() == Some("Settings");
        if is_setting {
            argument.hide(false)
        } else {
            argument
        }
    })
}

/// Runs the command line and gives its exit code: 0 done, 1 refused or failed, 2 wrong usage.
///
/// `start_logs` is called once the settings are known, by commands that log.
#[must_use]
pub fn main(start_logs: fn(&Config) -> anyhow::Result<()>) -> ExitCode {
    let argv: Vec<OsString> = std::env::args_os().collect();
    let cli = match parse(argv.clone()) {
        Ok(cli) => cli,
        Err(error) => return shown(&error),
    };
    match dispatch(cli, argv, start_logs) {
        Ok(code) => code,
        Err(error) => {
            let failure = failure_of(&error);
            eprintln!("error: {}", failure.message);
            ExitCode::from(failure.exit_code)
        }
    }
}

fn parse(argv: Vec<OsString>) -> Result<Cli, clap::Error> {
    let matches = parser().try_get_matches_from(argv)?;
    <Cli as clap::FromArgMatches>::from_arg_matches(&matches)
}

/// Help and version go to stdout with code 0, wrong usage to stderr with code 2.
fn shown(error: &clap::Error) -> ExitCode {
    // A reader that has gone is no failure.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

fn dispatch(
    cli: Cli,
    argv: Vec<OsString>,
    start_logs: fn(&Config) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let Cli {
        settings,
        output: mode,
        yes,
        command,
    } = cli;
    match command {
        Command::Completions(command) => print(&command.run()),
        Command::Man(command) => print(&command.run()?),
        Command::Config(command) => {
            let loaded = load(settings)?;
            command
                .run(&loaded)
                .print(mode)
                .context("can't write to stdout")?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Serve(command) => {
            runtime(Threads::Many)?.block_on(command.run(sources(settings)?, start_logs))
        }
        Command::Setup(command) => {
            let output = runtime(Threads::One)?.block_on(Box::pin(command.run(settings)))?;
            ended(&output, mode)
        }
        Command::Restore(command) => {
            let loaded = load(settings)?;
            let confirmed = if yes { Confirmed::Yes } else { Confirmed::Ask };
            let output = runtime(Threads::One)?.block_on(command.run(&loaded, confirmed))?;
            ended(&output, mode)
        }
        Command::Migrate(command) => {
            let loaded = load(settings)?;
            let output = runtime(Threads::One)?.block_on(command.run(&loaded))?;
            ended(&output, mode)
        }
        Command::Torture(command) => {
            let output = runtime(Threads::Many)?.block_on(command.run())?;
            ended(&output, mode)
        }
        Command::Healthcheck(command) => {
            ended(&command.run(&load_quietly(settings)?.config)?, mode)
        }
        Command::Assets(command) => ended(&command.run()?, mode),
        Command::Stored(Stored::Doctor(_)) => {
            let output = runtime(Threads::One)?.block_on(doctor::run(settings, words(argv)?));
            ended(&output, mode)
        }
        Command::Stored(command) => {
            let loaded = load(settings)?;
            if let Some(question) = command.question().filter(|_| !yes) {
                confirm::confirm(&question)?;
            }
            let typed = Typed {
                argv: words(argv)?,
                directory: std::env::current_dir()
                    .context("the working directory can't be read")?,
                input: command.input(&loaded.config.data_dir)?,
            };
            runtime(Threads::One)?.block_on(run_stored(command, typed, &loaded, mode))
        }
    }
}

/// Prints what a command has to show, and says so if that is a failure all the same.
fn ended(output: &Output, mode: Option<OutputMode>) -> anyhow::Result<ExitCode> {
    output.print(mode).context("can't write to stdout")?;
    match output.failure() {
        None => Ok(ExitCode::SUCCESS),
        Some(why) => {
            eprintln!("error: {why}");
            Ok(ExitCode::FAILURE)
        }
    }
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    output::print(text).context("can't write to stdout")?;
    Ok(ExitCode::SUCCESS)
}

fn sources(flags: SettingFlags) -> anyhow::Result<Sources> {
    let directory = std::env::current_dir().context("the working directory can't be read")?;
    let log_format = if io::stderr().is_terminal() {
        LogFormat::Pretty
    } else {
        LogFormat::Json
    };
    Ok(Sources::of_process(flags, &directory, log_format)
        .map_err(crate::config::ConfigError::from)?)
}

/// Without its warnings: who calls says them.
fn load_quietly(flags: SettingFlags) -> anyhow::Result<Loaded> {
    Ok(Config::load(&sources(flags)?)?)
}

fn load(flags: SettingFlags) -> anyhow::Result<Loaded> {
    let loaded = load_quietly(flags)?;
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(loaded)
}

enum Threads {
    One,
    Many,
}

fn runtime(threads: Threads) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = match threads {
        Threads::One => tokio::runtime::Builder::new_current_thread(),
        Threads::Many => tokio::runtime::Builder::new_multi_thread(),
    };
    builder
        .enable_all()
        .build()
        .context("threads can't be started")
}

/// The command's words without the program's name.
fn words(argv: Vec<OsString>) -> anyhow::Result<Vec<String>> {
    let words = argv.into_iter().skip(1).map(|word| {
        word.into_string()
            .map_err(|word| anyhow::anyhow!("argument {} is not UTF-8", word.display()))
    });
    words.collect()
}

async fn run_stored(
    command: Stored,
    typed: Typed,
    loaded: &Loaded,
    mode: Option<OutputMode>,
) -> anyhow::Result<ExitCode> {
    let is_watching = command.is_watching();
    let mut command = Some(command);
    loop {
        // A watched command is read anew each time, since running it takes it.
        let again = command.take().map_or_else(|| stored_of(&typed.argv), Ok)?;
        let output = run_somewhere(again, &typed, loaded).await?;
        if !is_watching {
            return ended(&output, mode);
        }
        output
            .print_in_place(mode)
            .context("can't write to stdout")?;
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
            () = tokio::time::sleep(usage::WATCH_INTERVAL) => {}
        }
    }
}

/// Has a running server do it, else opens the stores; waits a little for whoever holds the data dir.
async fn run_somewhere(command: Stored, typed: &Typed, loaded: &Loaded) -> anyhow::Result<Output> {
    let shown = progress::Shown::default();
    let progress = shown.progress();
    let data_dir = &loaded.config.data_dir;
    let deadline = tokio::time::Instant::now() + LONGEST_WAIT;
    let held = loop {
        if let Asked::Answered(answer) = control::ask(data_dir, typed, &progress).await? {
            return Ok(answer?);
        }
        match DataDir::open(data_dir) {
            // Another command, or a server that does not listen yet.
            Err(DataDirError::InUse(_)) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            Err(DataDirError::InUse(path)) => anyhow::bail!(
                "data dir {} is in use by a tollgate that does not answer; wait for it or stop it",
                path.display()
            ),
            opened => break opened?,
        }
    };
    if command.wants_a_database()
        && let Database::Sqlite(path) = &loaded.config.database
        && !path.exists()
    {
        anyhow::bail!(
            "there is no database at {}; name the server's data dir with --data-dir or TOLLGATE_DATA_DIR",
            path.display()
        );
    }
    let local = app::open_local(loaded, held).await?;
    let output = command.run(&local.backend, typed, &progress).await;
    local.close().await;
    output
}

/// Runs a command that came through the control socket; its settings are the server's own.
///
/// # Errors
/// What the command would have said itself.
pub async fn run_asked(
    typed: Typed,
    backend: &Backend,
    progress: &Progress,
) -> Result<Output, Failure> {
    let result = match stored_of(&typed.argv) {
        Ok(command) => command.run(backend, &typed, progress).await,
        Err(error) => Err(error),
    };
    result.map_err(|error| failure_of(&error))
}

fn stored_of(words: &[String]) -> anyhow::Result<Stored> {
    let argv = std::iter::once("tollgate".to_owned()).chain(words.iter().cloned());
    match parse(argv.map(OsString::from).collect())?.command {
        Command::Stored(command) => Ok(command),
        Command::Serve(_)
        | Command::Setup(_)
        | Command::Restore(_)
        | Command::Migrate(_)
        | Command::Torture(_)
        | Command::Healthcheck(_)
        | Command::Assets(_)
        | Command::Config(_)
        | Command::Completions(_)
        | Command::Man(_) => {
            anyhow::bail!("only commands that need the stores are taken here")
        }
    }
}

/// One line: what failed, and how to mend it.
fn failure_of(error: &anyhow::Error) -> Failure {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.clone();
    }
    let hint = error.downcast_ref::<AdminError>().and_then(hint);
    let message = format!("{error:#}{}", hint.unwrap_or_default());
    let is_usage = error.is::<clap::Error>()
        || error
            .downcast_ref::<crate::config::ConfigError>()
            .is_some_and(|error| error.is_usage());
    Failure {
        message: message
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect::<Vec<_>>()
            .join(" "),
        exit_code: if is_usage { 2 } else { 1 },
    }
}

fn hint(error: &AdminError) -> Option<&'static str> {
    match error {
        AdminError::NotFound { what: "plan", .. } => {
            Some("; `tollgate plan list` shows them, `tollgate plan create` makes one")
        }
        AdminError::NotFound { what: "tenant", .. } => {
            Some("; `tollgate tenant list` shows them, `tollgate tenant create` makes one")
        }
        AdminError::NotFound { what: "key", .. } => {
            Some("; `tollgate key list --tenant T` shows a tenant's keys")
        }
        AdminError::NotFound { what: "grant", .. } => {
            Some("; `tollgate tenant grant list T` shows a tenant's grants")
        }
        AdminError::NotFound {
            what: "administrator token",
            ..
        } => Some("; `tollgate admin-token list` shows those in use"),
        AdminError::AlreadyExists {
            what: "administrator",
            ..
        } => Some("; choose another name, or revoke that token first"),
        AdminError::AlreadyExists { what: "plan", .. } => {
            Some("; change it with `tollgate plan set`, or choose another code")
        }
        AdminError::AlreadyExists { what: "tenant", .. } => Some(
            "; change it with `tollgate tenant subscribe`, or choose another slug (one that was deleted keeps its own)",
        ),
        AdminError::Unavailable(_) => Some("; nothing was changed, so try again"),
        AdminError::Invalid { .. }
        | AdminError::NotFound { .. }
        | AdminError::AlreadyExists { .. }
        | AdminError::LastOwner { .. }
        | AdminError::PlanInUse { .. }
        | AdminError::VersionConflict { .. } => None,
    }
}

#[cfg(test)]
mod tests;
