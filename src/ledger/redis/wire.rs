//! What goes to the scripts: numbers for what every request does, `MessagePack` for the rest. Names and orders are those
//! of `lua/*.lua`; what comes back is in `reply`.

use serde::Serialize;

use crate::{
    domain::{
        feature::FeatureKey,
        ids::{KeyId, ReservationId},
        limit::{ActiveLimit, SoftLimitMode},
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

/// Features below it have a fixed number; the numbers of the others are made from their names (`lua/common.lua`).
const NAMED: i64 = 16;

/// A number of 51 bits made from a text, the same on every node: an epoch's, an operator's feature's.
pub(super) fn number_of(text: &str) -> i64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // FNV-1a, stirred as MurmurHash3 does in the end: its upper bits say too little of the last bytes.
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    i64::try_from((hash ^ (hash >> 33)) >> 13).unwrap_or(0)
}

/// What a feature is called where numbers are compared.
pub(super) fn feature_number(feature: &FeatureKey) -> i64 {
    match feature {
        FeatureKey::Messages => 1,
        FeatureKey::InputTokens => 2,
        FeatureKey::OutputTokens => 3,
        FeatureKey::Cost => 4,
        FeatureKey::Named(name) => NAMED + number_of(name),
    }
}

/// Feature and quantity.
pub(super) type Pairs = Vec<(i64, i64)>;

pub(super) fn pairs(quantities: &Quantities) -> Pairs {
    let pairs = quantities.iter();
    pairs
        .map(|(feature, quantity)| (feature_number(feature), quantity.get()))
        .collect()
}

/// Numbers as scripts read them: doubles, little-endian, one after the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers(Vec<u8>);

impl Numbers {
    #[expect(
        clippy::cast_precision_loss,
        reason = "whole numbers within what doubles hold exactly"
    )]
    pub(super) fn push(&mut self, number: i64) -> &mut Self {
        self.0.extend((number as f64).to_le_bytes());
        self
    }

    fn push_pairs(&mut self, pairs: &Pairs) -> &mut Self {
        self.push(count_of(2 * pairs.len()));
        for (feature, quantity) in pairs {
            self.push(*feature).push(*quantity);
        }
        self
    }

    pub(super) fn append(&mut self, others: &Self) -> &mut Self {
        self.0.extend(&others.0);
        self
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn count_of(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// What a script is asked: numbers, and what goes beside them.
#[derive(Clone, Debug, Default)]
pub(super) struct Question {
    /// Nothing is done in a bucket that is being rebuilt.
    pub(super) needs_live: bool,
    pub(super) numbers: Numbers,
    pub(super) beside: Vec<Vec<u8>>,
}

impl Question {
    /// In names and values.
    pub(super) fn named(ask: &impl Serialize) -> Self {
        Self {
            beside: vec![packed(ask)],
            ..Self::default()
        }
    }
}

fn packed(value: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("a growing buffer takes any plain value")
}

/// The part of a subject's key that follows the tenant's root.
pub(super) fn subject_name(subject: SubjectRef<'_>) -> String {
    match subject {
        SubjectRef::Tenant => "t".to_owned(),
        SubjectRef::Key(key) => format!("k:{key}"),
        SubjectRef::User(user) => format!("u:{user}"),
    }
}

/// The name of a key's subject; of no key, nothing.
pub(super) fn key_name(key: Option<KeyId>) -> String {
    key.map_or_else(String::new, |key| subject_name(SubjectRef::Key(key)))
}

pub(super) fn user_name(user: &str) -> String {
    subject_name(SubjectRef::User(user))
}

/// A counter, as scripts tell it from others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct CounterId {
    pub(super) subject: String,
    pub(super) feature: i64,
    pub(super) start: i64,
    pub(super) end: i64,
}

impl CounterId {
    fn new(subject: SubjectRef<'_>, feature: &FeatureKey, window: Window) -> Self {
        Self {
            subject: subject_name(subject),
            feature: feature_number(feature),
            start: window.start().micros().clamp(-FARTHEST, FARTHEST),
            end: window.end().micros().min(FARTHEST),
        }
    }

    pub(super) fn of(counter: &CounterOf) -> Self {
        Self::new((&counter.subject).into(), &counter.feature, counter.window)
    }
}

/// The window between two bounds as scripts know them.
pub(super) fn window_of(start: i64, end: i64) -> Option<Window> {
    let end = if end >= FARTHEST {
        Timestamp::NEVER
    } else {
        Timestamp::from_micros(end)
    };
    Window::new(Timestamp::from_micros(start), end).ok()
}

#[derive(Clone, Debug)]
pub(super) struct Limit {
    pub(super) counter: CounterId,
    /// Among the subjects of a call: the tenant, the key, the user.
    pub(super) place: usize,
    feature: FeatureKey,
    hard: i64,
    ceiling: i64,
}

/// The limits that apply to `who`, with their places in `limits`.
pub(super) fn limits_of(
    who: Who<'_>,
    limits: &[ActiveLimit],
    soft: SoftLimitMode,
) -> (Vec<usize>, Vec<Limit>) {
    let applying = limits.iter().enumerate().filter_map(|(index, limit)| {
        let subject = who.in_scope(limit.scope)?;
        let wire = Limit {
            counter: CounterId::new(subject, &limit.feature, limit.window),
            place: match subject {
                SubjectRef::Tenant => 0,
                SubjectRef::Key(_) => 1,
                SubjectRef::User(_) => 2,
            },
            feature: limit.feature.clone(),
            hard: limit.hard.map_or(NONE, Quantity::get),
            ceiling: limit.ceiling(soft).map_or(NONE, |(value, _)| value.get()),
        };
        Some((index, wire))
    });
    applying.unzip()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Look = 0,
    Hold = 1,
    /// Whatever the limits say.
    Force = 2,
}

/// `lua/decide.lua`
#[derive(Debug)]
pub(super) struct Decide<'a> {
    pub(super) mode: Mode,
    pub(super) key: &'a str,
    pub(super) user: &'a str,
    pub(super) limits: &'a [Limit],
    pub(super) wants: &'a Quantities,
    pub(super) id: &'a str,
    pub(super) node: &'a str,
    pub(super) request: &'a str,
}

impl Decide<'_> {
    pub(super) fn question(&self) -> Question {
        let wants = pairs(self.wants);
        let mut numbers = Numbers::default();
        numbers.push(self.mode as i64).push_pairs(&wants);
        for limit in self.limits {
            let counter = &limit.counter;
            numbers
                .push(count_of(limit.place + 1))
                .push(counter.feature)
                .push(counter.start)
                .push(counter.end)
                .push(limit.hard)
                .push(limit.ceiling)
                .push(self.wants.of(&limit.feature).get());
        }
        let names: Vec<&str> = self.limits.iter().map(|it| it.feature.as_str()).collect();
        let hold = match self.mode {
            Mode::Look => Vec::new(),
            Mode::Hold | Mode::Force => {
                hold_of(&wants, (self.node, self.key, self.user, self.request))
            }
        };
        let beside = [
            self.id.into(),
            hold,
            self.key.into(),
            self.user.into(),
            packed(&names),
        ];
        Question {
            needs_live: self.mode != Mode::Look,
            numbers,
            beside: beside.into(),
        }
    }
}

/// A hold as it is kept, without the instant it was admitted at, and its deadline a lease after that; the rest is node,
/// key, user, request.
fn hold_of(granted: &Pairs, rest: (&str, &str, &str, &str)) -> Vec<u8> {
    let mut numbers = Numbers::default();
    numbers.push(0).push_pairs(granted);
    let mut hold = numbers.0;
    hold.extend(packed(&rest));
    hold
}

#[derive(Clone, Debug)]
pub(super) struct Event {
    id: String,
    key: String,
    user: String,
    at: i64,
    used: Pairs,
}

impl Event {
    pub(super) fn of(event: &UsageEvent) -> Self {
        Self {
            id: event.event_id.to_string(),
            key: key_name(event.key_id),
            user: user_name(&event.user),
            at: event.admitted_at.micros(),
            used: pairs(&event.quantities),
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// As it is kept.
    fn kept(&self, drain: bool) -> Vec<u8> {
        let mut kept = vec![if drain { b'g' } else { b'e' }];
        kept.extend(packed(&(&self.key, &self.user, self.at, &self.used)));
        kept
    }
}

/// `lua/count.lua`
#[derive(Debug, Default)]
pub(super) struct Count<'a> {
    pub(super) hold: Option<ReservationId>,
    pub(super) by_hand: bool,
    pub(super) events: &'a [Event],
    pub(super) drain: bool,
    pub(super) only_here: bool,
}

impl Count<'_> {
    pub(super) fn question(&self) -> Question {
        let mut numbers = Numbers::default();
        for flag in [self.drain, self.only_here, self.by_hand] {
            numbers.push(flag.into());
        }
        numbers.push(count_of(self.events.len()));
        for event in self.events {
            numbers.push(event.at).push_pairs(&event.used);
        }
        let hold = self.hold.map_or_else(String::new, |hold| hold.to_string());
        let events = || self.events.iter();
        let beside = std::iter::once(hold.into_bytes())
            .chain(events().map(|it| it.id.clone().into_bytes()))
            .chain(events().map(|it| it.kept(self.drain)))
            .chain(events().map(|it| it.key.clone().into_bytes()))
            .chain(events().map(|it| it.user.clone().into_bytes()));
        Question {
            needs_live: false,
            numbers,
            beside: beside.collect(),
        }
    }
}

/// An open hold: its id, and itself as it is kept.
#[derive(Clone, Debug)]
pub(super) struct Held {
    id: ReservationId,
    hold: Vec<u8>,
}

impl Held {
    pub(super) fn new(
        id: ReservationId,
        admitted_at: Timestamp,
        granted: &Quantities,
        (node, key, user, request): (&str, Option<KeyId>, &str, &str),
    ) -> Self {
        let mut numbers = Numbers::default();
        numbers.push(admitted_at.micros());
        let mut hold = numbers.0;
        let rest = (node, &*key_name(key), &*user_name(user), request);
        hold.extend(hold_of(&pairs(granted), rest));
        Self { id, hold }
    }
}

/// `lua/renew.lua`
#[derive(Debug)]
pub(super) struct Renew<'a> {
    pub(super) holds: &'a [Held],
    /// µs; `None`: a lease from now.
    pub(super) deadline: Option<i64>,
    pub(super) outlives: bool,
}

impl Renew<'_> {
    pub(super) fn question(&self) -> Question {
        #[derive(Serialize)]
        struct Ask {
            deadline: i64,
            outlives: bool,
        }
        let mut question = Question::named(&Ask {
            deadline: self.deadline.unwrap_or(NONE),
            outlives: self.outlives,
        });
        for held in self.holds {
            question.beside.push(held.id.to_string().into_bytes());
            question.beside.push(held.hold.clone());
        }
        question
    }
}

/// Subject, feature, the feature's name, start, end, hard limit, base.
#[derive(Debug, Serialize)]
pub(super) struct Base(String, i64, String, i64, i64, i64, i64);

impl Base {
    pub(super) fn of(counter: &CounterOf, hard: i64, base: Quantity) -> Self {
        let id = CounterId::of(counter);
        let name = counter.feature.as_str().to_owned();
        Self(
            id.subject,
            id.feature,
            name,
            id.start,
            id.end,
            hard,
            base.get(),
        )
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Install<'a> {
    pub(super) inc: i64,
    pub(super) drains: i64,
    pub(super) counters: Vec<Base>,
    pub(super) stored: Vec<&'a String>,
    pub(super) repair: bool,
}

/// `lua/peek.lua`
#[derive(Debug, Default, Serialize)]
pub(super) struct Peek<'a> {
    pub(super) anew: bool,
    pub(super) forget: &'a str,
    #[serde(skip)]
    pub(super) stored: &'a [Event],
}

impl Peek<'_> {
    pub(super) fn question(&self) -> Question {
        let mut question = Question::named(self);
        for event in self.stored {
            question.beside.push(event.id.clone().into_bytes());
            question.beside.push(event.kept(true));
        }
        question
    }
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
