//! The shared cases on Postgres, and what only Postgres can get wrong.

#[path = "../../../tests/it/support/postgres.rs"]
pub(crate) mod server;
#[path = "../../../tests/it/support/wire.rs"]
mod wire;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_replicas_that_start_at_once_on_an_empty_database_all_come_up() {
    let database = Database::empty();
    let url: PostgresUrl = database.url().parse().unwrap();
    let replicas = (0..10).map(|_| PostgresStore::open(&url));
    let opened = futures_util::future::join_all(replicas).await;
    for store in &opened {
        let store = store.as_ref().unwrap();
        assert_eq!(store.schema_version().await, Ok(migrate::newest_known()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_database_of_a_newer_version_is_refused() {
    let database = Database::migrated();
    database.run_sql(
        "INSERT INTO refinery_schema_history
         SELECT 2100010101, 'future', applied_on, checksum FROM refinery_schema_history LIMIT 1",
    );
    let opened = PostgresStore::open(&database.url().parse().unwrap()).await;
    let why = unavailable(opened.map(|_| ()));
    let newest = migrate::newest_known();
    let words = format!("version 2100010101, newer than {newest}");
    assert!(why.contains(&words), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_damaged_history_of_migrations_is_an_error_not_a_panic() {
    let database = Database::migrated();
    database.run_sql("UPDATE refinery_schema_history SET applied_on = 'x'");
    let opened = PostgresStore::open(&database.url().parse().unwrap()).await;
    let why = unavailable(opened.map(|_| ()));
    assert!(why.contains("refinery_schema_history is damaged"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_may_not_come_in_is_told_where_it_was_and_not_with_which_password() {
    let database = Database::empty();
    let right = database.guarded_url("127.0.0.1", "sslmode=disable");
    assert!(PostgresStore::open(&right.parse().unwrap()).await.is_ok());
    let wrong = right.replace(server::PASSWORD, "hunter22");
    let nowhere = "postgres://u:hunter22@127.0.0.1:1/d".to_owned();
    let nobody = "postgres://u:hunter22@no.such.host.invalid/d".to_owned();
    for (url, place) in [
        (wrong, "127.0.0.1"),
        (nowhere, "127.0.0.1:1"),
        (nobody, "no.such.host"),
    ] {
        let opened = PostgresStore::open(&url.parse().unwrap()).await;
        let why = unavailable(opened.map(|_| ()));
        assert!(why.contains(place), "{why}");
        assert!(!why.contains("hunter22"), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sslmode_decides_whether_the_server_must_prove_who_it_is() {
    let database = Database::migrated();
    let roots = server::server().authority();
    let roots = format!("sslrootcert={}", roots.display());
    let opens = async |host: &str, query: &str| {
        let url = database.guarded_url(host, query);
        let opened = PostgresStore::open(&url.parse().unwrap()).await;
        let store = opened.map_err(|error| error.to_string())?;
        let encrypted = store.read("test", |tx| async move {
            let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
            rows::find(&tx, "pg_stat_ssl", sql, params![], |cells| {
                cells.get::<bool>("ssl")
            })
            .await
        });
        Ok::<bool, String>(encrypted.await.unwrap().unwrap())
    };
    assert_eq!(opens("127.0.0.1", "sslmode=disable").await, Ok(false));
    for query in ["", "sslmode=prefer", "sslmode=require"] {
        assert_eq!(opens("127.0.0.1", query).await, Ok(true), "{query}");
    }
    // The certificate is for `localhost`.
    let full = format!("sslmode=verify-full&{roots}");
    assert_eq!(opens("localhost", &full).await, Ok(true));
    let why = opens("127.0.0.1", &full).await.unwrap_err();
    assert!(why.contains("certificate"), "{why}");
    let any_name = format!("sslmode=verify-ca&{roots}");
    assert_eq!(opens("127.0.0.1", &any_name).await, Ok(true));
    for stranger in ["sslmode=verify-ca", "sslmode=verify-full"] {
        let why = opens("localhost", stranger).await.unwrap_err();
        assert!(why.contains("certificate"), "{stranger}: {why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn commits_wait_for_the_disk_though_the_server_would_not() {
    let database = Database::migrated();
    database.run_sql("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$");
    let store = open(&database.url()).await;
    let setting = store.write("test", |tx| async move {
        let sql = "SELECT current_setting('synchronous_commit') AS it";
        rows::find(&tx, "settings", sql, params![], |cells| {
            cells.get::<String>("it")
        })
        .await
    });
    assert_eq!(setting.await.unwrap().as_deref(), Some("on"));
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
        meters: vec![],
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
                .record(&batch, drained, &tell(number % 3))
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
                    entries: vec![],
                    meters: events.iter().map(counted).collect(),
                };
                let drained = position(writer as u128, u64::from(round));
                store.record(&events, drained, &tell).await.unwrap();
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
        .record(&events, position(1, 3), &Tell::default())
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

/// An id of the time `at`, as `new_id` makes them.
fn id_of(at: &str, number: u128) -> EventId {
    let at: Timestamp = at.parse().unwrap();
    let ms = u128::try_from(at.micros() / 1_000).unwrap();
    EventId::new(Uuid::from_u128((ms << 80) | (7 << 76) | (2 << 62) | number))
}

async fn months(store: &PostgresStore) -> Vec<String> {
    let sql =
        "SELECT relname::text AS name FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
               WHERE inhparent = 'usage_events'::regclass ORDER BY relname";
    let months = store.read("test", |tx| async move {
        rows::list(&tx, "pg_class", sql, params![], |cells| {
            cells.get::<String>("name")
        })
        .await
    });
    months.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn old_months_are_dropped_whole_and_their_sums_stay() {
    let database = Database::migrated();
    let store = open(&database.url()).await;
    let other = open(&database.url()).await;
    let acme = TenantId::new(new_id());
    let event = |at: &str, number| UsageEvent {
        event_id: id_of(at, number),
        ..used(acme, 1, at.parse().unwrap())
    };
    let events = [
        event("2026-01-31T23:59:59.999Z", 1),
        event("2026-02-01T00:00:00Z", 2),
        event("2026-02-28T12:00:00Z", 3),
        event("2026-03-01T00:00:00Z", 4),
    ];
    store
        .record(&events, position(1, 4), &Tell::default())
        .await
        .unwrap();
    let by_month = |numbers: &[u32]| {
        let months = numbers
            .iter()
            .map(|number| format!("usage_events_2026_{number:02}"));
        months
            .chain(["usage_events_timeless".to_owned()])
            .collect::<Vec<_>>()
    };
    assert_eq!(months(&store).await, by_month(&[1, 2, 3]));
    // A month goes when all of it is old, and until then nothing of it.
    let before = "2026-02-15T00:00:00Z".parse().unwrap();
    store.prune_events(before, 100).await.unwrap();
    assert_eq!(store.prune_events(before, 100).await, Ok(0));
    assert_eq!(months(&store).await, by_month(&[2, 3]));
    let left = store.list_events(acme, None, 10).await.unwrap();
    assert_eq!(left, [&events[3], &events[2], &events[1]].map(Clone::clone));
    assert_eq!(messages(&store, acme).await, 4);
    assert_eq!(store.check_rollups().await, Ok(vec![]));
    // A late event of a month that this replica knew, and another one dropped.
    other
        .ensure_months([id_of("2026-01-05T00:00:00Z", 9)].into_iter())
        .await
        .unwrap();
    database.run_sql("DROP TABLE usage_events_2026_01");
    let late = event("2026-01-05T00:00:00Z", 9);
    let late = [late];
    let recorded = other
        .record(&late, position(2, 1), &Tell::default())
        .await
        .unwrap();
    assert_eq!(recorded.inserted, 1);
    // The same id again is known, whatever month it is recorded in.
    let again = UsageEvent {
        admitted_at: "2026-03-05T00:00:00Z".parse().unwrap(),
        ..late[0].clone()
    };
    let recorded = store
        .record(&[again], position(1, 5), &Tell::default())
        .await
        .unwrap();
    assert_eq!(recorded.duplicates, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_month_that_somebody_reads_is_dropped_another_time() {
    let database = Database::migrated();
    let store = open(&database.url()).await;
    let acme = TenantId::new(new_id());
    let at = "2026-01-31T10:00:00Z";
    let event = UsageEvent {
        event_id: id_of(at, 1),
        ..used(acme, 1, at.parse().unwrap())
    };
    store
        .record(&[event], position(1, 1), &Tell::default())
        .await
        .unwrap();
    let hand = by_hand(&database.url()).await;
    hand.batch_execute("BEGIN; SELECT count(*) FROM usage_events")
        .await
        .unwrap();
    let before = "2026-03-01T00:00:00Z".parse().unwrap();
    assert_eq!(store.prune_events(before, 100).await, Ok(0));
    assert_eq!(store.list_events(acme, None, 10).await.unwrap().len(), 1);
    hand.batch_execute("COMMIT").await.unwrap();
    store.prune_events(before, 100).await.unwrap();
    assert_eq!(store.list_events(acme, None, 10).await.unwrap(), []);
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
            &[used(acme.tenant_id, 1, at)],
            position(1, 1),
            &Tell::default(),
        )
        .await
        .unwrap();
    let recording = async {
        for seq in 2..40 {
            let event = used(acme.tenant_id, 1, at);
            other
                .record(&[event], position(1, seq), &Tell::default())
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
async fn what_postgres_undoes_is_done_again() {
    let database = Database::migrated();
    let store = open(&database.url()).await;
    let attempts = std::sync::atomic::AtomicU32::new(0);
    let attempts = &attempts;
    for code in ["40001", "40P01"] {
        attempts.store(0, std::sync::atomic::Ordering::SeqCst);
        let done = store.write("test", |tx| async move {
            let attempt = attempts.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            rows::run(
                &tx,
                "UPDATE usage_horizon SET pruned_until = pruned_until + 1",
                params![],
            )
            .await?;
            if attempt < 2 {
                let sql = format!(
                    "DO $$ BEGIN RAISE EXCEPTION 'undone' USING ERRCODE = '{code}'; END $$"
                );
                tx.batch_execute(&sql).await?;
            }
            Ok(attempt)
        });
        assert_eq!(done.await, Ok(2), "{code}");
    }
    let horizon = store.read("test", |tx| async move { super::sums::horizon(&tx).await });
    assert_eq!(horizon.await.unwrap().micros(), i64::MIN + 2, "once each");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connections_that_the_server_cut_are_not_noticed_by_who_comes_next() {
    let database = Database::migrated();
    let store = open(&database.url()).await;
    let acme = tenant("acme");
    store.create_tenant(&acme, &ada()).await.unwrap();
    for _ in 0..3 {
        database.run_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'tollgate'
               AND query NOT LIKE 'LISTEN%'",
        );
        let found = loop {
            // The watch's connection may be among them: then requests are refused for a moment.
            match store.find_tenant(&TenantRef::Id(acme.tenant_id)).await {
                Ok(found) => break found,
                Err(error) => assert!(unavailable(Err::<(), _>(error)).contains("database")),
            }
        };
        assert_eq!(found.as_ref(), Some(&acme));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_table_that_a_newer_replica_has_changed_is_read_on() {
    let database = Database::migrated();
    let store = open(&database.url()).await;
    let starter = plan("starter");
    store.create_plan(&starter, &ada()).await.unwrap();
    for column in ["one", "two"] {
        let found = store.find_plan(&starter.code).await;
        assert_eq!(found, Ok(Some(starter.clone())));
        database.run_sql(&format!("ALTER TABLE plans ADD COLUMN {column} BIGINT"));
    }
    let found = store.find_plan(&starter.code).await;
    assert_eq!(found, Ok(Some(starter.clone())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_transaction_that_is_dropped_leaves_nothing_behind() {
    let database = Database::migrated();
    let store = open(&database.url()).await;
    let begun = tokio::sync::Notify::new();
    let begun = &begun;
    let never = store.write("test", |tx| async move {
        rows::run(&tx, "UPDATE usage_horizon SET pruned_until = 7", params![]).await?;
        begun.notify_one();
        std::future::pending::<Result<(), Failed>>().await
    });
    tokio::select! {
        _ = never => unreachable!(),
        () = begun.notified() => {}
    }
    // The row is free again, and as it was.
    let acme = TenantId::new(new_id());
    let event = used(acme, 1, ada().at);
    store
        .record(&[event], position(1, 1), &Tell::default())
        .await
        .unwrap();
    let horizon = store.write("test", |tx| async move {
        rows::run(
            &tx,
            "UPDATE usage_horizon SET pruned_until = pruned_until",
            params![],
        )
        .await?;
        super::sums::horizon(&tx).await
    });
    assert_eq!(horizon.await.unwrap().micros(), i64::MIN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_gone_or_stands_still_is_waited_for_no_longer_than_a_quarter_second() {
    let cluster = Cluster::of_its_own();
    let store = open(&cluster.url()).await;
    let acme = tenant("acme");
    store.create_tenant(&acme, &ada()).await.unwrap();
    let event = used(acme.tenant_id, 1, ada().at);
    let acmes = TenantRef::Id(acme.tenant_id);
    let asked = || store.find_tenant(&acmes);
    type Act = fn(&Cluster);
    let faults: [(&str, Act, Act); 3] = [
        ("paused", Cluster::pause, Cluster::resume),
        ("stopped", Cluster::stop, Cluster::start),
        ("killed", Cluster::kill, Cluster::start),
    ];
    for (name, break_it, mend_it) in faults {
        assert!(asked().await.is_ok());
        break_it(&cluster);
        let begun = std::time::Instant::now();
        let first = asked().await;
        let waited = begun.elapsed();
        assert!(first.is_err(), "{name}");
        assert!(waited < Duration::from_secs(1), "{name}: {waited:?}"); // 250, and a busy machine
        let begun = std::time::Instant::now();
        for _ in 0..100 {
            unavailable(asked().await);
        }
        assert!(
            begun.elapsed() < Duration::from_millis(600),
            "{name}: it is remembered"
        );
        mend_it(&cluster);
        let begun = std::time::Instant::now();
        while asked().await.is_err() {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "{name}: {:?}",
                asked().await
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let batch = [event.clone()];
        store
            .record(&batch, position(1, 1), &Tell::default())
            .await
            .unwrap();
    }
    assert_eq!(messages(&store, acme.tenant_id).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_slow_wire_requests_do_not_wait_and_usage_still_arrives() {
    let database = Database::migrated();
    let port = server::server().port;
    let wire = Wire::to(([127, 0, 0, 1], port).into());
    let url = database
        .url()
        .replace(&format!(":{port}/"), &format!(":{}/", wire.address.port()));
    let store = open(&url).await;
    let acme = tenant("acme");
    store.create_tenant(&acme, &ada()).await.unwrap();
    let acmes = TenantRef::Id(acme.tenant_id);
    let refused = async |what: &str| {
        let begun = std::time::Instant::now();
        unavailable(store.find_tenant(&acmes).await);
        let waited = begun.elapsed();
        assert!(waited < Duration::from_secs(1), "{what}: {waited:?}"); // 250, and a busy machine
    };
    let answered_again = async || {
        let begun = std::time::Instant::now();
        while store.find_tenant(&acmes).await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(store.find_tenant(&acmes).await.is_ok());

    wire.delay(Duration::from_millis(300));
    refused("slow").await;
    refused("slow, remembered").await;
    // Work in the background bears it.
    let event = used(acme.tenant_id, 1, ada().at);
    store
        .record(&[event], position(1, 1), &Tell::default())
        .await
        .unwrap();
    wire.delay(Duration::ZERO);
    answered_again().await;
    assert_eq!(messages(&store, acme.tenant_id).await, 1);

    wire.swallow(true);
    refused("half open").await;
    wire.swallow(false);
    wire.cut();
    answered_again().await;
    assert_eq!(messages(&store, acme.tenant_id).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_statement_that_takes_its_time_is_waited_for() {
    let database = Database::migrated();
    let store = open(&database.url()).await;
    let slept = store.read("test", |tx| async move {
        Ok(tx.batch_execute("SELECT pg_sleep(1)").await?)
    });
    assert_eq!(slept.await, Ok(()));
}

/// Makes the reporting views believe that it is `now`.
async fn pretend(hand: &Client, now: Timestamp) {
    let micros = now.micros();
    let view = format!("CREATE OR REPLACE VIEW reporting_now (at) AS SELECT {micros}::bigint");
    hand.batch_execute(&view).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_reporting_views_roll_periods_over_as_the_program_does() {
    let database = Database::migrated();
    let store = open(&database.url()).await;
    store.create_plan(&plan("starter"), &ada()).await.unwrap();
    let mut tenants = vec![];
    for (number, start) in [
        "2024-01-31T09:30:00.5Z",
        "2024-02-29T00:00:00Z",
        "2025-12-30T23:59:59Z",
        "2026-06-15T12:00:00Z",
        "2030-03-31T00:00:00Z",
    ]
    .into_iter()
    .enumerate()
    {
        let start: Timestamp = start.parse().unwrap();
        let ends = [1, 3, 12].map(|months| start.plus_months(months));
        let lengths = [1, 14 * 24 * 3_600, 40 * 24 * 3_600 + 1]
            .map(|seconds| start.plus(Duration::from_secs(seconds)));
        for (kind, end) in ends.into_iter().chain(lengths).enumerate() {
            let acme = Tenant {
                subscription: Some(subscribed("starter", start, end)),
                ..tenant(&format!("t{number}-{kind}"))
            };
            store.create_tenant(&acme, &ada()).await.unwrap();
            tenants.push(acme);
        }
    }
    let hand = by_hand(&database.url()).await;
    for now in [
        "2023-12-31T23:59:59Z",
        "2024-02-29T09:30:00Z",
        "2024-02-29T09:30:01Z",
        "2026-02-28T00:00:00Z",
        "2026-02-28T23:59:58Z",
        "2026-03-01T00:00:00Z",
        "2026-11-30T23:59:59Z",
        "2028-02-29T00:00:00Z",
        "2031-03-31T00:00:00Z",
    ] {
        let now: Timestamp = now.parse().unwrap();
        pretend(&hand, now).await;
        for acme in &tenants {
            let sql =
                "SELECT window_start, window_end FROM subscription_periods WHERE tenant_id = $1";
            let row = hand
                .query_one(sql, &[&acme.tenant_id.uuid()])
                .await
                .unwrap();
            let in_sql: (i64, i64) = (row.get(0), row.get(1));
            let period = acme.subscription.as_ref().unwrap().period;
            let window = period.window_at(now);
            let expected = (window.start().micros(), window.end().micros());
            assert_eq!(in_sql, expected, "{:?} at {now}", period.first());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_usage_view_sums_the_current_period_of_each_metered_feature() {
    let database = Database::migrated();
    let store = open(&database.url()).await;
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    store.create_plan(&plan("starter"), &ada()).await.unwrap();
    let (start, end) = (at("2026-01-31T09:30:00Z"), at("2026-02-28T09:30:00Z"));
    let acme = Tenant {
        subscription: Some(subscribed("starter", start, end)),
        ..tenant("acme")
    };
    let events = [
        ("2026-02-28T09:29:59Z", 1), // the last period
        ("2026-02-28T09:30:00Z", 2), // its first, cut hour
        ("2026-03-10T12:00:00Z", 4),
        ("2026-03-31T09:29:59.999999Z", 8), // its last, cut hour
        ("2026-03-31T09:30:00Z", 16),       // the next period
    ]
    .map(|(when, messages)| used(acme.tenant_id, messages, at(when)));
    store.create_tenant(&acme, &ada()).await.unwrap();
    store
        .record(&events, position(1, 1), &Tell::default())
        .await
        .unwrap();
    let hand = by_hand(&database.url()).await;
    pretend(&hand, at("2026-03-31T09:00:00Z")).await;
    let sql = "SELECT * FROM subscription_usage ORDER BY tenant_slug, feature_key";
    let found = hand.query(sql, &[]).await.unwrap();
    let found: Vec<(Vec<String>, i64)> = found
        .iter()
        .map(|row| ((0..8).map(|column| row.get(column)).collect(), row.get(8)))
        .collect();
    let id = acme.tenant_id.to_string();
    let row = |feature: &str, unit: &str, quantity| {
        let texts = [
            &id,
            "acme",
            "starter",
            "active",
            feature,
            unit,
            "2026-02-28T09:30:00Z",
            "2026-03-31T09:30:00Z",
        ];
        (texts.map(str::to_owned).to_vec(), quantity)
    };
    let expected = [row("messages", "requests", 14), row("seats", "units", 28)];
    assert_eq!(found, expected);
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
            event_id: id_of(at, number),
            ..used(acme.tenant_id, 1, at.parse().unwrap())
        })
        .collect();
    events[1].event_id = EventId::new(Uuid::new_v5(&Uuid::NAMESPACE_URL, b"x"));
    let tell = Tell {
        entries: vec![],
        meters: events.iter().map(counted).collect(),
    };
    old.record(&events, position(7, 3), &tell).await.unwrap();
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
