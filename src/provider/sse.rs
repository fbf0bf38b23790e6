//! Cuts a byte stream of server-sent events into whole events, copying only what a chunk's end leaves over.
//!
//! Lines end with LF, CRLF or CR, an empty line ends an event (HTML Living Standard, "Interpreting an event
//! stream"). The pieces put together are the stream, byte for byte: nothing is dropped, comments and empty events
//! included.

use std::borrow::Cow;

use bytes::{Buf as _, Bytes, BytesMut};

/// An event longer than this is passed on in parts, which nobody can read but the client: memory is bounded.
const MAX_EVENT_BYTES: usize = 32 * 1024 * 1024;

/// Give it a chunk, then take events until there is none, then the next chunk; at the end, [`Splitter::finish`].
#[derive(Debug, Default)]
pub struct Splitter {
    /// The beginning of an event, from earlier chunks; all of it is scanned.
    tail: BytesMut,
    /// What is left of the last chunk.
    chunk: Bytes,
    at: At,
}

/// Where the scan stands in the event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// A line begins: an event's first, or one after a whole line end.
    #[default]
    LineStart,
    InLine,
    /// After a CR that ended a line with something in it. If no LF follows, it was the whole line end.
    CrAfterLine,
    /// After a CR that began a line: the event ends with it, or with the LF that may follow.
    CrAtLineStart,
}

impl Splitter {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what came next.
    pub fn push(&mut self, chunk: Bytes) {
        if self.chunk.is_empty() {
            self.chunk = chunk;
            return;
        }
        let mut both = BytesMut::with_capacity(self.chunk.len() + chunk.len());
        both.extend_from_slice(&self.chunk);
        both.extend_from_slice(&chunk);
        self.chunk = both.freeze();
    }

    /// The next whole event, its closing empty line included.
    pub fn next_event(&mut self) -> Option<Bytes> {
        if let Some(length) = self.scan() {
            let end = self.chunk.split_to(length);
            return Some(self.with_tail(end));
        }
        let left = std::mem::take(&mut self.chunk);
        if self.tail.len() + left.len() > MAX_EVENT_BYTES {
            return Some(self.with_tail(left));
        }
        self.tail.extend_from_slice(&left);
        None
    }

    /// How many bytes of an event have come whose end has not.
    #[must_use]
    pub fn begun_bytes(&self) -> usize {
        self.tail.len() + self.chunk.len()
    }

    /// What is left when the stream has ended: an event without its closing line, mostly nothing.
    pub fn finish(&mut self) -> Option<Bytes> {
        let left = std::mem::take(&mut self.chunk);
        let all = self.with_tail(left);
        self.at = At::LineStart;
        (!all.is_empty()).then_some(all)
    }

    fn with_tail(&mut self, end: Bytes) -> Bytes {
        if self.tail.is_empty() {
            return end;
        }
        self.tail.extend_from_slice(&end);
        self.tail.split().freeze()
    }

    /// How many bytes of the chunk belong to an event that ends in it.
    fn scan(&mut self) -> Option<usize> {
        let mut position = 0;
        while position < self.chunk.len() {
            let byte = self.chunk[position];
            match (self.at, byte) {
                (At::LineStart, b'\n') | (At::CrAtLineStart, b'\n') | (At::CrAfterLine, b'\r') => {
                    return self.event_ends(position + 1);
                }
                // The CR before ended the event: this byte begins the next one.
                (At::CrAtLineStart, _) => return self.event_ends(position),
                (At::LineStart, b'\r') => self.at = At::CrAtLineStart,
                (At::CrAfterLine, b'\n') => self.at = At::LineStart,
                (At::InLine, b'\n') => self.at = At::LineStart,
                (At::InLine, b'\r') => self.at = At::CrAfterLine,
                (At::LineStart | At::CrAfterLine | At::InLine, _) => {
                    self.at = At::InLine;
                    let rest = &self.chunk[position..];
                    position += memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
                    continue;
                }
            }
            position += 1;
        }
        None
    }

    fn event_ends(&mut self, length: usize) -> Option<usize> {
        self.at = At::LineStart;
        Some(length)
    }
}

/// The `data` of an event; several lines are joined with LF. `None` if it has none: a comment, say.
#[must_use]
pub fn data(event: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut data: Option<Cow<'_, [u8]>> = None;
    for line in lines(event) {
        let Some(value) = field(line, b"data") else {
            continue;
        };
        match &mut data {
            None => data = Some(Cow::Borrowed(value)),
            Some(joined) => {
                let joined = joined.to_mut();
                joined.push(b'\n');
                joined.extend_from_slice(value);
            }
        }
    }
    data
}

/// The value of `line` if it is the field `name`: after the colon and one space, if there is one.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    match line.strip_prefix(name)? {
        [] => Some(&[]),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        _ => None,
    }
}

fn lines(event: &[u8]) -> impl Iterator<Item = &[u8]> {
    // A byte order mark may stand before the first line.
    let mut rest = event.strip_prefix("\u{feff}".as_bytes()).unwrap_or(event);
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
        let (line, mut after) = rest.split_at(end);
        if after.starts_with(b"\r\n") {
            after.advance(2);
        } else if !after.is_empty() {
            after.advance(1);
        }
        rest = after;
        Some(line)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(chunks: &[&[u8]]) -> Vec<Bytes> {
        let mut splitter = Splitter::new();
        let mut events = Vec::new();
        for chunk in chunks {
            splitter.push(Bytes::copy_from_slice(chunk));
            while let Some(event) = splitter.next_event() {
                events.push(event);
            }
        }
        events.extend(splitter.finish());
        events
    }

    #[test]
    fn an_empty_line_ends_an_event_whatever_the_line_ends() {
        for (stream, events) in [
            ("data: a\n\ndata: b\n\n", vec!["data: a\n\n", "data: b\n\n"]),
            (
                "data: a\r\n\r\ndata: b\r\n\r\n",
                vec!["data: a\r\n\r\n", "data: b\r\n\r\n"],
            ),
            ("data: a\r\rdata: b\r\r", vec!["data: a\r\r", "data: b\r\r"]),
            (
                "data: a\n\r\ndata: b\r\n\n",
                vec!["data: a\n\r\n", "data: b\r\n\n"],
            ),
            ("data: a\n\rdata: b\n\n", vec!["data: a\n\r", "data: b\n\n"]),
            (
                ": hi\n\n\ndata: a\n\n",
                vec![": hi\n\n", "\n", "data: a\n\n"],
            ),
            (
                "event: x\ndata: a\n\nrest",
                vec!["event: x\ndata: a\n\n", "rest"],
            ),
            ("", vec![]),
        ] {
            assert_eq!(split(&[stream.as_bytes()]), events, "{stream:?}");
        }
    }

    #[test]
    fn an_event_is_whole_as_soon_as_its_last_byte_is_there() {
        for stream in ["data: a\n\n", "data: a\r\n\r\n", "data: a\r\r"] {
            let mut splitter = Splitter::new();
            splitter.push(Bytes::from(stream));
            assert_eq!(splitter.next_event().unwrap(), stream);
        }
    }

    #[test]
    fn an_event_within_a_chunk_is_not_copied() {
        let chunk = Bytes::from("data: a\n\ndata: b\n\n");
        let mut splitter = Splitter::new();
        splitter.push(chunk.clone());
        splitter.next_event().unwrap();
        let second = splitter.next_event().unwrap();
        assert_eq!(second.as_ptr(), chunk[9..].as_ptr());
    }

    #[test]
    fn the_data_of_an_event_is_read() {
        for (event, expected) in [
            ("data: a\n\n", Some("a")),
            ("data:a\r\n\r\n", Some("a")),
            ("data:  a \n\n", Some(" a ")),
            ("event: x\nid: 1\ndata: a\n\n", Some("a")),
            ("data: a\ndata: b\n\n", Some("a\nb")),
            ("data: a\rdata\rdata: b\r\r", Some("a\n\nb")),
            ("\u{feff}data: a\n\n", Some("a")),
            (": data: a\n\n", None),
            ("database: a\n\n", None),
            ("\n", None),
            ("", None),
        ] {
            assert_eq!(
                data(event.as_bytes()).as_deref(),
                expected.map(str::as_bytes),
                "{event:?}"
            );
        }
        assert!(matches!(data(b"data: a\n\n"), Some(Cow::Borrowed(_))));
    }

    #[test]
    fn an_endless_event_is_passed_on_in_parts() {
        let mut splitter = Splitter::new();
        let megabyte = Bytes::from(vec![b'a'; 1 << 20]);
        let mut passed = 0;
        for _ in 0..40 {
            splitter.push(megabyte.clone());
            passed += splitter.next_event().map_or(0, |part| part.len());
        }
        assert_eq!(passed, 33 << 20);
        assert_eq!(splitter.finish().unwrap().len(), 7 << 20);
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_events_and_loses_no_byte(
            pieces in prop::collection::vec(
                prop::sample::select(vec!["\n", "\r", "\r\n", "data: ", "a", ":", "é", "\n\n", "\r\n\r\n"]),
                0..40,
            ),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let stream = pieces.concat().into_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
            let single: Vec<&[u8]> = stream.chunks(1).collect();

            let events = split(&chunks);
            prop_assert_eq!(&events, &split(&[&stream]));
            prop_assert_eq!(&events, &split(&single));
            prop_assert_eq!(events.concat(), stream);
        }
    }
}
