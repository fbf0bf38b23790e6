//! What a connection is doing: whether it is idle, and since when; whether its client still reads.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// A connection without a request in flight is closed after this long: the head of the next request has to be
/// complete by then.
pub(super) const IDLE: Duration = Duration::from_secs(30);
/// A client that takes nothing of its answer for this long has gone.
pub(super) const STALLED: Duration = Duration::from_secs(60);

/// So long the end of an answer that is still being sent keeps a connection from being idle; not longer, since what
/// is sent may as well be answers to an HTTP/2 client's pings.
const LONGEST_TAIL: Duration = Duration::from_secs(60);

/// Shared by a connection's socket, its requests, and the task that watches over it.
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    in_flight: AtomicU32,
    /// When the last request ended: milliseconds since `began`. What is left of its answer may still be on its way.
    last_ended: AtomicU64,
    /// When anything was sent: milliseconds since `began`.
    last_sent: AtomicU64,
    /// Since when the client has taken nothing: milliseconds since `began` plus 1; 0 if it takes what comes.
    stalled_since: AtomicU64,
}

/// What to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Close,
    LookAgainAt(Instant),
}

impl Activity {
    pub(super) fn begin() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            in_flight: AtomicU32::new(0),
            last_ended: AtomicU64::new(0),
            last_sent: AtomicU64::new(0),
            stalled_since: AtomicU64::new(0),
        })
    }

    /// A request in flight, until the guard is dropped.
    pub(super) fn request(self: &Arc<Self>) -> RequestGuard {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        RequestGuard(Arc::clone(self))
    }

    pub(super) fn sent(&self) {
        self.last_sent.store(self.elapsed(), Ordering::Relaxed);
        self.stalled_since.store(0, Ordering::Relaxed);
    }

    pub(super) fn stalled(&self) {
        // The first of several counts.
        let _ = self.stalled_since.compare_exchange(
            0,
            self.elapsed() + 1,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    pub(super) fn verdict(&self) -> Verdict {
        let now = self.elapsed();
        let stalled_since = self.stalled_since.load(Ordering::Relaxed);
        let deadline = if stalled_since > 0 {
            stalled_since - 1 + millis(STALLED)
        } else if self.in_flight.load(Ordering::Relaxed) == 0 {
            let ended = self.last_ended.load(Ordering::Relaxed);
            let sent = self.last_sent.load(Ordering::Relaxed);
            sent.clamp(ended, ended + millis(LONGEST_TAIL)) + millis(IDLE)
        } else {
            // Whatever it becomes next, it can't be over before this.
            return Verdict::LookAgainAt(self.at(now + millis(IDLE)));
        };
        if deadline <= now {
            return Verdict::Close;
        }
        Verdict::LookAgainAt(self.at(deadline.min(now + millis(IDLE))))
    }

    fn elapsed(&self) -> u64 {
        millis(self.began.elapsed())
    }

    fn at(&self, elapsed: u64) -> Instant {
        self.began + Duration::from_millis(elapsed)
    }
}

/// Ends a request in flight.
#[derive(Debug)]
pub(super) struct RequestGuard(Arc<Activity>);

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let activity = &self.0;
        activity
            .last_ended
            .store(activity.elapsed(), Ordering::Relaxed);
        activity.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pass(duration: Duration) {
        tokio::time::advance(duration).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_from_its_start_or_its_last_answer_on() {
        let activity = Activity::begin();
        pass(IDLE - Duration::from_secs(1)).await;
        assert_ne!(activity.verdict(), Verdict::Close);
        let request = activity.request();
        pass(IDLE * 20).await;
        assert_ne!(
            activity.verdict(),
            Verdict::Close,
            "a request takes as long as it takes"
        );
        drop(request);
        pass(IDLE - Duration::from_secs(1)).await;
        assert_ne!(activity.verdict(), Verdict::Close);
        pass(Duration::from_secs(1)).await;
        assert_eq!(activity.verdict(), Verdict::Close);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_an_answer_that_is_still_being_sent_is_not_idle() {
        let activity = Activity::begin();
        drop(activity.request());
        pass(IDLE - Duration::from_secs(1)).await;
        activity.sent();
        pass(IDLE - Duration::from_secs(1)).await;
        assert_ne!(activity.verdict(), Verdict::Close);
    }

    #[tokio::test(start_paused = true)]
    async fn pings_do_not_keep_an_idle_connection_for_ever() {
        let activity = Activity::begin();
        let mut seconds = 0;
        while activity.verdict() != Verdict::Close {
            pass(Duration::from_secs(10)).await;
            activity.sent();
            seconds += 10;
        }
        assert_eq!(seconds, 90);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_of_its_answer_has_gone() {
        let activity = Activity::begin();
        let _request = activity.request();
        activity.stalled();
        pass(STALLED - Duration::from_secs(1)).await;
        activity.stalled();
        assert_ne!(activity.verdict(), Verdict::Close);
        pass(Duration::from_secs(1)).await;
        assert_eq!(activity.verdict(), Verdict::Close);
        activity.sent();
        assert_ne!(activity.verdict(), Verdict::Close, "it reads again");
    }
}
