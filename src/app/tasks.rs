//! Tasks that outlive the request that began them, tracked so that shutdown waits for them.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::{Either, select};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::telemetry::trace;

/// Spawns, counts and ends tasks; cheap to clone.
#[derive(Clone, Debug)]
pub struct Tasks(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    tracker: TaskTracker,
    stop: CancellationToken,
    last_call: CancellationToken,
    detached: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

/// How long after the last call tasks may take to write down what they have.
const LAST_WORDS: Duration = Duration::from_secs(5);

impl Tasks {
    /// At most `max_detached` streams are read on after their client has gone, of `max_in_flight` requests that are in
    /// flight at once.
    #[must_use]
    pub fn new(max_detached: usize, max_in_flight: usize) -> Self {
        Self(Arc::new(Parts {
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
            last_call: CancellationToken::new(),
            detached: Arc::new(Semaphore::new(max_detached.min(Semaphore::MAX_PERMITS))),
            places: Arc::new(Semaphore::new(max_in_flight.min(Semaphore::MAX_PERMITS))),
        }))
    }

    /// The places of requests in flight.
    #[must_use]
    pub fn places(&self) -> Arc<Semaphore> {
        Arc::clone(&self.0.places)
    }

    /// Waits for what `running` sends. Should nobody wait for it any more, `running` goes on by itself.
    pub fn wait<T>(&self, answered: oneshot::Receiver<T>, running: JoinHandle<()>) -> Waited<T> {
        Waited {
            answered,
            running: Some(running),
            tasks: self.clone(),
        }
    }

    /// Has `running` go on whose client has gone, and with it the place that it had. A place that is waited for goes
    /// to nobody who comes later, so that no more run than may be in flight.
    fn go_on<F>(&self, running: F)
    where
        F: Future<Output: Send> + Send + Unpin + 'static,
    {
        let place = self.places().acquire_owned();
        self.spawn(async move {
            match select(running, Box::pin(place)).await {
                Either::Left(_) => {}
                Either::Right((_place, running)) => {
                    running.await;
                }
            }
        });
    }

    /// Runs `task` to its end, whatever becomes of the caller.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.0.tracker.spawn(trace::carried(task))
    }

    /// Runs what `begin` makes to its end: by whoever waits for it, and in a task of its own once nobody does, which
    /// [`Waiter`] tells it. A task from the start would cost each request more than all that decides on it.
    pub fn see_through<F>(&self, begin: impl FnOnce(Waiter) -> F) -> SeenThrough<F>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let waiter = Waiter::default();
        SeenThrough {
            running: Some(Box::pin(begin(waiter.clone()))),
            waiter,
            tasks: self.clone(),
        }
    }

    /// A place among the readers of streams whose client has gone; `None` if all are taken.
    #[must_use]
    pub fn detach(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.detached).try_acquire_owned().ok()
    }

    /// Cancelled when the server begins to stop.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.0.stop.clone()
    }

    /// Cancelled when what still runs has to end with what it has.
    #[must_use]
    pub fn last_call(&self) -> &CancellationToken {
        &self.0.last_call
    }

    /// Waits until every task has ended; none may be spawned after this by those that wait. Some seconds after the last
    /// call those are given up that still wait for an upstream which has not begun to answer.
    pub async fn finish(&self) {
        self.0.tracker.close();
        let too_late = async {
            self.0.last_call.cancelled().await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        tokio::select! {
            () = self.0.tracker.wait() => {}
            () = too_late => {
                let tasks = self.0.tracker.len();
                tracing::warn!(tasks, "what has no answer yet is given up; it is not charged");
            }
        }
    }

    #[must_use]
    pub fn tracker(&self) -> &TaskTracker {
        &self.0.tracker
    }
}

/// Whether somebody still waits for what [`Tasks::see_through`] runs.
#[derive(Clone, Debug, Default)]
pub struct Waiter {
    has_gone: Arc<AtomicBool>,
}

impl Waiter {
    #[must_use]
    pub fn has_gone(&self) -> bool {
        self.has_gone.load(Ordering::Acquire)
    }
}

/// See [`Tasks::see_through`].
pub struct SeenThrough<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    /// `None` once it has ended.
    running: Option<Pin<Box<F>>>,
    waiter: Waiter,
    tasks: Tasks,
}

impl<F> Future for SeenThrough<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let running = self.running.as_mut().expect("polled after its end");
        let output = ready!(running.as_mut().poll(context));
        self.running = None;
        Poll::Ready(output)
    }
}

impl<F> Drop for SeenThrough<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    fn drop(&mut self) {
        // One that has panicked can't go on.
        if let Some(running) = self.running.take().filter(|_| !std::thread::panicking()) {
            self.waiter.has_gone.store(true, Ordering::Release);
            self.tasks.go_on(running);
        }
    }
}

/// See [`Tasks::wait`].
pub struct Waited<T> {
    answered: oneshot::Receiver<T>,
    /// `None` once it has answered.
    running: Option<JoinHandle<()>>,
    tasks: Tasks,
}

impl<T> Future for Waited<T> {
    /// `None` if it has ended without an answer.
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let answered = ready!(Pin::new(&mut self.answered).poll(context));
        self.running = None;
        Poll::Ready(answered.ok())
    }
}

impl<T> Drop for Waited<T> {
    fn drop(&mut self) {
        self.answered.close();
        if let Some(running) = self.running.take() {
            self.tasks.go_on(running);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_runs_to_its_end_and_knows() {
        let tasks = Tasks::new(1, 1);
        let (go_on, waits) = oneshot::channel::<()>();
        let (end, ended) = oneshot::channel();
        let mut running = tasks.see_through(|waiter| async move {
            let was_there = !waiter.has_gone();
            waits.await.unwrap();
            end.send((was_there, waiter.has_gone())).unwrap();
        });
        let polled = futures_util::poll!(&mut running);
        assert!(polled.is_pending());
        drop(running);
        go_on.send(()).unwrap();
        assert_eq!(ended.await.unwrap(), (true, true));
        tasks.finish().await;
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_last_call_nobody_is_waited_for_who_does_not_end() {
        let tasks = Tasks::new(1, 1);
        tasks.spawn(std::future::pending::<()>());
        let finishing = tasks.finish();
        tokio::pin!(finishing);
        let patient = tokio::time::timeout(Duration::from_secs(3600), &mut finishing);
        assert!(patient.await.is_err(), "without a last call it waits");
        tasks.last_call().cancel();
        tokio::time::timeout(LAST_WORDS * 2, finishing)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn what_runs_on_without_its_client_keeps_a_place() {
        let tasks = Tasks::new(1, 2);
        let mut own = vec![];
        let mut ends = vec![];
        for _ in 0..2 {
            // As the server has it: the request's place goes when its client has gone.
            let place = tasks.places().try_acquire_owned().unwrap();
            let (end, ended) = oneshot::channel::<()>();
            let mut running = tasks.see_through(|_| ended);
            assert!(futures_util::poll!(&mut running).is_pending());
            drop(running);
            own.push(place);
            ends.push(end);
        }
        tokio::task::yield_now().await;
        drop(own);
        tokio::task::yield_now().await;
        assert!(tasks.places().try_acquire().is_err(), "both run on");
        drop(ends);
        tasks.finish().await;
        assert_eq!(tasks.places().available_permits(), 2);

        let (answer, answered) = oneshot::channel::<()>();
        let running = tasks.spawn(async move {
            let mut answer = answer;
            answer.closed().await;
        });
        let mut waited = tasks.wait(answered, running);
        assert!(futures_util::poll!(&mut waited).is_pending());
        drop(waited); // is told, and ends
    }

    #[tokio::test]
    async fn what_has_ended_begins_no_task() {
        let tasks = Tasks::new(1, 1);
        let had_waiter = tasks.see_through(|waiter| async move { !waiter.has_gone() });
        assert!(had_waiter.await);
        assert!(tasks.tracker().is_empty());
    }
}
