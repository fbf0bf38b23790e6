//! The plans that tollgate brings along (interface.md §6).

use std::sync::LazyLock;

use serde::Deserialize;

use super::AdminError;
use crate::domain::{
    feature::FeatureKey,
    limit::{Limit, Scope},
    names::{DisplayName, PlanCode},
    plan::PlanFeature,
    quantity::Quantity,
    window::WindowKind,
};

/// A plan to begin with.
#[derive(Clone, Debug)]
pub struct Preset {
    pub code: PlanCode,
    pub name: DisplayName,
    pub features: Vec<PlanFeature>,
}

/// `assets/presets/plans.json`, in the artifact's form.
#[derive(Deserialize)]
struct PresetFile {
    plans: Vec<PlanEntry>,
}

#[derive(Deserialize)]
struct PlanEntry {
    plan_code: PlanCode,
    name: DisplayName,
    features: Vec<FeatureEntry>,
}

#[derive(Deserialize)]
struct FeatureEntry {
    feature_key: FeatureKey,
    display_name: DisplayName,
    unit: String,
    is_metered: bool,
    soft_limit: Option<Quantity>,
    hard_limit: Option<Quantity>,
}

static PRESETS: LazyLock<Vec<Preset>> = LazyLock::new(|| {
    let file: PresetFile = serde_json::from_str(include_str!("../../assets/presets/plans.json"))
        .expect("a test reads the embedded presets");
    file.plans.into_iter().map(Preset::from).collect()
});

impl From<PlanEntry> for Preset {
    fn from(plan: PlanEntry) -> Self {
        let features = plan.features.into_iter().map(|feature| {
            let limit = Limit {
                scope: Scope::Tenant,
                window: WindowKind::Period,
                soft: feature.soft_limit,
                hard: feature.hard_limit,
            };
            let is_limited = limit.soft.is_some() || limit.hard.is_some();
            PlanFeature {
                key: feature.feature_key,
                display_name: feature.display_name,
                unit: feature.unit,
                is_metered: feature.is_metered,
                limits: is_limited.then_some(limit).into_iter().collect(),
                alert_thresholds: None,
                stripe_meter: None,
            }
        });
        Self {
            code: plan.plan_code,
            name: plan.name,
            features: features.collect(),
        }
    }
}

/// All presets, the smallest first.
#[must_use]
pub fn all() -> &'static [Preset] {
    &PRESETS
}

/// # Errors
/// `Invalid` with the names that there are.
pub fn get(name: &str) -> Result<&'static Preset, AdminError> {
    let preset = all().iter().find(|preset| preset.code.as_str() == name);
    preset.ok_or_else(|| {
        let names: Vec<_> = all().iter().map(|preset| preset.code.as_str()).collect();
        AdminError::invalid("preset", name, format!("one of {}", names.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_have_the_limits_of_the_contract() {
        let limits = |name: &str| {
            let features = &get(name).unwrap().features;
            let pair = |feature: &PlanFeature| {
                let limit = feature.limits.first()?;
                Some((limit.soft?.get(), limit.hard?.get()))
            };
            features.iter().map(pair).collect::<Vec<_>>()
        };
        for (name, messages, input, output) in [
            ("free", (20, 25), (20_000, 25_000), (8_000, 10_000)),
            ("starter", (150, 200), (200_000, 250_000), (75_000, 100_000)),
            (
                "pro",
                (1000, 1500),
                (1_000_000, 1_500_000),
                (400_000, 600_000),
            ),
        ] {
            assert_eq!(
                limits(name),
                [Some(messages), Some(input), Some(output)],
                "{name}"
            );
        }
        assert_eq!(limits("enterprise"), [None, None, None]);
    }

    #[test]
    fn presets_are_plans_that_could_be_made_by_hand() {
        for preset in all() {
            for feature in &preset.features {
                super::super::plans::check_feature(feature).unwrap();
                assert_eq!(feature.unit, feature.key.default_unit());
                assert_eq!(
                    feature.display_name.as_str(),
                    feature.key.default_display_name()
                );
            }
        }
    }

    #[test]
    fn an_unknown_preset_is_answered_with_those_there_are() {
        assert_eq!(
            get("gold").unwrap_err().to_string(),
            "preset is 'gold'; write one of free, starter, pro, enterprise"
        );
    }
}
