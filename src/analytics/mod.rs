//! Usage for analytics: one of the CloudEvents, in batches by way of the outbox, to the sink of the setting.

mod file;
mod http;

use std::{path::PathBuf, sync::Arc};

use serde::Serialize;
use uuid::Uuid;

pub use self::{file::FileSink, http::HttpSink};
use crate::{
    domain::{
        ids::TenantId,
        quantity::Quantity,
        time::Timestamp,
        usage::{Source, UsageEvent},
    },
    services::{objects::EventObject, outbox::Sender},
    store::{
        outbox::{Kind, NewEntry},
        usage::Seq,
    },
    web::{CloudEvent, Poster},
};

/// How many events one batch has at most.
pub const BATCH_EVENTS: usize = 1_000;
/// A sink may be away for about a week: hours pass between the later attempts.
const MOST_ATTEMPTS: u32 = 400;

/// Where `USAGE_ANALYTICS_SINK` says: `file:DIR`, else a collector's address.
#[must_use]
pub fn sink(setting: &str, poster: &Arc<Poster>) -> Arc<dyn Sender> {
    match setting.strip_prefix("file:") {
        Some(directory) => Arc::new(FileSink::new(PathBuf::from(directory))),
        None => Arc::new(HttpSink::new(setting.to_owned(), Arc::clone(poster))),
    }
}

/// What analytics gets of an event: the event as the API shows it, and whose it is.
#[derive(Serialize)]
struct Data<'a> {
    #[serde(flatten)]
    event: EventObject,
    tenant_id: TenantId,
    /// Null if the tenant is not there any more.
    tenant_slug: Option<&'a str>,
}

/// Batches of events of one journal, a line an event; `slug_of` names tenants.
#[must_use]
pub fn batches<'a>(
    journal: Uuid,
    events: &[(Seq, UsageEvent)],
    slug_of: impl Fn(TenantId) -> Option<&'a str>,
    now: Timestamp,
) -> Vec<NewEntry> {
    let batches = events.chunks(BATCH_EVENTS).map(|events| {
        let lines = events
            .iter()
            .map(|(_, event)| line(event, slug_of(event.tenant_id)));
        let [first, last] =
            [events.first(), events.last()].map(|it| it.map_or(0, |(seq, _)| seq.0));
        NewEntry {
            identifier: format!("ana_{}_{first}_{last}", journal.simple()),
            kind: Kind::AnalyticsBatch,
            topic: None,
            tenant: None,
            feature: None,
            value: Some(Quantity::from_count(events.len())),
            lane: None,
            about: None,
            payload: lines.collect(),
            created_at: now,
        }
    });
    batches.collect()
}

fn line(event: &UsageEvent, tenant_slug: Option<&str>) -> String {
    let kind = match event.source {
        Source::Correction => "tollgate.usage.corrected",
        Source::Chat | Source::Reservation | Source::Cloudevent | Source::Manual => {
            "tollgate.usage.recorded"
        }
    };
    let (id, subject) = (event.event_id.to_string(), event.tenant_id.to_string());
    let data = Data {
        event: EventObject::of(event),
        tenant_id: event.tenant_id,
        tenant_slug,
    };
    let event = CloudEvent::new(&id, kind, Some(&subject), event.admitted_at, data);
    let json = serde_json::to_string(&event).expect("an event is plain strings and numbers");
    json + "\n"
}
