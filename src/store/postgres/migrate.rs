//! Brings a database's schema up to the one this program was built with, and refuses a newer one.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use tokio_postgres::Client;

use super::text_of;
use crate::store::maintenance::refuse_newer;

mod embedded {
    refinery::embed_migrations!("migrations/postgres");
}

/// Held by whoever migrates: replicas that start at once do it one after the other. Any number, but always this one.
const LOCK: i64 = 0x746f_6c6c_6761_7465;

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
pub(super) async fn version_of(client: &Client) -> Result<i64, tokio_postgres::Error> {
    let has_history = client
        .query_one(
            "SELECT to_regclass('refinery_schema_history') IS NOT NULL",
            &[],
        )
        .await?;
    if !has_history.get::<_, bool>(0) {
        return Ok(0);
    }
    let newest = client
        .query_one(
            "SELECT coalesce(max(version), 0)::bigint FROM refinery_schema_history",
            &[],
        )
        .await?;
    Ok(newest.get(0))
}

/// Applies what is missing, all or nothing, once others have done the same; the version found, or the reason why not,
/// for people.
pub(super) async fn migrate(client: &mut Client) -> Result<i64, String> {
    let sql = |error: tokio_postgres::Error| text_of(&error);
    // The lock goes with the connection, should this end in between.
    client
        .batch_execute("SET lock_timeout = 0; SET statement_timeout = 0")
        .await
        .map_err(sql)?;
    client
        .execute("SELECT pg_advisory_lock($1)", &[&LOCK])
        .await
        .map_err(sql)?;
    let found = version_of(client).await.map_err(sql)?;
    refuse_newer(found, newest_known())?;
    // refinery panics on a history table that it can't parse; damage must be an error like any other.
    let runner = embedded::migrations::runner().set_grouped(true);
    let applied = AssertUnwindSafe(runner.run_async(client))
        .catch_unwind()
        .await;
    match applied {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            return Err(format!(
                "its schema can't be brought up to date: {}",
                chain(&error)
            ));
        }
        Err(_) => {
            return Err(
                "its table refinery_schema_history is damaged; restore a backup".to_owned(),
            );
        }
    }
    client
        .execute("SELECT pg_advisory_unlock($1)", &[&LOCK])
        .await
        .map_err(sql)?;
    Ok(found)
}

/// An error with what lies behind it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The versions and names, as SQLite's must be too.
#[cfg(test)]
pub(super) fn known() -> Vec<(i64, String)> {
    let runner = embedded::migrations::runner();
    let migrations = runner.get_migrations().iter();
    migrations
        .map(|migration| (i64::from(migration.version()), migration.name().to_owned()))
        .collect()
}
