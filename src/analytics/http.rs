//! A collector that takes batches of CloudEvents.

use std::{
    io::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};
use futures_util::future::BoxFuture;
use futures_util::future::join_all;

use super::MOST_ATTEMPTS;
use crate::{
    domain::time::Timestamp,
    services::outbox::{Outcome, Sender},
    store::outbox::{Kind, Leased},
    web::{Message, Poster},
};

const EVERY: Duration = Duration::from_secs(1);
/// How many batches are on their way at once.
const AT_ONCE: usize = 4;

/// Posts each batch by itself.
pub struct HttpSink {
    address: String,
    poster: Arc<Poster>,
}

impl HttpSink {
    #[must_use]
    pub fn new(address: String, poster: Arc<Poster>) -> Self {
        Self { address, poster }
    }

    async fn post(&self, batch: &Leased, now: Timestamp) -> Outcome {
        let body = match body(&batch.payload) {
            Ok(body) => body,
            Err(error) => {
                return Outcome::Dead {
                    error: format!("can't be compressed: {error}"),
                };
            }
        };
        let message = Message {
            id: &batch.identifier,
            content_type: "application/cloudevents-batch+json",
            content_encoding: Some("gzip"),
            body,
        };
        self.poster.post(&self.address, message, now).await.into()
    }
}

/// Lines as one JSON array, compressed.
fn body(lines: &str) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let mut before = b'[';
    for line in lines.lines() {
        encoder.write_all(&[before])?;
        encoder.write_all(line.as_bytes())?;
        before = b',';
    }
    encoder.write_all(b"]")?;
    encoder.finish()
}

impl Sender for HttpSink {
    fn kind(&self) -> Kind {
        Kind::AnalyticsBatch
    }

    fn most_attempts(&self) -> u32 {
        MOST_ATTEMPTS
    }

    fn batch(&self) -> usize {
        AT_ONCE
    }

    fn pause(&self) -> Duration {
        EVERY
    }

    fn send<'a>(&'a self, entries: &'a [Leased], now: Timestamp) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(async move { join_all(entries.iter().map(|batch| self.post(batch, now))).await })
    }
}
