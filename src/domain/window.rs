//! The intervals that limits count in: half-open, in UTC.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{
    subscription::Period,
    time::{MICROS_PER_SECOND, Timestamp},
};

const MINUTE: i64 = 60 * MICROS_PER_SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const WEEK: i64 = 7 * DAY;
/// 1970-01-01 was a Thursday; weeks begin on Monday (ISO 8601).
const FIRST_MONDAY: i64 = 4 * DAY;

/// A half-open interval `[start, end)` in UTC; usage counts in the window its request was admitted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Window {
    start: Timestamp, // private: `start < end` holds for every value
    end: Timestamp,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a window must end after it starts; it starts {start} and ends {end}")]
pub struct EmptyWindow {
    start: Timestamp,
    end: Timestamp,
}

impl Window {
    /// # Errors
    /// [`EmptyWindow`] unless `start < end`.
    pub fn new(start: Timestamp, end: Timestamp) -> Result<Self, EmptyWindow> {
        if end <= start {
            return Err(EmptyWindow { start, end });
        }
        Ok(Self { start, end })
    }

    #[must_use]
    pub const fn start(self) -> Timestamp {
        self.start
    }

    /// The first instant after the window; [`Timestamp::NEVER`] for a lifetime.
    #[must_use]
    pub const fn end(self) -> Timestamp {
        self.end
    }

    /// When counting starts again; `None` for a window that never ends.
    #[must_use]
    pub fn resets_at(self) -> Option<Timestamp> {
        (self.end < Timestamp::NEVER).then_some(self.end)
    }

    #[must_use]
    pub fn contains(self, at: Timestamp) -> bool {
        self.start <= at && at < self.end
    }

    /// The window's length in whole seconds; `None` for a window that never ends.
    #[must_use]
    pub fn length_seconds(self) -> Option<i64> {
        self.resets_at()
            .map(|end| end.seconds() - self.start.seconds())
    }

    /// The aligned window of `length` µs around `at`; `offset` is the start of one such window.
    fn aligned(at: Timestamp, length: i64, offset: i64) -> Self {
        let start = at.micros().saturating_sub(offset).div_euclid(length) * length + offset;
        Self {
            start: Timestamp::from_micros(start),
            end: Timestamp::from_micros(start.saturating_add(length)),
        }
    }

    /// The whole UTC hour around `at`: the grain of rollups.
    #[must_use]
    pub fn hour_of(at: Timestamp) -> Self {
        Self::aligned(at, HOUR, 0)
    }
}

/// As its two bounds in microseconds since 1970, so that a lifetime's end survives.
impl Serialize for Window {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.start.micros(), self.end.micros()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (start, end) = <(i64, i64)>::deserialize(deserializer)?;
        Self::new(Timestamp::from_micros(start), Timestamp::from_micros(end))
            .map_err(D::Error::custom)
    }
}

/// How long a limit counts before it starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WindowKind {
    Minute,
    Hour,
    Day,
    Week,
    /// The calendar month.
    Month,
    /// The subscription's own period.
    Period,
    /// From the tenant's creation on, for ever.
    Lifetime,
}

/// What windows need to know of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchors {
    pub period: Period,
    pub tenant_created_at: Timestamp,
}

impl WindowKind {
    pub const ALL: [Self; 7] = [
        Self::Minute,
        Self::Hour,
        Self::Day,
        Self::Week,
        Self::Month,
        Self::Period,
        Self::Lifetime,
    ];

    /// The window of this kind that `at` lies in.
    ///
    /// A lifetime begins with the tenant; an instant before that (a late event) still counts in it.
    #[must_use]
    pub fn window_at(self, at: Timestamp, anchors: &Anchors) -> Window {
        match self {
            Self::Minute => Window::aligned(at, MINUTE, 0),
            Self::Hour => Window::aligned(at, HOUR, 0),
            Self::Day => Window::aligned(at, DAY, 0),
            Self::Week => Window::aligned(at, WEEK, FIRST_MONDAY),
            Self::Month => {
                let start = at.start_of_month();
                Window {
                    start,
                    end: start.plus_months(1),
                }
            }
            Self::Period => anchors.period.window_at(at),
            Self::Lifetime => Window {
                start: anchors.tenant_created_at.min(at),
                end: Timestamp::NEVER,
            },
        }
    }

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Period => "period",
            Self::Lifetime => "lifetime",
        }
    }
}

impl fmt::Display for WindowKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a window; write minute, hour, day, week, month, period or lifetime")]
pub struct InvalidWindowKind(String);

impl FromStr for WindowKind {
    type Err = InvalidWindowKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| InvalidWindowKind(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn anchors() -> impl Strategy<Value = Anchors> {
        (0_i64..4_000_000_000, 1_i32..14, 1_i64..10_000_000).prop_map(|(start, months, seconds)| {
            let start = Timestamp::from_seconds(start);
            let end = if seconds % 2 == 0 {
                start.plus_months(months)
            } else {
                Timestamp::from_seconds(start.seconds() + seconds)
            };
            Anchors {
                period: Period::new(start, end).unwrap(),
                tenant_created_at: start,
            }
        })
    }

    proptest! {
        #[test]
        fn adjacent_windows_tile_time(anchors in anchors(), micros in 0_i64..4_000_000_000_000_000) {
            for kind in WindowKind::ALL {
                let now = Timestamp::from_micros(micros);
                let window = kind.window_at(now, &anchors);
                prop_assert!(window.contains(now), "{kind}: {window:?} at {now}");
                if let Some(end) = window.resets_at() {
                    let next = kind.window_at(end, &anchors);
                    prop_assert_eq!(next.start(), end, "{} has a gap or an overlap", kind);
                    let last = Timestamp::from_micros(end.micros() - 1);
                    prop_assert_eq!(kind.window_at(last, &anchors), window);
                }
            }
        }
    }

    #[test]
    fn calendar_windows_are_those_of_the_calendar() {
        let period = Period::new(at("2026-01-01T00:00:00Z"), at("2026-02-01T00:00:00Z")).unwrap();
        let anchors = Anchors {
            period,
            tenant_created_at: at("2025-05-05T00:00:00Z"),
        };
        for (kind, now, start, end) in [
            (
                WindowKind::Minute,
                "2026-11-24T14:40:09Z",
                "2026-11-24T14:40:00Z",
                "2026-11-24T14:41:00Z",
            ),
            (
                WindowKind::Hour,
                "2026-11-24T14:00:00Z",
                "2026-11-24T14:00:00Z",
                "2026-11-24T15:00:00Z",
            ),
            (
                WindowKind::Day,
                "2026-12-31T23:59:59Z",
                "2026-12-31T00:00:00Z",
                "2027-01-01T00:00:00Z",
            ),
            (
                WindowKind::Week,
                "2026-11-29T23:59:59Z",
                "2026-11-23T00:00:00Z",
                "2026-11-30T00:00:00Z",
            ),
            (
                WindowKind::Month,
                "2028-02-29T12:00:00Z",
                "2028-02-01T00:00:00Z",
                "2028-03-01T00:00:00Z",
            ),
            (
                WindowKind::Period,
                "2026-11-24T14:40:09Z",
                "2026-11-01T00:00:00Z",
                "2026-12-01T00:00:00Z",
            ),
        ] {
            let expected = Window::new(at(start), at(end)).unwrap();
            assert_eq!(
                kind.window_at(at(now), &anchors),
                expected,
                "{kind} at {now}"
            );
        }
        let lifetime = WindowKind::Lifetime.window_at(at("2026-11-24T14:40:09Z"), &anchors);
        assert_eq!(
            (lifetime.start(), lifetime.resets_at()),
            (at("2025-05-05T00:00:00Z"), None)
        );
    }

    #[test]
    fn a_window_excludes_its_end() {
        let window = Window::new(at("2026-01-01T00:00:00Z"), at("2026-02-01T00:00:00Z")).unwrap();
        assert!(window.contains(at("2026-01-01T00:00:00Z")));
        assert!(!window.contains(at("2026-02-01T00:00:00Z")));
        assert!(Window::new(window.end(), window.end()).is_err());
    }

    #[test]
    fn a_window_is_read_back_from_its_bounds_and_an_empty_one_is_refused() {
        let lifetime = Window::new(at("2026-01-01T00:00:00Z"), Timestamp::NEVER).unwrap();
        let bytes = postcard::to_stdvec(&lifetime).unwrap();
        assert_eq!(postcard::from_bytes::<Window>(&bytes), Ok(lifetime));
        assert_eq!(
            serde_json::to_string(&lifetime).unwrap(),
            format!("[{},{}]", lifetime.start().micros(), i64::MAX)
        );
        let error = serde_json::from_str::<Window>("[60,60]").unwrap_err();
        assert!(
            error.to_string().contains("must end after it starts"),
            "{error}"
        );
    }
}
