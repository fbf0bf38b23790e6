//! Windows are half-open and in UTC, and roll over by themselves. The program runs inside the test, on a clock that the
//! test moves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body};
use http_body_util::BodyExt;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tollgate::{
    app::App,
    clock::{Clock, ManualClock},
    config::Config,
    domain::{
        administrator::Actor, feature::FeatureKey, limit::Scope, quantity::Quantity,
        time::Timestamp, window::WindowKind,
    },
    http::router,
    services::{
        keys::{Keys, NewKey},
        plans::{Change, FeatureChange, NewPlan, Plans},
        recorder::Progress,
        tenants::{NewGrant, NewTenant, SubscriptionChange, Tenants},
    },
    store::SharedStore,
};
use tower::ServiceExt;

use super::Ground;

/// The program, or several that share what they count, in the test's process; they take turns.
pub(super) struct Inside {
    nodes: Vec<(App, Router)>,
    turn: AtomicUsize,
    pub(super) clock: Arc<ManualClock>,
    key: String,
    ground: Ground,
}

pub(super) fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

async fn open(ground: Ground, clock: Arc<ManualClock>, key: String) -> Inside {
    let mut nodes = Vec::new();
    for sources in ground.sources() {
        let sources = sources
            .with_flag("ENABLE_USAGE_GUARDRAILS", "true".to_owned())
            .with_flag("TOLLGATE_PROVIDER", "simulated".to_owned());
        let config = Config::load(&sources).unwrap().config;
        let app = App::open(config, Clock::Manual(Arc::clone(&clock)))
            .await
            .unwrap();
        let router = router::build(&app);
        nodes.push((app, router));
    }
    Inside {
        nodes,
        turn: AtomicUsize::new(0),
        clock,
        key,
        ground,
    }
}

impl Inside {
    /// A tenant whose plan has these hard limits of messages per window, from `now` on.
    pub(super) async fn start(now: &str, limits: &[(WindowKind, i64)]) -> Self {
        let mut inside = open(Ground::new(), ManualClock::at(at(now)), String::new()).await;
        let (store, by) = (inside.store(), inside.actor());
        let plans = Plans::new(store.clone());
        let plan = NewPlan {
            code: "timed".parse().unwrap(),
            name: "Timed".parse().unwrap(),
            preset: None,
            allowed_models: Default::default(),
            features: vec![],
        };
        plans.create(plan, &by).await.unwrap();
        for (window, hard) in limits {
            let change = FeatureChange {
                key: FeatureKey::Messages,
                scope: Scope::Tenant,
                window: *window,
                soft: Change::Keep,
                hard: Change::Set(Quantity::new(*hard)),
                unit: None,
                display_name: None,
                is_metered: None,
                stripe_meter: Change::Keep,
                alert_thresholds: Change::Keep,
            };
            plans
                .set_feature(&"timed".parse().unwrap(), &change, &by)
                .await
                .unwrap();
        }
        let tenant = NewTenant {
            slug: "acme".parse().unwrap(),
            name: "Acme".parse().unwrap(),
            plan_code: Some("timed".parse().unwrap()),
        };
        Tenants::new(store.clone())
            .create(tenant, &by)
            .await
            .unwrap();
        let key = NewKey {
            name: "test".parse().unwrap(),
            user: None,
            expires_at: None,
        };
        let issued = Keys::new(store)
            .create(&"acme".parse().unwrap(), key, &by)
            .await
            .unwrap();
        inside.key = issued.secret.expose_secret().to_owned();
        inside
    }

    pub(super) fn store(&self) -> SharedStore {
        self.nodes[0].0.store.clone()
    }

    /// Grants the tenant messages for a year.
    pub(super) async fn grant(&self, messages: i64) {
        let grant = NewGrant {
            feature: FeatureKey::Messages,
            quantity: Quantity::new(messages),
            reason: "test".to_owned(),
            expires_at: Some(at("2027-12-31T00:00:00Z")),
        };
        let tenants = Tenants::new(self.store());
        let (acme, actor) = ("acme".parse().unwrap(), self.actor());
        tenants.add_grant(&acme, grant, &actor).await.unwrap();
        self.poll().await;
    }

    /// All see what was changed.
    pub(super) async fn poll(&self) {
        for (app, _) in &self.nodes {
            app.catalogue.poll().await.unwrap();
        }
    }

    pub(super) async fn close(&self) {
        for (app, _) in &self.nodes {
            app.close().await;
        }
    }

    pub(super) fn actor(&self) -> Actor {
        Actor {
            name: "test".to_owned(),
            address: None,
            at: self.clock.now(),
        }
    }

    pub(super) fn is_of_several(&self) -> bool {
        self.nodes.len() > 1
    }

    /// What was used is in the store, and all see what that has changed.
    pub(super) async fn drain(&self) {
        for (app, _) in &self.nodes {
            while app.recorder.step().await.unwrap() != Progress::Idle {}
        }
        self.poll().await;
    }

    /// The program stops and starts again on what it left.
    async fn restart(self) -> Self {
        self.close().await;
        let Self {
            nodes,
            clock,
            key,
            ground,
            ..
        } = self;
        drop(nodes);
        open(ground, clock, key).await
    }

    async fn chat(&self) -> (u16, Value) {
        self.post("/api/v1/chat", json!({ "message": "hi" })).await
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let request = http::Request::post(path)
            .header("authorization", format!("Bearer {}", self.key))
            .body(Body::from(body.to_string()))
            .unwrap();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let (_, router) = &self.nodes[turn % self.nodes.len()];
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// How many of `tries` chats are answered.
    pub(super) async fn answered(&self, tries: usize) -> usize {
        let mut answered = 0;
        for _ in 0..tries {
            answered += usize::from(self.chat().await.0 == 200);
        }
        answered
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minute_ends_before_the_next_begins_and_nothing_leaks_into_it() {
    let inside = Inside::start("2026-11-24T14:40:00Z", &[(WindowKind::Minute, 3)]).await;
    inside.clock.set(at("2026-11-24T14:40:59.999999Z"));
    assert_eq!(inside.answered(5).await, 3);
    let (status, refused) = inside.chat().await;
    assert_eq!(
        (status, &refused["error"]["retry_after_seconds"]),
        (429, &json!(1))
    );
    assert_eq!(refused["error"]["window_end"], "2026-11-24T14:41:00Z");
    inside.clock.set(at("2026-11-24T14:41:00Z"));
    assert_eq!(
        inside.answered(5).await,
        3,
        "the end belongs to the next minute"
    );
    inside.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_period_of_the_31st_rolls_over_by_itself_with_and_without_a_restart() {
    let mut inside = Inside::start("2027-01-31T09:00:00Z", &[(WindowKind::Period, 2)]).await;
    for (now, end) in [
        ("2027-01-31T09:00:00Z", "2027-02-28T09:00:00Z"),
        ("2027-02-28T08:59:59Z", "2027-02-28T09:00:00Z"),
        ("2027-02-28T09:00:00Z", "2027-03-31T09:00:00Z"),
        ("2027-03-31T09:00:00Z", "2027-04-30T09:00:00Z"),
        ("2028-02-29T10:00:00Z", "2028-03-31T09:00:00Z"),
    ] {
        inside.clock.set(at(now));
        let expected = usize::from(now != "2027-02-28T08:59:59Z") * 2;
        assert_eq!(inside.answered(3).await, expected, "{now}");
        let (_, refused) = inside.chat().await;
        assert_eq!(refused["error"]["window_end"], end, "{now}");
        inside = inside.restart().await;
        assert_eq!(
            inside.answered(1).await,
            0,
            "{now}: a restart forgets nothing"
        );
    }
    inside.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_of_every_kind_hold_together_and_each_resets_alone() {
    let limits = [
        (WindowKind::Hour, 2),
        (WindowKind::Day, 3),
        (WindowKind::Lifetime, 4),
    ];
    let inside = Inside::start("2026-11-24T23:30:00Z", &limits).await;
    assert_eq!(inside.answered(3).await, 2, "the hour");
    inside.clock.set(at("2026-11-24T23:59:59Z"));
    assert_eq!(inside.answered(1).await, 0);
    inside.clock.set(at("2026-11-25T00:00:00Z"));
    assert_eq!(
        inside.answered(3).await,
        2,
        "a new hour of a new day, and the lifetime's last two"
    );
    inside.clock.set(at("2026-12-25T00:00:00Z"));
    let (status, refused) = inside.chat().await;
    assert_eq!(
        (status, &refused["error"]["window"]),
        (429, &json!("lifetime"))
    );
    inside.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_belongs_to_the_window_its_request_was_admitted_in() {
    let inside = Inside::start("2026-11-24T14:40:59.9Z", &[(WindowKind::Minute, 1)]).await;
    let (_, first) = inside.chat().await;
    assert_eq!(
        first["guardrail"]["features"][0]["window_end"],
        "2026-11-24T14:41:00Z"
    );
    inside.clock.advance(Duration::from_millis(100));
    let (status, second) = inside.chat().await;
    assert_eq!(
        (status, &second["guardrail"]["features"][0]["used"]),
        (200, &json!(1))
    );
    inside.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_a_grant_carries_over_and_what_was_burned_does_not() {
    let inside = Inside::start("2027-01-01T00:00:00Z", &[(WindowKind::Period, 2)]).await;
    inside.grant(5).await;
    inside.clock.advance(Duration::from_secs(1));
    for _ in 0..5 {
        assert_eq!(inside.chat().await.0, 200);
    }
    inside.clock.set(at("2027-02-01T00:00:00Z"));
    assert_eq!(
        inside.answered(10).await,
        4,
        "two of the plan, and the two that are left of the grant"
    );
    if inside.is_of_several() {
        inside.drain().await; // as it is long before a month has passed
    }
    inside.clock.set(at("2027-03-01T00:00:00Z"));
    assert_eq!(inside.answered(10).await, 2, "the grant is used up");
    inside.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_past_due_runs_for_seven_days() {
    let inside = Inside::start("2027-01-01T00:00:00Z", &[(WindowKind::Period, 100)]).await;
    let change = SubscriptionChange {
        status: tollgate::services::tenants::StatusChange::Set("past_due".parse().unwrap()),
        ..SubscriptionChange::default()
    };
    let tenants = Tenants::new(inside.store());
    tenants
        .subscribe(&"acme".parse().unwrap(), &change, &inside.actor())
        .await
        .unwrap();
    inside.poll().await;
    inside.clock.set(at("2027-01-07T23:59:59Z"));
    assert_eq!(inside.chat().await.0, 200);
    inside.clock.set(at("2027-01-08T00:00:00Z"));
    let (status, refused) = inside.chat().await;
    assert_eq!(
        (status, &refused["error"]["code"]),
        (402, &json!("subscription_inactive"))
    );
    inside.close().await;
}
