//! What operators ask of the running parts, beside a server and without one.

use std::path::Path;

use async_trait::async_trait;

use super::Parts;
use crate::{
    backup::{self, BackupError, Manifest},
    config::Database,
    services::{
        doctor::{Doctor, Finding},
        operation::Operation,
        recorder::DrainError,
    },
    store::postgres,
};

#[async_trait]
impl Operation for Parts {
    async fn backup(&self, path: &Path) -> Result<Manifest, BackupError> {
        if let Database::Postgres(_) = self.config.database {
            return Err(BackupError::NotHere(postgres::NO_COPY));
        }
        let at = self.clock.now();
        let (journal, database) = self.recorder.freeze().await.map_err(|error| match error {
            DrainError::Store(error) => BackupError::from(error),
            DrainError::Journal(error) => error.into(),
        })?;
        let parts = backup::Parts {
            database,
            journal: Some(journal),
            at,
        };
        backup::write(path.to_owned(), parts).await
    }

    async fn examine(&self) -> Vec<Finding> {
        let doctor = Doctor {
            config: &self.config,
            clock: &self.clock,
            store: &self.store,
            recorder: &self.recorder,
            catalogue: &self.catalogue,
            provider: self.provider.as_ref(),
            stripe: self.stripe.as_deref(),
        };
        doctor.examine().await
    }
}
