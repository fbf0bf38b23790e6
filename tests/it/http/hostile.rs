//! A table of hostile requests: each with what is sent, and the status and code it is answered with. Afterwards the
//! server answers as before, its memory has not grown, and its log holds no secret.

use crate::http::support::{Tollgate, admin::BOOTSTRAP_TOKEN, tenant::Tenant};

const OWNER: &str = BOOTSTRAP_TOKEN;
/// What the second run of the table may add: buffers that the allocator keeps, not what requests leave behind.
const MOST_GROWTH_KIB: u64 = 8 * 1024;

struct Case {
    method: &'static str,
    target: String,
    headers: Vec<String>,
    body: Vec<u8>,
    status: u16,
    /// Empty for a bare answer of the HTTP library.
    code: &'static str,
}

fn case(method: &'static str, target: impl Into<String>, status: u16, code: &'static str) -> Case {
    Case {
        method,
        target: target.into(),
        headers: vec![format!("authorization: Bearer {OWNER}")],
        body: Vec::new(),
        status,
        code,
    }
}

impl Case {
    fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    fn header(mut self, header: impl Into<String>) -> Self {
        self.headers.push(header.into());
        self
    }

    fn only_headers(mut self, headers: &[String]) -> Self {
        self.headers = headers.to_vec();
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut head = format!(
            "{} {} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n",
            self.method, self.target
        );
        for header in &self.headers {
            head.push_str(header);
            head.push_str("\r\n");
        }
        let announced = self
            .headers
            .iter()
            .any(|header| header.starts_with("content-length"));
        if !announced {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }

    fn shown(&self) -> String {
        let body: String = String::from_utf8_lossy(&self.body)
            .chars()
            .take(80)
            .collect();
        format!("{} {} {body:?}", self.method, self.target)
    }
}

/// Paths that mean another one to a program which is careless with them.
fn path_tricks() -> Vec<Case> {
    let mut cases = Vec::new();
    for path in [
        "/healthz",
        "/metrics",
        "/openapi.json",
        "/api/v1/usage",
        "/api/v1/admin/plans",
        "/api/v1/admin/plans/acme-plan",
        "/api/v1/admin/tenants/acme",
        "/api/v1/admin/tenants/acme/keys",
        "/api/v1/admin/audit",
        "/v1/models",
    ] {
        let (parent, name) = path.rsplit_once('/').unwrap();
        for trick in [
            format!("{path}/"),
            format!("{path};x=1"),
            format!("{path}%00"),
            format!("{path}%2f"),
            format!("{path}%2F..%2Fmetrics"),
            format!("{parent}//{name}"),
            format!("{parent}/%2e%2e/{name}"),
            format!("{parent}/./{name}"),
            format!("{parent}/x/../{name}"),
            format!("{parent}/%ff"),
            format!("{parent}/{}", "a".repeat(2_000)),
        ] {
            let code = if trick.starts_with("/v1") {
                "endpoint_not_metered"
            } else {
                "not_found"
            };
            cases.push(case("GET", trick, 404, code));
        }
    }
    cases
}

/// Whoever has no administrator's token.
fn wrong_tokens(acme: &Tenant) -> Vec<Case> {
    let bearer = |token: &str| format!("authorization: Bearer {token}");
    let headers = [
        vec![],
        vec![bearer("")],
        vec![bearer("x")],
        vec![bearer(&acme.key)],
        vec![bearer(&format!("tga_{}", "A".repeat(43)))],
        vec![bearer(&"A".repeat(8_000))],
        vec![format!("authorization: Basic {OWNER}")],
        vec![bearer(OWNER), bearer("x")],
        vec![format!("x-api-key: {OWNER}")],
        vec![format!("cookie: session={OWNER}")],
    ];
    let mut cases = Vec::new();
    for (method, path) in [
        ("GET", "/plans"),
        ("POST", "/plans"),
        ("DELETE", "/plans/acme-plan"),
        ("PUT", "/plans/acme-plan/features/messages"),
        ("GET", "/tenants/acme"),
        ("DELETE", "/tenants/acme"),
        ("DELETE", "/tenants/acme/users/bob"),
        ("POST", "/tenants/acme/keys"),
        ("GET", "/usage"),
        ("GET", "/audit"),
        ("GET", "/status"),
        ("POST", "/admin-tokens"),
    ] {
        for headers in &headers {
            let target = format!("/api/v1/admin{path}");
            cases.push(case(method, target, 401, "invalid_api_key").only_headers(headers));
        }
    }
    // And an administrator's token is no tenant's.
    for (method, path) in [
        ("POST", "/api/v1/chat"),
        ("POST", "/api/v1/chat/stream"),
        ("GET", "/api/v1/usage"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
    ] {
        cases.push(case(method, path, 401, "invalid_api_key"));
    }
    cases
}

fn wrong_methods() -> Vec<Case> {
    let mut cases = Vec::new();
    for (path, methods) in [
        ("/healthz", ["POST", "DELETE", "OPTIONS", "BREW"]),
        ("/openapi.json", ["POST", "DELETE", "OPTIONS", "BREW"]),
        ("/api/v1/chat", ["GET", "PUT", "OPTIONS", "TRACE"]),
        ("/api/v1/usage", ["POST", "DELETE", "OPTIONS", "TRACE"]),
        ("/v1/chat/completions", ["GET", "PUT", "OPTIONS", "TRACE"]),
        ("/api/v1/admin/plans", ["PUT", "DELETE", "OPTIONS", "BREW"]),
        ("/api/v1/admin/plans/p", ["POST", "PUT", "OPTIONS", "TRACE"]),
        ("/api/v1/admin/tenants", ["PUT", "PATCH", "OPTIONS", "BREW"]),
        ("/api/v1/admin/audit", ["POST", "DELETE", "OPTIONS", "PUT"]),
    ] {
        for method in methods {
            cases.push(case(method, path, 405, "method_not_allowed"));
        }
    }
    cases
}

const WRITES: [(&str, &str); 10] = [
    ("POST", "/plans"),
    ("PATCH", "/plans/acme-plan"),
    ("PUT", "/plans/acme-plan/features/seats"),
    ("POST", "/tenants"),
    ("PATCH", "/tenants/acme"),
    ("PUT", "/tenants/acme/subscription"),
    ("POST", "/tenants/acme/keys"),
    ("POST", "/tenants/acme/grants"),
    ("PUT", "/tenants/acme/limits/messages"),
    ("POST", "/admin-tokens"),
];

fn unreadable_bodies(acme: &Tenant) -> Vec<Case> {
    let deep = format!("{{\"x\":{}{}}}", "[".repeat(128), "]".repeat(128));
    let bodies: [&[u8]; 13] = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"\"text\"",
        b"{\"name\":\"a\",\"name\":\"b\"}",
        b"{\"name\":\"a\"} {}",
        b"{\"name\":\"\xff\"}",
        b"\xef\xbb\xbf{}",
        b"\0{}",
        b"{'name':'a'}",
        deep.as_bytes(),
    ];
    let mut cases = Vec::new();
    for body in bodies {
        for (method, path) in WRITES {
            let target = format!("/api/v1/admin{path}");
            cases.push(case(method, target, 400, "invalid_request").body(body));
        }
        let key = [format!("authorization: Bearer {}", acme.key)];
        for path in ["/api/v1/chat", "/v1/chat/completions"] {
            let case = case("POST", path, 400, "invalid_request");
            cases.push(case.only_headers(&key).body(body));
        }
    }
    cases
}

fn bad_values() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut bad = |method, path: &str, body: String| {
        let target = format!("/api/v1/admin{path}");
        cases.push(case(method, target, 422, "invalid_request").body(body));
    };
    for number in [
        "-1",
        "1.5",
        "1e3",
        "1e400",
        "9007199254740992",
        "9223372036854775808",
        "18446744073709551616",
        "\"5\"",
        "true",
        "[]",
        "{}",
    ] {
        for field in ["soft_limit", "hard_limit"] {
            let body = format!("{{\"{field}\":{number}}}");
            bad("PUT", "/plans/acme-plan/features/seats", body.clone());
            bad("PUT", "/tenants/acme/limits/messages", body);
        }
        let grant =
            format!("{{\"feature_key\":\"messages\",\"reason\":\"r\",\"quantity\":{number}}}");
        bad("POST", "/tenants/acme/grants", grant);
    }
    let long = format!("\"{}\"", "n".repeat(201));
    for name in [
        "\"\"",
        long.as_str(),
        "\"a\\nb\"",
        "\"\\u0000\"",
        "\"\\ud800\"",
        "7",
        "[]",
    ] {
        bad(
            "POST",
            "/plans",
            format!("{{\"plan_code\":\"x\",\"name\":{name}}}"),
        );
        bad(
            "POST",
            "/tenants",
            format!("{{\"slug\":\"x\",\"name\":{name}}}"),
        );
        bad("PATCH", "/tenants/acme", format!("{{\"name\":{name}}}"));
        bad("POST", "/tenants/acme/keys", format!("{{\"name\":{name}}}"));
        bad(
            "POST",
            "/admin-tokens",
            format!("{{\"role\":\"viewer\",\"name\":{name}}}"),
        );
    }
    for slug in ["", "A", "a b", "../x", "a/b", "ä", "a\\u0000", "-a", "ten_"] {
        if slug != "ten_" {
            bad(
                "POST",
                "/tenants",
                format!("{{\"name\":\"x\",\"slug\":\"{slug}\"}}"),
            );
        }
        bad(
            "POST",
            "/plans",
            format!("{{\"name\":\"x\",\"plan_code\":\"{slug}\",\"x\":1}}"),
        );
    }
    for time in [
        "yesterday",
        "2026-13-01T00:00:00Z",
        "2020-01-01T00:00:00Z",
        "",
        "99999999999999",
    ] {
        bad(
            "POST",
            "/tenants/acme/keys",
            format!("{{\"name\":\"k\",\"expires_at\":\"{time}\"}}"),
        );
        let limit = format!("{{\"hard_limit\":1,\"until\":\"{time}\"}}");
        bad("PUT", "/tenants/acme/limits/messages", limit);
    }
    for list in ["/plans", "/tenants", "/admin-tokens", "/audit", "/usage"] {
        for query in [
            "limit=0",
            "limit=501",
            "limit=-1",
            "limit=x",
            "limit=1&limit=2",
            "cursor=!",
            "cursor=AAAA%00",
            "x=1",
            "%00=1",
            "limit=99999999999999999999",
        ] {
            bad("GET", &format!("{list}?{query}"), String::new());
        }
    }
    cases
}

fn odd_heads() -> Vec<Case> {
    let mut cases = Vec::new();
    for (method, path) in WRITES {
        let target = format!("/api/v1/admin{path}");
        let packed = case(method, target.clone(), 415, "unsupported_media_type").body("{}");
        cases.push(packed.header("content-encoding: gzip"));
        let large = case(method, target, 413, "body_too_large");
        cases.push(large.header("content-length: 99999999999"));
    }
    for tags in ["\"1\", \"2\"", "\"1\",\"1\""] {
        let case = case(
            "PATCH",
            "/api/v1/admin/plans/acme-plan",
            422,
            "invalid_request",
        );
        cases.push(case.header(format!("if-match: {tags}")).body("{}"));
    }
    for tag in ["W/\"1\"", "\"x\"", "\"-1\"", "\"99999999999999999999\"", ""] {
        for path in ["plans/acme-plan", "tenants/acme"] {
            let target = format!("/api/v1/admin/{path}");
            let case = case("PATCH", target, 412, "version_conflict");
            cases.push(case.header(format!("if-match: {tag}")).body("{}"));
        }
    }
    let long = "a".repeat(70_000);
    cases.push(case("GET", "/healthz", 431, "").header(format!("x: {long}")));
    // RFC 9112 §3.2.3: the form of a CONNECT, which nothing here answers.
    cases.push(case("GET", "no-slash", 404, "not_found"));
    for target in ["/a b", "/\u{7f}"] {
        cases.push(case("GET", target, 400, ""));
    }
    for header in ["content-length: -1", "content-length: 1, 2", "no colon"] {
        cases.push(case("GET", "/healthz", 400, "").header(header));
    }
    cases
}

async fn run(gate: &Tollgate, cases: &[Case]) -> Vec<String> {
    let mut wrong = Vec::new();
    for case in cases {
        let mut connection = gate.address.raw().await;
        connection.write_bytes(&case.bytes()).await;
        let answer = connection.read_to_end().await;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        let code = answer.split("\"code\":\"").nth(1).unwrap_or_default();
        let code = code.split('"').next().unwrap_or_default();
        if (status, code) != (case.status.to_string().as_str(), case.code) {
            let expected = (case.status, case.code);
            wrong.push(format!(
                "{}: {status} {code}, not {expected:?}",
                case.shown()
            ));
        }
        if answer.contains(OWNER) {
            wrong.push(format!("{}: the answer holds the token", case.shown()));
        }
    }
    wrong
}

#[tokio::test]
async fn five_hundred_hostile_requests_are_answered_as_documented_and_leave_nothing_behind() {
    let gate = Tollgate::serve().start().await;
    let acme = gate.tenant("acme").create().await;
    let before = gate.owner().all("/audit", 500).await.len();
    let groups = [
        path_tricks(),
        wrong_tokens(&acme),
        wrong_methods(),
        unreadable_bodies(&acme),
        bad_values(),
        odd_heads(),
    ];
    let cases: Vec<Case> = groups.into_iter().flatten().collect();
    assert!(cases.len() >= 500, "{} cases", cases.len());
    let wrong = run(&gate, &cases).await;
    assert!(
        wrong.is_empty(),
        "{} are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );

    let resident = gate.resident_kib();
    assert!(run(&gate, &cases).await.is_empty());
    let grown = gate.resident_kib().saturating_sub(resident);
    assert!(grown < MOST_GROWTH_KIB, "memory grew by {grown} KiB");

    assert_eq!(
        gate.owner().all("/audit", 500).await.len(),
        before,
        "something was changed"
    );
    acme.chat("hi").await.expect_ok();
    let log = gate.log_text();
    for secret in [OWNER, acme.key.as_str(), "tga_", "tg_", "panicked"] {
        assert!(!log.contains(secret), "the log holds {secret}:\n{log}");
    }
}
