//! Which headers cross tollgate on the `/v1` routes.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use memchr::memmem;

use crate::http::auth::bearer;

/// Those of one connection (RFC 9110 §7.6.1), and what frames a body.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "content-length"
            | "host"
            | "http2-settings"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Who a client is to its provider. Upstream that is the operator: a key goes nowhere else, and whose account pays is
/// not the client's to choose (OpenAI's SDKs name organization and project from the environment).
fn is_identity(name: &str) -> bool {
    matches!(
        name,
        "authorization" | "cookie" | "openai-organization" | "openai-project"
    )
}

/// A client's headers, without those that are the connection's, tollgate's or the tenant's secrets.
pub(super) fn for_upstream(headers: &HeaderMap) -> HeaderMap {
    let named = named_by_connection(headers);
    let key = bearer(headers).unwrap_or_default();
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let text = name.as_str();
        let is_ours = matches!(
            text,
            "idempotency-key" | "accept-encoding" | "expect" | "trailer" | "content-type"
        ) || text.starts_with("x-tollgate-");
        let is_dropped = is_ours
            || is_identity(text)
            || is_hop_by_hop(text)
            || named.contains(name)
            || holds(value, key);
        if !is_dropped {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

/// Whether a header says the key that the request came with: clients of several vendors' send theirs under each of
/// their names (`api-key`, `x-api-key`).
fn holds(value: &HeaderValue, key: &str) -> bool {
    // Most values are shorter than a key.
    !key.is_empty()
        && key.len() <= value.len()
        && memmem::find(value.as_bytes(), key.as_bytes()).is_some()
}

/// What tollgate says of a request itself (interface.md §3, Errors); an upstream that says it too, such as another tollgate,
/// says it of other limits.
fn is_tollgates(name: &str) -> bool {
    matches!(
        name,
        "ratelimit" | "ratelimit-policy" | "idempotent-replayed"
    ) || name.starts_with("x-usage-")
}

/// Takes out of an upstream's headers what concerns its connection or the operator's account there, and what is said
/// by tollgate alone.
pub(super) fn for_client(headers: &mut HeaderMap) {
    let named = named_by_connection(headers);
    let dropped: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let text = name.as_str();
            is_hop_by_hop(text)
                || named.contains(name)
                || matches!(
                    text,
                    "set-cookie" | "openai-organization" | "x-request-id" | "trailer"
                )
                || text.starts_with("x-ratelimit-")
                || is_tollgates(text)
        })
        .cloned()
        .collect();
    for name in dropped {
        headers.remove(name);
    }
}

fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        // Most say `keep-alive` or `close`, and those go anyway.
        .filter(|name| !matches!(*name, "keep-alive" | "close"))
        .filter_map(|name| name.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn secrets_and_the_connections_own_never_go_upstream() {
        let sent = for_upstream(&headers(&[
            ("authorization", "Bearer tg_x"),
            ("api-key", "tg_x"),
            ("x-api-key", "another"),
            ("x-foo", "Bearer tg_x;q=1"),
            ("cookie", "a=b"),
            ("openai-organization", "org-x"),
            ("openai-project", "proj_x"),
            ("idempotency-key", "k"),
            ("x-tollgate-user", "u"),
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("te", "trailers"),
            ("openai-beta", "assistants=v2"),
            ("x-stainless-lang", "python"),
        ]));
        let names: Vec<&str> = sent.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-api-key", "openai-beta", "x-stainless-lang"]);
        let without_a_key = for_upstream(&headers(&[("x-foo", "bar"), ("x-bar", "")]));
        assert_eq!(without_a_key.len(), 2);
    }

    #[test]
    fn neither_the_operators_account_nor_an_upstreams_own_limits_are_the_clients_to_see() {
        let mut answer = headers(&[
            ("set-cookie", "__cf=1"),
            ("x-ratelimit-limit-requests", "5"),
            ("openai-organization", "org"),
            ("openai-processing-ms", "12"),
            ("ratelimit", "\"messages\";r=9"),
            ("ratelimit-policy", "\"messages\";q=9"),
            ("x-usage-warning", "messages"),
            ("idempotent-replayed", "true"),
            ("retry-after", "7"),
            ("content-type", "application/json"),
        ]);
        for_client(&mut answer);
        let mut names: Vec<&str> = answer.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["content-type", "openai-processing-ms", "retry-after"]
        );
    }
}
