//! The shared cases on Postgres, and what only Postgres can get wrong.

#[path = "../../../tests/it/support/postgres.rs"]
pub(crate) mod server;

use std::sync::Arc;

use super::PostgresStore;
use crate::store::SharedStore;
use server::Database;

/// What databases of tests are copied from.
async fn bring_up_to_date(url: &str) {
    drop(open(url).await);
}

async fn open(url: &str) -> PostgresStore {
    PostgresStore::open(&url.parse().unwrap()).await.unwrap()
}

async fn open_temporary() -> (SharedStore, Database) {
    let database = Database::migrated();
    (Arc::new(open(&database.url()).await), database)
}

mod cases {
    crate::store::contract::run_all!(crate::store::postgres::tests::open_temporary);
}
