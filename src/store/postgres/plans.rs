//! Plans, their features and limits, in tables.

use std::collections::HashMap;

use futures_util::future::try_join;

use super::{
    Failed, already_exists,
    audit::Change,
    not_found,
    pool::Tx,
    rows::{self, Cells, params},
};
use crate::{
    domain::{
        administrator::Actor,
        feature::FeatureKey,
        limit::Limit,
        names::PlanCode,
        plan::{Plan, PlanFeature},
    },
    store::{StoreError, audited},
};

pub(super) async fn find(tx: &Tx, code: &PlanCode) -> Result<Option<Plan>, Failed> {
    let plan = rows::find(
        tx,
        "plans",
        "SELECT * FROM plans WHERE plan_code = $1",
        params![code.as_str()],
        read_plan,
    )
    .await?;
    Ok(with_features(tx, Vec::from_iter(plan)).await?.pop())
}

pub(super) async fn list(tx: &Tx) -> Result<Vec<Plan>, Failed> {
    let plans = rows::list(
        tx,
        "plans",
        "SELECT * FROM plans ORDER BY plan_code",
        params![],
        read_plan,
    )
    .await?;
    with_features(tx, plans).await
}

pub(super) async fn exists(tx: &Tx, code: &PlanCode) -> Result<bool, Failed> {
    rows::exists(
        tx,
        "SELECT 1 FROM plans WHERE plan_code = $1",
        params![code.as_str()],
    )
    .await
}

pub(super) async fn create(tx: &Tx, plan: &Plan, by: &Actor) -> Result<(), Failed> {
    if exists(tx, &plan.code).await? {
        return Err(already_exists("plan", &plan.code));
    }
    Change {
        action: "plan.create",
        target: plan.code.as_str(),
        before: None,
        after: Some(audited::plan(plan)),
    }
    .note(tx, by)
    .await?;
    rows::run(
        tx,
        "INSERT INTO plans (plan_code, name, allowed_models, version) VALUES ($1, $2, $3, $4)",
        params![
            plan.code.as_str(),
            plan.name.as_str(),
            rows::to_json(&plan.allowed_models)?,
            plan.version
        ],
    )
    .await?;
    insert_features(tx, plan).await
}

pub(super) async fn update(tx: &Tx, plan: &Plan, by: &Actor) -> Result<i64, Failed> {
    let stored = find(tx, &plan.code)
        .await?
        .ok_or_else(|| not_found("plan", &plan.code))?;
    if stored.version != plan.version {
        return Err(Failed::Refused(StoreError::VersionConflict {
            what: "plan",
            name: plan.code.to_string(),
            current: stored.version,
        }));
    }
    let plan = Plan {
        version: stored.version.saturating_add(1),
        ..plan.clone()
    };
    Change {
        action: "plan.update",
        target: plan.code.as_str(),
        before: Some(audited::plan(&stored)),
        after: Some(audited::plan(&plan)),
    }
    .note(tx, by)
    .await?;
    rows::run(
        tx,
        "UPDATE plans SET name = $2, allowed_models = $3, version = $4 WHERE plan_code = $1",
        params![
            plan.code.as_str(),
            plan.name.as_str(),
            rows::to_json(&plan.allowed_models)?,
            plan.version
        ],
    )
    .await?;
    rows::run(
        tx,
        "DELETE FROM plan_features WHERE plan_code = $1",
        params![plan.code.as_str()],
    )
    .await?;
    insert_features(tx, &plan).await?;
    Ok(plan.version)
}

/// Makes a plan of version 0, replaces any other.
pub(super) async fn put(tx: &Tx, plan: &Plan, by: &Actor) -> Result<(), Failed> {
    if plan.version > 0 {
        return update(tx, plan, by).await.map(|_| ());
    }
    let first = Plan {
        version: 1,
        ..plan.clone()
    };
    create(tx, &first, by).await
}

pub(super) async fn delete(
    tx: &Tx,
    code: &PlanCode,
    expected_version: Option<i64>,
    by: &Actor,
) -> Result<(), Failed> {
    let stored = find(tx, code)
        .await?
        .ok_or_else(|| not_found("plan", code))?;
    if expected_version.is_some_and(|expected| expected != stored.version) {
        return Err(Failed::Refused(StoreError::VersionConflict {
            what: "plan",
            name: code.to_string(),
            current: stored.version,
        }));
    }
    let subscriptions = rows::find(
        tx,
        "subscriptions",
        "SELECT count(*) AS subscriptions FROM subscriptions WHERE plan_code = $1",
        params![code.as_str()],
        |cells| cells.get::<i64>("subscriptions"),
    )
    .await?
    .unwrap_or(0);
    if subscriptions > 0 {
        return Err(Failed::Refused(StoreError::PlanInUse {
            plan: code.clone(),
            subscriptions,
        }));
    }
    Change {
        action: "plan.delete",
        target: code.as_str(),
        before: Some(audited::plan(&stored)),
        after: None,
    }
    .note(tx, by)
    .await?;
    rows::run(
        tx,
        "DELETE FROM plans WHERE plan_code = $1",
        params![code.as_str()],
    )
    .await?;
    Ok(())
}

async fn insert_features(tx: &Tx, plan: &Plan) -> Result<(), Failed> {
    for feature in &plan.features {
        let thresholds = feature.alert_thresholds.as_ref();
        rows::run(
            tx,
            "INSERT INTO plan_features
                 (plan_code, feature_key, display_name, unit, is_metered, alert_thresholds, stripe_meter)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
            params![
                plan.code.as_str(),
                feature.key.as_str(),
                feature.display_name.as_str(),
                feature.unit,
                feature.is_metered,
                thresholds.map(rows::to_json).transpose()?,
                feature.stripe_meter,
            ],
        ).await?;
        for (position, limit) in (0_i64..).zip(&feature.limits) {
            rows::run(
                tx,
                "INSERT INTO plan_feature_limits
                     (plan_code, feature_key, scope, window_kind, soft_limit, hard_limit, position)
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
                params![
                    plan.code.as_str(),
                    feature.key.as_str(),
                    limit.scope.as_str(),
                    limit.window.as_str(),
                    rows::units(limit.soft),
                    rows::units(limit.hard),
                    position,
                ],
            )
            .await?;
        }
    }
    Ok(())
}

fn read_plan(cells: &Cells<'_>) -> Result<Plan, Failed> {
    Ok(Plan {
        code: cells.parse("plan_code")?,
        name: cells.parse("name")?,
        allowed_models: cells.json("allowed_models")?,
        features: Vec::new(),
        version: cells.get("version")?,
    })
}

/// All of them with their features, in the order given.
async fn with_features(tx: &Tx, mut plans: Vec<Plan>) -> Result<Vec<Plan>, Failed> {
    let codes: Vec<&str> = plans.iter().map(|plan| plan.code.as_str()).collect();
    let asked = params![codes];
    let features = rows::list(
        tx,
        "plan_features",
        "SELECT * FROM plan_features WHERE plan_code = ANY ($1)",
        asked,
        |cells| {
            let feature = PlanFeature {
                key: cells.parse("feature_key")?,
                display_name: cells.parse("display_name")?,
                unit: cells.get("unit")?,
                is_metered: cells.get("is_metered")?,
                limits: Vec::new(),
                alert_thresholds: cells.optional_json("alert_thresholds")?,
                stripe_meter: cells.get("stripe_meter")?,
            };
            Ok((cells.parse::<PlanCode>("plan_code")?, feature))
        },
    );
    let limits = rows::list(
        tx,
        "plan_feature_limits",
        "SELECT * FROM plan_feature_limits WHERE plan_code = ANY ($1) ORDER BY plan_code, position",
        asked,
        |cells| {
            Ok((
                cells.parse::<PlanCode>("plan_code")?,
                cells.parse::<FeatureKey>("feature_key")?,
                read_limit(cells)?,
            ))
        },
    );
    let (features, limits) = try_join(features, limits).await?;
    let places: HashMap<PlanCode, usize> = (0..)
        .zip(&plans)
        .map(|(place, plan)| (plan.code.clone(), place))
        .collect();
    for (code, feature) in features {
        if let Some(place) = places.get(&code) {
            plans[*place].features.push(feature);
        }
    }
    for (code, key, limit) in limits {
        let plan = places.get(&code).map(|place| &mut plans[*place]);
        let feature = plan.and_then(|plan| plan.features.iter_mut().find(|it| it.key == key));
        if let Some(feature) = feature {
            feature.limits.push(limit);
        }
    }
    for plan in &mut plans {
        plan.features.sort_by(|a, b| a.key.cmp(&b.key));
    }
    Ok(plans)
}

/// A row of `plan_feature_limits` or `tenant_override_limits`.
pub(super) fn read_limit(cells: &Cells<'_>) -> Result<Limit, Failed> {
    Ok(Limit {
        scope: cells.parse("scope")?,
        window: cells.parse("window_kind")?,
        soft: cells.optional_quantity("soft_limit")?,
        hard: cells.optional_quantity("hard_limit")?,
    })
}
