//! How events lie in a row of the journal: a format byte, the number of events, and the events one after another,
//! each in postcard.
//!
//! The stored shape is its own type, apart from [`UsageEvent`]: renaming or reordering something in the domain
//! must not change what an older file means. A new shape gets a new format byte; the old one stays readable.

use serde::Deserialize;
use smallvec::SmallVec;
use uuid::Uuid;

use crate::domain::{
    feature::FeatureKey,
    ids::{EventId, KeyId, TenantId},
    quantity::Quantity,
    time::Timestamp,
    usage::{Source, UsageEvent},
};

/// The first byte of a row.
const FORMAT: u8 = 1;
/// What an event takes that names a model and the price it was taken from, with room to spare.
const USUAL_EVENT: usize = 256;
/// Bytes that no event is without: two ids, and a byte for each of the rest.
const SMALLEST_EVENT: usize = 2 * 16 + 11;

/// Why a row could not be read.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum RowError {
    #[error("it has format {0}, which this version does not know; a newer one wrote it")]
    UnknownFormat(u8),
    #[error("it cannot be decoded: {0}")]
    Damaged(String),
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
struct StoredEvent<'a> {
    event_id: [u8; 16],
    #[serde(borrow)]
    request_id: &'a str,
    source: u8,
    tenant_id: [u8; 16],
    key_id: Option<[u8; 16]>,
    #[serde(borrow)]
    user: &'a str,
    #[serde(borrow)]
    model: Option<&'a str>,
    #[serde(borrow)]
    quantities: SmallVec<[(&'a str, i64); 4]>,
    estimated: bool,
    #[serde(borrow)]
    reason: Option<&'a str>,
    #[serde(borrow)]
    price_id: Option<&'a str>,
    /// µs since 1970.
    admitted_at: i64,
    recorded_at: i64,
}

/// One event, as it will lie in a row. Encoding is the caller's work, not that of the one writer thread.
///
/// Written by hand, in the order of [`StoredEvent`], as [postcard](https://postcard.jamesmunns.com/wire-format.html)
/// would: every request does it, and postcard takes an id byte by byte.
pub(super) fn encode_event(event: &UsageEvent) -> Vec<u8> {
    let mut to = Encoder(Vec::with_capacity(USUAL_EVENT));
    to.id(event.event_id.uuid());
    to.text(&event.request_id);
    to.0.push(source_code(event.source));
    to.id(event.tenant_id.uuid());
    to.option(event.key_id, |to, key| to.id(key.uuid()));
    to.text(&event.user);
    to.option(event.model.as_deref(), Encoder::text);
    to.length(event.quantities.iter().count());
    for (feature, quantity) in event.quantities.iter() {
        to.text(feature.as_str());
        to.number(quantity.get());
    }
    to.0.push(u8::from(event.estimated));
    to.option(event.reason.as_deref(), Encoder::text);
    to.option(event.price_id.as_deref(), Encoder::text);
    to.number(event.admitted_at.micros());
    to.number(event.recorded_at.micros());
    to.0
}

struct Encoder(Vec<u8>);

impl Encoder {
    fn id(&mut self, id: Uuid) {
        self.0.extend_from_slice(id.as_bytes());
    }

    fn text(&mut self, text: &str) {
        self.length(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.0.push(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn length(&mut self, length: usize) {
        self.varint(length as u64);
    }

    /// Small magnitudes of either sign are short ("zigzag").
    fn number(&mut self, number: i64) {
        self.varint((number << 1).cast_unsigned() ^ (number >> 63).cast_unsigned());
    }

    /// Seven bits a byte, the lowest first; the eighth says that more follow.
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            let [low, ..] = number.to_le_bytes();
            self.0.push(low | 0x80);
            number >>= 7;
        }
        let [last, ..] = number.to_le_bytes();
        self.0.push(last);
    }
}

/// A row of encoded events.
pub(super) fn encode_row<'a>(events: impl ExactSizeIterator<Item = &'a [u8]> + Clone) -> Vec<u8> {
    let size: usize = events.clone().map(<[u8]>::len).sum();
    let mut row = Vec::with_capacity(size + 11);
    row.push(FORMAT);
    let mut row =
        postcard::to_extend(&events.len(), row).expect("a growing buffer takes any number");
    for event in events {
        row.extend_from_slice(event);
    }
    row
}

/// How many events are in `row`.
pub(super) fn count_events(row: &[u8]) -> Result<u64, RowError> {
    read_head(row).map(|(count, _)| count)
}

/// The events of `row`, in order.
pub(super) fn decode_row(row: &[u8]) -> Result<Vec<UsageEvent>, RowError> {
    let (count, mut rest) = read_head(row)?;
    // A damaged row may say any number.
    let most = rest.len() / SMALLEST_EVENT;
    let mut events = Vec::with_capacity(usize::try_from(count).map_or(most, |it| it.min(most)));
    for _ in 0..count {
        let (stored, after) =
            postcard::take_from_bytes::<StoredEvent<'_>>(rest).map_err(damaged)?;
        events.push(stored.into_event()?);
        rest = after;
    }
    if rest.is_empty() {
        Ok(events)
    } else {
        Err(RowError::Damaged(format!(
            "{} bytes follow its last event",
            rest.len()
        )))
    }
}

fn read_head(row: &[u8]) -> Result<(u64, &[u8]), RowError> {
    match row.split_first() {
        None => Err(RowError::Damaged("it is empty".to_owned())),
        Some((&FORMAT, rest)) => postcard::take_from_bytes(rest).map_err(damaged),
        Some((&other, _)) => Err(RowError::UnknownFormat(other)),
    }
}

impl StoredEvent<'_> {
    fn into_event(self) -> Result<UsageEvent, RowError> {
        let quantities = self
            .quantities
            .into_iter()
            .map(|(feature, quantity)| {
                // The parser's error would quote what the event says.
                let feature = feature
                    .parse::<FeatureKey>()
                    .map_err(|_| damaged("a feature's key is none"))?;
                Ok((feature, Quantity::new(quantity)))
            })
            .collect::<Result<_, RowError>>()?;
        Ok(UsageEvent {
            event_id: EventId::new(Uuid::from_bytes(self.event_id)),
            request_id: self.request_id.to_owned(),
            source: source_of(self.source)?,
            tenant_id: TenantId::new(Uuid::from_bytes(self.tenant_id)),
            key_id: self.key_id.map(|key| KeyId::new(Uuid::from_bytes(key))),
            user: self.user.to_owned(),
            model: self.model.map(str::to_owned),
            quantities,
            estimated: self.estimated,
            reason: self.reason.map(str::to_owned),
            price_id: self.price_id.map(str::to_owned),
            admitted_at: Timestamp::from_micros(self.admitted_at),
            recorded_at: Timestamp::from_micros(self.recorded_at),
        })
    }
}

const fn source_code(source: Source) -> u8 {
    match source {
        Source::Chat => 0,
        Source::Reservation => 1,
        Source::Cloudevent => 2,
        Source::Manual => 3,
        Source::Correction => 4,
    }
}

fn source_of(code: u8) -> Result<Source, RowError> {
    Source::ALL
        .into_iter()
        .find(|source| source_code(*source) == code)
        .ok_or_else(|| RowError::Damaged(format!("source {code} is unknown")))
}

fn damaged(error: impl std::fmt::Display) -> RowError {
    RowError::Damaged(error.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::usage::Quantities;

    fn any_event() -> impl Strategy<Value = UsageEvent> {
        let feature = prop_oneof!["messages", "input_tokens", "cost", "[a-z][a-z0-9_.-]{0,20}"];
        let quantities = proptest::collection::vec((feature, -1_i64 << 53..1 << 53), 0..6);
        let who = (any::<[u128; 3]>(), any::<bool>(), ".{0,20}", ".{0,20}");
        let texts = proptest::option::of((".{0,9}", ".{0,9}", ".{0,9}"));
        let rest = (0..Source::ALL.len(), any::<bool>(), any::<[i64; 2]>());
        (who, quantities, texts, rest).prop_map(
            |((ids, keyed, request_id, user), quantities, texts, (source, estimated, times))| {
                let quantities: Quantities = quantities
                    .into_iter()
                    .map(|(key, value)| (key.parse().unwrap(), Quantity::new(value)))
                    .collect();
                UsageEvent {
                    event_id: EventId::new(Uuid::from_u128(ids[0])),
                    request_id,
                    source: Source::ALL[source],
                    tenant_id: TenantId::new(Uuid::from_u128(ids[1])),
                    key_id: keyed.then(|| KeyId::new(Uuid::from_u128(ids[2]))),
                    user,
                    model: texts.as_ref().map(|it| it.0.clone()),
                    // Sums that came to zero are left out, as in every event that tollgate makes.
                    quantities: quantities
                        .iter()
                        .map(|(key, value)| (key.clone(), value))
                        .collect(),
                    estimated,
                    reason: texts.as_ref().map(|it| it.1.clone()),
                    price_id: texts.as_ref().map(|it| it.2.clone()),
                    admitted_at: Timestamp::from_micros(times[0]),
                    recorded_at: Timestamp::from_micros(times[1]),
                }
            },
        )
    }

    /// What postcard makes of an event.
    fn by_postcard(event: &UsageEvent) -> Vec<u8> {
        let quantities = event.quantities.iter();
        let stored = StoredEvent {
            event_id: event.event_id.uuid().into_bytes(),
            request_id: &event.request_id,
            source: source_code(event.source),
            tenant_id: event.tenant_id.uuid().into_bytes(),
            key_id: event.key_id.map(|key| key.uuid().into_bytes()),
            user: &event.user,
            model: event.model.as_deref(),
            quantities: quantities
                .map(|(feature, quantity)| (feature.as_str(), quantity.get()))
                .collect(),
            estimated: event.estimated,
            reason: event.reason.as_deref(),
            price_id: event.price_id.as_deref(),
            admitted_at: event.admitted_at.micros(),
            recorded_at: event.recorded_at.micros(),
        };
        postcard::to_stdvec(&stored).unwrap()
    }

    fn row_of(events: &[UsageEvent]) -> Vec<u8> {
        let encoded: Vec<_> = events.iter().map(encode_event).collect();
        encode_row(encoded.iter().map(Vec::as_slice))
    }

    proptest! {
        #[test]
        fn an_event_is_written_as_postcard_would(event in any_event()) {
            prop_assert_eq!(encode_event(&event), by_postcard(&event));
        }

        #[test]
        fn a_row_gives_back_its_events(events in proptest::collection::vec(any_event(), 0..5)) {
            let row = row_of(&events);
            prop_assert_eq!(count_events(&row), Ok(u64::try_from(events.len()).unwrap()));
            prop_assert_eq!(decode_row(&row), Ok(events));
        }

        #[test]
        fn a_cut_row_is_refused(events in proptest::collection::vec(any_event(), 1..4), cut in 1_usize..40) {
            let mut row = row_of(&events);
            row.truncate(row.len().saturating_sub(cut));
            prop_assert!(decode_row(&row).is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_row(&bytes);
            let mut bytes = bytes;
            bytes.insert(0, FORMAT);
            let _ = decode_row(&bytes);
        }
    }

    #[test]
    fn a_row_of_format_1_stays_readable() {
        let event = UsageEvent {
            event_id: EventId::new(Uuid::from_u128(1)),
            request_id: "req-1".to_owned(),
            source: Source::Manual,
            tenant_id: TenantId::new(Uuid::from_u128(2)),
            key_id: Some(KeyId::new(Uuid::from_u128(3))),
            user: "ann".to_owned(),
            model: Some("gpt".to_owned()),
            quantities: Quantities::default().with(FeatureKey::Messages, Quantity::ONE),
            estimated: true,
            reason: None,
            price_id: Some("p".to_owned()),
            admitted_at: Timestamp::from_micros(64),
            recorded_at: Timestamp::from_micros(-1),
        };
        let written = b"\x01\x01\
            \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x05req-1\x03\
            \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\
            \x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x03\
            \x03ann\x01\x03gpt\x01\x08messages\x02\x01\0\x01\x01p\x80\x01\x01";
        assert_eq!(decode_row(written), Ok(vec![event.clone()]));
        assert_eq!(row_of(&[event]), written);
    }

    #[test]
    fn a_row_of_a_newer_format_is_named_as_such() {
        assert_eq!(decode_row(&[2, 0]), Err(RowError::UnknownFormat(2)));
    }
}
