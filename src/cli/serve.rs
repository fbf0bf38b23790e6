//! `tollgate serve`.

use std::{fmt::Write as _, fs::Permissions, os::unix::fs::PermissionsExt as _, process::ExitCode};

use anyhow::Context as _;

use crate::{
    app::{self, Start},
    config::{
        Config,
        settings::SETTINGS,
        sources::{Origin, Sources},
    },
};

/// Runs the server
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate serve --listen 0.0.0.0:8080 --enable-usage-guardrails")]
pub(super) struct Serve {
    /// Embedded stores in a fresh temporary directory, guardrails on, a simulated provider unless an upstream is
    /// named, presets and a demo tenant
    #[arg(long)]
    dev: bool,
}

impl Serve {
    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// One line for people: a bad setting, a data dir or an address that can't be had.
    pub(super) async fn run(
        self,
        sources: Sources,
        start_logs: fn(&Config) -> anyhow::Result<()>,
    ) -> anyhow::Result<ExitCode> {
        let (sources, start) = if self.dev {
            dev(sources)?
        } else {
            (sources, Start::Normal)
        };
        let loaded = Config::load(&sources)?;
        start_logs(&loaded.config)?;
        Box::pin(app::serve(loaded, start)).await
    }
}

fn dev(sources: Sources) -> anyhow::Result<(Sources, Start)> {
    let (sources, ignored) = sources.for_dev();
    let is_given = Config::load(&sources)?.origin("TOLLGATE_DATA_DIR") != Origin::Default;
    if is_given {
        return Ok((
            sources,
            Start::Dev {
                directory: None,
                ignored,
            },
        ));
    }
    let directory = tempfile::Builder::new()
        .prefix("tollgate-dev-")
        .permissions(Permissions::from_mode(0o700)) // its owner's alone, as every data dir
        .tempdir()
        .context("a temporary directory can't be made; name one with --data-dir")?;
    let path = directory
        .path()
        .to_str()
        .context("the temporary directory's name is not UTF-8")?;
    let sources = sources.with_flag("TOLLGATE_DATA_DIR", path.to_owned());
    Ok((
        sources,
        Start::Dev {
            directory: Some(directory),
            ignored,
        },
    ))
}

/// The help of `serve --help`: the settings' flags, which other commands take but don't list.
pub(super) fn long_help() -> String {
    let mut help = String::from(
        "Example: tollgate serve --listen 0.0.0.0:8080 --enable-usage-guardrails\n\nSettings (each a variable too; `tollgate config` shows what holds and why):\n",
    );
    for setting in SETTINGS {
        let description = setting.description.replace('`', "");
        let name = setting
            .flag()
            .map_or_else(|| setting.name.to_owned(), |flag| format!("--{flag}"));
        write!(help, "  {name}\n          {description}\n")
            .expect("writing to a String never fails");
    }
    help
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_made_to_try_things_in_is_its_owners_alone() {
        let (_, start) = dev(Sources::none()).unwrap();
        let Start::Dev {
            directory: Some(directory),
            ..
        } = start
        else {
            panic!("no directory was made");
        };
        let mode = directory.path().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
