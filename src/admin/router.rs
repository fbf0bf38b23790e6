//! Every page, in one list, and what holds around all of them.

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
    routing::get,
};
use http::{
    HeaderName, HeaderValue, Uri,
    header::{
        CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
        X_FRAME_OPTIONS,
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    administrators, assets, audit, in_flight, outbox, overview, plan, plans, session, sessions,
    status, tenant, tenants, view,
};
use crate::{
    app::App,
    http::{
        browser,
        error::{self, ApiError},
        request_id::RequestId,
    },
};

/// The pages; [`finish`] goes around them.
#[must_use]
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(overview::show))
        .route("/admin/", get(session::sign_in_page))
        .route(
            "/admin/start",
            get(session::sign_in_page).post(overview::change),
        )
        .routes(routes!(session::sign_in))
        .route("/admin/login", get(session::sign_in_page))
        .routes(routes!(session::sign_out))
        .route("/admin/logout", get(session::sign_in_page))
        .route("/admin/static/{file}", get(assets::show))
        .route("/admin/plans", get(plans::list).post(plans::create))
        .route("/admin/plans/{code}", get(plan::show).post(plan::change))
        .route("/admin/tenants", get(tenants::list).post(tenants::create))
        .route("/admin/tenants/{t}", get(tenant::show).post(tenant::change))
        .route("/admin/tenants/{t}/usage", get(tenant::usage))
        .route("/admin/tenants/{t}/events", get(tenant::events))
        .route("/admin/tenants/{t}/statement", get(tenant::statement))
        .route(
            "/admin/in-flight",
            get(in_flight::list).post(in_flight::release),
        )
        .route("/admin/in-flight/live", get(in_flight::live))
        .route("/admin/outbox", get(outbox::list).post(outbox::replay))
        .route("/admin/audit", get(audit::list).post(audit::undo))
        .route(
            "/admin/administrators",
            get(administrators::list).post(administrators::change),
        )
        .route("/admin/sessions", get(sessions::list).post(sessions::end))
        .route("/admin/status", get(status::show))
        .route("/admin/{*rest}", get(nothing))
}

async fn nothing(uri: Uri) -> ApiError {
    std::future::ready(error::nothing_at(uri.path())).await
}

/// Refuses changes that another site's page asks for, has caches drop what was changed, writes failures as pages, and
/// adds the headers of every page: nothing is loaded from elsewhere, nothing is kept, nobody frames it.
pub async fn finish(State(app): State<App>, request: Request, next: Next) -> Response {
    const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
                          base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
    let changes = !request.method().is_safe();
    let request_id = request.extensions().get::<RequestId>().cloned();
    let mut response = if browser::is_ours(request.method(), request.headers()) {
        next.run(request).await
    } else {
        ApiError::CrossSite.into_response()
    };
    if changes && (response.status().is_success() || response.status().is_redirection()) {
        app.refresh().await;
    }
    if let Some(error) = error::take(&mut response) {
        if let Some(id) = &request_id {
            error.log(id);
        }
        let page = view::failure(&error);
        let (parts, body) = page.into_parts();
        *response.status_mut() = parts.status;
        response.headers_mut().extend(parts.headers);
        *response.body_mut() = body;
    }
    let headers = response.headers_mut();
    let fixed: [(HeaderName, &str); 4] = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "same-origin"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}
