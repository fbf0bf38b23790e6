//! Connecting, and bringing the schema up to date.

use super::*;

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
        loop {
            let encrypted = store.read("test", |tx| async move {
                let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
                rows::find(&tx, "pg_stat_ssl", sql, params![], |cells| {
                    cells.get::<bool>("ssl")
                })
                .await
            });
            match encrypted.await {
                // A busy machine has not come to an answer in the time that a request waits for one.
                Err(StoreError::Unavailable(_)) => tokio::task::yield_now().await,
                encrypted => return Ok::<bool, String>(encrypted.unwrap().unwrap()),
            }
        }
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
