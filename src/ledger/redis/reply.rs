//! What the scripts answer: numbers to what every request does, `MessagePack` to the rest. Names and orders are those of
//! `lua/*.lua`.

use std::collections::HashSet;

use serde::Deserialize;

use super::wire::{CounterId, Limit, Pairs, feature_number};
use crate::{
    domain::{
        feature::FeatureKey, ids::EventId, limit::Subject, quantity::Quantity, time::Timestamp,
        usage::UsageEvent,
    },
    ledger::Since,
    store::usage::CounterOf,
};

/// What a script did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
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
    #[default]
    Done,
}

/// An event that may be in the store: its id; key, user, admitted at, used.
pub(super) type Draining = (String, (String, String, i64, Pairs));

/// What any script answers; what one does not say is empty.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Reply {
    pub(super) status: Status,
    pub(super) now: i64,
    #[serde(default)]
    pub(super) reaped: u64,
    #[serde(default)]
    pub(super) expired: u64,
    /// The counters of tenant, key and user.
    #[serde(skip)]
    lists: [Vec<Standing>; 3],
    /// How many events were not counted before.
    #[serde(skip)]
    counted: u64,
    #[serde(default)]
    pub(super) missing: Vec<usize>,
    #[serde(default)]
    pub(super) inc: i64,
    #[serde(default)]
    pub(super) drains: i64,
    #[serde(default)]
    pub(super) draining: Vec<Draining>,
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
    /// Subject, feature, start, end, hard limit.
    #[serde(default)]
    pub(super) counters: Vec<(String, String, i64, i64, i64)>,
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

/// Where a counter stands.
#[derive(Clone, Copy, Debug)]
struct Standing {
    feature: i64,
    start: i64,
    end: i64,
    settled: i64,
    reserved: i64,
    hard: i64,
}

impl Reply {
    /// The ids of what counts here and may be in the store.
    pub(super) fn maybe_stored(&self) -> Vec<EventId> {
        let draining = self.draining.iter().map(|(id, _)| id);
        let all = draining.chain(&self.waiting);
        all.filter_map(|id| id.parse().ok()).collect()
    }

    /// From what a script answered.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(answer: &[u8]) -> Result<Self, String> {
        match answer.first() {
            // Whole numbers as small as those of the outcomes end with zeros.
            Some(0) => Self::of_numbers(answer),
            _ => rmp_serde::from_slice(answer).map_err(|error| error.to_string()),
        }
    }

    fn of_numbers(answer: &[u8]) -> Result<Self, String> {
        const HEAD: usize = 8;
        let (numbers, rest) = answer.as_chunks();
        #[expect(
            clippy::cast_possible_truncation,
            reason = "whole numbers within what doubles hold exactly"
        )]
        let numbers: Vec<i64> = numbers
            .iter()
            .map(|bytes| f64::from_le_bytes(*bytes) as i64)
            .collect();
        let Some((head, lists)) = numbers
            .split_first_chunk::<HEAD>()
            .filter(|_| rest.is_empty())
        else {
            return Err(format!("it has {} bytes", answer.len()));
        };
        let &[
            status,
            now,
            reaped,
            expired,
            ended,
            counted,
            of_tenant,
            of_key,
        ] = head;
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        let place = |number: i64| usize::try_from(number).unwrap_or(0);
        let (Some((tenant, others)), of_key) =
            (lists.split_at_checked(place(of_tenant)), place(of_key))
        else {
            return Err("a list ends too soon".to_owned());
        };
        let (key, user) = others
            .split_at_checked(of_key)
            .ok_or("a list ends too soon")?;
        Ok(Self {
            status: match status {
                1 => Status::Held,
                2 => Status::Over,
                3 => Status::Seen,
                4 => Status::Counted,
                other => return Err(format!("outcome {other}")),
            },
            now,
            reaped: count(reaped),
            expired: count(expired),
            ended: count(ended),
            counted: count(counted),
            lists: [tenant, key, user].map(standings),
            ..Self::default()
        })
    }

    /// Settled and reserved of a limit's counter.
    pub(super) fn stands(&self, limit: &Limit) -> Option<(i64, i64)> {
        let id = &limit.counter;
        let found = self.lists[limit.place]
            .iter()
            .find(|it| (it.feature, it.start, it.end) == (id.feature, id.start, id.end));
        found.map(|it| (it.settled, it.reserved))
    }

    /// The same of every limit.
    pub(super) fn all_stand(&self, limits: &[Limit]) -> Vec<(i64, i64)> {
        limits.iter().filter_map(|it| self.stands(it)).collect()
    }

    /// Feature, settled and hard limit of the counters that an event was counted in; none if it had been before.
    pub(super) fn judged(
        &self,
        event: &UsageEvent,
        since: Since<'_>,
    ) -> Vec<(FeatureKey, Quantity, Quantity)> {
        let at = event.admitted_at.micros();
        let mut judged = Vec::new();
        let lists = self.lists.iter().flatten();
        for counter in lists.filter(|it| it.hard >= 0 && it.start <= at && at < it.end) {
            let used = event.quantities.iter();
            let of = used
                .map(|(feature, _)| feature)
                .find(|feature| feature_number(feature) == counter.feature);
            let is_counted = |feature: &&FeatureKey| {
                let is_reset = since(feature).is_some_and(|at| counter.start < at.micros());
                self.counted > 0 && !is_reset
            };
            if let Some(feature) = of.filter(is_counted) {
                let (settled, hard) = (Quantity::new(counter.settled), Quantity::new(counter.hard));
                judged.push((feature.clone(), settled, hard));
            }
        }
        judged
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.now)
    }
}

/// A list without its head.
fn standings(list: &[i64]) -> Vec<Standing> {
    const HEAD: usize = 6;
    let counters = list.get(HEAD..).unwrap_or_default().as_chunks().0.iter();
    counters
        .map(|&[feature, start, end, settled, reserved, hard]| Standing {
            feature,
            start,
            end,
            settled,
            reserved,
            hard,
        })
        .collect()
}

/// The sum of what was draining and is not in the store's sum of a counter.
pub(super) fn not_in_store(
    counter: &CounterOf,
    draining: &[Draining],
    known: &HashSet<EventId>,
) -> Quantity {
    let of = CounterId::of(counter);
    let belongs = |(id, (key, user, at, _)): &&Draining| {
        let is_known = id.parse().is_ok_and(|id: EventId| known.contains(&id));
        let is_of = match &counter.subject {
            Subject::Tenant => true,
            Subject::Key(_) => *key == of.subject,
            Subject::User(_) => *user == of.subject,
        };
        !is_known && is_of && counter.window.contains(Timestamp::from_micros(*at))
    };
    let of_feature = |(_, (_, _, _, used)): &Draining| -> Quantity {
        used.iter()
            .filter(|(feature, _)| *feature == of.feature)
            .map(|(_, quantity)| Quantity::new(*quantity))
            .sum()
    };
    draining.iter().filter(belongs).map(of_feature).sum()
}
