//! `/api/v1/chat`: a message in a conversation, answered whole or as a stream.
//!
//! The run lives in a task of its own, so a client that goes away takes nothing with it.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::{
    app::tasks::Tasks,
    clock::{self, Clock},
    config::{ChargeOnAbort, Config},
    domain::{ids::ConversationId, limit::LimitStates, quantity::Quantity, usage::TokenUsage},
    journal::JournalError,
    ledger::Named,
    provider::{
        ChatCall, ChatDelta, ChatReply, ChatStream, Endpoint, Finish, Provider, ProviderError,
        ProviderStatus, tokens,
    },
    services::{
        admitted::{OutputGrant, Settlement},
        guard::{AdmitError, Ask, Caller, Guard, OutputAsk},
        run::{End, EstimateInput, Flow, Outcome, Run, RunRules},
    },
    store::{
        SharedStore, StoreError,
        conversations::{Speaker, Turn},
    },
    telemetry::events::Decision,
};

/// What templates and JSON may add to a turn, and to the whole (as for `/v1`, design.md §3).
const TOKENS_PER_TURN: i64 = 16;
const TOKENS_PER_PROMPT: i64 = 64;
/// How far a stream may run ahead of a slow client.
const EVENTS_AHEAD: usize = 64;

/// A message to answer; without `Debug`, since prompts are nobody's but the tenant's.
#[derive(Clone)]
pub struct ChatAsk {
    pub caller: Caller,
    pub message: String,
    pub conversation: Option<ConversationId>,
    pub model: Option<String>,
    pub instructions: Option<String>,
    pub max_output_tokens: Option<Quantity>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    #[error(transparent)]
    Admit(#[from] AdmitError),
    #[error("there is no conversation '{0}', or it has expired")]
    ConversationNotFound(ConversationId),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error("the usage of this request could not be written down: {0}")]
    Journal(#[from] JournalError),
    /// The server is stopping.
    #[error("the run was stopped before it ended")]
    Stopped,
}

/// Whether an answer is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Completed,
    /// The maximum was reached, or the stream was cut off at it.
    Incomplete,
}

/// What the guard says of an answer.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub decision: Decision,
    pub plan_code: Arc<str>,
    /// At admission: what the decision was made on.
    pub admitted: LimitStates,
    /// After settling.
    pub settled: LimitStates,
    /// The maximum was lowered, and that is worth telling.
    pub capped: Option<OutputGrant>,
    /// The model, if it has no price.
    pub unpriced: Option<String>,
}

/// An answer, settled.
#[derive(Clone, Debug)]
pub struct ChatAnswer {
    pub conversation_id: ConversationId,
    pub response_id: String,
    pub text: String,
    pub model: String,
    pub status: Status,
    pub tokens: TokenUsage,
    pub estimated: bool,
    pub cost: Quantity,
    /// `None` with guardrails off.
    pub verdict: Option<Verdict>,
}

/// A part of a streamed answer.
#[derive(Debug)]
pub enum ChatEvent {
    Delta(String),
    /// The last one.
    Final(Box<ChatAnswer>),
    /// The last one.
    Failed(ChatError),
}

/// An answer about to stream.
pub struct StreamedAnswer {
    pub conversation_id: ConversationId,
    /// The limits at admission, for the headers; `None` with guardrails off.
    pub verdict: Option<Verdict>,
    pub events: mpsc::Receiver<ChatEvent>,
}

/// Answers messages.
pub struct Chat {
    pub config: Arc<Config>,
    pub clock: Clock,
    pub store: SharedStore,
    pub guard: Arc<Guard>,
    pub provider: Arc<dyn Provider>,
    pub tasks: Tasks,
}

/// So long an answer waits for its turns to be kept.
const STORE_PATIENCE: Duration = Duration::from_millis(250);

/// Reads a stream whose client has gone.
struct Reader {
    _place: OwnedSemaphorePermit,
    until: tokio::time::Instant,
}

/// A message, admitted and ready to go upstream.
struct Prepared {
    conversation_id: ConversationId,
    message: String,
    call: ChatCall,
    run: Box<Run>,
}

impl Chat {
    /// Answers a message whole.
    ///
    /// # Errors
    /// [`ChatError`]; unless it says otherwise, nothing is charged.
    pub async fn answer(self: &Arc<Self>, ask: ChatAsk) -> Result<ChatAnswer, ChatError> {
        let prepared = self.prepare(ask).await?;
        let chat = Arc::clone(self);
        let (answer, answered) = oneshot::channel();
        let running = self.tasks.spawn(async move {
            let result = chat.run_whole(prepared, || answer.is_closed()).await;
            // A client that has gone needs no answer; its run is settled all the same.
            drop(answer.send(result));
        });
        let answered = self.tasks.wait(answered, running).await;
        answered.unwrap_or(Err(ChatError::Stopped))
    }

    /// Answers a message as a stream; what can be refused before the upstream is called is refused here.
    ///
    /// # Errors
    /// [`ChatError`]: nothing is charged.
    pub async fn stream(self: &Arc<Self>, ask: ChatAsk) -> Result<StreamedAnswer, ChatError> {
        if let ProviderStatus::NotConfigured(what) = self.provider.status() {
            return Err(ProviderError::NotConfigured(what).into());
        }
        let prepared = self.prepare(ask).await?;
        let conversation_id = prepared.conversation_id;
        let verdict = self.verdict(&prepared.run, None, Status::Completed);
        let (sender, events) = mpsc::channel(EVENTS_AHEAD);
        let chat = Arc::clone(self);
        self.tasks
            .spawn(async move { chat.run_stream(prepared, sender).await });
        Ok(StreamedAnswer {
            conversation_id,
            verdict,
            events,
        })
    }

    async fn prepare(&self, ask: ChatAsk) -> Result<Prepared, ChatError> {
        let mut turns = match ask.conversation {
            Some(conversation) => self
                .store
                .find_conversation(ask.caller.tenant_id, conversation, self.clock.now())
                .await?
                .ok_or(ChatError::ConversationNotFound(conversation))?,
            None => Vec::new(),
        };
        turns.push(Turn {
            speaker: Speaker::User,
            text: ask.message.clone(),
        });
        let model = ask
            .model
            .unwrap_or_else(|| self.config.default_model.clone());
        let call = ChatCall {
            model,
            turns,
            instructions: ask.instructions,
            max_output_tokens: ask.max_output_tokens,
            user: None, // whom the operator's customers serve is not the provider's to know
            request_id: ask.caller.request_id.to_string(),
        };
        let tokenized = || {
            let call = call.clone();
            tokens::aside(move || tokenized_input(&call, TOKENS_PER_TURN)).boxed()
        };
        let admitted = self
            .guard
            .admit(&Ask {
                caller: &ask.caller,
                endpoint: Endpoint::ChatCompletions,
                model: &call.model,
                input_bound: input_bound(&call),
                tokenized_input: &tokenized,
                open_input: None,
                output: Some(OutputAsk {
                    named: ask.max_output_tokens,
                    answers: 1,
                }),
            })
            .await?;
        let lowered = admitted.output.and_then(|output| output.lowered_to());
        let call = ChatCall {
            max_output_tokens: lowered.or(ask.max_output_tokens),
            ..call
        };
        let model = call.model.clone();
        let prompt = call.clone();
        let estimate: EstimateInput = Arc::new(move || tokenized_input(&prompt, 3));
        Ok(Prepared {
            conversation_id: ask
                .conversation
                .unwrap_or_else(|| ConversationId::new(clock::new_id())),
            message: ask.message,
            call,
            run: Run::new(admitted, &model, RunRules::of(&self.config), estimate),
        })
    }

    async fn run_whole(
        &self,
        prepared: Prepared,
        client_gone: impl Fn() -> bool,
    ) -> Result<ChatAnswer, ChatError> {
        let Prepared {
            conversation_id,
            message,
            call,
            mut run,
        } = prepared;
        let reply = self.provider.chat(&call).await?;
        for text in [&reply.text, &reply.unseen] {
            run.saw_text(0, text);
        }
        if let Some(usage) = reply.usage {
            run.saw_usage(usage);
        }
        let is_forgiven = client_gone() && self.config.charge_on_abort == ChargeOnAbort::Nothing;
        let end = if is_forgiven {
            End::ClientGone
        } else {
            End::Completed
        };
        self.finish(run, end, conversation_id, message, reply).await
    }

    async fn run_stream(&self, prepared: Prepared, events: mpsc::Sender<ChatEvent>) {
        let Prepared {
            conversation_id,
            message,
            call,
            mut run,
        } = prepared;
        let (stream, reader) = match self.open_stream(&call, &run, &events).await {
            (Some(Ok(stream)), reader) => (stream, reader),
            (Some(Err(error)), _) => {
                drop(run); // what it held is back before anybody can ask again
                drop(events.send(ChatEvent::Failed(error.into())).await);
                return;
            }
            (None, _) => {
                if let Err(error) = run.finish(End::ClientGone).await {
                    tracing::error!(%error, "the usage of a client that hung up could not be written down");
                }
                return;
            }
        };
        let mut reply = ChatReply {
            response_id: String::new(),
            model: call.model.clone(),
            text: String::new(),
            unseen: String::new(),
            finish: Finish::Stop,
            usage: None,
        };
        let (end, broken) = self
            .read_stream(stream, &mut run, &mut reply, &events, reader)
            .await;
        let finished = self.finish(run, end, conversation_id, message, reply).await;
        let last = match (broken, finished) {
            (Some(error), _) => ChatEvent::Failed(error),
            (None, Ok(answer)) => ChatEvent::Final(Box::new(answer)),
            (None, Err(error)) => ChatEvent::Failed(error),
        };
        drop(events.send(last).await);
    }

    /// Waits for the upstream to begin; once the client has gone, no longer than it would be read on. `None`: it was
    /// not waited for to the end.
    async fn open_stream(
        &self,
        call: &ChatCall,
        run: &Run,
        events: &mpsc::Sender<ChatEvent>,
    ) -> (Option<Result<ChatStream, ProviderError>>, Option<Reader>) {
        let mut opening = self.provider.chat_stream(call);
        tokio::select! {
            biased;
            opened = &mut opening => return (Some(opened), None),
            () = events.closed() => {}
        }
        let Some(reader) = self.read_alone(run) else {
            return (None, None);
        };
        let opened = tokio::select! {
            biased;
            () = self.tasks.last_call().cancelled() => None,
            opened = tokio::time::timeout_at(reader.until, opening) => opened.ok(),
        };
        (opened, Some(reader))
    }

    /// A place to read on in although the client has gone; `None` if there is none, or it was read on already.
    fn read_alone(&self, run: &Run) -> Option<Reader> {
        run.admitted().mark_detached();
        let keyed = run.admitted().caller().keyed.as_ref();
        if keyed.is_some_and(|keyed| keyed.is_given_up()) {
            return None;
        }
        Some(Reader {
            _place: self.tasks.detach()?,
            until: tokio::time::Instant::now() + self.config.disconnect_grace,
        })
    }

    /// Reads the stream to its end, releasing what comes; says how it ended. `reader`: the client has gone already.
    async fn read_stream(
        &self,
        mut stream: ChatStream,
        run: &mut Run,
        reply: &mut ChatReply,
        events: &mpsc::Sender<ChatEvent>,
        mut reader: Option<Reader>,
    ) -> (End, Option<ChatError>) {
        let last_call = self.tasks.last_call();
        loop {
            let next = match &reader {
                None => tokio::select! {
                    biased;
                    () = last_call.cancelled() => return (End::Broken, Some(ChatError::Stopped)),
                    next = stream.next() => next,
                    () = events.closed() => {
                        reader = self.read_alone(run);
                        if reader.is_none() {
                            return (End::ClientGone, None);
                        }
                        continue;
                    }
                },
                Some(reader) => tokio::select! {
                    biased;
                    () = last_call.cancelled() => return (End::ClientGone, None),
                    next = tokio::time::timeout_at(reader.until, stream.next()) => match next {
                        Ok(next) => next,
                        Err(_) => return (End::ClientGone, None),
                    },
                },
            };
            let end = if reader.is_some() {
                End::ClientGone
            } else {
                End::Completed
            };
            match next {
                None => return (end, None),
                Some(Err(error)) if reader.is_some() => {
                    tracing::debug!(%error, "upstream broke off after the client had gone");
                    return (end, None);
                }
                Some(Err(error)) => return (End::Broken, Some(error.into())),
                Some(Ok(delta)) => {
                    if take(delta, run, reply, events).await == Flow::CutOff {
                        reply.finish = Finish::Length;
                        return (End::CutOff, None);
                    }
                }
            }
        }
    }

    async fn finish(
        &self,
        run: Box<Run>,
        end: End,
        conversation_id: ConversationId,
        message: String,
        reply: ChatReply,
    ) -> Result<ChatAnswer, ChatError> {
        let tenant = run.admitted().caller().tenant_id;
        let status = if reply.finish == Finish::Length {
            Status::Incomplete
        } else {
            Status::Completed
        };
        let before = self.verdict(&run, None, status);
        let settled = match run.finish(end).await? {
            Outcome::Charged(settlement) => settlement,
            Outcome::Free => Settlement {
                tokens: TokenUsage::default(),
                estimated: false,
                cost: Quantity::ZERO,
                states: before
                    .as_ref()
                    .map(|verdict| verdict.admitted.clone())
                    .unwrap_or_default(),
            },
        };
        if matches!(end, End::Completed | End::CutOff) {
            self.remember(tenant, conversation_id, message, &reply.text)
                .await;
        }
        Ok(ChatAnswer {
            conversation_id,
            response_id: reply.response_id,
            text: reply.text,
            model: reply.model,
            status,
            tokens: settled.tokens,
            estimated: settled.estimated,
            cost: settled.cost,
            verdict: before.map(|verdict| Verdict {
                settled: settled.states,
                ..verdict
            }),
        })
    }

    fn verdict(&self, run: &Run, settled: Option<LimitStates>, status: Status) -> Option<Verdict> {
        let admitted = run.admitted();
        if !self.guard.is_on() {
            return None;
        }
        let was_named = |output: &OutputGrant| output.named == Named::ByClient;
        Some(Verdict {
            decision: admitted.decision,
            plan_code: Arc::clone(&admitted.plan_code),
            admitted: admitted.states.clone(),
            settled: settled.unwrap_or_else(|| admitted.states.clone()),
            capped: admitted
                .output
                .filter(|output| output.lowered_to().is_some())
                .filter(|output| was_named(output) || status == Status::Incomplete),
            unpriced: admitted.price.is_none().then(|| run.model().to_owned()),
        })
    }

    /// Keeps the turns before the answer leaves, so that the next message finds them.
    async fn remember(
        &self,
        tenant: crate::domain::ids::TenantId,
        conversation: ConversationId,
        message: String,
        answer: &str,
    ) {
        let days = self.config.conversation_days;
        if days == 0 {
            return;
        }
        let expires_at = self
            .clock
            .now()
            .plus(Duration::from_secs(u64::from(days) * 24 * 3600));
        let turns = [
            Turn {
                speaker: Speaker::User,
                text: message,
            },
            Turn {
                speaker: Speaker::Assistant,
                text: answer.to_owned(),
            },
        ];
        let store = self.store.clone();
        let keeping = self.tasks.spawn(async move {
            let kept = store.append_turns(tenant, conversation, &turns, expires_at);
            if let Err(error) = kept.await {
                tracing::warn!(%error, %conversation, "a conversation's turns could not be kept");
            }
        });
        // Where the store is busy for longer, they are kept behind the answer.
        drop(tokio::time::timeout(STORE_PATIENCE, keeping).await);
    }
}

/// Counts a delta, and releases its text unless it passes the maximum.
async fn take(
    delta: ChatDelta,
    run: &mut Run,
    reply: &mut ChatReply,
    events: &mpsc::Sender<ChatEvent>,
) -> Flow {
    let produced = delta.text.len() + delta.unseen.len();
    if run.lacks_tokenizer(produced) {
        tokens::read_in(run.model()).await;
    }
    for text in [&delta.text, &delta.unseen] {
        run.saw_text(0, text);
    }
    if let Some(usage) = delta.usage {
        run.saw_usage(usage);
        reply.usage = Some(usage);
    }
    if let Some(id) = delta.response_id {
        reply.response_id = id;
    }
    if let Some(model) = delta.model {
        reply.model = model;
    }
    if let Some(finish) = delta.finish {
        reply.finish = finish;
    }
    if produced > 0 && run.flow() == Flow::CutOff {
        return Flow::CutOff;
    }
    if delta.text.is_empty() {
        return Flow::Continue;
    }
    reply.text.push_str(&delta.text);
    // A client that has gone is noticed by the channel's end, in the loop around this.
    drop(events.send(ChatEvent::Delta(delta.text)).await);
    Flow::Continue
}

fn texts(call: &ChatCall) -> impl Iterator<Item = &str> {
    call.instructions
        .as_deref()
        .into_iter()
        .chain(call.turns.iter().map(|turn| turn.text.as_str()))
}

fn input_bound(call: &ChatCall) -> Quantity {
    let bytes: usize = texts(call).map(str::len).sum();
    let turns = Quantity::from_count(texts(call).count());
    Quantity::from_count(bytes)
        .plus(turns.times(TOKENS_PER_TURN))
        .plus(Quantity::new(TOKENS_PER_PROMPT))
}

fn tokenized_input(call: &ChatCall, per_turn: i64) -> Quantity {
    let tokens: Quantity = texts(call)
        .map(|text| tokens::count(&call.model, text))
        .sum();
    let turns = Quantity::from_count(texts(call).count() + 1);
    tokens.plus(turns.times(per_turn))
}
