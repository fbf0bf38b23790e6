//! Bringing the plans of an entitlements artifact into the catalogue (interface.md §7): all or nothing.

pub mod artifact;
mod changes;

use serde::Serialize;

use super::{
    AdminError,
    plans::{self, ATTEMPTS, check_feature},
};
use crate::{
    domain::{
        administrator::Actor,
        names::{DisplayName, PlanCode},
        plan::{AllowedModels, Plan, PlanFeature},
    },
    store::{SharedStore, StoreError},
};
use artifact::{Artifact, Fault, FeatureEntry, LimitsEntry, PlanEntry};
pub use changes::ChangeLine;

/// How an artifact is brought in.
#[derive(Clone, Debug, Default)]
pub struct SyncOptions {
    /// Only these plans of the artifact, by their codes in any case; none: all.
    pub plans: Vec<String>,
    /// Features that the artifact leaves out go.
    pub prune_missing: bool,
    /// Says what would change, and changes nothing.
    pub dry_run: bool,
    pub allow_disabled_artifact: bool,
    /// Plans that are not there are made.
    pub create_plans: bool,
}

impl SyncOptions {
    /// The names of these options where they stand in one object with the artifact.
    pub const NAMES: [&str; 5] = [
        "plan_filters",
        "prune_missing",
        "dry_run",
        "allow_disabled_artifact",
        "create_plans",
    ];
    /// The artifact's own fields beside them.
    pub const BESIDE: [&str; 4] = ["enabled", "plans", "generated_at", "schema_version"];
}

/// What a sync did, or would do.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Synced {
    pub enabled: bool,
    pub dry_run: bool,
    pub plans: Vec<SyncedPlan>,
    /// Whole sentences for people.
    pub warnings: Vec<String>,
}

/// What became of one plan; the numbers count features, `unchanged` those of the artifact.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct SyncedPlan {
    pub plan_code: PlanCode,
    pub created: bool,
    pub inserted: usize,
    pub updated: usize,
    pub pruned: usize,
    pub unchanged: usize,
    pub changes: Vec<ChangeLine>,
}

/// Why an artifact is not brought in; nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error("{}", of_faults(.0))]
    Faults(Vec<Fault>),
    #[error(
        "enabled is false in the artifact; run `tollgate setup --sections usage` to turn limits on, or bring it in all the same with --allow-disabled-artifact"
    )]
    Disabled,
    #[error("the artifact has no plan that matches {asked}; it has {there}")]
    NoPlanMatches { asked: String, there: String },
    #[error(transparent)]
    Admin(#[from] AdminError),
}

fn of_faults(faults: &[Fault]) -> String {
    let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    match lines.as_slice() {
        [line] => line.clone(),
        lines => format!("{} faults: {}", lines.len(), lines.join(" | ")),
    }
}

impl From<StoreError> for SyncError {
    fn from(error: StoreError) -> Self {
        Self::Admin(error.into())
    }
}

/// Brings artifacts into the catalogue.
#[derive(Clone)]
pub struct Entitlements {
    store: SharedStore,
}

impl Entitlements {
    #[must_use]
    pub fn new(store: SharedStore) -> Self {
        Self { store }
    }

    /// Reads an artifact and makes the catalogue agree with it, in one transaction for all plans.
    ///
    /// # Errors
    /// [`SyncError`], with all faults of the artifact at once; nothing was written.
    pub async fn sync(
        &self,
        text: &str,
        options: &SyncOptions,
        by: &Actor,
    ) -> Result<Synced, SyncError> {
        let artifact = Artifact::read(text, &SyncOptions::NAMES);
        let mut attempt = 1;
        loop {
            match self.attempt(&artifact, options, by).await {
                // Someone else changed a plan between reading and writing.
                Err(SyncError::Admin(
                    AdminError::VersionConflict { .. }
                    | AdminError::AlreadyExists { .. }
                    | AdminError::NotFound { .. },
                )) if attempt < ATTEMPTS => attempt += 1,
                done => return done,
            }
        }
    }

    async fn attempt(
        &self,
        artifact: &Artifact,
        options: &SyncOptions,
        by: &Actor,
    ) -> Result<Synced, SyncError> {
        let mut faults = artifact.faults.clone();
        let mut warnings: Vec<String> = artifact.unknown.iter().map(unknown_field).collect();
        let chosen = chosen(artifact, options, &mut warnings);
        let (mut writes, mut plans) = (Vec::new(), Vec::new());
        for entry in chosen.iter().flatten() {
            let stored = self.store.find_plan(&entry.code).await?;
            if stored.is_none() && !options.create_plans {
                faults.push(Fault {
                    path: format!("{}.plan_code", entry.path),
                    problem: format!(
                        "is '{}', and there is no such plan; make it with `tollgate plan create`, or sync with --create-plans",
                        entry.code
                    ),
                });
                continue;
            }
            let plan = merged(entry, stored.as_ref(), options, &mut faults)?;
            plans.push(changes::between(stored.as_ref(), &plan, &entry.features));
            if stored.as_ref() != Some(&plan) {
                writes.push(plan);
            }
        }
        if !faults.is_empty() {
            return Err(SyncError::Faults(faults));
        }
        if !artifact.is_enabled && !options.allow_disabled_artifact {
            return Err(SyncError::Disabled);
        }
        if chosen.is_none() {
            return Err(no_plan_matches(artifact, options));
        }
        if !options.dry_run && !writes.is_empty() {
            self.store.put_plans(&writes, by).await?;
        }
        Ok(Synced {
            enabled: artifact.is_enabled,
            dry_run: options.dry_run,
            plans,
            warnings,
        })
    }
}

fn unknown_field(path: &String) -> String {
    format!("field {path} is not known and is ignored")
}

/// The plans that are asked for; `None` if there are none.
fn chosen<'a>(
    artifact: &'a Artifact,
    options: &SyncOptions,
    warnings: &mut Vec<String>,
) -> Option<Vec<&'a PlanEntry>> {
    let is_of = |filter: &str, plan: &PlanEntry| filter.eq_ignore_ascii_case(plan.code.as_str());
    let is_asked = |plan: &&PlanEntry| {
        options.plans.is_empty() || options.plans.iter().any(|filter| is_of(filter, plan))
    };
    let chosen: Vec<_> = artifact.plans.iter().filter(is_asked).collect();
    for filter in &options.plans {
        if !artifact.plans.iter().any(|plan| is_of(filter, plan)) {
            let filter = filter.escape_debug();
            warnings.push(format!("the artifact has no plan '{filter}'"));
        }
    }
    (!chosen.is_empty()).then_some(chosen)
}

fn no_plan_matches(artifact: &Artifact, options: &SyncOptions) -> SyncError {
    let list = |names: Vec<&str>| match names.as_slice() {
        [] => "none".to_owned(),
        names => names.join(", ").escape_debug().to_string(),
    };
    SyncError::NoPlanMatches {
        asked: if options.plans.is_empty() {
            "(it was asked for all)".to_owned()
        } else {
            list(options.plans.iter().map(String::as_str).collect())
        },
        there: list(
            artifact
                .plans
                .iter()
                .map(|plan| plan.code.as_str())
                .collect(),
        ),
    }
}

/// The plan as it will be; version 0 if it is to be made.
fn merged(
    entry: &PlanEntry,
    stored: Option<&Plan>,
    options: &SyncOptions,
    faults: &mut Vec<Fault>,
) -> Result<Plan, AdminError> {
    let mut plan = match stored {
        Some(stored) => stored.clone(),
        None => Plan {
            code: entry.code.clone(),
            name: default_name(&entry.code)?,
            allowed_models: AllowedModels::default(),
            features: Vec::new(),
            version: 0,
        },
    };
    if let Some(name) = &entry.name {
        plan.name = name.clone();
    }
    let is_listed = |feature: &PlanFeature| entry.features.iter().any(|it| it.key == feature.key);
    if options.prune_missing {
        plan.features.retain(is_listed);
    }
    for feature in &entry.features {
        let there = plan.features.iter().position(|it| it.key == feature.key);
        let merged = merged_feature(feature, there.map(|index| &plan.features[index]))?;
        // What the artifact leaves out stays, and may not fit what it says.
        if let Err(AdminError::Invalid {
            field,
            value,
            accepted,
        }) = check_feature(&merged)
        {
            faults.push(Fault {
                path: format!("{}.{}.{field}", entry.path, feature.key),
                problem: format!("is {value}; write {accepted}"),
            });
        }
        match there {
            Some(index) => plan.features[index] = merged,
            None => plan.features.push(merged),
        }
    }
    plan.features.sort_by(|one, other| one.key.cmp(&other.key));
    Ok(plan)
}

/// `starter_eu` → `Starter eu`.
fn default_name(code: &PlanCode) -> Result<DisplayName, AdminError> {
    let spaced = code.as_str().replace(['_', '-'], " ");
    let mut letters = spaced.chars();
    let name: String = letters.next().map_or(String::new(), |first| {
        first.to_uppercase().chain(letters).collect()
    });
    name.parse()
        .map_err(|_| AdminError::invalid("name", &name, "a name for the plan"))
}

fn merged_feature(
    entry: &FeatureEntry,
    stored: Option<&PlanFeature>,
) -> Result<PlanFeature, AdminError> {
    let mut feature = stored
        .cloned()
        .map_or_else(|| plans::fresh_feature(&entry.key), Ok)?;
    if let Some(name) = &entry.display_name {
        feature.display_name = name.clone();
    }
    if let Some(unit) = &entry.unit {
        feature.unit.clone_from(unit);
    }
    if let Some(is_metered) = entry.is_metered {
        feature.is_metered = is_metered;
    }
    if let Some(thresholds) = &entry.alert_thresholds {
        feature.alert_thresholds.clone_from(thresholds);
    }
    if let Some(meter) = &entry.stripe_meter {
        feature.stripe_meter.clone_from(meter);
    }
    match &entry.limits {
        LimitsEntry::Whole(limits) => feature.limits.clone_from(limits),
        LimitsEntry::Pair(pair) => {
            let is_it = |limit: &crate::domain::limit::Limit| {
                (limit.scope, limit.window) == (pair.scope, pair.window)
            };
            match feature.limits.iter().position(is_it) {
                Some(index) => feature.limits[index] = *pair,
                None => feature.limits.insert(0, *pair),
            }
            feature
                .limits
                .retain(|limit| limit.soft.is_some() || limit.hard.is_some());
        }
    }
    Ok(feature)
}

#[cfg(test)]
mod tests;
