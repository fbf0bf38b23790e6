//! The administration API, `/api/v1/admin/*` (interface.md §4): a file a resource.
//!
//! A handler names who may call it by its first argument ([`access::Viewer`], [`access::Operator`],
//! [`access::Owner`]), takes apart path, query and body, calls one service, and answers with an object of
//! `services::objects`. What it changed holds on this node before its answer is out: see [`then_refresh`].

pub mod access;
mod admin_tokens;
mod audit;
mod bodies;
mod entitlements;
mod grants;
mod keys;
mod limits;
mod outbox;
mod plans;
mod records;
mod report;
mod reservations;
mod status;
mod tenants;
mod usage;

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
        .routes(routes!(records::events))
        .routes(routes!(records::statement))
        .routes(routes!(records::correct))
        .routes(routes!(records::reset))
        .routes(routes!(records::explain))
        .routes(routes!(reservations::list))
        .routes(routes!(reservations::release))
        .routes(routes!(plans::list, plans::create))
        .routes(routes!(plans::show, plans::change, plans::delete))
        .routes(routes!(plans::put_feature, plans::delete_feature))
        .routes(routes!(tenants::list, tenants::create))
        .routes(routes!(tenants::show, tenants::change, tenants::delete))
        .routes(routes!(tenants::subscribe))
        .routes(routes!(tenants::forget_user))
        .routes(routes!(keys::list, keys::create))
        .routes(routes!(keys::change, keys::revoke))
        .routes(routes!(keys::rotate))
        .routes(routes!(grants::list, grants::create))
        .routes(routes!(grants::revoke))
        .routes(routes!(limits::show, limits::put, limits::remove))
        .routes(routes!(usage::of_tenant))
        .routes(routes!(usage::totals))
        .routes(routes!(usage::of_all))
        .routes(routes!(entitlements::sync))
        .routes(routes!(report::json))
        .routes(routes!(report::csv))
        .routes(routes!(audit::list))
        .routes(routes!(outbox::list))
        .routes(routes!(outbox::replay))
        .routes(routes!(outbox::alerts))
        .routes(routes!(status::show))
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
