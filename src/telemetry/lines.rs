//! Lines on their way to stderr.
//!
//! What is logged of each of many requests is put together for a millisecond and written in one piece, by a thread of
//! its own: a write for each line costs a refused request more than deciding on it. All other lines are written at
//! once, after those that were logged before them. A process that is killed loses at most that millisecond.

use std::{
    io::{self, Write},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, Thread},
    time::Duration,
};

use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

/// The name of events whose lines may wait.
pub(super) const OF_ONE_OF_MANY: &str = "of one of many";

const PAUSE: Duration = Duration::from_millis(1);
/// More than this waits for nobody.
const MOST_WAITING_BYTES: usize = 256 << 10;

/// Writes to `W`; clones share it.
pub(super) struct Lines<W> {
    shared: Arc<Shared<W>>,
    /// `None` where there can be no thread: then nothing waits.
    writer: Option<Thread>,
}

struct Shared<W> {
    /// Taken before `waiting`, by whoever writes: so lines keep their order.
    out: Mutex<W>,
    waiting: Mutex<Vec<u8>>,
}

/// One event's line.
pub(super) struct Line<'a, W> {
    lines: &'a Lines<W>,
    may_wait: bool,
}

impl<W: Write + Send + 'static> Lines<W> {
    /// Starts the thread, which ends with the process.
    pub(super) fn to(out: W) -> Self {
        let shared = Arc::new(Shared {
            out: Mutex::new(out),
            waiting: Mutex::default(),
        });
        let writing = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || {
                loop {
                    thread::park();
                    thread::sleep(PAUSE);
                    // Who can't be written to can't be told of it either.
                    let _ = writing.write(&[]);
                }
            });
        Self {
            shared,
            writer: thread.ok().map(|handle| handle.thread().clone()),
        }
    }
}

impl<W: Write> Shared<W> {
    /// Writes what waits, then `line`.
    fn write(&self, line: &[u8]) -> io::Result<()> {
        let mut out = locked(&self.out);
        let waiting = mem::take(&mut *locked(&self.waiting));
        out.write_all(&waiting)?;
        out.write_all(line)
    }
}

impl<W: Write> Lines<W> {
    fn put(&self, line: &[u8], may_wait: bool) -> io::Result<()> {
        if let Some(writer) = self.writer.as_ref().filter(|_| may_wait) {
            let mut waiting = locked(&self.shared.waiting);
            if waiting.len() < MOST_WAITING_BYTES {
                let is_first = waiting.is_empty();
                waiting.extend_from_slice(line);
                drop(waiting);
                if is_first {
                    writer.unpark();
                }
                return Ok(());
            }
        }
        self.shared.write(line)
    }
}

impl<'a, W: Write + 'a> MakeWriter<'a> for Lines<W> {
    type Writer = Line<'a, W>;

    fn make_writer(&'a self) -> Self::Writer {
        Line {
            lines: self,
            may_wait: false,
        }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Self::Writer {
        Line {
            lines: self,
            may_wait: event.name() == OF_ONE_OF_MANY,
        }
    }
}

impl<W: Write> Write for Line<'_, W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.put(line, self.may_wait).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Sends each piece that is written.
    struct Pieces(Sender<String>);

    impl Write for Pieces {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if !bytes.is_empty() {
                self.0
                    .send(String::from_utf8_lossy(bytes).into_owned())
                    .unwrap();
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines() -> (Lines<Pieces>, Receiver<String>) {
        let (sender, pieces) = channel();
        (Lines::to(Pieces(sender)), pieces)
    }

    fn next(pieces: &Receiver<String>) -> String {
        pieces.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    #[test]
    fn a_line_that_may_wait_is_written_without_another_one() {
        let (lines, pieces) = lines();
        for line in ["one\n", "two\n"] {
            lines.put(line.as_bytes(), true).unwrap();
            assert_eq!(next(&pieces), line);
        }
    }

    #[test]
    fn lines_keep_their_order_whether_they_may_wait_or_not() {
        let (lines, pieces) = lines();
        let logged: Vec<String> = (0..3000).map(|number| format!("{number}\n")).collect();
        for (number, line) in logged.iter().enumerate() {
            lines.put(line.as_bytes(), number % 50 != 0).unwrap();
        }
        let mut written = String::new();
        while written.len() < logged.concat().len() {
            written.push_str(&next(&pieces));
        }
        assert_eq!(written, logged.concat());
    }

    #[test]
    fn what_waits_is_bounded() {
        let (lines, pieces) = lines();
        let (held, long) = (locked(&lines.shared.out), vec![b'x'; MOST_WAITING_BYTES]);
        lines.put(&long, true).unwrap();
        let one_more = thread::scope(|scope| {
            let putting = scope.spawn(|| lines.put(b"y", true));
            drop(held); // it waits for the other end, as every line did that was written by itself
            putting.join().unwrap()
        });
        one_more.unwrap();
        assert_eq!(next(&pieces).len(), MOST_WAITING_BYTES);
        assert_eq!(next(&pieces), "y");
    }
}
