use base64::Engine as _;
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::*;
use crate::{
    clock::ManualClock,
    domain::{quantity::Quantity, time::Timestamp, usage::TokenUsage},
    provider::{
        sse,
        tokens::count,
        usage::{usage_of_answer, usage_of_frame},
    },
};

const MINUTE: Duration = Duration::from_secs(60);

fn simulated() -> Simulated {
    let clock = Clock::Manual(ManualClock::at(Timestamp::from_micros(
        1_790_000_000_000_000,
    )));
    Simulated::new(clock, MINUTE)
}

async fn send(endpoint: Endpoint, body: &Value) -> Result<(StatusCode, String), ProviderError> {
    let request = Forward {
        endpoint,
        headers: HeaderMap::new(),
        body: body.to_string().into(),
        patience: Patience::Whole(MINUTE),
    };
    let response = simulated().forward(request).await?;
    let status = response.status();
    let bytes = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8(bytes.to_vec()).unwrap()))
}

async fn ok(endpoint: Endpoint, body: Value) -> Value {
    let (status, text) = send(endpoint, &body).await.unwrap();
    assert_eq!(status, StatusCode::OK, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// The data of a stream's events, in order.
async fn stream(endpoint: Endpoint, mut body: Value) -> Vec<String> {
    body["stream"] = true.into();
    let (_, text) = send(endpoint, &body).await.unwrap();
    let mut splitter = sse::Splitter::new();
    splitter.push(text.into());
    let mut frames = Vec::new();
    while let Some(event) = splitter.next_event() {
        let data = sse::data(&event).unwrap().into_owned();
        frames.push(String::from_utf8(data).unwrap());
    }
    assert!(splitter.finish().is_none());
    frames
}

fn chat(model: &str) -> Value {
    json!({"model": model, "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hello world"}]},
    ]})
}

fn with(mut body: Value, field: &str, value: impl Into<Value>) -> Value {
    body[field] = value.into();
    body
}

fn text_of(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

fn call(model: &str) -> ChatCall {
    ChatCall {
        model: model.to_owned(),
        turns: vec![Turn {
            speaker: Speaker::User,
            text: "hello world".to_owned(),
        }],
        instructions: Some("be brief".to_owned()),
        max_output_tokens: None,
        user: None,
        request_id: "req-1".to_owned(),
    }
}

const CHAT: Endpoint = Endpoint::ChatCompletions;

#[tokio::test]
async fn the_same_prompt_gets_the_same_text_whatever_way_it_is_asked() {
    let whole = ok(CHAT, chat("simulated")).await;
    assert_eq!(text_of(&ok(CHAT, chat("any-name")).await), text_of(&whole));
    assert_eq!(whole["model"], "simulated");
    assert_eq!(whole["created"], 1_790_000_000);

    let frames = stream(CHAT, chat("simulated")).await;
    let streamed: String = frames
        .iter()
        .filter_map(|frame| serde_json::from_str::<Value>(frame).ok())
        .filter_map(|chunk| {
            chunk["choices"][0]["delta"]["content"]
                .as_str()
                .map(str::to_owned)
        })
        .collect();
    assert_eq!(streamed, text_of(&whole));

    let reply = simulated().chat(&call("simulated")).await.unwrap();
    assert_eq!(reply.text, text_of(&whole));
    let deltas = simulated().chat_stream(&call("simulated")).await.unwrap();
    let deltas: Vec<_> = deltas.map(Result::unwrap).collect().await;
    let streamed: String = deltas.iter().map(|delta| delta.text.as_str()).collect();
    assert_eq!(streamed, reply.text);
    let last = deltas.last().unwrap();
    assert_eq!(
        (last.finish.clone(), last.usage),
        (Some(reply.finish), reply.usage)
    );

    let other = with(
        chat("simulated"),
        "messages",
        json!([{"role": "user", "content": "x"}]),
    );
    assert_ne!(text_of(&ok(CHAT, other).await), text_of(&whole));
}

#[tokio::test]
async fn usage_is_what_was_read_and_written() {
    let whole = ok(CHAT, chat("gpt-4o")).await;
    let usage = usage_of_answer(CHAT, whole.to_string().as_bytes()).unwrap();
    assert_eq!(usage.output_tokens, count("gpt-4o", text_of(&whole)));
    // Two messages of two words each and 4 of template, and 3 before the answer.
    assert_eq!(usage.input_tokens.get(), 2 + 2 + 4 + 4 + 3);

    let reply = simulated().chat(&call("gpt-4o")).await.unwrap();
    assert_eq!(reply.usage, Some(usage));
}

#[tokio::test]
async fn the_maximum_is_kept_whatever_its_name() {
    for field in ["max_tokens", "max_completion_tokens"] {
        let answer = ok(CHAT, with(chat("m"), field, 5)).await;
        assert_eq!(answer["usage"]["completion_tokens"], 5, "{field}");
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        assert_eq!(count("m", text_of(&answer)).get(), 5);
    }
    let roomy = ok(CHAT, with(chat("m"), "max_tokens", 1000)).await;
    assert_eq!(roomy["choices"][0]["finish_reason"], "stop");
    let both = with(with(chat("m"), "max_tokens", 9), "max_completion_tokens", 5);
    assert_eq!(ok(CHAT, both).await["usage"]["completion_tokens"], 5);

    let mut call = call("m");
    call.max_output_tokens = Some(Quantity::new(5));
    let reply = simulated().chat(&call).await.unwrap();
    assert_eq!(reply.finish, Finish::Length);
    assert_eq!(reply.usage.unwrap().output_tokens.get(), 5);
}

#[tokio::test]
async fn n_answers_differ_and_are_all_counted() {
    let body = with(with(chat("m"), "n", 3), "max_tokens", 7);
    let answer = ok(CHAT, body.clone()).await;
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    assert_ne!(
        choices[0]["message"]["content"],
        choices[1]["message"]["content"]
    );
    assert_eq!(answer["usage"]["completion_tokens"], 21);
    let finished = stream(CHAT, body).await;
    assert_eq!(
        finished
            .iter()
            .filter(|frame| frame.contains("\"length\""))
            .count(),
        3
    );
}

#[tokio::test]
async fn a_stream_has_a_role_then_a_frame_a_token_and_usage_only_if_asked_for() {
    let body = with(chat("m"), "max_tokens", 4);
    let frames = stream(CHAT, body.clone()).await;
    assert_eq!(frames.len(), 1 + 4 + 1 + 1);
    let first: Value = serde_json::from_str(&frames[0]).unwrap();
    assert_eq!(first["object"], "chat.completion.chunk");
    assert_eq!(first["choices"][0]["delta"]["role"], "assistant");
    assert!(frames.iter().all(|frame| !frame.contains("usage")));
    assert_eq!(frames.last().unwrap(), "[DONE]");

    let asked = with(body, "stream_options", json!({"include_usage": true}));
    let frames = stream(CHAT, asked).await;
    assert_eq!(frames.len(), 1 + 4 + 1 + 1 + 1);
    assert!(frames[0].contains("\"usage\":null"));
    let usage = usage_of_frame(CHAT, frames[6].as_bytes()).unwrap();
    assert_eq!(usage.output_tokens.get(), 4);
    assert!(frames[6].contains("\"choices\":[]"));
}

#[tokio::test]
async fn responses_are_answered_whole_and_in_events() {
    let body = json!({"model": "m", "instructions": "be brief", "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "hello world"}]},
    ]});
    let whole = ok(Endpoint::Responses, body.clone()).await;
    assert_eq!(whole["status"], "completed");
    let text = whole["output"][0]["content"][0]["text"].as_str().unwrap();
    let usage = usage_of_answer(Endpoint::Responses, whole.to_string().as_bytes()).unwrap();
    assert_eq!(usage.output_tokens, count("m", text));
    assert_eq!(usage.input_tokens.get(), 2 + 2 + 4 + 4 + 3);

    let cut = with(body, "max_output_tokens", 16);
    let frames = stream(Endpoint::Responses, cut).await;
    let events: Vec<Value> = frames
        .iter()
        .map(|frame| serde_json::from_str(frame).unwrap())
        .collect();
    let kinds: Vec<_> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds[..4],
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added"
        ]
    );
    assert_eq!(kinds[4..20], ["response.output_text.delta"; 16]);
    assert_eq!(
        kinds[20..],
        [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete"
        ]
    );
    let numbers = events
        .iter()
        .map(|event| event["sequence_number"].as_u64().unwrap());
    assert!(numbers.eq(0..24));
    let usages: Vec<_> = frames
        .iter()
        .filter_map(|frame| usage_of_frame(Endpoint::Responses, frame.as_bytes()))
        .collect();
    assert_eq!(usages.len(), 1);
    assert_eq!(usages[0].output_tokens.get(), 16);
    let last = &events[23]["response"];
    assert_eq!(last["incomplete_details"]["reason"], "max_output_tokens");

    let plain = json!({"model": "m", "input": "hello world"});
    assert!(
        stream(Endpoint::Responses, plain)
            .await
            .last()
            .unwrap()
            .contains("response.completed")
    );
}

#[tokio::test]
async fn embeddings_are_the_same_for_the_same_text() {
    let body = json!({"model": "m", "input": ["hello world", "x"], "dimensions": 8});
    let answer = ok(Endpoint::Embeddings, body.clone()).await;
    let vector: Vec<f64> = serde_json::from_value(answer["data"][0]["embedding"].clone()).unwrap();
    assert_eq!(vector.len(), 8);
    let length: f64 = vector.iter().map(|part| part * part).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");
    assert_ne!(
        answer["data"][0]["embedding"],
        answer["data"][1]["embedding"]
    );
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": 3, "total_tokens": 3})
    );

    let single = ok(
        Endpoint::Embeddings,
        with(body.clone(), "input", "hello world"),
    )
    .await;
    assert_eq!(
        single["data"][0]["embedding"],
        answer["data"][0]["embedding"]
    );

    let encoded = ok(
        Endpoint::Embeddings,
        with(body, "encoding_format", "base64"),
    )
    .await;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(encoded["data"][0]["embedding"].as_str().unwrap())
        .unwrap();
    let first = f32::from_le_bytes(bytes[..4].try_into().unwrap());
    assert!((f64::from(first) - vector[0]).abs() < 1e-6);

    let plain = ok(Endpoint::Embeddings, json!({"input": [1, 2, 3]})).await;
    assert_eq!(plain["data"].as_array().unwrap().len(), 1);
    assert_eq!(
        plain["data"][0]["embedding"].as_array().unwrap().len(),
        1536
    );
    assert_eq!(plain["usage"]["prompt_tokens"], 3);
}

#[tokio::test]
async fn the_models_are_listed() {
    let list = ok(Endpoint::Models, json!(null)).await;
    let names: Vec<_> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].as_str().unwrap())
        .collect();
    assert_eq!(names, MODELS.map(|model| model.name));
}

#[tokio::test]
async fn a_request_that_openai_would_refuse_is_refused() {
    for (endpoint, body, param) in [
        (CHAT, json!([]), None),
        (CHAT, json!({"model": "m"}), Some("messages")),
        (
            CHAT,
            json!({"model": "m", "messages": []}),
            Some("messages"),
        ),
        (CHAT, with(chat("m"), "max_tokens", 0), Some("max_tokens")),
        (CHAT, with(chat("m"), "max_tokens", 1.5), Some("max_tokens")),
        (CHAT, with(chat("m"), "n", -1), Some("n")),
        (CHAT, with(chat("m"), "model", 1), Some("model")),
        (Endpoint::Responses, json!({"model": "m"}), Some("input")),
        (
            Endpoint::Responses,
            json!({"input": "x", "max_output_tokens": 15}),
            Some("max_output_tokens"),
        ),
        (
            Endpoint::Embeddings,
            json!({"model": "m", "input": []}),
            Some("input"),
        ),
    ] {
        let (status, text) = send(endpoint, &body).await.unwrap();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer["error"]["type"], "invalid_request_error");
        assert_eq!(answer["error"]["param"].as_str(), param, "{body}");
    }
    let error = simulated()
        .chat(&ChatCall {
            turns: vec![],
            instructions: None,
            ..call("m")
        })
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        ProviderError::Refused {
            status: StatusCode::BAD_REQUEST,
            ..
        }
    ));
}

#[tokio::test]
async fn simulated_fail_answers_500() {
    let (status, text) = send(CHAT, &with(chat("simulated-fail"), "stream", true))
        .await
        .unwrap();
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(text.contains("server_error"));
    let call = call("simulated-fail");
    for error in [
        simulated().chat(&call).await.unwrap_err(),
        simulated().chat_stream(&call).await.err().unwrap(),
    ] {
        assert!(matches!(
            error,
            ProviderError::Refused {
                status: StatusCode::INTERNAL_SERVER_ERROR,
                ..
            }
        ));
    }
}

#[tokio::test]
async fn simulated_break_breaks_off_midway() {
    for body in [
        chat("simulated-break"),
        with(chat("simulated-break"), "stream", true),
    ] {
        let request = Forward {
            endpoint: CHAT,
            headers: HeaderMap::new(),
            body: body.to_string().into(),
            patience: Patience::Whole(MINUTE),
        };
        let mut answer = simulated().forward(request).await.unwrap().into_body();
        let mut pieces = 0;
        let error = loop {
            match answer.frame().await.unwrap() {
                Ok(_) => pieces += 1,
                Err(error) => break error,
            }
        };
        assert!(pieces > 0);
        assert!(matches!(error, ProviderError::Broken(_)));
        assert!(answer.frame().await.is_none());
    }
    let call = call("simulated-break");
    assert!(matches!(
        simulated().chat(&call).await.unwrap_err(),
        ProviderError::Broken(_)
    ));
    let deltas: Vec<_> = simulated()
        .chat_stream(&call)
        .await
        .unwrap()
        .collect()
        .await;
    assert!(deltas.len() > 2);
    assert!(matches!(
        deltas.last().unwrap(),
        Err(ProviderError::Broken(_))
    ));
}

#[tokio::test]
async fn simulated_no_usage_reports_none() {
    let whole = ok(CHAT, chat("simulated-no-usage")).await;
    assert!(whole.get("usage").is_none());
    let asked = with(
        chat("simulated-no-usage"),
        "stream_options",
        json!({"include_usage": true}),
    );
    let frames = stream(CHAT, asked).await;
    assert!(
        frames
            .iter()
            .all(|frame| usage_of_frame(CHAT, frame.as_bytes()).is_none())
    );
    let whole = ok(
        Endpoint::Responses,
        json!({"model": "simulated-no-usage", "input": "x"}),
    )
    .await;
    assert_eq!(
        usage_of_answer(Endpoint::Responses, whole.to_string().as_bytes()),
        None
    );
    let whole = ok(
        Endpoint::Embeddings,
        json!({"model": "simulated-no-usage", "input": "x"}),
    )
    .await;
    assert_eq!(
        usage_of_answer(Endpoint::Embeddings, whole.to_string().as_bytes()),
        None
    );
    let reply = simulated().chat(&call("simulated-no-usage")).await.unwrap();
    assert_eq!(reply.usage, None::<TokenUsage>);
}

#[tokio::test]
async fn simulated_ignore_max_goes_on_for_1000_tokens() {
    let body = with(chat("simulated-ignore-max"), "max_tokens", 5);
    let answer = ok(CHAT, body.clone()).await;
    assert_eq!(answer["usage"]["completion_tokens"], 1000);
    assert_eq!(count("m", text_of(&answer)).get(), 1000);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(stream(CHAT, body).await.len(), 1 + 1000 + 1 + 1);
}

#[tokio::test(start_paused = true)]
async fn simulated_slow_takes_50_ms_a_token() {
    let body = with(chat("simulated-slow"), "max_tokens", 10);
    let start = Instant::now();
    ok(CHAT, body.clone()).await;
    assert_eq!(start.elapsed(), Duration::from_millis(500));

    let start = Instant::now();
    stream(CHAT, body.clone()).await;
    assert_eq!(start.elapsed(), Duration::from_millis(500));

    let request = Forward {
        endpoint: CHAT,
        headers: HeaderMap::new(),
        body: body.to_string().into(),
        patience: Patience::Whole(Duration::from_millis(400)),
    };
    let error = simulated().forward(request).await.unwrap_err();
    assert!(matches!(error, ProviderError::Timeout));
}

#[tokio::test(start_paused = true)]
async fn simulated_hang_never_answers() {
    for body in [
        chat("simulated-hang"),
        with(chat("simulated-hang"), "stream", true),
    ] {
        let start = Instant::now();
        let error = send(CHAT, &body).await.unwrap_err();
        assert!(matches!(error, ProviderError::Timeout));
        assert_eq!(start.elapsed(), MINUTE);
    }
    let call = call("simulated-hang");
    assert!(matches!(
        simulated().chat(&call).await.unwrap_err(),
        ProviderError::Timeout
    ));
    assert!(matches!(
        simulated().chat_stream(&call).await.err().unwrap(),
        ProviderError::Timeout
    ));
}
