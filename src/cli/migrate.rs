//! `tollgate migrate`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::json;

use super::output::{NOTHING, Output};
use crate::{
    app::{
        self,
        data_dir::{DataDir, DataDirError},
    },
    backup,
    clock::Clock,
    config::{Database, Loaded},
    store::sqlite::{SqliteStore, maintenance},
};

/// Brings the database's schema up to this version's, after a backup
///
/// Forward only: the way back is to restore that backup with the older version. `serve` and every other command do the
/// same without the backup.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate migrate")]
pub(super) struct Migrate {
    /// The database to move from (not in this version: it needs a second kind of store)
    #[arg(long, value_name = "URL", hide = true)]
    from: Option<String>,
    /// The database to move to (not in this version)
    #[arg(long, value_name = "URL", hide = true)]
    to: Option<String>,
}

impl Migrate {
    pub(super) async fn run(self, loaded: &Loaded) -> anyhow::Result<Output> {
        if self.from.is_some() || self.to.is_some() {
            bail!(
                "moving to another database is not in this version: SQLite is the only store; leave out --from and --to to bring the schema up to date"
            );
        }
        loaded.require_available()?;
        let Database::Sqlite(database) = &loaded.config.database;
        let held = match DataDir::open(&loaded.config.data_dir) {
            Ok(held) => Some(held),
            // Whoever holds it has opened the database, and brought it up to date.
            Err(DataDirError::InUse(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let known = maintenance::newest_schema_version();
        let Some(found) = maintenance::schema_version_of(database)? else {
            let note = format!(
                "There is no database at {} yet; `tollgate serve` makes one.",
                database.display()
            );
            return Ok(outcome(None, known, None).note(note));
        };
        if found == known {
            return Ok(outcome(Some(found), known, None).note("Up to date; nothing was changed."));
        }
        if found > known {
            bail!(
                "the database {} has schema version {found}, newer than {known}, the newest that this tollgate knows; use the tollgate that wrote it, or restore a backup made before the upgrade",
                database.display()
            );
        }
        let Some(held) = held else {
            bail!(
                "data dir {} is in use by an older tollgate; stop it first",
                loaded.config.data_dir.display()
            );
        };
        let backup = back_up(loaded, &held, database, found).await?;
        SqliteStore::open(database).with_context(|| {
            format!(
                "the database is as it was; a backup is at {}",
                backup.display()
            )
        })?;
        Ok(outcome(Some(found), known, Some(&backup)).note("Brought up to date."))
    }
}

fn outcome(from: Option<i64>, to: i64, backup: Option<&Path>) -> Output {
    let backup = backup.map(|path| path.display().to_string());
    let body = json!({ "from": from, "to": to, "backup": backup });
    let facts = vec![
        ("from", super::output::or_dash(from)),
        ("to", to.to_string()),
        ("backup", backup.unwrap_or_else(|| NOTHING.to_owned())),
    ];
    Output::object(&body, facts)
}

/// Of the older schema, so that the older version can restore it.
async fn back_up(
    loaded: &Loaded,
    held: &DataDir,
    database: &Path,
    version: i64,
) -> anyhow::Result<PathBuf> {
    let now = Clock::System.now();
    let time = now.to_whole_second().to_string().replace(['-', ':'], "");
    let path = held
        .path()
        .join(format!("before-migrate-{version}-{time}.backup"));
    let journal = app::open_existing_journal(&loaded.config)?;
    let parts = backup::Parts {
        journal: journal
            .as_ref()
            .map(|journal| journal.freeze())
            .transpose()?,
        database: maintenance::copy_of(database)?,
        at: now,
    };
    let written = backup::write(path.clone(), parts).await;
    if let Some(journal) = journal {
        journal.close().await;
    }
    written.context("nothing was migrated")?;
    Ok(path)
}
