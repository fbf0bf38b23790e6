//! OpenAI, or any server that speaks its API.
//!
//! `/v1` requests pass through (`passthrough`); `/api/v1/chat` calls `/chat/completions` with async-openai,
//! whose own retries are replaced by `OneCall`: one call, one request.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_openai::{Client, config::Config, error::OpenAIError, middleware::HttpRequestFactory};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Response, header};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{json, value::RawValue};

use super::{
    ChatCall, ChatDelta, ChatReply, ChatStream, Endpoint, Forward, Provider, ProviderError,
    ProviderStatus, SetupError, StreamUsage, UpstreamBody,
    completion::{self, Completion},
    connect::{Connector, Target},
    one_call::{Failure, OneCall, Want},
    passthrough::Passthrough,
    resolve::Resolver,
    tls::{self, Roots},
    usage,
};
use crate::{
    store::conversations::{Speaker, Turn},
    telemetry::trace::{self, Trace},
    web,
};

/// OpenAI's own base URL.
pub const DEFAULT_BASE_URL: &str = "https://api.openai.com/v1";

/// How an upstream is reached.
#[derive(Clone, Debug)]
pub struct Settings {
    /// With `/v1`, or whatever stands there before `/chat/completions`.
    pub base_url: String,
    /// `None`: no `Authorization` is sent, which OpenAI's own host refuses.
    pub api_key: Option<SecretString>,
    pub stream_usage: StreamUsage,
    /// For a whole answer of [`Provider::chat`], and between two chunks of [`Provider::chat_stream`].
    pub timeout: Duration,
    pub roots: Roots,
}

/// See the module.
pub struct OpenAi {
    passthrough: Passthrough,
    http: reqwest::Client,
    upstream: Upstream,
    own_host: OwnHost,
    stream_usage: StreamUsage,
    timeout: Duration,
    health: Health,
}

/// Whether the upstream is OpenAI itself, which needs a key and wants current field names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OwnHost {
    OpenAi,
    Another,
}

impl OpenAi {
    /// # Errors
    /// See [`super::from_settings`].
    pub fn new(settings: Settings) -> Result<Self, SetupError> {
        let target = Target::parse(&settings.base_url)?;
        let authorization = settings.api_key.as_ref().map(bearer).transpose()?;
        let resolver = Resolver::default();
        let tls = tls::client_config(&settings.roots, &[b"h2", b"http/1.1"])?;
        let connector = Connector::new(target.clone(), resolver.clone(), tls.clone())?;
        Ok(Self {
            own_host: own_host(&target.host),
            http: web::client(resolver, tls)?,
            upstream: Upstream {
                base_url: target.base_url(),
                authorization: authorization.clone(),
                request_id: None,
                trace: None,
                no_key: SecretString::default(),
            },
            passthrough: Passthrough::new(target, connector, authorization)?,
            stream_usage: settings.stream_usage,
            timeout: settings.timeout,
            health: Health::default(),
        })
    }

    fn check_configured(&self) -> Result<(), ProviderError> {
        match (self.own_host, &self.upstream.authorization) {
            (OwnHost::OpenAi, None) => Err(ProviderError::NotConfigured(
                "OPENAI_API_KEY is not set; set it, or OPENAI_BASE_URL to another server, or TOLLGATE_PROVIDER=simulated"
                    .to_owned(),
            )),
            (OwnHost::OpenAi | OwnHost::Another, _) => Ok(()),
        }
    }

    /// A client for one call; cheap, since the connections are `http`'s.
    fn client(&self, call: &ChatCall, one_call: OneCall) -> Client<Upstream> {
        let mut upstream = self.upstream.clone();
        upstream.request_id = HeaderValue::from_str(&call.request_id).ok();
        upstream.trace = trace::current();
        Client::build(self.http.clone(), upstream).with_http_service(tower::service_fn(
            move |request: HttpRequestFactory| one_call.clone().run(request),
        ))
    }

    fn request_body(&self, call: &ChatCall) -> serde_json::Value {
        let instructions = call
            .instructions
            .as_ref()
            .map(|text| message("system", text));
        let turns = call
            .turns
            .iter()
            .map(|Turn { speaker, text }| match speaker {
                Speaker::User => message("user", text),
                Speaker::Assistant => message("assistant", text),
            });
        let messages: Vec<_> = instructions.into_iter().chain(turns).collect();
        let mut body = json!({"model": call.model, "messages": messages});
        if let Some(max) = call.max_output_tokens {
            // Most servers know only the old name; OpenAI's reasoning models refuse it.
            let field = match self.own_host {
                OwnHost::OpenAi => "max_completion_tokens",
                OwnHost::Another => "max_tokens",
            };
            body[field] = max.get().into();
        }
        if let Some(user) = &call.user {
            body["user"] = user.as_str().into();
        }
        body
    }

    async fn whole(&self, call: &ChatCall) -> Result<ChatReply, ProviderError> {
        let one_call = OneCall::new(self.http.clone(), Want::Whole, self.timeout);
        let client = self.client(call, one_call);
        let answer: Box<RawValue> = client
            .chat()
            .create_byot(self.request_body(call))
            .await
            .map_err(into_provider_error)?;
        let usage = usage::usage_of_answer(Endpoint::ChatCompletions, answer.get().as_bytes());
        Completion::parse(answer.get())?.into_reply(usage)
    }

    async fn stream(&self, call: &ChatCall) -> Result<ChatStream, ProviderError> {
        let failure = Failure::default();
        let one_call = OneCall::new(
            self.http.clone(),
            Want::Stream(failure.clone()),
            self.timeout,
        );
        let mut body = self.request_body(call);
        body["stream"] = true.into();
        if self.stream_usage == StreamUsage::Request {
            body["stream_options"] = json!({"include_usage": true});
        }
        let frames = self
            .client(call, one_call)
            .chat()
            .create_stream_byot::<_, Box<RawValue>>(body)
            .await
            .map_err(into_provider_error)?;
        Ok(frames.map(move |frame| delta(frame, &failure)).boxed())
    }
}

impl Provider for OpenAi {
    fn chat<'a>(&'a self, call: &'a ChatCall) -> BoxFuture<'a, Result<ChatReply, ProviderError>> {
        Box::pin(async move {
            self.check_configured()?;
            self.health.note(self.whole(call).await)
        })
    }

    fn chat_stream<'a>(
        &'a self,
        call: &'a ChatCall,
    ) -> BoxFuture<'a, Result<ChatStream, ProviderError>> {
        Box::pin(async move {
            self.check_configured()?;
            self.health.note(self.stream(call).await)
        })
    }

    fn forward(
        &self,
        request: Forward,
    ) -> BoxFuture<'_, Result<Response<UpstreamBody>, ProviderError>> {
        Box::pin(async move {
            self.check_configured()?;
            self.health.note(self.passthrough.send(request).await)
        })
    }

    fn status(&self) -> ProviderStatus {
        match self.check_configured() {
            Err(ProviderError::NotConfigured(what)) => ProviderStatus::NotConfigured(what),
            Ok(()) | Err(_) => self.health.status(),
        }
    }
}

fn delta(
    frame: Result<Box<RawValue>, OpenAIError>,
    failure: &Failure,
) -> Result<ChatDelta, ProviderError> {
    let frame =
        frame.map_err(|error| failure.take().unwrap_or_else(|| into_provider_error(error)))?;
    let usage = usage::usage_of_frame(Endpoint::ChatCompletions, frame.get().as_bytes());
    Ok(Completion::parse(frame.get())?.into_delta(usage))
}

fn message(role: &str, text: &str) -> serde_json::Value {
    json!({"role": role, "content": text})
}

/// Whether a base URL is OpenAI's own, which wants current field names.
#[must_use]
pub fn is_own_host(base_url: &str) -> bool {
    base_url.parse::<http::Uri>().is_ok_and(|url| {
        url.host()
            .is_some_and(|host| own_host(host) == OwnHost::OpenAi)
    })
}

fn own_host(host: &str) -> OwnHost {
    let host = host.to_ascii_lowercase();
    // Regions have hosts of their own, such as eu.api.openai.com.
    if host == "api.openai.com" || host.ends_with(".api.openai.com") {
        OwnHost::OpenAi
    } else {
        OwnHost::Another
    }
}

fn bearer(key: &SecretString) -> Result<HeaderValue, SetupError> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose_secret()))
        .map_err(|_| {
            SetupError("OPENAI_API_KEY holds a line end or another character that no header can carry; write the key alone".to_owned())
        })?;
    value.set_sensitive(true);
    Ok(value)
}

/// A client for what is no call of a provider, such as trying out a gateway.
///
/// # Errors
/// See [`super::from_settings`].
pub fn plain_client() -> Result<reqwest::Client, SetupError> {
    let tls = tls::client_config(&tls::Roots::Environment, &[b"h2", b"http/1.1"])?;
    web::client(Resolver::default(), tls)
}

/// The client and the `Authorization` for calls beside chat.
///
/// # Errors
/// See [`super::from_settings`].
pub(super) fn client_of(
    settings: &Settings,
) -> Result<(reqwest::Client, Option<HeaderValue>), SetupError> {
    let authorization = settings.api_key.as_ref().map(bearer).transpose()?;
    let tls = tls::client_config(&settings.roots, &[b"h2", b"http/1.1"])?;
    Ok((web::client(Resolver::default(), tls)?, authorization))
}

fn into_provider_error(error: OpenAIError) -> ProviderError {
    match error {
        OpenAIError::Boxed(error) => match error.downcast::<ProviderError>() {
            Ok(error) => *error,
            Err(error) => ProviderError::Broken(error.to_string()),
        },
        OpenAIError::Reqwest(error) => ProviderError::Unreachable(error.to_string()),
        // Their texts can hold parts of the answer, which must not reach a log.
        OpenAIError::JSONDeserialize(..) => completion::unreadable(),
        OpenAIError::ApiError(_) => completion::unreadable(),
        OpenAIError::StreamError(_) => {
            ProviderError::Broken("the stream cannot be read".to_owned())
        }
        error => ProviderError::Broken(error.to_string()),
    }
}

/// What async-openai asks where to call and with what.
#[derive(Clone)]
struct Upstream {
    base_url: String,
    authorization: Option<HeaderValue>,
    request_id: Option<HeaderValue>,
    /// Of the request that is answered.
    trace: Option<Arc<Trace>>,
    /// The trait wants a key; ours is in `authorization`, and only where it is to be sent.
    no_key: SecretString,
}

impl Config for Upstream {
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(authorization) = &self.authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        if let Some(request_id) = &self.request_id {
            headers.insert("x-request-id", request_id.clone());
        }
        if let Some(trace) = &self.trace {
            trace.put(&mut headers);
        }
        headers
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base_url)
    }

    fn query(&self) -> Vec<(&str, &str)> {
        Vec::new()
    }

    fn api_base(&self) -> &str {
        &self.base_url
    }

    fn api_key(&self) -> &SecretString {
        &self.no_key
    }
}

/// How the last call went. The flag spares calls that go well the lock.
#[derive(Default)]
struct Health {
    failing: AtomicBool,
    why: Mutex<String>,
}

impl Health {
    fn note<T>(&self, outcome: Result<T, ProviderError>) -> Result<T, ProviderError> {
        match &outcome {
            Err(error @ (ProviderError::Unreachable(_) | ProviderError::Timeout)) => {
                *self.why.lock().unwrap_or_else(PoisonError::into_inner) = error.to_string();
                self.failing.store(true, Ordering::Release);
            }
            Ok(_) | Err(ProviderError::Refused { .. } | ProviderError::Broken(_)) => {
                if self.failing.load(Ordering::Acquire) {
                    self.failing.store(false, Ordering::Release);
                }
            }
            Err(ProviderError::NotConfigured(_)) => {}
        }
        outcome
    }

    fn status(&self) -> ProviderStatus {
        if !self.failing.load(Ordering::Acquire) {
            return ProviderStatus::Ready;
        }
        let why = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        ProviderStatus::Failing(why.clone())
    }
}

#[cfg(test)]
mod tests;
