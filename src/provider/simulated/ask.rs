//! What a request asks of the simulated model, and what the answer will be.

use std::time::Duration;

use serde_json::{Map, Value};

use super::{
    Behaviour, IGNORE_MAX_TOKENS, MODELS, TOKEN_PACE,
    script::{Kind, Step},
    words::{Numbers, tokens},
};
use crate::{
    domain::{quantity::Quantity, usage::TokenUsage},
    provider::{Endpoint, tokens::count},
};

/// Tokens that a chat template adds: 4 a message, 3 before the answer (OpenAI's cookbook, "How to count tokens").
const PER_MESSAGE: i64 = 4;
const BEFORE_ANSWER: i64 = 3;

/// An answer that is not cut has from 24 to 56 tokens.
const SHORTEST: usize = 24;
const LENGTHS: usize = 33;

/// The least `max_output_tokens` that `/v1/responses` accepts.
const LEAST_RESPONSES_MAX: usize = 16;

pub(super) struct Ask {
    pub(super) model: String,
    pub(super) behaviour: Behaviour,
    pub(super) stream: bool,
    /// `stream_options.include_usage` of chat completions.
    pub(super) include_usage: bool,
    pub(super) input_tokens: Quantity,
    /// The texts to embed: `/v1/embeddings` only.
    pub(super) inputs: Vec<String>,
    pub(super) dimensions: usize,
    pub(super) base64: bool,
    choices: Vec<Choice>,
}

/// One of the answers asked for.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    /// One token each; the text is all of them.
    pub(super) tokens: Vec<String>,
    pub(super) cut: Cut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    No,
    AtMaximum,
}

impl Choice {
    pub(super) fn finish_reason(&self) -> &'static str {
        match self.cut {
            Cut::No => "stop",
            Cut::AtMaximum => "length",
        }
    }
}

/// A request that OpenAI would answer with 400.
#[derive(Debug)]
pub(super) struct BadRequest {
    pub(super) message: String,
    pub(super) param: Option<&'static str>,
}

impl BadRequest {
    fn new(param: Option<&'static str>, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            param,
        }
    }
}

impl Ask {
    pub(super) fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Self, BadRequest> {
        let body: Map<String, Value> = serde_json::from_slice(body)
            .map_err(|_| BadRequest::new(None, "The body of your request is not a JSON object."))?;
        let model = match body.get("model") {
            None | Some(Value::Null) => MODELS[0].name.to_owned(),
            Some(Value::String(name)) => name.clone(),
            Some(_) => return Err(BadRequest::new(Some("model"), "'model' must be a string.")),
        };
        match endpoint {
            Endpoint::Embeddings => Self::of_embeddings(&body, model),
            Endpoint::ChatCompletions | Endpoint::Models => Self::of_chat(&body, model),
            Endpoint::Responses => Self::of_responses(&body, model),
        }
    }

    fn of_chat(body: &Map<String, Value>, model: String) -> Result<Self, BadRequest> {
        let messages = match body.get("messages") {
            Some(Value::Array(messages)) if !messages.is_empty() => messages,
            _ => {
                let message = "'messages' must be a list with at least one message.";
                return Err(BadRequest::new(Some("messages"), message));
            }
        };
        let max = match whole_number(body, "max_completion_tokens", 1)? {
            Some(max) => Some(max),
            None => whole_number(body, "max_tokens", 1)?,
        };
        let answers = whole_number(body, "n", 1)?.unwrap_or(1).min(128);
        let include_usage = body
            .get("stream_options")
            .and_then(|options| options.get("include_usage"))
            .is_some_and(|value| value == true);
        let prompt = Prompt::of_messages(messages.iter(), body.get("tools"));
        let mut ask = Self::of_prompt(body, model, &prompt, max, answers);
        ask.include_usage = include_usage;
        Ok(ask)
    }

    fn of_responses(body: &Map<String, Value>, model: String) -> Result<Self, BadRequest> {
        let max = whole_number(body, "max_output_tokens", LEAST_RESPONSES_MAX)?;
        let items = match body.get("input") {
            Some(text @ Value::String(_)) => std::slice::from_ref(text),
            Some(Value::Array(items)) => items.as_slice(),
            _ => {
                let message = "'input' must be a string or a list of items.";
                return Err(BadRequest::new(Some("input"), message));
            }
        };
        let all = body.get("instructions").into_iter().chain(items);
        let prompt = Prompt::of_messages(all, body.get("tools"));
        Ok(Self::of_prompt(body, model, &prompt, max, 1))
    }

    fn of_embeddings(body: &Map<String, Value>, model: String) -> Result<Self, BadRequest> {
        let inputs = match body.get("input") {
            Some(Value::String(text)) => vec![text.clone()],
            Some(Value::Array(list)) if !list.is_empty() && list.iter().all(Value::is_number) => {
                vec![Value::Array(list.clone()).to_string()]
            }
            Some(Value::Array(list)) => list.iter().map(embedded_text).collect(),
            _ => Vec::new(),
        };
        if inputs.is_empty() {
            let message = "'input' must be a string or a list that is not empty.";
            return Err(BadRequest::new(Some("input"), message));
        }
        let input_tokens = match body.get("input") {
            Some(input) => count_embedded(&model, input),
            None => Quantity::ZERO,
        };
        let dimensions = whole_number(body, "dimensions", 1)?
            .unwrap_or(1536)
            .min(3072);
        Ok(Self {
            behaviour: behaviour_of(&model),
            model,
            stream: false,
            include_usage: false,
            input_tokens,
            inputs,
            dimensions,
            base64: body
                .get("encoding_format")
                .is_some_and(|value| value == "base64"),
            choices: Vec::new(),
        })
    }

    fn of_prompt(
        body: &Map<String, Value>,
        model: String,
        prompt: &Prompt,
        max: Option<usize>,
        answers: usize,
    ) -> Self {
        let behaviour = behaviour_of(&model);
        let choices = (0..answers)
            .map(|index| choice(prompt, behaviour, max, index))
            .collect();
        Self {
            input_tokens: prompt.tokens(&model),
            model,
            behaviour,
            stream: body.get("stream").is_some_and(|value| value == true),
            include_usage: false,
            inputs: Vec::new(),
            dimensions: 0,
            base64: false,
            choices,
        }
    }

    pub(super) fn choices(&self) -> &[Choice] {
        &self.choices
    }

    pub(super) fn choice(&self, index: usize) -> &Choice {
        &self.choices[index]
    }

    fn output_tokens(&self) -> usize {
        self.choices.iter().map(|choice| choice.tokens.len()).sum()
    }

    /// What it reports: nothing, if that is what the model does.
    pub(super) fn reported_usage(&self) -> Option<TokenUsage> {
        if self.behaviour == Behaviour::NoUsage {
            return None;
        }
        Some(TokenUsage {
            input_tokens: self.input_tokens,
            output_tokens: Quantity::from_count(self.output_tokens()),
            ..TokenUsage::default()
        })
    }

    /// How long a whole answer takes.
    pub(super) fn time_to_answer(&self) -> Duration {
        let tokens = u32::try_from(self.output_tokens()).unwrap_or(u32::MAX);
        match self.behaviour {
            Behaviour::Slow => TOKEN_PACE.saturating_mul(tokens),
            Behaviour::Plain
            | Behaviour::Fail
            | Behaviour::Break
            | Behaviour::NoUsage
            | Behaviour::IgnoreMax
            | Behaviour::Hang => Duration::ZERO,
        }
    }

    /// The pieces of a stream in time, as the model behaves.
    pub(super) fn script<T>(&self, pieces: Vec<(Kind, T)>) -> Vec<Step<T>> {
        let half = pieces.len() / 2;
        let mut steps = Vec::with_capacity(pieces.len());
        for (index, (kind, piece)) in pieces.into_iter().enumerate() {
            if self.behaviour == Behaviour::Break && index == half {
                steps.push(Step::BreakOff);
                break;
            }
            if self.behaviour == Behaviour::Slow && kind == Kind::Token {
                steps.push(Step::Wait(TOKEN_PACE));
            }
            steps.push(Step::Piece(piece));
        }
        steps
    }
}

fn behaviour_of(model: &str) -> Behaviour {
    let listed = MODELS.iter().find(|listed| listed.name == model);
    listed.map_or(Behaviour::Plain, |listed| listed.behaviour)
}

fn choice(prompt: &Prompt, behaviour: Behaviour, max: Option<usize>, index: usize) -> Choice {
    let salt = u64::try_from(index).expect("a usize has at most 64 bits");
    let mut numbers = Numbers::of(&prompt.text, salt);
    let natural = SHORTEST + numbers.below(LENGTHS);
    let (length, cut) = match (behaviour, max) {
        (Behaviour::IgnoreMax, _) => (IGNORE_MAX_TOKENS, Cut::No),
        (_, Some(max)) if max < natural => (max, Cut::AtMaximum),
        (_, Some(_) | None) => (natural, Cut::No),
    };
    Choice {
        tokens: tokens(&mut numbers, length),
        cut,
    }
}

/// What the model reads.
struct Prompt {
    /// Every text in it.
    text: String,
    messages: usize,
}

impl Prompt {
    fn of_messages<'a>(messages: impl Iterator<Item = &'a Value>, tools: Option<&Value>) -> Self {
        let mut prompt = Self {
            text: String::new(),
            messages: 0,
        };
        for message in messages.filter(|message| !message.is_null()) {
            prompt.messages += 1;
            add_text(&mut prompt.text, message);
        }
        if let Some(tools) = tools {
            prompt.text.push_str(&tools.to_string());
        }
        prompt
    }

    fn tokens(&self, model: &str) -> Quantity {
        let template = Quantity::from_count(self.messages).times(PER_MESSAGE);
        count(model, &self.text)
            .plus(template)
            .plus(Quantity::new(BEFORE_ANSWER))
    }
}

/// Adds the texts of a message, of its parts, and of calls of tools and their results.
fn add_text(text: &mut String, value: &Value) {
    match value {
        Value::String(part) => text.push_str(part),
        Value::Array(parts) => parts.iter().for_each(|part| add_text(text, part)),
        Value::Object(object) => {
            for name in [
                "content",
                "text",
                "output",
                "tool_calls",
                "function",
                "name",
                "arguments",
            ] {
                if let Some(part) = object.get(name) {
                    add_text(text, part);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A text, or a list of tokens, which stands for the text it is written as.
fn embedded_text(input: &Value) -> String {
    match input {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn count_embedded(model: &str, input: &Value) -> Quantity {
    match input {
        Value::String(text) => count(model, text),
        Value::Array(list) => list.iter().map(|item| count_embedded(model, item)).sum(),
        // A token that the client counted itself.
        Value::Number(_) => Quantity::ONE,
        Value::Null | Value::Bool(_) | Value::Object(_) => Quantity::ZERO,
    }
}

/// A whole number from `least`, if the field is there and not `null`.
fn whole_number(
    body: &Map<String, Value>,
    field: &'static str,
    least: usize,
) -> Result<Option<usize>, BadRequest> {
    let value = match body.get(field) {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value,
    };
    let number = value
        .as_u64()
        .and_then(|number| usize::try_from(number).ok());
    match number {
        Some(number) if least <= number => Ok(Some(number)),
        _ => Err(BadRequest::new(
            Some(field),
            format!("'{field}' must be a whole number of at least {least}."),
        )),
    }
}
