use serde_json::{Value, json};

use crate::support::{CliRun, FakeOpenAi, Frames, Reply, Serve, Tollgate, hard};

async fn tortured(serve: &Serve, target: &str, key: &str, more: &[&str]) -> (CliRun, Value) {
    let words = [
        &[
            "torture", "--target", target, "--key", key, "--output", "json",
        ],
        more,
    ]
    .concat();
    let run = serve.cli(&words).await;
    let body = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:?}"));
    (run, body)
}

#[tokio::test]
async fn a_tollgate_holds_its_limit_and_its_counts() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Frames::words(3));
    let gate = Tollgate::serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(70))
        .create()
        .await;
    let target = format!("{}/v1", gate.base);
    let (run, body) = tortured(&gate.settings(), &target, &acme.key, &["--requests", "90"]).await;
    assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{body:#}");
    assert_eq!(body["is_tollgate"], true);
    for nothing in ["overshoot", "lost", "double", "reserved"] {
        assert_eq!(body[nothing], 0, "{nothing}: {body:#}");
    }
    let at_limit = &body["phases"][2];
    assert!(at_limit["refused"].as_u64() > Some(0), "{body:#}");
    assert_eq!(acme.used("messages").await, 70, "all that the limit allows");
    gate.finish().await;
}

#[tokio::test]
async fn a_gateway_without_a_limit_is_caught_and_what_cannot_be_seen_is_said() {
    let serve = Tollgate::serve();
    let upstream = FakeOpenAi::start().await;
    let asked = ["--requests", "20", "--limit", "15"];
    let (run, body) = tortured(&serve, &upstream.base_url(), "sk-fake", &asked).await;
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("requests beyond the limit"), "{run:?}");
    assert_eq!(
        (&body["is_tollgate"], &body["lost"]),
        (&json!(false), &Value::Null)
    );
    let notes = body["notes"].to_string();
    assert!(
        notes.contains("can't be seen") && notes.contains("was not tried"),
        "{notes}"
    );
}

#[tokio::test]
async fn usage_that_is_answered_and_not_counted_is_lost() {
    let serve = Tollgate::serve();
    let upstream = FakeOpenAi::start().await;
    let lying = json!({
        "tenant_slug": "acme",
        "features": [{ "feature_key": "messages", "scope": "tenant", "window": "period", "used": 4, "reserved": 0,
                       "hard_limit": 100, "window_start": "2026-11-01T00:00:00Z" }],
    });
    upstream.always(Reply::Raw(200, Vec::new(), lying.to_string()));
    let (run, body) = tortured(&serve, &upstream.base_url(), "k", &["--requests", "10"]).await;
    assert_eq!(run.code, 1, "{body:#}");
    assert_eq!(
        body["lost"], 13,
        "ten in parallel, one three times: {body:#}"
    );
}

#[tokio::test]
async fn a_gateway_that_cannot_be_asked_is_named() {
    let gate = Tollgate::serve().start().await;
    for (target, key, said) in [
        (gate.base.as_str(), "tg_wrong", "does not accept the key"),
        ("http://127.0.0.1:9", "k", "can't be reached"),
        ("127.0.0.1:9", "k", "write an http:// or https:// address"),
    ] {
        let run = gate
            .cli(&["torture", "--target", target, "--key", key])
            .await;
        assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{run:?}");
        assert!(run.stderr.contains(said), "{run:?}");
    }
}
