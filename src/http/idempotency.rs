//! `Idempotency-Key`: the first request runs, its repeats get its answer (interface.md §3).
//!
//! A keyed request runs in a task of its own and is read to its end there, so that a client which lost its
//! connection finds the answer when it asks again, and pays once.

use std::{convert::Infallible, future::Future, pin::pin, sync::Arc};

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::CONTENT_TYPE};
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::{
    caller::Caller,
    error::{ApiError, ApiResult},
};
use crate::{
    answers::{Answer, AnswersError, AskedBy, Begun, Claim, LONGEST_BODY},
    app::App,
    services::{guard, repeats::Keyed},
};

pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
pub const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

const LONGEST_KEY: usize = 255;
/// How far reading a stream may run ahead of its client.
const FRAMES_AHEAD: usize = 16;

/// Runs a request that has no key, or whose key is new; replays the answer of one that ran before.
///
/// `run` gets whom the guard counts for; it must come to its end without its caller.
pub async fn once<F>(
    app: &App,
    caller: &Caller,
    headers: &HeaderMap,
    route: &'static str,
    body: &Bytes,
    run: impl FnOnce(guard::Caller) -> F,
) -> ApiResult<Response>
where
    F: Future<Output = ApiResult<Response>> + Send + 'static,
{
    let guarded = caller.guarded();
    let Some(key) = read_key(headers)? else {
        return run(guarded).await;
    };
    let asked = AskedBy {
        tenant: guarded.tenant_id,
        route,
        key,
    };
    let claim = match app.answers.begin(asked, body, app.clock.now()).await? {
        Begun::Run(claim) => claim,
        Begun::InFlight => return Err(ApiError::IdempotencyKeyInUse),
        Begun::OtherBody => return Err(ApiError::IdempotencyKeyReused),
        Begun::NotKept => return Err(ApiError::IdempotencyAnswerTooLarge),
        Begun::Answered(answer) => return Ok(replayed(answer)),
    };
    let keyed = Arc::new(Keyed::new(asked.event_id(claim.begun_at), claim.is_rerun));
    let running = run(guard::Caller {
        keyed: Some(Arc::clone(&keyed)),
        ..guarded
    });
    let (sender, answered) = oneshot::channel();
    let (app, tasks) = (app.clone(), app.tasks.clone());
    let running = tasks.spawn(async move {
        let keeping = Keeping { app, claim, keyed };
        keeping.run(running, sender).await;
    });
    let answered = tasks.wait(answered, running).await;
    answered.unwrap_or(Err(ApiError::stopped()))
}

/// The key, if there is one.
///
/// # Errors
/// A bad field for one that is no 1–255 visible ASCII characters, and for more than one.
fn read_key(headers: &HeaderMap) -> ApiResult<Option<&str>> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let accepted = "one key of 1-255 visible ASCII characters";
    if values.next().is_some() {
        return Err(ApiError::bad_field(
            "Idempotency-Key",
            "there twice",
            accepted,
        ));
    }
    let is_key = |key: &&[u8]| {
        (1..=LONGEST_KEY).contains(&key.len()) && key.iter().all(u8::is_ascii_graphic)
    };
    let key = Some(value.as_bytes())
        .filter(is_key)
        .and_then(|key| std::str::from_utf8(key).ok());
    key.map(Some).ok_or_else(|| {
        let found = if value.len() > LONGEST_KEY {
            format!("a text of {} bytes", value.len())
        } else {
            "empty, or holds other characters".to_owned()
        };
        ApiError::bad_field("Idempotency-Key", found, accepted)
    })
}

fn replayed(answer: Answer) -> Response {
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    for (name, value) in answer.headers {
        let name = HeaderName::try_from(name);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(&value)) {
            response.headers_mut().append(name, value);
        }
    }
    let replayed = HeaderValue::from_static("true");
    response.headers_mut().insert(IDEMPOTENT_REPLAYED, replayed);
    response
}

/// A keyed request while it runs.
struct Keeping {
    app: App,
    claim: Claim,
    keyed: Arc<Keyed>,
}

impl Keeping {
    async fn run(
        self,
        running: impl Future<Output = ApiResult<Response>>,
        mut sender: oneshot::Sender<ApiResult<Response>>,
    ) {
        let mut running = pin!(running);
        let ended = tokio::select! {
            biased;
            ended = &mut running => ended,
            () = sender.closed() => {
                self.keyed.note_gone();
                running.await
            }
        };
        match ended {
            // Only answers that are one are kept: dropping the claim lets a repeat run.
            Ok(response) if response.status().is_success() => {
                if is_event_stream(response.headers()) {
                    self.stream(response, sender).await;
                } else {
                    self.whole(response, sender).await;
                }
            }
            other => {
                self.claim.forget().await;
                drop(sender.send(other));
            }
        }
    }

    async fn whole(self, response: Response, sender: oneshot::Sender<ApiResult<Response>>) {
        let (head, body) = response.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => {
                tracing::error!(%error, "an answer could not be read");
                self.claim.forget().await;
                drop(sender.send(Err(ApiError::Internal)));
                return;
            }
        };
        keep(self.claim, &head, Some(&body)).await;
        let response = Response::from_parts(head, Body::from(body)).into_response();
        drop(sender.send(Ok(response)));
    }

    /// Passes a stream on and keeps it. Its last frame waits until the answer is on disk.
    async fn stream(self, response: Response, sender: oneshot::Sender<ApiResult<Response>>) {
        let (head, mut body) = response.into_parts();
        let (frames, received) = mpsc::channel(FRAMES_AHEAD);
        let to_client = stream::unfold(received, |mut received| async move {
            let frame: Bytes = received.recv().await?;
            Some((Ok::<_, Infallible>(frame), received))
        });
        let mut passed_on = Response::new(Body::from_stream(to_client));
        *passed_on.status_mut() = head.status;
        *passed_on.headers_mut() = head.headers.clone();
        drop(sender.send(Ok(passed_on)));

        let mut client = Client {
            frames,
            waiting: None,
        };
        let mut kept = Kept::default();
        let is_at_end = self.read(&mut body, &mut client, &mut kept).await;
        drop(body); // one that is not at its end is settled as one whose client has gone
        if is_at_end && self.keyed.is_whole() {
            keep(self.claim, &head, kept.bytes.as_deref()).await;
        } else {
            self.claim.forget().await;
        }
        client.release().await;
    }

    /// Reads a stream to its end, or as far as one may be read whose client has gone; whether it came to its end.
    async fn read(&self, body: &mut Body, client: &mut Client, kept: &mut Kept) -> bool {
        let mut alone: Option<(OwnedSemaphorePermit, tokio::time::Instant)> = None;
        loop {
            let next = match &alone {
                Some((_place, deadline)) => tokio::select! {
                    biased;
                    () = self.app.tasks.last_call().cancelled() => return false,
                    next = tokio::time::timeout_at(*deadline, body.frame()) => next,
                },
                None => tokio::select! {
                    biased;
                    next = body.frame() => Ok(next),
                    () = client.frames.closed() => {
                        if let Some(place) = self.app.tasks.detach() {
                            let deadline = tokio::time::Instant::now() + self.app.config.disconnect_grace;
                            alone = Some((place, deadline));
                            continue;
                        }
                        self.keyed.give_up();
                        return false;
                    }
                },
            };
            match next {
                Err(_grace_is_over) => {
                    self.keyed.give_up();
                    return false;
                }
                Ok(None) => return true,
                Ok(Some(Err(error))) => {
                    tracing::error!(%error, "a stream could not be read");
                    return false;
                }
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        kept.add(&data);
                        client.send(data).await;
                    }
                }
            }
        }
    }
}

/// Who reads a stream.
struct Client {
    frames: mpsc::Sender<Bytes>,
    /// A frame that may be the last.
    waiting: Option<Bytes>,
}

impl Client {
    /// Passes a frame on; one that looks like the last waits for the next, or for [`release`](Self::release).
    async fn send(&mut self, frame: Bytes) {
        self.release().await;
        if may_be_last(&frame) {
            self.waiting = Some(frame);
        } else {
            drop(self.frames.send(frame).await); // a client that has gone is noticed by whom reads
        }
    }

    async fn release(&mut self) {
        if let Some(frame) = self.waiting.take() {
            drop(self.frames.send(frame).await);
        }
    }
}

/// Whether clients take the answer for whole with this frame. A frame that only looks so is a moment late.
fn may_be_last(frame: &[u8]) -> bool {
    const LAST: [&[u8]; 6] = [
        b"[DONE]",
        b"response.completed",
        b"response.incomplete",
        b"response.failed",
        b"\"kind\":\"final\"",
        b"\"kind\":\"error\"",
    ];
    LAST.iter()
        .any(|last| memchr::memmem::find(frame, last).is_some())
}

/// What of a stream can be kept.
struct Kept {
    /// `None`: it became too long.
    bytes: Option<Vec<u8>>,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            bytes: Some(Vec::new()),
        }
    }
}

impl Kept {
    fn add(&mut self, data: &[u8]) {
        let room = self.bytes.take();
        let room = room.filter(|bytes| bytes.len() + data.len() <= LONGEST_BODY);
        self.bytes = room.map(|mut bytes| {
            bytes.extend_from_slice(data);
            bytes
        });
    }
}

/// Keeps an answer; `None` for a body that is too long.
async fn keep(claim: Claim, head: &http::response::Parts, body: Option<&[u8]>) {
    let kept = match body {
        None => claim.keep_no_answer().await,
        Some(body) => {
            let headers = head.headers.iter();
            let headers = headers.filter(|(name, _)| is_lasting(name));
            let answer = Answer {
                status: head.status.as_u16(),
                headers: headers
                    .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
                    .collect(),
                body: body.to_vec(),
            };
            claim.keep(&answer).await
        }
    };
    if let Err(error) = kept {
        // Its usage is recorded and the client has a right to it. A repeat does not run.
        tracing::error!(%error, "an answer with an Idempotency-Key could not be kept");
    }
}

/// What is as true of a repeat: not how much was left of a limit then, nor what belongs to one request.
fn is_lasting(name: &HeaderName) -> bool {
    let name = name.as_str();
    !(name.starts_with("ratelimit") || name.starts_with("x-ratelimit") || name == "x-request-id")
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.trim_start().starts_with("text/event-stream"))
}

impl From<AnswersError> for ApiError {
    fn from(error: AnswersError) -> Self {
        Self::StoreUnavailable {
            detail: error.to_string(),
        }
    }
}
