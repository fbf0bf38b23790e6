//! What operators' commands ask of a Postgres database.

use futures_util::future::BoxFuture;

use super::{
    PostgresStore, PostgresUrl,
    connect::Connector,
    migrate,
    rows::{self, params},
    text_of,
};
use crate::{
    domain::{feature::FeatureKey, time::Timestamp},
    provider::resolve::Resolver,
    store::{
        StoreError, StoreResult,
        maintenance::{MaintenanceStore, Measure, StoreCopy},
    },
};

impl MaintenanceStore for PostgresStore {
    fn measure_with(&self, measure: Measure) {
        self.pool.measure_with(measure);
    }

    fn begin_copy(&self) -> BoxFuture<'_, StoreResult<Box<dyn StoreCopy>>> {
        Box::pin(async move { Err(StoreError::Unavailable(NO_COPY.to_owned())) })
    }

    /// What a server can be made to say of itself: its pages are its own affair.
    fn check_integrity(&self) -> BoxFuture<'_, StoreResult<Vec<String>>> {
        Box::pin(self.read_at_leisure("store.check_integrity", move |tx| async move {
            let mut lines = rows::list(
                &tx,
                "pg_settings",
                "SELECT name || ' is off in the server: after a power loss the database may be lost' AS line
                 FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off' ORDER BY name",
                params![],
                |cells| cells.get::<String>("line"),
            )
            .await?;
            let invalid = rows::list(
                &tx,
                "pg_index",
                "SELECT 'index ' || indexrelid::regclass || ' is not valid: REINDEX it' AS line
                 FROM pg_index JOIN pg_class ON pg_class.oid = indrelid
                 WHERE NOT indisvalid AND relnamespace = to_regnamespace(current_schema()) ORDER BY 1",
                params![],
                |cells| cells.get::<String>("line"),
            );
            lines.extend(invalid.await?);
            Ok(lines)
        }))
    }

    fn last_recorded_at(&self) -> BoxFuture<'_, StoreResult<Option<Timestamp>>> {
        Box::pin(
            self.read_at_leisure("store.last_recorded_at", move |tx| async move {
                let last = rows::find(
                    &tx,
                    "usage_events",
                    "SELECT recorded_at FROM usage_events ORDER BY recorded_at DESC LIMIT 1",
                    params![],
                    |cells| cells.time("recorded_at"),
                );
                last.await
            }),
        )
    }

    fn is_feature_used<'a>(&'a self, feature: &'a FeatureKey) -> BoxFuture<'a, StoreResult<bool>> {
        Box::pin(
            self.read_at_leisure("store.is_feature_used", move |tx| async move {
                rows::exists(
                    &tx,
                    "SELECT 1 FROM usage_trends WHERE feature_key = $1 LIMIT 1",
                    params![feature.as_str()],
                )
                .await
            }),
        )
    }

    fn schema_version(&self) -> BoxFuture<'_, StoreResult<i64>> {
        Box::pin(self.read("store.schema_version", move |tx| async move {
            Ok(migrate::version_of(&tx).await?)
        }))
    }
}

/// Why there is no copy, and what to do.
pub(crate) const NO_COPY: &str = "the store is Postgres, which has its own tools: pg_dump -Fc writes a backup while tollgate runs, pg_restore brings it back";

/// What a database is found to be, without changing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// As the server names it, such as `15.8`.
    pub server_version: String,
    /// The version of its schema; 0 if it holds none.
    pub schema_version: i64,
}

/// Connects and looks.
///
/// # Errors
/// [`StoreError::Unavailable`] if it can't be reached, or not be entered.
pub async fn inspect(url: &PostgresUrl) -> StoreResult<Inspected> {
    let unavailable = |why: String| StoreError::Unavailable(format!("{url}: {why}"));
    let sql = |error: tokio_postgres::Error| unavailable(text_of(&error));
    let connector = Connector::new(url.clone(), Resolver::default()).map_err(unavailable)?;
    let (client, driven) = connector.open_driven().await.map_err(unavailable)?;
    let version = client.query_one("SHOW server_version", &[]).await;
    let found = Inspected {
        server_version: version.map_err(sql)?.get(0),
        schema_version: migrate::version_of(&client).await.map_err(sql)?,
    };
    drop(client);
    let _ = driven.await;
    Ok(found)
}

/// The newest schema version that this program knows.
#[must_use]
pub fn newest_schema_version() -> i64 {
    migrate::newest_known()
}
