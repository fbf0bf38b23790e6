//! The shared cases on Postgres, and what only Postgres can get wrong.

#[path = "../../../tests/it/support/postgres.rs"]
pub(crate) mod server;
#[expect(dead_code, reason = "tests of replicas use the rest")]
#[path = "../../../tests/it/support/wire.rs"]
mod wire;

mod coming_in;
mod months;
mod views;
mod waiting;

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

use super::{Failed, PostgresStore, PostgresUrl, migrate, rows, rows::params};
use crate::{
    clock::new_id,
    domain::{
        administrator::Actor,
        feature::FeatureKey,
        ids::{EventId, TenantId},
        plan::{AllowedModels, Plan, PlanFeature},
        processor::Payment,
        quantity::Quantity,
        subscription::{Period, Subscription, SubscriptionStatus},
        tenant::{Tenant, TenantRef},
        time::Timestamp,
        usage::{Quantities, Source, UsageEvent},
        window::Window,
    },
    store::{
        SharedStore, StoreError,
        catalogue::{CatalogueStore as _, Changed},
        maintenance::MaintenanceStore as _,
        outbox::{Kind, Lease, NewEntry, OutboxStore as _, Status},
        sqlite::{SqliteStore, export::Export},
        stripe::{MeterUse, Slot, StripeStore as _, Which},
        usage::{Dimension, JournalPosition, Recorded, Seq, Tell, UsageStore as _},
        webhooks::{Arrival, Webhook, WebhookStatus, WebhookStore as _},
    },
};
use server::{Cluster, Database};
use wire::Wire;

/// What databases of tests are copied from.
async fn bring_up_to_date(url: &str) {
    drop(open(url).await);
}

async fn open(url: &str) -> PostgresStore {
    PostgresStore::open(&url.parse().unwrap()).await.unwrap()
}

async fn open_temporary() -> (SharedStore, Database) {
    let database = Database::migrated();
    (Arc::new(open(&database.url()).await), database)
}

mod cases {
    crate::store::contract::run_all!(crate::store::postgres::tests::open_temporary);
}

/// What a hand at the `psql` prompt would have.
async fn by_hand(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::task::LocalSet::new()
        .run_until(async {
            tokio::runtime::Handle::current().spawn(connection);
        })
        .await;
    client
}

fn ada() -> Actor {
    Actor {
        name: "ada".to_owned(),
        address: None,
        at: "2026-01-01T00:00:00Z".parse().unwrap(),
    }
}

fn tenant(slug: &str) -> Tenant {
    Tenant {
        tenant_id: TenantId::new(new_id()),
        slug: slug.parse().unwrap(),
        name: "Acme".parse().unwrap(),
        created_at: ada().at,
        subscription: None,
        overrides: vec![],
    }
}

fn unavailable<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Unavailable(why)) => why,
        other => panic!("{other:?} is not Unavailable"),
    }
}

fn used(tenant: TenantId, messages: i64, admitted_at: Timestamp) -> UsageEvent {
    UsageEvent {
        event_id: EventId::new(new_id()),
        request_id: "req-1".to_owned(),
        source: Source::Chat,
        tenant_id: tenant,
        key_id: None,
        user: "bob".to_owned(),
        model: None,
        quantities: Quantities::default()
            .with(FeatureKey::Messages, Quantity::new(messages))
            .with("seats".parse().unwrap(), Quantity::new(messages * 2)),
        estimated: false,
        reason: None,
        price_id: None,
        admitted_at,
        recorded_at: admitted_at,
    }
}

/// Its messages count on a meter, in a slot of its own minute.
fn counted(event: &UsageEvent) -> MeterUse {
    MeterUse {
        event: event.event_id,
        slot: Slot {
            tenant: event.tenant_id,
            feature: FeatureKey::Messages,
            meter: "msgs".to_owned(),
            start: event.admitted_at,
            period_start: Timestamp::EPOCH,
        },
        due_at: event.admitted_at,
        customer: Some("cus_1".to_owned()),
        quantity: event.quantities.of(&FeatureKey::Messages),
    }
}

fn webhook(event_id: &str) -> Webhook {
    Webhook {
        event_id: event_id.to_owned(),
        event_type: "invoice.paid".to_owned(),
        object_id: "in_1".to_owned(),
        happened_at: ada().at,
        received_at: ada().at,
        tenant: None,
        tenant_slug: None,
        status: WebhookStatus::Pending,
        attempts: 0,
        last_error: None,
        next_attempt_at: Some(ada().at),
        payload: "{}".to_owned(),
    }
}

fn position(journal: u128, seq: u64) -> JournalPosition {
    JournalPosition {
        journal: Uuid::from_u128(journal),
        seq: Seq(seq),
    }
}

fn always() -> Window {
    Window::new(Timestamp::EPOCH, Timestamp::NEVER).unwrap()
}

async fn messages(store: &PostgresStore, tenant: TenantId) -> i64 {
    let totals = store.totals(tenant, &[FeatureKey::Messages], always(), None);
    totals.await.unwrap().totals[0].quantity.get()
}

fn plan(code: &str) -> Plan {
    let feature = |key: FeatureKey, is_metered| PlanFeature {
        display_name: key.default_display_name().parse().unwrap(),
        unit: key.default_unit().to_owned(),
        key,
        is_metered,
        limits: vec![],
        alert_thresholds: None,
        stripe_meter: None,
    };
    Plan {
        code: code.parse().unwrap(),
        name: "Plan".parse().unwrap(),
        allowed_models: AllowedModels::default(),
        features: vec![
            feature(FeatureKey::Messages, true),
            feature("carried".parse().unwrap(), false),
            feature("seats".parse().unwrap(), true),
        ],
        version: 1,
    }
}

fn subscribed(code: &str, start: Timestamp, end: Timestamp) -> Subscription {
    Subscription {
        plan_code: code.parse().unwrap(),
        status: SubscriptionStatus::Active,
        status_since: start,
        period: Period::new(start, end).unwrap(),
        processor_customer_id: None,
    }
}

#[test]
fn both_stores_have_migrations_of_the_same_versions_and_names() {
    let names = |folder: &str| {
        let folder = format!("{}/migrations/{folder}", env!("CARGO_MANIFEST_DIR"));
        let files = std::fs::read_dir(folder).unwrap();
        files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect::<HashSet<_>>()
    };
    assert_eq!(names("sqlite"), names("postgres"));
    assert_eq!(names("postgres").len(), migrate::known().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_change_by_hand_is_in_the_change_feed() {
    let database = Database::migrated();
    let store = open(&database.url()).await;
    let starter = plan("starter");
    store.create_plan(&starter, &ada()).await.unwrap();
    for change in [
        "UPDATE plans SET name = 'Changed'",
        "UPDATE plan_features SET unit = 'changed'",
        "INSERT INTO plan_feature_limits VALUES ('starter', 'messages', 'key', 'day', NULL, 5, 0)",
        "UPDATE plan_feature_limits SET hard_limit = 7",
        "DELETE FROM plan_feature_limits",
    ] {
        let version = store.changes_since(0).await.unwrap().version;
        database.run_sql(change);
        let changes = store.changes_since(version).await.unwrap();
        let expected = [Changed::Plan(starter.code.clone())];
        assert_eq!(changes.changed, expected, "{change}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_seen_a_version_has_seen_every_change_before_it() {
    let database = Database::migrated();
    let stores = [open(&database.url()).await, open(&database.url()).await];
    let writers = (0..40).map(|number| {
        let store = &stores[number % 2];
        async move {
            let tenant = tenant(&format!("t-{number}"));
            store.create_tenant(&tenant, &ada()).await.unwrap();
            tenant.tenant_id
        }
    });
    let reader = async {
        let (mut version, mut seen) = (0, HashSet::new());
        // Version 0 says `Everything` only if the feed does not reach back.
        while seen.len() < 40 {
            let changes = stores[0].changes_since(version).await.unwrap();
            version = changes.version;
            for changed in changes.changed {
                match changed {
                    Changed::Tenant(tenant) => assert!(seen.insert(tenant)),
                    other => panic!("{other:?}"),
                }
            }
        }
        seen
    };
    let (made, seen) = tokio::join!(futures_util::future::join_all(writers), reader);
    assert_eq!(made.into_iter().collect::<HashSet<_>>(), seen);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_change_elsewhere_is_told_and_a_lost_connection_too() {
    let database = Database::migrated();
    let (here, there) = (open(&database.url()).await, open(&database.url()).await);
    let soon = Duration::from_secs(10);
    // The first message says that listening has begun.
    tokio::time::timeout(soon, here.changed()).await.unwrap();
    there.create_plan(&plan("starter"), &ada()).await.unwrap();
    tokio::time::timeout(soon, here.changed()).await.unwrap();
    database.run_sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    );
    // It listens again, and has the reader look for what it missed.
    tokio::time::timeout(soon, here.changed()).await.unwrap();
    there.create_plan(&plan("other"), &ada()).await.unwrap();
    tokio::time::timeout(soon, here.changed()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_that_replicas_record_at_once_count_once() {
    let database = Database::migrated();
    let stores = [
        open(&database.url()).await,
        open(&database.url()).await,
        open(&database.url()).await,
    ];
    let acme = TenantId::new(new_id());
    let at = "2026-01-01T00:10:00Z".parse().unwrap();
    let shared: Vec<UsageEvent> = (0..50).map(|_| used(acme, 1, at)).collect();
    let tell = |replica: usize| Tell {
        entries: vec![NewEntry {
            identifier: format!("of-{replica}"),
            kind: Kind::AnalyticsBatch,
            topic: None,
            tenant: None,
            feature: None,
            value: None,
            lane: None,
            about: None,
            payload: "{}".to_owned(),
            created_at: at,
        }],
        ..Tell::default()
    };
    let batches = (0..30).map(|number: usize| {
        let (store, shared) = (&stores[number % 3], &shared);
        async move {
            let mut batch: Vec<UsageEvent> = (0..20).map(|_| used(acme, 1, at)).collect();
            batch.extend_from_slice(shared);
            if number % 2 == 1 {
                batch.reverse();
            }
            let drained = position(u128::try_from(number % 3).unwrap(), number as u64);
            store
                .record(batch.as_slice().into(), drained, tell(number % 3))
                .await
                .unwrap()
        }
    });
    let recorded = futures_util::future::join_all(batches).await;
    let inserted: u64 = recorded.iter().map(|it: &Recorded| it.inserted).sum();
    assert_eq!(inserted, 30 * 20 + 50);
    assert_eq!(messages(&stores[0], acme).await, 30 * 20 + 50);
    assert_eq!(stores[1].check_rollups().await, Ok(vec![]));
    assert_eq!(stores[2].drained(Uuid::from_u128(2)).await, Ok(Seq(29)));
    let leases = stores.iter().map(|store| {
        store.lease(Lease {
            kind: Kind::AnalyticsBatch,
            now: at,
            until: at.plus(Duration::from_secs(30)),
            limit: 2,
        })
    });
    let leased = futures_util::future::join_all(leases).await;
    let leased = leased.into_iter().flat_map(Result::unwrap);
    let leased: Vec<String> = leased.map(|it| it.identifier).collect();
    let distinct: HashSet<&String> = leased.iter().collect();
    assert_eq!(distinct.len(), leased.len(), "{leased:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_replicas_fill_and_hand_on_at_once_are_told_of_whole_and_once() {
    let database = Database::migrated();
    let stores = [open(&database.url()).await, open(&database.url()).await];
    let at: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
    let tenants = [(); 5].map(|()| TenantId::new(new_id()));
    let filling = (0..4_usize).map(|writer| {
        let (store, tenants) = (&stores[writer % 2], &tenants);
        async move {
            for round in 0..15_u32 {
                // The same slots in any order, and some that differ in what no identifier tells apart.
                let micros = |number: usize| Duration::from_micros((number % 2) as u64);
                let mut events: Vec<UsageEvent> = (0..10)
                    .map(|it: usize| used(tenants[it % 5], 1, at.plus(micros(it / 5))))
                    .collect();
                if writer % 2 == 1 {
                    events.reverse();
                }
                let tell = Tell {
                    meters: events.iter().map(counted).collect(),
                    ..Tell::default()
                };
                let drained = position(writer as u128, u64::from(round));
                store
                    .record(events.as_slice().into(), drained, tell)
                    .await
                    .unwrap();
            }
        }
    });
    let is_filled = std::sync::atomic::AtomicBool::new(false);
    let handing_on = stores.iter().map(|store| async {
        let mut entries = 0;
        loop {
            let is_last = is_filled.load(std::sync::atomic::Ordering::SeqCst);
            let now = at.plus(Duration::from_secs(60));
            let done = store.hand_on(Which::Due, now, now, 3).await.unwrap();
            entries += done.entries;
            if is_last && !done.is_more {
                return entries;
            }
        }
    });
    let filling = async {
        futures_util::future::join_all(filling).await;
        is_filled.store(true, std::sync::atomic::Ordering::SeqCst);
    };
    let (entries, ()) = tokio::join!(futures_util::future::join_all(handing_on), filling);
    assert_eq!(stores[0].count_waiting().await, Ok((0, None)));
    let made: u64 = entries.iter().sum();
    let pending = (Kind::StripeMeterEvent, Status::Pending, made);
    assert_eq!(stores[0].count_outbox().await, Ok(vec![pending]));
    for tenant in tenants {
        let sums = stores[1].meter_sums(tenant, &FeatureKey::Messages, always());
        assert_eq!(sums.await.unwrap().pending, Quantity::new(4 * 15 * 2));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_of_stripes_that_replicas_get_at_once_is_kept_by_one() {
    let database = Database::migrated();
    let stores = [open(&database.url()).await, open(&database.url()).await];
    for number in 0..20 {
        let webhook = webhook(&format!("evt_{number}"));
        let received = stores.iter().chain(&stores).map(|store| {
            let webhook = &webhook;
            async move { store.receive_webhook(webhook).await.unwrap() }
        });
        let received = futures_util::future::join_all(received).await;
        let kept = received.iter().filter(|it| **it == Arrival::New).count();
        assert_eq!(kept, 1, "{received:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_nul_in_a_name_keeps_no_batch_from_being_written() {
    let database = Database::migrated();
    let store = open(&database.url()).await;
    let acme = TenantId::new(new_id());
    let at = "2026-01-01T00:10:00Z".parse().unwrap();
    let named = |user: &str| UsageEvent {
        user: user.to_owned(),
        model: Some("m\0".to_owned()),
        ..used(acme, 1, at)
    };
    let events = [named("a\0b"), named("a\u{FFFD}b"), named("c")];
    store
        .record(events.as_slice().into(), position(1, 3), Tell::default())
        .await
        .unwrap();
    assert_eq!(store.check_rollups().await, Ok(vec![]));
    let by_user = store.totals(
        acme,
        &[FeatureKey::Messages],
        always(),
        Some(Dimension::User),
    );
    let by_user = by_user.await.unwrap().totals;
    let by_user: Vec<_> = by_user
        .iter()
        .map(|total| (total.by.as_deref().unwrap(), total.quantity.get()))
        .collect();
    assert_eq!(by_user, [("a\u{FFFD}b", 2), ("c", 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_is_forgotten_while_usage_comes_in_and_sums_agree() {
    let database = Database::migrated();
    let (store, other) = (open(&database.url()).await, open(&database.url()).await);
    let acme = tenant("acme");
    store.create_tenant(&acme, &ada()).await.unwrap();
    let at: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
    store
        .record(
            [used(acme.tenant_id, 1, at)].into(),
            position(1, 1),
            Tell::default(),
        )
        .await
        .unwrap();
    let recording = async {
        for seq in 2..40 {
            let event = used(acme.tenant_id, 1, at);
            other
                .record([event].into(), position(1, seq), Tell::default())
                .await
                .unwrap();
        }
    };
    let by = ada();
    let forgetting = async {
        for number in 0..5 {
            let name = format!("forgotten-{number}");
            store
                .forget_user(acme.tenant_id, "bob", &name, &by)
                .await
                .unwrap();
        }
    };
    tokio::join!(recording, forgetting);
    assert_eq!(store.check_rollups().await, Ok(vec![]));
    assert_eq!(messages(&store, acme.tenant_id).await, 39);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn everything_of_a_sqlite_database_moves_and_only_to_an_empty_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tollgate.db");
    let old = SqliteStore::open(&path).unwrap();
    old.create_plan(&plan("starter"), &ada()).await.unwrap();
    let (start, end) = (ada().at, ada().at.plus_months(1));
    let acme = Tenant {
        subscription: Some(subscribed("starter", start, end)),
        ..tenant("acme")
    };
    old.create_tenant(&acme, &ada()).await.unwrap();
    let months = [
        "2026-01-15T00:00:00Z",
        "2026-02-15T00:00:00Z",
        "2026-02-16T00:00:00Z",
    ];
    let mut events: Vec<UsageEvent> = (1..)
        .zip(months)
        .map(|(number, at)| UsageEvent {
            event_id: months::id_of(at, number),
            ..used(acme.tenant_id, 1, at.parse().unwrap())
        })
        .collect();
    events[1].event_id = EventId::new(Uuid::new_v5(&Uuid::NAMESPACE_URL, b"x"));
    let tell = Tell {
        meters: events.iter().map(counted).collect(),
        ..Tell::default()
    };
    old.record(events.as_slice().into(), position(7, 3), tell)
        .await
        .unwrap();
    let pushed_at = "2026-02-15T12:00:00Z".parse().unwrap();
    old.hand_on(Which::All, pushed_at, pushed_at, 100)
        .await
        .unwrap();
    let webhook = webhook("evt_1");
    old.receive_webhook(&webhook).await.unwrap();
    old.note_payment("sub_1", Payment::Paid, "1").await.unwrap();

    let database = Database::empty();
    let store = open(&database.url()).await;
    let export = Export::open(&path).unwrap();
    let last = std::sync::Mutex::new((0, 0));
    let steps = |done, total| *last.lock().unwrap() = (done, total);
    store.import(&export, &steps).await.unwrap();
    let (done, total) = *last.lock().unwrap();
    assert!(done == total && total > 10, "{done} of {total}");

    let same = TenantRef::Slug(acme.slug.clone());
    assert_eq!(store.find_tenant(&same).await, Ok(Some(acme.clone())));
    events.reverse();
    assert_eq!(
        store.list_events(acme.tenant_id, None, 10).await,
        Ok(events.clone())
    );
    assert_eq!(store.check_rollups().await, Ok(vec![]));
    assert_eq!(store.drained(Uuid::from_u128(7)).await, Ok(Seq(3)));
    for feature in [FeatureKey::Messages, FeatureKey::Cost] {
        let sums = store.meter_sums(acme.tenant_id, &feature, always()).await;
        let expected = old.meter_sums(acme.tenant_id, &feature, always()).await;
        assert_eq!(sums, expected);
    }
    let waiting = store.count_waiting().await;
    assert_eq!(waiting, Ok((1, Some(events[0].admitted_at))));
    assert_eq!(store.find_webhook("evt_1").await, Ok(Some(webhook)));
    assert_eq!(
        store.find_known("sub_1").await,
        old.find_known("sub_1").await
    );
    let version = old.changes_since(0).await.unwrap().version;
    assert_eq!(store.changes_since(version).await.unwrap().changed, []);
    // It goes on from there: numbers are not given twice, and changes are seen.
    store.create_tenant(&tenant("next"), &ada()).await.unwrap();
    assert_eq!(store.changes_since(version).await.unwrap().changed.len(), 1);

    let why = unavailable(store.import(&export, &steps).await);
    assert!(why.contains("is not empty: table audit_log"), "{why}");
}
