//! Section `storage`: where usage and plans are kept.

use std::path::Path;

use super::{
    There,
    question::{Answers, Question},
};
use crate::{
    config::{Config, Database, sources::Sources},
    store::{
        postgres::{self, PostgresUrl},
        sqlite::SqliteStore,
    },
};

pub(super) const KEYS: [&str; 1] = ["DATABASE_URL"];

pub(super) fn questions(there: &There) -> Vec<Question> {
    let usual = there.value("DATABASE_URL").unwrap_or_default();
    let question = Question::setting("DATABASE_URL", usual).or_blank();
    vec![question.hint(
        "sqlite:PATH, or postgres://USER:PASSWORD@HOST/DATABASE for several servers; blank for SQLite in the data dir",
    )]
}

/// Opens the database, or sees whether one could be made there.
pub(super) async fn test(there: &There, answers: &Answers) -> Result<Option<String>, String> {
    let url = answers.get("DATABASE_URL").unwrap_or_default();
    let path = if url.is_empty() {
        there.data_dir.join("tollgate.db")
    } else {
        let sources = Sources::none().with_flag("DATABASE_URL", url.to_owned());
        let loaded = Config::load(&sources).map_err(|error| error.to_string())?;
        match loaded.config.database {
            Database::Sqlite(path) => path,
            Database::Postgres(url) => return test_postgres(&url).await,
        }
    };
    let path = there.directory.join(path);
    let shown = path.display();
    if path.exists() {
        return match SqliteStore::look_at(&path) {
            Ok(()) => Ok(Some(format!("the database {shown} can be opened"))),
            Err(error) => Err(format!("the database can't be used: {error}")),
        };
    }
    if url.is_empty() {
        return Ok(None); // made with the data dir
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    match tempfile::tempfile_in(directory) {
        Ok(_) => Ok(Some(format!("the database {shown} will be made"))),
        Err(error) => Err(format!(
            "the database {shown} can't be made: directory {} can't be written: {error}",
            directory.display()
        )),
    }
}

/// Connects and looks; nothing is changed.
async fn test_postgres(url: &PostgresUrl) -> Result<Option<String>, String> {
    let found = postgres::inspect(url).await;
    let found = found.map_err(|error| format!("the database can't be used: {error}"))?;
    let (is_at, known) = (found.schema_version, postgres::newest_schema_version());
    if is_at > known {
        return Err(format!(
            "the database can't be used: its schema is at version {is_at}, newer than {known}, the newest that this tollgate knows"
        ));
    }
    let schema = match is_at {
        0 => "tables will be made".to_owned(),
        is_at => format!("schema version {is_at}"),
    };
    let warning = if url.is_open_to_others() {
        "; anybody on the way can pretend to be it: add sslmode=verify-full"
    } else {
        ""
    };
    Ok(Some(format!(
        "{url}: Postgres {}, {schema}{warning}",
        found.server_version
    )))
}
