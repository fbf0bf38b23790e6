//! Waits for those who are to share a commit: the events that come are counted, and the thread that writes is woken when
//! as many are there as it wants.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicIsize, Ordering},
    },
    thread::{self, Thread},
    time::Instant,
};

use super::pace::Wait;

const NOBODY: isize = isize::MAX;

/// Shared by the handles and the thread.
#[derive(Debug)]
pub(super) struct Company {
    /// Events in the queue. One is counted just after it was put there, so for a moment this may be below zero.
    waiting: AtomicIsize,
    /// How many there have to be for the thread to be woken.
    wanted: AtomicIsize,
    writer: OnceLock<Thread>,
}

impl Company {
    pub(super) fn new() -> Self {
        Self {
            waiting: AtomicIsize::new(0),
            wanted: AtomicIsize::new(NOBODY),
            writer: OnceLock::new(),
        }
    }

    /// Has the calling thread be the one that is woken. Its short pauses end when they are over: by default the kernel
    /// adds up to 50 µs (`prctl(2)`, `PR_SET_TIMERSLACK`); where it can't be asked for, they last that much longer.
    pub(super) fn wake_this_thread(&self) {
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZero::new(1));
        let _ = self.writer.set(thread::current());
    }

    /// Counts an event that was put into the queue.
    pub(super) fn came(&self) {
        let waiting = self.waiting.fetch_add(1, Ordering::SeqCst) + 1;
        if waiting == self.wanted.load(Ordering::SeqCst)
            && let Some(writer) = self.writer.get()
        {
            writer.unpark();
        }
    }

    /// Counts events that were taken out of the queue.
    pub(super) fn taken(&self, count: usize) {
        self.waiting.fetch_sub(signed(count), Ordering::SeqCst);
    }

    /// Waits for so many events in the queue, at most so long. Called by the thread that is woken.
    pub(super) fn wait_for(&self, Wait { wanted, until }: Wait) {
        let wanted = signed(wanted);
        // Told before it is looked at: whoever makes the number full from now on sees that it is wanted.
        self.wanted.store(wanted, Ordering::SeqCst);
        while self.waiting.load(Ordering::SeqCst) < wanted {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::park_timeout(left);
        }
        self.wanted.store(NOBODY, Ordering::SeqCst);
    }
}

fn signed(count: usize) -> isize {
    isize::try_from(count).unwrap_or(NOBODY - 1)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        time::Duration,
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_micros(500);

    /// What a wait for eight takes when `come` events come meanwhile, in another thread.
    fn waits(come: usize) -> Duration {
        let company = Arc::new(Company::new());
        let (begin, begun) = mpsc::channel();
        let waiter = thread::spawn({
            let company = Arc::clone(&company);
            move || {
                company.wake_this_thread();
                begin.send(()).unwrap();
                let from = Instant::now();
                company.wait_for(Wait {
                    wanted: 8,
                    until: from + PATIENCE,
                });
                from.elapsed()
            }
        });
        begun.recv().unwrap();
        (0..come).for_each(|_| company.came());
        waiter.join().unwrap()
    }

    #[test]
    fn who_does_not_come_is_waited_for_until_patience_ends() {
        assert!(waits(7) >= PATIENCE);
    }

    #[test]
    fn the_last_of_those_who_are_waited_for_ends_the_wait() {
        // A lost wake-up would leave it to the patience; one round of many says whether it is ever needed.
        let shortest = (0..200).map(|_| waits(8)).min();
        assert!(shortest < Some(PATIENCE), "{shortest:?}");
    }

    #[test]
    fn a_time_that_is_over_is_not_waited_for() {
        let company = Company::new();
        let waits = (0..200).map(|_| {
            let from = Instant::now();
            company.wait_for(Wait {
                wanted: 8,
                until: from,
            });
            from.elapsed()
        });
        let shortest = waits.min();
        assert!(shortest < Some(PATIENCE), "{shortest:?}");
        assert_eq!(company.wanted.load(Ordering::SeqCst), NOBODY);
    }

    #[test]
    fn what_was_taken_no_longer_counts() {
        let company = Company::new();
        (0..3).for_each(|_| company.came());
        company.taken(3);
        company.came();
        assert_eq!(company.waiting.load(Ordering::SeqCst), 1);
    }
}
