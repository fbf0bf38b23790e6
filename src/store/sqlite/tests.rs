//! The shared cases on SQLite, and what only SQLite can get wrong.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{Connection, StatementStatus, params};
use tempfile::TempDir;

use super::{Failed, SqliteStore, outbox, pool::READERS};
use crate::{
    clock::{Clock, new_id},
    domain::{
        administrator::Actor,
        feature::FeatureKey,
        ids::{EventId, TenantId},
        plan::{AllowedModels, Plan, PlanFeature},
        quantity::Quantity,
        subscription::{Period, Subscription, SubscriptionStatus},
        tenant::{Tenant, TenantRef},
        time::Timestamp,
        usage::{Quantities, Source, UsageEvent},
    },
    store::{
        SharedStore, StoreError,
        catalogue::{CatalogueStore as _, Changed},
        outbox::{Kind, Lease, NewEntry, OutboxStore as _},
        usage::{JournalPosition, Seq, Tell, UsageStore as _},
    },
};

#[expect(clippy::unused_async, reason = "other backends connect")]
async fn open_temporary() -> (SharedStore, TempDir) {
    let scratch = Scratch::new();
    (Arc::new(scratch.open()), scratch.directory)
}

mod cases {
    crate::store::contract::run_all!(crate::store::sqlite::tests::open_temporary);
}

/// A directory for one database.
struct Scratch {
    directory: TempDir,
    path: PathBuf,
}

impl Scratch {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("tollgate.db");
        Self { directory, path }
    }

    fn open(&self) -> SqliteStore {
        SqliteStore::open(&self.path).unwrap()
    }

    /// What a hand at the `sqlite3` prompt would have.
    fn by_hand(&self) -> Connection {
        Connection::open(&self.path).unwrap()
    }
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

fn position(seq: u64) -> JournalPosition {
    JournalPosition {
        journal: uuid::Uuid::from_u128(1),
        seq: Seq(seq),
    }
}

const LANES: usize = 20;

/// `LANES` lanes of entries, all due at `now`; the first of each is leased.
async fn lanes_of(entries: usize, store: &SqliteStore, now: Timestamp) {
    let all = (0..LANES * entries).map(|it| NewEntry {
        identifier: format!("{it:06}"),
        kind: Kind::StripeMeterEvent,
        topic: None,
        tenant: None,
        feature: None,
        value: None,
        lane: Some(format!("cus_{}/messages", it % LANES)),
        about: None,
        payload: String::new(),
        created_at: now,
    });
    store.enqueue(&all.collect::<Vec<_>>()).await.unwrap();
    assert_eq!(store.lease(lease_at(now)).await.unwrap().len(), LANES);
}

fn lease_at(now: Timestamp) -> Lease {
    Lease {
        kind: Kind::StripeMeterEvent,
        now,
        until: now.plus(std::time::Duration::from_secs(30)),
        limit: 64,
    }
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

#[tokio::test]
async fn what_was_written_is_there_after_the_store_was_closed() {
    let scratch = Scratch::new();
    let acme = tenant("acme");
    let event = used(acme.tenant_id, 1, ada().at);
    let store = scratch.open();
    store.create_tenant(&acme, &ada()).await.unwrap();
    store
        .record([event.clone()].into(), position(3), Tell::default())
        .await
        .unwrap();
    drop(store);

    let elsewhere = Scratch::new();
    fs::copy(&scratch.path, &elsewhere.path).unwrap(); // one file holds everything
    let store = elsewhere.open();
    let found = store.find_tenant(&TenantRef::Id(acme.tenant_id)).await;
    assert_eq!(found, Ok(Some(acme.clone())));
    let listed = store.list_events(acme.tenant_id, None, 10).await;
    assert_eq!(listed, Ok(vec![event]));
    assert_eq!(store.drained(position(0).journal).await, Ok(Seq(3)));
}

#[tokio::test]
async fn every_file_of_the_store_is_its_owners_alone() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.create_tenant(&tenant("acme"), &ada()).await.unwrap();
    let files: Vec<_> = fs::read_dir(scratch.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .collect();
    assert!(files.len() >= 2, "the log is a file too: {files:?}");
    for file in files {
        let mode = file.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", file.path());
    }
}

#[tokio::test]
async fn the_writer_syncs_at_every_commit_and_checks_foreign_keys() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let pragmas = store
        .write("test", |tx| {
            let pragma = |name| tx.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
            Ok((pragma("synchronous")?, pragma("foreign_keys")?))
        })
        .await;
    assert_eq!(pragmas, Ok((2, 1)), "2 is FULL");
}

#[tokio::test]
async fn a_reader_can_not_write() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let written = store
        .read("test", |tx| Ok(tx.execute("DELETE FROM plans", [])?))
        .await;
    assert!(unavailable(written).contains("readonly"));
}

#[test]
fn a_database_of_a_newer_version_is_refused() {
    let scratch = Scratch::new();
    drop(scratch.open());
    let newest: i64 = scratch
        .by_hand()
        .query_row(
            "SELECT max(version) FROM refinery_schema_history",
            [],
            |row| row.get(0),
        )
        .unwrap();
    scratch
        .by_hand()
        .execute(
            "INSERT INTO refinery_schema_history
             SELECT 2100010101, 'future', applied_on, checksum FROM refinery_schema_history LIMIT 1",
            [],
        )
        .unwrap();
    let why = unavailable(SqliteStore::open(&scratch.path).map(|_| ()));
    assert!(
        why.contains(&format!("version 2100010101, newer than {newest}")),
        "{why}"
    );
}

#[test]
fn a_file_that_is_no_database_is_an_error_and_stays_as_it_is() {
    let scratch = Scratch::new();
    let text = "These are the notes of somebody. ".repeat(100);
    fs::write(&scratch.path, &text).unwrap();
    let why = unavailable(SqliteStore::open(&scratch.path).map(|_| ()));
    assert!(why.contains("not a database"), "{why}");
    assert_eq!(fs::read_to_string(&scratch.path).unwrap(), text);
}

#[test]
fn a_damaged_history_of_migrations_is_an_error_not_a_panic() {
    let scratch = Scratch::new();
    drop(scratch.open());
    scratch
        .by_hand()
        .execute("UPDATE refinery_schema_history SET applied_on = 'x'", [])
        .unwrap();
    let why = unavailable(SqliteStore::open(&scratch.path).map(|_| ()));
    assert!(why.contains("refinery_schema_history is damaged"), "{why}");
}

#[tokio::test]
async fn a_deleted_tenant_is_hidden_and_its_slug_is_not_reused() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let acme = tenant("acme");
    store.create_tenant(&acme, &ada()).await.unwrap();
    scratch
        .by_hand()
        .execute("UPDATE tenants SET deleted_at = 1", [])
        .unwrap();
    let slug = TenantRef::Slug(acme.slug);
    assert_eq!(store.find_tenant(&slug).await, Ok(None));
    assert_eq!(store.list_tenants(None, 10).await, Ok(vec![]));
    let again = store.create_tenant(&tenant("acme"), &ada()).await;
    assert!(
        matches!(again, Err(StoreError::AlreadyExists { .. })),
        "{again:?}"
    );
}

#[tokio::test]
async fn a_change_by_hand_is_in_the_change_feed() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let starter = plan("starter");
    store.create_plan(&starter, &ada()).await.unwrap();
    let version = store.changes_since(0).await.unwrap().version;
    let hand = scratch.by_hand();
    for change in [
        "UPDATE plans SET name = 'Changed'",
        "UPDATE plan_features SET unit = 'changed'",
        "INSERT INTO plan_feature_limits VALUES ('starter', 'messages', 'key', 'day', NULL, 5, 0)",
        "UPDATE plan_feature_limits SET hard_limit = 7",
        "DELETE FROM plan_feature_limits",
    ] {
        let version = store.changes_since(version).await.unwrap().version;
        hand.execute(change, []).unwrap();
        let changes = store.changes_since(version).await.unwrap();
        assert_eq!(
            changes.changed,
            [Changed::Plan(starter.code.clone())],
            "{change}"
        );
    }
}

#[tokio::test]
async fn a_damaged_row_is_an_error_that_names_it() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let acme = tenant("acme");
    store.create_tenant(&acme, &ada()).await.unwrap();
    store
        .record(
            [used(acme.tenant_id, 1, ada().at)].into(),
            position(1),
            Tell::default(),
        )
        .await
        .unwrap();
    let hand = scratch.by_hand();
    hand.execute("UPDATE tenants SET slug = 'No Slug'", [])
        .unwrap();
    hand.execute("UPDATE usage_events SET source = 'moon', extra = '[]'", [])
        .unwrap();
    let why = unavailable(store.list_tenants(None, 10).await);
    assert!(
        why.contains(
            "catalogue.list_tenants: a row of tenants is damaged in column slug: 'No Slug'"
        ),
        "{why}"
    );
    let why = unavailable(store.list_events(acme.tenant_id, None, 10).await);
    assert!(why.contains("usage_events is damaged in column"), "{why}");
    hand.execute("UPDATE usage_events SET extra = NULL", [])
        .unwrap();
    let why = unavailable(store.list_events(acme.tenant_id, None, 10).await);
    assert!(why.contains("column source: 'moon' is not known"), "{why}");
}

#[tokio::test]
async fn a_database_that_heals_is_read_and_written_again() {
    let scratch = Scratch::new();
    let acme = tenant("acme");
    let store = scratch.open();
    store.create_tenant(&acme, &ada()).await.unwrap();
    drop(store); // everything is in the one file now
    let sound = fs::read(&scratch.path).unwrap();

    let store = scratch.open();
    let mut damaged = sound.clone();
    damaged[4096..].fill(0xA5); // all but the first page
    overwrite(&scratch.path, &damaged);
    let found = store.find_tenant(&TenantRef::Id(acme.tenant_id)).await;
    assert!(unavailable(found).contains("catalogue.find_tenant: "));
    unavailable(store.create_tenant(&tenant("other"), &ada()).await);
    unavailable(store.create_tenant(&tenant("other"), &ada()).await);

    overwrite(&scratch.path, &sound);
    let found = store.find_tenant(&TenantRef::Id(acme.tenant_id)).await;
    assert_eq!(found, Ok(Some(acme)));
    store.create_tenant(&tenant("other"), &ada()).await.unwrap();
}

/// Changes a file's content where it lies, as a failing disk would.
fn overwrite(path: &Path, content: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, content, 0).unwrap();
}

/// Fails as SQLite does when the disk can't be read.
fn disk_error() -> Failed {
    Failed::Sql(rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR),
        None,
    ))
}

#[tokio::test]
async fn a_reader_that_met_a_disk_error_is_not_used_again() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let broken: Result<(), StoreError> = store
        .read("test", |tx| {
            tx.pragma_update(None, "cache_size", 99)?; // what to know it by
            Err(disk_error())
        })
        .await;
    unavailable(broken);
    for _ in 0..READERS * 2 {
        let cache_size = store
            .read("test", |tx| {
                Ok(tx.pragma_query_value(None, "cache_size", |row| row.get::<_, i64>(0))?)
            })
            .await;
        assert_eq!(cache_size, Ok(-4096));
    }
}

#[tokio::test]
async fn a_vanished_database_is_not_made_anew_and_is_found_when_it_is_back() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let elsewhere = scratch.directory.path().join("elsewhere");
    let broken: Result<(), StoreError> = store.write("test", |_| Err(disk_error())).await;
    assert!(unavailable(broken).starts_with("test: "));
    fs::rename(&scratch.path, &elsewhere).unwrap();
    unavailable(store.create_tenant(&tenant("acme"), &ada()).await);
    assert!(!scratch.path.exists());
    fs::rename(&elsewhere, &scratch.path).unwrap();
    store.create_tenant(&tenant("acme"), &ada()).await.unwrap();
}

#[tokio::test]
async fn a_write_that_panics_is_an_error_and_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let written: Result<(), StoreError> = store
        .write("test.panic", |tx| {
            tx.execute("DELETE FROM usage_horizon", [])?;
            panic!("as tests do");
        })
        .await;
    let why = unavailable(written);
    assert!(why.contains("test.panic: the operation panicked"), "{why}");
    assert_eq!(store.ping().await, Ok(()));
    store.create_tenant(&tenant("acme"), &ada()).await.unwrap();
}

#[tokio::test]
async fn a_read_gives_up_when_no_reader_is_free_in_time() {
    let scratch = Scratch::new();
    let store = Arc::new(scratch.open());
    let (started, mut starts) = tokio::sync::mpsc::unbounded_channel();
    let mut ends = vec![];
    let mut busy = vec![];
    for _ in 0..READERS {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        ends.push(end);
        let (store, started) = (Arc::clone(&store), started.clone());
        busy.push(async move {
            store
                .read("test.long", move |_| {
                    started.send(()).unwrap();
                    let _ = ended.recv(); // until its sender is dropped
                    Ok(())
                })
                .await
        });
    }
    drop(started);
    let all_busy = futures_util::future::join_all(busy);
    let late = async {
        for _ in 0..READERS {
            starts.recv().await.expect("every reader starts");
        }
        let late = store.ping().await;
        drop(ends);
        late
    };
    let (ended, late) = tokio::join!(all_busy, late);
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    assert_eq!(
        unavailable(late),
        "usage.ping: no reader was free in 250 ms"
    );
    assert_eq!(store.ping().await, Ok(()));
}

#[tokio::test]
async fn a_rollup_that_differs_from_its_events_is_named() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let acme = TenantId::new(new_id());
    store
        .record(
            [used(acme, 3, ada().at)].into(),
            position(1),
            Tell::default(),
        )
        .await
        .unwrap();
    let hand = scratch.by_hand();
    hand.execute(
        "UPDATE usage_rollups SET quantity = 5 WHERE feature_key = 'messages' AND dimension = 'user'",
        [],
    )
    .unwrap();
    hand.execute(
        "DELETE FROM usage_rollups WHERE feature_key = 'seats' AND dimension = 'all'",
        [],
    )
    .unwrap();
    assert_eq!(
        store.check_rollups().await.unwrap(),
        [
            format!(
                "{acme}, messages, user \"bob\", hour 2026-01-01T00:00:00Z: rollup 5, events 3"
            ),
            format!("{acme}, seats, hour 2026-01-01T00:00:00Z: rollup 0, events 6"),
            "seats, hour 2026-01-01T00:00:00Z: all tenants 6, their rollups 0".to_owned(),
        ]
    );
}

/// Makes the reporting views believe that it is `now`.
fn pretend(hand: &Connection, now: Timestamp) {
    hand.execute_batch(&format!(
        "DROP VIEW reporting_now; CREATE VIEW reporting_now (at) AS SELECT {};",
        now.micros()
    ))
    .unwrap();
}

#[tokio::test]
async fn the_reporting_views_roll_periods_over_as_the_program_does() {
    let scratch = Scratch::new();
    let store = scratch.open();
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
            .map(|seconds| start.plus(std::time::Duration::from_secs(seconds)));
        for (kind, end) in ends.into_iter().chain(lengths).enumerate() {
            let acme = Tenant {
                subscription: Some(subscribed("starter", start, end)),
                ..tenant(&format!("t{number}-{kind}"))
            };
            store.create_tenant(&acme, &ada()).await.unwrap();
            tenants.push(acme);
        }
    }
    let hand = scratch.by_hand();
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
        pretend(&hand, now);
        let mut statement = hand
            .prepare_cached(
                "SELECT window_start, window_end FROM subscription_periods WHERE tenant_id = ?1",
            )
            .unwrap();
        for acme in &tenants {
            let id = acme.tenant_id.uuid().into_bytes();
            let in_sql: (i64, i64) = statement
                .query_row(params![id], |row| Ok((row.get(0)?, row.get(1)?)))
                .unwrap();
            let period = acme.subscription.as_ref().unwrap().period;
            let window = period.window_at(now);
            let expected = (window.start().micros(), window.end().micros());
            assert_eq!(in_sql, expected, "{:?} at {now}", period.first());
        }
    }
}

#[tokio::test]
async fn the_usage_view_sums_the_current_period_of_each_metered_feature() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    store.create_plan(&plan("starter"), &ada()).await.unwrap();
    let (start, end) = (at("2026-01-31T09:30:00Z"), at("2026-02-28T09:30:00Z"));
    let acme = Tenant {
        subscription: Some(subscribed("starter", start, end)),
        ..tenant("acme")
    };
    let hidden = Tenant {
        subscription: acme.subscription.clone(),
        ..tenant("hidden")
    };
    let events = [
        ("2026-02-28T09:29:59Z", 1), // the last period
        ("2026-02-28T09:30:00Z", 2), // its first, cut hour
        ("2026-03-10T12:00:00Z", 4),
        ("2026-03-31T09:29:59.999999Z", 8), // its last, cut hour
        ("2026-03-31T09:30:00Z", 16),       // the next period
    ]
    .map(|(when, messages)| used(acme.tenant_id, messages, at(when)));
    for tenant in [&acme, &hidden] {
        store.create_tenant(tenant, &ada()).await.unwrap();
    }
    store
        .record(events.as_slice().into(), position(1), Tell::default())
        .await
        .unwrap();
    let hand = scratch.by_hand();
    hand.execute(
        "UPDATE tenants SET deleted_at = 1 WHERE slug = 'hidden'",
        [],
    )
    .unwrap();
    pretend(&hand, at("2026-03-31T09:00:00Z"));
    let mut statement = hand
        .prepare("SELECT * FROM subscription_usage ORDER BY tenant_slug, feature_key")
        .unwrap();
    let rows: Vec<(Vec<String>, i64)> = statement
        .query_map([], |row| {
            let texts = (0..8).map(|column| row.get(column));
            Ok((texts.collect::<Result<_, _>>()?, row.get(8)?))
        })
        .unwrap()
        .map(|row| row.unwrap())
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
    assert_eq!(
        rows,
        [row("messages", "requests", 14), row("seats", "units", 28)]
    );
}

#[tokio::test]
async fn the_reporting_views_take_the_time_from_the_system() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let earliest = Clock::System.now().to_whole_second();
    let now: i64 = store
        .read("test", |tx| {
            Ok(tx.query_row("SELECT at FROM reporting_now", [], |row| row.get(0))?)
        })
        .await
        .unwrap();
    assert!((earliest.micros()..=Clock::System.now().micros()).contains(&now));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn where_all_that_is_due_waits_in_lanes_no_write_begins() {
    let scratch = Scratch::new();
    let (store, now) = (scratch.open(), ada().at);
    lanes_of(3, &store, now).await;
    let other = scratch.by_hand();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(
        store.lease(lease_at(now)).await,
        Ok(Vec::new()),
        "a write would wait for the other and fail"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_look_takes_as_many_steps_whatever_waits_in_lanes() {
    let now = ada().at;
    let mut steps = Vec::new();
    for entries in [2, 200] {
        let scratch = Scratch::new();
        let store = scratch.open();
        lanes_of(entries, &store, now).await;
        let by_hand = scratch.by_hand();
        let mut look = by_hand.prepare(outbox::LOOK).unwrap();
        let asked = params![Kind::StripeMeterEvent.as_str(), now.micros(), 64];
        assert!(look.query(asked).unwrap().next().unwrap().is_none());
        steps.push(look.get_status(StatementStatus::VmStep));
    }
    assert_eq!(steps[0], steps[1]);
}
