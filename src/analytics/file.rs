//! Files of newline-delimited JSON, each there whole or not at all.

use std::{io, path::PathBuf, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    fs::{self, File},
    io::AsyncWriteExt as _,
};

use super::MOST_ATTEMPTS;
use crate::{
    domain::time::Timestamp,
    services::outbox::{Outcome, Sender},
    store::outbox::{Kind, Leased},
};

/// How often a file is written, if there is anything to write.
const EVERY: Duration = Duration::from_secs(10);
/// How many batches one file has at most: some ten megabytes.
const BATCHES: usize = 32;

/// Writes a file every few seconds.
pub struct FileSink {
    directory: PathBuf,
}

impl FileSink {
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Its name comes from its first batch: whoever writes that batch again, since the last one who did ended before it
    /// could say so, replaces the file.
    async fn write(&self, batches: &[Leased]) -> io::Result<()> {
        let Some(first) = batches.first() else {
            return Ok(());
        };
        let time = first.created_at.to_whole_second().to_string();
        let time = time.replace(['-', ':'], "");
        let name = format!("usage-{time}-{}.ndjson", first.identifier);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(&self.directory)
            .await?;
        // Readers look for *.ndjson.
        let temporary = self.directory.join(format!(".{name}.tmp"));
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o640)
            .open(&temporary)
            .await?;
        for batch in batches {
            file.write_all(batch.payload.as_bytes()).await?;
        }
        file.sync_all().await?;
        drop(file);
        fs::rename(&temporary, self.directory.join(name)).await?;
        File::open(&self.directory).await?.sync_all().await
    }
}

impl Sender for FileSink {
    fn kind(&self) -> Kind {
        Kind::AnalyticsBatch
    }

    fn most_attempts(&self) -> u32 {
        MOST_ATTEMPTS
    }

    fn batch(&self) -> usize {
        BATCHES
    }

    fn pause(&self) -> Duration {
        EVERY
    }

    fn send<'a>(&'a self, entries: &'a [Leased], _now: Timestamp) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(async move {
            let outcome = match self.write(entries).await {
                Ok(()) => Outcome::Sent,
                Err(error) => Outcome::Retry {
                    after: None,
                    error: format!("{} can't be written: {error}", self.directory.display()),
                },
            };
            vec![outcome; entries.len()]
        })
    }
}
