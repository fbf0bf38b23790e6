//! Tasks that outlive the request that began them, tracked so that shutdown waits for them.

use std::{future::Future, sync::Arc};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Spawns, counts and ends tasks.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    detached: Arc<Semaphore>,
}

impl Tasks {
    /// At most `max_detached` streams are read on after their client has gone.
    #[must_use]
    pub fn new(max_detached: usize) -> Self {
        Self {
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
            detached: Arc::new(Semaphore::new(max_detached.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// Runs `task` to its end, whatever becomes of the caller.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(task)
    }

    /// A place among the readers of streams whose client has gone; `None` if all are taken.
    #[must_use]
    pub fn detach(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.detached).try_acquire_owned().ok()
    }

    /// Cancelled when the server begins to stop.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Waits until every task has ended; none may be spawned after this by those that wait.
    pub async fn finish(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    #[must_use]
    pub fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }
}
