//! Whether anything was committed, by this process or by another: the kernel tells of writes to the log (inotify(7)),
//! so that nothing need be looked at while there are none, and an idle server sleeps.
//!
//! A commit can be seen only some time after its last write, when the log is synced, and of that nobody tells. So for a
//! while after a write there is a look now and then.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::pool::log_of;
use crate::store::catalogue::LOOK_EVERY;

/// Longer than a log takes to be synced.
const SYNCED_WITHIN: Duration = Duration::from_secs(10);
/// Should it have taken longer.
const LOOK_RARELY: Duration = Duration::from_secs(60);

pub(super) struct Watch {
    told: AsyncFd<OwnedFd>,
    log: PathBuf,
    seen: Mutex<Seen>,
}

struct Seen {
    /// Of the log that is watched.
    watch: i32,
    /// A busy server commits many times a second: it is not told of each.
    next: Instant,
    /// Until then what was written may be committed yet.
    unsettled_until: Instant,
}

impl Watch {
    /// What is committed from now on is told, on the runtime that this is called on.
    pub(super) fn start(database: &Path) -> io::Result<Self> {
        let told = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let log = log_of(database);
        let seen = Seen {
            watch: add(&told, &log)?,
            next: Instant::now(),
            unsettled_until: Instant::now() + SYNCED_WITHIN,
        };
        #[expect(
            deprecated,
            reason = "what replaces it is unsafe, for types that may close what they give out; this one does not"
        )]
        let told = AsyncFd::with_interest(told, Interest::READABLE)?;
        Ok(Self {
            told,
            log,
            seen: Mutex::new(seen),
        })
    }

    /// Comes back when something may have been committed since the last call. One at a time may wait.
    pub(super) async fn changed(&self) {
        let next = self.seen().next;
        sleep_until(next).await;
        let is_unsettled = Instant::now() < self.seen().unsettled_until;
        let patience = if is_unsettled {
            Duration::ZERO
        } else {
            LOOK_RARELY
        };
        match timeout(patience, self.told()).await {
            Ok(Ok(())) => self.seen().unsettled_until = Instant::now() + SYNCED_WITHIN,
            Ok(Err(_)) => sleep(LOOK_EVERY).await, // there may be no log for the moment
            Err(_) => {}
        }
        self.seen().next = Instant::now() + LOOK_EVERY;
    }

    async fn told(&self) -> io::Result<()> {
        // A log that was made anew is another file, and its first writes were not told.
        let watch = add(self.told.get_ref(), &self.log)?;
        if std::mem::replace(&mut self.seen().watch, watch) != watch {
            return Ok(());
        }
        loop {
            let mut ready = self.told.readable().await?;
            let (mut events, mut is_told) = ([0_u8; 4_096], false);
            while rustix::io::read(self.told.get_ref(), &mut events).is_ok_and(|length| length > 0)
            {
                is_told = true;
            }
            ready.clear_ready();
            if is_told {
                return Ok(());
            }
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of a file that is watched already this gives the same number again.
fn add(told: &OwnedFd, log: &Path) -> io::Result<i32> {
    let what = WatchFlags::MODIFY | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
    Ok(inotify::add_watch(told, log, what)?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use rusqlite::Connection;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);
    /// Of tokio's timers, and one more.
    const TICK: Duration = Duration::from_millis(2);

    fn database() -> (tempfile::TempDir, PathBuf, Connection) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.db");
        let connection = Connection::open(&path).unwrap();
        let begin = "PRAGMA journal_mode = WAL; CREATE TABLE numbers (number INTEGER)";
        connection.execute_batch(begin).unwrap();
        (directory, path, connection)
    }

    async fn is_told(watch: &Watch) {
        let told = timeout(LONG, watch.told()).await;
        told.expect("a commit that is told").unwrap();
    }

    #[tokio::test]
    async fn a_commit_of_any_connection_is_told_once() {
        let (_directory, path, first) = database();
        let watch = Watch::start(&path).unwrap();
        let second = Connection::open(&path).unwrap();
        for connection in [&first, &second] {
            let insert = "INSERT INTO numbers VALUES (1)";
            connection.execute_batch(insert).unwrap();
            is_told(&watch).await;
            assert!(watch.told().now_or_never().is_none(), "told before");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn for_a_while_after_a_write_there_is_a_look_now_and_then() {
        let (_directory, path, connection) = database();
        let watch = Watch::start(&path).unwrap();
        tokio::time::advance(SYNCED_WITHIN).await;
        let insert = "INSERT INTO numbers VALUES (1)";
        connection.execute_batch(insert).unwrap();
        watch.changed().await; // of the write
        let written = Instant::now();
        while written.elapsed() + LOOK_EVERY + TICK < SYNCED_WITHIN {
            let looked = Instant::now();
            watch.changed().await;
            assert!(looked.elapsed() <= LOOK_EVERY + TICK);
        }
        tokio::time::advance(2 * LOOK_EVERY).await;
        let begun = Instant::now();
        watch.changed().await;
        assert!(begun.elapsed() >= LOOK_RARELY, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_log_that_was_made_anew_is_watched_too() {
        let (_directory, path, connection) = database();
        let watch = Watch::start(&path).unwrap();
        drop(connection); // the last one takes the log away
        assert!(watch.told().await.is_err());
        let connection = Connection::open(&path).unwrap();
        let insert = "INSERT INTO numbers VALUES (1)";
        connection.execute_batch(insert).unwrap();
        is_told(&watch).await;
        connection.execute_batch(insert).unwrap();
        is_told(&watch).await;
    }
}
