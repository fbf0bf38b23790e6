//! Brings a database's schema up to the one this program was built with, and refuses a newer one.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rusqlite::Connection;

use crate::store::maintenance::refuse_newer;

mod embedded {
    refinery::embed_migrations!("migrations/sqlite");
}

/// The newest version that this program knows.
pub(super) fn newest_known() -> i64 {
    let runner = embedded::migrations::runner();
    let versions = runner.get_migrations().iter();
    versions
        .map(|migration| i64::from(migration.version()))
        .max()
        .unwrap_or(0)
}

/// The version that a database is at; 0 if it is new.
pub(super) fn version_of(connection: &Connection) -> Result<i64, String> {
    let has_history = connection
        .prepare("SELECT 1 FROM sqlite_schema WHERE name = 'refinery_schema_history'")
        .and_then(|mut statement| statement.exists([]))
        .map_err(|error| error.to_string())?;
    if !has_history {
        return Ok(0);
    }
    connection
        .query_row(
            "SELECT coalesce(max(version), 0) FROM refinery_schema_history",
            [],
            |row| row.get(0),
        )
        .map_err(|error| error.to_string())
}

/// Applies what is missing, all or nothing; the reason why not, for people.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), String> {
    refuse_newer(version_of(connection)?, newest_known())?;
    // refinery panics on a history table that it can't parse; a damaged file must be an error like any other.
    let applied = catch_unwind(AssertUnwindSafe(|| {
        embedded::migrations::runner()
            .set_grouped(true)
            .run(connection)
    }));
    match applied {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("its schema can't be brought up to date: {error}")),
        Err(_) => Err("its table refinery_schema_history is damaged; restore a backup".to_owned()),
    }
}

/// Whether the file is a database that this program could bring up to date.
pub(super) fn look_at(connection: &Connection) -> Result<(), String> {
    refuse_newer(version_of(connection)?, newest_known())
}

/// Whether a file opened again still has the schema that this program works with (it may have been replaced).
pub(super) fn check(connection: &Connection) -> Result<(), String> {
    let (found, known) = (version_of(connection)?, newest_known());
    refuse_newer(found, known)?;
    if found < known {
        return Err(format!(
            "its schema is at version {found}, older than {known}: the file was replaced; restart tollgate to migrate it"
        ));
    }
    Ok(())
}
