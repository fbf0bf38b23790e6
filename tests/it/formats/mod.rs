//! Files of every format that was ever written, kept beside this file, are still read.
//!
//! `make formats` writes them anew; that is for a new format only, whose file gets a name of its own.

mod artifact;

use std::{fs, path::PathBuf};

use refinery::Target;
use rusqlite::Connection;
use serde_json::Value;
use sha2::Digest as _;

use crate::support::{Serve, Tenant, Tollgate};

mod embedded {
    refinery::embed_migrations!("migrations/sqlite");
}

/// Of the key in the stored files; it opens nothing else.
const KEY: &str = "tg_0000000000000000000000000000000000000stored";

fn stored(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/formats")
        .join(name)
}

fn is_written_anew() -> bool {
    std::env::var_os("UPDATE_FORMATS").is_some()
}

async fn expect_ok(gate: &Serve, words: &[&str]) -> Value {
    let run = gate.cli(&[words, &["--output", "json"]].concat()).await;
    assert_eq!(run.code, 0, "{words:?}: {run:?}");
    serde_json::from_str(&run.stdout).unwrap()
}

const TOTALS: [&str; 7] = [
    "usage",
    "totals",
    "--tenant=acme",
    "--feature=messages",
    "--feature=pages",
    "--period-start=2026-11-01T00:00:00Z",
    "--period-end=2026-12-01T00:00:00Z",
];

/// One event in the database, one in the journal.
async fn write_backup() {
    let gate = Tollgate::serve();
    let plan = [
        "plan", "create", "starter", "--name", "Starter", "--preset", "starter",
    ];
    expect_ok(&gate, &plan).await;
    expect_ok(
        &gate,
        &["plan", "feature", "set", "starter", "pages", "--hard", "9"],
    )
    .await;
    expect_ok(
        &gate,
        &[
            "tenant", "create", "acme", "--name", "Acme", "--plan", "starter",
        ],
    )
    .await;
    let record = |feature: &'static str, quantity: &'static str| {
        vec![
            "usage",
            "record",
            "--tenant",
            "acme",
            "--feature",
            feature,
            "--quantity",
            quantity,
            "--idempotency-key",
            feature,
            "--at",
            "2026-11-24T12:30:00Z",
        ]
    };
    expect_ok(&gate, &record("messages", "3")).await;
    let gate = gate.start().await;
    let held = Connection::open(gate.settings().data_dir().join("tollgate.db")).unwrap();
    held.execute_batch("BEGIN IMMEDIATE").unwrap();
    gate.cli_json(&record("pages", "4")).await;
    let path = stored("backup-1.backup");
    let made = gate
        .cli_json(&["backup", path.to_str().unwrap(), "--yes"])
        .await;
    assert_eq!(made["journal_events"], 1);
    drop(held);
    gate.finish().await;
}

#[tokio::test]
async fn a_backup_of_format_1_is_restored() {
    if is_written_anew() {
        write_backup().await;
    }
    let gate = Tollgate::serve();
    let path = stored("backup-1.backup");
    let restored = expect_ok(&gate, &["restore", path.to_str().unwrap()]).await;
    assert_eq!(restored["events_added"], 1);
    let totals = expect_ok(&gate, &TOTALS).await;
    let quantities: Vec<_> = totals["totals"]
        .as_array()
        .unwrap()
        .iter()
        .map(|total| total["quantity"].as_i64())
        .collect();
    assert_eq!(quantities, [Some(3), Some(4)], "{totals}");
    gate.start().await.finish().await;
}

/// A database as the first migration alone leaves it, with a plan, a tenant and a key.
fn write_first_schema(path: &PathBuf) {
    let _ = fs::remove_file(path);
    let mut connection = Connection::open(path).unwrap();
    // Small pages: many tables, hardly a row.
    connection.execute_batch("PRAGMA page_size = 512").unwrap();
    embedded::migrations::runner()
        .set_target(Target::Version(2026112401))
        .run(&mut connection)
        .unwrap();
    let hash = sha2::Sha256::digest(KEY.as_bytes());
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    connection
        .execute_batch(&format!(
            "INSERT INTO plans VALUES ('starter', 'Starter', '[]', 1);
             INSERT INTO plan_features (plan_code, feature_key, display_name, unit, is_metered)
                 VALUES ('starter', 'messages', 'Messages', 'requests', 1);
             INSERT INTO plan_feature_limits VALUES ('starter', 'messages', 'tenant', 'period', NULL, 2, 0);
             INSERT INTO tenants VALUES (x'0190b6f2c1d47a3e8f5b6c7d8e9f0a1b', 'acme', 'Acme', 1700000000000000, NULL);
             INSERT INTO subscriptions VALUES (x'0190b6f2c1d47a3e8f5b6c7d8e9f0a1b', 'starter', 'active',
                 1700000000000000, 1700000000000000, 1702592000000000, 1, NULL);
             INSERT INTO keys (key_id, tenant_id, name, secret_hash, created_at)
                 VALUES (x'0190b6f2c1d47a3e8f5b6c7d8e9f0a1c', x'0190b6f2c1d47a3e8f5b6c7d8e9f0a1b', 'stored',
                     x'{hash}', 1700000000000000);
             VACUUM;"
        ))
        .unwrap();
}

#[tokio::test]
async fn a_database_of_the_first_schema_is_migrated_after_a_backup_and_serves() {
    let path = stored("schema-2026112401.db");
    if is_written_anew() {
        write_first_schema(&path);
    }
    let gate = Tollgate::serve();
    fs::create_dir(gate.data_dir()).unwrap();
    fs::copy(&path, gate.data_dir().join("tollgate.db")).unwrap();
    let migrated = expect_ok(&gate, &["migrate"]).await;
    assert_eq!(migrated["from"], 2026112401);
    let settings = gate.clone(); // keeps the directory
    let backup = migrated["backup"].as_str().unwrap().to_owned();
    let again = expect_ok(&gate, &["migrate"]).await;
    assert_eq!(
        (&again["from"], &again["backup"]),
        (&migrated["to"], &Value::Null)
    );
    let gate = gate.start().await;
    serves(&gate).await;
    assert_eq!(
        gate.cli_json(&["migrate"]).await,
        again,
        "beside a server too"
    );
    gate.finish().await;

    // The backup is of the old schema; restored here, it is brought up to date as well.
    let other = Tollgate::serve();
    expect_ok(&other, &["restore", &backup]).await;
    serves(&other.start().await).await;
    drop(settings);
}

#[tokio::test]
async fn serve_migrates_a_database_of_the_first_schema_itself() {
    let gate = Tollgate::serve();
    fs::create_dir(gate.data_dir()).unwrap();
    let path = stored("schema-2026112401.db");
    fs::copy(path, gate.data_dir().join("tollgate.db")).unwrap();
    serves(&gate.start().await).await;
}

async fn serves(gate: &Tollgate) {
    let acme = Tenant::known(gate, KEY);
    acme.chat("one").await.expect_ok();
    acme.chat("two").await.expect_ok();
    acme.chat("three").await.expect(429, "usage_limit_exceeded");
}

#[tokio::test]
async fn a_newer_schema_is_refused_by_every_command_that_needs_it() {
    let gate = Tollgate::serve();
    expect_ok(&gate, &["plan", "list"]).await;
    let connection = Connection::open(gate.data_dir().join("tollgate.db")).unwrap();
    connection
        .execute_batch("INSERT INTO refinery_schema_history VALUES (2099010101, 'later', '2099-01-01T00:00:00Z', '1')")
        .unwrap();
    drop(connection);
    for words in [&["serve"][..], &["plan", "list"], &["migrate"], &["doctor"]] {
        let run = gate.cli(words).await;
        assert_eq!(run.code, 1, "{words:?}: {run:?}");
        let said = format!("{}{}", run.stdout, run.stderr);
        assert!(
            said.contains("version 2099010101, newer than"),
            "{words:?}: {run:?}"
        );
    }
    let run = gate
        .cli(&[
            "migrate",
            "--from",
            "sqlite:a",
            "--to",
            "mysql://u:hunter22@b",
        ])
        .await;
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    assert!(run.stderr.contains("--to is not"), "{run:?}");
    assert!(!run.stderr.contains("hunter22"), "{run:?}");
}
