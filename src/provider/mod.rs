//! The language model that answers: OpenAI, any server that speaks its API, or a simulated one.
//!
//! A provider makes **exactly one** call upstream for each call it gets, never sleeps and never retries: whoever calls
//! holds a reservation meanwhile. It knows nothing of tenants, limits or prices, and takes its address from
//! configuration only.

pub mod answer;
pub mod body;
mod completion;
pub mod connect;
mod lenient;
mod one_call;
pub mod openai;
mod passthrough;
mod pool;
pub mod probe;
pub mod request;
pub mod resolve;
pub mod simulated;
pub mod sse;
pub mod tls;
pub mod tokens;
pub mod usage;

#[cfg(test)]
mod test_server;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use http::{HeaderMap, Response, StatusCode};

pub use self::body::UpstreamBody;
use self::{openai::OpenAi, simulated::Simulated};
use crate::{
    clock::Clock,
    domain::{quantity::Quantity, usage::TokenUsage},
    store::conversations::Turn,
};

/// A language model behind OpenAI's API.
pub trait Provider: Send + Sync {
    /// The whole answer to a conversation (`/api/v1/chat`).
    ///
    /// # Errors
    /// [`ProviderError::Refused`] for any status but 2xx; the others as they say.
    fn chat<'a>(&'a self, call: &'a ChatCall) -> BoxFuture<'a, Result<ChatReply, ProviderError>>;

    /// The same, piece by piece. A stream that ends without an error is complete: it had its finish reason or
    /// `[DONE]`. Dropping it cancels the upstream's work.
    ///
    /// # Errors
    /// As [`Provider::chat`], before the first piece; [`ProviderError::Broken`] and [`ProviderError::Timeout`] also
    /// as the stream's last item.
    fn chat_stream<'a>(
        &'a self,
        call: &'a ChatCall,
    ) -> BoxFuture<'a, Result<ChatStream, ProviderError>>;

    /// Passes a request of the `/v1` routes on, byte for byte, and gives the upstream's answer whatever its status.
    ///
    /// # Errors
    /// [`ProviderError::Refused`] never: an answer is an answer.
    fn forward(
        &self,
        request: Forward,
    ) -> BoxFuture<'_, Result<Response<UpstreamBody>, ProviderError>>;

    /// How it does, without making a call.
    fn status(&self) -> ProviderStatus;
}

/// A provider that can be handed round.
pub type SharedProvider = Arc<dyn Provider>;

/// The pieces of an answer.
pub type ChatStream = BoxStream<'static, Result<ChatDelta, ProviderError>>;

/// Which provider, and how it is reached.
#[derive(Clone, Debug)]
pub enum Settings {
    OpenAi(openai::Settings),
    /// In this process: no key, no network.
    Simulated {
        /// See [`openai::Settings::timeout`].
        timeout: Duration,
    },
}

/// Builds the provider that the settings name.
///
/// # Errors
/// An unusable base URL, key or file of certificates: what it is and what to write instead. A missing key is no
/// error here; [`Provider::status`] and every call say so.
pub fn from_settings(settings: Settings, clock: Clock) -> Result<SharedProvider, SetupError> {
    Ok(match settings {
        Settings::OpenAi(settings) => Arc::new(OpenAi::new(settings)?),
        Settings::Simulated { timeout } => Arc::new(Simulated::new(clock, timeout)),
    })
}

/// A setting that no provider can be built from.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct SetupError(pub String);

/// Whether streams ask the upstream for their usage (`TOLLGATE_STREAM_USAGE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamUsage {
    #[default]
    Request,
    /// For upstreams that refuse the option.
    Omit,
}

/// The routes under `/v1` that are metered, and `/v1/models`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    ChatCompletions,
    Responses,
    Embeddings,
    Models,
}

impl Endpoint {
    pub const ALL: [Self; 4] = [
        Self::ChatCompletions,
        Self::Responses,
        Self::Embeddings,
        Self::Models,
    ];

    /// The path below the base URL.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/chat/completions",
            Self::Responses => "/responses",
            Self::Embeddings => "/embeddings",
            Self::Models => "/models",
        }
    }

    /// `GET` or `POST`.
    #[must_use]
    pub const fn method(self) -> http::Method {
        match self {
            Self::Models => http::Method::GET,
            Self::ChatCompletions | Self::Responses | Self::Embeddings => http::Method::POST,
        }
    }
}

/// How long an answer may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Head and body together.
    Whole(Duration),
    /// Until the head, and then between two chunks of the body.
    BetweenChunks(Duration),
}

impl Patience {
    #[must_use]
    pub const fn duration(self) -> Duration {
        match self {
            Self::Whole(duration) | Self::BetweenChunks(duration) => duration,
        }
    }
}

/// A request to pass on; without `Debug`, since it holds a prompt.
#[derive(Clone)]
pub struct Forward {
    pub endpoint: Endpoint,
    /// Without hop-by-hop headers, cookies and the tenant's key. `Host`, `Authorization`, `Content-Type`,
    /// `Content-Length` and `Accept-Encoding` are set here whatever these say.
    pub headers: HeaderMap,
    /// Empty for [`Endpoint::Models`].
    pub body: Bytes,
    pub patience: Patience,
}

/// A conversation to answer; without `Debug`, since it holds prompts.
#[derive(Clone)]
pub struct ChatCall {
    pub model: String,
    /// Oldest first; the last is what is to be answered.
    pub turns: Vec<Turn>,
    pub instructions: Option<String>,
    pub max_output_tokens: Option<Quantity>,
    /// The end user, as the upstream's `user`.
    pub user: Option<String>,
    /// Sent along as `X-Request-Id`.
    pub request_id: String,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    Stop,
    /// The maximum was reached.
    Length,
    /// Any other reason, as the upstream named it.
    Other(String),
}

impl From<&str> for Finish {
    fn from(reason: &str) -> Self {
        match reason {
            "stop" => Self::Stop,
            "length" => Self::Length,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatReply {
    pub response_id: String,
    /// The model that answered, as the upstream names it.
    pub model: String,
    pub text: String,
    /// What else the model has put out: reasoning, calls of tools. It counts, and is not passed on.
    pub unseen: String,
    pub finish: Finish,
    /// `None` if the upstream reported nothing usable.
    pub usage: Option<TokenUsage>,
}

/// A piece of an answer; what a piece does not tell is `None` or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatDelta {
    pub response_id: Option<String>,
    pub model: Option<String>,
    pub text: String,
    /// As that of a [`ChatReply`].
    pub unseen: String,
    pub finish: Option<Finish>,
    pub usage: Option<TokenUsage>,
}

/// Why there is no answer, or no more of it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProviderError {
    /// Says which setting is missing.
    #[error("no provider is configured: {0}")]
    NotConfigured(String),
    /// No connection, or one that ended before the answer's head.
    #[error("the provider could not be reached: {0}")]
    Unreachable(String),
    #[error("the provider did not answer in time")]
    Timeout,
    /// The upstream's own error answer.
    #[error("the provider answered {status}")]
    Refused {
        status: StatusCode,
        headers: Box<HeaderMap>,
        body: Bytes,
    },
    /// The answer began and could not be read to its end.
    #[error("the provider's answer broke off: {0}")]
    Broken(String),
}

/// How a provider does, as far as the calls made tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderStatus {
    /// The last call was answered (whatever the status), or none was made yet.
    Ready,
    /// No call can be made; says which setting is missing.
    NotConfigured(String),
    /// The last call got no answer; says why.
    Failing(String),
}
