//! The body of a passed-through answer: hands its connection back when it is at its end, and minds the time.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream::BoxStream};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::{Patience, ProviderError, pool::Lease};

/// An answer's body, chunk by chunk as the upstream sends it.
///
/// Read to its end, its connection serves the next request; dropped before, the connection (HTTP/2: the stream) is
/// closed, which tells the upstream to stop. It fails with [`ProviderError::Broken`] if the upstream breaks off and
/// with [`ProviderError::Timeout`] if the request's [`Patience`] is at its end, and gives nothing after that.
pub struct UpstreamBody {
    source: Source,
    watch: Option<Watch>,
}

enum Source {
    Upstream { body: Incoming, lease: Lease },
    Whole(Bytes),
    Made(BoxStream<'static, Result<Bytes, ProviderError>>),
    Ended,
}

impl UpstreamBody {
    pub(super) fn upstream(body: Incoming, lease: Lease, watch: Watch) -> Self {
        let mut this = Self {
            source: Source::Upstream { body, lease },
            watch: Some(watch),
        };
        this.hand_back_at_the_end();
        this
    }

    /// A body made here of one piece.
    #[must_use]
    pub fn whole(bytes: Bytes) -> Self {
        Self {
            source: Source::Whole(bytes),
            watch: None,
        }
    }

    /// A body made here, piece by piece, which is waited for as `patience` says.
    pub fn made<S>(pieces: S, patience: Patience) -> Self
    where
        S: Stream<Item = Result<Bytes, ProviderError>> + Send + 'static,
    {
        Self {
            source: Source::Made(pieces.boxed()),
            watch: Some(Watch::start(patience, Instant::now())),
        }
    }

    /// If nothing can follow, there is no use in waiting for whoever reads to ask again: some never do.
    fn hand_back_at_the_end(&mut self) {
        let at_end = matches!(&self.source, Source::Upstream { body, .. } if body.is_end_stream());
        if at_end {
            self.hand_back();
        }
    }

    fn hand_back(&mut self) {
        if let Source::Upstream { lease, .. } = std::mem::replace(&mut self.source, Source::Ended) {
            lease.hand_back();
        }
    }

    fn poll_source(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ProviderError>>> {
        Poll::Ready(match &mut self.source {
            Source::Upstream { body, .. } => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                frame.map(|frame| frame.map_err(|error| broken(&error)))
            }
            Source::Made(pieces) => {
                let piece = ready!(pieces.poll_next_unpin(cx));
                piece.map(|piece| piece.map(Frame::data))
            }
            Source::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                (!bytes.is_empty()).then(|| Ok(Frame::data(bytes)))
            }
            Source::Ended => None,
        })
    }
}

fn broken(error: &hyper::Error) -> ProviderError {
    ProviderError::Broken(error.to_string())
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = ProviderError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ProviderError>>> {
        let this = self.get_mut();
        let Poll::Ready(frame) = this.poll_source(cx) else {
            let Some(watch) = &mut this.watch else {
                return Poll::Pending;
            };
            ready!(watch.poll_expired(cx));
            this.source = Source::Ended;
            return Poll::Ready(Some(Err(ProviderError::Timeout)));
        };
        match &frame {
            Some(Ok(_)) => {
                if let Some(watch) = &mut this.watch {
                    watch.progress();
                }
                this.hand_back_at_the_end();
            }
            Some(Err(_)) => this.source = Source::Ended,
            None => this.hand_back(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Upstream { body, .. } => body.is_end_stream(),
            Source::Whole(bytes) => bytes.is_empty(),
            Source::Made(_) => false,
            Source::Ended => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Upstream { body, .. } => body.size_hint(),
            Source::Whole(bytes) => {
                SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or(u64::MAX))
            }
            Source::Made(_) => SizeHint::new(),
            Source::Ended => SizeHint::with_exact(0),
        }
    }
}

impl fmt::Debug for UpstreamBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UpstreamBody")
    }
}

/// Knows when a request's patience is at its end.
pub(super) struct Watch {
    patience: Patience,
    deadline: Instant,
    /// Made when first needed, and set anew only when it fires: most chunks cost the timer nothing.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Watch {
    pub(super) fn start(patience: Patience, now: Instant) -> Self {
        Self {
            patience,
            deadline: now + patience.duration(),
            sleep: None,
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Something came.
    pub(super) fn progress(&mut self) {
        if let Patience::BetweenChunks(duration) = self.patience {
            self.deadline = Instant::now() + duration;
        }
    }

    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.deadline;
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            // Chunks came since it was set.
            sleep.as_mut().reset(deadline);
        }
    }
}
