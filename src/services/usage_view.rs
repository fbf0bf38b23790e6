//! Usage as clients see it, one shape for HTTP and command line (interface.md §3): the items of `guardrail`, the bodies
//! of `/api/v1/usage` and its totals, and a request's own usage.

use std::{borrow::Borrow, sync::Arc};

use serde::{Serialize, Serializer, ser::Error as _};
use serde_json::value::RawValue;

use crate::{
    domain::{
        feature::FeatureKey,
        ids::TenantId,
        limit::{ActiveLimit, LimitState, LimitStates, Scope, percent_hundredths},
        quantity::Quantity,
        time::Timestamp,
        usage::TokenUsage,
        window::WindowKind,
    },
    services::{
        catalogue::Policy,
        reports::{CurrentUsage, unit_of},
    },
    store::usage::{Dimension, Totals},
    telemetry::events::Decision,
};

/// From which percentage of its limit on a feature is `approaching` (interface.md §8).
pub const DEFAULT_WARN_PERCENT: u16 = 80;

/// What one request used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct UsageView {
    pub input_tokens: Quantity,
    pub output_tokens: Quantity,
    pub total_tokens: Quantity,
    pub cached_input_tokens: Quantity,
    pub cache_write_input_tokens: Quantity,
    pub reasoning_output_tokens: Quantity,
    pub requests: Quantity,
    pub cost_usd_micros: Quantity,
    pub estimated: bool,
}

/// Where token counts came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    ByProvider,
    /// By the tokenizer, since the provider reported nothing usable.
    Estimated,
}

impl UsageView {
    #[must_use]
    pub fn of(tokens: &TokenUsage, cost: Quantity, counted: Counted) -> Self {
        Self {
            input_tokens: tokens.input_tokens,
            output_tokens: tokens.output_tokens,
            total_tokens: tokens.input_tokens.plus(tokens.output_tokens),
            cached_input_tokens: tokens.cached_input_tokens,
            cache_write_input_tokens: tokens.cache_write_input_tokens,
            reasoning_output_tokens: tokens.reasoning_output_tokens,
            requests: Quantity::ONE,
            cost_usd_micros: cost,
            estimated: counted == Counted::Estimated,
        }
    }
}

/// The guardrail's part of an answer: the state after settling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct GuardrailView {
    #[schema(value_type = String, example = "allow")]
    pub decision: Decision,
    #[schema(value_type = String)]
    pub plan_code: Arc<str>,
    pub warnings: Vec<Warning>,
    pub features: Vec<FeatureItem>,
}

/// What an answer warns of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Warning {
    SoftLimitExceeded {
        feature_key: FeatureKey,
    },
    /// The output maximum was lowered.
    OutputCapped {
        feature_key: FeatureKey,
        from: Quantity,
        to: Quantity,
    },
    /// The model has no price: its cost counts as 0.
    UnpricedModel {
        feature_key: FeatureKey,
        model: String,
    },
}

impl Warning {
    /// One per feature whose soft limit is passed.
    #[must_use]
    pub fn soft_limits(states: &LimitStates) -> Vec<Self> {
        let mut warned: Vec<&FeatureKey> = states
            .iter()
            .filter(|state| state.is_warned())
            .map(|state| &state.limit.feature)
            .collect();
        warned.sort();
        warned.dedup();
        warned
            .into_iter()
            .map(|feature| Self::SoftLimitExceeded {
                feature_key: feature.clone(),
            })
            .collect()
    }
}

/// One limit and what is used of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FeatureItem {
    pub feature_key: FeatureKey,
    pub scope: Scope,
    pub window: WindowKind,
    #[schema(value_type = String)]
    pub unit: Arc<str>,
    /// Settled use only.
    pub used: Quantity,
    pub soft_limit: Option<Quantity>,
    /// Grants included.
    pub hard_limit: Option<Quantity>,
    /// `max(0, hard − used − reserved)`; null if unlimited.
    pub remaining: Option<Quantity>,
    pub window_start: Timestamp,
    /// Null for a window that never ends.
    pub window_end: Option<Timestamp>,
}

impl<L: Borrow<ActiveLimit>> From<&LimitState<L>> for FeatureItem {
    fn from(state: &LimitState<L>) -> Self {
        let limit = state.limit.borrow();
        Self {
            feature_key: limit.feature.clone(),
            scope: limit.scope,
            window: limit.kind,
            unit: Arc::clone(&limit.unit),
            // Corrections may take away more than was used in this window.
            used: state.settled.at_least_zero(),
            soft_limit: limit.soft,
            hard_limit: limit.hard,
            remaining: state.remaining(),
            window_start: limit.window.start(),
            window_end: limit.window.resets_at(),
        }
    }
}

/// One limit in the body of `GET /api/v1/usage`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct UsageItem {
    #[serde(flatten)]
    pub feature: FeatureItem,
    /// Held by requests in flight.
    pub reserved: Quantity,
    /// `used ÷ (hard, else soft)`.
    #[schema(value_type = Option<f64>)]
    pub percent: Option<Percent>,
    pub status: UsageStatus,
    /// Null for a window that never ends.
    pub resets_at: Option<Timestamp>,
    /// How much of `hard_limit` came by grants.
    pub granted: Quantity,
}

impl UsageItem {
    /// `warn_percent`: from where on it is `approaching` ([`DEFAULT_WARN_PERCENT`]).
    #[must_use]
    pub fn of(state: &LimitState, warn_percent: u16) -> Self {
        let limit = &state.limit;
        Self {
            feature: FeatureItem::from(state),
            reserved: state.reserved,
            percent: state.percent_hundredths().map(Percent),
            status: UsageStatus::of(state.settled, limit.soft, limit.hard, warn_percent),
            resets_at: limit.window.resets_at(),
            granted: limit.granted,
        }
    }
}

/// How near a limit its use is; the first that holds (interface.md §8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UsageStatus {
    Ok,
    Approaching,
    SoftLimitExceeded,
    HardLimitExceeded,
}

impl UsageStatus {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Approaching => "approaching",
            Self::SoftLimitExceeded => "soft_limit_exceeded",
            Self::HardLimitExceeded => "hard_limit_exceeded",
        }
    }

    #[must_use]
    pub fn of(
        used: Quantity,
        soft: Option<Quantity>,
        hard: Option<Quantity>,
        warn_percent: u16,
    ) -> Self {
        Self::at(used, soft, hard, WarnAt::percent(warn_percent))
    }

    /// As [`of`](Self::of), with a threshold that may lie between two percent.
    #[must_use]
    pub fn at(
        used: Quantity,
        soft: Option<Quantity>,
        hard: Option<Quantity>,
        warn_at: WarnAt,
    ) -> Self {
        let reached = |limit: Option<Quantity>| limit.is_some_and(|limit| used >= limit);
        if reached(hard) {
            return Self::HardLimitExceeded;
        }
        if reached(soft) {
            return Self::SoftLimitExceeded;
        }
        let is_near = soft.or(hard).is_some_and(|limit| {
            // Exact: a share that rounds up to the threshold has not reached it.
            i128::from(used.get()) * 1_000_000 >= i128::from(limit.get()) * i128::from(warn_at.0)
        });
        if is_near { Self::Approaching } else { Self::Ok }
    }
}

/// The share of a limit from which on its feature is `approaching`, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WarnAt(u32);

impl WarnAt {
    #[must_use]
    pub fn percent(percent: u16) -> Self {
        Self(u32::from(percent) * 10_000)
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("write a share from 0 to 1 with up to six decimals, such as 0.8")]
pub struct InvalidShare;

impl std::str::FromStr for WarnAt {
    type Err = InvalidShare;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !is_digits(whole) || !is_digits(decimals) || whole.len() > 1 || decimals.len() > 6 {
            return Err(InvalidShare);
        }
        let millionths: u32 = format!("{whole}{decimals:0<6}")
            .parse()
            .map_err(|_| InvalidShare)?;
        (millionths <= 1_000_000)
            .then_some(Self(millionths))
            .ok_or(InvalidShare)
    }
}

/// `0.8`: as many decimals as it has, at least one.
impl std::fmt::Display for WarnAt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let decimals = format!("{:06}", self.0 % 1_000_000);
        let decimals = decimals.trim_end_matches('0');
        let decimals = if decimals.is_empty() { "0" } else { decimals };
        write!(f, "{}.{decimals}", self.0 / 1_000_000)
    }
}

/// A percentage in hundredths; on the wire a JSON number with two decimals, never by way of a float.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percent(pub i64);

impl Percent {
    /// `part ÷ whole`, rounded half up; `None` if `whole` is not above 0.
    #[must_use]
    pub fn of(part: Quantity, whole: Quantity) -> Option<Self> {
        percent_hundredths(part, whole).map(Self)
    }
}

impl std::fmt::Display for Percent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let hundredths = self.0.unsigned_abs();
        write!(f, "{sign}{}.{:02}", hundredths / 100, hundredths % 100)
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.to_string())
            .map_err(S::Error::custom)?
            .serialize(serializer)
    }
}

/// The body of `GET /api/v1/usage`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct UsageBody {
    pub tenant_id: TenantId,
    pub tenant_slug: String,
    pub plan_code: Option<String>,
    pub subscription_status: Option<&'static str>,
    pub features: Vec<UsageItem>,
}

impl UsageBody {
    #[must_use]
    pub fn of(current: &CurrentUsage) -> Self {
        let policy = &current.policy;
        Self {
            tenant_id: policy.tenant.tenant_id,
            tenant_slug: policy.tenant.slug.to_string(),
            plan_code: policy
                .subscription()
                .map(|subscription| subscription.plan_code.to_string()),
            subscription_status: policy
                .subscription()
                .map(|subscription| subscription.status.as_str()),
            features: current
                .states
                .iter()
                .map(|state| UsageItem::of(state, DEFAULT_WARN_PERCENT))
                .collect(),
        }
    }
}

/// The body of `GET /api/v1/usage/totals`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct TotalsBody {
    pub totals: Vec<TotalRow>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct TotalRow {
    pub feature_key: String,
    pub unit: String,
    pub quantity: Quantity,
    pub window_start: Timestamp,
    pub window_end: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

impl TotalsBody {
    #[must_use]
    pub fn of(policy: &Policy, totals: &Totals, by: Option<Dimension>) -> Self {
        let row = |total: &crate::store::usage::Total| {
            let value = |dimension| total.by.clone().filter(|_| by == Some(dimension));
            TotalRow {
                unit: unit_of(policy, &total.feature),
                feature_key: total.feature.to_string(),
                quantity: total.quantity.at_least_zero(),
                window_start: totals.window.start(),
                window_end: totals.window.end(),
                key_id: value(Dimension::Key),
                user: value(Dimension::User),
                model: value(Dimension::Model),
            }
        };
        Self {
            totals: totals.totals.iter().map(row).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{limit::ActiveLimit, window::Window};

    fn state(soft: Option<i64>, hard: Option<i64>, used: i64, end: Timestamp) -> LimitState {
        LimitState {
            limit: ActiveLimit {
                feature: FeatureKey::Messages,
                unit: "requests".into(),
                scope: Scope::Tenant,
                kind: WindowKind::Period,
                window: Window::new(Timestamp::EPOCH, end).unwrap(),
                soft: soft.map(Quantity::new),
                hard: hard.map(Quantity::new),
                granted: Quantity::new(3),
                is_own: false,
            },
            settled: Quantity::new(used),
            reserved: Quantity::new(2),
        }
    }

    #[test]
    fn a_limit_is_shown_with_all_that_is_known_of_it() {
        let state = state(Some(150), Some(200), 66, Timestamp::from_seconds(86_400));
        let item = UsageItem::of(&state, DEFAULT_WARN_PERCENT);
        assert_eq!(
            serde_json::to_string(&item).unwrap(),
            concat!(
                r#"{"feature_key":"messages","scope":"tenant","window":"period","unit":"requests","used":66,"#,
                r#""soft_limit":150,"hard_limit":200,"remaining":132,"window_start":"1970-01-01T00:00:00Z","#,
                r#""window_end":"1970-01-02T00:00:00Z","reserved":2,"percent":33.00,"status":"ok","#,
                r#""resets_at":"1970-01-02T00:00:00Z","granted":3}"#
            )
        );
    }

    #[test]
    fn what_is_unlimited_or_never_ends_is_null() {
        let item = UsageItem::of(&state(None, None, 9, Timestamp::NEVER), 80);
        let json = serde_json::to_value(&item).unwrap();
        for field in [
            "soft_limit",
            "hard_limit",
            "remaining",
            "percent",
            "window_end",
            "resets_at",
        ] {
            assert!(json[field].is_null(), "{field}");
        }
        assert_eq!(json["status"], "ok");
    }

    #[test]
    fn the_status_is_the_worst_that_holds() {
        for (soft, hard, used, expected) in [
            (Some(150), Some(200), 200, UsageStatus::HardLimitExceeded),
            (Some(150), Some(200), 150, UsageStatus::SoftLimitExceeded),
            (Some(150), Some(200), 120, UsageStatus::Approaching),
            (Some(150), Some(200), 119, UsageStatus::Ok),
            (None, Some(200), 160, UsageStatus::Approaching),
            (None, Some(0), 0, UsageStatus::HardLimitExceeded),
            (None, None, 1_000, UsageStatus::Ok),
        ] {
            let status = UsageStatus::of(
                Quantity::new(used),
                soft.map(Quantity::new),
                hard.map(Quantity::new),
                80,
            );
            assert_eq!(status, expected, "{used} of {soft:?}/{hard:?}");
        }
    }

    #[test]
    fn a_threshold_is_a_share_of_the_limit() {
        for (text, expected) in [
            ("0.8", Some("0.8")),
            ("0.855", Some("0.855")),
            ("1", Some("1.0")),
            ("0", Some("0.0")),
            ("0.000001", Some("0.000001")),
            ("1.01", None),
            ("80", None),
            ("-0.1", None),
            ("0,8", None),
            (".8", None),
            ("0.", None),
            ("", None),
        ] {
            let read = text.parse::<WarnAt>().map(|share| share.to_string());
            assert_eq!(read.ok().as_deref(), expected, "{text:?}");
        }
        let status = |used| {
            let limit = Some(Quantity::new(1000));
            UsageStatus::at(Quantity::new(used), None, limit, "0.855".parse().unwrap())
        };
        assert_eq!(
            (status(854), status(855)),
            (UsageStatus::Ok, UsageStatus::Approaching)
        );
    }

    #[test]
    fn a_percentage_is_a_number_with_two_decimals_at_any_size() {
        for (hundredths, expected) in [
            (0, "0.00"),
            (5, "0.05"),
            (3_333, "33.33"),
            (20_000, "200.00"),
            (-150, "-1.50"),
            (900_719_925_474_099_101, "9007199254740991.01"),
        ] {
            assert_eq!(
                serde_json::to_string(&Percent(hundredths)).unwrap(),
                expected
            );
        }
        assert_eq!(
            Percent::of(Quantity::new(1), Quantity::new(3)),
            Some(Percent(3_333))
        );
        assert_eq!(Percent::of(Quantity::new(1), Quantity::ZERO), None);
    }

    #[test]
    fn warnings_carry_their_code_and_feature() {
        let capped = Warning::OutputCapped {
            feature_key: FeatureKey::OutputTokens,
            from: Quantity::new(500),
            to: Quantity::new(16),
        };
        assert_eq!(
            serde_json::to_value(&capped).unwrap(),
            serde_json::json!({"code": "output_capped", "feature_key": "output_tokens", "from": 500, "to": 16})
        );
        let warned = LimitStates::from_iter([
            state(Some(5), None, 5, Timestamp::NEVER),
            state(Some(9), None, 5, Timestamp::NEVER),
        ]);
        assert_eq!(
            Warning::soft_limits(&warned),
            [Warning::SoftLimitExceeded {
                feature_key: FeatureKey::Messages
            }]
        );
    }
}
