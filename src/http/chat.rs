//! `POST /api/v1/chat` and `/api/v1/chat/stream`.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, header};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::{
    app::App,
    clock::{self, Clock},
    domain::{feature::FeatureKey, ids::ConversationId, quantity::Quantity},
    http::{
        Dialect,
        caller::Caller,
        error::{ApiError, ApiResult},
        extract::WholeBody,
        guarded::GuardHeaders,
        idempotency::once,
        openapi::{
            answers::{ChatAnswerBody, ChatRequestBody, StreamEvent},
            errors,
        },
    },
    json,
    provider::request::{LONGEST_MODEL_BYTES, LONGEST_USER_BYTES},
    services::{
        chat::{ChatAnswer, ChatAsk, ChatEvent, Status, Verdict},
        usage_view::{Counted, FeatureItem, GuardrailView, UsageView, Warning},
    },
};

/// After this long without a frame, a comment keeps the connection alive.
const SILENCE: Duration = Duration::from_secs(15);

/// What `max_output_tokens` may be.
const MAXIMUM: &str = "a whole number from 1 to 9007199254740991, or null";

/// The body of a chat request; fields unknown here are ignored.
#[derive(Default)]
struct ChatRequest {
    message: Option<String>,
    conversation_id: Option<String>,
    model: Option<String>,
    instructions: Option<String>,
    max_output_tokens: Option<i64>,
    user: Option<String>,
    safety_identifier: Option<String>,
}

/// Answer a message.
#[utoipa::path(
    post, path = "/api/v1/chat", tag = "chat", security(("tenant_key" = [])),
    request_body = ChatRequestBody,
    responses(
        (status = 200, description = "The answer", body = ChatAnswerBody),
        errors::Guarded,
        (status = 404, description = "`conversation_not_found`", body = errors::ErrorBody),
    ),
)]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    WholeBody(body): WholeBody,
) -> ApiResult<Response> {
    let (caller, ask) = ChatRequest::read(&body)?.into_ask(caller, &headers)?;
    let runner = app.clone();
    let run = |caller| async move { answer(&runner, ChatAsk { caller, ..ask }).await };
    once(&app, &caller, &headers, "/api/v1/chat", &body, run).await
}

async fn answer(app: &App, ask: ChatAsk) -> ApiResult<Response> {
    let answer = app.chat.answer(ask).await?;
    let mut response = Json(AnswerBody::of(&answer)).into_response();
    if let Some(verdict) = &answer.verdict {
        let headers = GuardHeaders::of(verdict, verdict.settled.clone(), app.clock.now());
        headers.put(response.headers_mut(), Dialect::Native);
    }
    Ok(response)
}

/// Answer a message as a stream of events.
#[utoipa::path(
    post, path = "/api/v1/chat/stream", tag = "chat", security(("tenant_key" = [])),
    request_body = ChatRequestBody,
    responses(
        (status = 200, description = "Events, each `data: {…}`", body = StreamEvent, content_type = "text/event-stream"),
        errors::Guarded,
        (status = 404, description = "`conversation_not_found`", body = errors::ErrorBody),
    ),
)]
pub async fn stream(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    WholeBody(body): WholeBody,
) -> ApiResult<Response> {
    let (caller, ask) = ChatRequest::read(&body)?.into_ask(caller, &headers)?;
    let runner = app.clone();
    let run = |caller| async move { open_stream(&runner, ChatAsk { caller, ..ask }).await };
    once(&app, &caller, &headers, "/api/v1/chat/stream", &body, run).await
}

async fn open_stream(app: &App, ask: ChatAsk) -> ApiResult<Response> {
    let streamed = app.chat.stream(ask).await?;
    let frames = Frames::new(streamed.conversation_id, streamed.events, app.clock.clone());
    let mut response = Response::new(Body::from_stream(stream::unfold(frames, Frames::next)));
    let head = response.headers_mut();
    head.insert(
        header::CONTENT_TYPE,
        http::HeaderValue::from_static("text/event-stream"),
    );
    head.insert(
        header::CACHE_CONTROL,
        http::HeaderValue::from_static("no-cache"),
    );
    if let Some(verdict) = &streamed.verdict {
        GuardHeaders::of(verdict, verdict.admitted.clone(), app.clock.now())
            .put(head, Dialect::Native);
    }
    Ok(response)
}

impl ChatRequest {
    fn read(body: &[u8]) -> ApiResult<Self> {
        let object = json::read_object(body)?;
        let mut request = Self::default();
        for (key, value) in &object.members {
            match key.as_ref() {
                "message" => request.message = field("message", value, "a text")?,
                "conversation_id" => {
                    request.conversation_id = field(
                        "conversation_id",
                        value,
                        "the id of a conversation, or null",
                    )?;
                }
                "model" => request.model = field("model", value, "the name of a model, or null")?,
                "instructions" => {
                    request.instructions = field("instructions", value, "a text, or null")?;
                }
                "max_output_tokens" => {
                    request.max_output_tokens = field("max_output_tokens", value, MAXIMUM)?;
                }
                "user" => {
                    request.user = field("user", value, "a text of at most 128 bytes, or null")?;
                }
                "safety_identifier" => {
                    request.safety_identifier = field(
                        "safety_identifier",
                        value,
                        "a text of at most 128 bytes, or null",
                    )?;
                }
                _ => {}
            }
        }
        Ok(request)
    }

    fn into_ask(self, mut caller: Caller, headers: &HeaderMap) -> ApiResult<(Caller, ChatAsk)> {
        let message = self
            .message
            .filter(|message| !message.is_empty())
            .ok_or_else(|| {
                ApiError::bad_field(
                    "message",
                    "missing or empty",
                    "a text of at least one character",
                )
            })?;
        for (param, text, longest, accepted) in [
            (
                "model",
                &self.model,
                LONGEST_MODEL_BYTES,
                "the name of a model, at most 128 bytes, or null",
            ),
            (
                "user",
                &self.user,
                LONGEST_USER_BYTES,
                "a text of at most 128 bytes, or null",
            ),
            (
                "safety_identifier",
                &self.safety_identifier,
                LONGEST_USER_BYTES,
                "a text of at most 128 bytes, or null",
            ),
        ] {
            if let Some(text) = text.as_ref().filter(|text| text.len() > longest) {
                return Err(ApiError::bad_field(
                    param,
                    format!("a text of {} bytes", text.len()),
                    accepted,
                ));
            }
        }
        let conversation = self
            .conversation_id
            .as_deref()
            .map(conversation)
            .transpose()?;
        let max_output_tokens = self.max_output_tokens.map(maximum).transpose()?;
        caller.name_user(
            headers,
            self.user
                .as_deref()
                .filter(|user| !user.is_empty())
                .or(self.safety_identifier.as_deref()),
        )?;
        let ask = ChatAsk {
            caller: caller.guarded(),
            message,
            conversation,
            model: self.model.filter(|model| !model.is_empty()),
            instructions: self.instructions,
            max_output_tokens,
        };
        Ok((caller, ask))
    }
}

fn field<T: DeserializeOwned>(
    param: &'static str,
    value: &RawValue,
    accepted: &'static str,
) -> ApiResult<Option<T>> {
    serde_json::from_str(value.get())
        .map_err(|_| ApiError::bad_field(param, json::shown(value), accepted))
}

/// An id that is none of ours can't be there.
fn conversation(id: &str) -> ApiResult<ConversationId> {
    id.parse()
        .map_err(|_| ApiError::ConversationNotFound(id.chars().take(64).collect()))
}

fn maximum(most: i64) -> ApiResult<Quantity> {
    if (1..=Quantity::MAX.get()).contains(&most) {
        return Ok(Quantity::new(most));
    }
    Err(ApiError::bad_field("max_output_tokens", most, MAXIMUM))
}

#[derive(Serialize)]
struct AnswerBody<'a> {
    conversation_id: ConversationId,
    response_id: &'a str,
    response: &'a str,
    model: &'a str,
    status: &'static str,
    usage: UsageView,
    guardrail: Option<GuardrailView>,
}

impl<'a> AnswerBody<'a> {
    fn of(answer: &'a ChatAnswer) -> Self {
        Self {
            conversation_id: answer.conversation_id,
            response_id: &answer.response_id,
            response: &answer.text,
            model: &answer.model,
            status: status(answer.status),
            usage: usage(answer),
            guardrail: answer.verdict.as_ref().map(guardrail),
        }
    }
}

fn status(status: Status) -> &'static str {
    match status {
        Status::Completed => "completed",
        Status::Incomplete => "incomplete",
    }
}

fn usage(answer: &ChatAnswer) -> UsageView {
    let counted = if answer.estimated {
        Counted::Estimated
    } else {
        Counted::ByProvider
    };
    UsageView::of(&answer.tokens, answer.cost, counted)
}

fn guardrail(verdict: &Verdict) -> GuardrailView {
    let mut warnings = Warning::soft_limits(&verdict.admitted);
    warnings.extend(verdict.capped.map(|output| Warning::OutputCapped {
        feature_key: FeatureKey::OutputTokens,
        from: output.asked,
        to: output.granted,
    }));
    warnings.extend(
        verdict
            .unpriced
            .clone()
            .map(|model| Warning::UnpricedModel {
                feature_key: FeatureKey::Cost,
                model,
            }),
    );
    GuardrailView {
        decision: verdict.decision,
        plan_code: Arc::clone(&verdict.plan_code),
        warnings,
        features: verdict
            .settled
            .iter()
            .map(|state| FeatureItem::from(&state))
            .collect(),
    }
}

/// The frames of a streamed answer (`public_sse_v1`).
struct Frames {
    conversation_id: ConversationId,
    stream_id: String,
    events: mpsc::Receiver<ChatEvent>,
    clock: Clock,
    next_event_id: u64,
    has_ended: bool,
}

#[derive(Serialize)]
struct Frame<'a> {
    schema: &'static str,
    event_id: u64,
    stream_id: &'a str,
    server_timestamp: String,
    conversation_id: ConversationId,
    #[serde(flatten)]
    kind: Kind<'a>,
}

#[derive(Serialize)]
#[serde(tag = "kind")]
enum Kind<'a> {
    #[serde(rename = "lifecycle")]
    Lifecycle { status: &'static str },
    #[serde(rename = "message.delta")]
    Delta { delta: &'a str },
    #[serde(rename = "final")]
    Final {
        #[serde(rename = "final")]
        answer: FinalPart<'a>,
    },
    #[serde(rename = "error")]
    Error { error: ErrorPart },
}

#[derive(Serialize)]
struct FinalPart<'a> {
    status: &'static str,
    response_id: &'a str,
    response_text: &'a str,
    model: &'a str,
    usage: UsageView,
    guardrail: Option<GuardrailView>,
}

#[derive(Serialize)]
struct ErrorPart {
    code: &'static str,
    message: String,
    is_retryable: bool,
}

impl Frames {
    fn new(
        conversation_id: ConversationId,
        events: mpsc::Receiver<ChatEvent>,
        clock: Clock,
    ) -> Self {
        Self {
            conversation_id,
            stream_id: format!("chat_{}", clock::new_id().simple()),
            events,
            clock,
            next_event_id: 1,
            has_ended: false,
        }
    }

    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        if self.has_ended {
            return None;
        }
        if self.next_event_id == 1 {
            let frame = self.frame(Kind::Lifecycle {
                status: "in_progress",
            });
            return Some((Ok(frame), self));
        }
        let Ok(event) = tokio::time::timeout(SILENCE, self.events.recv()).await else {
            return Some((Ok(Bytes::from_static(b": keep-alive\n\n")), self));
        };
        let frame = match event {
            Some(ChatEvent::Delta(delta)) => self.frame(Kind::Delta { delta: &delta }),
            Some(ChatEvent::Final(answer)) => {
                self.has_ended = true;
                self.frame(Kind::Final {
                    answer: FinalPart::of(&answer),
                })
            }
            Some(ChatEvent::Failed(error)) => self.failed(error.into()),
            None => self.failed(ApiError::stopped()),
        };
        Some((Ok(frame), self))
    }

    fn failed(&mut self, error: ApiError) -> Bytes {
        self.has_ended = true;
        let (code, message, is_retryable) = (error.code(), error.message(), error.is_retryable());
        self.frame(Kind::Error {
            error: ErrorPart {
                code,
                message,
                is_retryable,
            },
        })
    }

    fn frame(&mut self, kind: Kind<'_>) -> Bytes {
        let frame = Frame {
            schema: "public_sse_v1",
            event_id: self.next_event_id,
            stream_id: &self.stream_id,
            server_timestamp: self.clock.now().to_string(),
            conversation_id: self.conversation_id,
            kind,
        };
        let json = serde_json::to_string(&frame).expect("a frame is plain data");
        self.next_event_id += 1;
        format!("data: {json}\n\n").into()
    }
}

impl<'a> FinalPart<'a> {
    fn of(answer: &'a ChatAnswer) -> Self {
        Self {
            status: status(answer.status),
            response_id: &answer.response_id,
            response_text: &answer.text,
            model: &answer.model,
            usage: usage(answer),
            guardrail: answer.verdict.as_ref().map(guardrail),
        }
    }
}
