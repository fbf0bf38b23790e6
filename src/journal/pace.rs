//! What the last commits say of the next one: for how many events it waits, and how long.
//!
//! A commit costs about the same whatever is in it, so the fewer of them the better. Those who shared the last one come
//! back at about the same time, and are waited for. Where many come, the server is busy, and a commit that more share
//! takes less of it: that is tried as long as it brings more, and now and then afterwards.

use std::time::{Duration, Instant};

/// A commit that this many events shared says that more are to come.
const FEW: usize = 2;
/// After a commit that few shared nobody is waited for longer than this.
const PATIENCE: Duration = Duration::from_micros(500);
/// From here on more are waited for than shared the last one, and longer,
const MANY: usize = 8;
/// if they came this fast at least, so that as many again can be expected: not after something that stood still.
const ONE_EACH: Duration = Duration::from_micros(250);
const PATIENCE_WITH_MANY: Duration = Duration::from_millis(2);
/// How many commits go by between two tries, where tries bring nobody.
const LONGEST_REST: u32 = 256;

/// Kept by the thread that writes.
#[derive(Debug)]
pub(super) struct Pace {
    /// How many events the last commit had, and when it ended.
    shared_by: usize,
    ended: Instant,
    /// They were many, and came fast.
    is_busy: bool,
    /// More were waited for than shared the one before.
    tried: bool,
    /// How many commits to go until the next try.
    rest: u32,
    next_rest: u32,
}

/// What a commit waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    /// As many events as this,
    pub(super) wanted: usize,
    /// but not longer.
    pub(super) until: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            shared_by: 0,
            ended: now,
            is_busy: false,
            tried: false,
            rest: 0,
            next_rest: 1,
        }
    }

    /// What the next commit waits for; `None`: nothing.
    pub(super) fn wait(&mut self) -> Option<Wait> {
        self.tried = self.is_busy && self.rest == 0;
        (self.shared_by >= FEW).then_some(Wait {
            wanted: self.shared_by * if self.tried { 2 } else { 1 },
            until: self.ended
                + if self.is_busy {
                    PATIENCE_WITH_MANY
                } else {
                    PATIENCE
                },
        })
    }

    /// Notes that the commit that was waited with ended, and how many events it had.
    pub(super) fn committed(&mut self, events: usize, ended: Instant) {
        if !self.tried {
            self.rest = self.rest.saturating_sub(1);
        } else if events >= self.shared_by + self.shared_by / 4 {
            self.next_rest = 1;
        } else {
            self.rest = self.next_rest;
            self.next_rest = (self.next_rest * 2).min(LONGEST_REST);
        }
        let since_last = ended.saturating_duration_since(self.ended);
        let each = since_last / u32::try_from(events.max(1)).unwrap_or(u32::MAX);
        self.is_busy = events >= MANY && each <= ONE_EACH;
        self.shared_by = events;
        self.ended = ended;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commits one after the other, each of what `comes` says has come by its end, of what it waits for.
    fn commits(count: usize, comes: impl Fn(Option<Wait>, Instant) -> usize) -> Vec<usize> {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let commits = (0..count).map(|_| {
            let events = comes(pace.wait(), now);
            now += Duration::from_millis(1);
            pace.committed(events, now);
            events
        });
        commits.collect()
    }

    #[test]
    fn who_comes_alone_waits_for_nobody() {
        let alone = commits(100, |wait, _| {
            assert_eq!(wait, None);
            1
        });
        assert_eq!(alone.len(), 100);
    }

    #[test]
    fn a_few_are_waited_for_and_no_more_than_shared_the_last_one() {
        for few in FEW..MANY {
            commits(100, |wait, ended| {
                if let Some(wait) = wait {
                    let until = ended + PATIENCE;
                    assert_eq!(wait, Wait { wanted: few, until });
                }
                few
            });
        }
    }

    #[test]
    fn where_more_come_a_commit_has_more_until_no_more_come() {
        // All of 64 who come back when they are answered, and nobody else.
        let sizes = commits(10, |wait, _| wait.map_or(8, |wait| wait.wanted.min(64)));
        assert_eq!(sizes, [8, 16, 32, 64, 64, 64, 64, 64, 64, 64]);
    }

    #[test]
    fn where_nobody_else_comes_few_commits_wait_in_vain() {
        let in_vain = std::cell::Cell::new(0);
        commits(1000, |wait, ended| {
            if let Some(wait) = wait {
                assert!(wait.until <= ended + PATIENCE_WITH_MANY);
                in_vain.set(in_vain.get() + u32::from(wait.wanted > 16));
            }
            16
        });
        assert!((8..=15).contains(&in_vain.get()), "{}", in_vain.get());
    }

    #[test]
    fn many_who_had_piled_up_are_not_expected_again() {
        let begun = Instant::now();
        let mut pace = Pace::new(begun);
        let ended = begun + Duration::from_millis(20);
        pace.committed(40, ended);
        let wait = Wait {
            wanted: 40,
            until: ended + PATIENCE,
        };
        assert_eq!(pace.wait(), Some(wait));
    }

    #[test]
    fn after_a_rest_it_is_tried_again() {
        let number = std::cell::Cell::new(0);
        let sizes = commits(1000, |wait, _| {
            number.set(number.get() + 1);
            let there = if number.get() < 500 { 10 } else { 40 };
            wait.map_or(8, |wait| wait.wanted.min(there))
        });
        assert_eq!((sizes[400], sizes[999]), (10, 40));
    }
}
