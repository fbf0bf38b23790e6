//! The parameters of a query, asked for one by one; one that nobody asked for, or that comes twice, is refused.

use axum::{extract::FromRequestParts, extract::RawQuery};
use http::request::Parts;

use super::{
    error::{ApiError, ApiResult},
    fields::FieldType,
};

/// The parameters that are left of a query.
pub struct Query {
    left: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl Query {
    #[must_use]
    pub fn of(query: &str) -> Self {
        let pairs = form_urlencoded::parse(query.as_bytes());
        Self {
            left: pairs.into_owned().collect(),
            known: Vec::new(),
        }
    }

    /// `None` if it is missing.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] if it is not what is accepted, or comes twice.
    pub fn optional<T: FieldType>(&mut self, name: &'static str) -> ApiResult<Option<T>> {
        let mut values = self.texts(name);
        match (values.pop(), values.is_empty()) {
            (None, _) => Ok(None),
            (Some(_), false) => Err(ApiError::bad_field(name, "there twice", "it once")),
            (Some(value), true) => T::of_text(&value)
                .map(Some)
                .ok_or_else(|| ApiError::bad_field(name, quoted(&value), T::ACCEPTED)),
        }
    }

    /// # Errors
    /// As [`optional`](Self::optional), and if it is missing.
    pub fn required<T: FieldType>(&mut self, name: &'static str) -> ApiResult<T> {
        self.optional(name)?
            .ok_or_else(|| ApiError::bad_field(name, "missing", T::ACCEPTED))
    }

    /// All values of a parameter that may come several times, and hold several with commas between.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] if one is not what is accepted.
    pub fn several<T: FieldType>(&mut self, name: &'static str) -> ApiResult<Vec<T>> {
        let values = self.texts(name);
        let values = values.iter().flat_map(|value| value.split(','));
        let read = |value: &str| {
            T::of_text(value).ok_or_else(|| ApiError::bad_field(name, quoted(value), T::ACCEPTED))
        };
        values.map(read).collect()
    }

    /// # Errors
    /// [`ApiError::Invalid`] for the first parameter that nobody asked for.
    pub fn finish(self) -> ApiResult<()> {
        match self.left.first() {
            None => Ok(()),
            Some((name, _)) => {
                let name: String = name.chars().take(64).collect();
                let accepted = match self.known.as_slice() {
                    [] => "no parameters".to_owned(),
                    known => known.join(", "),
                };
                Err(ApiError::bad_field(name, "not a known parameter", accepted))
            }
        }
    }

    fn texts(&mut self, name: &'static str) -> Vec<String> {
        self.known.push(name);
        let is_it = |(key, _): &mut (String, String)| key == name;
        self.left
            .extract_if(.., is_it)
            .map(|(_, value)| value)
            .collect()
    }
}

fn quoted(value: &str) -> String {
    let start: String = value.chars().take(64).collect();
    format!("'{}'", start.escape_debug())
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Ok(RawQuery(query)) = RawQuery::from_request_parts(parts, state).await;
        Ok(Self::of(query.as_deref().unwrap_or("")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::administrator::Role;

    #[test]
    fn parameters_are_read_once_and_unknown_ones_are_named() {
        let mut query = Query::of("role=owner&a=1&a=2,3&x=%27%0a");
        assert_eq!(query.optional::<Role>("role").unwrap(), Some(Role::Owner));
        assert_eq!(query.several::<u64>("a").unwrap(), [1, 2, 3]);
        assert_eq!(query.optional::<Role>("z").unwrap(), None);
        let error = query.finish().unwrap_err();
        assert_eq!(
            error.message(),
            "'x' is not a known parameter; write role, a, z"
        );
        let twice = Query::of("role=owner&role=viewer").optional::<Role>("role");
        assert!(twice.unwrap_err().message().contains("twice"));
        let wrong = Query::of("role=%27%0a").optional::<Role>("role");
        assert_eq!(
            wrong.unwrap_err().message(),
            "'role' is '\\'\\n'; write viewer, operator or owner"
        );
    }
}
