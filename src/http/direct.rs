//! The way in that a server has: requests to the model go past the router, all others through it.
//!
//! They are nearly all there is, and being routed costs a request more than being decided on: a clone of its route
//! and a box for each layer. What surrounds them is the same.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{Router, extract::Request, response::Response};
use futures_util::FutureExt as _;
use tower::Service;

use super::{
    layers::{Surroundings, surrounded},
    openai,
    request_id::RequestId,
    router,
};
use crate::app::App;

/// Everything that a server answers; cheap to clone.
#[derive(Clone)]
pub struct Routes {
    app: App,
    surroundings: Arc<Surroundings>,
    router: Router,
}

impl Routes {
    #[must_use]
    pub fn of(app: &App) -> Self {
        let surroundings = Surroundings::of(app);
        Self {
            app: app.clone(),
            router: router::build_in(Arc::clone(&surroundings), app),
            surroundings,
        }
    }
}

impl Service<Request> for Routes {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let Some(endpoint) = openai::passed_on_at(request.method(), request.uri().path()) else {
            return Box::pin(self.router.call(request));
        };
        let (app, surroundings) = (self.app.clone(), Arc::clone(&self.surroundings));
        // Boxed here, and not only with what surrounds it: each of that would move it once more.
        let answer = move |request, id: &RequestId| {
            Box::pin(openai::answer(app, endpoint, request, id.clone()))
        };
        let route = openai::route(endpoint);
        Box::pin(surrounded(surroundings, route, request, answer).map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::provider::Endpoint;

    /// A future is moved and made room for with each request, so what is rare on its way must not be in it.
    #[test]
    fn what_answers_a_request_is_small() {
        fn room_of<F: Future>(_: impl FnOnce(App, Endpoint, Request, RequestId) -> F) -> usize {
            size_of::<F>()
        }
        let size = room_of(openai::answer);
        assert!(size <= 3072, "{size} bytes");
    }

    #[test]
    fn what_goes_past_the_router_is_a_route_that_the_router_has() {
        let described = router::description();
        for endpoint in Endpoint::ALL {
            let path = openai::route(endpoint);
            let item = described.paths.paths.get(path);
            let item = item.unwrap_or_else(|| panic!("{path} is no route"));
            assert_eq!(openai::passed_on_at(&Method::GET, path), None, "{path}");
            let passed_on = openai::passed_on_at(&Method::POST, path);
            let expected = item.post.is_some().then_some(endpoint);
            assert_eq!(passed_on, expected, "{path}");
        }
        assert_eq!(openai::passed_on_at(&Method::POST, "/v1/files"), None);
    }
}
