//! What every page has: who looks at it, the frame around it, the answer to a change, and failures as pages.

use askama::Template;
use axum::response::{Html, IntoResponse, Response};
use http::{HeaderValue, StatusCode, header::LOCATION, request::Parts};

use super::assets;
use crate::{
    domain::{
        administrator::{Actor, Role},
        ids::SessionId,
        names::Slug,
        time::Timestamp,
    },
    http::{
        Dialect, browser,
        error::{ApiError, ApiResult},
    },
    services::administrators::Administrator,
};

pub(super) type PageResult = ApiResult<Response>;

/// Somebody who is signed in and looks at a page: there is none without.
pub(super) struct View {
    pub(super) administrator: Administrator,
    pub(super) actor: Actor,
    pub(super) session_id: SessionId,
    pub(super) now: Timestamp,
    path: String,
    /// Where the browser reaches this server, such as `http://127.0.0.1:8080`.
    base: String,
    /// Whose first steps the address says are to be shown.
    first: Option<Slug>,
    /// What was just done, to be said once.
    pub(super) done: Option<&'static str>,
}

/// What the address may say was done, and what the page then says: no text comes from the address itself.
const DONE: [(&str, &str); 23] = [
    ("saved", "Saved. It holds from the next request on."),
    (
        "unchanged",
        "Nothing was changed: it was like that already.",
    ),
    ("created", "Created."),
    ("deleted", "Deleted."),
    ("removed", "Removed. It holds from the next request on."),
    ("undone", "Undone. It holds from the next request on."),
    (
        "revoked",
        "Revoked. It is refused from the next request on.",
    ),
    ("renamed", "Renamed."),
    ("granted", "Granted. It can be used at once."),
    ("grant-ended", "The grant is over."),
    ("subscribed", "The subscription was changed."),
    (
        "canceled",
        "The subscription is canceled: requests are refused.",
    ),
    (
        "corrected",
        "Corrected. The correction is listed among the events.",
    ),
    (
        "reset",
        "Reset: its limits count from now until their windows end.",
    ),
    (
        "limit-set",
        "The tenant's own limit holds from the next request on.",
    ),
    ("limit-removed", "The plan's limit holds again."),
    ("session-ended", "The session is over."),
    ("signed-out", "You are signed out."),
    ("released", "Released: what it held is free again."),
    ("replayed", "It is sent again."),
    (
        "applied-again",
        "It was applied again; what Stripe said later stays in force.",
    ),
    (
        "not-given-up",
        "It had been sent by then, or is being sent: nothing is to be done.",
    ),
    (
        "ended-before",
        "It had ended by then: it holds nothing any more.",
    ),
];

impl View {
    pub(super) fn new(
        administrator: Administrator,
        actor: Actor,
        session_id: SessionId,
        parts: &Parts,
    ) -> Self {
        let query = parts.uri.query();
        Self {
            now: actor.at,
            administrator,
            actor,
            session_id,
            path: parts.uri.path().to_owned(),
            base: browser::base(&parts.headers),
            first: query.and_then(|query| parameter(query, "first")?.parse().ok()),
            done: query.and_then(done_of),
        }
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    pub(super) fn first(&self) -> Option<Slug> {
        self.first.clone()
    }

    /// Whoever changes plans, tenants and keys.
    pub(super) fn is_operator(&self) -> bool {
        self.administrator.may(Role::Operator)
    }

    /// As the audit log names an administrator who may change plans, tenants and keys.
    ///
    /// # Errors
    /// [`ApiError::Forbidden`].
    pub(super) fn operator(&self) -> ApiResult<&Actor> {
        self.acting_as(Role::Operator)
    }

    pub(super) fn is_owner(&self) -> bool {
        self.administrator.may(Role::Owner)
    }

    /// As the audit log names an administrator who may make and end others.
    ///
    /// # Errors
    /// [`ApiError::Forbidden`].
    pub(super) fn owner(&self) -> ApiResult<&Actor> {
        self.acting_as(Role::Owner)
    }

    fn acting_as(&self, needed: Role) -> ApiResult<&Actor> {
        if self.administrator.may(needed) {
            return Ok(&self.actor);
        }
        Err(ApiError::Forbidden {
            needed,
            has: self.administrator.role,
        })
    }

    /// Whether the page of the navigation is the one looked at, or above it.
    pub(super) fn is_at(&self, page: &str) -> bool {
        match self.path.strip_prefix(page) {
            Some("") => true,
            Some(rest) => rest.starts_with('/') && page != "/admin",
            None => false,
        }
    }
}

fn done_of(query: &str) -> Option<&'static str> {
    let code = parameter(query, "done")?;
    DONE.iter()
        .find(|(known, _)| *known == code)
        .map(|(_, text)| *text)
}

fn parameter(query: &str, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

/// The page.
pub(super) fn show(page: &impl Template) -> PageResult {
    show_with(StatusCode::OK, page)
}

/// The page again, with what is wrong.
pub(super) fn mend(page: &impl Template) -> PageResult {
    show_with(StatusCode::UNPROCESSABLE_ENTITY, page)
}

pub(super) fn show_with(status: StatusCode, page: &impl Template) -> PageResult {
    match page.render() {
        Ok(text) => Ok((status, Html(text)).into_response()),
        Err(error) => {
            tracing::error!(%error, "a page can't be drawn");
            Err(ApiError::Internal)
        }
    }
}

/// To the page at `path`, by GET, where `done` (a code of [`DONE`]) is said.
pub(super) fn done(path: &str, done: &str) -> PageResult {
    debug_assert!(DONE.iter().any(|(known, _)| *known == done), "{done}");
    go(&format!("{path}?done={done}"))
}

/// To the page at `path`, by GET.
pub(super) fn go(path: &str) -> PageResult {
    let location = HeaderValue::from_str(path).map_err(|_| ApiError::Internal)?;
    Ok((StatusCode::SEE_OTHER, [(LOCATION, location)]).into_response())
}

/// A failure, with a way on.
#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage {
    heading: &'static str,
    message: String,
}

/// `error` as a page.
pub(super) fn failure(error: &ApiError) -> Response {
    let status = error.status(Dialect::Native);
    let heading = match status {
        StatusCode::NOT_FOUND => "There is nothing here",
        StatusCode::FORBIDDEN => "Not allowed",
        StatusCode::SERVICE_UNAVAILABLE => "Not at the moment",
        StatusCode::TOO_MANY_REQUESTS => "Slow down",
        _ if status.is_server_error() => "Something went wrong",
        _ => "That did not work",
    };
    let page = ErrorPage {
        heading,
        message: error.message(),
    };
    (
        status,
        Html(page.render().unwrap_or_else(|_| error.message())),
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_said_in_words_of_the_page() {
        assert!(done_of("a=b&done=saved").unwrap().starts_with("Saved"));
        assert_eq!(done_of("done=<b>"), None);
        assert_eq!(done_of(""), None);
    }

    #[test]
    fn a_failure_is_escaped_and_offers_a_way_on() {
        let page = ErrorPage {
            heading: "x",
            message: "There is no plan '<script>'.".to_owned(),
        };
        let text = page.render().unwrap();
        assert!(
            !text.contains("<script>'") && text.contains("href=\"/admin\""),
            "{text}"
        );
    }
}
