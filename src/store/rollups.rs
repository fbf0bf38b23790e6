//! What backends share of summing usage: which hours of a window are whole and which are cut, and how events add up
//! to rollups.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
};

use smallvec::SmallVec;

use super::usage::{HeaviestAsk, UsedBy};
use crate::domain::{
    feature::FeatureKey,
    ids::{KeyId, TenantId},
    quantity::Quantity,
    time::Timestamp,
    usage::UsageEvent,
    window::Window,
};

const HOUR_MICROS: i64 = 3_600_000_000;

/// Those of `parts` who are asked for, the heaviest first.
pub(super) fn heaviest_of(parts: BTreeMap<String, i128>, ask: &HeaviestAsk) -> Vec<UsedBy> {
    let used = parts.into_iter().map(|(who, sum)| (who, quantity_of(sum)));
    let mut used: Vec<UsedBy> = used.filter(|(_, used)| *used >= ask.at_least).collect();
    // A stable sort: by name where two used as much.
    used.sort_by_key(|(_, used)| std::cmp::Reverse(*used));
    used.truncate(ask.most);
    used
}

/// The start of the UTC hour around `micros`, saturating at the ends of time.
pub(super) fn hour_before(micros: i64) -> i64 {
    micros.div_euclid(HOUR_MICROS).saturating_mul(HOUR_MICROS)
}

pub(super) fn hour_after(micros: i64) -> i64 {
    let start = hour_before(micros);
    if start == micros {
        micros
    } else {
        start.saturating_add(HOUR_MICROS)
    }
}

/// A half-open interval in µs since 1970; empty if `end <= start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: i64,
    pub(super) end: i64,
}

/// Events at an end of a window, where it cuts an hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) span: Span,
    /// Their hour is among the whole ones, and they are not in the window.
    pub(super) is_left_out: bool,
}

impl Edge {
    fn added(start: i64, end: i64) -> Option<Self> {
        Self::of(start, end, false)
    }

    fn left_out(start: i64, end: i64) -> Option<Self> {
        Self::of(start, end, true)
    }

    fn of(start: i64, end: i64, is_left_out: bool) -> Option<Self> {
        let span = Span { start, end };
        (start < end).then_some(Self { span, is_left_out })
    }

    /// Nothing is cut.
    pub(super) const fn whole(span: Span) -> Self {
        Self {
            span,
            is_left_out: false,
        }
    }

    /// What the events of the edge add to the window's sum if they come to `sum`.
    pub(super) const fn adds(self, sum: i128) -> i128 {
        if self.is_left_out { -sum } else { sum }
    }
}

/// A window as a store sums it: whole hours from rollups, what is cut at its ends from events.
///
/// Of a cut hour, either what lies in the window is added or what does not is taken off, whichever is shorter: most
/// periods begin with their tenant, and before that there is nothing to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CutWindow {
    /// What is summed: the window asked, or wider where events are gone.
    pub(super) window: Window,
    /// Rollups whose hour starts in here are summed.
    pub(super) hours: Span,
    pub(super) edges: [Option<Edge>; 2],
}

impl CutWindow {
    /// Cuts `window` at whole hours. All events admitted at or after `horizon` are known; a bound that would need
    /// one from before it moves outward to the whole hour.
    pub(super) fn new(window: Window, horizon: Timestamp) -> Self {
        let (mut start, mut end) = (window.start().micros(), window.end().micros());
        let never_ends = window.resets_at().is_none();
        if start < horizon.micros() {
            start = hour_before(start);
        }
        if !never_ends && hour_before(end) < horizon.micros() {
            end = hour_after(end);
        }
        let widened = Window::new(Timestamp::from_micros(start), Timestamp::from_micros(end));
        let mut cut = Self {
            window: widened.unwrap_or(window),
            hours: Span {
                start: hour_after(start),
                end: if never_ends { end } else { hour_before(end) },
            },
            edges: [None, None],
        };
        let Span {
            start: first,
            end: last,
        } = cut.hours;
        if first > last {
            cut.edges = [Edge::added(start, end), None]; // both bounds cut the same hour
            return cut;
        }
        let before = hour_before(start);
        cut.edges[0] = if start - before < first - start && before >= horizon.micros() {
            cut.hours.start = before;
            Edge::left_out(before, start)
        } else {
            Edge::added(start, first)
        };
        let after = if never_ends { end } else { hour_after(end) };
        cut.edges[1] = if after - end < end - last {
            cut.hours.end = after;
            Edge::left_out(end, after)
        } else {
            Edge::added(last, end)
        };
        cut
    }
}

/// What rollups are kept by, besides tenant, feature and hour. `""` is recorded as a user (a limit of scope user
/// counts requests that name none) but never as a key or model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Facet<'a> {
    All,
    Key(KeyId),
    Model(&'a str),
    User(&'a str),
}

impl<'a> Facet<'a> {
    /// As column `dimension` of `usage_rollups` has it.
    pub(super) const fn dimension(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Key(_) => "key",
            Self::Model(_) => "model",
            Self::User(_) => "user",
        }
    }

    /// As column `value` of `usage_rollups` has it.
    pub(super) fn value(self) -> Cow<'a, str> {
        match self {
            Self::All => Cow::Borrowed(""),
            Self::Key(key) => Cow::Owned(key.to_string()),
            Self::Model(name) | Self::User(name) => Cow::Borrowed(name),
        }
    }
}

/// The primary key of one rollup; ordered as the table is, so that sorted writes touch neighbouring pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RollupKey<'a> {
    pub(super) tenant: TenantId,
    pub(super) feature: &'a FeatureKey,
    pub(super) facet: Facet<'a>,
    /// µs since 1970.
    pub(super) hour: i64,
}

/// What decides the rollups that an event adds to.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Origin<'a> {
    tenant: TenantId,
    /// µs since 1970.
    hour: i64,
    key: Option<KeyId>,
    model: Option<&'a str>,
    user: &'a str,
}

impl<'a> Origin<'a> {
    fn facets(self) -> impl Iterator<Item = Facet<'a>> {
        let facets = [
            Some(Facet::All),
            self.key.map(Facet::Key),
            self.model.map(Facet::Model),
            Some(Facet::User(self.user)),
        ];
        facets.into_iter().flatten()
    }
}

/// Features are few an event, and looked for from the front.
type Sums<'a> = SmallVec<[(&'a FeatureKey, i64); 4]>;

fn add_to<'a>(sums: &mut Sums<'a>, feature: &'a FeatureKey, quantity: i64) {
    match sums.iter_mut().find(|(known, _)| *known == feature) {
        Some((_, sum)) => *sum = within_rollup(sum.saturating_add(quantity)),
        None => sums.push((feature, within_rollup(quantity))),
    }
}

/// What a batch of events adds to the rollups: kept by origin, of which there are fewer than events, so that an event
/// is looked up once and not for each facet.
#[derive(Default)]
pub(super) struct Rollups<'a>(HashMap<Origin<'a>, Sums<'a>>);

impl<'a> Rollups<'a> {
    pub(super) fn add(&mut self, event: &'a UsageEvent) {
        let origin = Origin {
            tenant: event.tenant_id,
            hour: hour_before(event.admitted_at.micros()),
            key: event.key_id,
            model: event.model.as_deref(),
            user: &event.user,
        };
        let sums = self.0.entry(origin).or_default();
        for (feature, quantity) in event.quantities.iter() {
            add_to(sums, feature, quantity.get());
        }
    }

    /// What all tenants together added, by feature and hour.
    pub(super) fn of_all_tenants(&self) -> BTreeMap<(&'a FeatureKey, i64), i64> {
        let mut all = BTreeMap::new();
        for (origin, sums) in &self.0 {
            for (feature, quantity) in sums {
                let sum = all.entry((*feature, origin.hour)).or_insert(0_i64);
                *sum = within_rollup(sum.saturating_add(*quantity));
            }
        }
        all
    }

    /// Everything added, in the order of the table.
    pub(super) fn into_sorted(self) -> Vec<(RollupKey<'a>, i64)> {
        let mut places: HashMap<(TenantId, Facet<'a>, i64), Sums<'a>> = HashMap::new();
        for (origin, added) in self.0 {
            for facet in origin.facets() {
                let sums = places
                    .entry((origin.tenant, facet, origin.hour))
                    .or_default();
                for (feature, quantity) in &added {
                    add_to(sums, feature, *quantity);
                }
            }
        }
        let mut sorted = Vec::with_capacity(places.len() * 4);
        for ((tenant, facet, hour), sums) in places {
            sorted.extend(sums.into_iter().map(|(feature, quantity)| {
                let key = RollupKey {
                    tenant,
                    feature,
                    facet,
                    hour,
                };
                (key, quantity)
            }));
        }
        sorted.sort_unstable_by_key(|(key, _)| *key);
        sorted
    }
}

/// The largest magnitude a rollup holds: two of them still add up within 64 bits. Far above what a quantity can be,
/// so that a correction still takes away exactly what an absurd event has added.
pub(super) const ROLLUP_MAX: i64 = (1 << 62) - 1;

pub(super) fn within_rollup(sum: i64) -> i64 {
    sum.clamp(-ROLLUP_MAX, ROLLUP_MAX)
}

/// A sum as the rest of the program knows it.
pub(super) fn quantity_of(sum: i128) -> Quantity {
    let end = if sum < 0 { i64::MIN } else { i64::MAX };
    Quantity::new(i64::try_from(sum).unwrap_or(end))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn window(start: &str, end: &str) -> Window {
        Window::new(start.parse().unwrap(), end.parse().unwrap()).unwrap()
    }

    fn cut(window: Window) -> CutWindow {
        CutWindow::new(window, Timestamp::from_micros(i64::MIN))
    }

    fn span(start: &str, end: &str) -> Span {
        let micros = |text: &str| text.parse::<Timestamp>().unwrap().micros();
        Span {
            start: micros(start),
            end: micros(end),
        }
    }

    fn added(start: &str, end: &str) -> Option<Edge> {
        let Span { start, end } = span(start, end);
        Edge::added(start, end)
    }

    fn left_out(start: &str, end: &str) -> Option<Edge> {
        let Span { start, end } = span(start, end);
        Edge::left_out(start, end)
    }

    #[test]
    fn whole_hours_come_from_rollups_and_cut_ones_from_events() {
        let cut = cut(window("2026-01-01T10:30:00Z", "2026-01-01T13:15:00Z"));
        assert_eq!(
            cut.hours,
            span("2026-01-01T11:00:00Z", "2026-01-01T13:00:00Z")
        );
        assert_eq!(
            cut.edges,
            [
                added("2026-01-01T10:30:00Z", "2026-01-01T11:00:00Z"),
                added("2026-01-01T13:00:00Z", "2026-01-01T13:15:00Z"),
            ]
        );
    }

    #[test]
    fn the_shorter_part_of_a_cut_hour_is_read() {
        let cut = cut(window("2026-01-01T10:29:00Z", "2026-01-01T13:31:00Z"));
        assert_eq!(
            cut.hours,
            span("2026-01-01T10:00:00Z", "2026-01-01T14:00:00Z")
        );
        assert_eq!(
            cut.edges,
            [
                left_out("2026-01-01T10:00:00Z", "2026-01-01T10:29:00Z"),
                left_out("2026-01-01T13:31:00Z", "2026-01-01T14:00:00Z"),
            ]
        );
    }

    #[test]
    fn a_window_within_one_hour_is_summed_from_events_alone() {
        let within = window("2026-01-01T10:30:00Z", "2026-01-01T10:31:00Z");
        let cut = cut(within);
        assert_eq!(
            cut.edges,
            [added("2026-01-01T10:30:00Z", "2026-01-01T10:31:00Z"), None]
        );
        assert!(cut.hours.end <= cut.hours.start);
    }

    #[test]
    fn a_lifetime_has_no_end_to_cut() {
        let start = "2026-01-01T10:30:00Z".parse().unwrap();
        let cut = cut(Window::new(start, Timestamp::NEVER).unwrap());
        assert_eq!(cut.hours.end, i64::MAX);
        assert_eq!(cut.edges[1], None);
    }

    #[test]
    fn bounds_whose_events_are_gone_move_out_to_the_whole_hour() {
        let asked = window("2026-01-01T10:30:00Z", "2026-01-02T13:15:00Z");
        let horizon = "2026-01-02T13:00:00Z".parse().unwrap();
        let cut = CutWindow::new(asked, horizon);
        assert_eq!(
            cut.window,
            window("2026-01-01T10:00:00Z", "2026-01-02T13:15:00Z")
        );
        let later = "2026-01-02T13:00:00.000001Z".parse().unwrap();
        let cut = CutWindow::new(asked, later);
        assert_eq!(
            cut.window,
            window("2026-01-01T10:00:00Z", "2026-01-02T14:00:00Z")
        );
        assert_eq!(cut.edges, [None, None]);
    }

    proptest! {
        #[test]
        fn an_instant_counts_once_if_it_is_in_the_window_and_else_not(
            start in -10_000_000_000_i64..100_000_000_000,
            length in 1_i64..20_000_000_000,
            horizon in -20_000_000_000_i64..120_000_000_000,
            forever in prop::bool::weighted(0.2),
            instant in -20_000_000_000_i64..120_000_000_000,
        ) {
            let end = if forever { i64::MAX } else { start + length };
            let asked = Window::new(Timestamp::from_micros(start), Timestamp::from_micros(end)).unwrap();
            let cut = CutWindow::new(asked, Timestamp::from_micros(horizon));
            let (first, last) = (cut.window.start().micros(), cut.window.end().micros());
            let ends = if forever { [first; 2] } else { [last - 1, last] };
            for at in [instant, first - 1, first].into_iter().chain(ends) {
                let hour = hour_before(at);
                let mut counted = i128::from(cut.hours.start <= hour && hour < cut.hours.end);
                for edge in cut.edges.iter().flatten() {
                    let is_in = edge.span.start <= at && at < edge.span.end;
                    counted += edge.adds(i128::from(is_in));
                }
                let is_in = cut.window.contains(Timestamp::from_micros(at));
                prop_assert_eq!(counted, i128::from(is_in), "{} in {:?}", at, cut);
            }
            if cut.hours.start < cut.hours.end {
                prop_assert_eq!(cut.hours.start % HOUR_MICROS, 0);
            }
            for edge in cut.edges.iter().flatten() {
                prop_assert!(edge.span.start >= horizon, "{:?} needs events that are gone", edge);
                let is_alone = hour_before(first) == hour_before(last);
                let is_near = hour_before(edge.span.start) < horizon;
                let is_short = edge.span.end - edge.span.start <= HOUR_MICROS / 2;
                prop_assert!(is_short || is_alone || is_near, "{:?} is the longer part", edge);
            }
            prop_assert!(cut.window.start() <= asked.start() && asked.end() <= cut.window.end());
        }
    }
}
