//! What goes to the scripts and comes back, in `MessagePack`. Field names and orders are those of `lua/*.lua`.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::{
    domain::{
        feature::FeatureKey,
        ids::{EventId, KeyId, ReservationId},
        limit::{ActiveLimit, SoftLimitMode, Subject},
        quantity::Quantity,
        time::Timestamp,
        usage::{Quantities, UsageEvent},
        window::Window,
    },
    ledger::subjects::{SubjectRef, Who},
    store::usage::CounterOf,
};

/// No limit, no key, no bound.
pub(super) const NONE: i64 = -1;

/// Doubles hold no larger whole number exactly; a lifetime's end is beyond, and so is any present.
const FARTHEST: i64 = Quantity::MAX.get();

pub(super) type Pairs = Vec<(String, i64)>;

pub(super) fn pairs(quantities: &Quantities) -> Pairs {
    let pairs = quantities.iter();
    pairs
        .map(|(feature, quantity)| (feature.as_str().to_owned(), quantity.get()))
        .collect()
}

/// The part of a subject's key that follows the tenant's root.
pub(super) fn subject_name(subject: SubjectRef<'_>) -> String {
    match subject {
        SubjectRef::Tenant => "t".to_owned(),
        SubjectRef::Key(key) => format!("k:{key}"),
        SubjectRef::User(user) => format!("u:{user}"),
    }
}

pub(super) fn key_name(key: Option<KeyId>) -> String {
    key.map_or_else(String::new, |key| key.to_string())
}

fn counter_id(feature: &FeatureKey, window: Window) -> String {
    let (start, end) = (window.start().micros(), window.end().micros());
    format!("{feature}:{start}:{end}")
}

fn bounds(window: Window) -> (i64, i64) {
    (
        window.start().micros().clamp(-FARTHEST, FARTHEST),
        window.end().micros().min(FARTHEST),
    )
}

/// Subject, id, feature, start, end, hard limit, ceiling.
#[derive(Debug, Serialize)]
pub(super) struct Limit(String, String, String, i64, i64, i64, i64);

impl Limit {
    /// Of its subject and its counter.
    pub(super) fn names(&self) -> (&str, &str) {
        (&self.0, &self.1)
    }
}

/// Of a counter's subject and of itself.
pub(super) fn names_of(counter: &CounterOf) -> (String, String) {
    (
        subject_name((&counter.subject).into()),
        counter_id(&counter.feature, counter.window),
    )
}

/// The limits that apply to `who`, with their places in `limits`.
pub(super) fn limits_of(
    who: Who<'_>,
    limits: &[ActiveLimit],
    soft: SoftLimitMode,
) -> (Vec<usize>, Vec<Limit>) {
    let applying = limits.iter().enumerate().filter_map(|(index, limit)| {
        let subject = who.in_scope(limit.scope)?;
        let (start, end) = bounds(limit.window);
        let wire = Limit(
            subject_name(subject),
            counter_id(&limit.feature, limit.window),
            limit.feature.as_str().to_owned(),
            start,
            end,
            limit.hard.map_or(NONE, Quantity::get),
            limit.ceiling(soft).map_or(NONE, |(value, _)| value.get()),
        );
        Some((index, wire))
    });
    applying.unzip()
}

#[derive(Debug, Serialize)]
pub(super) struct Decide<'a> {
    pub(super) mode: &'static str,
    pub(super) key: &'a str,
    pub(super) user: &'a str,
    pub(super) limits: &'a [Limit],
    pub(super) wants: Pairs,
    pub(super) id: &'a str,
    pub(super) node: &'a str,
    pub(super) request: &'a str,
    pub(super) lease: i64,
}

/// Id, hold, key, user, admitted at, used.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Event(String, String, String, String, i64, Pairs);

impl Event {
    pub(super) fn of(event: &UsageEvent, hold: Option<ReservationId>) -> Self {
        Self(
            event.event_id.to_string(),
            hold.map_or_else(String::new, |hold| hold.to_string()),
            key_name(event.key_id),
            event.user.clone(),
            event.admitted_at.micros(),
            pairs(&event.quantities),
        )
    }

    pub(super) fn id(&self) -> &str {
        &self.0
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Count<'a> {
    pub(super) events: &'a [Event],
    pub(super) limits: &'a [Limit],
    pub(super) drain: bool,
    pub(super) only_here: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Forget<'a> {
    pub(super) events: &'a [String],
}

/// Id, node, key, user, admitted at, granted, request.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Held(
    pub(super) String,
    pub(super) String,
    pub(super) String,
    pub(super) String,
    pub(super) i64,
    pub(super) Pairs,
    pub(super) String,
);

#[derive(Debug, Serialize)]
pub(super) struct Renew<'a> {
    pub(super) holds: &'a [Held],
    pub(super) lease: i64,
    pub(super) deadline: i64,
}

#[derive(Debug, Serialize)]
pub(super) struct Release<'a> {
    pub(super) id: &'a str,
    pub(super) by_hand: bool,
    pub(super) lease: i64,
}

/// Subject, id, feature, start, end, hard limit, base.
#[derive(Debug, Serialize)]
pub(super) struct Base(String, String, String, i64, i64, i64, i64);

impl Base {
    pub(super) fn of(counter: &CounterOf, hard: i64, base: Quantity) -> Self {
        let (start, end) = bounds(counter.window);
        Self(
            subject_name((&counter.subject).into()),
            counter_id(&counter.feature, counter.window),
            counter.feature.as_str().to_owned(),
            start,
            end,
            hard,
            base.get(),
        )
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Install<'a> {
    pub(super) inc: &'a str,
    pub(super) drains: i64,
    pub(super) counters: Vec<Base>,
    pub(super) repair: bool,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Peek<'a> {
    pub(super) anew: bool,
    pub(super) waiting: bool,
    pub(super) forget: &'a str,
}

#[derive(Debug, Serialize)]
pub(super) struct Watch<'a> {
    pub(super) node: &'a str,
    pub(super) fresh: &'a str,
    pub(super) peers: &'a [String],
    pub(super) told: &'a str,
    pub(super) least: i64,
    pub(super) most: i64,
    pub(super) alive: i64,
    pub(super) known: i64,
}

/// What a script did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// The bucket is of another epoch, or is being rebuilt; nothing was done.
    Epoch,
    /// The call came too late to be wanted any more; nothing was done.
    Late,
    /// A limit's window does not hold the present; nothing was done.
    Time,
    /// A counter must be read from the store first; nothing was held.
    Load,
    /// Sums were read while they changed; nothing was done.
    Moved,
    Held,
    Over,
    Seen,
    Counted,
    Done,
}

/// An event that may be in the store: its id; key, user, admitted at, used.
pub(super) type Draining = (String, (String, String, i64, Pairs));

/// What any script answers; what one does not say is empty.
#[derive(Debug, Deserialize)]
pub(super) struct Reply {
    pub(super) status: Status,
    pub(super) now: i64,
    #[serde(default)]
    pub(super) reaped: u64,
    #[serde(default)]
    pub(super) expired: u64,
    /// Settled and reserved, a limit asked.
    #[serde(default)]
    pub(super) states: Vec<(i64, i64)>,
    /// The limit's place, settled and reserved.
    #[serde(default)]
    pub(super) standings: Vec<(usize, i64, i64)>,
    #[serde(default)]
    pub(super) missing: Vec<usize>,
    #[serde(default)]
    pub(super) inc: String,
    #[serde(default)]
    pub(super) drains: i64,
    #[serde(default)]
    pub(super) draining: Vec<Draining>,
    /// Feature, settled, hard limit of the counters counted in.
    #[serde(default)]
    pub(super) judged: Vec<(String, i64, i64)>,
    /// Events that were not counted before, and are not now.
    #[serde(default)]
    pub(super) absent: Vec<String>,
    /// The counter's place, what it was and what it should be.
    #[serde(default)]
    pub(super) drift: Vec<(usize, i64, i64)>,
    #[serde(default)]
    pub(super) released: Vec<String>,
    /// Events that are counted, and that nobody said were about to be written to the store.
    #[serde(default)]
    pub(super) waiting: Vec<String>,
    /// How many holds the events told of ended.
    #[serde(default)]
    pub(super) ended: u64,
    #[serde(default)]
    pub(super) was_open: bool,
    /// Subject, id, feature, start, end, hard limit.
    #[serde(default)]
    pub(super) counters: Vec<(String, String, String, i64, i64, i64)>,
    #[serde(default)]
    pub(super) epoch: String,
    #[serde(default)]
    pub(super) is_live: bool,
    #[serde(default)]
    pub(super) nodes: Vec<String>,
    /// What is kept of a request with an `Idempotency-Key`.
    #[serde(default)]
    pub(super) found: String,
    #[serde(default)]
    pub(super) at: i64,
    #[serde(default)]
    pub(super) body: String,
}

impl Reply {
    pub(super) fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.now)
    }
}

/// The ids of what may be in the store.
pub(super) fn ids_of(draining: &[Draining]) -> Vec<EventId> {
    draining
        .iter()
        .filter_map(|(id, _)| id.parse().ok())
        .collect()
}

/// The sum of what was draining and is not in the store's sum of a counter.
pub(super) fn not_in_store(
    counter: &CounterOf,
    draining: &[Draining],
    known: &HashSet<EventId>,
) -> Quantity {
    let belongs = |(id, (key, user, at, _)): &&Draining| {
        let is_known = id.parse().is_ok_and(|id: EventId| known.contains(&id));
        let is_of = match &counter.subject {
            Subject::Tenant => true,
            Subject::Key(of) => *key == of.to_string(),
            Subject::User(of) => *user == **of,
        };
        !is_known && is_of && counter.window.contains(Timestamp::from_micros(*at))
    };
    let of_feature = |(_, (_, _, _, used)): &Draining| -> Quantity {
        used.iter()
            .filter(|(feature, _)| feature == counter.feature.as_str())
            .map(|(_, quantity)| Quantity::new(*quantity))
            .sum()
    };
    draining.iter().filter(belongs).map(of_feature).sum()
}
