//! What must be true: a list of events, a list of holds, and limits as the design words them. It adds everything up
//! anew for each question, and shares no rule with the program but the names of windows and scopes.

use std::{collections::BTreeMap, sync::LazyLock};

use tollgate::domain::{limit::Scope, time::Timestamp, window::WindowKind};

pub(super) const FEATURES: [&str; 3] = ["messages", "input_tokens", "output_tokens"];
const SECOND: i64 = 1_000_000;
const DAY: i64 = 24 * 3600 * SECOND;

/// What of each of [`FEATURES`].
pub(super) type Amounts = [i64; 3];

/// Who used something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) tenant: usize,
    /// `None`: reported without a key.
    pub(super) key: Option<usize>,
    pub(super) user: &'static str,
}

/// Usage that happened, or that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) who: Who,
    /// When its request was admitted, in µs.
    pub(super) at: i64,
    pub(super) amounts: Amounts,
    pub(super) estimated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    pub(super) feature: usize,
    pub(super) scope: Scope,
    pub(super) window: WindowKind,
    pub(super) hard: Option<i64>,
}

impl Limit {
    fn place(&self) -> (usize, Scope, WindowKind) {
        (self.feature, self.scope, self.window)
    }

    fn is_raised(&self) -> bool {
        let raised = [WindowKind::Period, WindowKind::Month, WindowKind::Lifetime];
        self.scope == Scope::Tenant && raised.contains(&self.window)
    }
}

/// A hard limit in force, grants included, with its window `[start, end)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) limit: Limit,
    pub(super) window: (i64, i64),
    pub(super) hard: i64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Grant {
    pub(super) feature: usize,
    pub(super) quantity: i64,
    pub(super) begin: i64,
    pub(super) end: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Active,
    PastDue,
    Canceled,
    Paused,
}

#[derive(Clone, Debug)]
pub(super) struct Tenant {
    pub(super) created_at: i64,
    /// Where its periods begin: the 31st of each month, or every ten days.
    pub(super) is_monthly: bool,
    pub(super) plan: usize,
    pub(super) status: (Status, i64),
    /// Of each feature its own limits, and until when.
    pub(super) overrides: BTreeMap<usize, (Vec<Limit>, Option<i64>)>,
    pub(super) grants: Vec<Grant>,
    /// Of which feature, and when.
    pub(super) resets: Vec<(usize, i64)>,
}

/// What a request needs: the free bound of its input, the tokenized one, its output and who named that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    pub(super) bound: i64,
    pub(super) tokenized: i64,
    pub(super) named: Option<i64>,
}

/// How a request is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Held(Amounts),
    Spent,
    /// It would fit, were it not for requests in flight.
    Reserved,
    Inactive,
}

/// The largest output of the model, the least output worth a request, and what is reserved where none is named.
const LARGEST: i64 = 128_000;
const FLOOR: i64 = 16;
const RESERVATION: i64 = 4_096;

#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) now: i64,
    pub(super) tenants: Vec<Tenant>,
    pub(super) plans: Vec<Vec<Limit>>,
    pub(super) events: BTreeMap<String, Usage>,
    pub(super) holds: BTreeMap<String, Usage>,
}

impl Model {
    /// What one request after the other must be told.
    pub(super) fn decide(&self, who: Who, need: Need) -> Decision {
        if !self.runs(who.tenant) {
            return Decision::Inactive;
        }
        let room = self.room(who, 1);
        let input = if need.bound <= room[1] {
            need.bound
        } else {
            need.tokenized
        };
        let wanted = need.named.unwrap_or(LARGEST);
        let output = match need.named {
            _ if wanted <= room[2] => wanted,
            Some(_) => room[2],
            None => RESERVATION.max(room[2] / 4).min(room[2]),
        };
        let least = [1, need.tokenized, FLOOR.min(wanted)];
        let fits = |room: Amounts| (0..3).all(|feature| least[feature] <= room[feature]);
        match (fits(room), fits(self.room(who, 0))) {
            (true, _) => Decision::Held([1, input, output]),
            (false, true) => Decision::Reserved,
            (false, false) => Decision::Spent,
        }
    }

    /// What an application that reserves these must be told.
    pub(super) fn decide_exactly(&self, who: Who, amounts: Amounts) -> Decision {
        let fits = |room: Amounts| (0..3).all(|feature| amounts[feature] <= room[feature]);
        match (fits(self.room(who, 1)), fits(self.room(who, 0))) {
            _ if !self.runs(who.tenant) => Decision::Inactive,
            (true, _) => Decision::Held(amounts),
            (false, true) => Decision::Reserved,
            (false, false) => Decision::Spent,
        }
    }

    fn runs(&self, tenant: usize) -> bool {
        let (status, since) = self.tenants[tenant].status;
        match status {
            Status::Active => true,
            Status::PastDue => self.now < since + 7 * DAY,
            Status::Canceled | Status::Paused => false,
        }
    }

    /// What is left of each feature under all limits that apply; holds count so many times.
    pub(super) fn room(&self, who: Who, holds: i64) -> Amounts {
        let mut room = [i64::MAX; 3];
        for placed in self.limits(who) {
            let (used, held) = self.counted(who, &placed);
            let left = &mut room[placed.limit.feature];
            *left = (*left).min((placed.hard - used - holds * held).max(0));
        }
        room
    }

    /// What is used and what is held of a limit.
    pub(super) fn counted(&self, who: Who, placed: &Placed) -> (i64, i64) {
        let sum = |usages: &BTreeMap<String, Usage>| {
            let counts = |it: &&Usage| counts(it, who, placed.limit.scope, placed.window);
            let amounts = usages
                .values()
                .filter(counts)
                .map(|it| it.amounts[placed.limit.feature]);
            amounts.sum::<i64>()
        };
        (sum(&self.events), sum(&self.holds))
    }

    /// The hard limits that apply now.
    pub(super) fn limits(&self, who: Who) -> Vec<Placed> {
        let tenant = &self.tenants[who.tenant];
        let mut limits = self.plans[tenant.plan].clone();
        for (own, until) in tenant.overrides.values() {
            if until.is_none_or(|until| self.now < until) {
                limits.retain(|plan| own.iter().all(|it| it.place() != plan.place()));
                limits.extend(own);
            }
        }
        let place = |limit: Limit| {
            let plan = limit.hard?;
            (limit.scope != Scope::Key || who.key.is_some()).then(|| Placed {
                window: counted_window(&limit, self.now, tenant),
                hard: plan + self.granted(who, limit, plan),
                limit,
            })
        };
        limits.into_iter().filter_map(place).collect()
    }

    /// What grants add now: usage beyond the plan's allowance burns those that are active, the first to expire first,
    /// looked at whenever a grant begins or ends and at each window's end.
    fn granted(&self, who: Who, limit: Limit, plan: i64) -> i64 {
        let tenant = &self.tenants[who.tenant];
        let mut grants: Vec<Grant> = tenant.grants.clone();
        grants.retain(|it| it.feature == limit.feature && it.begin <= self.now);
        grants.sort_by_key(|it| (it.end, it.begin));
        let Some(first) = grants
            .iter()
            .map(|it| it.begin)
            .min()
            .filter(|_| limit.is_raised())
        else {
            return 0;
        };
        let window_at = |at| counted_window(&limit, at, tenant);
        let mut cuts: Vec<i64> = grants.iter().flat_map(|it| [it.begin, it.end]).collect();
        let mut end = window_at(first).1;
        while end <= self.now {
            cuts.push(end);
            end = window_at(end).1;
        }
        cuts.retain(|&cut| first < cut && cut <= self.now);
        cuts.sort_unstable();
        cuts.dedup();
        let mut left: Vec<i64> = grants.iter().map(|it| it.quantity).collect();
        let (mut begin, mut burned) = (first, (window_at(first), 0));
        for cut in cuts {
            let here = window_at(begin);
            if burned.0 != here {
                burned = (here, 0);
            }
            let used = self.used_between(who.tenant, limit.feature, (here.0, cut));
            let mut over = (used - plan).max(0) - burned.1;
            for (grant, left) in grants.iter().zip(&mut left) {
                if grant.begin <= begin && begin < grant.end && over > 0 {
                    let burn = over.min(*left);
                    *left -= burn;
                    over -= burn;
                    burned.1 += burn;
                }
            }
            begin = cut;
        }
        let active = grants.iter().zip(&left).filter(|(it, _)| self.now < it.end);
        let left: i64 = active.map(|(_, left)| left).sum();
        left + if burned.0 == window_at(self.now) {
            burned.1
        } else {
            0
        }
    }

    /// What a tenant used in `[start, end)`.
    pub(super) fn used_between(
        &self,
        tenant: usize,
        feature: usize,
        (start, end): (i64, i64),
    ) -> i64 {
        let counts = |it: &&Usage| it.who.tenant == tenant && start <= it.at && it.at < end;
        self.events
            .values()
            .filter(counts)
            .map(|it| it.amounts[feature])
            .sum()
    }

    /// How much further `usage` takes settled use past each feature's hard limits: of several the largest.
    pub(super) fn overshoot(&self, usage: &Usage, limits: &[Placed]) -> Amounts {
        let mut past = [0; 3];
        for placed in limits {
            let feature = placed.limit.feature;
            let over = self.counted(usage.who, placed).0 + usage.amounts[feature] - placed.hard;
            past[feature] = past[feature].max(over.clamp(0, usage.amounts[feature]));
        }
        past
    }
}

fn counts(usage: &Usage, who: Who, scope: Scope, (start, end): (i64, i64)) -> bool {
    let is_whose = match scope {
        Scope::Tenant => true,
        Scope::Key => usage.who.key == who.key,
        Scope::User => usage.who.user == who.user,
    };
    usage.who.tenant == who.tenant && is_whose && start <= usage.at && usage.at < end
}

/// What a limit counts in at `at`: its window, cut where its feature was reset.
fn counted_window(limit: &Limit, at: i64, tenant: &Tenant) -> (i64, i64) {
    let (mut start, mut end) = window(limit.window, at, tenant);
    for &(feature, reset) in &tenant.resets {
        if feature == limit.feature && start < reset && reset < end {
            if reset <= at {
                start = reset;
            } else {
                end = reset;
            }
        }
    }
    (start, end)
}

/// The window around `at`: it contains its start, and not its end.
pub(super) fn window(kind: WindowKind, at: i64, tenant: &Tenant) -> (i64, i64) {
    let every = |length: i64, first: i64| {
        let start = (at - first).div_euclid(length) * length + first;
        (start, start + length)
    };
    let between = |bounds: &[i64]| {
        let next = bounds.partition_point(|&bound| bound <= at);
        (bounds[next - 1], bounds[next])
    };
    match kind {
        WindowKind::Minute => every(60 * SECOND, 0),
        WindowKind::Hour => every(3600 * SECOND, 0),
        WindowKind::Day => every(DAY, 0),
        WindowKind::Week => every(7 * DAY, 4 * DAY), // 1970-01-05 was a Monday
        WindowKind::Month => between(&BOUNDS.firsts),
        WindowKind::Period if tenant.is_monthly => between(&BOUNDS.lasts),
        WindowKind::Period => every(10 * DAY, micros(TEN_DAYS_FROM)),
        WindowKind::Lifetime => (tenant.created_at.min(at), i64::MAX),
    }
}

/// Where the monthly periods and those of ten days begin.
pub(super) const MONTHLY_FROM: &str = "2026-01-31T00:00:00Z";
pub(super) const TEN_DAYS_FROM: &str = "2026-01-31T06:30:00Z";

pub(super) fn micros(text: &str) -> i64 {
    text.parse::<Timestamp>().unwrap().micros()
}

/// The first days of months, and the last ones, on which a period of the 31st begins.
struct Bounds {
    firsts: Vec<i64>,
    lasts: Vec<i64>,
}

static BOUNDS: LazyLock<Bounds> = LazyLock::new(|| {
    let months = (2025..2060).flat_map(|year| (1..=12).map(move |month| (year, month)));
    let firsts = months.map(|(year, month)| micros(&format!("{year}-{month:02}-01T00:00:00Z")));
    let firsts: Vec<i64> = firsts.collect();
    let lasts = firsts[1..].iter().map(|first| first - DAY).collect();
    Bounds { firsts, lasts }
});
