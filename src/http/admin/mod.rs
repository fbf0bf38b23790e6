//! The administration API, `/api/v1/admin/*` (interface.md §4): a file a resource.
//!
//! A handler names who may call it by its first argument ([`access::Viewer`], [`access::Operator`],
//! [`access::Owner`]), takes apart path, query and body, calls one service, and answers with an object of
//! `services::objects`. What it changed holds on this node before its answer is out: see [`then_refresh`].

pub mod access;
mod admin_tokens;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::app::App;

/// The routes, below `/api/v1/admin`.
#[must_use]
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(admin_tokens::list, admin_tokens::create))
        .routes(routes!(admin_tokens::revoke))
}

/// Has the caches drop what a request changed, before its answer says that it is done.
pub async fn then_refresh(State(app): State<App>, request: Request, next: Next) -> Response {
    let changes = !request.method().is_safe();
    let response = next.run(request).await;
    if changes && response.status().is_success() {
        app.refresh().await;
    }
    response
}
