//! `tollgate assets …`.

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use include_dir::{Dir, include_dir};

use super::output::Output;

/// What comes embedded, by the directory it is written to.
static ASSETS: [(&str, Dir<'static>); 3] = [
    ("alerts", include_dir!("$CARGO_MANIFEST_DIR/assets/alerts")),
    (
        "dashboards",
        include_dir!("$CARGO_MANIFEST_DIR/assets/dashboards"),
    ),
    (
        "presets",
        include_dir!("$CARGO_MANIFEST_DIR/assets/presets"),
    ),
];

#[derive(Debug, Subcommand)]
pub(super) enum AssetsCommand {
    Export(Export),
}

impl AssetsCommand {
    pub(super) fn run(&self) -> anyhow::Result<Output> {
        match self {
            Self::Export(command) => command.run(),
        }
    }
}

/// Writes the embedded dashboards, alert rules and presets into a directory
///
/// Files of the same names are replaced, so that a new version brings its own; others are left alone.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate assets export /etc/tollgate/assets")]
pub(super) struct Export {
    /// The directory; made if it is not there
    directory: PathBuf,
}

impl Export {
    fn run(&self) -> anyhow::Result<Output> {
        let mut written = Vec::new();
        for (name, files) in &ASSETS {
            let directory = self.directory.join(name);
            fs::create_dir_all(&directory)
                .with_context(|| format!("directory {} can't be made", directory.display()))?;
            for file in files.files() {
                let path = directory.join(file.path());
                fs::write(&path, file.contents())
                    .with_context(|| format!("{} can't be written", path.display()))?;
                written.push(path.display().to_string());
            }
        }
        Ok(Output::list(&written, &["FILE"], |path| vec![path.clone()]))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_is_exported_is_what_lies_in_the_source() {
        let directory = tempfile::tempdir().unwrap();
        let export = Export {
            directory: directory.path().join("made"),
        };
        export.run().unwrap();
        export.run().expect("a second time too");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
        for file in [
            "alerts/tollgate.yml",
            "dashboards/tollgate.json",
            "presets/plans.json",
            "presets/prices.json",
        ] {
            let written = fs::read(directory.path().join("made").join(file)).unwrap();
            assert_eq!(written, fs::read(source.join(file)).unwrap(), "{file}");
        }
    }
}
