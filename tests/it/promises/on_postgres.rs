//! The promises once more with the store in Postgres, in a short form; and what several servers on one database
//! promise.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::json;
use tollgate::domain::{feature::FeatureKey, tenant::TenantRef, time::Timestamp, window::Window};

use crate::support::{
    Cluster, Database, FakeOpenAi, Frames, Tenant, Tollgate, Wire, eventually, hard, postgres,
};

fn new_database() -> Arc<Database> {
    Arc::new(Database::migrated())
}

#[tokio::test]
async fn many_at_once_get_exactly_what_the_limit_leaves() {
    let upstream = FakeOpenAi::start().await;
    let serve = Tollgate::serve().upstream(&upstream);
    let gate = serve.on_postgres(&new_database()).start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(25))
        .create()
        .await;
    let answers = join_all((0..200).map(|_| acme.complete(json!({})))).await;
    let mut answered = answers.iter().filter(|answer| answer.status == 200).count();
    while acme.complete(json!({})).await.status == 200 {
        answered += 1;
    }
    assert_eq!((answered, upstream.calls()), (25, 25));
    assert_eq!(
        (acme.used("messages").await, acme.reserved("messages").await),
        (25, 0)
    );
    assert_eq!(acme.total("messages").await, 25);
    gate.finish().await;
}

#[tokio::test]
async fn every_answered_request_is_counted_once_though_the_server_is_killed() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Frames::words(2));
    let serve = Tollgate::serve().upstream(&upstream);
    let mut gate = serve.on_postgres(&new_database()).start().await;
    let acme = gate.tenant("acme").create().await;
    let answered = AtomicI64::new(0);
    for _ in 0..5 {
        let (here, enough) = (acme.at(&gate), AtomicI64::new(0));
        let loads = (0..8).map(|_| async {
            let body =
                json!({ "model": "gpt-5.1", "messages": [{ "role": "user", "content": "hi" }] });
            while let Ok(answer) = here.try_post("/v1/chat/completions", &body).await {
                assert_eq!(answer.status, 200, "{}", answer.text);
                answered.fetch_add(1, Ordering::SeqCst);
                enough.fetch_add(1, Ordering::SeqCst);
            }
        });
        let killing = async {
            eventually("there is load", || async {
                (enough.load(Ordering::SeqCst) > 60).then_some(())
            })
            .await;
            gate.kill9();
        };
        tokio::join!(join_all(loads), killing);
        gate = gate.restart().await;
    }
    gate.is_drained().await;
    let acme = acme.at(&gate);
    let (answered, counted) = (answered.into_inner(), acme.total("messages").await);
    // What was written down when the kill came may have had no answer yet.
    assert!(
        answered <= counted && counted <= answered + 5 * 8,
        "{answered} answered, {counted} counted"
    );
    assert_eq!(acme.used("messages").await, counted);
    gate.finish().await;
}

#[tokio::test]
async fn a_clean_stop_leaves_everything_in_the_store() {
    let mut gate = Tollgate::serve().on_postgres(&new_database()).start().await;
    let acme = gate.tenant("acme").create().await;
    for _ in 0..10 {
        acme.chat("hi").await.expect_ok();
    }
    assert_eq!(gate.terminate().await, 0, "{}", gate.log());
    let gate = gate.restart().await;
    let acme = acme.at(&gate);
    let counted = (acme.used("messages").await, acme.total("messages").await);
    assert_eq!(counted, (10, 10));
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_changed_on_one_server_holds_on_the_other_within_a_second() {
    let database = new_database();
    let serve = || Tollgate::serve().on_postgres(&database);
    let (here, there) = (serve().start().await, serve().start().await);
    let acme = here.tenant("acme").create().await;
    let elsewhere = acme.at(&there);
    elsewhere.chat("hi").await.expect_ok();
    let mut slowest = Duration::ZERO;
    for round in 1..=100 {
        if round % 10 == 0 {
            // Whatever listens is cut off; the change is seen all the same.
            database.run_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND query LIKE 'LISTEN%' OR query = ''",
            );
        }
        let limit = (1_000 + round).to_string();
        here.cli_json(&[
            "plan", "feature", "set", &acme.plan, "messages", "--hard", &limit,
        ])
        .await;
        let changed = Instant::now();
        eventually("the other server has the new limit", || async {
            let item = elsewhere.usage("messages").await;
            (item["hard_limit"] == 1_000 + round).then_some(())
        })
        .await;
        slowest = slowest.max(changed.elapsed());
    }
    eprintln!("a change held on the other server after {slowest:.1?} at most");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    here.finish().await;
    there.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_write_to_one_database_lose_nothing_and_double_nothing() {
    let database = new_database();
    let upstream = FakeOpenAi::start().await;
    let serve = || Tollgate::serve().upstream(&upstream).on_postgres(&database);
    let gates = [
        serve().start().await,
        serve().start().await,
        serve().start().await,
    ];
    let acme = gates[0].tenant("acme").create().await;
    let tenants: Vec<Tenant> = gates.iter().map(|gate| acme.at(gate)).collect();
    join_all(tenants.iter().map(|tenant| async {
        for _ in 0..10 {
            let answers = join_all((0..10).map(|_| tenant.complete(json!({})))).await;
            for answer in answers {
                answer.expect_ok();
            }
        }
    }))
    .await;
    for gate in &gates {
        gate.is_drained().await;
    }
    for tenant in &tenants {
        assert_eq!(tenant.total("messages").await, 300);
    }
    let recorded = r#"transaction="usage.record""#;
    let transactions = "usage_store_transaction_seconds_count";
    for gate in &gates {
        assert!(gate.metric(transactions, recorded).await > 0);
        assert_eq!(gate.metric("usage_store_failures_total", "").await, 0);
    }
    for gate in gates {
        gate.finish().await;
    }
}

/// Asks until it is told to stop; how long the slowest answer took.
async fn ask_on(acme: &Tenant, stop: &AtomicBool, answered: &AtomicI64) -> Duration {
    let mut slowest = Duration::ZERO;
    while !stop.load(Ordering::SeqCst) {
        let begun = Instant::now();
        acme.complete(json!({})).await.expect_ok();
        slowest = slowest.max(begun.elapsed());
        answered.fetch_add(1, Ordering::SeqCst);
    }
    slowest
}

/// A server whose store is in Postgres, under load from one tenant.
struct Scene {
    gate: Tollgate,
    acme: Tenant,
    answered: AtomicI64,
    _upstream: FakeOpenAi,
}

impl Scene {
    async fn set(database_url: &str) -> Self {
        let upstream = FakeOpenAi::start().await;
        let serve = Tollgate::serve()
            .upstream(&upstream)
            .set("USAGE_GUARDRAIL_CACHE_TTL_SECONDS", "1")
            .set("DATABASE_URL", database_url);
        let gate = serve.start().await;
        let acme = gate.tenant("acme").create().await;
        acme.complete(json!({})).await.expect_ok();
        Self {
            gate,
            acme,
            answered: AtomicI64::new(1),
            _upstream: upstream,
        }
    }

    async fn store_is_down(&self) {
        eventually("readiness names the store", || async {
            let ready = self.gate.get("/readyz").await;
            (ready.json()["parts"]["store"]["status"] == "down").then_some(())
        })
        .await;
    }

    /// Chat goes on while `fault` lasts, nobody waits long, and all usage is there in the end.
    async fn bears(&self, name: &str, fault: impl Future<Output = ()>) {
        let stop = AtomicBool::new(false);
        let faulty = async {
            let before = self.answered.load(Ordering::SeqCst);
            fault.await;
            let meanwhile = self.answered.load(Ordering::SeqCst) - before;
            assert!(meanwhile > 10, "{name}: chat goes on: {meanwhile}");
            self.gate.is_ready().await;
            stop.store(true, Ordering::SeqCst);
        };
        let load = ask_on(&self.acme, &stop, &self.answered);
        let (slowest, ()) = tokio::join!(load, faulty);
        eprintln!("{name}: the slowest answer took {slowest:.1?}");
        assert!(slowest < Duration::from_secs(2), "{name}: {slowest:?}"); // 250 ms, and a busy machine
        self.gate.is_drained().await;
        let answered = self.answered.load(Ordering::SeqCst);
        assert_eq!(self.acme.total("messages").await, answered, "{name}");
        assert!(!self.gate.log().contains("panicked"), "{}", self.gate.log());
    }
}

/// Longer than what is cached is trusted.
const A_WHILE: Duration = Duration::from_millis(1_500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_postgres_stopped_or_standing_still_chat_goes_on_and_usage_arrives_later() {
    type Act = fn(&Cluster);
    let cluster = Cluster::of_its_own();
    let scene = Scene::set(&cluster.url()).await;
    let faults: [(&str, Act, Act); 3] = [
        ("paused", Cluster::pause, Cluster::resume),
        ("stopped", Cluster::stop, Cluster::start),
        ("killed", Cluster::kill, Cluster::start),
    ];
    for (name, break_it, mend_it) in faults {
        let fault = async {
            break_it(&cluster);
            scene.store_is_down().await;
            tokio::time::sleep(A_WHILE).await;
            assert!(scene.gate.metric("usage_journal_pending", "").await > 0);
            mend_it(&cluster);
        };
        scene.bears(name, fault).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_slow_dead_or_broken_wire_chat_goes_on_and_usage_arrives() {
    let database = Database::migrated();
    let port = postgres::server().port;
    let wire = Wire::to(([127, 0, 0, 1], port).into());
    let (direct, over) = (format!(":{port}/"), format!(":{}/", wire.address.port()));
    let scene = Scene::set(&database.url().replace(&direct, &over)).await;
    let slow = async {
        wire.delay(Duration::from_millis(300));
        scene.store_is_down().await;
        tokio::time::sleep(A_WHILE).await;
        wire.delay(Duration::ZERO);
    };
    scene.bears("slow", slow).await;
    let dead = async {
        wire.swallow(true);
        scene.store_is_down().await;
        tokio::time::sleep(A_WHILE).await;
        wire.swallow(false);
        wire.cut();
    };
    scene.bears("dead", dead).await;
    let broken = async {
        for _ in 0..30 {
            wire.cut();
            tokio::time::sleep(A_WHILE / 30).await;
        }
    };
    scene.bears("broken again and again", broken).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_do_not_queue_for_a_database_that_stands_still() {
    let upstream = FakeOpenAi::start().await;
    let cluster = Cluster::in_directory(tempfile::tempdir().unwrap(), &[]);
    let serve = Tollgate::serve()
        .upstream(&upstream)
        .set("DATABASE_URL", &cluster.url());
    let gate = serve.start().await;
    let each = hard(5).scope("user").window("day");
    let acme = gate.tenant("acme").limit("messages", each).create().await;
    acme.with_user("known")
        .complete(json!({}))
        .await
        .expect_ok();
    cluster.pause();
    // Its event waits in the journal, for which the counter of a new user has to wait.
    acme.with_user("known")
        .complete(json!({}))
        .await
        .expect_ok();
    let new = (0..6).map(|number| {
        let who = acme.with_user(&format!("new-{number}"));
        async move { who.complete(json!({})).await }
    });
    // One after another each would wait for as long as the drain is patient, which is seconds.
    let answers = tokio::time::timeout(Duration::from_secs(4), join_all(new)).await;
    for answer in answers.expect("none waits for the drain") {
        answer.expect_ok();
    }
    cluster.resume();
    gate.is_drained().await;
    assert_eq!(acme.total("messages").await, 8);
    gate.finish().await;
}

/// As of one that other servers keep busy just then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_slow_for_a_while_keeps_no_server_from_starting() {
    let database = Database::migrated();
    let port = postgres::server().port;
    let wire = Wire::to(([127, 0, 0, 1], port).into());
    let (direct, over) = (format!(":{port}/"), format!(":{}/", wire.address.port()));
    wire.delay(Duration::from_millis(200));
    let start = Tollgate::serve().set("DATABASE_URL", &database.url().replace(&direct, &over));
    let quick_again = async {
        // Over the first it looks at the schema.
        eventually("it reads what it needs", || async {
            (wire.made() > 1).then_some(())
        })
        .await;
        tokio::time::sleep(A_WHILE).await;
        wire.delay(Duration::ZERO);
    };
    let (gate, ()) = tokio::join!(start.start(), quick_again);
    assert!(gate.log().contains("postgres_gone"), "it was too slow");
    gate.is_ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_no_connection_left_chat_goes_on_and_usage_arrives() {
    let few = &[("max_connections", "30")];
    let cluster = Cluster::in_directory(tempfile::tempdir().unwrap(), few);
    let url = cluster.url();
    let scene = Scene::set(&url).await;
    let exhausted = async {
        let connect = || tokio_postgres::connect(&url, tokio_postgres::NoTls);
        let (guardian, connection) = connect().await.unwrap();
        tokio::spawn(connection);
        let mut taken = Vec::new();
        // What the server holds is cut off, and taken before it has it again.
        loop {
            let theirs = "FROM pg_stat_activity WHERE application_name = 'tollgate'";
            let cut = format!("SELECT pg_terminate_backend(pid) {theirs}");
            guardian.simple_query(&cut).await.unwrap();
            while let Ok((client, connection)) = connect().await {
                tokio::spawn(connection);
                taken.push(client);
            }
            let count = format!("SELECT count(*) {theirs}");
            let left = guardian.query_one(&count, &[]).await.unwrap();
            if left.get::<_, i64>(0) == 0 {
                break;
            }
        }
        scene.store_is_down().await;
        tokio::time::sleep(A_WHILE).await;
        drop(taken);
    };
    scene.bears("no connection left", exhausted).await;
}

#[tokio::test]
async fn closed_refuses_what_can_not_be_decided_while_postgres_is_away() {
    let cluster = Cluster::of_its_own();
    let serve = Tollgate::serve()
        .set("USAGE_GUARDRAIL_FAIL_MODE", "closed")
        .set("DATABASE_URL", &cluster.url());
    let gate = serve.start().await;
    let limit = hard(3).scope("user");
    let acme = gate.tenant("acme").limit("messages", limit).create().await;
    acme.with_user("ann").chat("hi").await.expect_ok();
    gate.is_drained().await;
    cluster.stop();
    let bob = acme.with_user("bob");
    bob.complete(json!({}))
        .await
        .expect(503, "usage_store_unavailable");
    bob.chat("hi").await.expect(503, "usage_store_unavailable");
    let mut unknown = acme.key.clone();
    let last = unknown.pop();
    unknown.push(if last == Some('A') { 'B' } else { 'A' });
    let stranger = acme.with_key(&unknown).chat("hi").await;
    stranger.expect(503, "usage_store_unavailable");
    cluster.start();
    gate.is_ready().await;
    bob.chat("hi").await.expect_ok();
}

#[tokio::test]
async fn commands_know_postgres_and_never_show_its_password() {
    let database = Database::empty();
    let url = database.guarded_url("127.0.0.1", "sslmode=require");
    let serve = Tollgate::serve().set("DATABASE_URL", &url);
    let migrated = serve.cli(&["migrate", "--output", "json"]).await;
    assert_eq!(migrated.code, 0, "{migrated:?}");
    let looked = serve.cli(&["doctor", "--output", "json"]).await;
    assert!(looked.stdout.contains("database test_"), "{looked:?}");
    let gate = serve.clone().start().await;
    let made = gate.cli(&["backup", "x.backup"]).await;
    let restored = gate.cli(&["restore", "x.backup", "--yes"]).await;
    for refused in [&made, &restored] {
        assert_eq!((refused.code, refused.stdout.as_str()), (1, ""));
        assert!(refused.stderr.contains("pg_dump"), "{refused:?}");
        assert!(refused.stderr.contains("pg_restore"), "{refused:?}");
    }
    let config = gate.cli(&["config"]).await;
    let doctor = gate.cli(&["doctor"]).await;
    let test = ["setup", "--sections", "storage", "--non-interactive"];
    let setup = gate
        .cli(&[&test[..], &["--dry-run", "--output", "json"]].concat())
        .await;
    let gone = serve
        .clone()
        .set("DATABASE_URL", &url.replace("127.0.0.1", "127.0.0.2"));
    let unreached = gone
        .set("TOLLGATE_DATA_DIR", "elsewhere")
        .cli(&["plan", "list"])
        .await;
    for run in [
        migrated, looked, made, restored, config, doctor, setup, unreached,
    ] {
        let said = format!("{}{}", run.stdout, run.stderr);
        assert!(!said.contains(postgres::PASSWORD), "{said}");
    }
    assert!(!gate.log().contains(postgres::PASSWORD));
}

#[tokio::test]
async fn a_deployment_moves_to_postgres_with_its_history_and_what_waits_in_its_journal() {
    let mut gate = Tollgate::serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(12))
        .create()
        .await;
    for _ in 0..10 {
        acme.chat("hi").await.expect_ok();
    }
    gate.is_drained().await;
    let serve = gate.settings();
    let from = format!("sqlite:{}", serve.data_dir().join("tollgate.db").display());
    let elsewhere = Database::empty();
    let rehearsal = elsewhere.url();
    let rehearsed = ["migrate", "--from", &from, "--to", &rehearsal];
    let rehearsed = gate.cli_json(&rehearsed).await;
    assert_eq!(rehearsed["is_served"], true);
    gate.kill9();
    let database = Arc::new(Database::empty());
    let url = database.url();
    let words = ["migrate", "--from", &from, "--to", &url, "--output", "json"];
    let moved = serve.cli(&words).await;
    assert_eq!(moved.code, 0, "{moved:?}");
    let counts: serde_json::Value = serde_json::from_str(&moved.stdout).unwrap();
    let events = counts["items"].as_array().unwrap().iter();
    let events = events.clone().find(|item| item["table"] == "usage_events");
    assert_eq!(events.unwrap()["rows"], 10);
    let again = serve.cli(&words).await;
    assert_eq!((again.code, again.stdout.as_str()), (1, ""));
    assert!(again.stderr.contains("is not empty"), "{again:?}");

    let gate = serve.on_postgres(&database).start().await;
    let acme = acme.at(&gate);
    acme.chat("hi").await.expect_ok();
    acme.chat("hi").await.expect_ok();
    acme.chat("hi").await.expect(429, "usage_limit_exceeded");
    assert_eq!(acme.total("messages").await, 12);
    let store = gate.settings().open_store().await;
    let same: TenantRef = "acme".parse().unwrap();
    let tenant = store.find_tenant(&same).await.unwrap().unwrap().tenant_id;
    let always = Window::new(Timestamp::EPOCH, Timestamp::NEVER).unwrap();
    let totals = store.totals(tenant, &[FeatureKey::Messages], always, None);
    assert_eq!(totals.await.unwrap().totals[0].quantity.get(), 12);
    drop(store);
    gate.finish().await;
}
