//! Analytics is told of every event, and waits for nobody's sake.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tollgate::{
    app::{App, Ground},
    clock::{Clock, ManualClock},
    config::{Config, sources::Sources},
    domain::{feature::FeatureKey, quantity::Quantity, tenant::TenantRef},
    services::{ManualRecord, UsageOperations as _},
    store::{
        outbox::{Kind, OutboxFilter, Status},
        sqlite::{Moment, SqliteStore},
    },
};

use crate::support::{Receiver, Says, Tollgate, eventually, hard};

/// The events of all files, by their ids.
fn events_in(directory: &Path) -> BTreeMap<String, Value> {
    let mut events = BTreeMap::new();
    let Ok(files) = std::fs::read_dir(directory) else {
        return events;
    };
    for file in files {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|it| it == "ndjson") {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.ends_with('\n'), "{} is there whole", path.display());
            for line in text.lines() {
                let event: Value = serde_json::from_str(line).unwrap();
                events.insert(event["id"].as_str().unwrap().to_owned(), event);
            }
        }
    }
    events
}

fn sum_of<'a>(events: impl IntoIterator<Item = &'a Value>, feature: &str) -> i64 {
    let quantity = |event: &Value| event["data"]["quantities"][feature].as_i64().unwrap_or(0);
    events.into_iter().map(quantity).sum()
}

#[tokio::test]
async fn files_hold_every_event_through_kills_and_add_up_to_the_totals() {
    let serve = Tollgate::serve().set("USAGE_ANALYTICS_SINK", "file:analytics/usage");
    let directory = serve.data_dir().parent().unwrap().join("analytics/usage");
    let mut gate = serve.start().await;
    let mut acme = gate
        .tenant("acme")
        .limit("messages", hard(1_000))
        .create()
        .await;
    for _ in 0..3 {
        futures_util::future::join_all((0..20).map(|_| acme.chat("hi"))).await;
        gate = gate.restart().await; // kill -9
        acme = acme.at(&gate);
    }
    let correct = [
        "usage",
        "correct",
        "--tenant",
        "acme",
        "--feature",
        "messages",
        "--quantity",
        "-5",
    ];
    gate.cli_json(&[&correct[..], &["--reason", "they were tests"]].concat())
        .await;
    let totals = ["messages", "input_tokens", "output_tokens"];
    let mut expected = Vec::new();
    for feature in totals {
        expected.push(acme.total(feature).await);
    }
    assert_eq!(gate.terminate().await, 0);
    let sums = || {
        let events = events_in(&directory);
        totals
            .map(|feature| sum_of(events.values(), feature))
            .to_vec()
    };
    // What a kill left leased comes back when its lease ends.
    let gate = gate.restart().await;
    eventually("the files hold all", || async {
        (sums() == expected).then_some(())
    })
    .await;
    let events = events_in(&directory);
    let corrected: Vec<&Value> = events
        .values()
        .filter(|it| it["type"] == "tollgate.usage.corrected")
        .collect();
    assert_eq!(corrected.len(), 1);
    assert_eq!(corrected[0]["data"]["reason"], "they were tests");
    let recorded = events
        .values()
        .find(|it| it["type"] == "tollgate.usage.recorded")
        .unwrap();
    assert_eq!(recorded["specversion"], "1.0");
    assert_eq!(recorded["source"], "/tollgate");
    assert_eq!(recorded["id"], recorded["data"]["event_id"]);
    assert_eq!(recorded["subject"], recorded["data"]["tenant_id"]);
    assert_eq!(recorded["time"], recorded["data"]["admitted_at"]);
    assert_eq!(recorded["data"]["tenant_slug"], "acme");
    gate.finish().await;
}

#[tokio::test]
async fn a_dead_collector_holds_up_no_answer_and_gets_all_once_it_is_back() {
    let collector = Receiver::start().await;
    collector.always(Says::Hangs);
    let gate = Tollgate::serve()
        .set("USAGE_ANALYTICS_SINK", &collector.url())
        .set("USAGE_WEBHOOK_SECRET", "EXAMPLE-of-a-secret")
        .start()
        .await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(1_000))
        .create()
        .await;
    acme.chat("hi").await.expect_ok();
    eventually("the collector is tried", || async {
        collector.posts().first().map(|_| ())
    })
    .await;
    collector.always(Says::Status(500));
    for _ in 0..3 {
        let answers = futures_util::future::join_all((0..10).map(|_| acme.chat("hi"))).await;
        assert!(answers.iter().all(|answer| answer.status == 200));
        gate.is_drained().await;
    }
    assert_eq!(acme.total("messages").await, 31);
    eventually("batches wait", || async {
        let pending = r#"kind="analytics.batch",status="pending""#;
        (gate.metric("usage_outbox_entries", pending).await > 0).then_some(())
    })
    .await;
    collector.always(Says::Status(202));
    let sent = || {
        let batches = collector.taken().into_iter().map(|post| post.json());
        let events = batches.flat_map(|batch| batch.as_array().unwrap().clone());
        events
            .map(|event| (event["id"].as_str().unwrap().to_owned(), event))
            .collect::<BTreeMap<_, _>>()
    };
    eventually("all events have arrived", || async {
        (sent().len() == 31).then_some(())
    })
    .await;
    assert_eq!(sum_of(sent().values(), "messages"), 31);
    let post = collector.taken().remove(0);
    assert_eq!(
        post.header("content-type"),
        "application/cloudevents-batch+json"
    );
    assert_eq!(post.header("content-encoding"), "gzip");
    assert!(post.header("webhook-signature").starts_with("v1,"));
    gate.finish().await;
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_flush_writes_the_same_file_again() {
    let directory = tempfile::tempdir().unwrap();
    let sink = directory.path().join("out");
    let sources = Sources::none()
        .with_flag("TOLLGATE_DATA_DIR", directory.path().display().to_string())
        .with_flag("TOLLGATE_PROVIDER", "simulated".to_owned())
        .with_flag("USAGE_ANALYTICS_SINK", format!("file:{}", sink.display()));
    let config = Config::load(&sources).unwrap().config;
    let clock = ManualClock::at("2026-11-24T14:40:00Z".parse().unwrap());
    let dies = Arc::new(AtomicBool::new(false));
    let dying = Arc::clone(&dies);
    let store = SqliteStore::open_with(
        &directory.path().join("tollgate.db"),
        Arc::new(move |operation, moment| {
            let dies = dying.load(Ordering::SeqCst)
                && operation == "outbox.finish"
                && moment == Moment::Before;
            if dies {
                Err("the power is gone".to_owned())
            } else {
                Ok(())
            }
        }),
    )
    .unwrap();
    let journal = tollgate::journal::Journal::open(
        &directory.path().join("cache.redb"),
        tollgate::journal::Durability::Full,
        Clock::Manual(Arc::clone(&clock)),
    )
    .unwrap();
    let provider = tollgate::provider::from_settings(
        tollgate::provider::Settings::Simulated {
            timeout: Duration::from_secs(9),
        },
        Clock::Manual(Arc::clone(&clock)),
    )
    .unwrap();
    let ground = Ground {
        store: Arc::new(store),
        journal,
        provider,
    };
    let app = App::open_on(ground, config, Clock::Manual(Arc::clone(&clock)))
        .await
        .unwrap();
    let by = tollgate::domain::administrator::Actor {
        name: "test".to_owned(),
        address: None,
        at: clock.now(),
    };
    let tenant = tollgate::services::tenants::NewTenant {
        slug: "acme".parse().unwrap(),
        name: "Acme".parse().unwrap(),
        plan_code: None,
    };
    tollgate::services::tenants::Tenants::new(app.store.clone())
        .create(tenant, &by)
        .await
        .unwrap();
    let record = async |key: &str| {
        let record = ManualRecord {
            tenant: "acme".parse::<TenantRef>().unwrap(),
            feature: FeatureKey::Messages,
            quantity: Quantity::new(1),
            idempotency_key: key.to_owned(),
            at: None,
        };
        app.record(&record, &by).await.unwrap();
        app.recorder.flush().await.unwrap();
    };
    record("one").await;
    record("two").await;
    let sender = Arc::clone(&app.senders[0]);
    dies.store(true, Ordering::SeqCst);
    assert!(app.outbox.step(sender.as_ref()).await.is_err());
    let files = || std::fs::read_dir(&sink).unwrap().count();
    assert_eq!(
        (files(), events_in(&sink).len()),
        (1, 2),
        "it was written before the end"
    );
    dies.store(false, Ordering::SeqCst);
    record("three").await;
    clock.advance(Duration::from_secs(31));
    app.outbox.step(sender.as_ref()).await.unwrap();
    assert_eq!(
        (files(), events_in(&sink).len()),
        (1, 3),
        "the same file, and no other"
    );
    let filter = OutboxFilter {
        kind: Some(Kind::AnalyticsBatch),
        ..OutboxFilter::default()
    };
    let entries = app.store.list_outbox(&filter, None, 9).await.unwrap();
    assert!(
        entries.iter().all(|it| it.status == Status::Sent),
        "{entries:?}"
    );
    assert_eq!(
        entries.iter().filter_map(|it| it.value).sum::<Quantity>(),
        Quantity::new(3)
    );
    app.close().await;
}
