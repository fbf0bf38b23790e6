//! What a plan allows.

use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use super::{
    feature::FeatureKey,
    limit::Limit,
    names::{DisplayName, PlanCode},
};

/// A plan: its features, and the models it may be used with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub code: PlanCode,
    pub name: DisplayName,
    pub allowed_models: AllowedModels,
    /// In the order of [`FeatureKey`]; one entry a key.
    pub features: Vec<PlanFeature>,
    /// Grows by one with every change, for `If-Match`.
    pub version: i64,
}

impl Plan {
    #[must_use]
    pub fn feature(&self, key: &FeatureKey) -> Option<&PlanFeature> {
        self.features.iter().find(|feature| feature.key == *key)
    }
}

/// One feature of a plan: metered with limits, or an entitlement that is only carried and shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanFeature {
    pub key: FeatureKey,
    pub display_name: DisplayName,
    pub unit: String,
    pub is_metered: bool,
    /// One entry per scope and window; none: counted, unlimited.
    pub limits: Vec<Limit>,
    /// Percentages at which notices go out; `None`: those of the settings.
    pub alert_thresholds: Option<Vec<u16>>,
    /// Stripe's `event_name` of the meter that this feature is pushed to.
    pub stripe_meter: Option<String>,
}

/// Patterns of model names (`*` and `?`); none: every model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AllowedModels(pub Vec<String>);

impl AllowedModels {
    #[must_use]
    pub fn allow(&self, model: &str) -> bool {
        self.0.is_empty()
            || self
                .0
                .iter()
                .any(|pattern| WildMatch::new(pattern).matches(model))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_without_patterns_allows_every_model() {
        assert!(AllowedModels::default().allow("gpt-5.1"));
        let allowed = AllowedModels(vec!["gpt-5.1*".to_owned(), "llama-?b".to_owned()]);
        for (model, expected) in [
            ("gpt-5.1", true),
            ("gpt-5.1-mini", true),
            ("gpt-5", false),
            ("llama-8b", true),
            ("llama-70b", false),
        ] {
            assert_eq!(allowed.allow(model), expected, "{model}");
        }
    }
}
