//! What is left of a request's body when its answer is there, as that to a bad key is before the body was looked at.
//!
//! In HTTP/1 the next request comes after that body on the same connection, and hyper closes a connection whose body
//! nobody reads, after an answer that does not say so. A client that sends its body just after its head would lose
//! its next request.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue,
    header::{CONNECTION, EXPECT},
};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

/// No more than this is read for the connection's sake,
const MOST_BYTES: usize = 256 * 1024;
/// and no longer.
const LONGEST: Duration = Duration::from_secs(1);

/// The body of a connection's present request, once whoever had it has dropped it before its end.
#[derive(Clone, Debug, Default)]
pub(super) struct Unread(Arc<Mutex<Option<Rest>>>);

#[derive(Debug)]
struct Rest {
    body: Incoming,
    /// Its client sends it. One that says `Expect: 100-continue` does so once it was asked to (RFC 9110 §10.1.1).
    comes: bool,
}

impl Unread {
    /// The body of a request with these headers, that comes here if it is dropped before its end.
    pub(super) fn watch(&self, headers: &HeaderMap, body: Incoming) -> Body {
        if body.is_end_stream() {
            return Body::empty();
        }
        let comes = !headers.contains_key(EXPECT);
        Body::new(Watched {
            rest: Some(Rest { body, comes }),
            unread: self.clone(),
        })
    }

    /// Reads what is left before `answer` goes out; where that is much, or does not come, the answer says that the
    /// connection is closed.
    pub(super) async fn read_before(&self, answer: &mut Response) {
        let Some(rest) = self.take() else {
            return;
        };
        if answer.headers().contains_key(CONNECTION) {
            return; // it closes already
        }
        // Boxed: few requests come here, and each would have room for it.
        if !(rest.comes && Box::pin(is_read(rest.body)).await) {
            let close = HeaderValue::from_static("close");
            answer.headers_mut().insert(CONNECTION, close);
        }
    }

    fn take(&self) -> Option<Rest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put(&self, rest: Rest) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(rest);
    }
}

/// Whether all of `body` was read.
async fn is_read(mut body: Incoming) -> bool {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > MOST_BYTES {
        return false;
    }
    let reading = async {
        let mut left = MOST_BYTES;
        while let Some(frame) = body.frame().await {
            let read = frame
                .ok()
                .map(|frame| frame.data_ref().map_or(0, Bytes::len));
            match read.and_then(|read| left.checked_sub(read)) {
                Some(rest) => left = rest,
                None => return false,
            }
        }
        true
    };
    tokio::time::timeout(LONGEST, reading)
        .await
        .unwrap_or(false)
}

struct Watched {
    /// `None` from its end on.
    rest: Option<Rest>,
    unread: Unread,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(rest) = &mut self.rest else {
            return Poll::Ready(None);
        };
        rest.comes = true;
        let polled = Pin::new(&mut rest.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.rest = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.rest
            .as_ref()
            .is_none_or(|rest| rest.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let of = |rest: &Rest| rest.body.size_hint();
        self.rest
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), of)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(rest) = self.rest.take().filter(|rest| !rest.body.is_end_stream()) {
            self.unread.put(rest);
        }
    }
}
