//! The program in one life after the other, on one directory: opened, asked, killed, opened again.

use std::{
    fs,
    path::Path,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use axum::{Router, body::Body};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use tokio::{
    runtime::{self, Runtime},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::JoinHandle,
};
use tollgate::{
    app::{App, Ground},
    clock::{Clock, ManualClock},
    config::{Config, sources::Sources},
    domain::{
        administrator::Actor,
        feature::FeatureKey,
        ids::{KeyId, TenantId},
        quantity::Quantity,
        tenant::TenantRef,
        time::Timestamp,
    },
    http::router,
    journal::Journal,
    provider::{Endpoint, request::RequestLook, tokens},
    services::{
        keys::{Keys, NewKey},
        plans::{Change, FeatureChange, NewPlan, Plans},
        tenants::{NewTenant, SubscriptionChange, Tenants},
    },
    store::sqlite::SqliteStore,
};

use super::{
    faults::Power,
    model::{self, FEATURES, Limit, Need, Placed, Who},
    ops::{Ask, Kind},
    provider::{Line, MODEL, Scripted, WORD},
};

pub(super) const PLANS: [&str; 2] = ["small", "wide"];
pub(super) const SLUGS: [&str; 2] = ["acme", "beta"];
pub(super) const USERS: [&str; 3] = ["", "ann", "bob"];
/// The second key of each tenant belongs to one user.
pub(super) const KEYS_USER: &str = "kim";
const CREATED_AT: &str = "2026-01-31T07:00:00Z";
/// Longer than anything takes on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// How the program is set up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    pub(super) fails: &'static str,
    pub(super) totals: &'static str,
    pub(super) threads: usize,
}

/// A data directory with plans, tenants and keys, which every world begins with a copy of.
pub(super) struct Template {
    directory: tempfile::TempDir,
    pub(super) tenants: Vec<TenantId>,
    pub(super) keys: Vec<Vec<(KeyId, String)>>,
}

/// The secret of each key of each tenant.
pub(super) type Secrets = Vec<Vec<String>>;

/// Those that every world begins with.
pub(super) fn secrets() -> Secrets {
    let of_tenant = |keys: &Vec<(KeyId, String)>| keys.iter().map(|(_, it)| it.clone()).collect();
    TEMPLATE.keys.iter().map(of_tenant).collect()
}

pub(super) static TEMPLATE: LazyLock<Template> = LazyLock::new(make_template);

/// Where nothing waits for a disk, if there is such a place.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    match tempfile::tempdir_in(memory) {
        Ok(directory) => directory,
        Err(_) => tempfile::tempdir().unwrap(),
    }
}

pub(super) fn feature(index: usize) -> FeatureKey {
    FEATURES[index].parse().unwrap()
}

pub(super) fn tenant_ref(tenant: usize) -> TenantRef {
    TenantRef::Id(TEMPLATE.tenants[tenant])
}

pub(super) fn change_of(limit: &Limit) -> FeatureChange {
    FeatureChange {
        key: feature(limit.feature),
        scope: limit.scope,
        window: limit.window,
        soft: Change::Keep,
        hard: limit
            .hard
            .map_or(Change::Clear, |hard| Change::Set(Quantity::new(hard))),
        unit: None,
        display_name: None,
        is_metered: None,
        stripe_meter: Change::Keep,
        alert_thresholds: Change::Keep,
    }
}

fn make_template() -> Template {
    let directory = directory();
    let setting = Setting {
        fails: "open",
        totals: "redb",
        threads: 1,
    };
    let clock = ManualClock::at(CREATED_AT.parse().unwrap());
    let life = Life::open(directory.path(), &clock, setting, Secrets::new());
    let (tenants, keys) = life.rt.block_on(fill(&life.app));
    life.rt.block_on(life.app.close());
    drop(life);
    Template {
        directory,
        tenants,
        keys,
    }
}

async fn fill(app: &App) -> (Vec<TenantId>, Vec<Vec<(KeyId, String)>>) {
    let by = actor(app.clock.now());
    let (plans, tenants) = (
        Plans::new(app.store.clone()),
        Tenants::new(app.store.clone()),
    );
    for (code, limits) in PLANS.iter().zip(super::play::plans()) {
        let plan = NewPlan {
            code: code.parse().unwrap(),
            name: (*code).parse().unwrap(),
            preset: None,
            allowed_models: Default::default(),
            features: vec![],
        };
        plans.create(plan, &by).await.unwrap();
        for limit in limits {
            plans
                .set_feature(&code.parse().unwrap(), &change_of(&limit), &by)
                .await
                .unwrap();
        }
    }
    let (mut ids, mut secrets) = (Vec::new(), Vec::new());
    let periods = [
        (model::MONTHLY_FROM, "2026-02-28T00:00:00Z"),
        (model::TEN_DAYS_FROM, "2026-02-10T06:30:00Z"),
    ];
    for (index, (begin, end)) in periods.into_iter().enumerate() {
        let tenant = NewTenant {
            slug: SLUGS[index].parse().unwrap(),
            name: SLUGS[index].parse().unwrap(),
            plan_code: Some(PLANS[index].parse().unwrap()),
        };
        let id = tenants.create(tenant, &by).await.unwrap().tenant_id;
        let period = SubscriptionChange {
            period_start: Some(begin.parse().unwrap()),
            period_end: Some(end.parse().unwrap()),
            ..SubscriptionChange::default()
        };
        tenants
            .subscribe(&TenantRef::Id(id), &period, &by)
            .await
            .unwrap();
        ids.push(id);
        let mut of_tenant = Vec::new();
        for user in [None, Some(KEYS_USER.to_owned())] {
            let key = NewKey {
                name: "key".parse().unwrap(),
                user,
                expires_at: None,
            };
            let keys = Keys::new(app.store.clone());
            let issued = keys.create(&TenantRef::Id(id), key, &by).await.unwrap();
            of_tenant.push((issued.key.key_id, issued.secret.expose_secret().to_owned()));
        }
        secrets.push(of_tenant);
    }
    (ids, secrets)
}

pub(super) fn actor(at: Timestamp) -> Actor {
    Actor {
        name: "simulation".to_owned(),
        address: None,
        at,
    }
}

/// A copy of the template to begin with.
pub(super) fn fresh_directory() -> tempfile::TempDir {
    let directory = directory();
    for entry in fs::read_dir(TEMPLATE.directory.path()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, directory.path().join(path.file_name().unwrap())).unwrap();
    }
    directory
}

/// The process from its start to its end.
pub(super) struct Life {
    pub(super) power: Arc<Power>,
    pub(super) provider: Arc<Scripted>,
    pub(super) app: App,
    pub(super) router: Router,
    pub(super) rt: Runtime,
    pub(super) secrets: Secrets,
}

impl Life {
    pub(super) fn open(
        directory: &Path,
        clock: &Arc<ManualClock>,
        setting: Setting,
        secrets: Secrets,
    ) -> Self {
        let rt = match setting.threads {
            1 => runtime::Builder::new_current_thread().enable_all().build(),
            threads => runtime::Builder::new_multi_thread()
                .worker_threads(threads)
                .enable_all()
                .build(),
        };
        let rt = rt.unwrap();
        let sources = Sources::none()
            .with_flag("TOLLGATE_DATA_DIR", directory.display().to_string())
            .with_flag("ENABLE_USAGE_GUARDRAILS", "true".to_owned())
            .with_flag("USAGE_GUARDRAIL_FAIL_MODE", setting.fails.to_owned())
            .with_flag("USAGE_GUARDRAIL_CACHE_BACKEND", setting.totals.to_owned());
        let config = Config::load(&sources).unwrap().config;
        let (power, provider) = (Power::on(), Arc::new(Scripted::default()));
        let clock = Clock::Manual(Arc::clone(clock));
        let journal = directory.join("cache.redb");
        let store = directory.join("tollgate.db");
        let ground = Ground {
            store: Arc::new(SqliteStore::open_with(&store, power.store_faults()).unwrap()),
            journal: Journal::open_with(&journal, power.opener(), &clock).unwrap(),
            provider: Arc::clone(&provider) as _,
        };
        let app = rt.block_on(App::open_on(ground, config, clock)).unwrap();
        rt.block_on(app.catalogue.poll()).unwrap();
        Self {
            power,
            provider,
            router: router::build(&app),
            app,
            rt,
            secrets,
        }
    }

    /// Ends it without a word: what is in memory is gone, what was written is there.
    pub(super) fn kill(self) {
        self.power.cut();
        let journal = self.app.recorder.journal().clone();
        self.rt.block_on(journal.close()); // its thread can write nothing any more, but has the file open
        let Self {
            app, router, rt, ..
        } = self;
        drop(rt); // with every task in it
        drop((router, app, journal));
    }

    /// Waits until `condition` holds.
    pub(super) fn until(&self, what: &str, condition: impl Fn(&App) -> bool) -> Result<(), String> {
        let begun = Instant::now();
        self.rt.block_on(async {
            loop {
                for _ in 0..20 {
                    if condition(&self.app) {
                        return Ok(());
                    }
                    tokio::task::yield_now().await;
                }
                if begun.elapsed() > PATIENCE {
                    return Err(format!("not within {PATIENCE:?}: {what}"));
                }
                tokio::time::sleep(Duration::from_micros(100)).await;
            }
        })
    }

    /// Where a request goes, its prompt and its body.
    fn said(name: &str, ask: Ask) -> (&'static str, String, Bytes) {
        let prompt = format!("{name}{}", WORD.repeat(ask.prompt));
        let (path, body) = match ask.kind {
            Kind::ChatWhole | Kind::ChatStream => {
                let path = if ask.kind == Kind::ChatWhole {
                    "/api/v1/chat"
                } else {
                    "/api/v1/chat/stream"
                };
                (
                    path,
                    json!({"message": prompt, "max_output_tokens": ask.maximum}),
                )
            }
            Kind::V1Whole | Kind::V1Stream => {
                let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": prompt}],
                    "stream": ask.kind == Kind::V1Stream});
                if let Some(maximum) = ask.maximum {
                    body["max_tokens"] = json!(maximum);
                }
                ("/v1/chat/completions", body)
            }
        };
        (path, prompt, Bytes::from(body.to_string()))
    }

    /// Sends a request; what comes back can be waited for.
    pub(super) fn send(&self, name: String, ask: Ask, at: i64) -> Run {
        let (path, prompt, body) = Self::said(&name, ask);
        let (need, estimate) = need(ask, &prompt, &body);
        let who = who(ask);
        let line = self.provider.expect(&name);
        let mut request = self
            .request((ask.tenant, ask.key, who.user), path)
            .header("x-request-id", &name);
        if ask.is_keyed {
            request = request.header("idempotency-key", &name);
        }
        let request = request.body(Body::from(body));
        Run {
            client: self.client(request.unwrap()),
            line,
            who,
            at,
            need,
            estimate,
            name,
            ask,
            maximum: None,
            limits: Vec::new(),
            words: 0,
            is_gone: false,
            is_held: false,
        }
    }

    /// Sends a request with its key again: the status, whether it is a replay, and the answer.
    pub(super) fn repeat(&self, name: &str, ask: Ask) -> (StatusCode, bool, String) {
        let (path, _, body) = Self::said(name, ask);
        let request = self
            .request((ask.tenant, ask.key, who(ask).user), path)
            .header("idempotency-key", name)
            .body(Body::from(body));
        self.rt.block_on(async {
            use tower::ServiceExt as _;
            let response = self.router.clone().oneshot(request.unwrap()).await.unwrap();
            let status = response.status();
            let is_replay = response.headers().contains_key("idempotent-replayed");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            (
                status,
                is_replay,
                String::from_utf8_lossy(&body).into_owned(),
            )
        })
    }

    fn client(&self, request: Request<Body>) -> Client {
        let router = self.router.clone();
        let (sender, events) = unbounded_channel();
        let task = self.rt.spawn(async move {
            use tower::ServiceExt as _;
            let response = router.oneshot(request).await.unwrap();
            drop(sender.send(Seen::Head(response.status())));
            let mut body = response.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                if let Ok(data) = frame.into_data() {
                    drop(sender.send(Seen::Data(data)));
                }
            }
            drop(sender.send(Seen::End));
        });
        Client {
            task,
            events,
            head: None,
            text: String::new(),
            has_ended: false,
        }
    }

    /// Of a tenant, with one of its keys, for a user.
    fn request(
        &self,
        (tenant, key, user): (usize, usize, &str),
        path: &str,
    ) -> http::request::Builder {
        let secret = &self.secrets[tenant][key];
        Request::post(path)
            .header("authorization", format!("Bearer {secret}"))
            .header("x-tollgate-user", user)
    }

    /// Sends JSON, named so that it can be told from others; the status and what came back.
    pub(super) fn post(
        &self,
        who: (usize, usize, &str),
        name: &str,
        path: &str,
        body: &Value,
    ) -> (StatusCode, Value) {
        let request = self.request(who, path).header("x-request-id", name);
        self.answer(request.body(Body::from(body.to_string())).unwrap())
    }

    pub(super) fn delete(&self, who: (usize, usize, &str), path: &str) -> StatusCode {
        let request = self.request(who, path).method("DELETE");
        self.answer(request.body(Body::empty()).unwrap()).0
    }

    /// A question that nothing stands in the way of.
    pub(super) fn get(&self, who: (usize, usize, &str), path: &str) -> (StatusCode, Value) {
        let request = self.request(who, path).method("GET").body(Body::empty());
        self.answer(request.unwrap())
    }

    fn answer(&self, request: Request<Body>) -> (StatusCode, Value) {
        self.rt.block_on(async {
            use tower::ServiceExt as _;
            let response = self.router.clone().oneshot(request).await.unwrap();
            let status = response.status();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            (status, serde_json::from_slice(&body).unwrap_or_default())
        })
    }
}

pub(super) fn who(ask: Ask) -> Who {
    Who {
        tenant: ask.tenant,
        key: Some(ask.key),
        user: if ask.key == 1 {
            KEYS_USER
        } else {
            USERS[ask.user]
        },
    }
}

/// Everyone who may ask.
pub(super) fn everyone() -> impl Iterator<Item = Who> {
    let whose = |tenant| {
        let users = USERS.iter().map(move |user| (tenant, 0, *user));
        users.chain([(tenant, 1, KEYS_USER)])
    };
    let all = (0..SLUGS.len()).flat_map(whose);
    all.map(|(tenant, key, user)| Who {
        tenant,
        key: Some(key),
        user,
    })
}

/// What a request needs by the design's bounds, and what its input is estimated at.
fn need(ask: Ask, prompt: &str, body: &Bytes) -> (Need, i64) {
    let count = |text: &str| tokens::count(MODEL, text);
    let (bound, tokenized, estimate) = match ask.kind {
        Kind::V1Whole | Kind::V1Stream => {
            let look = RequestLook::read(Endpoint::ChatCompletions, body.clone()).unwrap();
            let all = [
                look.input_bound(),
                look.tokenized_input(count),
                look.estimated_input(count),
            ];
            let [bound, tokenized, estimate] = all.map(Quantity::get);
            (bound, tokenized, estimate)
        }
        Kind::ChatWhole | Kind::ChatStream => {
            let tokens = count(prompt).get();
            let bytes = i64::try_from(prompt.len()).unwrap();
            (bytes + 16 + 64, tokens + 2 * 16, tokens + 2 * 3)
        }
    };
    let need = Need {
        bound,
        tokenized,
        named: ask.maximum,
    };
    (need, estimate)
}

/// What a client has seen of its answer.
enum Seen {
    Head(StatusCode),
    Data(Bytes),
    End,
}

pub(super) struct Client {
    task: JoinHandle<()>,
    events: UnboundedReceiver<Seen>,
    pub(super) head: Option<StatusCode>,
    pub(super) text: String,
    pub(super) has_ended: bool,
}

impl Client {
    /// Takes the next thing that comes.
    async fn see(&mut self) {
        match self.events.recv().await {
            Some(Seen::Head(status)) => self.head = Some(status),
            Some(Seen::Data(data)) => self.text.push_str(&String::from_utf8_lossy(&data)),
            Some(Seen::End) => self.has_ended = true,
            None => std::future::pending().await, // hung up
        }
    }

    /// Words of a stream that have come.
    pub(super) fn words(&self) -> i64 {
        let frames = self.text.split("\n\n");
        let is_word = |frame: &&str| {
            frame.contains(r#""content":" word""#) || frame.contains(r#""delta":" word""#)
        };
        i64::try_from(frames.filter(is_word).count()).unwrap()
    }
}

/// A request in flight.
pub(super) struct Run {
    pub(super) name: String,
    pub(super) ask: Ask,
    pub(super) who: Who,
    pub(super) at: i64,
    pub(super) need: Need,
    pub(super) estimate: i64,
    pub(super) client: Client,
    pub(super) line: Line,
    /// The maximum that the model was given.
    pub(super) maximum: Option<i64>,
    /// The limits that it was admitted under.
    pub(super) limits: Vec<Placed>,
    pub(super) words: i64,
    pub(super) is_gone: bool,
    pub(super) is_held: bool,
}

/// What became of a request at first.
#[derive(Debug)]
pub(super) enum Begun {
    /// The model was called, with this maximum.
    Called(Option<i64>),
    Refused(StatusCode, String),
}

impl Run {
    pub(super) fn is_stream(&self) -> bool {
        matches!(self.ask.kind, Kind::ChatStream | Kind::V1Stream)
    }

    pub(super) fn begun(&mut self, life: &Life) -> Result<Begun, String> {
        let Self { client, line, .. } = self;
        let called = life.rt.block_on(async {
            let refused = async {
                while !client.has_ended {
                    client.see().await;
                }
            };
            let begun = async {
                tokio::select! {
                    called = &mut line.called => Some(called.unwrap()),
                    () = refused => None,
                }
            };
            tokio::time::timeout(PATIENCE, begun).await
        });
        match called.map_err(|_| format!("{} was neither called nor refused", self.name))? {
            Some(maximum) => Ok(Begun::Called(maximum)),
            None => {
                let body: Value = serde_json::from_str(&self.client.text).unwrap_or_default();
                let code = body["error"]["code"].as_str().unwrap_or_default();
                Ok(Begun::Refused(self.client.head.unwrap(), code.to_owned()))
            }
        }
    }

    /// Waits until the client has so many words of a stream, or its end.
    pub(super) fn sees(&mut self, life: &Life, words: i64) -> Result<(), String> {
        let client = &mut self.client;
        let seen = async {
            while !client.has_ended && client.words() < words {
                client.see().await;
            }
        };
        let seen = life
            .rt
            .block_on(async { tokio::time::timeout(PATIENCE, seen).await });
        seen.map_err(|_| format!("{} waits for its answer: {}", self.name, self.client.text))
    }

    /// Waits until the client has all of its answer.
    pub(super) fn sees_end(&mut self, life: &Life) -> Result<(), String> {
        self.sees(life, i64::MAX)
    }

    /// Whether the client has its answer, or its stream the end.
    pub(super) fn is_answered(&self) -> bool {
        let text = &self.client.text;
        let is_whole = match self.ask.kind {
            Kind::ChatWhole | Kind::V1Whole => true,
            Kind::ChatStream => text.contains(r#""kind":"final""#),
            Kind::V1Stream => text.contains("data: [DONE]"),
        };
        self.client.has_ended && self.client.head == Some(StatusCode::OK) && is_whole
    }

    pub(super) fn hang_up(&mut self, life: &Life) {
        self.client.task.abort();
        // Until its end of the connection is closed.
        drop(life.rt.block_on(&mut self.client.task));
        self.is_gone = true;
    }
}
