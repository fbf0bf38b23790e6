//! What operators ask of the running parts, beside a server and without one.

use std::path::Path;

use futures_util::future::BoxFuture;

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

impl Operation for Parts {
    fn backup<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<Manifest, BackupError>> {
        Box::pin(async move {
            if let Database::Postgres(_) = self.config.database {
                return Err(BackupError::NotHere(postgres::NO_COPY));
            }
            let at = self.clock.now();
            let (journal, database) =
                self.recorder.freeze().await.map_err(|error| match error {
                    DrainError::Store(error) => BackupError::from(error),
                    DrainError::Journal(error) => error.into(),
                })?;
            let parts = backup::Parts {
                database,
                journal: Some(journal),
                at,
            };
            backup::write(path.to_owned(), parts).await
        })
    }

    fn examine(&self) -> BoxFuture<'_, Vec<Finding>> {
        Box::pin(async move {
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
        })
    }
}
