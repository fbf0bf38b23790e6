//! Bodies of requests: read whole, within their limits (interface.md §3, "Limits of the connection").

use std::time::Duration;

use axum::{
    body::Body,
    extract::{FromRef, FromRequest, Request},
};
use bytes::{Bytes, BytesMut};
use futures_util::future::poll_immediate;
use http::{
    HeaderMap,
    header::{CONTENT_ENCODING, CONTENT_LENGTH},
};
use http_body_util::BodyExt as _;

use super::error::ApiError;

/// A body that makes no progress for this long is given up.
pub const BODY_STALL: Duration = Duration::from_secs(30);
/// Room taken ahead for an announced body: what is announced may never come.
const MOST_AHEAD_BYTES: usize = 1 << 20;

/// How large a body may be (setting `TOLLGATE_MAX_BODY_BYTES`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyLimit {
    pub max_bytes: usize,
}

/// A request's body, whole; in one piece as it came, without a copy, if it came in one.
///
/// # Errors
/// [`ApiError::UnsupportedMediaType`] for any `Content-Encoding`, [`ApiError::BodyTooLarge`] for more than
/// `max_bytes` (by `Content-Length` before anything is read, so that a client waiting for `100 Continue` never sends
/// it), [`ApiError::RequestTimeout`] without progress for [`BODY_STALL`], [`ApiError::Unreadable`] if it breaks off.
pub async fn read_body(
    headers: &HeaderMap,
    body: Body,
    max_bytes: usize,
) -> Result<Bytes, ApiError> {
    refuse_encoded(headers)?;
    let announced = announced_length(headers);
    if announced.is_some_and(|length| length > max_bytes) {
        return Err(ApiError::BodyTooLarge { max_bytes });
    }
    let mut reader = Reader {
        body,
        left: max_bytes,
        max_bytes,
    };
    let mut pieces = Pieces::expecting(announced.unwrap_or(0).min(MOST_AHEAD_BYTES));
    while let Some(piece) = reader.next().await? {
        pieces.push(piece);
    }
    Ok(pieces.whole())
}

/// A body's pieces, put together; a single one stays as it came, without a copy.
#[derive(Debug, Default)]
pub struct Pieces {
    first: Bytes,
    /// All of them, once there are several.
    more: BytesMut,
    expected: usize,
}

impl Pieces {
    /// Room for `bytes` is made as soon as there are two.
    #[must_use]
    pub fn expecting(bytes: usize) -> Self {
        Self {
            expected: bytes,
            ..Self::default()
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.first.len() + self.more.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn push(&mut self, piece: Bytes) {
        if self.is_empty() {
            self.first = piece;
            return;
        }
        if self.more.is_empty() {
            self.more
                .reserve(self.expected.max(self.len() + piece.len()));
            self.more
                .extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.more.extend_from_slice(&piece);
    }

    #[must_use]
    pub fn whole(self) -> Bytes {
        if self.more.is_empty() {
            self.first
        } else {
            self.more.freeze()
        }
    }
}

struct Reader {
    body: Body,
    left: usize,
    max_bytes: usize,
}

impl Reader {
    /// The next piece with anything in it; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            // What is there already, as a short body is, needs no timer.
            let frame = match poll_immediate(self.body.frame()).await {
                Some(frame) => frame,
                None => tokio::time::timeout(BODY_STALL, self.body.frame())
                    .await
                    .map_err(|_| ApiError::RequestTimeout {
                        after_seconds: BODY_STALL.as_secs(),
                    })?,
            };
            let Some(frame) = frame else {
                return Ok(None);
            };
            let frame = frame.map_err(|_| {
                ApiError::Unreadable("The body broke off before its end.".to_owned())
            })?;
            let Ok(data) = frame.into_data() else {
                continue; // trailers say nothing here
            };
            self.left = self
                .left
                .checked_sub(data.len())
                .ok_or(ApiError::BodyTooLarge {
                    max_bytes: self.max_bytes,
                })?;
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
    }
}

/// tollgate reads what a request asks for, so it would have to unpack it, within limits of its own.
fn refuse_encoded(headers: &HeaderMap) -> Result<(), ApiError> {
    match headers.get(CONTENT_ENCODING) {
        None => Ok(()),
        Some(found) => {
            let found: String = String::from_utf8_lossy(found.as_bytes())
                .chars()
                .take(64)
                .collect();
            Err(ApiError::UnsupportedMediaType(format!(
                "Content-Encoding is '{}'; send the body as it is, without that header.",
                found.escape_debug()
            )))
        }
    }
}

fn announced_length(headers: &HeaderMap) -> Option<usize> {
    let length = headers.get(CONTENT_LENGTH)?.to_str().ok()?;
    // Only digits get this far; so many that they don't fit is more than any limit.
    Some(length.parse().unwrap_or(usize::MAX))
}

/// A body read by [`read_body`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WholeBody(pub Bytes);

impl<S> FromRequest<S> for WholeBody
where
    BodyLimit: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let limit = BodyLimit::from_ref(state);
        let (parts, body) = request.into_parts();
        read_body(&parts.headers, body, limit.max_bytes)
            .await
            .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{StreamExt as _, stream};
    use http::HeaderValue;

    use super::*;

    fn announced(name: http::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    fn chunks(chunks: &'static [&'static str]) -> Body {
        Body::from_stream(stream::iter(
            chunks.iter().map(|chunk| Ok::<_, Infallible>(*chunk)),
        ))
    }

    async fn code(headers: HeaderMap, body: Body) -> &'static str {
        read_body(&headers, body, 8).await.unwrap_err().code()
    }

    #[tokio::test]
    async fn a_body_is_read_whole_up_to_the_limit() {
        for body in [chunks(&["12345678"]), chunks(&["123", "", "45", "678"])] {
            assert_eq!(
                read_body(&HeaderMap::new(), body, 8).await.unwrap(),
                "12345678"
            );
        }
        assert_eq!(
            read_body(&HeaderMap::new(), Body::empty(), 8)
                .await
                .unwrap(),
            ""
        );
    }

    #[tokio::test]
    async fn a_body_past_the_limit_is_refused_by_its_length_and_while_reading() {
        assert_eq!(
            code(HeaderMap::new(), chunks(&["1234", "56789"])).await,
            "body_too_large"
        );
        let never_read = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        assert_eq!(
            code(announced(CONTENT_LENGTH, "9"), never_read).await,
            "body_too_large"
        );
        let absurd = announced(CONTENT_LENGTH, "99999999999999999999999");
        assert_eq!(code(absurd, chunks(&["1"])).await, "body_too_large");
    }

    #[tokio::test]
    async fn an_encoded_body_is_refused() {
        let headers = announced(CONTENT_ENCODING, "gzip");
        assert_eq!(
            code(headers, chunks(&["1"])).await,
            "unsupported_media_type"
        );
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_unreadable() {
        let broken = stream::iter([Ok("123"), Err(std::io::Error::other("reset"))]);
        assert_eq!(
            code(HeaderMap::new(), Body::from_stream(broken)).await,
            "invalid_request"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_body_without_progress_is_timed_out() {
        let slow = stream::iter(["1", "2", "3"]).then(|chunk| async move {
            tokio::time::sleep(BODY_STALL - Duration::from_secs(1)).await;
            Ok::<_, Infallible>(chunk)
        });
        let read = read_body(&HeaderMap::new(), Body::from_stream(slow), 8).await;
        assert_eq!(read.unwrap(), "123", "slow, but never still for 30 seconds");

        let still = stream::iter([Ok::<_, Infallible>("1")]).chain(stream::pending());
        assert_eq!(
            code(HeaderMap::new(), Body::from_stream(still)).await,
            "request_timeout"
        );
    }
}
