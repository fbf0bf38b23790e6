//! Instants: whole microseconds since 1970 in UTC, shown as RFC 3339 with `Z`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

pub const MICROS_PER_SECOND: i64 = 1_000_000;

const CIVIL_EPOCH: jiff::civil::DateTime = jiff::civil::DateTime::constant(1970, 1, 1, 0, 0, 0, 0);

/// An instant, in microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The end of a window that never ends.
    pub const NEVER: Self = Self(i64::MAX);
    pub const EPOCH: Self = Self(0);

    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    #[must_use]
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(MICROS_PER_SECOND))
    }

    #[must_use]
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Whole seconds since 1970, rounded down.
    #[must_use]
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(MICROS_PER_SECOND)
    }

    #[must_use]
    pub const fn to_whole_second(self) -> Self {
        Self(self.0 - self.0.rem_euclid(MICROS_PER_SECOND))
    }

    /// The first whole second that is not before this instant.
    #[must_use]
    pub const fn up_to_whole_second(self) -> Self {
        let part = self.0.rem_euclid(MICROS_PER_SECOND);
        if part == 0 {
            return self;
        }
        Self(self.0.saturating_add(MICROS_PER_SECOND - part))
    }

    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(micros))
    }

    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(micros))
    }

    /// Time since `earlier`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// `months` calendar months later; a day that the target month lacks becomes its last day.
    #[must_use]
    pub fn plus_months(self, months: i32) -> Self {
        let shifted = self.civil().and_then(|civil| {
            civil
                .checked_add(jiff::Span::new().try_months(months).ok()?)
                .ok()
        });
        shifted.map_or(self, Self::from_civil)
    }

    /// Midnight UTC on the first of this instant's month.
    #[must_use]
    pub fn start_of_month(self) -> Self {
        self.civil().map_or(self, |civil| {
            Self::from_civil(civil.date().first_of_month().into())
        })
    }

    /// As calendars in UTC have it, to the end of the year 9999: instants of `jiff` end a day before, to leave room for
    /// every offset.
    fn civil(self) -> Option<jiff::civil::DateTime> {
        let since = jiff::SignedDuration::from_micros(self.0);
        CIVIL_EPOCH.checked_add(since).ok()
    }

    fn from_civil(civil: jiff::civil::DateTime) -> Self {
        let micros = civil.duration_since(CIVIL_EPOCH).as_micros();
        i64::try_from(micros).map_or(Self::NEVER, Self)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(instant) => write!(f, "{instant}"),
            Err(_) => match self.civil() {
                Some(civil) => write!(f, "{civil}Z"),
                None => f.write_str("never"),
            },
        }
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a time; write RFC 3339 in UTC, such as 2026-11-01T00:00:00Z")]
pub struct InvalidTimestamp(String);

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;

    /// RFC 3339 has years of four digits; ISO 8601's signed ones are not taken.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_signed = text.starts_with(['-', '+']);
        let known = text.parse::<jiff::Timestamp>().ok();
        known
            .map(|instant| Self(instant.as_microsecond()))
            .or_else(|| on_the_last_day(text))
            .filter(|_| !is_signed)
            .ok_or_else(|| InvalidTimestamp(text.to_owned()))
    }
}

/// An instant after those of `jiff`: 9999-12-31T23:59:59Z is what many write for "never".
fn on_the_last_day(text: &str) -> Option<Timestamp> {
    let pieces = jiff::fmt::temporal::Pieces::parse(text).ok()?;
    let civil = pieces.date().to_datetime(pieces.time()?);
    let offset = i64::from(pieces.to_numeric_offset()?.seconds());
    let at = Timestamp::from_civil(civil).0 - offset * MICROS_PER_SECOND;
    let is_after = at > jiff::Timestamp::MAX.as_microsecond();
    let at = Timestamp(at);
    (is_after && at.civil().is_some()).then_some(at)
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_shown_in_whole_seconds_unless_a_fraction_is_needed() {
        let at: Timestamp = "2026-11-24T14:40:09Z".parse().unwrap();
        assert_eq!(at.to_string(), "2026-11-24T14:40:09Z");
        assert_eq!(
            Timestamp::from_micros(at.micros() + 500_000).to_string(),
            "2026-11-24T14:40:09.5Z"
        );
        assert_eq!("2026-11-24T15:40:09+01:00".parse(), Ok(at));
    }

    #[test]
    fn a_whole_second_is_reached_upwards_from_within_it() {
        for (micros, expected) in [(0, 0), (1, 1), (999_999, 1), (1_000_000, 1), (-1, 0)] {
            let up = Timestamp::from_micros(micros).up_to_whole_second();
            assert_eq!(up, Timestamp::from_seconds(expected), "{micros}");
        }
    }

    #[test]
    fn a_month_later_keeps_to_the_months_last_day() {
        let at: Timestamp = "2028-01-31T10:00:00Z".parse().unwrap();
        assert_eq!(at.plus_months(1).to_string(), "2028-02-29T10:00:00Z");
        assert_eq!(at.plus_months(2).to_string(), "2028-03-31T10:00:00Z");
        assert_eq!(at.plus_months(-2).to_string(), "2027-11-30T10:00:00Z");
    }

    #[test]
    fn the_last_second_that_can_be_written_is_taken_and_shown_as_it_is() {
        for text in [
            "9999-12-31T23:59:59Z",
            "9999-12-31T23:59:59.999999Z",
            "9999-12-30T22:00:00Z",
            "9999-12-30T21:59:59.5Z",
        ] {
            let at: Timestamp = text.parse().unwrap();
            assert_eq!(at.to_string(), text);
        }
        let last: Timestamp = "9999-12-31T23:59:59Z".parse().unwrap();
        assert_eq!(last, Timestamp::from_seconds(253_402_300_799));
        assert_eq!(
            "9999-12-31T23:59:59+00:30"
                .parse::<Timestamp>()
                .unwrap()
                .to_string(),
            "9999-12-31T23:29:59Z"
        );
        assert_eq!(last.start_of_month().to_string(), "9999-12-01T00:00:00Z");
        assert_eq!(Timestamp::NEVER.to_string(), "never");
        for refused in [
            "9999-12-31T23:59:59-00:01",
            "9999-12-31T23:59:59",
            "9999-12-31",
            "9999-12-32T00:00:00Z",
            "10000-01-01T00:00:00Z",
            "-009999-01-01T00:00:00Z",
        ] {
            refused.parse::<Timestamp>().unwrap_err();
        }
    }

    #[test]
    fn a_bad_time_is_named() {
        for bad in ["yesterday", "-009999-01-03T00:00:00Z"] {
            let error = bad.parse::<Timestamp>().unwrap_err();
            assert!(error.to_string().contains(bad), "{error}");
        }
    }
}
