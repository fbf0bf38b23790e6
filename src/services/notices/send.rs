//! Posts notices.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::Notices;
use crate::{
    domain::time::Timestamp,
    services::outbox::{Outcome, Sender},
    store::outbox::{Kind, Leased},
    web::Message,
};

const EVERY: Duration = Duration::from_millis(500);
const AT_ONCE: usize = 16;
/// About two days: half an hour passes between the later attempts on average.
const MOST_ATTEMPTS: u32 = 100;

/// A notice to one address, as the outbox keeps it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Payload {
    /// The address's name.
    pub(super) to: String,
    pub(super) id: String,
    /// The same at every attempt.
    pub(super) body: String,
}

impl Payload {
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a payload is plain strings")
    }
}

pub(super) fn message(id: &str, body: Vec<u8>) -> Message<'_> {
    Message {
        id,
        content_type: "application/cloudevents+json",
        content_encoding: None,
        body,
    }
}

/// Posts each notice to its address.
pub struct NoticeSender(pub Arc<Notices>);

impl NoticeSender {
    async fn post(&self, entry: &Leased, now: Timestamp) -> Outcome {
        let payload: Payload = match serde_json::from_str(&entry.payload) {
            Ok(payload) => payload,
            Err(error) => {
                return Outcome::Dead {
                    error: format!("can't be read: {error}"),
                };
            }
        };
        let addresses = &self.0.addresses;
        let Some(address) = addresses.iter().find(|it| it.name == payload.to) else {
            return Outcome::Dead {
                error: "its address is not in USAGE_WEBHOOK_URL any more".to_owned(),
            };
        };
        let message = message(&payload.id, payload.body.into_bytes());
        self.0
            .parts
            .poster
            .post(&address.url, message, now)
            .await
            .into()
    }
}

impl Sender for NoticeSender {
    fn kind(&self) -> Kind {
        Kind::Notice
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
        Box::pin(async move { join_all(entries.iter().map(|entry| self.post(entry, now))).await })
    }
}
