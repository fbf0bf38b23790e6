//! What differs between a plan as it is and as it will be, in words.

use serde::Serialize;

use super::{FeatureEntry, SyncedPlan};
use crate::domain::{
    feature::FeatureKey,
    limit::{Limit, Scope},
    plan::{Plan, PlanFeature},
    window::WindowKind,
};

/// One difference; `None` is what is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ChangeLine {
    /// `None`: of the plan itself.
    pub feature_key: Option<FeatureKey>,
    /// `None`: the feature whole.
    pub field: Option<String>,
    pub old: Option<String>,
    pub new: Option<String>,
}

impl std::fmt::Display for ChangeLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = self.feature_key.as_ref().map(FeatureKey::as_str);
        let parts: Vec<&str> = what.into_iter().chain(self.field.as_deref()).collect();
        let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
        write!(
            f,
            "{}: {} → {}",
            parts.join("."),
            value(&self.old),
            value(&self.new)
        )
    }
}

/// What becomes of `stored`, `None` if it is to be made.
pub(super) fn between(stored: Option<&Plan>, plan: &Plan, listed: &[FeatureEntry]) -> SyncedPlan {
    let mut synced = SyncedPlan {
        plan_code: plan.code.clone(),
        created: stored.is_none(),
        inserted: 0,
        updated: 0,
        pruned: 0,
        unchanged: 0,
        changes: Vec::new(),
    };
    let name = |plan: &Plan| plan.name.to_string();
    if stored.map(name) != Some(name(plan)) {
        synced.changes.push(ChangeLine {
            feature_key: None,
            field: Some("name".to_owned()),
            old: stored.map(name),
            new: Some(name(plan)),
        });
    }
    let whole = |feature: &PlanFeature, old, new| ChangeLine {
        feature_key: Some(feature.key.clone()),
        field: None,
        old,
        new,
    };
    for feature in &plan.features {
        match stored.and_then(|stored| stored.feature(&feature.key)) {
            None => {
                synced.inserted += 1;
                let change = whole(feature, None, Some(in_words(feature)));
                synced.changes.push(change);
            }
            Some(there) if there == feature => {
                let is_listed = listed.iter().any(|entry| entry.key == feature.key);
                synced.unchanged += usize::from(is_listed);
            }
            Some(there) => {
                synced.updated += 1;
                synced.changes.extend(of_feature(there, feature));
            }
        }
    }
    let there = stored.iter().flat_map(|stored| &stored.features);
    for feature in there.filter(|feature| plan.feature(&feature.key).is_none()) {
        synced.pruned += 1;
        let change = whole(feature, Some(in_words(feature)), None);
        synced.changes.push(change);
    }
    synced
}

fn of_feature(old: &PlanFeature, new: &PlanFeature) -> Vec<ChangeLine> {
    let (old, new) = (fields(old), fields(new));
    let value = |fields: &[(String, String)], name: &str| {
        let found = fields.iter().find(|(field, _)| field == name);
        found.map(|(_, value)| value.clone())
    };
    let mut names: Vec<&String> = old.1.iter().chain(&new.1).map(|(name, _)| name).collect();
    // Each once, in the order met.
    let mut index = 0;
    while index < names.len() {
        let is_again = names[..index].contains(&names[index]);
        if is_again {
            names.remove(index);
        } else {
            index += 1;
        }
    }
    let differs = |name: &&String| value(&old.1, name) != value(&new.1, name);
    let mut changes: Vec<ChangeLine> = names
        .into_iter()
        .filter(differs)
        .map(|name| ChangeLine {
            feature_key: Some(old.0.clone()),
            field: Some(name.clone()),
            old: value(&old.1, name),
            new: value(&new.1, name),
        })
        .collect();
    if changes.is_empty() {
        // Only the order of its limits differs.
        changes.push(ChangeLine {
            feature_key: Some(old.0),
            field: Some("limits".to_owned()),
            old: Some("in another order".to_owned()),
            new: Some("in the artifact's order".to_owned()),
        });
    }
    changes
}

/// A feature's values by name; values that are none are left out.
fn fields(feature: &PlanFeature) -> (FeatureKey, Vec<(String, String)>) {
    let mut fields = vec![
        ("display_name".to_owned(), feature.display_name.to_string()),
        ("unit".to_owned(), feature.unit.clone()),
        ("is_metered".to_owned(), feature.is_metered.to_string()),
    ];
    for limit in &feature.limits {
        let place = place(limit);
        for (name, value) in [("soft_limit", limit.soft), ("hard_limit", limit.hard)] {
            if let Some(value) = value {
                fields.push((format!("{name}{place}"), value.to_string()));
            }
        }
    }
    if let Some(percents) = &feature.alert_thresholds {
        let percents: Vec<String> = percents.iter().map(u16::to_string).collect();
        fields.push(("alert_thresholds".to_owned(), percents.join(",")));
    }
    if let Some(meter) = &feature.stripe_meter {
        fields.push(("stripe_meter".to_owned(), meter.clone()));
    }
    (feature.key.clone(), fields)
}

/// Nothing for the tenant's period, which most limits are of.
fn place(limit: &Limit) -> String {
    match (limit.scope, limit.window) {
        (Scope::Tenant, WindowKind::Period) => String::new(),
        (scope, window) => format!(" per {scope} and {window}"),
    }
}

/// `150/200 requests`: soft and hard.
fn in_words(feature: &PlanFeature) -> String {
    let value = |value: Option<_>| value.map_or("none".to_owned(), |value| format!("{value}"));
    let limits = feature.limits.iter().map(|limit| {
        let (soft, hard) = (value(limit.soft), value(limit.hard));
        format!("{soft}/{hard} {}{}", feature.unit, place(limit))
    });
    let mut words: Vec<String> = limits.collect();
    if words.is_empty() {
        words.push("unlimited".to_owned());
    }
    if !feature.is_metered {
        words.push("not metered".to_owned());
    }
    words.join(", ")
}
