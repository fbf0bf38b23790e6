//! What operators ask of the running parts, beyond plans and usage.

use std::path::Path;

use async_trait::async_trait;

use crate::{
    backup::{BackupError, Manifest},
    services::doctor::Finding,
};

#[async_trait]
pub trait Operation: Send + Sync {
    /// Writes journal and store of this instant to one file, which replaces what is at `path`.
    async fn backup(&self, path: &Path) -> Result<Manifest, BackupError>;

    /// Looks for faults in everything that runs.
    async fn examine(&self) -> Vec<Finding>;
}
