use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use serde_json::json;

use crate::support::{FakeOpenAi, Reply, Tenant, Tollgate, eventually};

/// Asks until it is stopped, and counts the answers.
async fn load(acme: Tenant, answered: Arc<AtomicI64>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::SeqCst) {
        acme.complete(json!({})).await.expect_ok();
        answered.fetch_add(1, Ordering::SeqCst);
    }
}

/// Keeps the server from writing to its store, until it is dropped; reading goes on.
fn hold_store(data_dir: &Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(data_dir.join("tollgate.db")).unwrap();
    connection
        .busy_timeout(std::time::Duration::from_secs(10))
        .unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    connection
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_holds_what_was_answered_before_and_nothing_that_came_later() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Reply::text("hello", 7, 2));
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate.tenant("acme").create().await;
    let (answered, stop) = (
        Arc::new(AtomicI64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let clients: Vec<_> = (0..8)
        .map(|_| tokio::spawn(load(acme.clone(), Arc::clone(&answered), Arc::clone(&stop))))
        .collect();
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("all.backup");
    let mut backups = Vec::new();
    for round in 1..=3 {
        eventually("requests are answered", || async {
            (answered.load(Ordering::SeqCst) > 40 * round).then_some(())
        })
        .await;
        let before = answered.load(Ordering::SeqCst);
        let file = file.with_extension(format!("{round}.backup"));
        let made = gate.cli_json(&["backup", file.to_str().unwrap()]).await;
        assert_eq!(made["path"], file.to_str().unwrap());
        assert_eq!(made["bytes"], fs::metadata(&file).unwrap().len());
        backups.push((file, before, i64::try_from(upstream.calls()).unwrap()));
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.expect("no request was refused");
    }
    gate.finish().await;

    for (file, before, called) in backups {
        let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let other = Tollgate::serve().upstream(&upstream);
        let run = other.cli(&["restore", file.to_str().unwrap()]).await;
        assert_eq!(run.code, 0, "{run:?}");
        let other = other.start().await;
        let acme = acme.at(&other);
        let counted = acme.total("messages").await;
        assert!(
            before <= counted && counted <= called,
            "{before} were answered before, {called} were asked when it was done, {counted} are in it"
        );
        assert_eq!(acme.used("messages").await, counted, "live totals");
        assert_eq!(acme.total("output_tokens").await, 2 * counted, "each whole");
        acme.complete(json!({})).await.expect_ok();
        assert_eq!(acme.used("messages").await, counted + 1, "it goes on");
        other.finish().await; // events = rollups
    }
    assert_eq!(
        names(elsewhere.path()).len(),
        3,
        "no half-made file is left"
    );
}

#[tokio::test]
async fn events_that_had_not_reached_the_store_are_in_a_backup_once() {
    let gate = Tollgate::serve().start().await;
    let acme = gate.tenant("acme").create().await;
    acme.chat("one").await.expect_ok();
    eventually("the store has it", || async {
        (gate.metric("usage_journal_pending", "").await == 0).then_some(())
    })
    .await;
    let held = hold_store(&gate.settings().data_dir());
    for message in ["two", "three", "four"] {
        acme.chat(message).await;
    }
    let waiting = gate.metric("usage_journal_pending", "").await;
    assert_eq!(waiting, 3, "{}", gate.log());
    let file = gate.settings().data_dir().join("../all.backup");
    let made = gate.cli_json(&["backup", file.to_str().unwrap()]).await;
    assert_eq!(made["journal_events"], 3);
    drop(held);

    let other = Tollgate::serve();
    let run = other
        .cli(&["restore", file.to_str().unwrap(), "--output", "json"])
        .await;
    assert_eq!(run.code, 0, "{run:?}");
    let restored: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(restored["events_added"], 3);
    let other = other.start().await;
    assert_eq!(acme.at(&other).used("messages").await, 4);
    other.finish().await;
    gate.finish().await;
}

#[tokio::test]
async fn a_relative_path_is_where_the_command_was_typed() {
    let gate = Tollgate::serve().start().await;
    let typed = tempfile::tempdir().unwrap();
    let mut command = gate.settings().command(&["backup", "here.backup"]);
    let output = command.current_dir(typed.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(names(typed.path()), ["here.backup"]);
    let again = gate
        .settings()
        .command(&["backup", "here.backup"])
        .current_dir(typed.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8(again.stderr).unwrap();
    assert_eq!(
        (again.status.code(), stderr.as_str()),
        (
            Some(1),
            "error: Replace the file here.backup? There is no terminal to ask on; add --yes to do it\n"
        )
    );
    let output = gate
        .settings()
        .command(&["backup", "here.backup", "--yes"])
        .current_dir(typed.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn where_there_is_no_database_no_backup_is_made_of_an_empty_one() {
    let nowhere = Tollgate::serve();
    let file = nowhere.data_dir().join("../all.backup");
    let run = nowhere.cli(&["backup", file.to_str().unwrap()]).await;
    assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{run:?}");
    assert!(run.stderr.contains("there is no database at"), "{run:?}");
    assert!(run.stderr.contains("--data-dir"), "{run:?}");
    assert!(!file.exists());
    assert!(!nowhere.data_dir().join("tollgate.db").exists());
}

/// Root restores for the user that the server runs as; anybody else can only restore for themselves.
#[tokio::test]
async fn what_is_restored_belongs_to_the_owner_of_the_data_dir() {
    let settings = Tollgate::serve();
    let file = settings.data_dir().join("../all.backup");
    let path = file.to_str().unwrap();
    settings.cli(&["plan", "create", "p", "--name", "P"]).await;
    let run = settings.cli(&["backup", path]).await;
    assert_eq!(run.code, 0, "{run:?}");
    let owner = |path: &Path| {
        let found = fs::metadata(path).unwrap();
        (found.uid(), found.gid())
    };
    if rustix::process::geteuid().is_root() {
        chown(settings.data_dir(), Some(65_534), Some(65_534)).unwrap();
    }
    let run = settings
        .cli(&["restore", path, "--yes", "--output", "json"])
        .await;
    assert_eq!(run.code, 0, "{run:?}");
    let restored: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let aside = Path::new(restored["moved_to"].as_str().unwrap());
    let expected = owner(&settings.data_dir());
    for file in ["tollgate.db", "tollgate.db.lock", "tollgate.lock"] {
        assert_eq!(owner(&settings.data_dir().join(file)), expected, "{file}");
    }
    assert_eq!(owner(aside), expected);
}

#[tokio::test]
async fn a_cut_or_altered_file_is_refused_and_nothing_is_written() {
    let made = Tollgate::serve();
    made.cli(&["plan", "create", "p", "--name", "P"]).await;
    let file = made.data_dir().join("../all.backup");
    let run = made.cli(&["backup", file.to_str().unwrap()]).await;
    assert_eq!(run.code, 0, "{run:?}");
    let whole = fs::read(&file).unwrap();
    let mut faulty: Vec<(String, Vec<u8>)> = [0, 1, 55, 56, whole.len() / 2, whole.len() - 1]
        .map(|length| (format!("cut to {length}"), whole[..length].to_vec()))
        .into();
    for place in [
        0,
        5000,
        whole.len() / 2,
        whole.len() - 100,
        whole.len() - 50,
        whole.len() - 1,
    ] {
        let mut altered = whole.clone();
        altered[place] ^= 1;
        faulty.push((format!("altered at {place}"), altered));
    }
    faulty.push((
        "with more at its end".to_owned(),
        [&whole[..], b"x"].concat(),
    ));
    let other = Tollgate::serve();
    for (what, bytes) in faulty {
        fs::write(&file, bytes).unwrap();
        let run = other
            .cli(&["restore", file.to_str().unwrap(), "--yes"])
            .await;
        assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{what}: {run:?}");
        assert!(run.stderr.contains("is no whole backup"), "{what}: {run:?}");
        assert!(!other.data_dir().exists(), "{what}");
    }
}

#[tokio::test]
async fn restoring_never_takes_away_what_is_there() {
    let gate = Tollgate::serve().start().await;
    gate.cli_json(&["plan", "create", "old", "--name", "Old"])
        .await;
    let file = gate.settings().data_dir().join("../all.backup");
    let path = file.to_str().unwrap();
    gate.cli_json(&["backup", path]).await;
    gate.cli_json(&["plan", "create", "new", "--name", "New"])
        .await;
    let run = gate.cli(&["restore", path, "--yes"]).await;
    assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{run:?}");
    assert!(run.stderr.contains("a server runs on data dir"), "{run:?}");

    let settings = gate.settings();
    gate.finish().await;
    let run = settings.cli(&["restore", path]).await;
    assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{run:?}");
    assert!(
        run.stderr.contains("is not empty") && run.stderr.contains("--yes"),
        "{run:?}"
    );
    let run = settings
        .cli(&["restore", path, "--yes", "--output", "json"])
        .await;
    assert_eq!(run.code, 0, "{run:?}");
    let restored: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let aside = restored["moved_to"].as_str().unwrap();
    assert!(names(Path::new(aside)).contains(&"tollgate.db".to_owned()));
    let plans = settings.cli(&["plan", "list"]).await.stdout;
    assert!(plans.contains("Old") && !plans.contains("New"), "{plans}");

    // The way back: what was moved aside is a data dir.
    let run = settings.cli(&["plan", "list", "--data-dir", aside]).await;
    assert!(run.stdout.contains("New"), "{run:?}");
}
