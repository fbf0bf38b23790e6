//! A model that says what it is told to, piece by piece, and only when it is told to.

use std::{
    collections::{HashMap, VecDeque},
    sync::Mutex,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt as _, stream};
use http::{Response, StatusCode, header};
use serde_json::{Value, json};
use tokio::sync::{
    mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    oneshot,
};
use tollgate::{
    domain::{quantity::Quantity, usage::TokenUsage},
    provider::{
        ChatCall, ChatDelta, ChatReply, ChatStream, Finish, Forward, Provider, ProviderError,
        ProviderStatus, UpstreamBody,
    },
};

pub(super) const MODEL: &str = "gpt-5.1";
/// One token of [`MODEL`].
pub(super) const WORD: &str = " word";

/// What the model does next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Piece {
    Words(i64),
    Usage { input: i64, output: i64 },
    End,
    BreakOff,
    Refuse,
}

type Pieces = UnboundedReceiver<Piece>;

/// The line to the model of one call: made before the call, which names itself by its prompt's first word.
pub(super) struct Line {
    pieces: UnboundedSender<Piece>,
    /// The maximum that the call came with, once it has come.
    pub(super) called: oneshot::Receiver<Option<i64>>,
    is_broken: bool,
}

impl Line {
    pub(super) fn say(&self, piece: Piece) {
        // Nobody listens any more after a cut-off.
        self.pieces.send(piece).ok();
    }

    pub(super) fn break_off(&mut self, how: Piece) {
        self.is_broken = true;
        self.say(how);
    }

    pub(super) fn is_broken(&self) -> bool {
        self.is_broken
    }
}

struct Script {
    pieces: Pieces,
    called: oneshot::Sender<Option<i64>>,
}

#[derive(Default)]
pub(super) struct Scripted(Mutex<HashMap<String, Script>>);

impl Scripted {
    pub(super) fn expect(&self, name: &str) -> Line {
        let (sender, pieces) = unbounded_channel();
        let (told, called) = oneshot::channel();
        let script = Script {
            pieces,
            called: told,
        };
        self.0.lock().unwrap().insert(name.to_owned(), script);
        Line {
            pieces: sender,
            called,
            is_broken: false,
        }
    }

    fn call(&self, prompt: &str, maximum: Option<i64>) -> Pieces {
        let name = prompt.split(' ').next().unwrap();
        let script = self.0.lock().unwrap().remove(name);
        let script = script.expect("a call that was not made, or made twice");
        script.called.send(maximum).ok();
        script.pieces
    }
}

async fn next(pieces: &mut Pieces) -> Piece {
    match pieces.recv().await {
        Some(piece) => piece,
        None => std::future::pending().await, // its world is gone
    }
}

fn broken() -> ProviderError {
    ProviderError::Broken("as it was told".to_owned())
}

fn refused() -> ProviderError {
    ProviderError::Refused {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        headers: Box::default(),
        body: Bytes::from_static(b"{}"),
    }
}

/// A whole answer: how many words, and the usage reported.
async fn whole(mut pieces: Pieces) -> Result<(i64, Option<(i64, i64)>), ProviderError> {
    let (mut words, mut usage) = (0, None);
    loop {
        match next(&mut pieces).await {
            Piece::Words(more) => words += more,
            Piece::Usage { input, output } => usage = Some((input, output)),
            Piece::End => return Ok((words, usage)),
            Piece::BreakOff => return Err(broken()),
            Piece::Refuse => return Err(refused()),
        }
    }
}

fn words(count: i64) -> String {
    WORD.repeat(usize::try_from(count).unwrap())
}

fn usage_json((input, output): (i64, i64)) -> Value {
    json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output})
}

fn tokens((input, output): (i64, i64)) -> TokenUsage {
    TokenUsage {
        input_tokens: Quantity::new(input),
        output_tokens: Quantity::new(output),
        ..TokenUsage::default()
    }
}

fn event(choices: &Value, usage: &Value) -> String {
    let chunk = json!({"id": "c", "object": "chat.completion.chunk", "model": MODEL, "choices": choices, "usage": usage});
    format!("data: {chunk}\n\n")
}

/// What a piece is on the wire of `/v1/chat/completions`; each of them a chunk of its own.
fn events(piece: Piece) -> Vec<Result<Bytes, ProviderError>> {
    let choice = |delta: Value, finish: Value| json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
    let texts = match piece {
        Piece::Words(count) => {
            let text = event(&choice(json!({"content": WORD}), json!(null)), &json!(null));
            vec![text; usize::try_from(count).unwrap()]
        }
        Piece::Usage { input, output } => {
            let finish = event(&choice(json!({}), json!("stop")), &json!(null));
            vec![finish, event(&json!([]), &usage_json((input, output)))]
        }
        Piece::End => {
            let finish = event(&choice(json!({}), json!("stop")), &json!(null));
            vec![format!("{finish}data: [DONE]\n\n")]
        }
        Piece::BreakOff | Piece::Refuse => return vec![Err(broken())],
    };
    texts.into_iter().map(|text| Ok(text.into())).collect()
}

fn deltas(piece: Piece) -> Vec<Result<ChatDelta, ProviderError>> {
    let delta = match piece {
        Piece::Words(count) => {
            let word = ChatDelta {
                text: WORD.to_owned(),
                ..ChatDelta::default()
            };
            return vec![Ok(word); usize::try_from(count).unwrap()];
        }
        Piece::Usage { input, output } => ChatDelta {
            usage: Some(tokens((input, output))),
            ..ChatDelta::default()
        },
        Piece::End => ChatDelta {
            finish: Some(Finish::Stop),
            ..ChatDelta::default()
        },
        Piece::BreakOff | Piece::Refuse => return vec![Err(broken())],
    };
    vec![Ok(delta)]
}

/// The stream of all that comes of `first` and the pieces after it, up to the end or a break.
fn played<T: Send + 'static>(
    first: Piece,
    pieces: Pieces,
    render: fn(Piece) -> Vec<Result<T, ProviderError>>,
) -> impl Stream<Item = Result<T, ProviderError>> + Send {
    let state = (VecDeque::from(render(first)), pieces, is_last(first));
    stream::unfold(
        state,
        move |(mut ready, mut pieces, mut is_over)| async move {
            loop {
                if let Some(item) = ready.pop_front() {
                    return Some((item, (ready, pieces, is_over)));
                }
                if is_over {
                    return None;
                }
                let piece = next(&mut pieces).await;
                ready.extend(render(piece));
                is_over = is_last(piece);
            }
        },
    )
}

fn is_last(piece: Piece) -> bool {
    matches!(piece, Piece::End | Piece::BreakOff | Piece::Refuse)
}

impl Provider for Scripted {
    fn chat<'a>(&'a self, call: &'a ChatCall) -> BoxFuture<'a, Result<ChatReply, ProviderError>> {
        Box::pin(async move {
            let pieces = self.call(
                &call.turns[0].text,
                call.max_output_tokens.map(Quantity::get),
            );
            let (count, usage) = whole(pieces).await?;
            Ok(ChatReply {
                response_id: "c".to_owned(),
                model: MODEL.to_owned(),
                text: words(count),
                unseen: String::new(),
                finish: Finish::Stop,
                usage: usage.map(tokens),
            })
        })
    }

    fn chat_stream<'a>(
        &'a self,
        call: &'a ChatCall,
    ) -> BoxFuture<'a, Result<ChatStream, ProviderError>> {
        Box::pin(async move {
            let mut pieces = self.call(
                &call.turns[0].text,
                call.max_output_tokens.map(Quantity::get),
            );
            match next(&mut pieces).await {
                Piece::Refuse => Err(refused()),
                first => Ok(played(first, pieces, deltas).boxed()),
            }
        })
    }

    fn forward(
        &self,
        request: Forward,
    ) -> BoxFuture<'_, Result<Response<UpstreamBody>, ProviderError>> {
        Box::pin(async move {
            let body: Value = serde_json::from_slice(&request.body).unwrap();
            let maximum = ["max_completion_tokens", "max_tokens"];
            let maximum = maximum.iter().find_map(|field| body[*field].as_i64());
            let prompt = body["messages"][0]["content"].as_str().unwrap();
            let mut pieces = self.call(prompt, maximum);
            let answer = |status, kind, body| {
                let answer = Response::builder()
                    .status(status)
                    .header(header::CONTENT_TYPE, kind);
                Ok(answer.body(body).unwrap())
            };
            if body["stream"] == true {
                let first = next(&mut pieces).await;
                if !matches!(first, Piece::Refuse) {
                    let body = UpstreamBody::made(played(first, pieces, events), request.patience);
                    return answer(StatusCode::OK, "text/event-stream", body);
                }
                let body = UpstreamBody::whole(Bytes::from_static(b"{}"));
                return answer(StatusCode::INTERNAL_SERVER_ERROR, "application/json", body);
            }
            let (count, usage) = match whole(pieces).await {
                Ok(said) => said,
                Err(ProviderError::Refused { status, body, .. }) => {
                    return answer(status, "application/json", UpstreamBody::whole(body));
                }
                Err(error) => return Err(error),
            };
            let message = json!({"role": "assistant", "content": words(count)});
            let mut said = json!({"id": "c", "object": "chat.completion", "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]});
            if let Some(usage) = usage {
                said["usage"] = usage_json(usage);
            }
            let body = UpstreamBody::whole(said.to_string().into());
            answer(StatusCode::OK, "application/json", body)
        })
    }

    fn status(&self) -> ProviderStatus {
        ProviderStatus::Ready
    }
}
