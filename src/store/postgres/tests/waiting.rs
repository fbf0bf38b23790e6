//! What is waited for, and what is not; what is done again.

use tokio_postgres::SimpleQueryMessage;

use super::*;
use crate::store::{
    outbox::Replaying,
    postgres::{outbox, stripe},
};

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
    let horizon = store.read("test", |tx| async move {
        crate::store::postgres::sums::horizon(&tx).await
    });
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
        .record([event].into(), position(1, 1), Tell::default())
        .await
        .unwrap();
    let horizon = store.write("test", |tx| async move {
        rows::run(
            &tx,
            "UPDATE usage_horizon SET pruned_until = pruned_until",
            params![],
        )
        .await?;
        crate::store::postgres::sums::horizon(&tx).await
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
            .record(batch.as_slice().into(), position(1, 1), Tell::default())
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
        .record([event].into(), position(1, 1), Tell::default())
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

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_replicas_do_one_after_another_waits_for_whoever_does_it() {
    let database = Database::migrated();
    let store = open(&database.url()).await;
    let other = by_hand(&database.url()).await;
    let event = used(TenantId::new(new_id()), 1, ada().at);
    let tell = Tell {
        meters: vec![counted(&event)],
        ..Tell::default()
    };
    let now = ada().at.plus(Duration::from_secs(60));
    store
        .record([event].into(), position(1, 1), tell)
        .await
        .unwrap();
    let hand_on = async {
        let done = store.hand_on(Which::Due, now, now, 10).await;
        assert_eq!(done.unwrap().entries, 1);
    };
    let lease = async {
        let asked = Lease {
            kind: Kind::StripeMeterEvent,
            now,
            until: now.plus(Duration::from_secs(30)),
            limit: 10,
        };
        assert_eq!(store.lease(asked).await.unwrap().len(), 1);
    };
    let replay = async {
        let lease = Duration::from_secs(30);
        let found = store.replay("nothing", lease, &ada()).await;
        assert_eq!(found, Ok(Replaying::NotFound));
    };
    waits_for(&other, stripe::LOCK, hand_on).await;
    waits_for(&other, outbox::LOCK, lease).await;
    waits_for(&other, outbox::LOCK, replay).await;
}

/// Fails unless `work` waits as long as `other` holds the advisory lock `key`, and is done then.
async fn waits_for(other: &Client, key: i64, work: impl Future<Output = ()>) {
    other
        .execute("SELECT pg_advisory_lock($1)", &[&key])
        .await
        .unwrap();
    let is_waited_for = async {
        let waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        while other.query(waiting, &[]).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let mut work = std::pin::pin!(work);
    tokio::select! {
        () = &mut work => panic!("it did not wait for the lock {key:#x}"),
        () = is_waited_for => {}
    }
    other
        .execute("SELECT pg_advisory_unlock($1)", &[&key])
        .await
        .unwrap();
    work.await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_look_goes_from_lane_to_lane_whatever_waits_in_them() {
    const LANES: u64 = 20;
    let database = Database::migrated();
    database.run_sql(&format!(
        "INSERT INTO outbox (identifier, kind, lane, status, next_attempt_at, created_at)
         SELECT n, 'notice', n % {LANES}, 'pending', CASE WHEN n < {LANES} THEN 2 ELSE 0 END, n
         FROM generate_series(0, {LANES} * 500 - 1) AS n"
    ));
    database.run_sql("ANALYZE outbox");
    let look = format!("{} {}", outbox::HEADS, outbox::LOOK);
    let look = look.replace("$1", "'notice'").replace("$2", "1");
    let client = by_hand(&database.url()).await;
    let explain = format!("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {look}");
    let told = client.simple_query(&explain).await.unwrap();
    let lines = told.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    let explained: serde_json::Value = serde_json::from_str(&lines.collect::<String>()).unwrap();
    let visited = rows_visited(&explained[0]["Plan"]);
    assert!(visited < 10 * LANES, "{visited} rows: {explained:#}");
}

/// How many rows the parts of a plan gave or looked at in vain.
fn rows_visited(plan: &serde_json::Value) -> u64 {
    let of = |name: &str| plan[name].as_f64().unwrap_or_default();
    let each = of("Actual Rows") + of("Rows Removed by Filter") + of("Rows Removed by Join Filter");
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count, which newer servers give with a fraction"
    )]
    let own = (each * of("Actual Loops")).ceil() as u64;
    let parts = plan["Plans"].as_array().into_iter().flatten();
    own + parts.map(rows_visited).sum::<u64>()
}
