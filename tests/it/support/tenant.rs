//! Tenants as test users: made by the command line, asking over HTTP.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use serde_json::{Value, json};

use super::{Answer, Tollgate, eventually};

/// A limit, as the command line takes it.
#[derive(Clone, Debug)]
pub(crate) struct LimitArgs(Vec<String>);

pub(crate) fn hard(value: i64) -> LimitArgs {
    LimitArgs(vec!["--hard".to_owned(), value.to_string()])
}

pub(crate) fn soft(value: i64) -> LimitArgs {
    LimitArgs(vec!["--soft".to_owned(), value.to_string()])
}

impl LimitArgs {
    fn with(mut self, flag: &str, value: &str) -> Self {
        self.0.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    pub(crate) fn scope(self, scope: &str) -> Self {
        self.with("--scope", scope)
    }

    pub(crate) fn window(self, window: &str) -> Self {
        self.with("--window", window)
    }
}

pub(crate) struct TenantBuilder<'a> {
    gate: &'a Tollgate,
    slug: String,
    limits: Vec<(String, LimitArgs)>,
    models: Option<String>,
}

/// A tenant on a plan of its own, `plan-SLUG`.
#[derive(Clone)]
pub(crate) struct Tenant {
    pub(crate) plan: String,
    pub(crate) key: String,
    /// Where requests go, one after the other.
    bases: Arc<[String]>,
    turn: Arc<AtomicUsize>,
    user: Option<String>,
    http: reqwest::Client,
}

static PLANS: AtomicU64 = AtomicU64::new(0);

impl<'a> TenantBuilder<'a> {
    pub(crate) fn new(gate: &'a Tollgate, slug: &str) -> Self {
        Self {
            gate,
            slug: slug.to_owned(),
            limits: Vec::new(),
            models: None,
        }
    }

    pub(crate) fn limit(mut self, feature: &str, limit: LimitArgs) -> Self {
        self.limits.push((feature.to_owned(), limit));
        self
    }

    pub(crate) fn allowed_models(mut self, patterns: &str) -> Self {
        self.models = Some(patterns.to_owned());
        self
    }

    pub(crate) async fn create(self) -> Tenant {
        let Self {
            gate,
            slug,
            limits,
            models,
        } = self;
        let plan = format!("plan-{slug}-{}", PLANS.fetch_add(1, Ordering::Relaxed));
        gate.cli_json(&["plan", "create", &plan, "--name", "Test"])
            .await;
        for feature in ["messages", "input_tokens", "output_tokens"] {
            if !limits.iter().any(|(limited, _)| limited == feature) {
                gate.cli_json(&["plan", "feature", "set", &plan, feature])
                    .await;
            }
        }
        for (feature, LimitArgs(arguments)) in &limits {
            let mut command = vec!["plan", "feature", "set", &plan, feature];
            command.extend(arguments.iter().map(String::as_str));
            gate.cli_json(&command).await;
        }
        if let Some(models) = &models {
            gate.cli_json(&["plan", "set", &plan, "--allowed-models", models])
                .await;
        }
        gate.cli_json(&["tenant", "create", &slug, "--name", &slug, "--plan", &plan])
            .await;
        let key = gate
            .cli_json(&["key", "create", &slug, "--name", "test"])
            .await["key"]
            .as_str()
            .unwrap()
            .to_owned();
        Tenant {
            plan,
            key,
            bases: gate.bases().into(),
            turn: Arc::default(),
            user: None,
            http: gate.http.clone(),
        }
    }
}

impl Tenant {
    /// A tenant that is there already.
    pub(crate) fn known(gate: &Tollgate, key: &str) -> Self {
        Self {
            plan: String::new(),
            key: key.to_owned(),
            bases: gate.bases().into(),
            turn: Arc::default(),
            user: None,
            http: gate.http.clone(),
        }
    }

    /// The same tenant at another address, as after a restart.
    pub(crate) fn at(&self, gate: &Tollgate) -> Self {
        Self {
            bases: gate.bases().into(),
            http: gate.http.clone(),
            ..self.clone()
        }
    }

    pub(crate) fn with_key(&self, key: &str) -> Self {
        Self {
            key: key.to_owned(),
            ..self.clone()
        }
    }

    pub(crate) fn with_user(&self, user: &str) -> Self {
        Self {
            user: Some(user.to_owned()),
            ..self.clone()
        }
    }

    pub(crate) fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let base = &self.bases[turn % self.bases.len()];
        let request = self
            .http
            .request(method, format!("{base}{path}"))
            .bearer_auth(&self.key);
        match &self.user {
            Some(user) => request.header("x-tollgate-user", user),
            None => request,
        }
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.try_post(path, body).await.expect("an answer")
    }

    pub(crate) async fn try_post(&self, path: &str, body: &Value) -> reqwest::Result<Answer> {
        loop {
            let request = self
                .request(reqwest::Method::POST, path)
                .body(body.to_string());
            let answer = Answer::try_read(request.send().await?).await?;
            if !self.is_undecided(&answer) {
                return Ok(answer);
            }
        }
    }

    /// Whether a busy machine took longer than replicas wait for what they share: nothing was done then.
    fn is_undecided(&self, answer: &Answer) -> bool {
        let is_one = self.bases.len() == 1;
        !is_one && answer.status == 503 && answer.code() == "usage_store_unavailable"
    }

    pub(crate) async fn chat(&self, message: &str) -> Answer {
        self.post("/api/v1/chat", &json!({ "message": message }))
            .await
    }

    /// `POST /v1/chat/completions` with one message, and what `more` says.
    pub(crate) async fn complete(&self, more: Value) -> Answer {
        self.post("/v1/chat/completions", &completion(more)).await
    }

    /// The same, as an open answer to read frame by frame.
    pub(crate) async fn open(&self, more: Value) -> reqwest::Response {
        let mut body = completion(more);
        body["stream"] = json!(true);
        let request = self
            .request(reqwest::Method::POST, "/v1/chat/completions")
            .body(body.to_string());
        request.send().await.expect("an answer")
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        loop {
            let request = self.request(reqwest::Method::GET, path);
            let answer = Answer::read(request.send().await.expect("an answer")).await;
            if !self.is_undecided(&answer) {
                return answer;
            }
        }
    }

    /// The item of one feature in `GET /api/v1/usage`.
    pub(crate) async fn usage(&self, feature: &str) -> Value {
        let body = self.get("/api/v1/usage").await.expect_ok().json();
        let items = body["features"].as_array().expect("a list").clone();
        items
            .into_iter()
            .find(|item| item["feature_key"] == feature)
            .unwrap_or_else(|| panic!("{feature}: {body}"))
    }

    pub(crate) async fn used(&self, feature: &str) -> i64 {
        self.usage(feature).await["used"]
            .as_i64()
            .expect("a number")
    }

    pub(crate) async fn reserved(&self, feature: &str) -> i64 {
        self.usage(feature).await["reserved"]
            .as_i64()
            .expect("a number")
    }

    /// The total of one feature over all time, from the store; of several servers, once all have brought theirs there.
    pub(crate) async fn total(&self, feature: &str) -> i64 {
        if self.bases.len() > 1 {
            for base in &*self.bases {
                eventually("its journal is drained", || async {
                    let metrics = self.http.get(format!("{base}/metrics"));
                    let text = metrics.send().await.ok()?.text().await.ok()?;
                    let is_drained = text.lines().any(|line| line == "usage_journal_pending 0");
                    is_drained.then_some(())
                })
                .await;
            }
        }
        let query = format!(
            "feature_key={feature}&period_start=2020-01-01T00:00:00Z&period_end=2100-01-01T00:00:00Z"
        );
        let body = self
            .get(&format!("/api/v1/usage/totals?{query}"))
            .await
            .expect_ok()
            .json();
        body["totals"][0]["quantity"]
            .as_i64()
            .unwrap_or_else(|| panic!("{body}"))
    }
}

fn completion(more: Value) -> Value {
    let mut body = json!({ "model": "gpt-5.1", "messages": [{ "role": "user", "content": "hi" }] });
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}
