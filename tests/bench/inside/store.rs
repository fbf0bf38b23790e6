//! Row 9, how fast usage leaves the journal for SQLite and for Postgres, and row 15, what a sum over a year costs.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rusqlite::{Connection, params};
use tollgate::{
    clock::Clock,
    domain::{feature::FeatureKey, time::Timestamp, window::Window},
    journal::{Durability, Journal},
    services::recorder::{KeepTotals, Recorder, Totals},
    store::{
        SharedStore,
        postgres::{PostgresStore, PostgresUrl},
        sqlite::SqliteStore,
        usage::{JournalPosition, Seq, Tell, UsageStore as _},
    },
    telemetry::metrics::Metrics,
};
use uuid::Uuid;

use super::{
    fixtures,
    postgres::Cluster,
    report::{median, micros, quantile, rate, row},
};

/// Events that wait when the drain begins.
const WAITING: u64 = 1_000_000;
const TENANTS: u64 = 1000;
const HOURS_OF_A_YEAR: i64 = 365 * 24;

pub(crate) fn drain() {
    let directory = fixtures::directory();
    let store = SqliteStore::open(&directory.path().join("tollgate.db")).expect("it is new");
    drain_into(
        "SQLite",
        Arc::new(store),
        directory.path(),
        (100_000.0, Duration::from_secs(15)),
    );
    let bare = bare_inserts(directory.path());
    println!("row 9 | bare inserts into SQLite | {bare:.0}/s | – | –");
}

/// A server on the same machine and disk, which waits for that disk as in production.
pub(crate) fn drain_postgres() {
    let directory = fixtures::directory();
    let waits = &[("fsync", "on"), ("full_page_writes", "on")];
    let cluster = Cluster::in_directory(fixtures::directory(), waits);
    let url: PostgresUrl = cluster.url().parse().expect("an address");
    let runtime = fixtures::runtime();
    let store = runtime
        .block_on(PostgresStore::open(&url))
        .expect("it is new");
    drain_into(
        "Postgres",
        Arc::new(store),
        directory.path(),
        (40_000.0, Duration::from_secs(30)),
    );
}

/// Has a million events wait, and moves them; the goals are events a second, and how long it may take.
fn drain_into(name: &str, store: SharedStore, directory: &Path, (goal, at_most): (f64, Duration)) {
    let runtime = fixtures::runtime();
    let path = directory.join("cache.redb");
    let journal = Journal::open(&path, Durability::Full, Clock::System);
    let journal = journal.expect("a new directory can be opened");
    let now = Clock::System.now();
    let recorder = runtime.block_on(Recorder::open(
        journal.clone(),
        store,
        Arc::new(Metrics::new("redb")),
        Totals::Here(KeepTotals::InJournal),
        Clock::System,
    ));
    let recorder = recorder.expect("the journal is new");
    runtime.block_on(fixtures::append(&journal, 0, WAITING, TENANTS, now));

    let begun = Instant::now();
    let (took, mut beside) = runtime.block_on(async {
        let draining = async {
            // Never idle: where a commit takes a millisecond, more has come by then.
            while journal.drained().0 < WAITING {
                recorder.step().await.expect("the disk takes it");
            }
            begun.elapsed()
        };
        append_beside(&journal, now, draining).await
    });
    let per_second = rate(journal.drained().0, took);
    row(
        9,
        &format!("drain into {name}"),
        &format!("{per_second:.0} events/s"),
        &format!(">= {goal:.0}/s"),
        per_second >= goal,
    );
    row(
        9,
        &format!("drain of a million waiting events into {name}"),
        &format!("{:.1} s", took.as_secs_f64()),
        &format!("<= {} s", at_most.as_secs()),
        took <= at_most,
    );
    let mut alone = runtime.block_on(async {
        let a_while = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            Duration::ZERO
        };
        append_beside(&journal, now, a_while).await.1
    });
    let (beside, alone) = (quantile(&mut beside, 0.99), quantile(&mut alone, 0.99));
    row(
        9,
        &format!("journal beside the drain into {name}, p99 of an event"),
        &format!(
            "{:.1} ms (without a drain {:.1} ms)",
            micros(beside) / 1e3,
            micros(alone) / 1e3
        ),
        "<= 5 ms more",
        beside <= alone + Duration::from_millis(5),
    );
    runtime.block_on(journal.close());
}

/// Appends one event every millisecond while `work` lasts; what it gave, and how long each took.
async fn append_beside(
    journal: &Journal,
    now: Timestamp,
    work: impl Future<Output = Duration>,
) -> (Duration, Vec<Duration>) {
    let mut took = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let mut number = WAITING * 2;
    let appending = async {
        loop {
            tick.tick().await;
            number += 1;
            let event = fixtures::event(number, number % TENANTS, now);
            let begun = Instant::now();
            journal.append(event).await.expect("the disk takes it");
            took.push(begun.elapsed());
        }
    };
    let done = tokio::select! {
        done = work => done,
        () = appending => unreachable!("it never ends"),
    };
    (done, took)
}

/// Rows a second into one table of the same columns, without rollups, ids or a log of what was done.
fn bare_inserts(directory: &Path) -> f64 {
    const ROWS: u64 = 200_000;
    let mut connection = Connection::open(directory.join("bare.db")).expect("it is new");
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             CREATE TABLE rows (event_id BLOB PRIMARY KEY, tenant_id BLOB, at INTEGER, request_id TEXT, key_id BLOB,
                                model TEXT, messages INTEGER, input INTEGER, output INTEGER) STRICT, WITHOUT ROWID;",
        )
        .expect("SQLite takes it");
    let begun = Instant::now();
    for batch in 0..ROWS / 20_000 {
        let transaction = connection.transaction().expect("nobody else writes");
        let mut insert = transaction
            .prepare_cached("INSERT INTO rows VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")
            .expect("the table is there");
        for number in batch * 20_000..(batch + 1) * 20_000 {
            let event = fixtures::event(number, number % TENANTS, Timestamp::EPOCH);
            insert
                .execute(params![
                    event.event_id.uuid().into_bytes(),
                    event.tenant_id.uuid().into_bytes(),
                    event.admitted_at.micros(),
                    event.request_id,
                    event.key_id.map(|key| key.uuid().into_bytes()),
                    event.model,
                    1,
                    812,
                    164,
                ])
                .expect("the disk takes it");
        }
        drop(insert);
        transaction.commit().expect("the disk takes it");
    }
    rate(ROWS, begun.elapsed())
}

pub(crate) fn totals() {
    let few = time_of_year(1);
    let many = time_of_year(24);
    row(
        15,
        "totals of one feature over a year, 24 events a day",
        &format!("{:.2} ms", micros(few) / 1e3),
        "<= 1 ms",
        few <= Duration::from_millis(1),
    );
    row(
        15,
        "totals of one feature over a year, 576 events a day",
        &format!("{:.2} ms", micros(many) / 1e3),
        "<= 1 ms",
        many <= Duration::from_millis(1),
    );
}

/// The median time of a sum over a year that has so many events in each hour.
fn time_of_year(events_an_hour: i64) -> Duration {
    let directory = fixtures::directory();
    let runtime = fixtures::runtime();
    let store = SqliteStore::open(&directory.path().join("tollgate.db")).expect("it is new");
    let start: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
    let end = start.plus(Duration::from_secs(365 * 86_400));
    let events: Vec<_> = (0..HOURS_OF_A_YEAR * events_an_hour)
        .map(|number| {
            let second = number * 3600 / events_an_hour;
            let at = Timestamp::from_seconds(start.seconds() + second);
            let number = u64::try_from(number).expect("it counts up");
            fixtures::event(number, 1, at)
        })
        .collect();
    let window = Window::new(start, end).expect("it ends after it starts");
    runtime.block_on(async {
        for batch in events.chunks(20_000) {
            let position = JournalPosition {
                journal: Uuid::nil(),
                seq: Seq(0),
            };
            store
                .record(batch.into(), position, Tell::default())
                .await
                .expect("the disk takes it");
        }
        let mut samples = Vec::new();
        for _ in 0..300 {
            let begun = Instant::now();
            let totals = store
                .totals(
                    fixtures::tenant(1),
                    &[FeatureKey::InputTokens],
                    window,
                    None,
                )
                .await
                .expect("the store is here");
            samples.push(begun.elapsed());
            let sum = HOURS_OF_A_YEAR * events_an_hour * 812;
            assert_eq!(totals.totals[0].quantity.get(), sum, "it sums all of them");
        }
        median(&mut samples)
    })
}
