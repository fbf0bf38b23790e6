//! Taking a change back by what the audit log says was there before.

use serde::Deserialize;
use serde_json::Value;

use super::{
    AdminError,
    plans::{PlanChange, Plans},
};
use crate::{
    domain::{
        administrator::Actor,
        feature::FeatureKey,
        limit::Limit,
        names::{DisplayName, PlanCode},
        plan::{AllowedModels, Plan, PlanFeature},
    },
    store::audit::AuditEntry,
};

/// A plan as an audit entry has it: the words of `store/audited.rs`.
#[derive(Deserialize)]
struct PlanThen {
    name: DisplayName,
    allowed_models: AllowedModels,
    features: Vec<FeatureThen>,
    version: i64,
}

#[derive(Deserialize)]
struct FeatureThen {
    feature_key: FeatureKey,
    display_name: DisplayName,
    unit: String,
    is_metered: bool,
    limits: Vec<Limit>,
    alert_thresholds: Option<Vec<u16>>,
    stripe_meter: Option<String>,
}

/// Whether [`Plans::undo`] can take this back: it is the last change of one of `plans`.
#[must_use]
pub fn can_undo(entry: &AuditEntry, plans: &[Plan]) -> bool {
    let after = entry.after.as_ref().and_then(|it| it["version"].as_i64());
    let is_last = |plan: &Plan| plan.code.as_str() == entry.target && after == Some(plan.version);
    is_plan_change(entry) && plans.iter().any(is_last)
}

fn is_plan_change(entry: &AuditEntry) -> bool {
    entry.action == "plan.update" && entry.before.is_some() && entry.after.is_some()
}

impl Plans {
    /// Makes a plan again what it was before `entry`.
    ///
    /// # Errors
    /// `Invalid` for an entry of anything else; `VersionConflict` if the plan was changed since; `NotFound`.
    pub async fn undo(&self, entry: &AuditEntry, by: &Actor) -> Result<Plan, AdminError> {
        let not_that =
            || AdminError::invalid("entry", &entry.action, "a change of a plan, plan.update");
        if !is_plan_change(entry) {
            return Err(not_that());
        }
        let read = |value: &Option<Value>| {
            let value = value.clone().unwrap_or_default();
            serde_json::from_value::<PlanThen>(value).map_err(|_| not_that())
        };
        let (before, after) = (read(&entry.before)?, read(&entry.after)?);
        let code: PlanCode = entry.target.parse().map_err(|_| not_that())?;
        let features = before.features.into_iter().map(|feature| PlanFeature {
            key: feature.feature_key,
            display_name: feature.display_name,
            unit: feature.unit,
            is_metered: feature.is_metered,
            limits: feature.limits,
            alert_thresholds: feature.alert_thresholds,
            stripe_meter: feature.stripe_meter,
        });
        let change = PlanChange {
            name: Some(before.name),
            allowed_models: Some(before.allowed_models),
            features: Some(features.collect()),
        };
        self.set(&code, &change, Some(after.version), by).await
    }
}
