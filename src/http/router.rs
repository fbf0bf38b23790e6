//! Every route, in one list. What is not here is 404: an unmetered way to the model would be a way round the limits.
//!
//! Routes are listed by `routes!`, which takes method and path from the handler's `#[utoipa::path]`, so that what is
//! served and what `/openapi.json` describes are the same; [`tests`] walks both.

use std::sync::Arc;

use axum::{
    Router,
    middleware::from_fn_with_state,
    routing::{get, post},
};

use utoipa_axum::router::OpenApiRouter;

use super::{
    admin, chat, error,
    layers::{Surroundings, surround},
    openai, ops,
    overload::InFlight,
    usage,
};
use crate::app::App;

/// The routes over `app`, and what surrounds each.
pub fn build(app: &App) -> Router {
    let surroundings = Surroundings {
        metrics: Arc::clone(&app.metrics),
        in_flight: InFlight::at_most(app.config.max_in_flight),
    };
    let admin = admin::routes().layer(from_fn_with_state(app.clone(), admin::then_refresh));
    let (router, _) = listed(admin).split_for_parts();
    router
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::method_not_allowed)
        .with_state(app.clone())
        .layer(from_fn_with_state(Arc::new(surroundings), surround))
}

/// All routes around those of administration.
fn listed(admin: OpenApiRouter<App>) -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .nest("/api/v1/admin", admin)
        .route("/api/v1/chat", post(chat::create))
        .route("/api/v1/chat/stream", post(chat::stream))
        .route("/api/v1/usage", get(usage::show))
        .route("/api/v1/usage/totals", get(usage::totals))
        .route("/v1/chat/completions", post(openai::chat_completions))
        .route("/v1/responses", post(openai::responses))
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v1/models", get(openai::models))
        .route("/healthz", get(ops::healthz))
        .route("/readyz", get(ops::readyz))
        .route("/metrics", get(ops::metrics))
        .route("/admin", get(ops::admin))
        .route("/admin/static/tollgate.css", get(ops::admin_style))
}
