//! `tollgate migrate`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::json;

use super::{
    output::{NOTHING, Output},
    progress,
};
use crate::{
    app::{
        self,
        data_dir::{DataDir, DataDirError, DatabaseLock, Share},
    },
    backup,
    clock::Clock,
    config::{self, Database, Loaded},
    control::Step,
    store::{
        postgres::{self, PostgresStore, PostgresUrl},
        sqlite::{SqliteStore, export::Export, maintenance},
    },
};

/// Brings the database's schema up to this version's; with --from, moves everything to another database
///
/// Forward only. Of a SQLite database a backup is made first: the way back is to restore it with the older version; of a
/// Postgres database, make one with `pg_dump`. `serve` and every other command do the same without the backup.
///
/// With --from, all tables of a SQLite database go to a Postgres database that is empty: everything, or nothing if it
/// fails on the way. Stop the server first; start it again with the new `DATABASE_URL` and the same data dir. What a server
/// records meanwhile does not go along.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: tollgate migrate\nExample: tollgate migrate --from sqlite:var/tollgate.db --to postgres://tollgate@db.example.com/tollgate"
)]
pub(super) struct Migrate {
    /// The database to move from: sqlite:PATH
    #[arg(long, value_name = "URL")]
    from: Option<String>,
    /// The database to move to: postgres://… [default: `DATABASE_URL`, which keeps its password to itself]
    #[arg(long, value_name = "URL", requires = "from")]
    to: Option<String>,
}

impl Migrate {
    pub(super) async fn run(self, loaded: &Loaded) -> anyhow::Result<Output> {
        if let Some(from) = &self.from {
            return r#move(loaded, from, self.to.as_deref()).await;
        }
        match &loaded.config.database {
            Database::Sqlite(path) => migrate_sqlite(loaded, path).await,
            Database::Postgres(url) => migrate_postgres(url).await,
        }
    }
}

async fn migrate_sqlite(loaded: &Loaded, database: &Path) -> anyhow::Result<Output> {
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
    let _database = DatabaseLock::take(database, &held, Share::Alone)?;
    let backup = back_up(loaded, &held, database, found).await?;
    SqliteStore::open(database).with_context(|| {
        format!(
            "the database is as it was; a backup is at {}",
            backup.display()
        )
    })?;
    Ok(outcome(Some(found), known, Some(&backup)).note("Brought up to date."))
}

async fn migrate_postgres(url: &PostgresUrl) -> anyhow::Result<Output> {
    let known = postgres::newest_schema_version();
    let found = postgres::inspect(url).await?.schema_version;
    // Says why, if the schema is a newer one's.
    PostgresStore::open(url).await?;
    let note = if found == known {
        "Up to date; nothing was changed."
    } else {
        "Brought up to date."
    };
    Ok(outcome((found > 0).then_some(found), known, None).note(note))
}

async fn r#move(loaded: &Loaded, from: &str, to: Option<&str>) -> anyhow::Result<Output> {
    let Some(Database::Sqlite(from)) = config::database_of(from) else {
        bail!("--from is not the address of a SQLite database; write sqlite:PATH");
    };
    let to = match to.map(config::database_of) {
        Some(Some(Database::Postgres(url))) => url,
        None => match &loaded.config.database {
            Database::Postgres(url) => url.clone(),
            Database::Sqlite(_) => bail!(
                "nothing says where to move to; write --to postgres://USER@HOST/DATABASE, or set DATABASE_URL"
            ),
        },
        Some(_) => bail!(
            "--to is not the address of a Postgres database; write postgres://USER:PASSWORD@HOST/DATABASE"
        ),
    };
    if !from.exists() {
        bail!("there is no database at {}", from.display());
    }
    let export = Export::open(&from)?;
    let data_dir = match from.parent() {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    };
    let is_served = crate::control::is_served(data_dir).await;
    let shown = progress::Shown::default();
    let show = shown.progress();
    let store = PostgresStore::open(&to).await?;
    let steps = |done, total| show(Step { done, total });
    store
        .import(&export, &steps)
        .await
        .context("nothing was moved")?;
    drop(shown);
    let items: Vec<_> = export
        .tables()
        .iter()
        .map(|table| json!({ "table": table.name, "rows": table.rows }))
        .collect();
    let rows: u64 = export.tables().iter().map(|table| table.rows).sum();
    let table = export.tables().iter();
    let table = table.map(|table| vec![table.name.clone(), table.rows.to_string()]);
    let output = Output::of_json(json!({ "items": items, "rows": rows, "is_served": is_served }))
        .table(&["table", "rows"], table.collect())
        .note(format!(
            "{rows} rows moved to {to}; every table has as many rows as it had. Start the server with the new DATABASE_URL and the same data dir: what waits in its journal goes to the new database."
        ));
    Ok(if is_served {
        output.note(
            "A server runs on the old database: what it records from now on is not in the new one. Stop it and move again, to an empty database.",
        )
    } else {
        output
    })
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
