//! What operators' commands need of a store beyond its data.

use std::{path::Path, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use super::StoreResult;
use crate::domain::{feature::FeatureKey, time::Timestamp};

/// The store as it was at one instant, whatever is written meanwhile; costs room in its log until it is dropped.
pub trait StoreCopy: Send {
    /// The version of its schema.
    fn schema_version(&self) -> i64;

    /// Writes all of it to `path`, an empty file, as one SQLite database. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`](super::StoreError) if it can't be read, or the file not written.
    fn write_to(self: Box<Self>, path: &Path) -> StoreResult<()>;
}

/// How a transaction went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transacted {
    /// Such as `usage.record`.
    pub name: &'static str,
    pub took: Duration,
    /// How often it was run: more than once if the store asked for that.
    pub attempts: u32,
    /// Done, or rightly refused.
    pub is_done: bool,
}

/// Told of every transaction.
pub type Measure = Arc<dyn Fn(Transacted) + Send + Sync>;

pub trait MaintenanceStore: Send + Sync {
    /// Has `measure` told of every transaction, if the store has a server of its own; the first one given stays.
    fn measure_with(&self, measure: Measure) {
        drop(measure);
    }

    /// Keeps the present state for copying.
    fn begin_copy(&self) -> BoxFuture<'_, StoreResult<Box<dyn StoreCopy>>>;

    /// What is wrong with the file's own structure, as lines for people; empty if it is whole. Reads all of it.
    fn check_integrity(&self) -> BoxFuture<'_, StoreResult<Vec<String>>>;

    /// When the last event was recorded; `None` if there is none.
    fn last_recorded_at(&self) -> BoxFuture<'_, StoreResult<Option<Timestamp>>>;

    /// Whether anybody ever used the feature. May read all rollups.
    fn is_feature_used<'a>(&'a self, feature: &'a FeatureKey) -> BoxFuture<'a, StoreResult<bool>>;

    /// The version of its schema, which is the one that this program was built with.
    fn schema_version(&self) -> BoxFuture<'_, StoreResult<i64>>;
}

/// A schema that a newer program has changed is not touched.
pub(super) fn refuse_newer(found: i64, known: i64) -> Result<(), String> {
    if found > known {
        return Err(format!(
            "its schema is at version {found}, newer than {known}, the newest this program knows; \
             run the tollgate that wrote it, or restore a backup made before the upgrade"
        ));
    }
    Ok(())
}
