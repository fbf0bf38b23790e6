//! The catalogue of plans: what may be changed, and how.

use crate::{
    domain::{
        administrator::Actor,
        feature::FeatureKey,
        limit::{InvalidLimit, Limit, Scope},
        names::{DisplayName, PlanCode},
        plan::{AllowedModels, Plan, PlanFeature},
        quantity::Quantity,
        window::WindowKind,
    },
    store::SharedStore,
};

use super::{AdminError, presets};

/// How often a change is tried that others come before. Each of them has made its own, so one that asks for no version
/// waits for as many as write beside it; there are never this many.
pub(super) const ATTEMPTS: usize = 200;

/// What a change does to a value that may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Change<T> {
    #[default]
    Keep,
    /// `none` on the command line.
    Clear,
    Set(T),
}

impl<T: Clone> Change<T> {
    #[must_use]
    pub fn apply(&self, current: Option<T>) -> Option<T> {
        match self {
            Self::Keep => current,
            Self::Clear => None,
            Self::Set(value) => Some(value.clone()),
        }
    }
}

/// A plan to be made.
#[derive(Clone, Debug)]
pub struct NewPlan {
    pub code: PlanCode,
    pub name: DisplayName,
    /// Its features, unless `features` says.
    pub preset: Option<String>,
    pub allowed_models: AllowedModels,
    pub features: Vec<PlanFeature>,
}

/// A change to a plan itself; fields left out stay.
#[derive(Clone, Debug, Default)]
pub struct PlanChange {
    pub name: Option<DisplayName>,
    pub allowed_models: Option<AllowedModels>,
    /// All of them, in place of those there are.
    pub features: Option<Vec<PlanFeature>>,
}

/// A change to one feature of a plan, and to one limit of it; what is left out stays.
#[derive(Clone, Debug)]
pub struct FeatureChange {
    pub key: FeatureKey,
    pub scope: Scope,
    pub window: WindowKind,
    pub soft: Change<Quantity>,
    pub hard: Change<Quantity>,
    pub unit: Option<String>,
    pub display_name: Option<DisplayName>,
    pub is_metered: Option<bool>,
    pub stripe_meter: Change<String>,
    pub alert_thresholds: Change<Vec<u16>>,
}

impl FeatureChange {
    /// The feature after the change; `current` is `None` if the plan has none yet.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn apply(&self, current: Option<&PlanFeature>) -> Result<PlanFeature, AdminError> {
        let mut feature = current
            .cloned()
            .map_or_else(|| fresh_feature(&self.key), Ok)?;
        merge_limit(
            &mut feature.limits,
            (self.scope, self.window),
            &self.soft,
            &self.hard,
        );
        // A limit without values says nothing in a plan.
        feature
            .limits
            .retain(|limit| limit.soft.is_some() || limit.hard.is_some());
        if let Some(unit) = &self.unit {
            feature.unit.clone_from(unit);
        }
        if let Some(name) = &self.display_name {
            feature.display_name = name.clone();
        }
        if let Some(is_metered) = self.is_metered {
            feature.is_metered = is_metered;
        }
        feature.stripe_meter = self.stripe_meter.apply(feature.stripe_meter);
        feature.alert_thresholds = self.alert_thresholds.apply(feature.alert_thresholds);
        check_feature(&feature)?;
        Ok(feature)
    }
}

pub(super) fn fresh_feature(key: &FeatureKey) -> Result<PlanFeature, AdminError> {
    let display_name = key.default_display_name();
    Ok(PlanFeature {
        key: key.clone(),
        display_name: display_name
            .parse()
            .map_err(|_| AdminError::invalid("display_name", &display_name, "a name for it"))?,
        unit: key.default_unit().to_owned(),
        is_metered: true,
        limits: vec![],
        alert_thresholds: None,
        stripe_meter: None,
    })
}

/// Changes the limit of that scope and window, adding it if it is not there.
pub(super) fn merge_limit(
    limits: &mut Vec<Limit>,
    (scope, window): (Scope, WindowKind),
    soft: &Change<Quantity>,
    hard: &Change<Quantity>,
) {
    if *soft == Change::Keep && *hard == Change::Keep {
        return;
    }
    let is_it = |limit: &Limit| limit.scope == scope && limit.window == window;
    let index = limits.iter().position(is_it).unwrap_or_else(|| {
        limits.push(Limit {
            scope,
            window,
            soft: None,
            hard: None,
        });
        limits.len() - 1
    });
    let limit = &mut limits[index];
    limit.soft = soft.apply(limit.soft);
    limit.hard = hard.apply(limit.hard);
}

/// # Errors
/// `Invalid`, naming the field and what may be written.
pub fn check_limits(limits: &[Limit]) -> Result<(), AdminError> {
    for (index, limit) in limits.iter().enumerate() {
        limit.check().map_err(|fault| match fault {
            InvalidLimit::Negative { field, value } => {
                AdminError::invalid(field, value, "a whole number from 0 to 2^53 - 1, or none")
            }
            InvalidLimit::SoftAboveHard { soft, hard } => AdminError::invalid(
                "soft_limit",
                soft,
                format!("at most the hard_limit, {hard}"),
            ),
        })?;
        let is_same = |other: &Limit| (other.scope, other.window) == (limit.scope, limit.window);
        if limits[..index].iter().any(is_same) {
            let twice = format!("{} per {} twice", limit.scope, limit.window);
            return Err(AdminError::invalid(
                "limits",
                twice,
                "one limit per scope and window",
            ));
        }
    }
    Ok(())
}

/// # Errors
/// `Invalid`, naming the field and what may be written.
pub fn check_feature(feature: &PlanFeature) -> Result<(), AdminError> {
    check_limits(&feature.limits)?;
    check_text("unit", &feature.unit, 64)?;
    if let Some(meter) = &feature.stripe_meter {
        check_text("stripe_meter", meter, 100)?;
    }
    if let Some(percents) = &feature.alert_thresholds
        && !are_thresholds(percents)
    {
        let given: Vec<_> = percents.iter().map(u16::to_string).collect();
        let accepted = "whole percentages from 1 to 1000, such as 80,100";
        return Err(AdminError::invalid(
            "alert_thresholds",
            given.join(","),
            accepted,
        ));
    }
    Ok(())
}

pub(super) fn are_thresholds(percents: &[u16]) -> bool {
    !percents.is_empty() && percents.iter().all(|percent| (1..=1000).contains(percent))
}

/// Whether `text` is 1 to `longest` characters, none of them a control character.
pub(super) fn is_text(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

/// # Errors
/// `Invalid` unless it [`is_text`].
pub(super) fn check_text(
    field: &'static str,
    text: &str,
    longest: usize,
) -> Result<(), AdminError> {
    if is_text(text, longest) {
        return Ok(());
    }
    let accepted = format!("1 to {longest} characters without control characters");
    Err(AdminError::invalid(field, text, accepted))
}

fn check_models(models: &AllowedModels) -> Result<(), AdminError> {
    models
        .0
        .iter()
        .try_for_each(|pattern| check_text("allowed_models", pattern, 128))
}

/// # Errors
/// `Invalid` for a feature that is wrong, or there twice.
fn arrange(features: &mut [PlanFeature]) -> Result<(), AdminError> {
    features.sort_by(|one, other| one.key.cmp(&other.key));
    features.iter().try_for_each(check_feature)?;
    match features.windows(2).find(|pair| pair[0].key == pair[1].key) {
        None => Ok(()),
        Some(pair) => Err(AdminError::invalid(
            "feature_key",
            &pair[0].key,
            "each feature once",
        )),
    }
}

/// The plans, as they are kept.
#[derive(Clone)]
pub struct Plans {
    store: SharedStore,
}

impl Plans {
    #[must_use]
    pub fn new(store: SharedStore) -> Self {
        Self { store }
    }

    /// All plans by code.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn list(&self) -> Result<Vec<Plan>, AdminError> {
        Ok(self.store.list_plans().await?)
    }

    /// # Errors
    /// `NotFound`.
    pub async fn get(&self, code: &PlanCode) -> Result<Plan, AdminError> {
        let plan = self.store.find_plan(code).await?;
        plan.ok_or_else(|| AdminError::not_found("plan", code))
    }

    /// # Errors
    /// `AlreadyExists`; `Invalid` for an unknown preset or a bad feature.
    pub async fn create(&self, new: NewPlan, by: &Actor) -> Result<Plan, AdminError> {
        let mut features = match &new.preset {
            Some(name) if new.features.is_empty() => presets::get(name)?.features.clone(),
            Some(name) => {
                return Err(AdminError::invalid(
                    "preset",
                    name,
                    "a preset or features, not both",
                ));
            }
            None => new.features,
        };
        check_models(&new.allowed_models)?;
        arrange(&mut features)?;
        let plan = Plan {
            code: new.code,
            name: new.name,
            allowed_models: new.allowed_models,
            features,
            version: 1,
        };
        self.store.create_plan(&plan, by).await?;
        self.get(&plan.code).await
    }

    /// # Errors
    /// `NotFound`; `Invalid`; `VersionConflict` if `expected_version` is given and not the stored one.
    pub async fn set(
        &self,
        code: &PlanCode,
        change: &PlanChange,
        expected_version: Option<i64>,
        by: &Actor,
    ) -> Result<Plan, AdminError> {
        if let Some(models) = &change.allowed_models {
            check_models(models)?;
        }
        let mut features = change.features.clone();
        if let Some(features) = &mut features {
            arrange(features)?;
        }
        self.update(code, expected_version, by, |plan| {
            if let Some(name) = &change.name {
                plan.name = name.clone();
            }
            if let Some(models) = &change.allowed_models {
                plan.allowed_models = models.clone();
            }
            if let Some(features) = &features {
                plan.features.clone_from(features);
            }
            Ok(())
        })
        .await
    }

    /// # Errors
    /// `NotFound`; `PlanInUse`; `VersionConflict` as for [`set`](Self::set).
    pub async fn delete(
        &self,
        code: &PlanCode,
        expected_version: Option<i64>,
        by: &Actor,
    ) -> Result<(), AdminError> {
        Ok(self.store.delete_plan(code, expected_version, by).await?)
    }

    /// Merges a change into one feature, making it if need be.
    ///
    /// # Errors
    /// `NotFound` for the plan; `Invalid`.
    pub async fn set_feature(
        &self,
        code: &PlanCode,
        change: &FeatureChange,
        by: &Actor,
    ) -> Result<Plan, AdminError> {
        self.update(code, None, by, |plan| {
            let feature = change.apply(plan.feature(&change.key))?;
            put(plan, feature);
            Ok(())
        })
        .await
    }

    /// Replaces one feature whole, making it if need be.
    ///
    /// # Errors
    /// `NotFound` for the plan; `Invalid`; `VersionConflict` as for [`set`](Self::set).
    pub async fn put_feature(
        &self,
        code: &PlanCode,
        feature: &PlanFeature,
        expected_version: Option<i64>,
        by: &Actor,
    ) -> Result<Plan, AdminError> {
        check_feature(feature)?;
        self.update(code, expected_version, by, |plan| {
            put(plan, feature.clone());
            Ok(())
        })
        .await
    }

    /// Takes a feature away, or only its limit of one scope and window.
    ///
    /// # Errors
    /// `NotFound` for the plan, the feature or the limit; `VersionConflict` as for [`set`](Self::set).
    pub async fn remove_feature(
        &self,
        code: &PlanCode,
        key: &FeatureKey,
        limit: Option<(Scope, WindowKind)>,
        expected_version: Option<i64>,
        by: &Actor,
    ) -> Result<Plan, AdminError> {
        self.update(code, expected_version, by, |plan| {
            take_away(plan, key, limit)
        })
        .await
    }

    /// Reads, changes and writes a plan; again if someone else wrote in between and no version was asked for.
    async fn update(
        &self,
        code: &PlanCode,
        expected_version: Option<i64>,
        by: &Actor,
        change: impl Fn(&mut Plan) -> Result<(), AdminError>,
    ) -> Result<Plan, AdminError> {
        let mut attempt = 1;
        loop {
            let before = self.get(code).await?;
            // Also where nothing would change: the client looks at another plan than there is.
            if expected_version.is_some_and(|expected| expected != before.version) {
                return Err(AdminError::VersionConflict {
                    what: "plan",
                    name: code.to_string(),
                    current: before.version,
                });
            }
            let mut plan = before.clone();
            change(&mut plan)?;
            if plan == before {
                return Ok(plan);
            }
            match self
                .store
                .update_plan(&plan, by)
                .await
                .map_err(AdminError::from)
            {
                Ok(version) => return Ok(Plan { version, ..plan }),
                Err(AdminError::VersionConflict { .. })
                    if expected_version.is_none() && attempt < ATTEMPTS =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn put(plan: &mut Plan, feature: PlanFeature) {
    match plan
        .features
        .binary_search_by(|there| there.key.cmp(&feature.key))
    {
        Ok(index) => plan.features[index] = feature,
        Err(index) => plan.features.insert(index, feature),
    }
}

fn take_away(
    plan: &mut Plan,
    key: &FeatureKey,
    limit: Option<(Scope, WindowKind)>,
) -> Result<(), AdminError> {
    let index = plan.features.iter().position(|feature| feature.key == *key);
    let index = index.ok_or_else(|| AdminError::not_found("feature", key))?;
    let Some((scope, window)) = limit else {
        plan.features.remove(index);
        return Ok(());
    };
    let limits = &mut plan.features[index].limits;
    let before = limits.len();
    limits.retain(|limit| (limit.scope, limit.window) != (scope, window));
    if limits.len() == before {
        return Err(AdminError::not_found(
            "limit",
            format!("{key} per {scope} and {window}"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: &str) -> FeatureChange {
        FeatureChange {
            key: key.parse().unwrap(),
            scope: Scope::Tenant,
            window: WindowKind::Period,
            soft: Change::Keep,
            hard: Change::Keep,
            unit: None,
            display_name: None,
            is_metered: None,
            stripe_meter: Change::Keep,
            alert_thresholds: Change::Keep,
        }
    }

    fn set(value: i64) -> Change<Quantity> {
        Change::Set(Quantity::new(value))
    }

    fn starter_messages() -> PlanFeature {
        presets::get("starter").unwrap().features[0].clone()
    }

    #[test]
    fn a_new_feature_has_the_defaults_of_its_key() {
        let feature = FeatureChange {
            hard: set(5),
            ..change("input_tokens")
        }
        .apply(None)
        .unwrap();
        assert_eq!(
            (feature.unit.as_str(), feature.display_name.as_str()),
            ("tokens", "Input tokens")
        );
        assert!(feature.is_metered);
        let limit = feature.limits[0];
        assert_eq!(
            (limit.scope, limit.window),
            (Scope::Tenant, WindowKind::Period)
        );
        assert_eq!((limit.soft, limit.hard), (None, Some(Quantity::new(5))));
        assert_eq!(change("seats").apply(None).unwrap().unit, "units");
    }

    #[test]
    fn one_value_changes_and_the_others_stay() {
        let current = starter_messages();
        let changed = FeatureChange {
            hard: set(300),
            ..change("messages")
        }
        .apply(Some(&current))
        .unwrap();
        assert_eq!(changed.limits[0].soft, Some(Quantity::new(150)));
        assert_eq!(changed.limits[0].hard, Some(Quantity::new(300)));
        let named = FeatureChange {
            display_name: Some("Turns".parse().unwrap()),
            ..change("messages")
        };
        let named = named.apply(Some(&current)).unwrap();
        assert_eq!(
            (named.display_name.as_str(), named.limits),
            ("Turns", current.limits)
        );
    }

    #[test]
    fn another_scope_or_window_is_another_limit() {
        let per_user = FeatureChange {
            scope: Scope::User,
            window: WindowKind::Day,
            hard: set(10),
            ..change("messages")
        };
        let feature = per_user.apply(Some(&starter_messages())).unwrap();
        assert_eq!(feature.limits.len(), 2);
        let cleared = FeatureChange {
            hard: Change::Clear,
            ..per_user
        }
        .apply(Some(&feature))
        .unwrap();
        assert_eq!(
            cleared.limits,
            starter_messages().limits,
            "a limit without values goes"
        );
    }

    #[test]
    fn a_soft_limit_above_the_hard_one_is_refused_naming_both() {
        let refused = FeatureChange {
            soft: set(201),
            ..change("messages")
        }
        .apply(Some(&starter_messages()));
        assert_eq!(
            refused.unwrap_err().to_string(),
            "soft_limit is '201'; write at most the hard_limit, 200"
        );
    }

    #[test]
    fn bad_words_are_refused_by_field() {
        let bad_unit = FeatureChange {
            unit: Some("a\nb".to_owned()),
            ..change("x")
        };
        let bad_meter = FeatureChange {
            stripe_meter: Change::Set(String::new()),
            ..change("x")
        };
        let bad_percent = FeatureChange {
            alert_thresholds: Change::Set(vec![0]),
            ..change("x")
        };
        for (change, field) in [
            (bad_unit, "unit is 'a\\nb'"),
            (bad_meter, "stripe_meter is ''"),
            (bad_percent, "alert_thresholds is '0'"),
        ] {
            let error = change.apply(None).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }

    #[test]
    fn a_feature_is_taken_away_whole_or_by_one_limit() {
        let mut plan = Plan {
            code: "p".parse().unwrap(),
            name: "P".parse().unwrap(),
            allowed_models: AllowedModels::default(),
            features: presets::get("starter").unwrap().features.clone(),
            version: 1,
        };
        let period = Some((Scope::Tenant, WindowKind::Period));
        take_away(&mut plan, &FeatureKey::Messages, period).unwrap();
        assert!(plan.features[0].limits.is_empty());
        assert!(matches!(
            take_away(&mut plan, &FeatureKey::Messages, period),
            Err(AdminError::NotFound { .. })
        ));
        take_away(&mut plan, &FeatureKey::Messages, None).unwrap();
        assert!(plan.feature(&FeatureKey::Messages).is_none());
        assert!(matches!(
            take_away(&mut plan, &FeatureKey::Messages, None),
            Err(AdminError::NotFound { .. })
        ));
    }

    #[test]
    fn features_stay_in_order() {
        let mut plan = Plan {
            code: "p".parse().unwrap(),
            name: "P".parse().unwrap(),
            allowed_models: AllowedModels::default(),
            features: vec![],
            version: 1,
        };
        for key in ["zebra", "cost", "messages", "apple"] {
            put(&mut plan, change(key).apply(None).unwrap());
        }
        let keys: Vec<_> = plan
            .features
            .iter()
            .map(|feature| feature.key.as_str())
            .collect();
        assert_eq!(keys, ["messages", "cost", "apple", "zebra"]);
    }
}
