//! What happens around every request: its id, its place among those in flight, errors written, panics caught, and
//! the metrics of it all. One function, so that a request pays for one layer.

use std::{
    any::Any,
    future::{Future, ready},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Instant,
};

use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use futures_util::{FutureExt as _, future::Either};
use http::Method;

use super::{
    Dialect,
    error::{self, ApiError, RenderContext},
    overload::{InFlight, Place},
    request_id::{RequestId, X_REQUEST_ID},
    traced::TracedBody,
};
use crate::{
    app::App,
    telemetry::{
        metrics::Metrics,
        trace::{self, Trace},
    },
};

/// The label of requests that no route matches: a client chooses paths.
const UNMATCHED: &str = "unmatched";
/// Answered even when everything else is turned away: an operator has to see why.
const ALWAYS_ANSWERED: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// What [`surround`] and [`surrounded`] need; put around the routes with
/// `.layer(axum::middleware::from_fn_with_state(Arc::new(surroundings), layers::surround))`.
pub struct Surroundings {
    pub metrics: Arc<Metrics>,
    pub in_flight: InFlight,
}

impl Surroundings {
    #[must_use]
    pub fn of(app: &App) -> Arc<Self> {
        Arc::new(Self {
            metrics: Arc::clone(&app.metrics),
            in_flight: InFlight::of(&app.tasks, app.config.max_in_flight),
        })
    }
}

/// Runs a request that the router matched, and finishes its answer.
pub async fn surround(
    State(surroundings): State<Arc<Surroundings>>,
    request: Request,
    next: Next,
) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or(UNMATCHED, MatchedPath::as_str);
    let answer = |mut request: Request, id: &RequestId| {
        request.extensions_mut().insert(id.clone());
        next.run(request)
    };
    surrounded(surroundings, route, request, answer).await
}

/// Has `answer` answer a request to `route` by its id, and finishes what it answers.
///
/// Not an `async fn`: one that awaits what it was given has room for it twice, and this one would for the request too.
pub fn surrounded<F>(
    surroundings: Arc<Surroundings>,
    route: &str,
    request: Request,
    answer: impl FnOnce(Request, &RequestId) -> F,
) -> impl Future<Output = Response>
where
    F: Future<Output = Response>,
{
    let entered = enter(&surroundings.in_flight, request.uri().path());
    let surrounding = Surrounding {
        began: Instant::now(),
        id: RequestId::of(request.headers()),
        method: request.method().clone(),
        dialect: Dialect::of_path(request.uri().path()),
        trace: Trace::of(request.headers()),
        route,
        surroundings,
    };
    match entered {
        Ok(place) => {
            let answered = run(answer(request, &surrounding.id), surrounding.id.clone());
            let answered = trace::within(surrounding.trace.clone(), answered);
            Either::Left(answered.map(|response| surrounding.finish(response, place)))
        }
        Err(overloaded) => {
            let response = surrounding.finish(overloaded.into_response(), None);
            Either::Right(ready(response))
        }
    }
}

/// What is known of a request while it runs.
struct Surrounding<'a> {
    surroundings: Arc<Surroundings>,
    route: &'a str,
    began: Instant,
    id: RequestId,
    method: Method,
    dialect: Dialect,
    trace: Option<Arc<Trace>>,
}

impl Surrounding<'_> {
    fn finish(self, response: Response, place: Option<Place>) -> Response {
        let context = RenderContext {
            dialect: self.dialect,
            request_id: &self.id,
        };
        // Its body is short and whole. While what the client still sends is read, its place is not needed.
        let place = place.filter(|_| !error::is_failure(&response));
        let mut response = error::render(response, context);
        response
            .headers_mut()
            .insert(X_REQUEST_ID, self.id.to_value());
        let (metrics, status) = (&self.surroundings.metrics, response.status());
        metrics.http_answered(self.route, &self.method, status, self.began.elapsed());
        if let Some(trace) = self.trace {
            response = response.map(|body| Body::new(TracedBody::new(trace, body)));
        }
        match place {
            Some(place) => place.until_end_of(response),
            None => response,
        }
    }
}

fn enter(in_flight: &InFlight, path: &str) -> Result<Option<Place>, ApiError> {
    if ALWAYS_ANSWERED.contains(&path) {
        return Ok(None);
    }
    in_flight.enter().map(Some)
}

/// A panic is a fault of one request: it is answered 500, and the connection lives on.
fn run(answer: impl Future<Output = Response>, id: RequestId) -> impl Future<Output = Response> {
    let caught = AssertUnwindSafe(answer).catch_unwind();
    caught.map(move |answered| answered.unwrap_or_else(|panic| panicked(&*panic, &id)))
}

fn panicked(panic: &(dyn Any + Send), id: &RequestId) -> Response {
    // The text only: a panic's message is the program's own, but its payload could be anything.
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("");
    tracing::error!(
        code = "internal_error",
        request_id = &*id.0,
        message,
        "a request panicked"
    );
    ApiError::Internal.into_response()
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::to_bytes, middleware::from_fn_with_state, routing::get};
    use http::StatusCode;
    use serde_json::Value;
    use tower::ServiceExt as _;

    use super::*;

    fn app(most: usize) -> (Router, Arc<Surroundings>) {
        let surroundings = Arc::new(Surroundings {
            metrics: Arc::new(Metrics::new("redb")),
            in_flight: InFlight::at_most(most),
        });
        let router = Router::new()
            .route("/items/{id}", get(|| async { "item" }))
            .route(
                "/v1/models",
                get(|| async { ApiError::InvalidApiKey.into_response() }),
            )
            .route("/panic", get(panicking))
            .route("/healthz", get(|| async { "ok" }))
            .fallback(error::no_route)
            .method_not_allowed_fallback(error::method_not_allowed)
            .layer(from_fn_with_state(Arc::clone(&surroundings), surround));
        (router, surroundings)
    }

    async fn panicking() -> &'static str {
        panic!("this handler always fails")
    }

    async fn send(router: Router, method: &str, path: &str) -> Response {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("x-request-id", "mine")
            .body(Body::empty())
            .unwrap();
        router.oneshot(request).await.unwrap()
    }

    async fn json(response: Response) -> Value {
        let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    #[tokio::test]
    async fn every_answer_carries_its_requests_id() {
        for path in ["/items/1", "/nothing", "/v1/models", "/panic"] {
            let (router, _) = app(10);
            let response = send(router, "GET", path).await;
            assert_eq!(response.headers()[X_REQUEST_ID], "mine", "{path}");
        }
    }

    #[tokio::test]
    async fn an_error_is_written_in_the_dialect_of_its_path() {
        let (router, _) = app(10);
        let response = send(router.clone(), "GET", "/v1/models").await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(
            response.headers()["www-authenticate"],
            "Bearer realm=\"tollgate\""
        );
        let body = json(response).await;
        assert_eq!(body["error"]["type"], "authentication_error");
        assert_eq!(body["error"]["request_id"], "mine");

        let body = json(send(router.clone(), "GET", "/v1/files").await).await;
        assert_eq!(body["error"]["code"], "endpoint_not_metered");
        let body = json(send(router, "GET", "/v10/files").await).await;
        assert_eq!(body["error"]["code"], "not_found");
        assert_eq!(body["error"].get("type"), None);
    }

    #[tokio::test]
    async fn a_method_that_is_not_taken_names_those_that_are() {
        let (router, _) = app(10);
        let response = send(router, "DELETE", "/items/1").await;
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(response.headers()["allow"], "GET,HEAD");
        assert_eq!(json(response).await["error"]["code"], "method_not_allowed");
    }

    #[tokio::test]
    async fn a_panic_is_answered_and_gives_its_place_back() {
        let (router, surroundings) = app(1);
        let response = send(router, "GET", "/panic").await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(json(response).await["error"]["code"], "internal_error");
        assert_eq!(surroundings.in_flight.taken(), 0);
    }

    #[tokio::test]
    async fn an_answer_keeps_its_place_until_it_is_sent_and_an_error_does_not() {
        let (router, surroundings) = app(2);
        let answer = send(router.clone(), "GET", "/items/1").await;
        let error = send(router, "GET", "/v1/models").await;
        assert_eq!(surroundings.in_flight.taken(), 1);
        drop(answer);
        assert_eq!(surroundings.in_flight.taken(), 0);
        drop(error);
    }

    #[tokio::test]
    async fn past_the_cap_requests_are_turned_away_but_for_the_operators() {
        let (router, surroundings) = app(1);
        let _other = surroundings.in_flight.enter().unwrap();
        let response = send(router.clone(), "GET", "/items/1").await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(json(response).await["error"]["code"], "overloaded");
        let response = send(router, "GET", "/healthz").await;
        assert_eq!(response.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn requests_are_counted_by_route_and_never_by_path() {
        let (router, surroundings) = app(10);
        for path in ["/items/1", "/items/2", "/made/up", "/v1/made-up"] {
            drop(send(router.clone(), "GET", path).await);
        }
        let text = surroundings.metrics.render();
        for line in [
            r#"http_requests_total{method="GET",route="/items/{id}",status="200"} 2"#,
            r#"http_requests_total{method="GET",route="unmatched",status="404"} 2"#,
            r#"http_request_duration_seconds_count{route="/items/{id}"} 2"#,
        ] {
            assert!(text.contains(line), "{line} is missing from\n{text}");
        }
    }
}
