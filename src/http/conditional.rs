//! Changes that hold only for the version a client has seen: `If-Match` and `ETag` (RFC 9110 §13.1.1, §8.8.3).

use axum::{
    Json,
    extract::FromRequestParts,
    response::{IntoResponse, Response},
};
use http::{
    HeaderValue,
    header::{ETAG, IF_MATCH},
    request::Parts,
};
use serde::Serialize;

use super::error::ApiError;
use crate::services::AdminError;

/// A version that nothing ever has.
const NO_VERSION: i64 = i64::MIN;

/// The version that a change is for; `None`: whichever there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IfMatch(pub Option<i64>);

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let mut values = parts.headers.get_all(IF_MATCH).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(Self(None)),
            (Some(value), None) => Self::of(value),
            (Some(_), Some(_)) => Err(several()),
        }
    }
}

impl IfMatch {
    fn of(value: &HeaderValue) -> Result<Self, ApiError> {
        let text = value.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(Self(None));
        }
        if text.contains(',') {
            return Err(several());
        }
        // A weak tag, or one that was never given out here, matches nothing (RFC 9110 §8.8.3.2).
        let version = text.trim_matches('"').parse().unwrap_or(NO_VERSION);
        Ok(Self(Some(version)))
    }
}

fn several() -> ApiError {
    ApiError::bad_field(
        "If-Match",
        "more than one version",
        "one version, such as \"3\"",
    )
}

/// An object with its version as `ETag`.
pub struct Versioned<T> {
    pub version: i64,
    pub object: T,
}

impl<T: Serialize> IntoResponse for Versioned<T> {
    fn into_response(self) -> Response {
        let tag = HeaderValue::from_str(&format!("\"{}\"", self.version))
            .expect("digits and quotes are a header's value");
        ([(ETAG, tag)], Json(self.object)).into_response()
    }
}

/// A change that came too late, with the object as it is now; `current` is asked only then.
pub async fn or_current<T: Serialize>(
    error: AdminError,
    current: impl Future<Output = Result<T, AdminError>>,
) -> ApiError {
    if !matches!(error, AdminError::VersionConflict { .. }) {
        return error.into();
    }
    match current.await {
        Ok(current) => ApiError::VersionConflict {
            message: error.to_string(),
            current: serde_json::json!(current),
        },
        Err(error) => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_version_is_read_and_a_tag_from_elsewhere_matches_nothing() {
        for (text, expected) in [
            ("*", None),
            ("\"3\"", Some(3)),
            ("3", Some(3)),
            ("W/\"3\"", Some(NO_VERSION)),
            ("\"abc\"", Some(NO_VERSION)),
        ] {
            let read = IfMatch::of(&HeaderValue::from_static(text)).unwrap();
            assert_eq!(read, IfMatch(expected), "{text}");
        }
        assert!(IfMatch::of(&HeaderValue::from_static("\"1\", \"2\"")).is_err());
    }
}
