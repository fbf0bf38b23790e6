//! Section `storage`: where usage and plans are kept.

use std::path::Path;

use super::{
    There,
    question::{Answers, Question},
};
use crate::{
    config::{Config, Database, sources::Sources},
    store::sqlite::SqliteStore,
};

pub(super) const KEYS: [&str; 1] = ["DATABASE_URL"];

pub(super) fn questions(there: &There) -> Vec<Question> {
    let usual = there.value("DATABASE_URL").unwrap_or_default();
    let question = Question::setting("DATABASE_URL", usual).or_blank();
    vec![question.hint("sqlite:PATH; blank for SQLite in the data dir")]
}

/// Opens the database, or sees whether one could be made there.
pub(super) fn test(there: &There, answers: &Answers) -> Result<Option<String>, String> {
    let url = answers.get("DATABASE_URL").unwrap_or_default();
    let path = if url.is_empty() {
        there.data_dir.join("tollgate.db")
    } else {
        let sources = Sources::none().with_flag("DATABASE_URL", url.to_owned());
        let loaded = Config::load(&sources).map_err(|error| error.to_string())?;
        let Database::Sqlite(path) = loaded.config.database;
        path
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
