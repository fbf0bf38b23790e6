//! Limits, and the one decision of tollgate: does this request fit?

mod message;

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::{
    feature::FeatureKey,
    ids::KeyId,
    quantity::Quantity,
    time::Timestamp,
    window::{Window, WindowKind},
};

/// Whose usage a limit counts.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    #[default]
    Tenant,
    /// Each API key of the tenant by itself.
    Key,
    /// Each end user of the tenant by itself.
    User,
}

impl Scope {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Key => "key",
            Self::User => "user",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a scope; write tenant, key or user")]
pub struct InvalidScope(String);

impl FromStr for Scope {
    type Err = InvalidScope;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Tenant, Self::Key, Self::User]
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or_else(|| InvalidScope(text.to_owned()))
    }
}

/// Who exactly a counter belongs to within a tenant: a [`Scope`] with its key or user filled in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Subject {
    Tenant,
    Key(KeyId),
    /// The end user; `""` for all requests that name none.
    User(Arc<str>),
}

impl Subject {
    #[must_use]
    pub const fn scope(&self) -> Scope {
        match self {
            Self::Tenant => Scope::Tenant,
            Self::Key(_) => Scope::Key,
            Self::User(_) => Scope::User,
        }
    }
}

/// Soft and hard value of one feature for one scope in one window; `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    #[serde(default)]
    pub scope: Scope,
    #[serde(default = "period")]
    pub window: WindowKind,
    #[serde(rename = "soft_limit", default)]
    pub soft: Option<Quantity>,
    #[serde(rename = "hard_limit", default)]
    pub hard: Option<Quantity>,
}

fn period() -> WindowKind {
    WindowKind::Period
}

/// Why a limit can't be taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidLimit {
    #[error("{field} is {value}; a limit is a whole number from 0 to 2^53 - 1, or none")]
    Negative {
        field: &'static str,
        value: Quantity,
    },
    #[error("soft_limit {soft} is above hard_limit {hard}; write a soft limit of at most {hard}")]
    SoftAboveHard { soft: Quantity, hard: Quantity },
}

impl Limit {
    /// # Errors
    /// [`InvalidLimit`] for a negative value, or a soft one above the hard one.
    pub fn check(&self) -> Result<(), InvalidLimit> {
        for (field, value) in [("soft_limit", self.soft), ("hard_limit", self.hard)] {
            if let Some(value) = value.filter(|value| *value < Quantity::ZERO) {
                return Err(InvalidLimit::Negative { field, value });
            }
        }
        match (self.soft, self.hard) {
            (Some(soft), Some(hard)) if soft > hard => {
                Err(InvalidLimit::SoftAboveHard { soft, hard })
            }
            _ => Ok(()),
        }
    }
}

/// A tenant's own limits of one feature, in place of its plan's of the same scope and window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    pub feature: FeatureKey,
    pub limits: Vec<Limit>,
    /// From here on the plan holds again.
    pub until: Option<Timestamp>,
}

/// A limit as it holds now: its window placed in time, overrides and grants included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveLimit {
    pub feature: FeatureKey,
    pub unit: Arc<str>,
    pub scope: Scope,
    pub kind: WindowKind,
    pub window: Window,
    pub soft: Option<Quantity>,
    /// Grants included.
    pub hard: Option<Quantity>,
    /// How much of `hard` came by grants.
    pub granted: Quantity,
    /// The tenant's own, in place of its plan's.
    pub is_own: bool,
}

impl ActiveLimit {
    /// Limits nothing, and has a tenant's usage of a window counted.
    #[must_use]
    pub fn unlimited(feature: FeatureKey, window: Window) -> Self {
        Self {
            feature,
            unit: "".into(),
            scope: Scope::Tenant,
            kind: WindowKind::Lifetime,
            window,
            soft: None,
            hard: None,
            granted: Quantity::ZERO,
            is_own: false,
        }
    }

    /// The value that a reservation must fit under, with its kind.
    #[must_use]
    pub fn ceiling(&self, mode: SoftLimitMode) -> Option<(Quantity, LimitType)> {
        let hard = self.hard.map(|hard| (hard, LimitType::HardLimit));
        let soft = self.soft.map(|soft| (soft, LimitType::SoftLimit));
        match (mode, soft, hard) {
            (SoftLimitMode::Block, Some(soft), Some(hard)) => {
                Some(if soft.0 < hard.0 { soft } else { hard })
            }
            (SoftLimitMode::Block, Some(soft), None) => Some(soft),
            (_, _, hard) => hard,
        }
    }

    /// The limit's name in `RateLimit` headers: `messages` for the tenant's period, `messages.user.day` and so on else.
    #[must_use]
    pub fn policy_name(&self) -> String {
        let mut name = String::new();
        self.push_policy_name(&mut name);
        name
    }

    /// Appends [`policy_name`](Self::policy_name).
    pub fn push_policy_name(&self, to: &mut String) {
        to.push_str(self.feature.as_str());
        if self.scope != Scope::Tenant {
            to.push('.');
            to.push_str(self.scope.as_str());
        }
        if self.kind != WindowKind::Period || self.scope != Scope::Tenant {
            to.push('.');
            to.push_str(self.kind.as_str());
        }
    }
}

/// Which of its two values a limit refused or warned by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitType {
    SoftLimit,
    HardLimit,
}

impl LimitType {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SoftLimit => "soft_limit",
            Self::HardLimit => "hard_limit",
        }
    }
}

/// What a soft limit does (setting `USAGE_GUARDRAIL_SOFT_LIMIT_MODE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftLimitMode {
    Warn,
    Block,
}

/// A limit, owned or borrowed, with what has been counted against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitState<L = ActiveLimit> {
    pub limit: L,
    /// Used and written down.
    pub settled: Quantity,
    /// Held by requests in flight.
    pub reserved: Quantity,
}

impl<L: Borrow<ActiveLimit>> LimitState<L> {
    fn limit(&self) -> &ActiveLimit {
        self.limit.borrow()
    }

    /// Settled and reserved together.
    #[must_use]
    pub fn taken(&self) -> Quantity {
        self.settled.plus(self.reserved)
    }

    /// What a new request may still use, as it is shown; `None` if unlimited. What corrections took away beyond what was
    /// used does not show.
    #[must_use]
    pub fn remaining(&self) -> Option<Quantity> {
        self.limit().hard.map(|hard| {
            hard.minus(self.settled.at_least_zero())
                .minus(self.reserved)
                .at_least_zero()
        })
    }

    /// Whether settled use has reached the soft value (reservations never cause a warning).
    #[must_use]
    pub fn is_warned(&self) -> bool {
        self.limit().soft.is_some_and(|soft| self.settled >= soft)
    }

    /// What is left under its [`ceiling`](ActiveLimit::ceiling); `None` if unlimited.
    #[must_use]
    pub fn room(&self, mode: SoftLimitMode) -> Option<Quantity> {
        self.limit().ceiling(mode).map(|(value, _)| {
            value
                .minus(self.settled)
                .minus(self.reserved)
                .at_least_zero()
        })
    }

    /// Whether `requested` more fits.
    #[must_use]
    pub fn has_room_for(&self, requested: Quantity, mode: SoftLimitMode) -> bool {
        let Some((value, _)) = self.limit().ceiling(mode) else {
            return true;
        };
        self.taken().plus(requested) <= value
    }

    /// Whether `requested` more fits; if not, what it broke.
    #[must_use]
    pub fn admit(&self, requested: Quantity, mode: SoftLimitMode) -> Option<Violation> {
        let (value, limit_type) = self.limit().ceiling(mode)?;
        (!self.has_room_for(requested, mode)).then(|| Violation {
            limit: self.limit().clone(),
            limit_type,
            limit_value: value,
            settled: self.settled,
            reserved: self.reserved,
            requested,
        })
    }

    /// `used ÷ (hard, else soft)` in hundredths of a percent, half up; `None` where that is null or 0. What corrections
    /// took away beyond what was used does not show.
    #[must_use]
    pub fn percent_hundredths(&self) -> Option<i64> {
        let used = self.settled.at_least_zero();
        percent_hundredths(used, self.limit().hard.or(self.limit().soft)?)
    }
}

/// Where several limits of one request stand, without a copy of the limits: made for every request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LimitStates {
    /// `None` where there are none: an empty `Arc` would have to be counted too.
    limits: Option<Arc<[ActiveLimit]>>,
    /// One a limit, in their order; `None` for a limit that does not apply.
    standings: SmallVec<[Option<Standing>; 4]>,
}

/// What is counted against a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Used and written down.
    pub settled: Quantity,
    /// Held by requests in flight.
    pub reserved: Quantity,
}

impl Clone for LimitStates {
    /// Copies the standings in one piece.
    fn clone(&self) -> Self {
        Self {
            limits: self.limits.clone(),
            standings: SmallVec::from_slice(&self.standings),
        }
    }
}

impl LimitStates {
    /// Where `limits` stand by what `look` says of each, with its place among them: `Some(None)` of
    /// one that does not apply, `None` as soon as it can't tell.
    #[inline]
    pub fn of(
        limits: &Arc<[ActiveLimit]>,
        mut look: impl FnMut(usize, &ActiveLimit) -> Option<Option<Standing>>,
    ) -> Option<Self> {
        let mut standings = SmallVec::new();
        for (place, limit) in limits.iter().enumerate() {
            standings.push(look(place, limit)?);
        }
        Some(Self {
            limits: Some(Arc::clone(limits)),
            standings,
        })
    }

    /// The states of those that apply, in the order of the limits.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = LimitState<&ActiveLimit>> {
        let limits = self.limits.as_deref().unwrap_or_default();
        let both = limits.iter().zip(&self.standings);
        both.filter_map(|(limit, standing)| {
            standing.map(|Standing { settled, reserved }| LimitState {
                limit,
                settled,
                reserved,
            })
        })
    }

    /// Lets `change` bring the standing of each limit that applies up to date.
    #[inline]
    pub fn update(&mut self, mut change: impl FnMut(&ActiveLimit, &mut Standing)) {
        let limits = self.limits.as_deref().unwrap_or_default();
        for (limit, standing) in limits.iter().zip(&mut self.standings) {
            if let Some(standing) = standing {
                change(limit, standing);
            }
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.standings.iter().all(Option::is_none)
    }

    /// Whether settled use has reached any soft value.
    #[must_use]
    pub fn is_warned(&self) -> bool {
        self.iter().any(|state| state.is_warned())
    }

    /// Copies that own their limits.
    #[must_use]
    pub fn to_vec(&self) -> Vec<LimitState> {
        self.iter()
            .map(|state| LimitState {
                limit: state.limit.clone(),
                settled: state.settled,
                reserved: state.reserved,
            })
            .collect()
    }
}

impl FromIterator<LimitState> for LimitStates {
    fn from_iter<I: IntoIterator<Item = LimitState>>(states: I) -> Self {
        let mut limits = Vec::new();
        let mut standings = SmallVec::new();
        for state in states {
            limits.push(state.limit);
            standings.push(Some(Standing {
                settled: state.settled,
                reserved: state.reserved,
            }));
        }
        Self {
            limits: Some(limits.into()),
            standings,
        }
    }
}

/// `part ÷ whole` in hundredths of a percent, rounded half up; `None` if `whole` is not above 0.
#[must_use]
pub fn percent_hundredths(part: Quantity, whole: Quantity) -> Option<i64> {
    if whole <= Quantity::ZERO {
        return None;
    }
    let (part, whole) = (i128::from(part.get()), i128::from(whole.get()));
    i64::try_from((part * 20_000 + whole).div_euclid(2 * whole)).ok()
}

/// A limit that a request does not fit under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub limit: ActiveLimit,
    pub limit_type: LimitType,
    /// The value broken: the soft or the hard one, as `limit_type` says.
    pub limit_value: Quantity,
    pub settled: Quantity,
    pub reserved: Quantity,
    pub requested: Quantity,
}

impl Violation {
    /// It would fit, were it not for requests in flight.
    #[must_use]
    pub fn is_by_reservations_alone(&self) -> bool {
        self.settled.plus(self.requested) <= self.limit_value
    }

    /// It is larger than the whole limit and will never fit.
    #[must_use]
    pub fn is_larger_than_limit(&self) -> bool {
        self.requested > self.limit_value
    }
}

/// Puts the violation that resets last first (never last of all), ties by feature (interface.md §3, Errors).
pub fn sort_violations(violations: &mut [Violation]) {
    violations.sort_by(|a, b| {
        b.limit
            .window
            .end()
            .cmp(&a.limit.window.end())
            .then_with(|| a.limit.feature.cmp(&b.limit.feature))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(soft: Option<i64>, hard: Option<i64>, settled: i64, reserved: i64) -> LimitState {
        let window = Window::new(Timestamp::EPOCH, Timestamp::from_seconds(60)).unwrap();
        LimitState {
            limit: ActiveLimit {
                feature: FeatureKey::Messages,
                unit: "requests".into(),
                scope: Scope::Tenant,
                kind: WindowKind::Minute,
                window,
                soft: soft.map(Quantity::new),
                hard: hard.map(Quantity::new),
                granted: Quantity::ZERO,
                is_own: false,
            },
            settled: Quantity::new(settled),
            reserved: Quantity::new(reserved),
        }
    }

    #[test]
    fn what_corrections_took_away_beyond_what_was_used_is_not_shown_as_left() {
        let left = |settled| state(None, Some(10), settled, 1).remaining();
        assert_eq!(left(4), Some(Quantity::new(5)));
        assert_eq!(left(-7), Some(Quantity::new(9)));
    }

    #[test]
    fn a_request_fits_up_to_the_limit_and_not_past_it() {
        for (soft, hard, settled, reserved, requested, mode, refused) in [
            (None, Some(10), 9, 0, 1, SoftLimitMode::Warn, None),
            (
                None,
                Some(10),
                10,
                0,
                1,
                SoftLimitMode::Warn,
                Some(LimitType::HardLimit),
            ),
            (
                None,
                Some(10),
                8,
                2,
                1,
                SoftLimitMode::Warn,
                Some(LimitType::HardLimit),
            ),
            (Some(5), Some(10), 5, 0, 1, SoftLimitMode::Warn, None),
            (
                Some(5),
                Some(10),
                5,
                0,
                1,
                SoftLimitMode::Block,
                Some(LimitType::SoftLimit),
            ),
            (Some(5), None, 4, 0, 1, SoftLimitMode::Block, None),
            (
                Some(5),
                None,
                4,
                1,
                1,
                SoftLimitMode::Block,
                Some(LimitType::SoftLimit),
            ),
            (
                Some(10),
                Some(10),
                10,
                0,
                1,
                SoftLimitMode::Block,
                Some(LimitType::HardLimit),
            ),
            (None, None, 1_000_000, 0, 1, SoftLimitMode::Block, None),
            (
                None,
                Some(0),
                0,
                0,
                1,
                SoftLimitMode::Warn,
                Some(LimitType::HardLimit),
            ),
        ] {
            let violation =
                state(soft, hard, settled, reserved).admit(Quantity::new(requested), mode);
            assert_eq!(
                violation.map(|it| it.limit_type),
                refused,
                "{soft:?} {hard:?} {settled} {reserved}"
            );
        }
    }

    #[test]
    fn only_settled_use_warns() {
        assert!(!state(Some(150), Some(200), 149, 40).is_warned());
        assert!(state(Some(150), Some(200), 150, 0).is_warned());
    }

    #[test]
    fn a_refusal_by_requests_in_flight_is_told_from_a_spent_quota() {
        let refuse = |settled, reserved, requested| {
            state(None, Some(10), settled, reserved)
                .admit(Quantity::new(requested), SoftLimitMode::Warn)
                .unwrap()
        };
        assert!(refuse(5, 5, 1).is_by_reservations_alone());
        assert!(!refuse(10, 5, 1).is_by_reservations_alone());
        assert!(refuse(0, 0, 11).is_larger_than_limit());
    }

    #[test]
    fn percent_is_rounded_half_up() {
        for (part, whole, expected) in [
            (1, 3, Some(3333)),
            (2, 3, Some(6667)),
            (1, 8, Some(1250)),
            (1, 20_000, Some(1)),
            (5, 0, None),
            (200, 100, Some(20_000)),
        ] {
            assert_eq!(
                percent_hundredths(Quantity::new(part), Quantity::new(whole)),
                expected,
                "{part}/{whole}"
            );
        }
    }

    #[test]
    fn a_limit_is_checked() {
        let limit = |soft, hard| Limit {
            scope: Scope::Tenant,
            window: WindowKind::Period,
            soft,
            hard,
        };
        assert!(
            limit(Some(Quantity::new(5)), Some(Quantity::new(5)))
                .check()
                .is_ok()
        );
        assert!(
            limit(Some(Quantity::new(6)), Some(Quantity::new(5)))
                .check()
                .is_err()
        );
        assert!(limit(None, Some(Quantity::new(-1))).check().is_err());
    }

    #[test]
    fn limits_are_named_for_headers_by_feature_scope_and_window() {
        let mut limit = state(None, Some(1), 0, 0).limit;
        assert_eq!(limit.policy_name(), "messages.minute");
        limit.kind = WindowKind::Period;
        assert_eq!(limit.policy_name(), "messages");
        limit.scope = Scope::User;
        assert_eq!(limit.policy_name(), "messages.user.period");
    }
}
