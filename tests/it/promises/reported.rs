//! Usage that is reported after the fact, corrected, or whose limits are reset: each counts once, at once, and stays
//! so after a restart.

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Answer, Tenant, Tollgate, hard};

const ROUTE: &str = "/api/v1/usage/events";
const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

fn event(id: &str, data: Value) -> Value {
    json!({ "specversion": "1.0", "id": id, "source": "/batch/7", "type": "com.example.usage", "data": data })
}

fn messages(id: &str, count: i64) -> Value {
    event(id, json!({ "quantities": { "messages": count } }))
}

async fn send(acme: &Tenant, content_type: &str, body: &Value) -> Answer {
    let request = acme
        .request(Method::POST, ROUTE)
        .header("content-type", content_type);
    Answer::read(
        request
            .body(body.to_string())
            .send()
            .await
            .expect("an answer"),
    )
    .await
}

fn statuses(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{}", answer.text);
    let results = answer.json()["results"].as_array().unwrap().clone();
    results
        .iter()
        .map(|it| it["status"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_many_senders_repeat_count_once_each() {
    let gate = Tollgate::serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(10))
        .create()
        .await;
    let batch: Vec<Value> = (0..20)
        .map(|index| messages(&format!("e{index}"), 1))
        .collect();
    let batch = json!(batch);
    let mut all = Vec::new();
    for _ in 0..3 {
        all.extend(join_all((0..8).map(|_| send(&acme, BATCH, &batch))).await);
    }
    let accepted = all.iter().flat_map(statuses).filter(|it| it == "accepted");
    assert_eq!(accepted.count(), 20);
    assert_eq!(
        (acme.used("messages").await, acme.total("messages").await),
        (20, 20)
    );
    assert_eq!(
        gate.metric("usage_overshoot_total", "after_the_fact").await,
        10
    );

    let gate = gate.restart().await;
    let acme = acme.at(&gate);
    assert!(
        statuses(&send(&acme, BATCH, &batch).await)
            .iter()
            .all(|it| it == "duplicate")
    );
    assert_eq!(
        (acme.used("messages").await, acme.total("messages").await),
        (20, 20)
    );
    gate.finish().await;
}

#[tokio::test]
async fn an_event_may_come_structured_binary_or_in_a_batch() {
    let gate = Tollgate::serve().start().await;
    let acme = gate.tenant("acme").create().await;
    let one = send(
        &acme,
        "application/cloudevents+json; charset=utf-8",
        &messages("a", 2),
    )
    .await;
    assert_eq!(
        one.json(),
        json!({"results": [{"id": "a", "status": "accepted"}]})
    );
    let binary = |id: &'static str| {
        acme.request(Method::POST, ROUTE)
            .header("content-type", "application/json")
            .header("ce-specversion", "1.0")
            .header("ce-id", id)
            .header("ce-source", "/batch/7")
            .header("ce-type", "com.example.usage")
            .body(r#"{"quantities":{"messages":3},"user":"ann","model":"gpt-5.1"}"#)
            .send()
    };
    let two = Answer::read(binary("caf%C3%A9").await.unwrap()).await;
    assert_eq!(
        two.json(),
        json!({"results": [{"id": "café", "status": "accepted"}]})
    );
    // The same event, whichever way it comes.
    let again = Answer::read(binary("a").await.unwrap()).await;
    assert_eq!(statuses(&again), ["duplicate"]);
    let batch = json!([messages("b", 1), messages("b", 1), messages("a", 9)]);
    assert_eq!(
        statuses(&send(&acme, BATCH, &batch).await),
        ["accepted", "duplicate", "duplicate"]
    );
    assert_eq!(
        statuses(&send(&acme, BATCH, &json!([])).await),
        Vec::<String>::new()
    );
    assert_eq!(acme.used("messages").await, 6);
    let by = "feature_key=messages&period_start=2020-01-01T00:00:00Z&period_end=2100-01-01T00:00:00Z&by=user";
    let by_user = acme.get(&format!("/api/v1/usage/totals?{by}")).await.json();
    let ann = by_user["totals"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["user"] == "ann")
        .unwrap();
    assert_eq!(ann["quantity"], 3);
    gate.finish().await;
}

#[tokio::test]
async fn one_bad_event_rejects_itself_alone_and_says_why() {
    let gate = Tollgate::serve().start().await;
    let acme = gate.tenant("acme").create().await;
    let with = |name: &str, value: Value| {
        let mut event = messages(&format!("bad-{name}"), 1);
        event[name] = value;
        event
    };
    let bad = [
        (
            with("specversion", json!("0.3")),
            "invalid_request",
            "specversion",
        ),
        (with("source", json!("")), "invalid_request", "source"),
        (with("type", Value::Null), "invalid_request", "type"),
        (with("id", json!(7)), "invalid_request", "id"),
        (
            with("subject", json!("other")),
            "invalid_request",
            "subject",
        ),
        (with("time", json!("yesterday")), "invalid_request", "time"),
        (
            with("time", json!("2001-01-01T00:00:00Z")),
            "invalid_request",
            "time",
        ),
        (
            with("time", json!("2099-01-01T00:00:00Z")),
            "invalid_request",
            "time",
        ),
        (
            with("datacontenttype", json!("text/xml")),
            "invalid_request",
            "datacontenttype",
        ),
        (with("data", Value::Null), "invalid_request", "data"),
        (
            with("data", json!({"quantities": {"messages": -1}})),
            "invalid_request",
            "data.quantities.messages",
        ),
        (
            with("data", json!({"quantities": {"messages": 1}, "extra": 1})),
            "invalid_request",
            "data.extra",
        ),
        (
            with("data", json!({"quantities": {"nobodys": 1}})),
            "unknown_feature",
            "data.quantities.nobodys",
        ),
        (json!(7), "invalid_request", "event"),
    ];
    let mut batch: Vec<Value> = bad.iter().map(|(event, ..)| event.clone()).collect();
    batch.push(with("subject", json!("acme")));
    batch.push(messages("good", 1));
    let answer = send(&acme, BATCH, &json!(batch)).await.expect_ok();
    let results = answer.json()["results"].as_array().unwrap().clone();
    for ((event, code, param), result) in bad.iter().zip(&results) {
        assert_eq!(result["status"], "rejected", "{event}");
        assert_eq!(
            (&result["error"]["code"], &result["error"]["param"]),
            (&json!(code), &json!(param)),
            "{event} {result}"
        );
    }
    assert_eq!(&statuses(&answer)[bad.len()..], ["accepted", "accepted"]);
    assert_eq!(acme.used("messages").await, 2);
    for (content_type, body) in [
        ("application/json", messages("x", 1)),
        (STRUCTURED, json!([])),
        (BATCH, messages("x", 1)),
        (BATCH, json!(vec![messages("x", 1); 1001])),
    ] {
        send(&acme, content_type, &body)
            .await
            .expect(400, "invalid_request");
    }
    gate.finish().await;
}

#[tokio::test]
async fn a_correction_counts_at_once_and_once_in_the_window_of_what_it_corrects() {
    let gate = Tollgate::serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(3))
        .create()
        .await;
    for _ in 0..3 {
        acme.chat("hi").await.expect_ok();
    }
    acme.chat("hi").await.expect(429, "usage_limit_exceeded");
    let correct = |quantity: &'static str, key: &'static str| {
        let command = [
            "usage",
            "correct",
            "--tenant",
            "acme",
            "--feature",
            "messages",
            "--quantity",
            quantity,
            "--reason",
            "outage",
            "--idempotency-key",
            key,
        ];
        let gate = &gate;
        async move { gate.cli_json(&command).await }
    };
    assert_eq!(correct("-2", "one").await["duplicate"], false);
    assert_eq!(correct("-2", "one").await["duplicate"], true);
    assert_eq!(
        (acme.used("messages").await, acme.total("messages").await),
        (1, 1)
    );
    acme.chat("hi").await.expect_ok();
    assert_eq!(correct("-9", "two").await["duplicate"], false);
    assert_eq!(
        acme.used("messages").await,
        0,
        "never below zero where people look"
    );
    let wrong = gate
        .cli(&[
            "usage",
            "correct",
            "--tenant",
            "acme",
            "--feature",
            "messages",
            "--quantity",
            "0",
            "--reason",
            "x",
        ])
        .await;
    assert_eq!(wrong.code, 1, "{wrong:?}");
    let gate = gate.restart().await;
    assert_eq!(acme.at(&gate).used("messages").await, 0);
    gate.finish().await;
}

#[tokio::test]
async fn what_is_reported_after_a_reset_is_held_against_what_is_left_since() {
    let gate = Tollgate::serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(10))
        .create()
        .await;
    let record = async |quantity: &str| {
        let key = format!("of-{quantity}");
        let start = [
            "usage",
            "record",
            "--tenant",
            "acme",
            "--feature",
            "messages",
        ];
        let end = ["--quantity", quantity, "--idempotency-key", &key];
        gate.cli_json(&[&start[..], &end[..]].concat()).await;
    };
    record("9").await;
    let reset = ["tenant", "reset", "acme", "--feature", "messages"];
    gate.cli_json(&[&reset[..], &["--reason", "outage"]].concat())
        .await;
    for (quantity, used, past) in [("2", 2, 0), ("20", 22, 12)] {
        record(quantity).await;
        assert_eq!(acme.used("messages").await, used);
        let overshoot = gate.metric("usage_overshoot_total", "after_the_fact").await;
        assert_eq!(overshoot, past, "after {quantity}");
    }
    gate.finish().await;
}

#[tokio::test]
async fn a_reset_has_limits_count_anew_and_changes_no_usage() {
    let gate = Tollgate::serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(2))
        .limit("messages", hard(2).scope("user").window("day"))
        .create()
        .await;
    for _ in 0..2 {
        acme.chat("hi").await.expect_ok();
    }
    acme.chat("hi").await.expect(429, "usage_limit_exceeded");
    let reset = gate
        .cli_json(&[
            "tenant",
            "reset",
            "acme",
            "--feature",
            "messages",
            "--reason",
            "outage",
        ])
        .await;
    assert_eq!(reset["feature_key"], "messages");
    assert_eq!(
        (acme.used("messages").await, acme.total("messages").await),
        (0, 2)
    );
    acme.chat("hi").await.expect_ok();

    let gate = gate.restart().await;
    let acme = acme.at(&gate);
    assert_eq!(
        (acme.used("messages").await, acme.total("messages").await),
        (1, 3)
    );
    acme.chat("hi").await.expect_ok();
    acme.chat("hi").await.expect(429, "usage_limit_exceeded");
    let unknown = gate
        .cli(&[
            "tenant",
            "reset",
            "acme",
            "--feature",
            "nobodys",
            "--reason",
            "x",
        ])
        .await;
    assert_eq!(unknown.code, 1, "{unknown:?}");
    gate.finish().await;
}
