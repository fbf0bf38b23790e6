//! An answer's body belongs to the trace of its request: a stream is metered, and settled, while it is sent.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::telemetry::trace::{self, Trace};

pub(super) struct TracedBody {
    trace: Arc<Trace>,
    body: Body,
}

impl TracedBody {
    pub(super) fn new(trace: Arc<Trace>, body: Body) -> Self {
        Self { trace, body }
    }
}

impl HttpBody for TracedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let trace = Arc::clone(&self.trace);
        trace::within_sync(trace, || Pin::new(&mut self.body).poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for TracedBody {
    /// A stream whose client has gone is read on by a task that its body begins when it is dropped.
    fn drop(&mut self) {
        let (trace, body) = (Arc::clone(&self.trace), std::mem::take(&mut self.body));
        trace::within_sync(trace, || drop(body));
    }
}
