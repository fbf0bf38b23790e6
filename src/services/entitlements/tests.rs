use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::{
    domain::{
        feature::FeatureKey, limit::Scope, quantity::Quantity, time::Timestamp, window::WindowKind,
    },
    services::plans::{NewPlan, Plans},
    store::sqlite::SqliteStore,
};

struct World {
    store: SharedStore,
    sync: Entitlements,
    _directory: TempDir,
}

fn ada() -> Actor {
    Actor {
        name: "ada".to_owned(),
        address: None,
        at: Timestamp::EPOCH,
    }
}

impl World {
    /// With the preset `starter` as plan `starter`, and plan `Pro` without features.
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store: SharedStore =
            Arc::new(SqliteStore::open(&directory.path().join("tollgate.db")).unwrap());
        let world = Self {
            sync: Entitlements::new(Arc::clone(&store)),
            store,
            _directory: directory,
        };
        world.plan("starter", Some("starter")).await;
        world.plan("Pro", None).await;
        world
    }

    async fn plan(&self, code: &str, preset: Option<&str>) {
        let plan = NewPlan {
            code: code.parse().unwrap(),
            name: code.parse().unwrap(),
            preset: preset.map(str::to_owned),
            allowed_models: AllowedModels::default(),
            features: vec![],
        };
        let plans = Plans::new(Arc::clone(&self.store));
        plans.create(plan, &ada()).await.unwrap();
    }

    async fn run(&self, text: &str, options: SyncOptions) -> Result<Synced, SyncError> {
        self.sync.sync(text, &options, &ada()).await
    }

    async fn ok(&self, text: &str, options: SyncOptions) -> Synced {
        self.run(text, options).await.unwrap()
    }

    async fn refused(&self, text: &str, options: SyncOptions) -> String {
        let before = (self.store.list_plans().await.unwrap(), self.audits().await);
        let refused = self.run(text, options).await.unwrap_err().to_string();
        let after = (self.store.list_plans().await.unwrap(), self.audits().await);
        assert_eq!(before, after, "nothing is written: {refused}");
        refused
    }

    async fn audits(&self) -> usize {
        self.store.list_audit(None, 100).await.unwrap().len()
    }

    async fn feature(&self, plan: &str, key: &str) -> PlanFeature {
        let plan = self.store.find_plan(&plan.parse().unwrap()).await.unwrap();
        let key: FeatureKey = key.parse().unwrap();
        plan.unwrap().feature(&key).unwrap().clone()
    }
}

fn artifact(enabled: bool, plans: &str) -> String {
    format!(r#"{{"enabled": {enabled}, "plans": [{plans}]}}"#)
}

const TWO: &str = r#"
    {"plan_code": "starter", "features": [
        {"feature_key": "messages", "display_name": "Messages", "unit": "requests", "is_metered": true, "soft_limit": 150, "hard_limit": 300},
        {"feature_key": "vector.max_file_bytes", "display_name": "Max file size", "unit": "bytes", "is_metered": false, "soft_limit": null, "hard_limit": 536870912}]},
    {"plan_code": "Pro", "features": [{"feature_key": "messages", "hard_limit": 9, "stripe_meter": "msgs", "alert_thresholds": [50]}]}"#;

fn counts(synced: &Synced) -> Vec<(String, [usize; 4])> {
    let plans = synced.plans.iter();
    let counts = plans.map(|plan| {
        (
            plan.plan_code.to_string(),
            [plan.inserted, plan.updated, plan.pruned, plan.unchanged],
        )
    });
    counts.collect()
}

#[tokio::test]
async fn an_artifact_is_brought_in_once_and_then_changes_nothing() {
    let world = World::new().await;
    let synced = world.ok(&artifact(true, TWO), SyncOptions::default()).await;
    assert_eq!(
        counts(&synced),
        [
            ("starter".to_owned(), [1, 1, 0, 0]),
            ("Pro".to_owned(), [1, 0, 0, 0])
        ]
    );
    let lines = |synced: &Synced| -> Vec<String> {
        let changes = synced.plans.iter().flat_map(|plan| &plan.changes);
        changes.map(ToString::to_string).collect()
    };
    assert_eq!(
        lines(&synced),
        [
            "messages.hard_limit: 200 → 300",
            "vector.max_file_bytes: none → none/536870912 bytes, not metered",
            "messages: none → none/9 requests",
        ]
    );
    let carried = world.feature("starter", "vector.max_file_bytes").await;
    assert_eq!(
        (carried.is_metered, carried.limits[0].hard),
        (false, Some(Quantity::new(536_870_912)))
    );
    assert_eq!(
        world
            .feature("Pro", "messages")
            .await
            .stripe_meter
            .as_deref(),
        Some("msgs")
    );
    assert_eq!(
        world.feature("starter", "output_tokens").await.limits[0].hard,
        Some(Quantity::new(100_000)),
        "a feature that is left out stays"
    );
    let audits = world.audits().await;
    let again = world.ok(&artifact(true, TWO), SyncOptions::default()).await;
    assert_eq!(lines(&again), [""; 0]);
    assert_eq!(counts(&again)[0].1, [0, 0, 0, 2]);
    assert_eq!(world.audits().await, audits);
}

#[tokio::test]
async fn a_dry_run_says_the_same_and_writes_nothing() {
    let world = World::new().await;
    let before = world.store.list_plans().await.unwrap();
    let dry = SyncOptions {
        dry_run: true,
        ..SyncOptions::default()
    };
    let said = world.ok(&artifact(true, TWO), dry).await;
    assert_eq!(world.store.list_plans().await.unwrap(), before);
    let done = world.ok(&artifact(true, TWO), SyncOptions::default()).await;
    assert_eq!(said.plans[0].changes, done.plans[0].changes);
    assert_eq!(counts(&said), counts(&done));
}

#[tokio::test]
async fn what_is_missing_is_pruned_only_if_asked() {
    let world = World::new().await;
    let prune = SyncOptions {
        prune_missing: true,
        plans: vec!["STARTER".to_owned()],
        ..SyncOptions::default()
    };
    let synced = world.ok(&artifact(true, TWO), prune).await;
    assert_eq!(counts(&synced), [("starter".to_owned(), [1, 1, 2, 0])]);
    let plan = world.store.find_plan(&"starter".parse().unwrap()).await;
    assert_eq!(plan.unwrap().unwrap().features.len(), 2);
    let pro = world.store.find_plan(&"Pro".parse().unwrap()).await;
    assert!(pro.unwrap().unwrap().features.is_empty(), "not asked for");
}

#[tokio::test]
async fn every_refusal_says_why_and_writes_nothing() {
    let world = World::new().await;
    let plain = SyncOptions::default;
    let disabled = world.refused(&artifact(false, TWO), plain()).await;
    assert!(disabled.contains("--allow-disabled-artifact"), "{disabled}");
    let only_gold = SyncOptions {
        plans: vec!["gold".to_owned()],
        ..plain()
    };
    assert_eq!(
        world.refused(&artifact(true, TWO), only_gold).await,
        "the artifact has no plan that matches gold; it has starter, Pro"
    );
    // A good plan before a bad one is not written either.
    let unknown = format!(
        r#"{TWO}, {{"plan_code": "gold", "features": [{{"feature_key": "messages", "hard_limit": -3}}]}}"#
    );
    assert_eq!(
        world.refused(&artifact(true, &unknown), plain()).await,
        "2 faults: plans[2].features[0].hard_limit is -3; write a whole number from 0 to 2^53 - 1, or null | \
         plans[2].plan_code is 'gold', and there is no such plan; make it with `tollgate plan create`, or sync with --create-plans"
    );
    let nothing = world.refused(&artifact(true, ""), plain()).await;
    assert!(nothing.contains("it has none"), "{nothing}");
}

#[tokio::test]
async fn a_disabled_artifact_and_unknown_plans_are_taken_if_asked() {
    let world = World::new().await;
    let allowed = SyncOptions {
        allow_disabled_artifact: true,
        create_plans: true,
        ..SyncOptions::default()
    };
    let gold =
        r#"{"plan_code": "gold-plan", "features": [{"feature_key": "messages", "hard_limit": 3}]}"#;
    let synced = world.ok(&artifact(false, gold), allowed).await;
    assert!(!synced.enabled && synced.plans[0].created);
    let plan = world.store.find_plan(&"gold-plan".parse().unwrap()).await;
    let plan = plan.unwrap().unwrap();
    assert_eq!((plan.name.as_str(), plan.version), ("Gold plan", 1));
    let audit = world.store.list_audit(None, 1).await.unwrap();
    assert_eq!(audit[0].action, "plan.create");
}

#[tokio::test]
async fn a_flat_pair_leaves_other_limits_and_a_list_replaces_them() {
    let world = World::new().await;
    let listed = r#"{"plan_code": "Pro", "features": [{"feature_key": "messages", "hard_limit": 9, "limits": [
        {"scope": "user", "window": "day", "hard_limit": 2}]}]}"#;
    world
        .ok(&artifact(true, listed), SyncOptions::default())
        .await;
    let flat =
        r#"{"plan_code": "Pro", "features": [{"feature_key": "messages", "hard_limit": 10}]}"#;
    let synced = world
        .ok(&artifact(true, flat), SyncOptions::default())
        .await;
    assert_eq!(
        synced.plans[0].changes[0].to_string(),
        "messages.hard_limit: 9 → 10"
    );
    let limits = world.feature("Pro", "messages").await.limits;
    assert_eq!(
        limits
            .iter()
            .map(|limit| (limit.scope, limit.window))
            .collect::<Vec<_>>(),
        [
            (Scope::Tenant, WindowKind::Period),
            (Scope::User, WindowKind::Day)
        ]
    );
    let only = r#"{"plan_code": "Pro", "features": [{"feature_key": "messages", "limits": [{"window": "day", "hard_limit": 1}]}]}"#;
    let synced = world
        .ok(&artifact(true, only), SyncOptions::default())
        .await;
    let changes: Vec<String> = synced.plans[0]
        .changes
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        changes,
        [
            "messages.hard_limit: 10 → none",
            "messages.hard_limit per user and day: 2 → none",
            "messages.hard_limit per tenant and day: none → 1",
        ]
    );
}
