//! What is in flight, what was recorded, and why a request was refused can be seen, and adds up.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Answer, FakeOpenAi, Frames, Reply, Tenant, Tollgate, eventually, hard};

const TOKEN: &str = "test-only-0123456789abcdef0123456789abcdef";

async fn admin(gate: &Tollgate, method: Method, path: &str, body: Option<Value>) -> Answer {
    let mut request = gate
        .http
        .request(method, format!("{}/api/v1/admin{path}", gate.base))
        .bearer_auth(TOKEN);
    if let Some(body) = body {
        request = request.body(body.to_string());
    }
    Answer::read(request.send().await.expect("an answer")).await
}

async fn reserve(acme: &Tenant, messages: i64) -> String {
    let body = json!({ "quantities": { "messages": messages }, "ttl_seconds": 600 });
    let made = acme.post("/api/v1/usage/reservations", &body).await;
    made.json()["reservation_id"].as_str().unwrap().to_owned()
}

fn line<'a>(statement: &'a Value, feature: &str) -> &'a Value {
    let lines = statement["features"].as_array().unwrap();
    lines
        .iter()
        .find(|line| line["feature_key"] == feature)
        .unwrap()
}

fn number(line: &Value, name: &str) -> i64 {
    line[name]
        .as_i64()
        .unwrap_or_else(|| panic!("{name}: {line}"))
}

#[tokio::test]
async fn what_is_in_flight_is_listed_and_can_be_released() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Reply::text("hello", 7, 3));
    let gate = Tollgate::serve()
        .upstream(&upstream)
        .set("TOLLGATE_ADMIN_TOKEN", TOKEN)
        .start()
        .await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(2))
        .create()
        .await;
    let kept = reserve(&acme, 1).await;
    upstream.hold();
    let (answer, ()) = tokio::join!(acme.chat("hi"), async {
        eventually("the model is asked", || async {
            (upstream.calls() == 1).then_some(())
        })
        .await;
        let listed = admin(&gate, Method::GET, "/reservations", None)
            .await
            .expect_ok()
            .json();
        let items = listed["items"].as_array().unwrap();
        assert_eq!(items.len(), 2, "{listed}");
        assert!(
            items
                .iter()
                .all(|it| it["tenant_slug"] == "acme" && it["quantities"]["messages"] == 1)
        );
        let reservation = items
            .iter()
            .find(|it| it["reservation_id"] == *kept)
            .unwrap();
        assert!(reservation["expires_at"].is_string());
        let chat = items
            .iter()
            .find(|it| it["reservation_id"] != *kept)
            .unwrap();
        assert!(chat["expires_at"].is_null());
        let old = admin(&gate, Method::GET, "/reservations?older_than=3600", None).await;
        assert_eq!(old.json()["items"], json!([]));

        let id = chat["reservation_id"].as_str().unwrap();
        let released = admin(&gate, Method::DELETE, &format!("/reservations/{id}"), None).await;
        assert_eq!(released.status, 204, "{}", released.text);
        gate.cli_json(&["reservation", "release", &kept, "--yes"])
            .await;
        assert_eq!(acme.reserved("messages").await, 0);
        let again = admin(
            &gate,
            Method::DELETE,
            &format!("/reservations/{kept}"),
            None,
        )
        .await;
        again.expect(404, "not_found");
        upstream.release();
    });
    answer.expect_ok();
    assert_eq!(
        acme.used("messages").await,
        1,
        "its usage counts all the same"
    );
    let audit = admin(
        &gate,
        Method::GET,
        "/audit?action=reservation.release",
        None,
    )
    .await;
    let entries = audit.expect_ok().json();
    let entries = entries["items"].as_array().unwrap().clone();
    assert_eq!(entries.len(), 2, "{entries:?}");
    for entry in entries {
        let before = &entry["before"];
        assert_eq!(before["tenant_slug"], "acme", "{entry}");
        assert_eq!(before["quantities"]["messages"], 1, "{entry}");
    }
    assert_eq!(
        gate.cli_json(&["reservation", "list"]).await["items"],
        json!([])
    );
    gate.finish().await;
}

#[tokio::test]
async fn a_statement_adds_up_over_grants_corrections_a_plan_change_and_a_reset() {
    let upstream = FakeOpenAi::start().await;
    upstream.always(Frames::words(2));
    let gate = Tollgate::serve()
        .upstream(&upstream)
        .set("TOLLGATE_ADMIN_TOKEN", TOKEN)
        .start()
        .await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(3))
        .create()
        .await;
    let larger = gate
        .tenant("larger")
        .limit("messages", hard(50))
        .create()
        .await;
    for _ in 0..3 {
        acme.chat("hi").await.expect_ok();
    }
    gate.cli_json(&[
        "tenant",
        "grant",
        "add",
        "acme",
        "--feature",
        "messages",
        "--quantity",
        "2",
        "--reason",
        "goodwill",
    ])
    .await;
    acme.chat("hi").await.expect_ok();
    let corrected = json!({"feature_key": "messages", "quantity": -2, "reason": "outage", "idempotency_key": "c"});
    for status in [201, 200] {
        let made = admin(
            &gate,
            Method::POST,
            "/tenants/acme/corrections",
            Some(corrected.clone()),
        )
        .await;
        assert_eq!(made.status, status, "{}", made.text);
    }
    let reset = json!({"feature_key": "messages", "reason": "outage"});
    admin(&gate, Method::POST, "/tenants/acme/reset", Some(reset))
        .await
        .expect_ok();
    gate.cli_json(&["tenant", "subscribe", "acme", "--plan", &larger.plan])
        .await;
    for _ in 0..6 {
        acme.chat("hi").await.expect_ok();
    }
    let held = reserve(&acme, 4).await;

    let statement = gate
        .cli_json(&["usage", "statement", "--tenant", "acme"])
        .await;
    let messages = line(&statement, "messages");
    for (name, expected) in [
        ("opening", 0),
        ("granted", 2),
        ("settled", 10),
        ("corrected", -2),
        ("reserved", 4),
        ("closing", 8),
        ("sent_to_stripe", 0),
        ("difference", 8),
    ] {
        assert_eq!(number(messages, name), expected, "{name}: {messages}");
    }
    assert_eq!(messages["resets"].as_array().unwrap().len(), 1);
    let events = admin(&gate, Method::GET, "/tenants/acme/events?limit=500", None)
        .await
        .expect_ok()
        .json();
    let events = events["items"].as_array().unwrap().clone();
    for line in statement["features"].as_array().unwrap() {
        assert_eq!(
            number(line, "closing"),
            number(line, "opening") + number(line, "settled") + number(line, "corrected")
        );
        let key = line["feature_key"].as_str().unwrap();
        let sum: i64 = events
            .iter()
            .filter_map(|event| event["quantities"][key].as_i64())
            .sum();
        assert_eq!(number(line, "closing"), sum, "{key}");
    }
    // Cut anywhere, the parts add up too.
    let cut = events[4]["admitted_at"].as_str().unwrap();
    let path = format!("/tenants/acme/statement?feature_key=messages&period_start={cut}");
    let later = admin(&gate, Method::GET, &path, None)
        .await
        .expect_ok()
        .json();
    let later = line(&later, "messages").clone();
    assert_eq!(number(&later, "closing"), 8);
    assert!(number(&later, "opening") > 0);
    let csv = gate
        .cli(&[
            "usage",
            "statement",
            "--tenant",
            "acme",
            "--feature",
            "messages",
            "--output",
            "csv",
        ])
        .await;
    let csv: Vec<&str> = csv.stdout.lines().collect();
    assert_eq!(
        csv[0],
        "feature_key,unit,opening,granted,settled,corrected,reserved,closing,sent_to_stripe,difference"
    );
    assert_eq!(csv[1], "messages,requests,0,2,10,-2,4,8,0,8");
    gate.cli_json(&["reservation", "release", &held, "--yes"])
        .await;
    gate.finish().await;
}

#[tokio::test]
async fn events_are_paged_newest_first_without_gaps() {
    let gate = Tollgate::serve()
        .set("TOLLGATE_ADMIN_TOKEN", TOKEN)
        .start()
        .await;
    let acme = gate.tenant("acme").create().await;
    for _ in 0..7 {
        acme.chat("hi").await.expect_ok();
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/tenants/acme/events?limit=3{cursor}");
        let page = admin(&gate, Method::GET, &path, None)
            .await
            .expect_ok()
            .json();
        seen.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|it| it["event_id"].to_string()),
        );
        acme.chat("one more in between").await.expect_ok();
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let mut unique = seen.clone();
    unique.sort();
    unique.dedup();
    assert_eq!((seen.len(), unique.len()), (7, 7));
    gate.finish().await;
}

#[tokio::test]
async fn a_request_is_explained_whether_it_was_settled_or_refused() {
    let gate = Tollgate::serve()
        .set("TOLLGATE_ADMIN_TOKEN", TOKEN)
        .start()
        .await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(1))
        .create()
        .await;
    let first = acme.chat("hi").await.expect_ok();
    let refused = acme.chat("hi").await.expect(429, "usage_limit_exceeded");
    let id = |answer: &Answer| answer.header("x-request-id").unwrap().to_owned();

    let settled = gate.cli_json(&["usage", "explain", &id(&first)]).await;
    assert_eq!(
        (&settled["outcome"], &settled["tenant_slug"]),
        (&json!("settled"), &json!("acme"))
    );
    let limit = line_of(&settled, "messages");
    assert_eq!(
        (
            &limit["used_before"],
            &limit["settled"],
            &limit["used_after"]
        ),
        (&json!(0), &json!(1), &json!(1))
    );

    let path = format!("/requests/{}", id(&refused));
    let why = admin(&gate, Method::GET, &path, None)
        .await
        .expect_ok()
        .json();
    assert_eq!(
        (&why["outcome"], &why["decision"]),
        (&json!("refused"), &json!("hard_limit"))
    );
    let limit = line_of(&why, "messages");
    assert_eq!(
        (
            &limit["verdict"],
            &limit["used_before"],
            &limit["requested"]
        ),
        (&json!("refused"), &json!(1), &json!(1))
    );
    assert!(
        limit["message"]
            .as_str()
            .unwrap()
            .contains("allows 1 message"),
        "{limit}"
    );

    let by_hand = "usage record --tenant acme --feature messages --quantity 1 --idempotency-key k";
    let by_hand: Vec<_> = by_hand.split(' ').collect();
    gate.cli_json(&by_hand).await;
    for unknown in ["nobodys", "", " "] {
        let unknown = gate.cli(&["usage", "explain", unknown]).await;
        assert_eq!((unknown.code, unknown.stdout.as_str()), (1, ""));
        assert!(unknown.stderr.contains("not kept"), "{}", unknown.stderr);
    }
    for unknown in ["nobodys", "%20", ""] {
        admin(&gate, Method::GET, &format!("/requests/{unknown}"), None)
            .await
            .expect(404, "not_found");
    }
    gate.finish().await;
}

fn line_of<'a>(explained: &'a Value, feature: &str) -> &'a Value {
    let limits = explained["limits"].as_array().unwrap();
    limits
        .iter()
        .find(|limit| limit["feature_key"] == feature)
        .unwrap()
}
