use http::StatusCode;

use super::*;
use crate::{
    domain::{quantity::Quantity, usage::TokenUsage},
    provider::{
        Finish, Patience,
        test_server::{Act, Signal, TestServer, answer, chunk, last_chunk, stream_head},
    },
};

fn settings(base_url: &str, key: Option<&str>) -> Settings {
    Settings {
        base_url: base_url.to_owned(),
        api_key: key.map(SecretString::from),
        stream_usage: StreamUsage::Request,
        timeout: Duration::from_secs(60),
        roots: Roots::Environment,
    }
}

fn provider(server: &TestServer) -> OpenAi {
    OpenAi::new(settings(&server.base_url(), None)).unwrap()
}

fn call() -> ChatCall {
    let turn = |speaker, text: &str| Turn {
        speaker,
        text: text.to_owned(),
    };
    ChatCall {
        model: "m-1".to_owned(),
        turns: vec![
            turn(Speaker::User, "one"),
            turn(Speaker::Assistant, "two"),
            turn(Speaker::User, "three"),
        ],
        instructions: Some("be brief".to_owned()),
        max_output_tokens: Some(Quantity::new(50)),
        user: Some("u-1".to_owned()),
        request_id: "req-1".to_owned(),
    }
}

fn used(input: i64, output: i64) -> Option<TokenUsage> {
    Some(TokenUsage {
        input_tokens: Quantity::new(input),
        output_tokens: Quantity::new(output),
        ..TokenUsage::default()
    })
}

const ANSWER: &str = r#"{"id": "c-1", "model": "m-1-x", "odd": 1, "choices": [{"index": 0,
    "message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2}}"#;

#[tokio::test]
async fn a_conversation_is_sent_and_its_answer_read() {
    let server = TestServer::start(|_| vec![answer("200 OK", ANSWER)]).await;
    let reply = provider(&server).chat(&call()).await.unwrap();
    let expected = ChatReply {
        response_id: "c-1".to_owned(),
        model: "m-1-x".to_owned(),
        text: "Hi.".to_owned(),
        unseen: String::new(),
        finish: Finish::Stop,
        usage: used(9, 2),
    };
    assert_eq!(reply, expected);

    let seen = &server.seen()[0];
    assert!(seen.head.starts_with("post /v1/chat/completions "));
    assert!(seen.head.contains("\r\nx-request-id: req-1\r\n"));
    assert!(!seen.head.contains("authorization"), "{}", seen.head);
    let sent: serde_json::Value = serde_json::from_str(&seen.body).unwrap();
    let expected = json!({
        "model": "m-1",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "three"},
        ],
        "max_tokens": 50,
        "user": "u-1",
    });
    assert_eq!(sent, expected);
}

#[tokio::test]
async fn odd_answers_are_read_as_far_as_they_go() {
    for (body, text, finish, usage) in [
        (
            r#"{"choices": [{"message": {"content": null, "refusal": "No."}, "finish_reason": "content_filter"}], "usage": {"prompt_tokens": "9"}}"#,
            "No.",
            Finish::Other("content_filter".to_owned()),
            None,
        ),
        (
            r#"{"id": null, "choices": [{"message": {"content": "a"}, "finish_reason": "length"}], "usage": {"prompt_tokens": 1, "completion_tokens": 0}}"#,
            "a",
            Finish::Length,
            used(1, 0),
        ),
    ] {
        let server = TestServer::start(move |_| vec![answer("200 OK", body)]).await;
        let reply = provider(&server).chat(&call()).await.unwrap();
        assert_eq!(
            (reply.text.as_str(), reply.finish, reply.usage),
            (text, finish, usage)
        );
    }
}

#[tokio::test]
async fn an_answer_that_is_none_is_broken_and_not_quoted() {
    for body in [
        "secret words",
        "{\"secret\": 1}",
        "{\"choices\": []}",
        "[\"secret\"]",
    ] {
        let server = TestServer::start(move |_| vec![answer("200 OK", body)]).await;
        let error = provider(&server).chat(&call()).await.unwrap_err();
        assert!(matches!(error, ProviderError::Broken(_)), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn an_error_answer_comes_back_whole_after_exactly_one_call() {
    for status in [307, 400, 401, 408, 409, 429, 500, 502, 503, 529] {
        let server = TestServer::start(move |_| {
            let body = "{\"error\": {\"code\": \"rate_limit_exceeded\", \"extra\": 1}}";
            vec![Act::Send(format!(
                "HTTP/1.1 {status} No\r\nretry-after: 1\r\nretry-after-ms: 1\r\nlocation: /v1/elsewhere\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            ))]
        })
        .await;
        let provider = provider(&server);
        let stream_error = provider.chat_stream(&call()).await.err().unwrap();
        for error in [provider.chat(&call()).await.unwrap_err(), stream_error] {
            let ProviderError::Refused {
                status: given,
                headers,
                body,
            } = error
            else {
                panic!("{error}");
            };
            assert_eq!(given, StatusCode::from_u16(status).unwrap());
            assert_eq!(headers["retry-after"], "1");
            assert!(body.ends_with(b"\"extra\": 1}}"));
        }
        assert_eq!(server.seen().len(), 2, "{status}");
        assert_eq!(provider.status(), ProviderStatus::Ready);
    }
}

#[tokio::test]
async fn a_connection_that_gives_no_answer_is_unreachable_after_one_call() {
    let server = TestServer::start(|_| vec![Act::Close]).await;
    let provider = provider(&server);
    let error = provider.chat(&call()).await.unwrap_err();
    assert!(matches!(error, ProviderError::Unreachable(_)), "{error}");
    assert_eq!(server.seen().len(), 1);
    assert!(matches!(provider.status(), ProviderStatus::Failing(_)));
}

#[tokio::test]
async fn silence_is_a_timeout() {
    let server = TestServer::start(|seen| match seen.connection {
        0 | 1 => vec![Act::Stall],
        2 => vec![
            Act::Send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{".to_owned()),
            Act::Stall,
        ],
        3 => vec![
            Act::Send("HTTP/1.1 500 No\r\ncontent-length: 9\r\n\r\n{".to_owned()),
            Act::Stall,
        ],
        _ => vec![
            stream_head(),
            chunk("data: {\"id\": \"c\"}\n\n"),
            Act::Stall,
        ],
    })
    .await;
    let provider = OpenAi::new(Settings {
        timeout: Duration::from_millis(100),
        ..settings(&server.base_url(), None)
    })
    .unwrap();
    let error = provider.chat_stream(&call()).await.err().unwrap();
    assert!(matches!(error, ProviderError::Timeout), "{error}");
    for _ in 1..4 {
        let error = provider.chat(&call()).await.unwrap_err();
        assert!(matches!(error, ProviderError::Timeout), "{error}");
    }
    let mut stream = provider.chat_stream(&call()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    let error = stream.next().await.unwrap().unwrap_err();
    assert!(matches!(error, ProviderError::Timeout), "{error}");
    assert!(stream.next().await.is_none());
}

fn piece(text: &str) -> Act {
    chunk(&format!(
        "data: {{\"id\": \"c-1\", \"model\": \"m-x\", \"choices\": [{{\"delta\": {{\"content\": \"{text}\"}}, \"finish_reason\": null}}], \"usage\": null}}\n\n"
    ))
}

const FINISH: &str = "data: {\"choices\": [{\"delta\": {}, \"finish_reason\": \"length\"}]}\n\n";
const USAGE: &str =
    "data: {\"choices\": [], \"usage\": {\"prompt_tokens\": 9, \"completion_tokens\": 2}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

#[tokio::test]
async fn a_stream_comes_piece_by_piece_and_ends_with_its_usage() {
    let got_first = Signal::new();
    let gate = got_first.clone();
    let server = TestServer::start(move |_| {
        vec![
            stream_head(),
            chunk(": still there\n\ndata:\n\n"),
            piece("a"),
            Act::Await(gate.clone()),
            piece("b"),
            chunk(FINISH),
            chunk(USAGE),
            chunk(DONE),
            last_chunk(),
        ]
    })
    .await;
    let mut stream = provider(&server).chat_stream(&call()).await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    let expected = ChatDelta {
        response_id: Some("c-1".to_owned()),
        model: Some("m-x".to_owned()),
        text: "a".to_owned(),
        ..ChatDelta::default()
    };
    assert_eq!(first, expected);
    got_first.give();
    let rest: Vec<_> = stream.map(Result::unwrap).collect().await;
    assert_eq!(rest.len(), 3);
    assert_eq!(rest[0].text, "b");
    assert_eq!(rest[1].finish, Some(Finish::Length));
    assert_eq!(rest[2].usage, used(9, 2));

    let sent: serde_json::Value = serde_json::from_str(&server.seen()[0].body).unwrap();
    assert_eq!(sent["stream"], true);
    assert_eq!(sent["stream_options"], json!({"include_usage": true}));
}

#[tokio::test]
async fn a_stream_that_may_not_ask_for_usage_does_not() {
    let server = TestServer::start(|_| vec![stream_head(), chunk(DONE), last_chunk()]).await;
    let provider = OpenAi::new(Settings {
        stream_usage: StreamUsage::Omit,
        ..settings(&server.base_url(), None)
    })
    .unwrap();
    assert!(
        provider
            .chat_stream(&call())
            .await
            .unwrap()
            .next()
            .await
            .is_none()
    );
    assert!(!server.seen()[0].body.contains("stream_options"));
}

#[tokio::test]
async fn a_finish_reason_is_enough_of_an_end() {
    for end in [FINISH, FINISH.trim_end()] {
        let server =
            TestServer::start(move |_| vec![stream_head(), piece("a"), chunk(end), last_chunk()])
                .await;
        let stream = provider(&server).chat_stream(&call()).await.unwrap();
        let deltas: Vec<_> = stream.map(Result::unwrap).collect().await;
        assert_eq!(deltas.len(), 2);
        assert_eq!(deltas[1].finish, Some(Finish::Length));
    }
}

#[tokio::test]
async fn a_stream_that_ends_early_or_turns_to_nonsense_is_broken() {
    for (name, end) in [
        ("ends", vec![last_chunk()]),
        ("closes", vec![Act::Close]),
        (
            "error",
            vec![
                chunk("data: {\"error\": {\"message\": \"secret\", \"code\": \"overloaded\"}}\n\n"),
                chunk(DONE),
                last_chunk(),
            ],
        ),
        (
            "no json",
            vec![chunk("data: secret\n\n"), chunk(DONE), last_chunk()],
        ),
    ] {
        let end = Mutex::new(Some(end));
        let server = TestServer::start(move |_| {
            let mut acts = vec![stream_head(), piece("a")];
            acts.extend(end.lock().unwrap().take().unwrap());
            acts
        })
        .await;
        let mut stream = provider(&server).chat_stream(&call()).await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap().text, "a", "{name}");
        let error = stream.next().await.unwrap().unwrap_err();
        assert!(matches!(error, ProviderError::Broken(_)), "{name}: {error}");
        assert!(!error.to_string().contains("secret"), "{error}");
        assert_eq!(
            error.to_string().contains("overloaded"),
            name == "error",
            "{error}"
        );
        assert!(stream.next().await.is_none(), "{name}");
    }
}

#[tokio::test]
async fn a_stream_that_is_dropped_closes_its_connection() {
    let closed = Signal::new();
    let tell = closed.clone();
    let server =
        TestServer::start(move |_| vec![stream_head(), piece("a"), Act::TellClosed(tell.clone())])
            .await;
    let mut stream = provider(&server).chat_stream(&call()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    closed.wait().await;
}

#[tokio::test]
async fn the_key_goes_upstream_where_there_is_one() {
    let server = TestServer::start(|_| vec![answer("200 OK", ANSWER)]).await;
    let provider = OpenAi::new(settings(&server.base_url(), Some("sk-1"))).unwrap();
    provider.chat(&call()).await.unwrap();
    assert!(
        server.seen()[0]
            .head
            .contains("\r\nauthorization: bearer sk-1\r\n")
    );
}

#[tokio::test]
async fn openai_itself_needs_a_key() {
    for base_url in [DEFAULT_BASE_URL, "https://EU.api.openai.com/v1"] {
        let provider = OpenAi::new(settings(base_url, None)).unwrap();
        let forward = Forward {
            endpoint: Endpoint::Models,
            headers: HeaderMap::new(),
            body: bytes::Bytes::new(),
            patience: Patience::Whole(Duration::from_secs(1)),
        };
        let errors = [
            provider.chat(&call()).await.unwrap_err(),
            provider.chat_stream(&call()).await.err().unwrap(),
            provider.forward(forward).await.unwrap_err(),
        ];
        for error in errors {
            assert!(
                matches!(&error, ProviderError::NotConfigured(what) if what.contains("OPENAI_API_KEY"))
            );
        }
        assert!(matches!(
            provider.status(),
            ProviderStatus::NotConfigured(_)
        ));
    }
}

#[test]
fn openai_itself_is_told_the_maximum_in_its_new_field() {
    let provider = OpenAi::new(settings(DEFAULT_BASE_URL, Some("sk-1"))).unwrap();
    let body = provider.request_body(&call());
    assert_eq!(body["max_completion_tokens"], 50);
    assert!(body.get("max_tokens").is_none());
    assert_eq!(provider.status(), ProviderStatus::Ready);
}

#[test]
fn a_key_that_no_header_can_carry_is_refused_and_not_shown() {
    let error = OpenAi::new(settings(DEFAULT_BASE_URL, Some("sk-1\nsecret")))
        .err()
        .unwrap();
    assert!(error.0.contains("OPENAI_API_KEY"), "{error}");
    assert!(!error.0.contains("secret"), "{error}");
}
