//! What a notice says (interface.md §10).

use serde::Serialize;

use super::judge::Mark;
use crate::{
    domain::{
        feature::FeatureKey,
        ids::{KeyId, TenantId},
        limit::{ActiveLimit, LimitType, Scope, Subject},
        quantity::Quantity,
        time::Timestamp,
        window::WindowKind,
    },
    services::{catalogue::Policy, usage_view::Percent},
};

/// The fields of the error that a refused request gets, and how far the limit is used.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Data {
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) tenant_id: TenantId,
    pub(super) tenant_slug: String,
    pub(super) plan_code: Option<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) limit: Option<LimitData>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) subscription_status: Option<&'static str>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) dead: Option<DeadData>,
}

/// Usage that Stripe can't be told of.
#[derive(Clone, Copy, Debug)]
pub struct DeadEntry<'a> {
    pub feature: &'a FeatureKey,
    pub identifier: &'a str,
    pub meter: &'a str,
    pub value: Quantity,
    pub used_at: Timestamp,
    /// Why.
    pub error: &'a str,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct DeadData {
    feature_key: FeatureKey,
    identifier: String,
    stripe_meter: String,
    value: Quantity,
    unit: String,
    used_at: Timestamp,
    reason: String,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct LimitData {
    feature_key: FeatureKey,
    scope: Scope,
    /// Of a limit of scope `key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<KeyId>,
    /// Of a limit of scope `user`.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    window: WindowKind,
    /// Null where a window is over.
    limit_type: Option<LimitType>,
    limit_value: Quantity,
    usage: Quantity,
    reserved: Quantity,
    /// By the request that was refused; null if none was.
    requested: Option<Quantity>,
    unit: String,
    percent: Option<Percent>,
    /// In percent; null if the notice is about none.
    threshold: Option<u16>,
    window_start: Timestamp,
    /// Null for a window that never ends, as the two below.
    window_end: Option<Timestamp>,
    resets_at: Option<Timestamp>,
    retry_after_seconds: Option<i64>,
}

/// A limit and what is used of it, as a mark sees it.
pub(super) struct Standing<'a> {
    pub(super) limit: &'a ActiveLimit,
    pub(super) subject: &'a Subject,
    pub(super) value: Quantity,
    pub(super) limit_type: LimitType,
    pub(super) used: Quantity,
    pub(super) reserved: Quantity,
    pub(super) requested: Option<Quantity>,
}

impl Data {
    pub(super) fn of_limit(
        policy: &Policy,
        mark: Mark,
        standing: &Standing<'_>,
        now: Timestamp,
    ) -> Self {
        let limit = standing.limit;
        let slug = policy.tenant.slug.to_string();
        let percent = Percent::of(standing.used, standing.value);
        let (code, what) = match mark {
            Mark::Threshold(percent) => (
                "usage_threshold_reached",
                format!("has reached {percent} %"),
            ),
            Mark::SoftLimit => (
                "usage_soft_limit_exceeded",
                "has reached the soft limit".to_owned(),
            ),
            Mark::Limit => (
                "usage_limit_exceeded",
                "was refused a request by the limit".to_owned(),
            ),
            Mark::Overshoot => ("usage_overshoot", "has used more than the limit".to_owned()),
        };
        let resets_at = limit.window.resets_at();
        let reset = resets_at.map_or("It never resets.".to_owned(), |at| format!("Resets {at}."));
        let message = format!(
            "Tenant '{slug}'{} {what} of {}: {} of {} {} used ({}). {reset}",
            whose(standing.subject),
            limit.policy_name(),
            standing.used.at_least_zero(),
            standing.value,
            in_words(&limit.unit),
            limit.kind,
        );
        let threshold = match mark {
            Mark::Threshold(percent) => Some(percent),
            Mark::SoftLimit | Mark::Limit | Mark::Overshoot => None,
        };
        Self {
            code,
            message,
            tenant_id: policy.tenant.tenant_id,
            plan_code: Some(policy.plan_code().to_owned()),
            tenant_slug: slug,
            limit: Some(LimitData {
                feature_key: limit.feature.clone(),
                scope: limit.scope,
                key_id: key_of(standing.subject),
                user: user_of(standing.subject),
                window: limit.kind,
                limit_type: Some(standing.limit_type),
                limit_value: standing.value,
                usage: standing.used.at_least_zero(),
                reserved: standing.reserved,
                requested: standing.requested,
                unit: limit.unit.to_string(),
                percent,
                threshold,
                window_start: limit.window.start(),
                window_end: resets_at,
                resets_at,
                retry_after_seconds: resets_at.map(|end| end.since(now).as_secs().cast_signed()),
            }),
            subscription_status: None,
            dead: None,
        }
    }

    /// A window is over of whose limit something was told.
    pub(super) fn of_reset(
        policy: &Policy,
        key: &crate::store::notices::NoticeKey,
        feature: &FeatureKey,
        told: crate::store::notices::Told,
    ) -> Self {
        let slug = policy.tenant.slug.to_string();
        let planned = policy.plan.as_ref().and_then(|plan| plan.feature(feature));
        let message = format!(
            "The {} of {feature} of tenant '{slug}'{} is over: usage counts anew since {}.",
            key.window,
            whose(&key.subject),
            told.window_end
        );
        Self {
            code: "usage_window_reset",
            message,
            tenant_id: key.tenant,
            plan_code: Some(policy.plan_code().to_owned()),
            tenant_slug: slug,
            limit: Some(LimitData {
                feature_key: feature.clone(),
                scope: key.subject.scope(),
                key_id: key_of(&key.subject),
                user: user_of(&key.subject),
                window: key.window,
                limit_type: None,
                limit_value: told.limit,
                usage: told.used.at_least_zero(),
                reserved: Quantity::ZERO,
                requested: None,
                unit: planned
                    .map_or_else(|| feature.default_unit().to_owned(), |it| it.unit.clone()),
                percent: Percent::of(told.used, told.limit),
                threshold: None,
                window_start: key.window_start,
                window_end: Some(told.window_end),
                resets_at: None,
                retry_after_seconds: None,
            }),
            subscription_status: None,
            dead: None,
        }
    }

    pub(super) fn of_dead_entry(policy: &Policy, dead: &DeadEntry<'_>) -> Self {
        let slug = policy.tenant.slug.to_string();
        let planned = policy
            .plan
            .as_ref()
            .and_then(|plan| plan.feature(dead.feature));
        let unit = planned.map_or_else(
            || dead.feature.default_unit().to_owned(),
            |it| it.unit.clone(),
        );
        Self {
            code: "stripe_entry_dead",
            message: format!(
                "Stripe was not told of {} {} of {} that tenant '{slug}' used at {}: {}",
                dead.value,
                in_words(&unit),
                dead.feature,
                dead.used_at,
                dead.error
            ),
            tenant_id: policy.tenant.tenant_id,
            tenant_slug: slug,
            plan_code: Some(policy.plan_code().to_owned()),
            limit: None,
            subscription_status: None,
            dead: Some(DeadData {
                feature_key: dead.feature.clone(),
                identifier: dead.identifier.to_owned(),
                stripe_meter: dead.meter.to_owned(),
                value: dead.value,
                unit,
                used_at: dead.used_at,
                reason: dead.error.to_owned(),
            }),
        }
    }

    pub(super) fn of_subscription(policy: &Policy, status: &'static str) -> Self {
        let slug = policy.tenant.slug.to_string();
        let plan_code = policy.plan_code().to_owned();
        Self {
            code: "subscription_inactive",
            message: format!(
                "Tenant '{slug}' was refused a request: its subscription to plan '{plan_code}' is {status}."
            ),
            tenant_id: policy.tenant.tenant_id,
            tenant_slug: slug,
            plan_code: Some(plan_code),
            limit: None,
            subscription_status: Some(status),
            dead: None,
        }
    }
}

/// Whose limit it is, within the tenant.
fn whose(subject: &Subject) -> String {
    match subject {
        Subject::Tenant => String::new(),
        Subject::Key(key) => format!(" with key {key}"),
        Subject::User(user) if user.is_empty() => " without an end user".to_owned(),
        Subject::User(user) => format!(" for user '{}'", user.escape_debug()),
    }
}

/// A unit as a sentence names it.
fn in_words(unit: &str) -> &str {
    match unit {
        "usd_micros" => "micro-dollars",
        other => other,
    }
}

fn key_of(subject: &Subject) -> Option<KeyId> {
    match subject {
        Subject::Key(key) => Some(*key),
        Subject::Tenant | Subject::User(_) => None,
    }
}

fn user_of(subject: &Subject) -> Option<String> {
    match subject {
        Subject::User(user) => Some(user.to_string()),
        Subject::Tenant | Subject::Key(_) => None,
    }
}
