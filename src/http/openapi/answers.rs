//! Bodies that are read or written by hand for speed, or passed through, as the API's description shows them.

use crate::{
    domain::{ids::ConversationId, time::Timestamp},
    services::usage_view::{GuardrailView, UsageView},
};

/// A chat message. Fields that are not known are ignored.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"message": "hi"}))]
#[expect(dead_code, reason = "describes what http/chat.rs reads")]
pub struct ChatRequestBody {
    #[schema(min_length = 1)]
    message: String,
    /// Goes on with a conversation; left out, one begins.
    conversation_id: Option<ConversationId>,
    #[schema(max_length = 128)]
    model: Option<String>,
    instructions: Option<String>,
    #[schema(minimum = 1)]
    max_output_tokens: Option<i64>,
    /// The end user, unless a key or `X-Tollgate-User` names one.
    #[schema(max_length = 128)]
    user: Option<String>,
    #[schema(max_length = 128)]
    safety_identifier: Option<String>,
}

/// The model's answer, what it used, and where the limits stand after it.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes what http/chat.rs writes")]
pub struct ChatAnswerBody {
    conversation_id: ConversationId,
    response_id: String,
    response: String,
    model: String,
    /// `completed`, or `incomplete`: the maximum was reached.
    #[schema(pattern = "^(completed|incomplete)$")]
    status: String,
    usage: UsageView,
    /// Null with guardrails off.
    #[schema(required = true)]
    guardrail: Option<GuardrailView>,
}

/// One event of a stream.
#[derive(utoipa::ToSchema)]
#[expect(
    dead_code,
    reason = "describes what http/chat.rs and http/openai write"
)]
pub struct StreamEvent {
    /// JSON: on `/api/v1/chat/stream` a `ChatFrame`, on `/v1` the upstream's chunk, or `[DONE]`.
    data: String,
}

/// One frame of a streamed answer, after `data: `. First `lifecycle`, then `message.delta`, last one of `final` and
/// `error`.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes what http/chat.rs writes")]
pub struct ChatFrame {
    #[schema(pattern = "^public_sse_v1$")]
    schema: String,
    #[schema(minimum = 1)]
    event_id: u64,
    stream_id: String,
    server_timestamp: Timestamp,
    #[schema(pattern = "^(lifecycle|message\\.delta|final|error)$")]
    kind: String,
    conversation_id: ConversationId,
    /// Of `lifecycle`: `in_progress`.
    #[schema(required = false)]
    status: Option<String>,
    /// Of `message.delta`.
    #[schema(required = false)]
    delta: Option<String>,
    #[schema(required = false)]
    r#final: Option<ChatFinal>,
    #[schema(required = false)]
    error: Option<ChatError>,
}

/// The whole answer, at the end of a stream.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes what http/chat.rs writes")]
pub struct ChatFinal {
    status: String,
    response_id: String,
    response_text: String,
    model: String,
    usage: UsageView,
    #[schema(required = true)]
    guardrail: Option<GuardrailView>,
}

/// Why a stream ended early.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes what http/chat.rs writes")]
pub struct ChatError {
    code: String,
    message: String,
    is_retryable: bool,
}

/// A request as OpenAI's API takes it; fields unknown to tollgate go upstream untouched.
#[derive(utoipa::ToSchema)]
#[schema(example = json!({"model": "gpt-5.1", "messages": [{"role": "user", "content": "hi"}]}))]
#[expect(dead_code, reason = "describes what provider/request.rs reads")]
pub struct OpenAiRequest {
    #[schema(max_length = 128)]
    model: Option<String>,
    stream: Option<bool>,
    #[schema(minimum = 1, maximum = 128)]
    n: Option<i64>,
    user: Option<String>,
}

/// An error below `/v1`: tollgate's own, with all of `ErrorBody`, or the upstream's, as it came.
#[derive(utoipa::ToSchema)]
#[expect(
    dead_code,
    reason = "describes what http/error/body.rs writes, or passes through"
)]
pub struct OpenAiErrorBody {
    error: OpenAiErrorObject,
}

/// What went wrong, as OpenAI's clients read it.
#[derive(utoipa::ToSchema)]
#[expect(
    dead_code,
    reason = "describes what http/error/body.rs writes, or passes through"
)]
pub struct OpenAiErrorObject {
    message: String,
    #[serde(rename = "type")]
    #[schema(required = false)]
    kind: Option<String>,
    #[schema(required = false)]
    param: Option<String>,
    #[schema(required = false)]
    code: Option<String>,
    #[schema(required = false)]
    request_id: Option<String>,
}

/// The upstream's answer, as it came.
#[derive(utoipa::ToSchema)]
pub struct OpenAiAnswer {}
