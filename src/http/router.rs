//! Every route, in one list. What is not here is 404: an unmetered way to the model would be a way round the limits.
//!
//! Routes are listed by `routes!`, which takes method and path from the handler's `#[utoipa::path]`, so that what is
//! served and what `/openapi.json` describes are the same; `tests` walks both.

use std::sync::{Arc, LazyLock};

use axum::{Router, middleware::from_fn_with_state};

use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    admin, chat, cloud_events, error,
    layers::{Surroundings, surround},
    openai, openapi, ops, reservations, usage, webhooks,
};
use crate::app::App;

/// Where administration lies.
const ADMIN: &str = "/api/v1/admin";

/// The routes in parts, for different things go around them.
struct Parts {
    api: Router<App>,
    admin: Router<App>,
    pages: Router<App>,
}

/// They are made once a process: what describes them is made with them, which takes longer than all else of a start.
static PARTS: LazyLock<Parts> = LazyLock::new(|| Parts {
    api: api().into(),
    admin: admin::routes().into(),
    pages: crate::admin::routes().into(),
});

/// The routes over `app`, and what surrounds each.
pub fn build(app: &App) -> Router {
    build_in(Surroundings::of(app), app)
}

/// As [`build`], in surroundings that other ways in share.
pub(super) fn build_in(surroundings: Arc<Surroundings>, app: &App) -> Router {
    let Parts { api, admin, pages } = &*PARTS;
    let admin = admin.clone();
    let admin = admin.layer(from_fn_with_state(app.clone(), admin::then_refresh));
    let pages = pages.clone();
    let pages = pages.layer(from_fn_with_state(app.clone(), crate::admin::finish));
    api.clone()
        .nest(ADMIN, admin)
        .merge(pages)
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::method_not_allowed)
        .with_state(app.clone())
        .layer(from_fn_with_state(surroundings, surround))
}

/// All routes but those of administration, by API and by page.
fn api() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(chat::create))
        .routes(routes!(chat::stream))
        .routes(routes!(usage::show))
        .routes(routes!(usage::totals))
        .routes(routes!(cloud_events::take))
        .routes(routes!(reservations::create))
        .routes(routes!(reservations::release))
        .routes(routes!(reservations::settle))
        .routes(routes!(openai::chat_completions))
        .routes(routes!(openai::responses))
        .routes(routes!(openai::embeddings))
        .routes(routes!(openai::models))
        .routes(routes!(webhooks::stripe))
        .routes(routes!(ops::healthz))
        .routes(routes!(ops::readyz))
        .routes(routes!(ops::metrics))
        .routes(routes!(openapi::show))
}

/// What `/openapi.json` says.
#[must_use]
pub fn description() -> utoipa::openapi::OpenApi {
    let all = crate::admin::routes()
        .nest(ADMIN, admin::routes())
        .merge(api());
    openapi::complete(all.into_openapi())
}

#[cfg(test)]
mod tests;
