//! What is read of a chat completion, whole or in pieces; servers differ in the rest.

use serde::Deserialize;

use super::{ChatDelta, ChatReply, Finish, ProviderError};
use crate::domain::usage::TokenUsage;

/// A whole answer, or one chunk of a stream.
#[derive(Deserialize)]
pub(super) struct Completion {
    id: Option<String>,
    model: Option<String>,
    choices: Option<Vec<Choice>>,
    error: Option<Reason>,
}

#[derive(Deserialize)]
struct Choice {
    /// `delta` in streams.
    #[serde(alias = "delta")]
    message: Option<Message>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
    /// What a model says instead of an answer.
    refusal: Option<String>,
}

/// An error in the midst of a stream.
#[derive(Deserialize)]
struct Reason {
    code: Option<serde_json::Value>,
    r#type: Option<String>,
}

/// For what is no chat completion. Without a part of it: an answer must not reach a log.
pub(super) fn unreadable() -> ProviderError {
    ProviderError::Broken("the answer is no chat completion".to_owned())
}

impl Completion {
    pub(super) fn parse(json: &str) -> Result<Self, ProviderError> {
        serde_json::from_str(json).map_err(|_| unreadable())
    }

    /// The error it reports, if it does; its message is left out, since it may quote the prompt.
    pub(super) fn error(&self) -> Option<ProviderError> {
        let reason = self.error.as_ref()?;
        let code = match &reason.code {
            Some(serde_json::Value::String(code)) => Some(code.clone()),
            Some(serde_json::Value::Number(code)) => Some(code.to_string()),
            _ => None,
        };
        let mut name = code
            .or_else(|| reason.r#type.clone())
            .unwrap_or_else(|| "unnamed".to_owned());
        name.truncate(name.floor_char_boundary(64));
        Some(ProviderError::Broken(format!(
            "the provider reports the error '{name}'"
        )))
    }

    pub(super) fn is_finished(&self) -> bool {
        let choices = self.choices.iter().flatten();
        choices
            .into_iter()
            .any(|choice| choice.finish_reason.is_some())
    }

    /// # Errors
    /// There is no answer in it.
    pub(super) fn into_reply(self, usage: Option<TokenUsage>) -> Result<ChatReply, ProviderError> {
        if let Some(error) = self.error() {
            return Err(error);
        }
        let choice = self.choices.into_iter().flatten().next();
        let choice = choice.ok_or_else(unreadable)?;
        Ok(ChatReply {
            response_id: self.id.unwrap_or_default(),
            model: self.model.unwrap_or_default(),
            finish: Finish::from(choice.finish_reason.as_deref().unwrap_or("stop")),
            text: choice.text(),
            usage,
        })
    }

    pub(super) fn into_delta(self, usage: Option<TokenUsage>) -> ChatDelta {
        let choice = self.choices.into_iter().flatten().next();
        let finish = choice
            .as_ref()
            .and_then(|choice| choice.finish_reason.as_deref());
        ChatDelta {
            response_id: self.id.filter(|id| !id.is_empty()),
            model: self.model.filter(|model| !model.is_empty()),
            finish: finish.map(Finish::from),
            text: choice.map(Choice::text).unwrap_or_default(),
            usage,
        }
    }
}

impl Choice {
    fn text(self) -> String {
        let message = self
            .message
            .map(|message| message.content.or(message.refusal));
        message.flatten().unwrap_or_default()
    }
}
