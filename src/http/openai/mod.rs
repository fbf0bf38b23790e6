//! The OpenAI-compatible routes: bodies and answers pass through untouched, metered on the way.

mod headers;
mod stream;

use std::{
    future::{Future, poll_fn},
    sync::Arc,
    task::Poll,
};

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt as _;

use self::{
    headers::{for_client, for_upstream},
    stream::MeteredStream,
};
use crate::{
    app::{App, tasks::Waiter},
    config::{ChargeOnAbort, StreamUsage},
    domain::quantity::Quantity,
    http::{
        Dialect,
        caller::Caller,
        error::{ApiError, ApiResult},
        extract::{Pieces, WholeBody, read_body},
        guarded::GuardHeaders,
        idempotency::{IDEMPOTENCY_KEY, once},
        openapi::{
            answers::{OpenAiAnswer, OpenAiRequest, StreamEvent},
            errors,
        },
        request_id::RequestId,
    },
    provider::{
        Endpoint, Forward, Patience, ProviderError, UpstreamBody, answer,
        request::{RequestLook, UsageChunk},
        tokens, usage,
    },
    services::{
        guard::{self, Ask, OutputAsk},
        run::{End, EstimateInput, Outcome, Run, RunRules},
    },
};

/// The largest whole answer that is taken in.
const LONGEST_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Answer as OpenAI's chat completions.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "openai", security(("tenant_key" = [])),
    request_body = OpenAiRequest,
    responses(
        (status = 200, description = "The upstream's answer, or its events with `stream`", content((OpenAiAnswer = "application/json"), (StreamEvent = "text/event-stream"))),
        errors::Guarded,
        (status = "4XX", description = "The upstream's own errors pass through"),
        (status = "5XX", description = "The upstream's own errors pass through"),
    ),
)]
pub async fn chat_completions(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    WholeBody(body): WholeBody,
) -> ApiResult<Response> {
    pass(app, caller, Endpoint::ChatCompletions, &headers, body).await
}

/// Answer as OpenAI's responses.
#[utoipa::path(
    post, path = "/v1/responses", tag = "openai", security(("tenant_key" = [])),
    request_body = OpenAiRequest,
    responses(
        (status = 200, description = "The upstream's answer, or its events with `stream`", content((OpenAiAnswer = "application/json"), (StreamEvent = "text/event-stream"))),
        errors::Guarded,
        (status = "4XX", description = "The upstream's own errors pass through"),
        (status = "5XX", description = "The upstream's own errors pass through"),
    ),
)]
pub async fn responses(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    WholeBody(body): WholeBody,
) -> ApiResult<Response> {
    pass(app, caller, Endpoint::Responses, &headers, body).await
}

/// Answer as OpenAI's embeddings.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "openai", security(("tenant_key" = [])),
    request_body = OpenAiRequest,
    responses(
        (status = 200, description = "The upstream's answer, or its events with `stream`", content((OpenAiAnswer = "application/json"), (StreamEvent = "text/event-stream"))),
        errors::Guarded,
        (status = "4XX", description = "The upstream's own errors pass through"),
        (status = "5XX", description = "The upstream's own errors pass through"),
    ),
)]
pub async fn embeddings(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    WholeBody(body): WholeBody,
) -> ApiResult<Response> {
    pass(app, caller, Endpoint::Embeddings, &headers, body).await
}

/// The upstream's models: a key is needed, nothing is counted, and a spent quota does not matter.
#[utoipa::path(
    get, path = "/v1/models", tag = "openai", security(("tenant_key" = [])),
    responses(
        (status = 200, description = "The upstream's list", body = OpenAiAnswer),
        (status = 502, description = "`upstream_error`", body = errors::ErrorBody),
        (status = 504, description = "`upstream_timeout`", body = errors::ErrorBody),
    ),
)]
pub async fn models(
    State(app): State<App>,
    _caller: Caller,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let forward = Forward {
        endpoint: Endpoint::Models,
        headers: for_upstream(&headers),
        body: Bytes::new(),
        patience: Patience::Whole(app.config.upstream_timeout),
    };
    let answer = app
        .provider
        .forward(forward)
        .await
        .map_err(ApiError::from)?;
    let (head, body) = collect(answer).await?;
    passed_on(head, body)
}

/// The endpoint of a request that passes through to the model; `None` for all others.
#[must_use]
pub fn passed_on_at(method: &Method, path: &str) -> Option<Endpoint> {
    if method != Method::POST {
        return None;
    }
    let passed_on = [
        Endpoint::ChatCompletions,
        Endpoint::Responses,
        Endpoint::Embeddings,
    ];
    passed_on.into_iter().find(|it| route(*it) == path)
}

/// Where an endpoint is served.
#[must_use]
pub fn route(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::ChatCompletions => "/v1/chat/completions",
        Endpoint::Responses => "/v1/responses",
        Endpoint::Embeddings => "/v1/embeddings",
        Endpoint::Models => "/v1/models",
    }
}

/// Answers a request that passes through to the model, as its route does.
pub fn answer(
    app: App,
    endpoint: Endpoint,
    request: Request,
    id: RequestId,
) -> impl Future<Output = Response> {
    let (http::request::Parts { headers, .. }, body) = request.into_parts();
    let answered = async move {
        let caller = Caller::of(&app, &headers, id.0).await?;
        let body = read_body(&headers, body, app.config.max_body_bytes).await?;
        pass(app, caller, endpoint, &headers, body).await
    };
    answered.map(IntoResponse::into_response)
}

/// A request on its way: what was looked at, and what goes upstream.
struct Passing {
    endpoint: Endpoint,
    run: Box<Run>,
    forward: Forward,
    is_stream: bool,
    wants_usage_chunk: bool,
    capped: Option<Quantity>,
}

async fn pass(
    app: App,
    mut caller: Caller,
    endpoint: Endpoint,
    headers: &HeaderMap,
    body: Bytes,
) -> ApiResult<Response> {
    let look = Arc::new(RequestLook::read(endpoint, body.clone())?);
    caller.name_user(headers, look.user.as_deref())?;
    if !headers.contains_key(IDEMPOTENCY_KEY) {
        return admit_and_run(app, &caller.guarded(), headers, look).await;
    }
    let (runner, sent) = (app.clone(), headers.clone());
    let run = |caller| async move { admit_and_run(runner, &caller, &sent, look).await };
    // Boxed as few requests have a key, and all would have room for what it takes.
    Box::pin(once(&app, &caller, headers, route(endpoint), &body, run)).await
}

async fn admit_and_run(
    app: App,
    caller: &guard::Caller,
    headers: &HeaderMap,
    look: Arc<RequestLook>,
) -> ApiResult<Response> {
    let passing = prepare(&app, caller, headers, look).await?;
    let tasks = app.tasks.clone();
    // The client may go away, the run does not.
    tasks.see_through(|client| run(app, passing, client)).await
}

async fn prepare(
    app: &App,
    caller: &guard::Caller,
    headers: &HeaderMap,
    look: Arc<RequestLook>,
) -> ApiResult<Passing> {
    let endpoint = look.endpoint;
    let model = look
        .model
        .clone()
        .unwrap_or_else(|| app.config.default_model.clone());
    let tokenized = || {
        let (look, model) = (Arc::clone(&look), model.clone());
        let count = move || look.tokenized_input(|text| tokens::count(&model, text));
        tokens::aside(count).boxed()
    };
    let output = (endpoint != Endpoint::Embeddings).then(|| OutputAsk {
        named: look.named_maximum(),
        answers: look.answers,
    });
    let admitted = app
        .guard
        .admit(&Ask {
            caller,
            endpoint,
            model: &model,
            input_bound: look.input_bound(),
            tokenized_input: &tokenized,
            open_input: look.open_input,
            output,
        })
        .await
        .map_err(ApiError::from)?;
    let lowered = admitted.output.and_then(|output| output.lowered_to());
    let usage_chunk = match app.config.stream_usage {
        StreamUsage::Request if app.guard.is_on() => UsageChunk::Ask,
        StreamUsage::Request | StreamUsage::Omit => UsageChunk::LeaveAsIs,
    };
    let default_field = || maximum_field(endpoint, app);
    let timeout = app.config.upstream_timeout;
    let forward = Forward {
        endpoint,
        headers: for_upstream(headers),
        body: look.body(lowered, default_field, usage_chunk),
        patience: if look.is_stream {
            Patience::BetweenChunks(timeout)
        } else {
            Patience::Whole(timeout)
        },
    };
    let estimate = {
        let (look, model) = (Arc::clone(&look), model.clone());
        Arc::new(move || look.estimated_input(|text| tokens::count(&model, text))) as EstimateInput
    };
    Ok(Passing {
        endpoint,
        run: Run::new(admitted, &model, RunRules::of(&app.config), estimate),
        forward,
        is_stream: look.is_stream,
        wants_usage_chunk: look.wants_usage_chunk || usage_chunk == UsageChunk::LeaveAsIs,
        capped: lowered,
    })
}

/// Where a maximum goes if the client's body has none.
fn maximum_field(endpoint: Endpoint, app: &App) -> &'static str {
    match endpoint {
        Endpoint::Responses => "max_output_tokens",
        _ if crate::provider::openai::is_own_host(&app.config.openai_base_url) => {
            "max_completion_tokens"
        }
        _ => "max_tokens",
    }
}

/// Calls the upstream, and answers: at once for a stream, after settling for a whole answer.
async fn run(app: App, passing: Passing, client: Waiter) -> ApiResult<Response> {
    let Passing {
        endpoint,
        run,
        forward,
        is_stream,
        wants_usage_chunk,
        capped,
    } = passing;
    // On an error the run is dropped: what it held is back before anybody can ask again.
    let answer = if is_stream {
        match Box::pin(head_of_stream(&app, forward, &run, &client)).await {
            Some(answer) => answer?,
            None => {
                run.finish(End::ClientGone).await?;
                return Err(ApiError::stopped()); // to nobody
            }
        }
    } else {
        app.provider.forward(forward).await?
    };
    if is_stream && answer.status().is_success() && is_event_stream(answer.headers()) {
        let guard_headers = GuardHeaders::at_admission(run.admitted(), capped, app.clock.now());
        let (mut head, body) = answer.into_parts();
        let stream = MeteredStream::new(app, endpoint, body, run, wants_usage_chunk);
        for_client(&mut head.headers);
        let mut response = Response::from_parts(head, Body::new(stream));
        guard_headers.put(response.headers_mut(), Dialect::OpenAi);
        // Where no client takes the response it is dropped, and the stream is read on by itself.
        return Ok(response);
    }
    whole(&app, endpoint, answer, run, capped, &client).await
}

/// Waits for a stream to begin; once its client has gone, no longer than it would be read on. `None`: it was not waited
/// for to the end.
async fn head_of_stream(
    app: &App,
    forward: Forward,
    run: &Run,
    client: &Waiter,
) -> Option<Result<Response<UpstreamBody>, ProviderError>> {
    let mut forwarding = app.provider.forward(forward);
    let keyed = run.admitted().caller().keyed.as_ref();
    let has_gone = || client.has_gone() || keyed.is_some_and(|keyed| keyed.has_gone());
    let while_it_is_there = poll_fn(|context| match forwarding.poll_unpin(context) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        // Whoever goes on when the client has gone polls once more.
        Poll::Pending if has_gone() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    });
    if let Some(answer) = while_it_is_there.await {
        return Some(answer);
    }
    run.admitted().mark_detached();
    let _place = app.tasks.detach()?;
    tokio::select! {
        biased;
        () = app.tasks.last_call().cancelled() => None,
        answer = tokio::time::timeout(app.config.disconnect_grace, forwarding) => answer.ok(),
    }
}

async fn whole(
    app: &App,
    endpoint: Endpoint,
    answer: Response<UpstreamBody>,
    mut run: Box<Run>,
    capped: Option<Quantity>,
    client: &Waiter,
) -> ApiResult<Response> {
    let (head, body) = collect(answer).await?;
    if !head.status.is_success() {
        let guard_headers = GuardHeaders::at_admission(run.admitted(), capped, app.clock.now());
        drop(run); // free
        let mut response = passed_on(head, body)?;
        guard_headers.put(response.headers_mut(), Dialect::OpenAi);
        return Ok(response);
    }
    match usage::usage_of_answer(endpoint, &body) {
        Some(usage) => run.saw_usage(usage),
        None => {
            for (choice, text) in answer::texts_of_answer(endpoint, &body) {
                run.saw_text(choice, &text);
            }
        }
    }
    let mut guard_headers = GuardHeaders::at_admission(run.admitted(), capped, app.clock.now());
    let is_forgiven = client.has_gone() && app.config.charge_on_abort == ChargeOnAbort::Nothing;
    let end = if is_forgiven {
        End::ClientGone
    } else if !run.has_produced() && answer::is_failure(endpoint, &body) {
        End::Broken // the upstream says so in words only
    } else {
        End::Completed
    };
    if let Outcome::Charged(settlement) = run.finish(end).await? {
        guard_headers.settled(settlement.states);
    }
    let mut response = passed_on(head, body)?;
    guard_headers.put(response.headers_mut(), Dialect::OpenAi);
    Ok(response)
}

async fn collect(answer: Response<UpstreamBody>) -> ApiResult<(http::response::Parts, Bytes)> {
    let (head, mut body) = answer.into_parts();
    let mut pieces = Pieces::default();
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame?.into_data() else {
            continue; // trailers
        };
        if pieces.len() + piece.len() > LONGEST_ANSWER_BYTES {
            let why = format!("it is longer than {LONGEST_ANSWER_BYTES} bytes");
            return Err(ProviderError::Broken(why).into());
        }
        pieces.push(piece);
    }
    Ok((head, pieces.whole()))
}

/// The upstream's answer as the client gets it; one that concerns the operator's key is not the client's to see.
fn passed_on(mut head: http::response::Parts, body: Bytes) -> ApiResult<Response> {
    if matches!(
        head.status,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
    ) {
        return Err(ProviderError::Refused {
            status: head.status,
            headers: Box::new(head.headers),
            body,
        }
        .into());
    }
    for_client(&mut head.headers);
    Ok(Response::from_parts(head, Body::from(body)).into_response())
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.trim_start().starts_with("text/event-stream"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It is moved to where it stays while it runs, and lies there for each request in flight.
    #[test]
    fn what_runs_a_request_is_small() {
        fn room_of<F: Future>(_: impl FnOnce(App, Passing, Waiter) -> F) -> usize {
            size_of::<F>()
        }
        let size = room_of(run);
        assert!(size <= 3072, "{size} bytes");
    }
}
