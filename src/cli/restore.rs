//! `tollgate restore`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::json;

use super::{
    confirm,
    output::{NOTHING, Output},
};
use crate::{
    app::data_dir::{DataDir, DataDirError, DatabaseLock, Share},
    backup::{self, OpenedBackup, Restored},
    clock::Clock,
    config::{Database, Loaded},
    store::postgres,
};

/// Brings a backup back into the data dir, while no server runs on it
///
/// What is in the data dir is moved aside, not deleted, and only if that is confirmed or --yes is given. A file that is
/// cut off or altered, or was written by a newer version, is refused and nothing is written.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: tollgate restore /backups/tollgate-2026-11-24.backup --data-dir /srv/tollgate"
)]
pub(super) struct Restore {
    /// The file that `tollgate backup` wrote
    path: PathBuf,
}

impl Restore {
    pub(super) async fn run(self, loaded: &Loaded, confirmed: Confirmed) -> anyhow::Result<Output> {
        let Database::Sqlite(database) = &loaded.config.database else {
            bail!("{}", postgres::NO_COPY);
        };
        let backup = OpenedBackup::open(&self.path)?;
        let manifest = backup.manifest.clone();
        refuse_running_server(&loaded.config.data_dir).await?;
        ask(&loaded.config.data_dir, database, confirmed)?;
        let data_dir = DataDir::open(&loaded.config.data_dir).map_err(in_words)?;
        let _database = DatabaseLock::take(database, &data_dir, Share::Alone)?;
        let now = Clock::System.now();
        let restored = backup::restore(backup, &data_dir, database, now)
            .await
            .context("nothing was replaced")?;
        let Restored {
            events_added,
            moved_to,
        } = restored;
        let moved_to = moved_to.map(|path| path.display().to_string());
        let body = json!({
            "data_dir": data_dir.path().display().to_string(),
            "made_at": manifest.made_at.to_whole_second(),
            "events_added": events_added,
            "moved_to": moved_to,
        });
        let facts = vec![
            ("data dir", data_dir.path().display().to_string()),
            ("as of", manifest.made_at.to_whole_second().to_string()),
            ("events from the journal", events_added.to_string()),
            (
                "what was there is in",
                moved_to.unwrap_or_else(|| NOTHING.to_owned()),
            ),
        ];
        Ok(Output::object(&body, facts)
            .note("Restored. `tollgate doctor` checks it; then start the server."))
    }
}

/// Whether `--yes` was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Confirmed {
    Yes,
    Ask,
}

async fn refuse_running_server(data_dir: &Path) -> anyhow::Result<()> {
    if crate::control::is_served(data_dir).await {
        bail!(
            "a server runs on data dir {}; stop it first",
            data_dir.display()
        );
    }
    Ok(())
}

fn in_words(error: DataDirError) -> anyhow::Error {
    match error {
        DataDirError::InUse(path) => anyhow::anyhow!(
            "data dir {} is in use by a running server or command; stop it first",
            path.display()
        ),
        other @ (DataDirError::Unusable { .. }
        | DataDirError::DatabaseInUse { .. }
        | DataDirError::UnusableDatabase { .. }) => other.into(),
    }
}

fn ask(data_dir: &Path, database: &Path, confirmed: Confirmed) -> anyhow::Result<()> {
    let found = backup::in_the_way(data_dir, database)
        .with_context(|| format!("data dir {} can't be read", data_dir.display()))?;
    if confirmed == Confirmed::Yes || found.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = found
        .iter()
        .take(5)
        .map(|path| path.display().to_string())
        .collect();
    let more = if found.len() > names.len() {
        ", …"
    } else {
        ""
    };
    confirm::confirm(&format!(
        "Data dir {} is not empty ({}{more}). Move what is there aside and restore?",
        data_dir.display(),
        names.join(", ")
    ))
}
