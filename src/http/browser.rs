//! What a browser says of itself and of where a request comes from: the cookie of the admin page, and its origin.

use http::{
    HeaderMap, HeaderName, Method,
    header::{COOKIE, HOST, ORIGIN, USER_AGENT},
};

/// The cookie that holds a session's secret.
pub const SESSION_COOKIE: &str = "tollgate_session";

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The secret in the session's cookie; the first, if a browser sends several of that name.
#[must_use]
pub fn session_secret(headers: &HeaderMap) -> Option<&str> {
    let lines = headers.get_all(COOKIE).iter();
    let pairs = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'));
    pairs
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == SESSION_COOKIE)
        .map(|(_, secret)| secret)
}

/// Whether a request with a session's cookie may be taken: it changes nothing, or a page of this very server sent it.
///
/// Browsers say so themselves and let no page forge it: `Sec-Fetch-Site`, or, from those that do not know it (and over
/// plain HTTP to another machine, where it is not sent), an `Origin` equal to the `Host`.
#[must_use]
pub fn is_ours(method: &Method, headers: &HeaderMap) -> bool {
    if method.is_safe() {
        return true;
    }
    if let Some(site) = headers.get(SEC_FETCH_SITE) {
        return site == "same-origin";
    }
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let origin = text(ORIGIN).and_then(|origin| origin.split_once("://"));
    match (origin, text(HOST)) {
        (Some((_, origin)), Some(host)) => origin.eq_ignore_ascii_case(host),
        _ => false,
    }
}

/// Whether the browser speaks TLS, to a proxy in front: as the proxy says, or as the browser's own origin does.
#[must_use]
pub fn is_behind_tls(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let forwarded = text(X_FORWARDED_PROTO).and_then(|protocols| protocols.split(',').next());
    forwarded.is_some_and(|protocol| protocol.trim().eq_ignore_ascii_case("https"))
        || text(ORIGIN).is_some_and(|origin| origin.starts_with("https://"))
}

/// Where the browser reaches this server, such as `https://gate.example`.
#[must_use]
pub fn base(headers: &HeaderMap) -> String {
    let scheme = if is_behind_tls(headers) {
        "https"
    } else {
        "http"
    };
    let host = headers.get(HOST).and_then(|value| value.to_str().ok());
    format!("{scheme}://{}", host.unwrap_or("127.0.0.1:8080"))
}

/// As the browser calls itself; `""` if it does not.
#[must_use]
pub fn user_agent(headers: &HeaderMap) -> String {
    let text = headers
        .get(USER_AGENT)
        .and_then(|value| value.to_str().ok());
    text.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                http::HeaderValue::from_static(value),
            )
        });
        pairs.collect()
    }

    #[test]
    fn the_sessions_cookie_is_found_among_others() {
        for (line, secret) in [
            ("tollgate_session=tgs_a", Some("tgs_a")),
            ("a=b; tollgate_session=tgs_a; c=d", Some("tgs_a")),
            ("x_tollgate_session=tgs_a", None),
            ("tollgate_session", None),
            ("", None),
        ] {
            assert_eq!(
                session_secret(&headers(&[("cookie", line)])),
                secret,
                "{line}"
            );
        }
    }

    #[test]
    fn only_pages_of_this_server_change_things() {
        for (pairs, is_taken) in [
            (&[("sec-fetch-site", "same-origin")][..], true),
            (&[("sec-fetch-site", "same-site")], false),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "none")], false),
            (
                &[("origin", "https://a.example"), ("host", "a.example")],
                true,
            ),
            (
                &[("origin", "http://A.example:80"), ("host", "a.example:80")],
                true,
            ),
            (
                &[("origin", "https://b.example"), ("host", "a.example")],
                false,
            ),
            (&[("origin", "null"), ("host", "a.example")], false),
            (
                &[
                    ("sec-fetch-site", "cross-site"),
                    ("origin", "http://a.example"),
                    ("host", "a.example"),
                ],
                false,
            ),
            (&[("host", "a.example")], false),
        ] {
            let headers = headers(pairs);
            assert_eq!(is_ours(&Method::POST, &headers), is_taken, "{pairs:?}");
            assert!(is_ours(&Method::GET, &headers));
        }
    }

    #[test]
    fn tls_is_what_the_proxy_or_the_browsers_origin_says() {
        for (pairs, is_tls) in [
            (&[("x-forwarded-proto", "https")][..], true),
            (&[("x-forwarded-proto", "https, http")], true),
            (&[("x-forwarded-proto", "http")], false),
            (&[("origin", "https://a.example")], true),
            (&[("origin", "http://a.example")], false),
            (&[], false),
        ] {
            assert_eq!(is_behind_tls(&headers(pairs)), is_tls, "{pairs:?}");
        }
    }
}
