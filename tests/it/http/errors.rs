//! The table of errors, from outside.

use http::Method;
use serde_json::{Value, json};

use crate::http::support::{
    FakeOpenAi, Tollgate, eventually, gate::Builder, http::Reply, tenant::Tenant,
};

struct Setting {
    upstream: FakeOpenAi,
    gate: Tollgate,
    acme: Tenant,
}

async fn setting_with(change: impl FnOnce(Builder) -> Builder) -> Setting {
    let upstream = FakeOpenAi::start().await;
    let gate = change(Tollgate::serve().upstream(&upstream)).start().await;
    let acme = gate.tenant("acme").create().await;
    Setting {
        upstream,
        gate,
        acme,
    }
}

async fn setting() -> Setting {
    setting_with(|builder| builder).await
}

/// Every error has a code, a message, and the id of its request, in body and header.
#[track_caller]
fn expect_form(reply: &Reply, path: &str) {
    let error = &reply.body["error"];
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|message| !message.is_empty()),
        "{reply:#?}"
    );
    assert_eq!(
        error["request_id"],
        reply.header("x-request-id"),
        "{reply:#?}"
    );
    if path.starts_with("/v1/") {
        assert!(error["type"].is_string(), "{reply:#?}");
        assert!(
            error.get("param").is_some(),
            "null if there is none: {reply:#?}"
        );
    } else {
        assert!(error.get("type").is_none(), "{reply:#?}");
    }
}

#[tokio::test]
async fn a_wrong_key_is_401_with_one_body_for_all() {
    let it = setting().await;
    let revoked = it
        .gate
        .cli(&["key", "create", "acme", "--name", "old", "--output", "json"])
        .await
        .expect_ok()
        .json();
    it.gate
        .cli(&[
            "key",
            "revoke",
            revoked["key_id"].as_str().unwrap(),
            "--yes",
        ])
        .await
        .expect_ok();
    let mut messages = Vec::new();
    for key in [
        "tg_made-up",
        "tga_made-up",
        "",
        revoked["key"].as_str().unwrap(),
    ] {
        for path in ["/api/v1/chat", "/v1/chat/completions"] {
            let body = json!({ "message": "hi", "model": "gpt-5.1", "messages": [] });
            let reply = it
                .acme
                .with_key(key)
                .post(path, &body)
                .await
                .expect(401, "invalid_api_key");
            expect_form(&reply, path);
            assert!(
                reply.header("www-authenticate").starts_with("Bearer"),
                "{reply:#?}"
            );
            messages.push(reply.body["error"]["message"].clone());
        }
    }
    messages.dedup();
    assert_eq!(messages.len(), 1);
    let openai = it.acme.with_key("tg_made-up").completion(json!({})).await;
    assert_eq!(openai.body["error"]["type"], "authentication_error");
    assert_eq!(it.upstream.calls(), 0);
}

#[tokio::test]
async fn a_body_that_cannot_be_read_is_400_and_counts_nothing() {
    let it = setting().await;
    let deep = format!(
        r#"{{"message":"hi","x":{}{}}}"#,
        "[".repeat(128),
        "]".repeat(128)
    );
    let invalid_utf8: &[u8] = b"{\"message\":\"\xff\"}";
    for body in [
        b"".as_slice(),
        b"{",
        b"[]",
        b"\"text\"",
        b"null",
        br#"{"message":"hi"} trailing"#,
        br#"{"message":"hi","message":"ho"}"#,
        deep.as_bytes(),
        invalid_utf8,
    ] {
        for path in ["/api/v1/chat", "/v1/chat/completions"] {
            let request = it.acme.request(Method::POST, path);
            let reply = it
                .acme
                .send(request, body.to_vec())
                .await
                .expect(400, "invalid_request");
            expect_form(&reply, path);
        }
    }
    assert_eq!(it.upstream.calls(), 0);
    assert_eq!(it.gate.metric("usage_recorded_total", &[]).await, 0.0);
}

#[tokio::test]
async fn json_may_be_128_deep() {
    let it = setting().await;
    let deep = format!(
        r#"{{"message":"hi","x":{}{}}}"#,
        "[".repeat(127),
        "]".repeat(127)
    );
    let request = it.acme.request(Method::POST, "/api/v1/chat");
    it.acme.send(request, deep).await.expect_ok();
}

#[tokio::test]
async fn a_bad_field_is_named_with_what_is_accepted() {
    let it = setting().await;
    for (body, param) in [
        (json!({}), "message"),
        (json!({ "message": 7 }), "message"),
        (
            json!({ "message": "hi", "max_output_tokens": 0 }),
            "max_output_tokens",
        ),
        (
            json!({ "message": "hi", "max_output_tokens": 1.5 }),
            "max_output_tokens",
        ),
        (
            json!({ "message": "hi", "max_output_tokens": 9_007_199_254_740_992_i64 }),
            "max_output_tokens",
        ),
        (
            json!({ "message": "hi", "model": "m".repeat(129) }),
            "model",
        ),
    ] {
        let reply = it
            .acme
            .post("/api/v1/chat", &body)
            .await
            .expect(422, "invalid_request");
        assert_eq!(reply.body["error"]["param"], param, "{reply:#?}");
        if param == "max_output_tokens" {
            let accepted = "write a whole number from 1 to 9007199254740991, or null";
            assert!(reply.text.contains(accepted), "{reply:#?}");
        }
    }
    for (body, param) in [
        (json!({ "n": 0 }), "n"),
        (json!({ "n": 129 }), "n"),
        (json!({ "max_tokens": 0 }), "max_tokens"),
        (
            json!({ "max_completion_tokens": "10" }),
            "max_completion_tokens",
        ),
        (json!({ "model": "m".repeat(129) }), "model"),
    ] {
        let reply = it
            .acme
            .completion(body)
            .await
            .expect(400, "invalid_request");
        assert_eq!(reply.body["error"]["param"], param, "{reply:#?}");
        assert_eq!(reply.body["error"]["type"], "invalid_request_error");
    }
    assert_eq!(it.upstream.calls(), 0);
}

#[tokio::test]
async fn what_two_parsers_would_read_as_two_things_is_refused_by_name() {
    let it = setting().await;
    for (members, param) in [
        (
            r#""stream_options":{"include_usage":true,"include_usage":false}"#,
            "stream_options",
        ),
        (
            r#""stream_options":{"include_usage":true,"include_us\u0061ge":false}"#,
            "stream_options",
        ),
        (r#""stream_options":[]"#, "stream_options"),
        (
            r#""stream_options":{"Include_usage":false}"#,
            "include_usage",
        ),
        (r#""Model":"forbidden""#, "model"),
        (r#""max_tokens":5,"MAX_TOKENS":100000"#, "max_tokens"),
        (r#""Stream":true"#, "stream"),
        (r#""N":50"#, "n"),
        (
            r#""messages":[{"role":"user","content":"hi","Content":"ho"}]"#,
            "content",
        ),
    ] {
        let body = format!(r#"{{"model":"gpt-5.1","stream":true,{members}}}"#);
        let request = it.acme.request(Method::POST, "/v1/chat/completions");
        let reply = it.acme.send(request, body).await;
        let reply = reply.expect(400, "invalid_request");
        assert_eq!(reply.body["error"]["param"], param, "{reply:#?}");
        expect_form(&reply, "/v1/chat/completions");
    }
    assert_eq!(it.upstream.calls(), 0);
    assert_eq!(it.gate.metric("usage_recorded_total", &[]).await, 0.0);
}

#[tokio::test]
async fn a_field_that_cannot_be_metered_is_refused() {
    let it = setting().await;
    let body = json!({ "model": "gpt-5.1", "input": "hi", "background": true });
    let reply = it
        .acme
        .post("/v1/responses", &body)
        .await
        .expect(400, "unsupported_parameter");
    assert_eq!(reply.body["error"]["param"], "background");
    assert_eq!(it.upstream.calls(), 0);
}

#[tokio::test]
async fn a_model_that_the_plan_leaves_out_is_403() {
    let it = setting().await;
    it.gate
        .cli(&[
            "plan",
            "set",
            &it.acme.plan,
            "--allowed-models",
            "gpt-5.1-mini*",
        ])
        .await
        .expect_ok();
    let reply = it
        .acme
        .completion(json!({ "model": "gpt-5.1" }))
        .await
        .expect(403, "model_not_allowed");
    assert_eq!(reply.body["error"]["type"], "permission_error");
    it.acme
        .completion(json!({ "model": "gpt-5.1-mini" }))
        .await
        .expect_ok();
}

#[tokio::test]
async fn a_body_too_large_is_413_however_it_is_sent() {
    let it = setting_with(|builder| builder.env("TOLLGATE_MAX_BODY_BYTES", 1_000)).await;
    let fits = format!(r#"{{"message":"{}"}}"#, "x".repeat(1_000 - 14));
    it.acme
        .send(it.acme.request(Method::POST, "/api/v1/chat"), fits.clone())
        .await
        .expect_ok();
    for path in ["/api/v1/chat", "/v1/chat/completions"] {
        let request = it.acme.request(Method::POST, path);
        let reply = it
            .acme
            .send(request, format!("{fits} "))
            .await
            .expect(413, "body_too_large");
        expect_form(&reply, path);
    }

    let mut raw = it.gate.address.raw().await;
    let head = format!(
        "POST /api/v1/chat HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\ntransfer-encoding: chunked\r\n\r\n",
        it.acme.key
    );
    raw.write(&format!("{head}{:x}\r\n{fits} ", fits.len() + 100))
        .await;
    let answer = raw.read_to_end().await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
}

#[tokio::test]
async fn a_large_body_is_refused_before_the_client_sends_it() {
    let it = setting().await;
    let mut raw = it.gate.address.raw().await;
    raw.write(&format!(
        "POST /api/v1/chat HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\nexpect: 100-continue\r\n\
         content-length: 40000000\r\n\r\n",
        it.acme.key
    ))
    .await;
    let answer = raw.read_to_end().await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
}

#[tokio::test]
async fn an_encoded_body_is_415() {
    let it = setting().await;
    for path in ["/api/v1/chat", "/v1/chat/completions"] {
        let request = it
            .acme
            .request(Method::POST, path)
            .header("content-encoding", "gzip");
        let reply = it
            .acme
            .send(request, "{}")
            .await
            .expect(415, "unsupported_media_type");
        expect_form(&reply, path);
    }
}

#[tokio::test]
async fn a_wrong_method_names_the_right_one() {
    let it = setting().await;
    for (method, path, allowed) in [
        (Method::GET, "/api/v1/chat", "POST"),
        (Method::DELETE, "/v1/chat/completions", "POST"),
        (Method::POST, "/api/v1/usage", "GET"),
    ] {
        let reply = it
            .acme
            .send(it.acme.request(method, path), "")
            .await
            .expect(405, "method_not_allowed");
        assert!(reply.header("allow").contains(allowed), "{reply:#?}");
        expect_form(&reply, path);
    }
}

#[tokio::test]
async fn a_web_page_of_another_origin_is_allowed_nothing() {
    let it = setting().await;
    for path in [
        "/api/v1/usage",
        "/v1/models",
        "/api/v1/chat",
        "/v1/chat/completions",
    ] {
        let asked = it
            .acme
            .request(Method::OPTIONS, path)
            .header("origin", "https://elsewhere.example")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization");
        let preflight = it.acme.send(asked, "").await;
        let preflight = preflight.expect(405, "method_not_allowed");
        let read = it
            .acme
            .request(Method::GET, path)
            .header("origin", "https://elsewhere.example");
        for reply in [preflight, it.acme.send(read, "").await] {
            let mut names = reply.headers.keys().map(http::HeaderName::as_str);
            assert!(
                names.all(|name| !name.starts_with("access-control-")),
                "{path}: {reply:#?}"
            );
        }
    }
}

#[tokio::test]
async fn an_unmetered_route_is_404_with_the_list_of_those_that_are() {
    let it = setting().await;
    for path in [
        "/v1/audio/speech",
        "/v1/files",
        "/v1",
        "/v1/chat/completions/",
        "/v1/chat/completions/abc",
    ] {
        let reply = it
            .acme
            .send(it.acme.request(Method::POST, path), "{}")
            .await
            .expect(404, "endpoint_not_metered");
        assert!(reply.text.contains("/v1/chat/completions"), "{reply:#?}");
        assert!(reply.text.contains("/v1/embeddings"), "{reply:#?}");
    }
    let reply = it
        .gate
        .get("/api/v1/nothing")
        .await
        .expect(404, "not_found");
    expect_form(&reply, "/api/v1/nothing");
    assert_eq!(it.upstream.calls(), 0);
}

#[tokio::test]
async fn a_command_that_is_refused_says_so_in_one_line() {
    let it = setting().await;
    let refused = it
        .gate
        .cli(&["tenant", "create", "acme", "--name", "Again"])
        .await;
    assert_eq!(
        (refused.exit_code, refused.stdout.as_str()),
        (1, ""),
        "{refused:#?}"
    );
    assert_eq!(refused.stderr.trim().lines().count(), 1, "{refused:#?}");
    assert!(refused.stderr.contains("'acme'"), "{refused:#?}");
}

#[tokio::test]
async fn a_tenant_without_a_subscription_is_402() {
    let it = setting().await;
    it.gate
        .cli(&["tenant", "create", "bare", "--name", "Bare"])
        .await
        .expect_ok();
    let key = it
        .gate
        .cli(&["key", "create", "bare", "--name", "k", "--output", "json"])
        .await
        .expect_ok()
        .json();
    let bare = it.acme.with_key(key["key"].as_str().unwrap());
    bare.chat("hi")
        .await
        .expect(402, "usage_policy_configuration_error");
    let openai = bare
        .completion(json!({}))
        .await
        .expect(402, "usage_policy_configuration_error");
    assert_eq!(openai.body["error"]["type"], "insufficient_quota");

    it.gate
        .cli(&["tenant", "cancel", "acme", "--yes"])
        .await
        .expect_ok();
    crate::http::support::eventually("the end of a subscription", || async {
        (it.acme.chat("hi").await.code() == "subscription_inactive").then_some(())
    })
    .await;
    assert_eq!(it.acme.chat("hi").await.status, 402);
}

#[tokio::test]
async fn another_tenants_conversation_is_404() {
    let it = setting().await;
    let other = it.gate.tenant("other").create().await;
    let id = it.acme.chat("hi").await.expect_ok().body["conversation_id"].clone();
    for id in [
        id,
        json!("conv_00000000000000000000000000000000"),
        json!("nonsense"),
    ] {
        let body = json!({ "message": "hi", "conversation_id": id });
        other
            .post("/api/v1/chat", &body)
            .await
            .expect(404, "conversation_not_found");
    }
}

#[tokio::test]
async fn a_clients_request_id_is_kept_if_it_is_fit() {
    let it = setting().await;
    for (given, kept) in [
        ("my-id.1", true),
        (&"x".repeat(128), true),
        (&"x".repeat(129), false),
        ("a b", false),
    ] {
        let request = it
            .acme
            .request(Method::GET, "/api/v1/usage")
            .header("x-request-id", given);
        let reply = it.acme.send(request, "").await.expect_ok();
        assert_eq!(reply.header("x-request-id") == given, kept, "{given}");
        assert!(!reply.header("x-request-id").is_empty());
    }
}

#[tokio::test]
async fn upstream_errors_pass_through_but_those_of_the_operators_key() {
    let it = setting().await;
    let limited = json!({ "error": { "message": "slow down", "type": "requests", "code": "rate_limit_exceeded" } });
    it.upstream.answers(429, &limited);
    let reply = it.acme.completion(json!({})).await;
    assert_eq!((reply.status, &reply.body), (429, &limited));
    for status in [401, 403] {
        it.upstream.answers(
            status,
            &json!({ "error": { "message": "bad key sk-operator" } }),
        );
        let reply = it
            .acme
            .completion(json!({}))
            .await
            .expect(502, "upstream_error");
        assert!(!reply.text.contains("sk-operator"), "{reply:#?}");
        assert_eq!(reply.body["error"]["type"], "server_error");
    }
    assert_eq!(
        it.gate.metric("usage_recorded_total", &["messages"]).await,
        0.0,
        "what produced nothing is free"
    );
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_502_and_one_that_hangs_504() {
    let it = setting_with(|builder| builder.env("TOLLGATE_UPSTREAM_TIMEOUT_SECONDS", 1)).await;
    it.upstream.hangs();
    it.acme
        .completion(json!({}))
        .await
        .expect(504, "upstream_timeout");
    it.upstream.hangs();
    it.acme.chat("hi").await.expect(504, "upstream_timeout");
    let Setting {
        upstream,
        gate,
        acme,
    } = it;
    let base_url = upstream.base_url();
    let (_, address) = base_url.split_once("//").unwrap();
    let address = address.strip_suffix("/v1").unwrap();
    drop(upstream);
    let replies = [acme.completion(json!({})).await, acme.chat("hi").await];
    for reply in replies {
        assert!(!reply.text.contains(address), "{reply:#?}");
        let reply = reply.expect(502, "upstream_error");
        let id = json!(reply.header("x-request-id"));
        let line = eventually("the line of a request", || async {
            let mut logged = gate.logged().into_iter();
            logged.find(|line| line["request_id"] == id)
        });
        let line = line.await;
        assert_eq!(line["code"], "upstream_error");
        let detail = line["detail"].as_str().unwrap();
        assert!(detail.contains(address), "{detail}");
        assert!(detail.contains("refused"), "{detail}");
    }
    gate.settled().await;
}

#[tokio::test]
async fn what_is_private_never_goes_upstream_and_never_reaches_a_log() {
    let it = setting().await;
    let request = it
        .acme
        .request(Method::POST, "/v1/chat/completions")
        .header("cookie", "session=secret-cookie")
        .header("idempotency-key", "secret-idempotency")
        .header("x-tollgate-user", "bob")
        .header("api-key", &it.acme.key)
        .header("x-foo", format!("Bearer {}", it.acme.key))
        .header("openai-beta", "assistants=v2");
    let body =
        json!({ "model": "gpt-5.1", "messages": [{ "role": "user", "content": "secret-prompt" }] });
    it.acme.send(request, body.to_string()).await.expect_ok();
    let seen = it.upstream.last();
    assert_eq!(seen.headers["authorization"], "Bearer sk-operator");
    assert_eq!(seen.headers["openai-beta"], "assistants=v2");
    for name in ["cookie", "idempotency-key", "x-tollgate-user", "connection"] {
        assert!(!seen.headers.contains_key(name), "{name}");
    }
    let sent = format!("{:?}", seen.headers);
    assert!(!sent.contains(&it.acme.key), "{sent}");
    let log = Value::from(it.gate.logged()).to_string();
    for secret in [
        it.acme.key.as_str(),
        "sk-operator",
        "secret-prompt",
        "secret-cookie",
    ] {
        assert!(!log.contains(secret), "{secret}");
    }
}
