//! Writes the simulated model's answers as OpenAI's API has them.

use base64::Engine as _;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    ask::{Ask, Choice, Cut},
    script::Kind,
    words::Numbers,
};
use crate::{
    clock::new_id,
    domain::{time::Timestamp, usage::TokenUsage},
    provider::Endpoint,
};

/// Renders one answer.
pub(super) struct Renderer {
    endpoint: Endpoint,
    id: String,
    /// Seconds since 1970.
    created: i64,
}

impl Renderer {
    pub(super) fn new(endpoint: Endpoint, ask: &Ask, now: Timestamp) -> Self {
        let prefix = match endpoint {
            Endpoint::Responses => "resp_",
            Endpoint::ChatCompletions | Endpoint::Embeddings | Endpoint::Models => "chatcmpl-",
        };
        debug_assert!(endpoint == Endpoint::Embeddings || !ask.choices().is_empty());
        Self {
            endpoint,
            id: format!("{prefix}{}", new_id().simple()),
            created: now.micros().div_euclid(1_000_000),
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn whole(&self, ask: &Ask) -> Value {
        match self.endpoint {
            Endpoint::Responses => self.response(ask, &Progress::Done),
            Endpoint::Embeddings => embeddings(ask),
            Endpoint::ChatCompletions | Endpoint::Models => self.completion(ask),
        }
    }

    /// The frames of a stream.
    pub(super) fn events(&self, ask: &Ask) -> Vec<(Kind, Bytes)> {
        match self.endpoint {
            Endpoint::Responses => self.response_events(ask),
            Endpoint::ChatCompletions | Endpoint::Embeddings | Endpoint::Models => self.chunks(ask),
        }
    }

    fn completion(&self, ask: &Ask) -> Value {
        let choices: Vec<Value> = ask
            .choices()
            .iter()
            .enumerate()
            .map(|(index, choice)| {
                json!({
                    "index": index,
                    "message": {"role": "assistant", "content": choice.tokens.concat(), "refusal": null},
                    "logprobs": null,
                    "finish_reason": choice.finish_reason(),
                })
            })
            .collect();
        let mut body = json!({
            "id": self.id, "object": "chat.completion", "created": self.created,
            "model": ask.model, "choices": choices,
        });
        if let Some(usage) = ask.reported_usage() {
            body["usage"] = chat_usage(usage);
        }
        body
    }

    fn chunks(&self, ask: &Ask) -> Vec<(Kind, Bytes)> {
        let choices = ask.choices().iter().enumerate();
        let mut frames: Vec<_> = choices
            .flat_map(|(index, choice)| self.chunks_of(ask, index, choice))
            .collect();
        if let (true, Some(usage)) = (ask.include_usage, ask.reported_usage()) {
            let mut chunk = self.chunk(ask, json!([]));
            chunk["usage"] = chat_usage(usage);
            frames.push((Kind::Frame, data(&chunk)));
        }
        frames.push((Kind::Frame, Bytes::from_static(b"data: [DONE]\n\n")));
        frames
    }

    fn chunks_of(&self, ask: &Ask, index: usize, choice: &Choice) -> Vec<(Kind, Bytes)> {
        let frame = |kind, delta: Value, finish: Option<&str>| {
            let choices = json!([{
                "index": index, "delta": delta, "logprobs": null, "finish_reason": finish,
            }]);
            (kind, data(&self.chunk(ask, choices)))
        };
        let role = json!({"role": "assistant", "content": "", "refusal": null});
        let mut frames = vec![frame(Kind::Frame, role, None)];
        for token in &choice.tokens {
            frames.push(frame(Kind::Token, json!({"content": token}), None));
        }
        frames.push(frame(Kind::Frame, json!({}), Some(choice.finish_reason())));
        frames
    }

    fn chunk(&self, ask: &Ask, choices: Value) -> Value {
        let mut chunk = json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created,
            "model": ask.model, "choices": choices,
        });
        if ask.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn response(&self, ask: &Ask, progress: &Progress) -> Value {
        let choice = ask.choice(0);
        let (status, output, usage) = match progress {
            Progress::Begun => ("in_progress", json!([]), None),
            Progress::Done => {
                let message = self.message(choice, &choice.tokens.concat());
                (status_of(choice), json!([message]), ask.reported_usage())
            }
        };
        let incomplete = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
        json!({
            "id": self.id, "object": "response", "created_at": self.created, "status": status,
            "error": null, "incomplete_details": incomplete, "model": ask.model,
            "output": output, "usage": usage.map(responses_usage),
        })
    }

    fn message(&self, choice: &Choice, text: &str) -> Value {
        json!({
            "id": self.item_id(), "type": "message", "status": status_of(choice), "role": "assistant",
            "content": [text_part(text)],
        })
    }

    fn item_id(&self) -> String {
        self.id.replace("resp_", "msg_")
    }

    fn response_events(&self, ask: &Ask) -> Vec<(Kind, Bytes)> {
        let choice = ask.choice(0);
        let (item, text) = (self.item_id(), choice.tokens.concat());
        let mut events = Events::default();
        let begun = self.response(ask, &Progress::Begun);
        events.add("response.created", json!({"response": begun}));
        events.add("response.in_progress", json!({"response": begun}));
        let empty = json!({
            "id": item, "type": "message", "status": "in_progress", "role": "assistant", "content": [],
        });
        events.add(
            "response.output_item.added",
            json!({"output_index": 0, "item": empty}),
        );
        let place = json!({"item_id": item, "output_index": 0, "content_index": 0});
        events.add(
            "response.content_part.added",
            with(&place, "part", text_part("")),
        );
        for token in &choice.tokens {
            events.add(
                "response.output_text.delta",
                with(&place, "delta", json!(token)),
            );
        }
        events.add(
            "response.output_text.done",
            with(&place, "text", json!(text)),
        );
        events.add(
            "response.content_part.done",
            with(&place, "part", text_part(&text)),
        );
        let message = self.message(choice, &text);
        events.add(
            "response.output_item.done",
            json!({"output_index": 0, "item": message}),
        );
        let last = match choice.cut {
            Cut::No => "response.completed",
            Cut::AtMaximum => "response.incomplete",
        };
        events.add(
            last,
            json!({"response": self.response(ask, &Progress::Done)}),
        );
        events.0
    }
}

enum Progress {
    Begun,
    Done,
}

/// Numbers the events of a response.
#[derive(Default)]
struct Events(Vec<(Kind, Bytes)>);

impl Events {
    fn add(&mut self, name: &str, mut body: Value) {
        body["type"] = name.into();
        body["sequence_number"] = self.0.len().into();
        let kind = if name == "response.output_text.delta" {
            Kind::Token
        } else {
            Kind::Frame
        };
        let frame = format!("event: {name}\ndata: {body}\n\n");
        self.0.push((kind, frame.into()));
    }
}

fn with(place: &Value, name: &str, value: Value) -> Value {
    let mut body = place.clone();
    body[name] = value;
    body
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": []})
}

fn status_of(choice: &Choice) -> &'static str {
    match choice.cut {
        Cut::No => "completed",
        Cut::AtMaximum => "incomplete",
    }
}

fn data(body: &Value) -> Bytes {
    format!("data: {body}\n\n").into()
}

fn chat_usage(usage: TokenUsage) -> Value {
    let (input, output) = (usage.input_tokens, usage.output_tokens);
    json!({
        "prompt_tokens": input, "completion_tokens": output, "total_tokens": input.plus(output),
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    })
}

fn responses_usage(usage: TokenUsage) -> Value {
    let (input, output) = (usage.input_tokens, usage.output_tokens);
    json!({
        "input_tokens": input, "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": output, "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": input.plus(output),
    })
}

fn embeddings(ask: &Ask) -> Value {
    let data: Vec<Value> = ask
        .inputs
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let vector = vector(text, ask.dimensions);
            let embedding = if ask.base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|part| part.to_le_bytes()).collect();
                json!(base64::engine::general_purpose::STANDARD.encode(bytes))
            } else {
                json!(vector)
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    let mut body = json!({"object": "list", "data": data, "model": ask.model});
    if let Some(usage) = ask.reported_usage() {
        let input = usage.input_tokens;
        body["usage"] = json!({"prompt_tokens": input, "total_tokens": input});
    }
    body
}

/// A vector of length 1 that depends on the text alone.
fn vector(text: &str, dimensions: usize) -> Vec<f32> {
    let mut numbers = Numbers::of(text, 0);
    let parts: Vec<f32> = (0..dimensions)
        .map(|_| {
            let sixteen_bits = u16::try_from(numbers.next() >> 48).expect("16 bits are left");
            f32::from(sixteen_bits) - f32::from(1_u16 << 15)
        })
        .collect();
    let length = parts.iter().map(|part| part * part).sum::<f32>().sqrt();
    parts.iter().map(|part| part / length.max(1.0)).collect()
}
