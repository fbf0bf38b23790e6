//! Does async-openai's requests: exactly one each, without its retries, and with failures kept whole.
//!
//! async-openai turns an error answer into its own type, which loses headers and body, and logs answers that it
//! cannot read. So an answer is checked here and comes to it only if it can be read.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_openai::{error::OpenAIError, middleware::HttpRequestFactory};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use serde::de::IgnoredAny;
use tokio::time::Instant;

use super::{ProviderError, completion::Completion, sse};

/// More than any model puts out.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// What is expected of the answer.
#[derive(Clone)]
pub(super) enum Want {
    Whole,
    /// Server-sent events; a failure in their midst is left here, since the library passes only texts on.
    Stream(Failure),
}

/// Why a stream ended early.
#[derive(Clone, Default)]
pub(super) struct Failure(Arc<Mutex<Option<ProviderError>>>);

impl Failure {
    pub(super) fn take(&self) -> Option<ProviderError> {
        self.slot().take()
    }

    fn put(&self, error: ProviderError) {
        *self.slot() = Some(error);
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<ProviderError>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone)]
pub(super) struct OneCall {
    http: reqwest::Client,
    want: Want,
    /// For a whole answer, or until the first and between two chunks of a stream.
    timeout: Duration,
}

impl OneCall {
    pub(super) fn new(http: reqwest::Client, want: Want, timeout: Duration) -> Self {
        Self {
            http,
            want,
            timeout,
        }
    }

    pub(super) async fn run(
        self,
        request: HttpRequestFactory,
    ) -> Result<reqwest::Response, OpenAIError> {
        let request = request.build().await?;
        let answer = self.answer(request).await;
        answer.map_err(|error| OpenAIError::Boxed(Box::new(error)))
    }

    async fn answer(self, request: reqwest::Request) -> Result<reqwest::Response, ProviderError> {
        let deadline = Instant::now() + self.timeout;
        let response = in_time(deadline, self.http.execute(request))
            .await?
            .map_err(|error| ProviderError::Unreachable(chain(&error)))?;
        if !response.status().is_success() {
            return Err(refused(response, deadline).await);
        }
        match self.want {
            Want::Whole => whole(response, deadline).await,
            Want::Stream(failure) => Ok(checked(response, failure, self.timeout)),
        }
    }
}

async fn in_time<F: Future>(deadline: Instant, work: F) -> Result<F::Output, ProviderError> {
    let done = tokio::time::timeout_at(deadline, work).await;
    done.map_err(|_| ProviderError::Timeout)
}

async fn refused(mut response: reqwest::Response, deadline: Instant) -> ProviderError {
    match in_time(deadline, read(&mut response)).await {
        Err(timeout) => timeout,
        Ok(Err(broken)) => broken,
        Ok(Ok(body)) => ProviderError::Refused {
            status: response.status(),
            headers: Box::new(std::mem::take(response.headers_mut())),
            body,
        },
    }
}

async fn whole(
    mut response: reqwest::Response,
    deadline: Instant,
) -> Result<reqwest::Response, ProviderError> {
    let body = in_time(deadline, read(&mut response)).await??;
    if serde_json::from_slice::<IgnoredAny>(&body).is_err() {
        return Err(ProviderError::Broken("the answer is no JSON".to_owned()));
    }
    Ok(http::Response::new(body).into())
}

async fn read(response: &mut reqwest::Response) -> Result<Bytes, ProviderError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| broken(&error))? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            let size = format!("the answer is larger than {MAX_ANSWER_BYTES} bytes");
            return Err(ProviderError::Broken(size));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

fn checked(response: reqwest::Response, failure: Failure, timeout: Duration) -> reqwest::Response {
    let events = Events {
        response,
        splitter: sse::Splitter::new(),
        timeout,
        complete: Complete::NotYet,
        failure,
    };
    http::Response::new(reqwest::Body::wrap_stream(events.into_stream())).into()
}

/// Whether a stream may end: it had a finish reason or `[DONE]`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Complete {
    NotYet,
    Finished,
    Done,
}

#[derive(PartialEq, Eq)]
enum Worth {
    Passing,
    Nothing,
}

struct Events {
    response: reqwest::Response,
    splitter: sse::Splitter,
    timeout: Duration,
    complete: Complete,
    failure: Failure,
}

impl Events {
    fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::unfold(Some(self), |events| async move {
            let mut events = events?;
            match events.next().await {
                Ok(Some(event)) => Some((Ok(event), Some(events))),
                Ok(None) => None,
                Err(error) => {
                    let text = io::Error::other(error.to_string());
                    events.failure.put(error);
                    Some((Err(text), None))
                }
            }
        })
    }

    /// The next event, `None` after the last of a complete stream.
    async fn next(&mut self) -> Result<Option<Bytes>, ProviderError> {
        while self.complete != Complete::Done {
            if let Some(event) = self.splitter.next_event() {
                if self.check(&event)? == Worth::Passing {
                    return Ok(Some(event));
                }
                continue;
            }
            let deadline = Instant::now() + self.timeout;
            match in_time(deadline, self.response.chunk()).await? {
                Ok(Some(chunk)) => self.splitter.push(chunk),
                Ok(None) => return self.last(),
                Err(error) => return Err(broken(&error)),
            }
        }
        Ok(None)
    }

    /// What was left when the upstream ended the stream.
    fn last(&mut self) -> Result<Option<Bytes>, ProviderError> {
        let left = self.splitter.finish();
        if let Some(event) = &left {
            self.check(event)?;
        }
        if self.complete == Complete::NotYet {
            return Err(ProviderError::Broken(
                "the stream ended before the answer did".to_owned(),
            ));
        }
        self.complete = Complete::Done;
        // Closed here, or it would not be read.
        Ok(left.map(|event| [&event, b"\n\n".as_slice()].concat().into()))
    }

    fn check(&mut self, event: &[u8]) -> Result<Worth, ProviderError> {
        let data = sse::data(event).unwrap_or_default();
        let data = data.trim_ascii();
        if data.is_empty() {
            // A comment or the like, which keeps the connection from being taken for dead.
            return Ok(Worth::Nothing);
        }
        if data == b"[DONE]" {
            self.complete = Complete::Done;
            return Ok(Worth::Passing);
        }
        let text = std::str::from_utf8(data)
            .map_err(|_| ProviderError::Broken("the stream is no UTF-8".to_owned()))?;
        let chunk = Completion::parse(text)?;
        if let Some(error) = chunk.error() {
            return Err(error);
        }
        if chunk.is_finished() {
            self.complete = Complete::Finished;
        }
        Ok(Worth::Passing)
    }
}

fn broken(error: &reqwest::Error) -> ProviderError {
    ProviderError::Broken(chain(error))
}

/// An error with its causes; reqwest's own text says only what was tried.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
