use std::{fs, os::unix::fs::PermissionsExt as _};

use rusqlite::Connection;
use serde_json::Value;

use crate::support::{CliRun, FakeOpenAi, Reply, Serve, Tollgate, hard};

async fn examined(serve: &Serve) -> (CliRun, Value) {
    let run = serve.cli(&["doctor", "--output", "json"]).await;
    let body = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:?}"));
    (run, body)
}

/// The finding of a check whose detail contains `text`.
#[track_caller]
fn found<'a>(body: &'a Value, severity: &str, check: &str, text: &str) -> &'a Value {
    let items = body["items"].as_array().unwrap();
    let finding = items.iter().find(|item| {
        item["severity"] == severity
            && item["check"] == check
            && item["detail"].as_str().unwrap().contains(text)
    });
    finding.unwrap_or_else(|| panic!("no {severity} of {check} about {text:?}: {body:#}"))
}

fn database(serve: &Serve) -> Connection {
    Connection::open(serve.data_dir().join("tollgate.db")).unwrap()
}

/// Plan `starter`, tenant `acme` on it.
async fn seeded(serve: &Serve) {
    for words in [
        &[
            "plan", "create", "starter", "--name", "Starter", "--preset", "starter",
        ][..],
        &[
            "tenant", "create", "acme", "--name", "Acme", "--plan", "starter",
        ],
    ] {
        let run = serve.cli(words).await;
        assert_eq!(run.code, 0, "{run:?}");
    }
}

#[tokio::test]
async fn a_healthy_server_has_nothing_broken_beside_it_and_without_it() {
    let mut gate = Tollgate::serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(5))
        .create()
        .await;
    acme.chat("one").await.expect_ok();
    for check in ["while it serves", "when it has stopped"] {
        let (run, body) = examined(&gate.settings()).await;
        assert_eq!(
            (run.code, run.stderr.as_str()),
            (0, ""),
            "{check}: {body:#}"
        );
        assert_eq!(
            (&body["errors"], &body["warnings"]),
            (&0.into(), &0.into()),
            "{check}: {body:#}"
        );
        for ok in [
            "configuration",
            "data dir",
            "clock",
            "upstream",
            "store",
            "rollups",
            "journal",
            "ledger",
            "guardrails",
            "limits",
            "tenants",
        ] {
            found(&body, "ok", ok, "");
        }
        for skipped in ["redis", "stripe"] {
            found(&body, "skipped", skipped, "not in use");
        }
        if check == "while it serves" {
            found(&body, "ok", "ledger", "tenants in memory: 1");
            let table = gate.cli(&["doctor", "--output", "table"]).await;
            assert!(
                table.stdout.ends_with("0 broken, 0 to look at.\n"),
                "{}",
                table.stdout
            );
            assert_eq!(gate.terminate().await, 0);
        }
    }
}

#[tokio::test]
async fn faults_of_the_settings_and_the_data_dir_are_named() {
    let serve = Tollgate::serve()
        .set("TOLLGATE_LISTN", "127.0.0.1:1")
        .set("ENABLE_USAGE_GUARDRAILS", "false");
    seeded(&serve).await;
    fs::set_permissions(serve.data_dir(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(
        serve.data_dir().join("cache.redb.damaged-20260101T000000Z"),
        "x",
    )
    .unwrap();
    let (run, body) = examined(&serve).await;
    assert_eq!(run.code, 0, "warnings only: {body:#}");
    found(&body, "warning", "configuration", "TOLLGATE_LISTN");
    found(&body, "warning", "data dir", "mode 0755");
    found(
        &body,
        "warning",
        "journal",
        "cache.redb.damaged-20260101T000000Z",
    );
    found(&body, "warning", "guardrails", "off");

    let malformed = serve.set("TOLLGATE_LISTEN", "everywhere");
    let (run, body) = examined(&malformed).await;
    assert_eq!(run.code, 1);
    found(
        &body,
        "error",
        "configuration",
        "TOLLGATE_LISTEN is 'everywhere'",
    );
    assert_eq!(
        run.stderr,
        "error: 1 of the checks found something broken; see above\n"
    );
}

#[tokio::test]
async fn limits_that_nothing_can_touch_and_tenants_in_trouble_are_named() {
    let serve = Tollgate::serve();
    seeded(&serve).await;
    let run = |words: &'static str| {
        let serve = serve.clone();
        async move {
            let words: Vec<&str> = words.split_whitespace().collect();
            let run = serve.cli(&words).await;
            assert_eq!(run.code, 0, "{words:?}: {run:?}");
        }
    };
    run("plan create odd --name Odd").await;
    run("plan feature set odd messages --soft 5 --hard 5").await;
    run("plan feature set odd messages --window minute --hard 9").await;
    run("plan feature set odd messages --window day --hard 9").await;
    run("plan feature set odd pages --hard 3").await;
    run("tenant create late --name Late --plan odd").await;
    run("tenant subscribe late --plan odd --status past_due").await;
    run("tenant create bare --name Bare").await;
    run("tenant limit set late messages --hard 4").await;
    run("tenant grant add late --feature seats --quantity 4 --reason sold").await;
    run("key create late --name ending --expires 2100-01-01T00:00:00Z").await;
    let soon = tollgate::clock::Clock::System
        .now()
        .plus(std::time::Duration::from_secs(3600));
    database(&serve)
        .execute("UPDATE keys SET expires_at = ?1", [soon.micros()])
        .unwrap();
    let (_, body) = examined(&serve).await;
    found(&body, "warning", "limits", "soft limit 5 never warns");
    found(
        &body,
        "warning",
        "limits",
        "tenant per minute hard limit 9: the tenant per day limit of 9 is always reached first",
    );
    found(
        &body,
        "warning",
        "limits",
        "plan odd, pages: no chat request counts it",
    );
    found(
        &body,
        "warning",
        "limits",
        "each of its 1 tenants has one of its own",
    );
    found(
        &body,
        "warning",
        "subscriptions",
        "tenant late: subscription past_due",
    );
    found(&body, "error", "tenants", "tenant bare has no subscription");
    found(
        &body,
        "warning",
        "keys",
        "'ending' of tenant late expires at",
    );
    found(
        &body,
        "warning",
        "grants",
        "has no effect: plan odd does not meter seats",
    );
    let items = body["items"].as_array().unwrap();
    let without = items.iter().find(|item| {
        ["warning", "error"]
            .iter()
            .any(|it| item["severity"] == *it)
            && item["remedy"].is_null()
    });
    assert_eq!(without, None, "each has a remedy");

    let gate = serve.start().await;
    gate.logged("limit_untouchable").await;
    gate.logged("soft limit 5 never warns").await;
}

#[tokio::test]
async fn a_changed_database_is_named_as_drift() {
    let gate = Tollgate::serve().start().await;
    let acme = gate.tenant("acme").create().await;
    acme.chat("one").await.expect_ok();
    crate::support::eventually("the store has it", || async {
        (gate.metric("usage_journal_pending", "").await == 0).then_some(())
    })
    .await;
    let changed = database(&gate.settings())
        .execute(
            "UPDATE usage_rollups SET quantity = quantity + 7 WHERE feature_key = 'messages' AND dimension = 'all'",
            [],
        )
        .unwrap();
    assert_eq!(changed, 1);
    let (run, body) = examined(&gate.settings()).await;
    assert_eq!(run.code, 1);
    found(&body, "error", "rollups", "messages");
    // Whether the window's hour is summed from rollups or from events depends on the minute: a new window is cut.
    let items = body["items"].as_array().unwrap();
    assert!(
        items.iter().any(|item| item["check"] == "ledger"),
        "{body:#}"
    );
}

#[tokio::test]
async fn a_store_older_than_its_journal_is_named() {
    let gate = Tollgate::serve().start().await;
    let acme = gate.tenant("acme").create().await;
    acme.chat("one").await.expect_ok();
    crate::support::eventually("the store has it", || async {
        (gate.metric("usage_journal_pending", "").await == 0).then_some(())
    })
    .await;
    database(&gate.settings())
        .execute("DELETE FROM journal_positions", [])
        .unwrap();
    let (run, body) = examined(&gate.settings()).await;
    assert_eq!(run.code, 1);
    found(&body, "error", "journal", "the store has them up to 0 only");
}

#[tokio::test]
async fn damaged_files_are_named_and_left_alone() {
    let serve = Tollgate::serve();
    seeded(&serve).await;
    let journal = serve.data_dir().join("cache.redb");
    let whole = fs::read(&journal).unwrap();
    fs::write(&journal, &whole[..whole.len() / 2]).unwrap();
    let (run, body) = examined(&serve).await;
    assert_eq!(run.code, 1);
    found(&body, "error", "journal", "damaged");
    assert!(journal.exists(), "a look moves nothing");
    fs::write(&journal, &whole).unwrap();

    let store = serve.data_dir().join("tollgate.db");
    let mut bytes = fs::read(&store).unwrap();
    for byte in &mut bytes[5000..9000] {
        *byte = 0xaa;
    }
    fs::write(&store, &bytes).unwrap();
    let (run, body) = examined(&serve).await;
    assert_eq!(run.code, 1);
    found(&body, "error", "store", "");
    assert_eq!(fs::read(&store).unwrap(), bytes, "nor mends anything");
}

#[tokio::test]
async fn a_clock_that_was_set_back_is_named() {
    let serve = Tollgate::serve();
    seeded(&serve).await;
    let run = serve
        .cli(&[
            "usage",
            "record",
            "--tenant",
            "acme",
            "--feature",
            "messages",
            "--quantity",
            "1",
            "--idempotency-key",
            "a",
        ])
        .await;
    assert_eq!(run.code, 0, "{run:?}");
    database(&serve)
        .execute(
            "UPDATE usage_events SET recorded_at = recorded_at + 3600000000",
            [],
        )
        .unwrap();
    let (run, body) = examined(&serve).await;
    assert_eq!(run.code, 1);
    found(&body, "error", "clock", "before the last event");
}

#[tokio::test]
async fn an_upstream_that_cannot_be_used_is_named() {
    let upstream = FakeOpenAi::start().await;
    let serve = Tollgate::serve().upstream(&upstream);
    seeded(&serve).await;
    for (status, severity, text) in [
        (401, "error", "refuses the key"),
        (403, "error", "refuses the key"),
        (500, "warning", "status 500"),
        (404, "ok", "lists no models"),
    ] {
        upstream.next(Reply::Raw(status, Vec::new(), "{}".to_owned()));
        let (run, body) = examined(&serve).await;
        found(&body, severity, "upstream", text);
        assert_eq!(run.code, i32::from(severity == "error"), "{status}");
    }
    let late = vec![("date", "Tue, 01 Jan 2030 00:00:00 GMT")];
    upstream.next(Reply::Raw(200, late, "{}".to_owned()));
    let (_, body) = examined(&serve).await;
    found(
        &body,
        "warning",
        "clock",
        "the upstream says 2030-01-01T00:00:00Z",
    );

    let nobody = serve.set("OPENAI_BASE_URL", "http://127.0.0.1:9/v1");
    let (run, body) = examined(&nobody).await;
    assert_eq!(run.code, 1);
    found(&body, "error", "upstream", "http://127.0.0.1:9/v1");
    let without = nobody.set("OPENAI_BASE_URL", "https://api.openai.com/v1");
    let (_, body) = examined(&without).await;
    found(&body, "error", "upstream", "no upstream is configured");
}
