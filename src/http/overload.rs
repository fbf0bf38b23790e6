//! How many requests may be in flight (setting `TOLLGATE_MAX_IN_FLIGHT`).

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use crate::app::tasks::Tasks;

/// Places for requests in flight. A request keeps its place until its answer's body has ended, or was dropped: a
/// stream is in flight for as long as it runs.
#[derive(Clone, Debug)]
pub struct InFlight {
    places: Arc<Semaphore>,
    most: usize,
}

impl InFlight {
    /// The places that `tasks` knows too, for what runs on without its client.
    #[must_use]
    pub fn of(tasks: &Tasks, most: usize) -> Self {
        Self {
            places: tasks.places(),
            most,
        }
    }

    #[cfg(test)]
    pub(super) fn at_most(most: usize) -> Self {
        Self::of(&Tasks::new(0, most), most)
    }

    /// A place, if one is free.
    ///
    /// # Errors
    /// [`ApiError::Overloaded`]: nobody waits here, since waiting requests would pile up in memory.
    pub fn enter(&self) -> Result<Place, ApiError> {
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(permit) => Ok(Place { _permit: permit }),
            Err(_) => Err(ApiError::Overloaded {
                max_in_flight: self.most,
            }),
        }
    }

    /// How many places are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.most
            .min(Semaphore::MAX_PERMITS)
            .saturating_sub(self.places.available_permits())
    }
}

/// A request's place; given back when dropped.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Place {
    /// Keeps the place until the answer's body has ended.
    #[must_use]
    pub fn until_end_of(self, response: Response) -> Response {
        response.map(|body| Body::new(Guarded { body, _guard: self }))
    }
}

/// A body that keeps something alive for as long as it lives itself.
#[derive(Debug)]
pub(super) struct Guarded<B, G> {
    pub(super) body: B,
    pub(super) _guard: G,
}

impl<B, G> HttpBody for Guarded<B, G>
where
    B: HttpBody<Data = Bytes> + Unpin,
    G: Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;

    use super::*;

    #[tokio::test]
    async fn a_place_is_taken_until_the_answers_body_has_ended() {
        let in_flight = InFlight::at_most(1);
        let place = in_flight.enter().unwrap();
        assert_eq!(in_flight.enter().unwrap_err().code(), "overloaded");
        let answer = place.until_end_of("hello".into_response());
        assert_eq!(in_flight.taken(), 1, "the answer is not read yet");
        let body = axum::body::to_bytes(answer.into_body(), 100).await.unwrap();
        assert_eq!(body, "hello");
        assert_eq!(in_flight.taken(), 0);
    }

    #[test]
    fn an_answer_that_nobody_reads_gives_its_place_back() {
        let in_flight = InFlight::at_most(1);
        drop(
            in_flight
                .enter()
                .unwrap()
                .until_end_of(Body::empty().into_response()),
        );
        assert!(in_flight.enter().is_ok());
    }

    #[test]
    fn a_guarded_body_keeps_its_length() {
        let body = Body::from("hello");
        let guarded = Guarded { body, _guard: () };
        assert_eq!(guarded.size_hint().exact(), Some(5));
    }
}
