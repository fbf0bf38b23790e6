//! The named parts of a path; a part that can't be what it stands for is 404: there is no such thing.

use axum::extract::{FromRequestParts, OriginalUri, RawPathParams};
use http::request::Parts;

use super::{
    error::{self, ApiError},
    fields::FieldType,
};

/// The one named part.
pub struct InPath<T>(pub T);

/// The two named parts.
pub struct TwoInPath<A, B>(pub A, pub B);

impl<T: FieldType, S: Send + Sync> FromRequestParts<S> for InPath<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let texts = texts(parts, state).await?;
        let read = |texts: &[String]| match texts {
            [text] => T::of_text(text),
            _ => None,
        };
        read(&texts).map(Self).ok_or_else(|| no_object_at(parts))
    }
}

impl<A: FieldType, B: FieldType, S: Send + Sync> FromRequestParts<S> for TwoInPath<A, B> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let texts = texts(parts, state).await?;
        let read = |texts: &[String]| match texts {
            [first, second] => Some(Self(A::of_text(first)?, B::of_text(second)?)),
            _ => None,
        };
        read(&texts).ok_or_else(|| no_object_at(parts))
    }
}

async fn texts<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<Vec<String>, ApiError> {
    match RawPathParams::from_request_parts(parts, state).await {
        Ok(params) => Ok(params.iter().map(|(_, value)| value.to_owned()).collect()),
        Err(_) => Err(no_object_at(parts)), // %-escapes that are no UTF-8
    }
}

/// Names the path that the client asked, of which a nested router sees the end only.
fn no_object_at(parts: &Parts) -> ApiError {
    let asked = parts.extensions.get::<OriginalUri>();
    error::no_object_at(asked.map_or(parts.uri.path(), |asked| asked.0.path()))
}
