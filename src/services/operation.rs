//! What operators ask of the running parts, beyond plans and usage.

use std::path::Path;

use futures_util::future::BoxFuture;

use crate::{
    backup::{BackupError, Manifest},
    services::doctor::Finding,
};

pub trait Operation: Send + Sync {
    /// Writes journal and store of this instant to one file, which replaces what is at `path`.
    fn backup<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<Manifest, BackupError>>;

    /// Looks for faults in everything that runs.
    fn examine(&self) -> BoxFuture<'_, Vec<Finding>>;
}
