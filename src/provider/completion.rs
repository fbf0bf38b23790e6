//! What is read of a chat completion, whole or in pieces; servers differ in the rest.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    ChatDelta, ChatReply, Finish, ProviderError,
    lenient::{Number, Text, Texts},
};
use crate::domain::usage::TokenUsage;

/// A whole answer, or one chunk of a stream.
#[derive(Deserialize)]
pub(super) struct Completion<'a> {
    #[serde(borrow, default)]
    pub(super) id: Text<'a>,
    #[serde(borrow, default)]
    model: Text<'a>,
    /// Seconds since 1970.
    #[serde(default)]
    pub(super) created: Number,
    #[serde(borrow)]
    pub(super) choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow)]
    pub(super) usage: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// One of the answers that were asked for, or a piece of it.
#[derive(Deserialize)]
pub(super) struct Choice<'a> {
    #[serde(default)]
    index: Number,
    #[serde(borrow)]
    message: Option<Message<'a>>,
    /// In streams.
    #[serde(borrow)]
    delta: Option<Message<'a>>,
    #[serde(borrow, default)]
    finish_reason: Text<'a>,
}

#[derive(Default, Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    content: Texts<'a>,
    /// What a model says instead of an answer.
    #[serde(borrow, default)]
    refusal: Texts<'a>,
    // Two names that servers of reasoning models use; some send both.
    #[serde(borrow, default)]
    reasoning_content: Texts<'a>,
    #[serde(borrow, default)]
    reasoning: Texts<'a>,
    #[serde(borrow, default)]
    tool_calls: Texts<'a>,
    #[serde(borrow, default)]
    function_call: Texts<'a>,
    #[serde(borrow, default)]
    audio: Texts<'a>,
}

/// An error in the midst of a stream.
#[derive(Default, Deserialize)]
struct Reason<'a> {
    #[serde(borrow)]
    code: Option<&'a RawValue>,
    #[serde(borrow, default)]
    r#type: Text<'a>,
}

/// For what is no chat completion. Without a part of it: an answer must not reach a log.
pub(super) fn unreadable() -> ProviderError {
    ProviderError::Broken("the answer is no chat completion".to_owned())
}

impl<'a> Completion<'a> {
    pub(super) fn parse(json: &'a str) -> Result<Self, ProviderError> {
        serde_json::from_str(json).map_err(|_| unreadable())
    }

    pub(super) fn is_error(&self) -> bool {
        self.error.is_some()
    }

    /// The error it reports, if it does; its message is left out, since it may quote the prompt.
    pub(super) fn error(&self) -> Option<ProviderError> {
        let reason: Reason = serde_json::from_str(self.error?.get()).unwrap_or_default();
        let code = reason.code.map(|code| code.get().trim_matches('"'));
        let name = code
            .or(reason.r#type.0.as_deref())
            .filter(|name| !name.starts_with(['{', '[']))
            .unwrap_or("unnamed");
        let name = &name[..name.floor_char_boundary(64)];
        Some(ProviderError::Broken(format!(
            "the provider reports the error '{name}'"
        )))
    }

    pub(super) fn is_finished(&self) -> bool {
        self.choices.iter().flatten().any(Choice::is_finished)
    }

    /// # Errors
    /// There is no answer in it.
    pub(super) fn into_reply(self, usage: Option<TokenUsage>) -> Result<ChatReply, ProviderError> {
        if let Some(error) = self.error() {
            return Err(error);
        }
        let choice = self.choices.into_iter().flatten().next();
        let choice = choice.ok_or_else(unreadable)?;
        let finish = choice.finish().unwrap_or(Finish::Stop);
        let Said { text, unseen } = choice.said();
        Ok(ChatReply {
            response_id: self.id.0.unwrap_or_default().into_owned(),
            model: self.model.0.unwrap_or_default().into_owned(),
            finish,
            text,
            unseen,
            usage,
        })
    }

    pub(super) fn into_delta(self, usage: Option<TokenUsage>) -> ChatDelta {
        let choice = self.choices.into_iter().flatten().next();
        let finish = choice.as_ref().and_then(Choice::finish);
        let Said { text, unseen } = choice.map(Choice::said).unwrap_or_default();
        ChatDelta {
            response_id: self.id.said().map(Cow::into_owned),
            model: self.model.said().map(Cow::into_owned),
            finish,
            text,
            unseen,
            usage,
        }
    }
}

/// What one answer says to a person, and what else the model has put out.
#[derive(Default)]
struct Said {
    text: String,
    unseen: String,
}

impl<'a> Choice<'a> {
    /// The number of the answer that it belongs to.
    pub(super) fn index(&self) -> usize {
        let index = self.index.0.unwrap_or(0);
        usize::try_from(index).unwrap_or(usize::MAX)
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finish_reason
            .0
            .as_deref()
            .is_some_and(|reason| !reason.is_empty())
    }

    fn finish(&self) -> Option<Finish> {
        let reason = self.finish_reason.0.as_deref();
        reason.filter(|reason| !reason.is_empty()).map(Finish::from)
    }

    /// Some servers put a piece under both names.
    fn parts(self) -> [Texts<'a>; 6] {
        let [delta, message] = [self.delta, self.message].map(|it| it.unwrap_or_default().parts());
        if delta.iter().all(Texts::is_empty) {
            message
        } else {
            delta
        }
    }

    /// Everything that the model has put out.
    pub(super) fn texts(self) -> impl Iterator<Item = Cow<'a, str>> {
        self.parts().into_iter().flat_map(Texts::all)
    }

    fn said(self) -> Said {
        let [content, refusal, rest @ ..] = self.parts();
        let (text, other) = if content.said.is_empty() {
            (refusal, content)
        } else {
            (content, refusal)
        };
        let mut said = Said::default();
        said.text.extend(text.said);
        let rest = rest.into_iter().flat_map(Texts::all);
        let unseen = text.thought.into_iter().chain(other.all()).chain(rest);
        said.unseen.extend(unseen);
        said
    }
}

impl<'a> Message<'a> {
    /// Content, refusal, reasoning, and calls of tools, the old one and the transcript of speech.
    fn parts(self) -> [Texts<'a>; 6] {
        let reasoning = if self.reasoning_content.is_empty() {
            self.reasoning
        } else {
            self.reasoning_content
        };
        [
            self.content,
            self.refusal,
            reasoning,
            self.tool_calls,
            self.function_call,
            self.audio,
        ]
    }
}
