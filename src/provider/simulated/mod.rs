//! A provider in this process: no key, no network, honest token counts. For trying tollgate, and for its tests.
//!
//! It answers any model name; the names in [`MODELS`] do special things. The text depends on the prompt alone, so
//! that the same request always gets the same answer.

mod ask;
mod render;
mod script;
mod words;

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use self::{
    ask::{Ask, BadRequest},
    render::Renderer,
    script::{Step, play},
};
use super::{
    ChatCall, ChatDelta, ChatReply, ChatStream, Endpoint, Finish, Forward, Patience, Provider,
    ProviderError, ProviderStatus, UpstreamBody,
};
use crate::{
    clock::Clock,
    store::conversations::{Speaker, Turn},
};

/// A model, and what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    pub name: &'static str,
    /// A sentence without a full stop, for the documentation.
    pub does: &'static str,
    behaviour: Behaviour,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behaviour {
    Plain,
    Slow,
    Fail,
    Break,
    NoUsage,
    IgnoreMax,
    Hang,
}

/// The time `simulated-slow` takes for each token, the first included.
pub const TOKEN_PACE: Duration = Duration::from_millis(50);

/// How many tokens `simulated-ignore-max` always puts out.
pub const IGNORE_MAX_TOKENS: usize = 1_000;

/// What `GET /v1/models` lists. The first answers for every name that is not here.
pub const MODELS: [Model; 7] = [
    Model {
        name: "simulated",
        does: "answers at once with 24 to 56 tokens, or fewer if the maximum says so",
        behaviour: Behaviour::Plain,
    },
    Model {
        name: "simulated-slow",
        does: "takes 50 ms for each token, the first included",
        behaviour: Behaviour::Slow,
    },
    Model {
        name: "simulated-fail",
        does: "answers 500 before any output",
        behaviour: Behaviour::Fail,
    },
    Model {
        name: "simulated-break",
        does: "breaks off in the middle of the answer",
        behaviour: Behaviour::Break,
    },
    Model {
        name: "simulated-no-usage",
        does: "reports no usage",
        behaviour: Behaviour::NoUsage,
    },
    Model {
        name: "simulated-ignore-max",
        does: "puts out 1,000 tokens whatever the maximum is",
        behaviour: Behaviour::IgnoreMax,
    },
    Model {
        name: "simulated-hang",
        does: "takes the request and never answers",
        behaviour: Behaviour::Hang,
    },
];

/// See the module.
pub struct Simulated {
    clock: Clock,
    timeout: Duration,
}

impl Simulated {
    /// `timeout` as in [`super::openai::Settings`].
    #[must_use]
    pub fn new(clock: Clock, timeout: Duration) -> Self {
        Self { clock, timeout }
    }

    fn renderer(&self, endpoint: Endpoint, ask: &Ask) -> Renderer {
        Renderer::new(endpoint, ask, self.clock.now())
    }

    async fn answer(
        &self,
        endpoint: Endpoint,
        body: &[u8],
        patience: Patience,
    ) -> Result<Response<UpstreamBody>, ProviderError> {
        let ask = match Ask::parse(endpoint, body) {
            Ok(ask) => ask,
            Err(error) => return Ok(json_response(StatusCode::BAD_REQUEST, &error.body())),
        };
        match ask.behaviour {
            Behaviour::Hang => return Err(hang(patience.duration()).await),
            Behaviour::Fail => {
                return Ok(json_response(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    &failure_body(),
                ));
            }
            Behaviour::Plain
            | Behaviour::Slow
            | Behaviour::Break
            | Behaviour::NoUsage
            | Behaviour::IgnoreMax => {}
        }
        let renderer = self.renderer(endpoint, &ask);
        if ask.stream {
            let events = play(ask.script(renderer.events(&ask)));
            let body = UpstreamBody::made(events, patience);
            return Ok(response(StatusCode::OK, "text/event-stream", body));
        }
        wait(ask.time_to_answer(), patience.duration()).await?;
        let whole = Bytes::from(renderer.whole(&ask).to_string());
        let body = match ask.behaviour {
            Behaviour::Break => {
                let half = whole.slice(..whole.len() / 2);
                UpstreamBody::made(play(vec![Step::Piece(half), Step::BreakOff]), patience)
            }
            Behaviour::Plain
            | Behaviour::Slow
            | Behaviour::Fail
            | Behaviour::NoUsage
            | Behaviour::IgnoreMax
            | Behaviour::Hang => UpstreamBody::whole(whole),
        };
        Ok(response(StatusCode::OK, "application/json", body))
    }

    /// The same request as another provider would send.
    async fn ask_of(&self, call: &ChatCall) -> Result<Ask, ProviderError> {
        let instructions = call
            .instructions
            .iter()
            .map(|text| json!({"role": "system", "content": text}));
        let turns = call.turns.iter().map(|Turn { speaker, text }| {
            let role = match speaker {
                Speaker::User => "user",
                Speaker::Assistant => "assistant",
            };
            json!({"role": role, "content": text})
        });
        let mut body = json!({
            "model": call.model,
            "messages": instructions.chain(turns).collect::<Vec<_>>(),
        });
        if let Some(max) = call.max_output_tokens {
            body["max_completion_tokens"] = max.get().into();
        }
        let ask = Ask::parse(Endpoint::ChatCompletions, body.to_string().as_bytes())
            .map_err(|error| refused(StatusCode::BAD_REQUEST, &error.body()))?;
        match ask.behaviour {
            Behaviour::Hang => Err(hang(self.timeout).await),
            Behaviour::Fail => Err(refused(StatusCode::INTERNAL_SERVER_ERROR, &failure_body())),
            Behaviour::Plain
            | Behaviour::Slow
            | Behaviour::Break
            | Behaviour::NoUsage
            | Behaviour::IgnoreMax => Ok(ask),
        }
    }
}

impl Provider for Simulated {
    fn chat<'a>(&'a self, call: &'a ChatCall) -> BoxFuture<'a, Result<ChatReply, ProviderError>> {
        Box::pin(async move {
            let ask = self.ask_of(call).await?;
            wait(ask.time_to_answer(), self.timeout).await?;
            if ask.behaviour == Behaviour::Break {
                return Err(script::broken_off());
            }
            let choice = ask.choice(0);
            Ok(ChatReply {
                response_id: self
                    .renderer(Endpoint::ChatCompletions, &ask)
                    .id()
                    .to_owned(),
                model: ask.model.clone(),
                text: choice.tokens.concat(),
                unseen: String::new(),
                finish: choice.finish(),
                usage: ask.reported_usage(),
            })
        })
    }

    fn chat_stream<'a>(
        &'a self,
        call: &'a ChatCall,
    ) -> BoxFuture<'a, Result<ChatStream, ProviderError>> {
        Box::pin(async move {
            let ask = self.ask_of(call).await?;
            let choice = ask.choice(0);
            let first = ChatDelta {
                response_id: Some(
                    self.renderer(Endpoint::ChatCompletions, &ask)
                        .id()
                        .to_owned(),
                ),
                model: Some(ask.model.clone()),
                ..ChatDelta::default()
            };
            let mut deltas = vec![(script::Kind::Frame, first)];
            deltas.extend(choice.tokens.iter().map(|token| {
                let delta = ChatDelta {
                    text: token.clone(),
                    ..ChatDelta::default()
                };
                (script::Kind::Token, delta)
            }));
            let last = ChatDelta {
                finish: Some(choice.finish()),
                usage: ask.reported_usage(),
                ..ChatDelta::default()
            };
            deltas.push((script::Kind::Frame, last));
            Ok(play(ask.script(deltas)).boxed())
        })
    }

    fn forward(
        &self,
        request: Forward,
    ) -> BoxFuture<'_, Result<Response<UpstreamBody>, ProviderError>> {
        Box::pin(async move {
            match request.endpoint {
                Endpoint::Models => Ok(json_response(StatusCode::OK, &models())),
                Endpoint::ChatCompletions | Endpoint::Responses | Endpoint::Embeddings => {
                    self.answer(request.endpoint, &request.body, request.patience)
                        .await
                }
            }
        })
    }

    fn status(&self) -> ProviderStatus {
        ProviderStatus::Ready
    }
}

async fn hang(patience: Duration) -> ProviderError {
    tokio::time::sleep(patience).await;
    ProviderError::Timeout
}

async fn wait(time: Duration, patience: Duration) -> Result<(), ProviderError> {
    if time.is_zero() {
        return Ok(());
    }
    tokio::time::sleep(time.min(patience)).await;
    if time >= patience {
        return Err(ProviderError::Timeout);
    }
    Ok(())
}

fn models() -> Value {
    let models = MODELS.map(
        |model| json!({"id": model.name, "object": "model", "created": 0, "owned_by": "tollgate"}),
    );
    json!({"object": "list", "data": models})
}

fn failure_body() -> Value {
    json!({"error": {
        "message": "The simulated model fails, as its name says.",
        "type": "server_error", "param": null, "code": null,
    }})
}

fn refused(status: StatusCode, body: &Value) -> ProviderError {
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    ProviderError::Refused {
        status,
        headers: Box::new(headers),
        body: body.to_string().into(),
    }
}

fn json_response(status: StatusCode, body: &Value) -> Response<UpstreamBody> {
    let body = UpstreamBody::whole(body.to_string().into());
    response(status, "application/json", body)
}

fn response(
    status: StatusCode,
    content_type: &'static str,
    body: UpstreamBody,
) -> Response<UpstreamBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

impl BadRequest {
    fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": "invalid_request_error", "param": self.param, "code": null,
        }})
    }
}

impl ask::Choice {
    fn finish(&self) -> Finish {
        Finish::from(self.finish_reason())
    }
}

#[cfg(test)]
mod tests;
