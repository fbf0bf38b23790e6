//! What a run has to know of the `Idempotency-Key` that it was asked with.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::domain::ids::EventId;

/// A request that may be repeated.
#[derive(Debug)]
pub struct Keyed {
    /// The event of its usage, if it comes to its end.
    pub event_id: EventId,
    /// An earlier run was cut off by a crash, maybe after its usage was recorded: then this one is not charged.
    pub is_rerun: bool,
    is_whole: AtomicBool,
    is_given_up: AtomicBool,
    has_gone: AtomicBool,
}

impl Keyed {
    #[must_use]
    pub fn new(event_id: EventId, is_rerun: bool) -> Self {
        Self {
            event_id,
            is_rerun,
            is_whole: AtomicBool::new(false),
            is_given_up: AtomicBool::new(false),
            has_gone: AtomicBool::new(false),
        }
    }

    /// Notes that the run came to its end and was charged for all of it: its answer is the one to repeat.
    pub fn note_whole(&self) {
        self.is_whole.store(true, Ordering::SeqCst);
    }

    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.is_whole.load(Ordering::SeqCst)
    }

    /// Notes that the client has gone; the run is polled once more after this.
    pub fn note_gone(&self) {
        self.has_gone.store(true, Ordering::SeqCst);
    }

    #[must_use]
    pub fn has_gone(&self) -> bool {
        self.has_gone.load(Ordering::SeqCst)
    }

    /// Notes that the client has gone, and that the stream was read on for as long as it may be.
    pub fn give_up(&self) {
        self.is_given_up.store(true, Ordering::SeqCst);
    }

    #[must_use]
    pub fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::SeqCst)
    }
}
