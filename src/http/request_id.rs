//! `X-Request-Id`: the client's, or one of ours; in the request's extensions, and in every answer.

use std::sync::Arc;

use http::{Extensions, HeaderMap, HeaderName, HeaderValue};

use crate::clock;

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const LONGEST_BYTES: usize = 128;

/// The id of a request: 1–128 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(pub Arc<str>);

impl RequestId {
    /// The client's own if it is fit, else a new one.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(X_REQUEST_ID).iter();
        match (values.next(), values.next()) {
            (Some(value), None) if is_fit(value) => value
                .to_str()
                .map_or_else(|_| Self::fresh(), |id| Self(id.into())),
            _ => Self::fresh(),
        }
    }

    fn fresh() -> Self {
        let mut buffer = uuid::Uuid::encode_buffer();
        Self((&*clock::new_id().simple().encode_lower(&mut buffer)).into())
    }

    /// The id that the layer put into a request.
    #[must_use]
    pub fn from_extensions(extensions: &Extensions) -> Option<&Self> {
        extensions.get()
    }

    /// As the value of a header.
    #[must_use]
    pub fn to_value(&self) -> HeaderValue {
        HeaderValue::from_str(&self.0).expect("visible ASCII is fit for a header")
    }
}

fn is_fit(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    (1..=LONGEST_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of(value: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(
            X_REQUEST_ID,
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        );
        RequestId::of(&headers).0.to_string()
    }

    #[test]
    fn a_clients_id_is_kept_if_it_is_visible_ascii_of_1_to_128_characters() {
        for id in ["a", "req-1.2/3~", &"x".repeat(128)] {
            assert_eq!(id_of(id), id);
        }
        for id in ["", "a b", "ü", "tab\there", &"x".repeat(129)] {
            let made = id_of(id);
            assert_ne!(made, id, "{id:?}");
            assert_eq!(made.len(), 32, "{made}");
        }
    }

    #[test]
    fn every_made_id_is_another() {
        assert_ne!(
            RequestId::of(&HeaderMap::new()),
            RequestId::of(&HeaderMap::new())
        );
    }
}
