//! One borrowed look at the body of a `/v1` request: what decides its reservation, and where a change would go.
//!
//! The body is never rebuilt: fields unknown to tollgate go upstream byte for byte, and a change is a splice.

mod content;
mod maxima;
mod named;

use std::{borrow::Cow, ops::Range};

use bytes::Bytes;
use serde::de::MapAccess;
use serde_json::value::RawValue;

use self::{
    content::{ContentLook, KnownContent, UNREADABLE, for_each_text},
    maxima::Maxima,
    named::{Misread, Named, Names, kind_of},
};
use super::Endpoint;
use crate::{domain::quantity::Quantity, json};

/// What one image counts as (design.md §3): above what any vendor charges for one at full detail.
const TOKENS_PER_IMAGE: i64 = 10_000;
/// What a chat template may add to each message, and to the whole (`hi` is 25 prompt tokens at a llama.cpp server).
const TOKENS_PER_MESSAGE: i64 = 16;
const TOKENS_PER_BODY: i64 = 64;
/// The same for the whole where the texts themselves were tokenized, and nothing is left to guess but the template.
const TOKENS_PER_TOKENIZED_BODY: i64 = 16;
pub const LONGEST_MODEL_BYTES: usize = 128;
pub const LONGEST_USER_BYTES: usize = 128;

/// Why a body is refused before anything is reserved.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadRequest {
    /// It can't be read at all.
    #[error(transparent)]
    Unreadable(#[from] json::Unreadable),
    /// One field is wrong.
    #[error("'{param}' is {found}; write {accepted}")]
    Field {
        param: &'static str,
        found: String,
        accepted: &'static str,
    },
    /// A field asks for what tollgate can't meter.
    #[error("'{param}' is not supported: {reason}")]
    Unsupported {
        param: &'static str,
        reason: &'static str,
    },
}

/// What a request asks for.
#[derive(Clone, Debug)]
pub struct RequestLook {
    pub endpoint: Endpoint,
    pub model: Option<String>,
    pub user: Option<String>,
    pub is_stream: bool,
    /// How many answers (`n`).
    pub answers: i64,
    /// What names content that is not in the body, if anything does.
    pub open_input: Option<&'static str>,
    /// Whether the client asked for the usage chunk itself.
    pub wants_usage_chunk: bool,
    maxima: Maxima,
    messages: i64,
    images: i64,
    image_bytes: usize,
    /// How to turn on `stream_options.include_usage`, if it is not on.
    usage_splice: Option<Splice>,
    body: Bytes,
}

/// A member of the body. Messages are most of it, and looked into as they are come across.
enum MemberLook<'a> {
    Messages(ContentLook),
    Raw(&'a RawValue),
}

impl<'a> json::ReadValue<'a> for MemberLook<'a> {
    fn read<A: MapAccess<'a>>(key: &str, map: &mut A) -> Result<Self, A::Error> {
        if key == "messages" {
            let KnownContent(look) = map.next_value()?;
            return Ok(Self::Messages(look));
        }
        map.next_value().map(Self::Raw)
    }
}

/// The members of a body.
fn read_members(body: &[u8]) -> Result<json::Object<'_, MemberLook<'_>>, json::Unreadable> {
    json::read_object_as(body).or_else(|_| {
        // Messages of a shape that is not known, if it is JSON at all.
        let json::Object { text, members } = json::read_object(body)?;
        let members = members
            .into_iter()
            .map(|(key, value)| (key, MemberLook::Raw(value)));
        Ok(json::Object {
            text,
            members: members.collect(),
        })
    })
}

/// A tool that the model may call.
type Tool<'a> = Named<'a, ToolNames, 1>;

struct ToolNames;

impl Names<1> for ToolNames {
    const NAMES: [&'static str; 1] = ["type"];
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Splice {
    span: Range<usize>,
    text: String,
}

impl RequestLook {
    /// # Errors
    /// [`BadRequest`], naming the field, what was found and what is accepted.
    pub fn read(endpoint: Endpoint, body: Bytes) -> Result<Self, BadRequest> {
        let json::Object { text, members } = read_members(&body)?;
        let mut look = Self {
            endpoint,
            model: None,
            user: None,
            is_stream: false,
            answers: 1,
            open_input: None,
            wants_usage_chunk: false,
            maxima: Maxima::default(),
            messages: 0,
            images: 0,
            image_bytes: 0,
            usage_splice: None,
            body: Bytes::new(),
        };
        let mut has_stream_options = false;
        let mut safety_identifier = None;
        for (key, value) in members {
            let value = match value {
                MemberLook::Messages(messages) => {
                    look.note_content("messages", messages)?;
                    continue;
                }
                MemberLook::Raw(value) => value,
            };
            match key.as_ref() {
                "messages" => look.read_content("messages", value)?,
                "input" => look.read_content("input", value)?,
                "model" => look.model = read_model(value)?,
                "user" => look.user = read_user("user", value)?,
                "safety_identifier" => safety_identifier = read_user("safety_identifier", value)?,
                "stream" => look.is_stream = read_flag("stream", value)?,
                "background" if read_flag("background", value)? => {
                    return Err(BadRequest::Unsupported {
                        param: "background",
                        reason: "it answers before its usage is known; leave it out or write false",
                    });
                }
                // llama.cpp's server goes by the second, if it is there, and on both routes.
                "n" if endpoint != Endpoint::Embeddings => look.note_answers("n", value)?,
                "n_cmpl" if endpoint != Endpoint::Embeddings => {
                    look.note_answers("n_cmpl", value)?;
                }
                "previous_response_id"
                | "conversation"
                | "prompt"
                | "web_search_options"
                | "context_management"
                    if value.get() != "null" =>
                {
                    look.open_input = look.open_input.or(Some(open_field(&key)));
                }
                "tools" => look.read_tools(value)?,
                "stream_options" if endpoint == Endpoint::ChatCompletions => {
                    has_stream_options = true;
                    look.read_stream_options(text, value)?;
                }
                key if look.maxima.note(endpoint, key, value, text)? => {}
                key => check_case(key)?,
            }
        }
        if endpoint == Endpoint::ChatCompletions && !has_stream_options {
            let at = after_brace(text, 0);
            look.usage_splice = Some(Splice {
                span: at..at,
                text: r#""stream_options":{"include_usage":true},"#.to_owned(),
            });
        }
        let user = look.user.take().filter(|user| !user.is_empty());
        look.user = user.or(safety_identifier);
        look.messages = look.messages.max(1);
        look.body = body;
        Ok(look)
    }

    /// The largest output per answer that the client named; `None` if it named none.
    #[must_use]
    pub fn named_maximum(&self) -> Option<Quantity> {
        self.maxima.named()
    }

    /// An upper bound of the input that costs nothing: a token is at least a byte, and templates add some.
    #[must_use]
    pub fn input_bound(&self) -> Quantity {
        Quantity::from_count(self.body.len() - self.image_bytes)
            .plus(self.template_tokens())
            .plus(Quantity::new(TOKENS_PER_BODY))
    }

    /// A tighter bound, by `count`ing the tokens of each text that goes to the model.
    #[must_use]
    pub fn tokenized_input(&self, count: impl Fn(&str) -> Quantity) -> Quantity {
        let slack = self
            .template_tokens()
            .plus(Quantity::new(TOKENS_PER_TOKENIZED_BODY));
        self.text_tokens(count).plus(slack).min(self.input_bound())
    }

    /// What the input most likely was, where the provider does not say: its texts, images, and three tokens of
    /// template a message and for the answer's beginning, as OpenAI's models have.
    #[must_use]
    pub fn estimated_input(&self, count: impl Fn(&str) -> Quantity) -> Quantity {
        let template = Quantity::new(self.messages + 1)
            .times(3)
            .plus(Quantity::new(self.images).times(TOKENS_PER_IMAGE));
        let template = if self.endpoint == Endpoint::Embeddings {
            Quantity::ZERO
        } else {
            template
        };
        self.text_tokens(count).plus(template)
    }

    fn text_tokens(&self, count: impl Fn(&str) -> Quantity) -> Quantity {
        // Of a key that is there twice, the value left out here may be the one that goes to the model.
        if !json::has_unique_keys(&self.body) {
            return self.input_bound();
        }
        let Ok(serde_json::Value::Object(fields)) = serde_json::from_slice(&self.body) else {
            return self.input_bound();
        };
        let mut tokens = Quantity::ZERO;
        for (key, value) in &fields {
            match key.as_str() {
                "messages" | "input" | "instructions" => {
                    for_each_text(value, &mut |text| tokens = tokens.plus(count(text)));
                }
                "tools" | "functions" | "response_format" | "text" => {
                    tokens = tokens.plus(count(&value.to_string()));
                }
                _ => {}
            }
        }
        tokens
    }

    fn template_tokens(&self) -> Quantity {
        Quantity::new(self.messages)
            .times(TOKENS_PER_MESSAGE)
            .plus(Quantity::new(self.images).times(TOKENS_PER_IMAGE))
    }

    /// The body as it goes upstream: the client's own, but for a lowered maximum and the wish for a usage chunk.
    ///
    /// `default_field` is where a maximum goes if the client's body has none.
    #[must_use]
    pub fn body(
        &self,
        lowered_to: Option<Quantity>,
        default_field: impl FnOnce() -> &'static str,
        usage_chunk: UsageChunk,
    ) -> Bytes {
        let mut splices: Vec<Splice> = Vec::new();
        if self.is_stream && usage_chunk == UsageChunk::Ask {
            splices.extend(self.usage_splice.clone());
        }
        self.maxima
            .lower(lowered_to, default_field, &self.body, &mut splices);
        self.spliced(splices)
    }

    fn spliced(&self, mut splices: Vec<Splice>) -> Bytes {
        if splices.is_empty() {
            return self.body.clone();
        }
        splices.sort_by_key(|splice| splice.span.start);
        let added: usize = splices.iter().map(|splice| splice.text.len()).sum();
        let mut body = Vec::with_capacity(self.body.len() + added);
        let mut copied = 0;
        for splice in &splices {
            body.extend_from_slice(&self.body[copied..splice.span.start]);
            body.extend_from_slice(splice.text.as_bytes());
            copied = splice.span.end;
        }
        let rest = &self.body[copied..];
        // A member put in front of an empty object leaves a comma behind.
        if body.ends_with(b",")
            && rest.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'}')
        {
            body.pop();
        }
        body.extend_from_slice(rest);
        body.into()
    }

    /// Of several numbers, which one rules is the upstream's choice: the largest is the bound.
    fn note_answers(&mut self, param: &'static str, value: &RawValue) -> Result<(), BadRequest> {
        self.answers = self.answers.max(read_answers(param, value)?);
        Ok(())
    }

    fn read_content(&mut self, field: &'static str, value: &RawValue) -> Result<(), BadRequest> {
        match serde_json::from_str::<ContentLook>(value.get()) {
            Ok(content) => self.note_content(field, content)?,
            Err(_) => self.open_input = self.open_input.or(UNREADABLE),
        }
        Ok(())
    }

    /// Adds up: of `messages` and `input`, whichever an upstream reads, or both.
    fn note_content(
        &mut self,
        field: &'static str,
        content: ContentLook,
    ) -> Result<(), BadRequest> {
        check_misread(field, content.misread)?;
        self.messages += content.messages;
        self.images += content.images;
        self.image_bytes += content.image_bytes;
        self.open_input = self.open_input.or(content.open);
        // Embeddings take tokens by their numbers, as clients do that count them first; all of them are there.
        if content.has_tokens && self.endpoint != Endpoint::Embeddings {
            self.open_input = self.open_input.or(UNREADABLE);
        }
        Ok(())
    }

    fn read_tools(&mut self, value: &RawValue) -> Result<(), BadRequest> {
        let Ok(tools) = serde_json::from_str::<Option<Vec<Tool>>>(value.get()) else {
            self.open_input = self.open_input.or(UNREADABLE);
            return Ok(());
        };
        for tool in tools.into_iter().flatten() {
            check_misread("tools", tool.misread)?;
            let [kind] = tool.values;
            if !matches!(kind_of(kind).as_deref(), Some("function" | "custom")) {
                self.open_input = self.open_input.or(Some("a hosted tool"));
            }
        }
        Ok(())
    }

    fn read_stream_options(&mut self, text: &str, value: &RawValue) -> Result<(), BadRequest> {
        let span = span_of(text, value.get());
        if value.get() == "null" {
            self.usage_splice = Some(Splice {
                span,
                text: r#"{"include_usage":true}"#.to_owned(),
            });
            return Ok(());
        }
        let options = json::members(value.get()).map_err(|error| {
            // Whatever can't be read here may be read upstream, and switch the count of usage off.
            let (found, accepted) = match json::repeated_key(&error) {
                Some(key) => (
                    format!("an object that has the key {key} more than once"),
                    "it once",
                ),
                None => (json::shown(value), "an object, or null"),
            };
            BadRequest::Field {
                param: "stream_options",
                found,
                accepted,
            }
        })?;
        for (key, _) in &options {
            check_misread("stream_options", Misread::of(key, &["include_usage"]))?;
        }
        match options.iter().find(|(key, _)| key == "include_usage") {
            Some((_, flag)) if flag.get() == "true" => self.wants_usage_chunk = true,
            Some((_, flag)) => {
                self.usage_splice = Some(Splice {
                    span: span_of(text, flag.get()),
                    text: "true".to_owned(),
                });
            }
            None => {
                let at = after_brace(text, span.start);
                self.usage_splice = Some(Splice {
                    span: at..at,
                    text: r#""include_usage":true,"#.to_owned(),
                });
            }
        }
        Ok(())
    }
}

/// Whether the upstream is asked for usage at a stream's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageChunk {
    Ask,
    LeaveAsIs,
}

/// All that is read of a body, or written into it.
const READ: [&str; 24] = [
    "model",
    "messages",
    "input",
    "instructions",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n_predict",
    "n",
    "n_cmpl",
    "tools",
    "functions",
    "response_format",
    "text",
    "user",
    "safety_identifier",
    "background",
    "previous_response_id",
    "conversation",
    "prompt",
    "web_search_options",
    "context_management",
];

/// Refuses a member that a parser which does not heed case takes for another one.
fn check_case(key: &str) -> Result<(), BadRequest> {
    Misread::of(key, &READ).map_or(Ok(()), |misread| Err(misread.refused("")))
}

/// Refuses what is misread within the member `field`.
fn check_misread(field: &'static str, misread: Option<Misread>) -> Result<(), BadRequest> {
    misread.map_or(Ok(()), |misread| {
        Err(misread.refused(&format!(" within '{field}'")))
    })
}

fn open_field(key: &str) -> &'static str {
    match key {
        "previous_response_id" => "previous_response_id",
        "conversation" => "conversation",
        "prompt" => "prompt",
        "web_search_options" => "web_search_options",
        _ => "context_management",
    }
}

fn read_model(value: &RawValue) -> Result<Option<String>, BadRequest> {
    let accepted = "the name of a model, at most 128 bytes";
    match serde_json::from_str::<Option<Cow<str>>>(value.get()) {
        Ok(Some(model)) if model.is_empty() || model.len() > LONGEST_MODEL_BYTES => {
            Err(BadRequest::Field {
                param: "model",
                found: format!("a text of {} bytes", model.len()),
                accepted,
            })
        }
        Ok(model) => Ok(model.map(Cow::into_owned)),
        Err(_) => Err(BadRequest::Field {
            param: "model",
            found: json::shown(value),
            accepted,
        }),
    }
}

fn read_user(param: &'static str, value: &RawValue) -> Result<Option<String>, BadRequest> {
    let accepted = "a text of at most 128 bytes";
    match serde_json::from_str::<Option<Cow<str>>>(value.get()) {
        Ok(Some(user)) if user.len() > LONGEST_USER_BYTES => Err(BadRequest::Field {
            param,
            found: format!("a text of {} bytes", user.len()),
            accepted,
        }),
        Ok(user) => Ok(user.map(Cow::into_owned)),
        Err(_) => Err(BadRequest::Field {
            param,
            found: json::shown(value),
            accepted,
        }),
    }
}

fn read_flag(param: &'static str, value: &RawValue) -> Result<bool, BadRequest> {
    match value.get() {
        "true" => Ok(true),
        "false" | "null" => Ok(false),
        _ => Err(BadRequest::Field {
            param,
            found: json::shown(value),
            accepted: "true or false",
        }),
    }
}

fn read_answers(param: &'static str, value: &RawValue) -> Result<i64, BadRequest> {
    match serde_json::from_str::<Option<i64>>(value.get()) {
        Ok(None) => Ok(1),
        Ok(Some(answers @ 1..=128)) => Ok(answers),
        _ => Err(BadRequest::Field {
            param,
            found: json::shown(value),
            accepted: "a whole number from 1 to 128",
        }),
    }
}

/// Where `part`, a piece of `whole`, stands in it.
fn span_of(whole: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr().addr() - whole.as_ptr().addr();
    start..start + part.len()
}

/// Just behind the first `{` at or after `from`.
fn after_brace(text: &str, from: usize) -> usize {
    text[from..]
        .find('{')
        .map_or(from, |brace| from + brace + 1)
}

#[cfg(test)]
mod tests;
