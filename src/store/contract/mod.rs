//! The cases that every backend passes. A backend joins by one line in its tests,
//!
//! ```ignore
//! crate::store::contract::run_all!(crate::store::sqlite::tests::open_temporary);
//! ```
//!
//! where `async fn open_temporary()` gives an empty [`SharedStore`](super::SharedStore) and what must live as long
//! as it. A case that is written but not listed is dead code, which the compiler reports.

pub(crate) mod audit;
pub(crate) mod catalogue;
pub(crate) mod conversations;
pub(crate) mod keys;
pub(crate) mod notices;
pub(crate) mod outbox;
pub(crate) mod reservations;
pub(crate) mod sessions;
pub(crate) mod stripe;
pub(crate) mod trends;
pub(crate) mod usage;
pub(crate) mod webhooks;

use uuid::Uuid;

use super::{
    SharedStore,
    keys::SecretHash,
    usage::{JournalPosition, Seq},
};
use crate::{
    clock::new_id,
    domain::{
        administrator::Actor,
        feature::FeatureKey,
        ids::{KeyId, TenantId},
        limit::{Limit, Scope},
        names::PlanCode,
        plan::{AllowedModels, Plan, PlanFeature},
        quantity::Quantity,
        subscription::{Period, Subscription, SubscriptionStatus},
        tenant::{ApiKey, Tenant},
        time::Timestamp,
        window::{Window, WindowKind},
    },
};

/// Makes a test of every case, each on a store of its own.
macro_rules! run_all {
    ($open:path) => {
        $crate::store::contract::audit::cases!($open);
        $crate::store::contract::catalogue::cases!($open);
        $crate::store::contract::conversations::cases!($open);
        $crate::store::contract::keys::cases!($open);
        $crate::store::contract::notices::cases!($open);
        $crate::store::contract::outbox::cases!($open);
        $crate::store::contract::reservations::cases!($open);
        $crate::store::contract::sessions::cases!($open);
        $crate::store::contract::stripe::cases!($open);
        $crate::store::contract::trends::cases!($open);
        $crate::store::contract::usage::cases!($open);
        $crate::store::contract::webhooks::cases!($open);
    };
}
pub(crate) use run_all;

/// Makes a test of each case named of one file.
macro_rules! run {
    ($open:path, $file:ident, $($case:ident),+ $(,)?) => {
        mod $file {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
                async fn $case() {
                    let (store, _guard) = $open().await;
                    $crate::store::contract::$file::$case(&store).await;
                }
            )+
        }
    };
}
pub(crate) use run;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn window(start: &str, end: &str) -> Window {
    Window::new(at(start), at(end)).unwrap()
}

/// Someone who changes things at `at`.
fn by(when: &str) -> Actor {
    Actor {
        name: "ada".to_owned(),
        address: Some("192.0.2.7".to_owned()),
        at: at(when),
    }
}

fn ada() -> Actor {
    by("2026-01-01T00:00:00Z")
}

fn secret(byte: u8) -> SecretHash {
    SecretHash([byte; 32])
}

fn new_tenant_id() -> TenantId {
    TenantId::new(new_id())
}

fn position(seq: u64) -> JournalPosition {
    JournalPosition {
        journal: Uuid::from_u128(1),
        seq: Seq(seq),
    }
}

fn limit(scope: Scope, window: WindowKind, soft: Option<i64>, hard: Option<i64>) -> Limit {
    Limit {
        scope,
        window,
        soft: soft.map(Quantity::new),
        hard: hard.map(Quantity::new),
    }
}

fn feature(key: FeatureKey, limits: Vec<Limit>) -> PlanFeature {
    PlanFeature {
        display_name: key.default_display_name().parse().unwrap(),
        unit: key.default_unit().to_owned(),
        key,
        is_metered: true,
        limits,
        alert_thresholds: None,
        stripe_meter: None,
    }
}

/// A plan that uses everything a plan can have.
fn plan(code: &str) -> Plan {
    let messages = PlanFeature {
        alert_thresholds: Some(vec![50, 90]),
        stripe_meter: Some("tollgate_messages".to_owned()),
        ..feature(
            FeatureKey::Messages,
            vec![
                // Not in the order of the primary key: the order given counts.
                limit(Scope::User, WindowKind::Day, None, Some(10)),
                limit(Scope::Tenant, WindowKind::Period, Some(150), Some(200)),
                limit(Scope::Key, WindowKind::Lifetime, Some(0), None),
            ],
        )
    };
    let entitlement = PlanFeature {
        is_metered: false,
        ..feature("vector.max_file_bytes".parse().unwrap(), vec![])
    };
    Plan {
        code: code.parse().unwrap(),
        name: "Starter ü".parse().unwrap(),
        allowed_models: AllowedModels(vec!["gpt-*".to_owned()]),
        features: vec![messages, feature(FeatureKey::Cost, vec![]), entitlement],
        version: 1,
    }
}

fn subscription(code: &PlanCode) -> Subscription {
    Subscription {
        plan_code: code.clone(),
        status: SubscriptionStatus::PastDue,
        status_since: at("2026-01-05T00:00:00Z"),
        period: Period::new(at("2026-01-31T09:30:00Z"), at("2026-02-28T09:30:00Z")).unwrap(),
        processor_customer_id: Some("cus_1".to_owned()),
    }
}

fn tenant(slug: &str) -> Tenant {
    Tenant {
        tenant_id: new_tenant_id(),
        slug: slug.parse().unwrap(),
        name: "Acme, Inc.".parse().unwrap(),
        created_at: at("2026-01-01T00:00:00Z"),
        subscription: None,
        overrides: vec![],
    }
}

fn key_of(tenant: TenantId, created_at: &str) -> ApiKey {
    ApiKey {
        key_id: KeyId::new(new_id()),
        tenant_id: tenant,
        name: "laptop".parse().unwrap(),
        user: Some("bob".to_owned()),
        created_at: at(created_at),
        expires_at: Some(at("2027-01-01T00:00:00Z")),
        revoked_at: None,
    }
}

/// A tenant in the store, without a plan.
async fn stored_tenant(store: &SharedStore, slug: &str) -> Tenant {
    let tenant = tenant(slug);
    store.create_tenant(&tenant, &ada()).await.unwrap();
    tenant
}

/// A plan in the store.
async fn stored_plan(store: &SharedStore, code: &str) -> Plan {
    let plan = plan(code);
    store.create_plan(&plan, &ada()).await.unwrap();
    plan
}
