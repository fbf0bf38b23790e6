//! The partitions of events.

use super::*;

/// An id of the time `at`, as `new_id` makes them.
pub(super) fn id_of(at: &str, number: u128) -> EventId {
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
        .record(events.as_slice().into(), position(1, 4), Tell::default())
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
        .record(late.as_slice().into(), position(2, 1), Tell::default())
        .await
        .unwrap();
    assert_eq!(recorded.inserted, 1);
    // The same id again is known, whatever month it is recorded in.
    let again = UsageEvent {
        admitted_at: "2026-03-05T00:00:00Z".parse().unwrap(),
        ..late[0].clone()
    };
    let recorded = store
        .record([again].into(), position(1, 5), Tell::default())
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
        .record([event].into(), position(1, 1), Tell::default())
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
