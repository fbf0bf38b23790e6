//! A runtime of one thread for each core, on which connections and their requests run.
//!
//! A task there is woken by the thread that it runs on: nothing of a request moves between cores, and no other thread
//! is woken for it. What takes long, or works in the background, has the program's ordinary runtime.

use std::{
    io,
    num::NonZero,
    thread::{self, JoinHandle},
};

use tokio::{
    runtime::{self, Handle},
    sync::oneshot,
};

use crate::journal;

/// The runtimes, until they are told to end.
pub(super) struct Cores(Vec<Core>);

struct Core {
    handle: Handle,
    /// Its thread ends when this is dropped.
    running: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Cores {
    /// Starts one for each core that the process may use.
    ///
    /// # Errors
    /// A thread, or what it waits with, can't be made.
    pub(super) fn start() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, NonZero::get);
        (0..count)
            .map(|_| Core::start())
            .collect::<io::Result<_>>()
            .map(Self)
    }

    pub(super) fn handles(&self) -> Vec<Handle> {
        self.0.iter().map(|core| core.handle.clone()).collect()
    }

    /// Ends all of them; a task that still runs on one is dropped.
    pub(super) fn end(self) {
        for Core {
            running, thread, ..
        } in self.0
        {
            drop(running);
            if thread.join().is_err() {
                tracing::error!(code = "internal_error", "a core's thread panicked");
            }
        }
    }
}

impl Core {
    fn start() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let (running, ended) = oneshot::channel::<()>();
        let thread = thread::Builder::new()
            .name("core".to_owned())
            .spawn(move || {
                runtime.spawn(journal::relay_answers());
                // Ends when the sender is dropped; nothing is ever sent.
                let _ = runtime.block_on(ended);
            })?;
        Ok(Self {
            handle,
            running,
            thread,
        })
    }
}
