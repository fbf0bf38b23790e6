//! Who is signed in at the page, and ending that.

use askama::Template;
use axum::extract::State;

use super::{
    assets,
    form::Form,
    format,
    view::{self, PageResult, View},
};
use crate::{
    app::App,
    domain::{administrator::Role, ids::SessionId},
    http::error::{self, ApiError},
    services::sessions::SignedIn,
};

#[derive(Template)]
#[template(path = "sessions.html")]
struct SessionsPage<'a> {
    view: &'a View,
    /// An owner sees and ends those of everybody, others their own.
    sessions: Vec<SignedIn>,
}

/// `GET /admin/sessions`.
pub(super) async fn list(State(app): State<App>, view: View) -> PageResult {
    let sessions = visible(&app, &view).await?;
    view::show(&SessionsPage {
        view: &view,
        sessions,
    })
}

/// `POST /admin/sessions`: ends the one in `session`.
pub(super) async fn end(State(app): State<App>, view: View, form: Form) -> PageResult {
    let Ok(id) = form.text("session").parse::<SessionId>() else {
        return Err(error::nothing_at("/admin/sessions"));
    };
    let visible = visible(&app, &view).await?;
    if !visible.iter().any(|it| it.session.session_id == id) {
        return Err(ApiError::NotFound(format!("session '{id}'")));
    }
    app.sessions.end(id, &view.actor).await?;
    view::done("/admin/sessions", "session-ended")
}

async fn visible(app: &App, view: &View) -> Result<Vec<SignedIn>, ApiError> {
    let mut sessions = app.sessions.list(view.now).await?;
    let own = view.administrator.admin_token_id;
    let sees_all = view.administrator.may(Role::Owner);
    sessions.retain(|it| sees_all || it.session.admin_token_id == own);
    Ok(sessions)
}
