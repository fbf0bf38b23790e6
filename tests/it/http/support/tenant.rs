//! Test users: made through the command line, their methods are requests.

use bytes::Bytes;
use http::{Method, Request, request};
use http_body_util::Full;
use serde_json::{Value, json};

use super::{
    gate::Tollgate,
    http::{Address, EventStream, Reply},
};

/// One limit of a plan, as its command takes it.
#[derive(Clone, Debug, Default)]
pub(in crate::http) struct LimitSpec {
    soft: Option<i64>,
    hard: Option<i64>,
    scope: Option<&'static str>,
    window: Option<&'static str>,
}

pub(in crate::http) fn hard(value: i64) -> LimitSpec {
    LimitSpec {
        hard: Some(value),
        ..LimitSpec::default()
    }
}

pub(in crate::http) fn soft(value: i64) -> LimitSpec {
    LimitSpec {
        soft: Some(value),
        ..LimitSpec::default()
    }
}

impl LimitSpec {
    pub(in crate::http) fn and_hard(self, value: i64) -> Self {
        Self {
            hard: Some(value),
            ..self
        }
    }

    /// `key` or `user`.
    pub(in crate::http) fn of_each(self, scope: &'static str) -> Self {
        Self {
            scope: Some(scope),
            ..self
        }
    }

    pub(in crate::http) fn per(self, window: &'static str) -> Self {
        Self {
            window: Some(window),
            ..self
        }
    }

    fn flags(&self) -> Vec<String> {
        let mut flags = Vec::new();
        for (flag, value) in [("--soft", self.soft), ("--hard", self.hard)] {
            flags.extend(
                value
                    .map(|value| [flag.to_owned(), value.to_string()])
                    .into_iter()
                    .flatten(),
            );
        }
        for (flag, value) in [("--scope", self.scope), ("--window", self.window)] {
            flags.extend(
                value
                    .map(|value| [flag.to_owned(), value.to_owned()])
                    .into_iter()
                    .flatten(),
            );
        }
        flags
    }
}

/// A tenant about to be made, on a plan of its own.
pub(in crate::http) struct TenantBuilder<'a> {
    gate: &'a Tollgate,
    slug: &'a str,
    limits: Vec<(&'a str, LimitSpec)>,
}

impl<'a> TenantBuilder<'a> {
    pub(super) fn new(gate: &'a Tollgate, slug: &'a str) -> Self {
        Self {
            gate,
            slug,
            limits: Vec::new(),
        }
    }

    pub(in crate::http) fn limit(mut self, feature: &'a str, limit: LimitSpec) -> Self {
        self.limits.push((feature, limit));
        self
    }

    pub(in crate::http) async fn create(self) -> Tenant {
        let plan = format!("{}-plan", self.slug);
        let run = async |arguments: &[&str]| self.gate.cli(arguments).await.expect_ok();
        run(&["plan", "create", &plan, "--name", &plan]).await;
        for (feature, limit) in &self.limits {
            let flags = limit.flags();
            let mut arguments = vec!["plan", "feature", "set", plan.as_str(), *feature];
            arguments.extend(flags.iter().map(String::as_str));
            run(&arguments).await;
        }
        run(&[
            "tenant", "create", self.slug, "--name", self.slug, "--plan", &plan,
        ])
        .await;
        let key = run(&[
            "key", "create", self.slug, "--name", "test", "--output", "json",
        ])
        .await
        .json();
        Tenant {
            address: self.gate.address.clone(),
            plan,
            key: key["key"].as_str().unwrap().to_owned(),
            user: None,
        }
    }
}

/// Someone with a key.
#[derive(Clone, Debug)]
pub(in crate::http) struct Tenant {
    address: Address,
    pub(in crate::http) plan: String,
    pub(in crate::http) key: String,
    user: Option<String>,
}

impl Tenant {
    /// The same tenant, on behalf of an end user.
    pub(in crate::http) fn as_user(&self, user: &str) -> Self {
        Self {
            user: Some(user.to_owned()),
            ..self.clone()
        }
    }

    /// The same address, with another key.
    pub(in crate::http) fn with_key(&self, key: &str) -> Self {
        Self {
            key: key.to_owned(),
            ..self.clone()
        }
    }

    pub(in crate::http) async fn chat(&self, message: &str) -> Reply {
        self.post("/api/v1/chat", &json!({ "message": message }))
            .await
    }

    pub(in crate::http) async fn chat_stream(&self, message: &str) -> EventStream {
        self.open("/api/v1/chat/stream", &json!({ "message": message }))
            .await
    }

    /// `POST /v1/chat/completions`; what the body leaves out is filled in.
    pub(in crate::http) async fn completion(&self, body: Value) -> Reply {
        self.post("/v1/chat/completions", &completed(body)).await
    }

    /// The same as a stream.
    pub(in crate::http) async fn stream(&self, body: Value) -> EventStream {
        let mut body = completed(body);
        body["stream"] = true.into();
        self.open("/v1/chat/completions", &body).await
    }

    pub(in crate::http) async fn usage(&self) -> Reply {
        self.send(self.request(Method::GET, "/api/v1/usage"), "")
            .await
    }

    /// One feature of `GET /api/v1/usage`: its first limit.
    pub(in crate::http) async fn usage_of(&self, feature: &str) -> Value {
        let usage = self.usage().await.expect_ok();
        let features = usage.body["features"].as_array().unwrap();
        features
            .iter()
            .find(|item| item["feature_key"] == feature)
            .unwrap_or_else(|| panic!("no {feature} in {}", usage.text))
            .clone()
    }

    pub(in crate::http) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(self.request(Method::POST, path), body.to_string())
            .await
    }

    async fn open(&self, path: &str, body: &Value) -> EventStream {
        let body = Full::from(body.to_string());
        self.address
            .open(self.request(Method::POST, path).body(body).unwrap())
            .await
    }

    /// A request with the tenant's key, to add to.
    pub(in crate::http) fn request(&self, method: Method, path: &str) -> request::Builder {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {}", self.key))
            .header("content-type", "application/json");
        if let Some(user) = &self.user {
            request = request.header("x-tollgate-user", user);
        }
        request
    }

    pub(in crate::http) async fn send(
        &self,
        request: request::Builder,
        body: impl Into<Bytes>,
    ) -> Reply {
        self.address
            .send(request.body(Full::new(body.into())).unwrap())
            .await
    }
}

fn completed(mut body: Value) -> Value {
    let fields = body.as_object_mut().expect("a request is an object");
    fields.entry("model").or_insert("gpt-5.1".into());
    fields
        .entry("messages")
        .or_insert(json!([{ "role": "user", "content": "hi" }]));
    body
}

#[test]
fn a_limit_becomes_the_flags_of_its_command() {
    let flags = soft(3).and_hard(5).of_each("user").per("day").flags();
    assert_eq!(
        flags.join(" "),
        "--soft 3 --hard 5 --scope user --window day"
    );
    assert_eq!(hard(1).flags().join(" "), "--hard 1");
}
