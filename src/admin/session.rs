//! Signing in and out, and who is signed in.

use askama::Template;
use axum::{
    extract::{FromRequestParts, State},
    response::{IntoResponse as _, Response},
};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{RETRY_AFTER, SET_COOKIE},
    request::Parts,
};
use secrecy::ExposeSecret as _;

use super::{
    assets,
    form::Form,
    view::{self, PageResult, View},
};
use crate::{
    app::App,
    domain::administrator::Role,
    http::{
        admin::access::Admin,
        browser::{self, SESSION_COOKIE},
        error::ApiError,
        server::Peer,
    },
    services::sessions::{SignInError, Visitor},
};

/// As long as a session can last at all; when it is over is the server's to say.
const COOKIE_SECONDS: u32 = 7 * 24 * 3600;

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignInPage {
    /// Where to go then.
    next: String,
    /// What is wrong with the token; `""`: nothing.
    fault: String,
    /// What happened before; `""`: nothing.
    notice: &'static str,
}

impl FromRequestParts<App> for View {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Response> {
        let now = app.clock.now();
        let signed_in = match browser::session_secret(&parts.headers) {
            Some(secret) => app.sessions.find(secret, now).await,
            None => Ok(None),
        };
        let signed_in = signed_in.map_err(|error| ApiError::from(error).into_response())?;
        let Some(signed_in) = signed_in else {
            return Err(sign_in_first(parts));
        };
        let admin = Admin::at_work(signed_in.administrator, parts, Role::Viewer, now)
            .map_err(axum::response::IntoResponse::into_response)?;
        Ok(Self::new(
            admin.administrator,
            admin.actor,
            signed_in.session.session_id,
            parts,
        ))
    }
}

/// The sign-in page in place of the one asked for, which comes after it.
fn sign_in_first(parts: &Parts) -> Response {
    let is_home = parts.uri.path() == "/admin";
    let had_session = browser::session_secret(&parts.headers).is_some_and(|it| !it.is_empty());
    let next = match parts.uri.path_and_query() {
        Some(asked) if parts.method.is_safe() => asked.as_str(),
        Some(_) => parts.uri.path(),
        None => "",
    };
    let is_signed_out = parts.uri.query() == Some("done=signed-out");
    let page = SignInPage {
        notice: match (parts.method.is_safe(), had_session, is_signed_out) {
            (false, ..) => {
                "Your session is over, and nothing was changed. Sign in, and do it once more."
            }
            (true, true, _) => "Your session is over. Sign in again.",
            (true, false, true) => "You are signed out.",
            (true, false, false) => "",
        },
        next: if is_signed_out {
            String::new()
        } else {
            inside(next).to_owned()
        },
        fault: String::new(),
    };
    let status = if is_home {
        StatusCode::OK
    } else {
        StatusCode::UNAUTHORIZED
    };
    view::show_with(status, &page).into_response()
}

/// `next`, if it is a page of this server, else the first one.
fn inside(next: &str) -> &str {
    let is_page = next
        .strip_prefix("/admin")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || rest.starts_with('?'));
    let is_plain = next
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if is_page && is_plain { next } else { "/admin" }
}

/// `GET /admin/login`: where a form's address is opened by itself.
pub(super) async fn sign_in_page() -> PageResult {
    std::future::ready(view::go("/admin")).await
}

/// `POST /admin/login`.
#[utoipa::path(
    post, path = "/admin/login", tag = "operation",
    request_body(content = String, content_type = "application/x-www-form-urlencoded", description = "`token`: an administrator's"),
    responses(
        (status = 303, description = "Signed in: the session's cookie, and on to the page"),
        (status = 401, description = "Not an administrator's token", body = String, content_type = "text/html"),
        (status = 403, description = "Asked from another site than the page's own", body = String, content_type = "text/html"),
        (status = 429, description = "Too many wrong tokens from this address", body = String, content_type = "text/html"),
    ),
)]
pub(super) async fn sign_in(
    State(app): State<App>,
    headers: HeaderMap,
    peer: Option<axum::Extension<Peer>>,
    form: Form,
) -> PageResult {
    let visitor = Visitor {
        address: peer.map(|axum::Extension(Peer(address))| address.ip()),
        user_agent: browser::user_agent(&headers),
    };
    let next = inside(form.text("next"));
    let again = |status, fault: String| {
        let next = next.to_owned();
        view::show_with(
            status,
            &SignInPage {
                next,
                fault,
                notice: "",
            },
        )
    };
    let token = form.text("token");
    if token.is_empty() {
        let fault = "Enter a token: it begins with tga_, or is the one in TOLLGATE_ADMIN_TOKEN.";
        return again(StatusCode::UNAUTHORIZED, fault.to_owned());
    }
    match app.sessions.sign_in(token, &visitor, app.clock.now()).await {
        Ok((_, secret)) => {
            let mut response = view::go(next)?;
            set_cookie(
                &mut response,
                &headers,
                secret.expose_secret(),
                COOKIE_SECONDS,
            )?;
            Ok(response)
        }
        Err(SignInError::WrongToken) => {
            let fault = "This is not the token of an administrator, or it was revoked. \
                         A lost one is replaced by: tollgate admin-token create NAME --role owner";
            again(StatusCode::UNAUTHORIZED, fault.to_owned())
        }
        Err(SignInError::SlowDown { retry_after }) => {
            let seconds = retry_after.as_secs().max(1);
            let fault =
                format!("Too many wrong tokens came from your address. Try again in {seconds} s.");
            let mut response = again(StatusCode::TOO_MANY_REQUESTS, fault)?;
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
            Ok(response)
        }
        Err(SignInError::Store(error)) => Err(error.into()),
    }
}

/// `POST /admin/logout`.
#[utoipa::path(
    post, path = "/admin/logout", tag = "operation",
    responses(
        (status = 303, description = "Signed out: the cookie is gone, and on to the first page"),
        (status = 403, description = "Asked from another site than the page's own", body = String, content_type = "text/html"),
    ),
)]
pub(super) async fn sign_out(
    State(app): State<App>,
    headers: HeaderMap,
    view: Result<View, Response>,
) -> PageResult {
    if let Ok(view) = view {
        app.sessions.end(view.session_id, &view.actor).await?;
    }
    let mut response = view::go("/admin?done=signed-out")?;
    set_cookie(&mut response, &headers, "", 0)?;
    Ok(response)
}

fn set_cookie(
    response: &mut Response,
    headers: &HeaderMap,
    secret: &str,
    seconds: u32,
) -> Result<(), ApiError> {
    let secure = if browser::is_behind_tls(headers) {
        "; Secure"
    } else {
        ""
    };
    let cookie = format!(
        "{SESSION_COOKIE}={secret}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}"
    );
    let mut value = HeaderValue::from_str(&cookie).map_err(|_| ApiError::Internal)?;
    value.set_sensitive(true);
    response.headers_mut().insert(SET_COOKIE, value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_this_server_come_after_signing_in() {
        for (next, to) in [
            ("/admin/plans?x=1", "/admin/plans?x=1"),
            ("/admin", "/admin"),
            ("/administration", "/admin"),
            ("//elsewhere.example", "/admin"),
            ("https://elsewhere.example/admin", "/admin"),
            ("/admin/\\elsewhere", "/admin"),
            ("/admin/\r\nx", "/admin"),
            ("", "/admin"),
        ] {
            assert_eq!(inside(next), to, "{next}");
        }
    }
}
