//! A connection's socket: remembers what was read to find out the protocol, notes when something is sent, and closes
//! so that the client still gets its answer.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::activity::Activity;

/// What an HTTP/2 client sends first (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// While closing: a client that sends nothing for this long has nothing more to send.
const QUIET: Duration = Duration::from_secs(1);
/// While closing: so long is read at most.
const LONGEST_LINGER: Duration = Duration::from_secs(10);
const SCRAP_BYTES: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

pub(super) struct Socket {
    stream: TcpStream,
    /// Read already, to find out the protocol.
    first: Bytes,
    activity: Arc<Activity>,
    closing: Option<Closing>,
}

struct Closing {
    quiet: Pin<Box<Sleep>>,
    end: Pin<Box<Sleep>>,
}

impl Socket {
    /// Reads until it is clear which protocol the client speaks; `None` if it closes before.
    pub(super) async fn open(
        mut stream: TcpStream,
        activity: Arc<Activity>,
    ) -> io::Result<Option<(Self, Protocol)>> {
        let mut first = BytesMut::with_capacity(4 * 1024);
        let protocol = loop {
            if stream.read_buf(&mut first).await? == 0 {
                return Ok(None);
            }
            let begin = &first[..first.len().min(PREFACE.len())];
            if begin != &PREFACE[..begin.len()] {
                break Protocol::Http1;
            }
            if begin.len() == PREFACE.len() {
                break Protocol::Http2;
            }
        };
        let socket = Self {
            stream,
            first: first.freeze(),
            activity,
            closing: None,
        };
        Ok(Some((socket, protocol)))
    }

    fn noted(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &result {
            Poll::Ready(_) => self.activity.sent(),
            Poll::Pending => self.activity.stalled(),
        }
        result
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first[..length]);
        self.first.advance(length);
        if self.first.is_empty() {
            self.first = Bytes::new(); // gives the memory back
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.noted(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.noted(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// Ends our side, then reads on until the client has ended its own, for a while.
    ///
    /// A socket closed with unread bytes in it resets the connection, and a reset takes away what the client has not
    /// read yet: a client still sending a body that is too large would never see its 413.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            self.closing = Some(Closing {
                quiet: Box::pin(sleep(QUIET)),
                end: Box::pin(sleep(LONGEST_LINGER)),
            });
        }
        let mut scrap = [0; SCRAP_BYTES];
        let Self {
            stream, closing, ..
        } = &mut *self;
        let Some(closing) = closing else {
            return Poll::Ready(Ok(()));
        };
        if closing.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        loop {
            let mut buffer = ReadBuf::new(&mut scrap);
            match Pin::new(&mut *stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    let later = tokio::time::Instant::now() + QUIET;
                    closing.quiet.as_mut().reset(later);
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return closing.quiet.as_mut().poll(context).map(Ok),
            }
        }
    }
}
