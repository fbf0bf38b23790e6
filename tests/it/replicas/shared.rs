//! What a client begins at one replica and goes on with at another.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use super::Replicas;
use crate::support::{Answer, Tenant, eventually, hard};

const RESERVATIONS: &str = "/api/v1/usage/reservations";

async fn delete(tenant: &Tenant, path: &str) -> u16 {
    let response = tenant.request(Method::DELETE, path).send().await;
    response.expect("an answer").status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reservation_made_at_one_replica_is_settled_or_released_at_another() {
    let mut replicas = Replicas::start(2, "closed").await;
    let acme = replicas.gates[0].tenant("acme");
    let acme = acme.limit("messages", hard(10)).create().await;
    let [first, second] = [0, 1].map(|at| acme.at(&replicas.gates[at]));
    let reserve = async |tenant: &Tenant, messages: i64| {
        let body = json!({ "quantities": { "messages": messages }, "ttl_seconds": 600 });
        let made = tenant.post(RESERVATIONS, &body).await;
        assert_eq!(made.status, 201, "{}", made.text);
        made.json()["reservation_id"].as_str().unwrap().to_owned()
    };
    let settled = reserve(&first, 4).await;
    let released = reserve(&first, 3).await;
    let kept = reserve(&first, 2).await;
    assert_eq!(second.reserved("messages").await, 9);
    let body = json!({ "quantities": { "messages": 2 }, "ttl_seconds": 600 });
    second
        .post(RESERVATIONS, &body)
        .await
        .expect(429, "usage_limit_reserved");

    let settle = json!({ "quantities": { "messages": 5 }, "idempotency_key": "once" });
    for _ in 0..2 {
        let path = format!("{RESERVATIONS}/{settled}/settle");
        second.post(&path, &settle).await.expect_ok();
    }
    let path = format!("{RESERVATIONS}/{settled}/settle");
    first.post(&path, &settle).await.expect_ok();
    assert_eq!(
        delete(&second, &format!("{RESERVATIONS}/{released}")).await,
        204
    );
    for tenant in [&first, &second] {
        assert_eq!(
            (
                tenant.used("messages").await,
                tenant.reserved("messages").await
            ),
            (5, 2)
        );
    }
    // One outlives the replica that made it.
    replicas.gates[0].kill9();
    assert_eq!(second.reserved("messages").await, 2);
    assert_eq!(
        delete(&second, &format!("{RESERVATIONS}/{kept}")).await,
        204
    );
    assert_eq!(second.reserved("messages").await, 0);
    replicas.gates.remove(0);
    replicas.finish(5, &acme).await;
}

async fn keyed(tenant: &Tenant, key: &str, body: &Value) -> Answer {
    let request = tenant
        .request(Method::POST, "/v1/chat/completions")
        .header("idempotency-key", key);
    let response = request.body(body.to_string()).send().await;
    Answer::read(response.expect("an answer")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_at_another_replica_gets_the_first_answer_or_is_told_that_it_runs() {
    let mut replicas = Replicas::start(2, "closed").await;
    let acme = replicas.gates[0].tenant("acme").create().await;
    let [first, second] = [0, 1].map(|at| acme.at(&replicas.gates[at]));
    let body = json!({ "model": "gpt-5.1", "messages": [{ "role": "user", "content": "hi" }] });

    replicas.upstream.hold();
    let running = {
        let (first, body) = (first.clone(), body.clone());
        tokio::spawn(async move { keyed(&first, "k", &body).await })
    };
    eventually("the model is asked", || async {
        (replicas.upstream.calls() == 1).then_some(())
    })
    .await;
    keyed(&second, "k", &body)
        .await
        .expect(409, "idempotency_key_in_use");
    replicas.upstream.release();
    let answer = running.await.unwrap().expect_ok();
    let again = keyed(&second, "k", &body).await.expect_ok();
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.text, answer.text);
    let other = json!({ "model": "gpt-5.1", "messages": [] });
    keyed(&second, "k", &other)
        .await
        .expect(422, "idempotency_key_reused");

    replicas.gates[0].is_drained().await;
    // One that died with its replica runs again elsewhere, once that has been silent for long enough.
    replicas.upstream.hold();
    let cut_off = {
        let (first, body) = (first.clone(), body.clone());
        tokio::spawn(async move { keyed(&first, "cut-off", &body).await })
    };
    eventually("the model is asked", || async {
        (replicas.upstream.calls() == 2).then_some(())
    })
    .await;
    replicas.gates[0].kill9();
    drop(cut_off.await);
    replicas.upstream.release();
    keyed(&second, "cut-off", &body)
        .await
        .expect(409, "idempotency_key_in_use");
    let died = Instant::now();
    while keyed(&second, "cut-off", &body).await.status != 200 {
        assert!(
            died.elapsed() < Duration::from_secs(35),
            "30 s are long enough"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    replicas.gates.remove(0);
    replicas.finish(2, &second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_while_redis_is_away_is_replayed_once_that_is_back() {
    let replicas = Replicas::start(2, "closed").await;
    let acme = replicas.gates[0].tenant("acme").create().await;
    let [first, second] = [0, 1].map(|at| acme.at(&replicas.gates[at]));
    let body = json!({ "model": "gpt-5.1", "messages": [{ "role": "user", "content": "hi" }] });
    replicas.upstream.hold();
    let running = {
        let (first, body) = (first.clone(), body.clone());
        tokio::spawn(async move { keyed(&first, "k", &body).await })
    };
    eventually("the model is asked", || async {
        (replicas.upstream.calls() == 1).then_some(())
    })
    .await;
    replicas.redis.freeze();
    replicas.ledger_is("down").await;
    replicas.upstream.release();
    let answer = running.await.unwrap().expect_ok();
    replicas.redis.thaw();
    replicas.ledger_is("ok").await;
    let again = eventually("it is kept", || async {
        let again = keyed(&second, "k", &body).await;
        (again.status == 200).then_some(again)
    })
    .await;
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.text, answer.text);
    assert_eq!(replicas.upstream.calls(), 1);
    replicas.finish(1, &acme).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_looks_at_redis() {
    let mut replicas = Replicas::start(1, "open").await;
    let finding = async |replicas: &Replicas| {
        let run = replicas.gates[0].cli(&["doctor"]).await;
        let body: Value = serde_json::from_str(&run.stdout).unwrap();
        let items = body["items"].as_array().unwrap();
        let redis = items.iter().find(|it| it["check"] == "redis").unwrap();
        redis["severity"].as_str().unwrap().to_owned()
    };
    assert_eq!(finding(&replicas).await, "ok");
    let evicting = ["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"];
    assert_eq!(replicas.redis.ask(&evicting), "+OK");
    assert_eq!(finding(&replicas).await, "warning");
    replicas.redis.kill();
    replicas.ledger_is("down").await;
    assert_eq!(finding(&replicas).await, "error");
}
