//! Knows whether the server answers, so that no request waits for one that does not; and hears of changes.
//!
//! One connection apart from all others listens for notifications. Whoever waits long for an answer asks over it whether
//! the server is there: so a statement that takes its time goes on, and one that waits for a server that stands still,
//! or for a network that swallows everything, is given up. From then on requests are refused at once, until the watch,
//! which goes on trying, is answered again.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_postgres::{AsyncMessage, Client};
use tokio_util::task::AbortOnDropHandle;

use super::{
    connect::{self, Connector},
    text_of,
};

/// The channel of `note_catalogue_change` in `migrations/postgres`.
const CHANNEL: &str = "tollgate_catalogue";
/// How soon a server that is gone is tried again.
const TRY_EVERY: Duration = Duration::from_millis(250);
/// After a connection was lost.
const AGAIN: Duration = Duration::from_millis(20);
/// A server that answers more slowly than this is as good as none to a request.
const QUICK: Duration = Duration::from_millis(140);
/// A connection that nobody uses is tried so often, so that the other side's disappearance is noticed.
const IDLE: Duration = Duration::from_secs(15);

/// So many who wait share one answer.
const JUST: Duration = Duration::from_millis(25);

/// How long somebody waits before asking whether the server is there, and then for its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) before: Duration,
    pub(super) answer: Duration,
}

impl Patience {
    /// 250 ms together, with a little to spare.
    pub(super) const REQUEST: Self = Self {
        before: Duration::from_millis(100),
        answer: QUICK,
    };
    pub(super) const WORK: Self = Self {
        before: Duration::from_secs(2),
        answer: Duration::from_secs(5),
    };
}

/// Why the server counts as gone; `None`: it answers.
type Fault = Option<Arc<str>>;

/// The watch over one database; ends when it is dropped.
pub(super) struct Watch {
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

struct Shared {
    fault: watch::Sender<Fault>,
    client: watch::Sender<Option<Arc<Client>>>,
    /// When a question was last answered in time.
    answered_at: Mutex<Option<Instant>>,
    /// Wakes the task when a question went unanswered.
    doubted: Notify,
    /// Told when the catalogue may have changed, and whenever some change may have been missed.
    changed: Notify,
}

impl Watch {
    /// Starts in the belief that the server answers: the caller has just spoken with it.
    pub(super) fn start(connector: Connector) -> Self {
        let shared = Arc::new(Shared {
            fault: watch::Sender::new(None),
            client: watch::Sender::new(None),
            answered_at: Mutex::new(None),
            doubted: Notify::new(),
            changed: Notify::new(),
        });
        let runtime = connector.runtime().clone();
        let task = runtime.spawn(run(Arc::clone(&shared), connector));
        Self {
            shared,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Why requests are refused at once, if they are.
    pub(super) fn fault(&self) -> Fault {
        self.shared.fault.borrow().clone()
    }

    /// Comes back once the server has not answered a question in time, with the reason.
    pub(super) async fn gone(&self, patience: Patience) -> Arc<str> {
        loop {
            sleep(patience.before).await;
            if self.shared.has_just_answered() {
                continue; // somebody else has asked
            }
            if let Err(why) = self.shared.ask(patience.answer).await {
                return why;
            }
        }
    }

    /// Comes back when the catalogue may have changed since the last call.
    pub(super) async fn changed(&self) {
        self.shared.changed.notified().await;
    }
}

impl Shared {
    fn has_just_answered(&self) -> bool {
        let answered_at = *lock(&self.answered_at);
        answered_at.is_some_and(|at| at.elapsed() < JUST)
    }

    /// Asks whether the server is there; no answer in time is one too.
    async fn ask(&self, patience: Duration) -> Result<(), Arc<str>> {
        let mut clients = self.client.subscribe();
        let answered = timeout(patience, async {
            // It may just be connecting anew.
            let client = clients.wait_for(Option::is_some).await;
            let client = client.ok().and_then(|client| client.clone());
            match client {
                Some(client) => client.simple_query("").await.map(|_| ()),
                None => Ok(()), // the watch itself has ended
            }
        });
        let why: Arc<str> = match answered.await {
            Ok(Ok(())) => {
                *lock(&self.answered_at) = Some(Instant::now());
                return Ok(());
            }
            Ok(Err(error)) => text_of(&error).into(),
            Err(_) => format!("no answer within {} ms", patience.as_millis()).into(),
        };
        self.doubt(&why);
        Err(why)
    }

    /// From here on requests are refused.
    fn doubt(&self, why: &Arc<str>) {
        let is_new = self.fault.send_if_modified(|fault| {
            let is_new = fault.is_none();
            *fault = Some(Arc::clone(why));
            is_new
        });
        if is_new {
            tracing::warn!(code = "postgres_gone", %why, "the database does not answer; requests do not wait for it");
        }
        self.doubted.notify_one();
    }

    fn trust(&self) {
        if self.fault.send_replace(None).is_some() {
            tracing::info!(code = "postgres_back", "the database answers again");
        }
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn run(shared: Arc<Shared>, connector: Connector) {
    loop {
        match connector.open().await {
            Ok((client, mut connection)) => {
                let client = Arc::new(client);
                let messages = poll_messages(&shared, &mut connection);
                let talk = talk(&shared, &client);
                let lost = match select(Box::pin(messages), Box::pin(talk)).await {
                    Either::Left((why, _)) | Either::Right((why, _)) => why,
                };
                // One connection may be lost without the server: only if no other can be made, it is gone.
                tracing::debug!(why = %lost, "the connection that listens is lost");
                shared.client.send_replace(None);
                sleep(AGAIN).await;
            }
            Err(why) => {
                shared.doubt(&why.into());
                sleep(TRY_EVERY).await;
            }
        }
    }
}

/// Drives the connection; comes back with what ended it.
async fn poll_messages<S, T>(
    shared: &Shared,
    connection: &mut tokio_postgres::Connection<S, T>,
) -> Arc<str>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    loop {
        match poll_fn(|cx| connection.poll_message(cx)).await {
            Some(Ok(AsyncMessage::Notification(_))) => shared.changed.notify_one(),
            Some(Ok(_)) => {}
            Some(Err(error)) => return text_of(&error).into(),
            None => return "the connection was closed".into(),
        }
    }
}

/// Listens, and asks now and then; comes back when the server is not to be trusted any more.
async fn talk(shared: &Shared, client: &Arc<Client>) -> Arc<str> {
    let listening = async {
        connect::set_up(client).await?;
        client.batch_execute(&format!("LISTEN {CHANNEL}")).await
    };
    if let Err(error) = listening.await {
        return text_of(&error).into();
    }
    // What was missed meanwhile.
    shared.changed.notify_one();
    loop {
        match timeout(Patience::WORK.answer, client.simple_query("")).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return text_of(&error).into(),
            Err(_) => return "no answer".into(),
        }
        // A slow server is there for work in the background, but not for requests.
        shared.client.send_replace(Some(Arc::clone(client)));
        let quick = timeout(QUICK, client.simple_query("")).await;
        let pause = match quick {
            Ok(Ok(_)) => {
                shared.trust();
                IDLE
            }
            Ok(Err(error)) => return text_of(&error).into(),
            Err(_) => {
                shared.doubt(&format!("no answer within {} ms", QUICK.as_millis()).into());
                TRY_EVERY
            }
        };
        let _ = timeout(pause, shared.doubted.notified()).await;
    }
}
