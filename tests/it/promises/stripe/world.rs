//! The program in the test's process, with its clock in the test's hand, and a Stripe that runs by the same clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tollgate::{
    app::{App, Ground},
    billing::stripe::{
        MeterSender, Pushed, Received, ReconcileAsk, Reconciled, Stripe, WebhookError,
    },
    clock::{Clock, ManualClock},
    config::{Config, sources::Sources},
    domain::{
        administrator::Actor, feature::FeatureKey, ids::EventId, quantity::Quantity,
        subscription::Subscription, tenant::TenantRef, time::Timestamp, window::Window,
    },
    services::{
        ManualRecord, UsageOperations as _,
        outbox::{Outbox, Progress},
        plans::{Change, FeatureChange, NewPlan, Plans},
        reporting::Correction,
        tenants::{NewTenant, SubscriptionChange, Tenants},
    },
    store::{
        SharedStore,
        outbox::{Kind, OutboxEntry, OutboxFilter},
        postgres::{PostgresStore, PostgresUrl},
        sqlite::{Moment, SqliteStore},
        stripe::Which,
    },
};

use crate::support::{
    Database,
    stripe::{FakeStripe, KEY, WEBHOOK_SECRET, event, signed},
};

pub(super) const NOON: &str = "2026-11-24T12:00:00Z";
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub(super) struct World {
    pub(super) app: App,
    pub(super) stripe: Arc<FakeStripe>,
    pub(super) clock: Arc<ManualClock>,
    /// How many of the next attempts end without being noted, as if the process died.
    dies: Arc<AtomicU32>,
    /// What is recorded has a key of its own, on all servers.
    keys: Arc<AtomicU64>,
    _directory: tempfile::TempDir,
}

impl World {
    /// Stripe with a meter `msgs`, a plan `pro` whose messages count on it, and a tenant `acme`, customer `cus_acme`.
    pub(super) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(super) async fn start_with(settings: &[(&'static str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let dies = Arc::new(AtomicU32::new(0));
        let dying = Arc::clone(&dies);
        let store = SqliteStore::open_with(
            &directory.path().join("tollgate.db"),
            Arc::new(move |operation, moment| {
                let strikes = operation == "outbox.finish" && moment == Moment::Before;
                let left = |count: u32| count.checked_sub(1);
                if strikes
                    && dying
                        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, left)
                        .is_ok()
                {
                    return Err("the power is gone".to_owned());
                }
                Ok(())
            }),
        )
        .unwrap();
        let clock = ManualClock::at(at(NOON));
        let stripe = FakeStripe::start_with(Clock::Manual(Arc::clone(&clock))).await;
        let stripe = Arc::new(stripe);
        let world = Self {
            dies,
            ..Self::open(Arc::new(store), directory, stripe, clock, settings).await
        };
        world.furnish().await;
        world
    }

    /// Two servers on one database, the second one's clock `ahead` of the first one's, which Stripe runs by.
    pub(super) async fn start_two_on(database: &Database, ahead: Duration) -> [Self; 2] {
        let directory = || tempfile::tempdir().unwrap();
        let url: PostgresUrl = database.url().parse().unwrap();
        let open = async || Arc::new(PostgresStore::open(&url).await.unwrap());
        let clock = ManualClock::at(at(NOON));
        let stripe = FakeStripe::start_with(Clock::Manual(Arc::clone(&clock))).await;
        let stripe = Arc::new(stripe);
        let other_clock = ManualClock::at(at(NOON).plus(ahead));
        let shared = Arc::clone(&stripe);
        let first = Self::open(open().await, directory(), stripe, clock, &[]).await;
        first.furnish().await;
        let second = Self {
            keys: Arc::clone(&first.keys),
            ..Self::open(open().await, directory(), shared, other_clock, &[]).await
        };
        second.app.refresh().await;
        [first, second]
    }

    async fn open(
        store: SharedStore,
        directory: tempfile::TempDir,
        stripe: Arc<FakeStripe>,
        clock: Arc<ManualClock>,
        settings: &[(&'static str, &str)],
    ) -> Self {
        let mut sources = Sources::none()
            .with_flag("TOLLGATE_DATA_DIR", directory.path().display().to_string())
            .with_flag("ENABLE_USAGE_GUARDRAILS", "true".to_owned())
            .with_flag("TOLLGATE_PROVIDER", "simulated".to_owned())
            .with_flag("ENABLE_STRIPE_USAGE", "true".to_owned())
            .with_flag("STRIPE_SECRET_KEY", KEY.to_owned())
            .with_flag("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET.to_owned())
            .with_flag("STRIPE_API_BASE", stripe.base().to_owned());
        for (name, value) in settings {
            sources = sources.with_flag(name, (*value).to_owned());
        }
        let config = Config::load(&sources).unwrap().config;
        let manual = Clock::Manual(Arc::clone(&clock));
        let journal = tollgate::journal::Journal::open(
            &directory.path().join("cache.redb"),
            tollgate::journal::Durability::Process,
            manual.clone(),
        )
        .unwrap();
        let simulated = tollgate::provider::Settings::Simulated {
            timeout: Duration::from_secs(9),
        };
        let ground = Ground {
            store,
            journal,
            provider: tollgate::provider::from_settings(simulated, manual.clone()).unwrap(),
        };
        let app = App::open_on(ground, config, manual).await.unwrap();
        Self {
            app,
            stripe,
            clock,
            dies: Arc::default(),
            keys: Arc::default(),
            _directory: directory,
        }
    }

    async fn furnish(&self) {
        self.stripe.add_meter("msgs", json!({}));
        self.plan("pro", &[("messages", Some("msgs"))]).await;
        self.tenant("acme", "pro", Some("cus_acme")).await;
    }

    pub(super) fn inner(&self) -> &Arc<Stripe> {
        self.app.stripe.as_ref().unwrap()
    }

    pub(super) fn actor(&self) -> Actor {
        Actor {
            name: "test".to_owned(),
            address: None,
            at: self.clock.now(),
        }
    }

    /// A plan with these features, each with its meter.
    pub(super) async fn plan(&self, code: &str, features: &[(&str, Option<&str>)]) {
        let plans = Plans::new(self.app.store.clone());
        let plan = NewPlan {
            code: code.parse().unwrap(),
            name: code.parse().unwrap(),
            preset: None,
            allowed_models: Default::default(),
            features: vec![],
        };
        plans.create(plan, &self.actor()).await.unwrap();
        for (key, meter) in features {
            let change = FeatureChange {
                key: key.parse().unwrap(),
                scope: tollgate::domain::limit::Scope::Tenant,
                window: tollgate::domain::window::WindowKind::Period,
                soft: Change::Keep,
                hard: Change::Keep,
                unit: None,
                display_name: None,
                is_metered: Some(true),
                stripe_meter: meter.map_or(Change::Keep, |meter| Change::Set(meter.to_owned())),
                alert_thresholds: Change::Keep,
            };
            plans
                .set_feature(&code.parse().unwrap(), &change, &self.actor())
                .await
                .unwrap();
        }
        self.app.refresh().await;
    }

    pub(super) async fn tenant(&self, slug: &str, plan: &str, customer: Option<&str>) {
        let tenants = Tenants::new(self.app.store.clone());
        let tenant = NewTenant {
            slug: slug.parse().unwrap(),
            name: slug.parse().unwrap(),
            plan_code: Some(plan.parse().unwrap()),
        };
        tenants.create(tenant, &self.actor()).await.unwrap();
        if let Some(customer) = customer {
            self.set_customer(slug, customer).await;
        }
        self.app.refresh().await;
    }

    pub(super) async fn set_customer(&self, slug: &str, customer: &str) {
        self.subscribe(
            slug,
            SubscriptionChange {
                processor_customer_id: Change::Set(customer.to_owned()),
                ..SubscriptionChange::default()
            },
        )
        .await;
    }

    pub(super) async fn subscribe(&self, slug: &str, change: SubscriptionChange) {
        let tenants = Tenants::new(self.app.store.clone());
        tenants
            .subscribe(&slug.parse().unwrap(), &change, &self.actor())
            .await
            .unwrap();
        self.app.refresh().await;
    }

    pub(super) async fn delete(&self, slug: &str) {
        let tenants = Tenants::new(self.app.store.clone());
        tenants
            .delete(&slug.parse().unwrap(), &self.actor())
            .await
            .unwrap();
        self.app.refresh().await;
    }

    pub(super) async fn subscription(&self, slug: &str) -> Option<Subscription> {
        let tenant: TenantRef = slug.parse().unwrap();
        let tenant = self.app.store.find_tenant(&tenant).await.unwrap();
        tenant.unwrap().subscription
    }

    /// Records messages of `acme` that are used now.
    pub(super) async fn use_messages(&self, quantity: i64) -> EventId {
        self.record("acme", FeatureKey::Messages, quantity, None)
            .await
    }

    /// The same, which is only in the journal yet.
    pub(super) async fn use_messages_later(&self, quantity: i64) -> EventId {
        self.append("acme", FeatureKey::Messages, quantity, None)
            .await
    }

    pub(super) async fn record(
        &self,
        slug: &str,
        feature: FeatureKey,
        quantity: i64,
        used_at: Option<Timestamp>,
    ) -> EventId {
        let event = self.append(slug, feature, quantity, used_at).await;
        self.app.recorder.flush().await.unwrap();
        event
    }

    async fn append(
        &self,
        slug: &str,
        feature: FeatureKey,
        quantity: i64,
        used_at: Option<Timestamp>,
    ) -> EventId {
        let key = self.keys.fetch_add(1, Ordering::SeqCst);
        let record = ManualRecord {
            tenant: slug.parse().unwrap(),
            feature,
            quantity: Quantity::new(quantity),
            idempotency_key: format!("key-{key}"),
            at: used_at,
        };
        let answer = self.app.record(&record, &self.actor()).await.unwrap();
        serde_json::from_value(answer["event_id"].clone()).unwrap()
    }

    pub(super) async fn correct(&self, quantity: i64, of: Option<EventId>) {
        let correction = Correction {
            feature: FeatureKey::Messages,
            quantity: Quantity::new(quantity),
            reason: "a test".to_owned(),
            of,
            idempotency_key: None,
        };
        self.app
            .correct(&"acme".parse().unwrap(), &correction, &self.actor())
            .await
            .unwrap();
        self.app.recorder.flush().await.unwrap();
    }

    /// What the jobs do at this instant.
    pub(super) async fn work(&self) {
        self.inner().hand_on(Which::Due).await.unwrap();
        self.send().await;
    }

    /// Sends what is due, until nothing is or nothing can be.
    pub(super) async fn send(&self) {
        let sender = MeterSender(Arc::clone(self.inner()));
        let outbox = Outbox {
            jitter: super::torture::pause,
            ..self.app.outbox.clone()
        };
        while matches!(outbox.step(&sender).await, Ok(Progress::Moved { .. })) {}
    }

    pub(super) async fn push(&self) -> Pushed {
        self.inner().push().await.unwrap()
    }

    /// The next `attempts` are not noted.
    pub(super) fn die(&self, attempts: u32) {
        self.dies.store(attempts, Ordering::SeqCst);
    }

    /// Time goes on, long enough for whatever failed to be tried again, until nothing is left to do.
    pub(super) async fn finish(&self) {
        self.stripe.always(None);
        self.die(0);
        for _ in 0..50 {
            self.clock.advance(HOUR + MINUTE);
            let pushed = self.push().await;
            if pushed.pending == 0 && pushed.without_customer == 0 {
                return;
            }
        }
        panic!("it is never done: {:?}", self.entries().await);
    }

    /// Meter events, the newest first.
    pub(super) async fn entries(&self) -> Vec<OutboxEntry> {
        let filter = OutboxFilter {
            kind: Some(Kind::StripeMeterEvent),
            ..OutboxFilter::default()
        };
        self.app
            .store
            .list_outbox(&filter, None, 500)
            .await
            .unwrap()
    }

    pub(super) async fn statuses(&self) -> Vec<&'static str> {
        let entries = self.entries().await;
        entries.iter().map(|it| it.status.as_str()).collect()
    }

    /// What a tenant used of a feature, ever.
    pub(super) async fn total(&self, slug: &str, feature: &FeatureKey) -> i64 {
        let tenant: TenantRef = slug.parse().unwrap();
        let tenant = self.app.store.find_tenant(&tenant).await.unwrap().unwrap();
        let ever = Window::new(at("2020-01-01T00:00:00Z"), at("2100-01-01T00:00:00Z")).unwrap();
        let totals = self
            .app
            .store
            .totals(tenant.tenant_id, std::slice::from_ref(feature), ever, None)
            .await
            .unwrap();
        totals.totals[0].quantity.get()
    }

    pub(super) async fn reconcile(&self) -> Vec<Reconciled> {
        self.inner()
            .reconcile(&ReconcileAsk::default())
            .await
            .unwrap()
    }

    /// Stripe sends an event.
    pub(super) async fn receive(&self, event: &Value) -> Result<Received, WebhookError> {
        let body = event.to_string();
        let header = signed(WEBHOOK_SECRET, self.clock.now().seconds(), &body);
        self.inner().receive(&header, body.as_bytes()).await
    }
}

/// A subscription as Stripe has it, of customer `cus_acme` to the price `pro`; `change` replaces members.
pub(super) fn subscription(id: &str, change: Value) -> Value {
    let start = at("2026-11-20T09:00:00Z").seconds();
    let mut subscription = json!({
        "id": id, "object": "subscription", "customer": "cus_acme", "status": "active", "created": start,
        "billing_cycle_anchor": start, "metadata": {},
        "items": { "data": [{
            "id": "si_1", "current_period_start": start, "current_period_end": at("2026-12-20T09:00:00Z").seconds(),
            "price": { "id": "price_1", "lookup_key": "pro", "recurring": { "interval": "month", "interval_count": 1 } },
        }] },
    });
    for (key, value) in change.as_object().unwrap() {
        subscription[key] = value.clone();
    }
    subscription
}

pub(super) fn with_price(lookup_key: &str) -> Value {
    let mut items = subscription("x", json!({}))["items"].clone();
    items["data"][0]["price"]["lookup_key"] = json!(lookup_key);
    items
}

/// `customer.subscription.KIND`, `seconds` after noon.
pub(super) fn changed(id: &str, kind: &str, seconds: i64, subscription: &Value) -> Value {
    let created = at(NOON).seconds() + seconds;
    event(
        id,
        &format!("customer.subscription.{kind}"),
        created,
        subscription,
    )
}
