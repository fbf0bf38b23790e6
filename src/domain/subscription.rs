//! A tenant's tie to a plan: status, and a period that rolls over by itself.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    names::PlanCode,
    time::Timestamp,
    window::{EmptyWindow, Window},
};

/// How long a past-due subscription still runs (interface.md §3, Errors).
pub const PAST_DUE_GRACE: Duration = Duration::from_secs(7 * 24 * 3600);

/// The mean length of a month of the Gregorian calendar, 30.436875 days: whole months are within two days of it.
const MEAN_MONTH_MICROS: i64 = 2_629_746 * 1_000_000;

/// The billing period given, from which every other period follows.
///
/// Bounds whole months apart roll on by that many months, counted from the first start, so that a period of the
/// 31st is 31 Jan → 28 Feb → 31 Mar and never drifts; others roll on by their length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    first: Window,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Months(i32),
    Micros(i64),
}

impl Period {
    /// # Errors
    /// [`EmptyWindow`] unless `start < end`.
    pub fn new(start: Timestamp, end: Timestamp) -> Result<Self, EmptyWindow> {
        let first = Window::new(start, end)?;
        let length = end.micros().saturating_sub(start.micros());
        let near = i32::try_from(length / MEAN_MONTH_MICROS).unwrap_or(i32::MAX / 2);
        let months = (near.saturating_sub(1)..=near.saturating_add(1))
            .find(|&months| months > 0 && start.plus_months(months) == end);
        Ok(Self {
            first,
            step: months.map_or(Step::Micros(length), Step::Months),
        })
    }

    /// The periods of which `start` to `end` is one. Bounds that lie whole months apart but for a day that the first
    /// one's month lacks are of the later day: 30 Sep → 31 Oct is of the 31st, as 28 Feb → 31 Mar is.
    ///
    /// # Errors
    /// [`EmptyWindow`] unless `start < end`.
    pub fn with(start: Timestamp, end: Timestamp) -> Result<Self, EmptyWindow> {
        let given = Self::new(start, end)?;
        let Step::Micros(length) = given.step else {
            return Ok(given);
        };
        let near = i32::try_from(length / MEAN_MONTH_MICROS).unwrap_or(i32::MAX / 24);
        let of_the_later_day = (near..=near.saturating_add(1)).find_map(|months| {
            // Whole years before, so that the month is the same, and has the day.
            let anchor = end.plus_months(months.checked_mul(-12)?);
            let anchored = Self::new(anchor, anchor.plus_months(months)).ok()?;
            (anchored.window_at(start) == given.first).then_some(anchored)
        });
        Ok(of_the_later_day.unwrap_or(given))
    }

    /// A period of one month from `now`'s whole second.
    #[must_use]
    pub fn monthly_from(now: Timestamp) -> Self {
        let start = now.to_whole_second();
        Self::new(start, start.plus_months(1)).expect("a month later is later")
    }

    /// The period as it was given.
    #[must_use]
    pub const fn first(&self) -> Window {
        self.first
    }

    /// The period around `at`, before the first one too.
    #[must_use]
    pub fn window_at(&self, at: Timestamp) -> Window {
        let start = self.first.start();
        match self.step {
            Step::Micros(length) => {
                let begun = at
                    .micros()
                    .saturating_sub(start.micros())
                    .div_euclid(length);
                let bound = |index: i64| {
                    Timestamp::from_micros(
                        start.micros().saturating_add(index.saturating_mul(length)),
                    )
                };
                Window::new(bound(begun), bound(begun.saturating_add(1))).unwrap_or(self.first)
            }
            Step::Months(months) => {
                let bound = |index: i32| start.plus_months(index.saturating_mul(months));
                // A guess by mean length, mended by at most a step or two.
                let mean = i64::from(months) * MEAN_MONTH_MICROS;
                let mut index =
                    i32::try_from(at.micros().saturating_sub(start.micros()).div_euclid(mean))
                        .unwrap_or(0);
                // Where the calendar ends there is no bound before, and that of the start stands for it.
                while bound(index) > at && bound(index - 1) < bound(index) {
                    index -= 1;
                }
                while bound(index + 1) <= at && bound(index + 1) > bound(index) {
                    index += 1;
                }
                Window::new(bound(index), bound(index + 1)).unwrap_or(self.first)
            }
        }
    }
}

/// Where a subscription stands, in Stripe's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubscriptionStatus {
    Active,
    Trialing,
    PastDue,
    Canceled,
    Unpaid,
    Incomplete,
    IncompleteExpired,
    Paused,
}

impl SubscriptionStatus {
    pub const ALL: [Self; 8] = [
        Self::Active,
        Self::Trialing,
        Self::PastDue,
        Self::Canceled,
        Self::Unpaid,
        Self::Incomplete,
        Self::IncompleteExpired,
        Self::Paused,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Trialing => "trialing",
            Self::PastDue => "past_due",
            Self::Canceled => "canceled",
            Self::Unpaid => "unpaid",
            Self::Incomplete => "incomplete",
            Self::IncompleteExpired => "incomplete_expired",
            Self::Paused => "paused",
        }
    }
}

impl fmt::Display for SubscriptionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "'{0}' is not a subscription status; write active, trialing, past_due, canceled, unpaid, incomplete, incomplete_expired or paused"
)]
pub struct InvalidStatus(String);

impl FromStr for SubscriptionStatus {
    type Err = InvalidStatus;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| InvalidStatus(text.to_owned()))
    }
}

/// A tenant's one current subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    pub plan_code: PlanCode,
    pub status: SubscriptionStatus,
    /// When `status` last changed; past due runs for [`PAST_DUE_GRACE`] from here.
    pub status_since: Timestamp,
    pub period: Period,
    /// The customer at the payment processor, such as Stripe's `cus_…`.
    pub processor_customer_id: Option<String>,
}

impl Subscription {
    /// Whether requests are taken at `now`.
    #[must_use]
    pub fn runs_at(&self, now: Timestamp) -> bool {
        match self.status {
            SubscriptionStatus::Active | SubscriptionStatus::Trialing => true,
            SubscriptionStatus::PastDue => now < self.status_since.plus(PAST_DUE_GRACE),
            SubscriptionStatus::Canceled
            | SubscriptionStatus::Unpaid
            | SubscriptionStatus::Incomplete
            | SubscriptionStatus::IncompleteExpired
            | SubscriptionStatus::Paused => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_period_of_the_31st_never_drifts() {
        let period = Period::new(at("2027-01-31T09:00:00Z"), at("2027-02-28T09:00:00Z")).unwrap();
        let mut starts = vec![];
        let mut now = at("2027-01-31T09:00:00Z");
        for _ in 0..14 {
            let window = period.window_at(now);
            starts.push(window.start().to_string()[..10].to_owned());
            now = window.end();
        }
        assert_eq!(
            starts,
            [
                "2027-01-31",
                "2027-02-28",
                "2027-03-31",
                "2027-04-30",
                "2027-05-31",
                "2027-06-30",
                "2027-07-31",
                "2027-08-31",
                "2027-09-30",
                "2027-10-31",
                "2027-11-30",
                "2027-12-31",
                "2028-01-31",
                "2028-02-29",
            ]
        );
    }

    #[test]
    fn a_period_of_the_31st_is_known_by_any_of_its_months() {
        let of_the_31st = Period::with(at("2026-01-31T00:00:00Z"), at("2026-02-28T00:00:00Z"));
        let of_the_31st = of_the_31st.unwrap();
        let mut window = of_the_31st.window_at(at("2026-01-31T00:00:00Z"));
        for _ in 0..30 {
            let known = Period::with(window.start(), window.end()).unwrap();
            let later = window.start().plus_months(19);
            // 28 Feb → 28 Mar would be of the 28th; all others of the 31st are told by one of their bounds.
            assert_eq!(
                known.window_at(later),
                of_the_31st.window_at(later),
                "{window:?}"
            );
            window = of_the_31st.window_at(window.end());
        }
        for (start, end, next) in [
            (
                "2026-09-30T09:00:00Z",
                "2026-10-31T09:00:00Z",
                "2026-11-30T09:00:00Z",
            ),
            (
                "2026-02-28T00:00:00Z",
                "2026-03-30T00:00:00Z",
                "2026-04-30T00:00:00Z",
            ),
            (
                "2026-11-30T00:00:00Z",
                "2027-02-28T00:00:00Z",
                "2027-05-30T00:00:00Z",
            ),
            (
                "2026-06-30T00:00:00Z",
                "2026-08-31T00:00:00Z",
                "2026-10-31T00:00:00Z",
            ),
            (
                "2026-09-30T00:00:00Z",
                "2026-10-30T00:00:00Z",
                "2026-11-30T00:00:00Z",
            ),
            (
                "2026-01-01T00:00:00Z",
                "2026-01-15T00:00:00Z",
                "2026-01-29T00:00:00Z",
            ),
            (
                "2026-09-30T00:00:00Z",
                "2026-10-31T00:00:01Z",
                "2026-12-01T00:00:02Z",
            ),
        ] {
            let period = Period::with(at(start), at(end)).unwrap();
            assert_eq!(period.window_at(at(start)).end(), at(end));
            assert_eq!(
                period.window_at(at(end)).end(),
                at(next),
                "{start} to {end}"
            );
        }
    }

    #[test]
    fn a_period_that_is_no_whole_months_rolls_on_by_its_length() {
        let period = Period::new(at("2026-01-01T00:00:00Z"), at("2026-01-15T00:00:00Z")).unwrap();
        let window = period.window_at(at("2026-01-29T00:00:00Z"));
        assert_eq!(window.start(), at("2026-01-29T00:00:00Z"));
        assert_eq!(window.end(), at("2026-02-12T00:00:00Z"));
    }

    #[test]
    fn a_period_is_found_at_either_end_of_the_calendar() {
        for (start, end) in [
            ("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"),
            ("0000-01-31T00:00:00Z", "0000-02-29T00:00:00Z"),
            ("9999-10-31T00:00:00Z", "9999-11-30T00:00:00Z"),
            ("2026-11-01T00:00:00Z", "2026-11-08T00:00:00Z"),
        ] {
            let period = Period::with(at(start), at(end)).unwrap();
            for instant in [
                Timestamp::from_micros(i64::MIN),
                // The first and last that have a date (jiff's `Timestamp::MIN` and `MAX`).
                Timestamp::from_seconds(-377_705_023_201),
                Timestamp::from_seconds(253_402_207_200),
                at("0000-01-01T00:00:00Z"),
                at("9999-12-30T22:00:00Z"),
                Timestamp::NEVER,
            ] {
                let window = period.window_at(instant); // comes to an end
                assert!(window.start() < window.end());
            }
        }
        let period = Period::monthly_from(at("2026-11-01T00:00:00Z"));
        for instant in ["0000-01-05T00:00:00Z", "9999-11-05T00:00:00Z"] {
            assert!(period.window_at(at(instant)).contains(at(instant)));
        }
    }

    #[test]
    fn a_year_rolls_on_by_twelve_months() {
        let period = Period::new(at("2024-02-29T00:00:00Z"), at("2025-02-28T00:00:00Z")).unwrap();
        assert_eq!(
            period.window_at(at("2028-03-01T00:00:00Z")).start(),
            at("2028-02-29T00:00:00Z")
        );
    }

    #[test]
    fn a_period_of_many_years_is_whole_months_too() {
        let period = Period::new(at("2000-05-31T00:00:00Z"), at("2030-05-31T00:00:00Z")).unwrap();
        assert_eq!(
            period.window_at(at("2061-01-01T00:00:00Z")).start(),
            at("2060-05-31T00:00:00Z")
        );
    }

    #[test]
    fn past_due_runs_for_seven_days_and_other_states_do_not() {
        let since = at("2026-01-01T00:00:00Z");
        let subscription = |status| Subscription {
            plan_code: "starter".parse().unwrap(),
            status,
            status_since: since,
            period: Period::monthly_from(since),
            processor_customer_id: None,
        };
        let past_due = subscription(SubscriptionStatus::PastDue);
        assert!(past_due.runs_at(at("2026-01-07T23:59:59Z")));
        assert!(!past_due.runs_at(at("2026-01-08T00:00:00Z")));
        for (status, runs) in [
            (SubscriptionStatus::Active, true),
            (SubscriptionStatus::Trialing, true),
            (SubscriptionStatus::Canceled, false),
            (SubscriptionStatus::Unpaid, false),
            (SubscriptionStatus::Paused, false),
        ] {
            assert_eq!(subscription(status).runs_at(since), runs, "{status}");
        }
    }
}
