//! A stream on its way to the client, metered frame by frame inside the body's own `poll_frame`.
//!
//! The last frame is held back until the usage is on disk. A body dropped before that (its client hung up) hands
//! what is left of the stream to a task, which reads on for a while and settles.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, future::BoxFuture};
use http_body::{Body, Frame};
use serde_json::{Value, json};
use smallvec::SmallVec;
use tokio::task::JoinHandle;

use crate::{
    app::App,
    http::{
        Dialect,
        error::{self, ApiError, RenderContext},
        request_id::RequestId,
    },
    journal::JournalError,
    provider::{
        Endpoint, ProviderError, UpstreamBody,
        answer::{self, FrameLook},
        sse, tokens, usage,
    },
    services::run::{End, Flow, Outcome, Run},
};

pub(super) struct MeteredStream {
    app: App,
    request_id: RequestId,
    state: State,
}

enum State {
    Reading(Box<Reading>),
    /// The usage is being written down; then come the last frames, or an error in their place.
    Settling {
        task: JoinHandle<Result<Outcome, JournalError>>,
        upstream: UpstreamBody,
        last: Bytes,
    },
    Releasing(Bytes),
    Done,
}

/// A stream that is not at its end.
struct Reading {
    endpoint: Endpoint,
    request_id: RequestId,
    upstream: UpstreamBody,
    splitter: sse::Splitter,
    run: Box<Run>,
    wants_usage_chunk: bool,
    answers: Answers,
    completion_id: Option<String>,
    /// When the answer was made, in seconds since 1970: as the upstream says, or when it began here.
    created: u64,
    /// Of the last event, where they are numbered.
    number: Option<u64>,
    /// What came while the tokenizer that has to count it is read in.
    waiting: Option<(Bytes, BoxFuture<'static, ()>)>,
}

/// The largest `n`; a server that numbers more has its own ideas.
const MOST_ANSWERS: usize = 128;

/// Which of the answers (choices) that have begun have said why they ended.
#[derive(Default)]
struct Answers(SmallVec<[(usize, bool); 1]>);

impl Answers {
    fn saw(&mut self, seen: impl IntoIterator<Item = (usize, bool)>) {
        for (index, is_finished) in seen {
            let has_room = self.0.len() < MOST_ANSWERS;
            match self.0.iter_mut().find(|(known, _)| *known == index) {
                Some((_, has_finished)) => *has_finished |= is_finished,
                None if has_room => self.0.push((index, is_finished)),
                None => {}
            }
        }
    }

    /// All that was to be said has been said; what is missing is `[DONE]`.
    fn have_finished(&self) -> bool {
        !self.0.is_empty() && self.unfinished().next().is_none()
    }

    fn unfinished(&self) -> impl Iterator<Item = usize> {
        let open = self.0.iter().filter(|(_, has_finished)| !has_finished);
        open.map(|(index, _)| *index)
    }
}

/// What one event of the upstream's becomes.
enum Step {
    Pass(Bytes),
    /// The usage chunk that the client did not ask for.
    Swallow,
    /// The stream's end: nothing is released after this.
    End {
        end: End,
        last: Bytes,
    },
}

impl MeteredStream {
    pub(super) fn new(
        app: App,
        endpoint: Endpoint,
        upstream: UpstreamBody,
        run: Box<Run>,
        wants_usage_chunk: bool,
    ) -> Self {
        let request_id = RequestId(Arc::clone(&run.admitted().caller().request_id));
        let reading = Reading {
            endpoint,
            request_id: request_id.clone(),
            upstream,
            splitter: sse::Splitter::new(),
            run,
            wants_usage_chunk,
            answers: Answers::default(),
            completion_id: None,
            created: u64::try_from(app.clock.now().micros() / 1_000_000).unwrap_or_default(),
            number: None,
            waiting: None,
        };
        if !tokens::is_read_in(reading.run.model()) {
            app.tasks.spawn(reading.read_in()); // to be there when it is needed
        }
        Self {
            app,
            request_id,
            state: State::Reading(Box::new(reading)),
        }
    }

    /// Writes the usage down in a task of its own, which goes on even if this body is dropped.
    fn settle(&mut self, end: End, last: Bytes) {
        let State::Reading(reading) = std::mem::replace(&mut self.state, State::Done) else {
            return;
        };
        let Reading { run, upstream, .. } = *reading;
        let task = self.app.tasks.spawn(run.finish(end));
        self.state = State::Settling {
            task,
            upstream,
            last,
        };
    }

    /// Reads one chunk; what of it may be released.
    fn poll_reading(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            let State::Reading(reading) = &mut self.state else {
                return Poll::Ready(None);
            };
            let step = if self.app.tasks.last_call().is_cancelled() {
                Step::End {
                    end: End::Broken,
                    last: error_frame(&self.request_id, &ApiError::stopped()),
                }
            } else {
                ready!(reading.poll_step(context))
            };
            match step {
                Step::Pass(bytes) if bytes.is_empty() => {}
                Step::Pass(bytes) => return Poll::Ready(Some(bytes)),
                Step::Swallow => {}
                Step::End { end, last } => {
                    self.settle(end, last);
                    return Poll::Ready(None);
                }
            }
        }
    }
}

impl Body for MeteredStream {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            match &mut self.state {
                State::Reading(_) => {
                    if let Some(bytes) = ready!(self.poll_reading(context)) {
                        return Poll::Ready(Some(Ok(Frame::data(bytes))));
                    }
                }
                State::Settling {
                    task,
                    upstream,
                    last,
                } => {
                    // Read to its very end, the connection can serve again; nothing that comes is released.
                    let _ = Pin::new(upstream).poll_frame(context);
                    let settled = ready!(Pin::new(task).poll(context));
                    let last = match settled {
                        Ok(Ok(_)) => std::mem::take(last),
                        Ok(Err(error)) => error_frame(&self.request_id, &error.into()),
                        Err(_) => error_frame(&self.request_id, &ApiError::stopped()),
                    };
                    self.state = State::Releasing(last);
                }
                State::Releasing(last) => {
                    let last = std::mem::take(last);
                    self.state = State::Done;
                    if !last.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(last))));
                    }
                }
                State::Done => return Poll::Ready(None),
            }
        }
    }
}

impl Drop for MeteredStream {
    fn drop(&mut self) {
        if let State::Reading(reading) = std::mem::replace(&mut self.state, State::Done) {
            let app = self.app.clone();
            self.app.tasks.spawn(read_on(app, *reading));
        }
    }
}

/// Reads a stream whose client has gone, to its end or for as long as the settings allow, and settles.
async fn read_on(app: App, mut reading: Reading) {
    reading.run.admitted().mark_detached();
    let keyed = reading.run.admitted().caller().keyed.as_ref();
    let was_read_on = keyed.is_some_and(|keyed| keyed.is_given_up());
    if let Some(_place) = app.tasks.detach().filter(|_| !was_read_on) {
        let to_the_end = poll_fn(|context| {
            loop {
                if let Step::End { .. } = ready!(reading.poll_step(context)) {
                    return Poll::Ready(());
                }
            }
        });
        // Whether it came to its end or not, what was seen until now is what is charged.
        tokio::select! {
            biased;
            () = app.tasks.last_call().cancelled() => {}
            _ = tokio::time::timeout(app.config.disconnect_grace, to_the_end) => {}
        }
    }
    if let Err(error) = reading.run.finish(End::ClientGone).await {
        tracing::error!(%error, "the usage of a client that hung up could not be written down");
    }
}

impl Reading {
    /// Takes the next chunk, or the stream's end.
    fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<Step> {
        loop {
            if let Some((_, tokenizer)) = &mut self.waiting {
                ready!(tokenizer.as_mut().poll(context));
            }
            if let Some((chunk, _)) = self.waiting.take() {
                return Poll::Ready(self.take(chunk));
            }
            match ready!(Pin::new(&mut self.upstream).poll_frame(context)) {
                Some(Ok(frame)) => {
                    let Ok(chunk) = frame.into_data() else {
                        continue;
                    };
                    // A text is never longer than the JSON that it stands in.
                    let bytes = self.splitter.begun_bytes() + chunk.len();
                    if !self.run.lacks_tokenizer(bytes) {
                        return Poll::Ready(self.take(chunk));
                    }
                    self.waiting = Some((chunk, self.read_in().boxed()));
                }
                Some(Err(error)) => return Poll::Ready(self.broken(&error)),
                None => return Poll::Ready(self.ended()),
            }
        }
    }

    fn read_in(&self) -> impl Future<Output = ()> + Send + use<> {
        let model = self.run.model().to_owned();
        async move { tokens::read_in(&model).await }
    }

    /// Counts what a chunk brings; releases its whole events.
    fn take(&mut self, chunk: Bytes) -> Step {
        let whole_chunk = chunk.clone();
        self.splitter.push(chunk);
        let mut released = Released::default();
        while let Some(event) = self.splitter.next_event() {
            match self.take_event(event) {
                Step::Pass(bytes) => released.push(bytes),
                Step::Swallow => {}
                Step::End { end, last } => {
                    released.push(last);
                    if end == End::Completed {
                        // Nothing should follow, but what does is the client's.
                        released.push(self.splitter.finish().unwrap_or_default());
                    }
                    return Step::End {
                        end,
                        last: released.into_bytes(&whole_chunk),
                    };
                }
            }
        }
        Step::Pass(released.into_bytes(&whole_chunk))
    }

    fn take_event(&mut self, event: Bytes) -> Step {
        let Some(data) = sse::data(&event) else {
            return Step::Pass(event);
        };
        if data.trim_ascii() == b"[DONE]" {
            return Step::End {
                end: End::Completed,
                last: event,
            };
        }
        let Ok(text) = std::str::from_utf8(&data) else {
            return Step::Pass(event);
        };
        let look = answer::look_at_frame(self.endpoint, text);
        for (choice, text) in &look.texts {
            self.run.saw_text(*choice, text);
        }
        // A report covers the text that it comes with.
        if let Some(usage) = usage::usage_of_frame(self.endpoint, &data) {
            self.run.saw_usage(usage);
        }
        self.created = look.created.unwrap_or(self.created);
        if self.completion_id.is_none() {
            self.completion_id = look.id.as_deref().map(str::to_owned);
        }
        self.number = look.number.or(self.number);
        if look.is_error {
            // The upstream says itself what it could not do.
            return Step::End {
                end: End::Broken,
                last: event,
            };
        }
        // A frame that is not released ends no answer.
        self.answers
            .saw(look.answers.iter().map(|(index, _)| (*index, false)));
        if !look.texts.is_empty() && self.run.flow() == Flow::CutOff {
            return Step::End {
                end: End::CutOff,
                last: self.cut_off(),
            };
        }
        self.answers.saw(look.answers.iter().copied());
        if look.is_last {
            return Step::End {
                end: End::Completed,
                last: event.clone(),
            };
        }
        if look.is_usage_chunk && !self.wants_usage_chunk {
            return Step::Swallow;
        }
        Step::Pass(self.without_null_usage(&event, text, &look))
    }

    /// The event without the `usage: null` that is there only because tollgate asked for usage.
    fn without_null_usage(&self, event: &Bytes, data: &str, look: &FrameLook<'_>) -> Bytes {
        let Some(cut) = look.null_usage.clone().filter(|_| !self.wants_usage_chunk) else {
            return event.clone();
        };
        let Some(offset) = memchr::memmem::find(event, data.as_bytes()) else {
            return event.clone(); // data on several lines: no server writes it so, and null does no harm
        };
        let mut bytes = BytesMut::with_capacity(event.len());
        bytes.extend_from_slice(&event[..offset + cut.start]);
        bytes.extend_from_slice(&event[offset + cut.end..]);
        bytes.freeze()
    }

    /// The upstream broke off: the client is told, never left with a silent end.
    fn broken(&mut self, error: &ProviderError) -> Step {
        if self.answers.have_finished() {
            return self.ended();
        }
        Step::End {
            end: End::Broken,
            last: error_frame(&self.request_id, &error.clone().into()),
        }
    }

    fn ended(&mut self) -> Step {
        let rest = self.splitter.finish().unwrap_or_default();
        if self.answers.have_finished() {
            return Step::End {
                end: End::Completed,
                last: rest,
            };
        }
        Step::End {
            end: End::Broken,
            last: error_frame(
                &self.request_id,
                &ProviderError::Broken("it ended before its end".to_owned()).into(),
            ),
        }
    }

    /// The frames that end a stream which passed its maximum, as an upstream that honours it would have sent them.
    fn cut_off(&self) -> Bytes {
        let frames = match self.endpoint {
            Endpoint::Responses => {
                let mut event = json!({
                    "type": "response.incomplete",
                    "response": {
                        "id": self.completion_id.as_deref().unwrap_or("resp-cut-off"),
                        "object": "response",
                        "created_at": self.created,
                        "model": self.run.model(),
                        "status": "incomplete",
                        "incomplete_details": { "reason": "max_output_tokens" },
                        "output": [],
                        "usage": self.usage("input_tokens", "output_tokens"),
                    },
                });
                if let Some(number) = self.number {
                    // Of the event in whose place it comes.
                    event["sequence_number"] = json!(number);
                }
                format!("event: response.incomplete\ndata: {event}\n\n")
            }
            Endpoint::ChatCompletions | Endpoint::Embeddings | Endpoint::Models => {
                let finished =
                    |index| json!({ "index": index, "delta": {}, "finish_reason": "length" });
                let choices: Vec<_> = self.answers.unfinished().map(finished).collect();
                let mut frames = format!("data: {}\n\n", self.chunk(&json!(choices), &json!(null)));
                if self.wants_usage_chunk {
                    let usage = self.usage("prompt_tokens", "completion_tokens");
                    frames.push_str(&format!("data: {}\n\n", self.chunk(&json!([]), &usage)));
                }
                frames.push_str("data: [DONE]\n\n");
                frames
            }
        };
        frames.into()
    }

    fn chunk(&self, choices: &Value, usage: &Value) -> Value {
        let mut chunk = json!({
            "id": self.completion_id.as_deref().unwrap_or("chatcmpl-cut-off"),
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.run.model(),
            "choices": choices,
        });
        if !usage.is_null() {
            chunk["usage"] = usage.clone();
        }
        chunk
    }

    fn usage(&self, input: &str, output: &str) -> Value {
        let used = self.run.usage_so_far();
        json!({
            input: used.input_tokens,
            output: used.output_tokens,
            "total_tokens": used.input_tokens.plus(used.output_tokens),
        })
    }
}

/// Events released from one chunk; the chunk itself where nothing had to be changed, so that frames stay one to one
/// and nothing is copied.
#[derive(Default)]
struct Released {
    events: Vec<Bytes>,
}

impl Released {
    fn push(&mut self, event: Bytes) {
        if !event.is_empty() {
            self.events.push(event);
        }
    }

    fn into_bytes(self, chunk: &Bytes) -> Bytes {
        let length: usize = self.events.iter().map(Bytes::len).sum();
        let follows =
            |pair: &[Bytes]| pair[0].as_ptr().addr() + pair[0].len() == pair[1].as_ptr().addr();
        match self.events.as_slice() {
            [] => Bytes::new(),
            [event] => event.clone(),
            events if length <= chunk.len() && events.windows(2).all(follows) => {
                let start = events[0].as_ptr().addr().checked_sub(chunk.as_ptr().addr());
                match start.filter(|start| start + length <= chunk.len()) {
                    Some(start) => chunk.slice(start..start + length),
                    None => events.concat().into(),
                }
            }
            events => events.concat().into(),
        }
    }
}

/// An error in the middle of a stream.
fn error_frame(request_id: &RequestId, error: &ApiError) -> Bytes {
    error::frame(
        error,
        RenderContext {
            dialect: Dialect::OpenAi,
            request_id,
        },
    )
}
