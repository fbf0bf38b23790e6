//! What a row of the report says.

use std::sync::Arc;

use serde::Serialize;

use super::{Flagged, ReportAsk};
use crate::{
    domain::{
        feature::FeatureKey,
        ids::TenantId,
        limit::{ActiveLimit, Scope},
        names::{DisplayName, PlanCode, Slug},
        quantity::Quantity,
        time::Timestamp,
        window::{Window, WindowKind},
    },
    services::{
        catalogue::Policy,
        usage_view::{Percent, UsageStatus},
    },
    store::usage::{FeatureSum, TenantAsk},
};

/// A tenant of the JSON report.
#[derive(Debug, Serialize)]
pub(super) struct TenantRow {
    pub(super) tenant_id: TenantId,
    pub(super) tenant_slug: Slug,
    pub(super) tenant_name: DisplayName,
    pub(super) plan_code: Option<PlanCode>,
    pub(super) plan_name: Option<DisplayName>,
    pub(super) subscription_status: Option<&'static str>,
    pub(super) window_start: Timestamp,
    pub(super) window_end: Option<Timestamp>,
    pub(super) features: Vec<FeatureRow>,
}

/// A feature of a tenant.
#[derive(Debug, Serialize)]
pub(super) struct FeatureRow {
    pub(super) feature_key: FeatureKey,
    pub(super) display_name: Arc<str>,
    pub(super) unit: Arc<str>,
    pub(super) quantity: Quantity,
    pub(super) soft_limit: Option<Quantity>,
    pub(super) hard_limit: Option<Quantity>,
    pub(super) remaining_to_soft_limit: Option<Quantity>,
    pub(super) remaining_to_hard_limit: Option<Quantity>,
    pub(super) percent_of_soft_limit: Option<Percent>,
    pub(super) percent_of_hard_limit: Option<Percent>,
    pub(super) status: UsageStatus,
    /// True only in the status of that name.
    pub(super) approaching: bool,
    pub(super) usage_window_start: Timestamp,
    pub(super) usage_window_end: Option<Timestamp>,
}

impl FeatureRow {
    /// A row that some limit makes worth naming.
    pub(super) fn flagged(&self, tenant_slug: &Slug) -> Option<Flagged> {
        (self.status != UsageStatus::Ok).then(|| Flagged {
            tenant_slug: tenant_slug.clone(),
            feature_key: self.feature_key.clone(),
            status: self.status,
            unit: Arc::clone(&self.unit),
            quantity: self.quantity,
            soft_limit: self.soft_limit,
            hard_limit: self.hard_limit,
            percent: self.percent_of_hard_limit.or(self.percent_of_soft_limit),
        })
    }
}

/// A tenant whose windows and limits are known, and whose usage is not yet.
pub(super) struct Placed {
    policy: Policy,
    window: Window,
    features: Vec<PlacedFeature>,
}

struct PlacedFeature {
    key: FeatureKey,
    display_name: Arc<str>,
    unit: Arc<str>,
    soft: Option<Quantity>,
    hard: Option<Quantity>,
    window: Window,
}

impl Placed {
    pub(super) fn new(
        policy: Policy,
        limits: &[ActiveLimit],
        ask: &ReportAsk,
        now: Timestamp,
    ) -> Self {
        let window = window_of(&policy, ask, now);
        let planned = policy.plan.iter().flat_map(|plan| &plan.features);
        let features = planned
            .filter(|feature| feature.is_metered && is_asked(ask, &feature.key))
            .map(|feature| {
                let limit = shown_limit(limits, &feature.key, ask);
                PlacedFeature {
                    key: feature.key.clone(),
                    display_name: feature.display_name.as_str().into(),
                    unit: feature.unit.as_str().into(),
                    soft: limit.and_then(|limit| limit.soft),
                    hard: limit.and_then(|limit| limit.hard),
                    window: match limit {
                        Some(limit) if limit.kind != WindowKind::Period => limit.window,
                        _ => window,
                    },
                }
            })
            .collect();
        Self {
            policy,
            window,
            features,
        }
    }

    /// What is to be summed; features of whose window nothing counts are left out.
    pub(super) fn ask(&self, ask: &ReportAsk) -> TenantAsk {
        let features = self.features.iter().filter_map(|feature| {
            let window = counted(feature.window, ask)?;
            Some((feature.key.clone(), window))
        });
        TenantAsk {
            tenant: self.policy.tenant.tenant_id,
            features: features.collect(),
            others: counted(self.window, ask),
        }
    }

    pub(super) fn row(self, sums: Vec<FeatureSum>, ask: &ReportAsk) -> TenantRow {
        let is_placed =
            |sum: &&FeatureSum| self.features.iter().any(|placed| placed.key == sum.feature);
        // Usage that no plan explains is in the report too: it is what was used.
        let others = sums
            .iter()
            .filter(|sum| !is_placed(sum) && is_asked(ask, &sum.feature));
        let others: Vec<FeatureRow> = others
            .map(|sum| {
                let placed = PlacedFeature {
                    display_name: sum.feature.default_display_name().into(),
                    unit: sum.feature.default_unit().into(),
                    key: sum.feature.clone(),
                    soft: None,
                    hard: None,
                    window: self.window,
                };
                feature_row(placed, Some(sum), ask)
            })
            .collect();
        let planned = self.features.into_iter().map(|placed| {
            let sum = sums.iter().find(|sum| sum.feature == placed.key);
            feature_row(placed, sum, ask)
        });
        let mut features: Vec<FeatureRow> = planned.chain(others).collect();
        features.sort_by(|one, other| one.feature_key.cmp(&other.feature_key));
        let subscription = self.policy.subscription();
        TenantRow {
            plan_code: subscription.map(|it| it.plan_code.clone()),
            plan_name: self.policy.plan.as_ref().map(|plan| plan.name.clone()),
            subscription_status: subscription.map(|it| it.status.as_str()),
            tenant_id: self.policy.tenant.tenant_id,
            tenant_slug: self.policy.tenant.slug,
            tenant_name: self.policy.tenant.name,
            window_start: self.window.start(),
            window_end: self.window.resets_at(),
            features,
        }
    }
}

fn is_asked(ask: &ReportAsk, feature: &FeatureKey) -> bool {
    ask.features.is_empty() || ask.features.contains(feature)
}

/// The window that is reported: the subscription's around `now`, with the bounds that were asked for in place of its
/// own.
fn window_of(policy: &Policy, ask: &ReportAsk, now: Timestamp) -> Window {
    let period = policy.anchors().period;
    let window = match (ask.period_start, ask.period_end) {
        (None, None) => Ok(period.window_at(now)),
        (Some(start), Some(end)) => Window::new(start, end),
        (Some(start), None) => Window::new(start, period.window_at(now.max(start)).end()),
        (None, Some(end)) => {
            let last = Timestamp::from_micros(end.micros().saturating_sub(1));
            Window::new(period.window_at(last).start(), end)
        }
    };
    window.expect(
        "bounds were checked, and a window around an instant begins before and ends after it",
    )
}

/// The tenant's limit per period, else its longest; a limit of another window says nothing about a period that was
/// asked for.
fn shown_limit<'a>(
    limits: &'a [ActiveLimit],
    feature: &FeatureKey,
    ask: &ReportAsk,
) -> Option<&'a ActiveLimit> {
    let has_own_period = ask.period_start.is_some() || ask.period_end.is_some();
    let of_tenant = limits
        .iter()
        .filter(|limit| limit.scope == Scope::Tenant && limit.feature == *feature)
        .filter(|limit| !has_own_period || limit.kind == WindowKind::Period);
    of_tenant.max_by_key(|limit| (limit.kind == WindowKind::Period, limit.kind))
}

/// The part of `window` that counts; `None` if it had not begun.
fn counted(window: Window, ask: &ReportAsk) -> Option<Window> {
    let cut = ask.cut().unwrap_or(Timestamp::NEVER);
    Window::new(window.start(), window.end().min(cut)).ok()
}

fn feature_row(placed: PlacedFeature, sum: Option<&FeatureSum>, ask: &ReportAsk) -> FeatureRow {
    // What corrections took away beyond what was used does not show, as in totals.
    let quantity = sum.map_or(Quantity::ZERO, |sum| sum.quantity.at_least_zero());
    // Wider than the limit's own where a bound cuts an hour whose events are gone.
    let start = sum.map_or(placed.window.start(), |sum| {
        placed.window.start().min(sum.window.start())
    });
    let end = sum.map_or(placed.window.end(), |sum| {
        placed.window.end().max(sum.window.end())
    });
    let window = Window::new(start, end).unwrap_or(placed.window);
    let (soft, hard) = (placed.soft, placed.hard);
    let remaining =
        |limit: Option<Quantity>| limit.map(|limit| limit.minus(quantity).at_least_zero());
    let percent = |limit: Option<Quantity>| Percent::of(quantity, limit?);
    let status = UsageStatus::at(quantity, soft, hard, ask.warn_at);
    FeatureRow {
        feature_key: placed.key,
        display_name: placed.display_name,
        unit: placed.unit,
        quantity,
        soft_limit: soft,
        hard_limit: hard,
        remaining_to_soft_limit: remaining(soft),
        remaining_to_hard_limit: remaining(hard),
        percent_of_soft_limit: percent(soft),
        percent_of_hard_limit: percent(hard),
        status,
        approaching: status == UsageStatus::Approaching,
        usage_window_start: window.start(),
        usage_window_end: window.resets_at(),
    }
}
