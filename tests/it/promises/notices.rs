//! Whoever is to know is told, once.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::join_all;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tollgate::{
    app::App,
    clock::{Clock, ManualClock},
    config::{Config, sources::Sources},
    domain::{
        administrator::Actor, feature::FeatureKey, limit::Scope, quantity::Quantity,
        tenant::TenantRef, window::WindowKind,
    },
    services::{
        ManualRecord, UsageOperations as _,
        outbox::Progress,
        plans::{Change, FeatureChange, NewPlan, Plans},
        tenants::{NewTenant, Tenants},
    },
    store::outbox::{OutboxEntry, OutboxFilter, Status},
};

use crate::support::{Post, Receiver, Says, Tenant, Tollgate, eventually, hard};

const ADMIN: &str = "tga_EXAMPLE_of_an_administrators_token";
const SECRETS: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3,EXAMPLE-of-a-secret";

fn kind_of(post: &Post) -> String {
    let event = post.json();
    let kind = event["type"].as_str().unwrap().to_owned();
    let kind = kind.strip_prefix("tollgate.usage.").unwrap_or(&kind);
    match event["data"]["threshold"].as_u64() {
        Some(threshold) => format!("{kind} {threshold}"),
        None => kind.to_owned(),
    }
}

/// How often it took each kind of notice about a tenant.
pub(crate) fn told(receiver: &Receiver, slug: &str) -> BTreeMap<String, usize> {
    let mut told = BTreeMap::new();
    for post in receiver.taken() {
        if post.json()["data"]["tenant_slug"] == slug {
            *told.entry(kind_of(&post)).or_default() += 1;
        }
    }
    told
}

pub(crate) async fn is_told(receiver: &Receiver, slug: &str, expected: &[(&str, usize)]) {
    let expected: BTreeMap<String, usize> = expected
        .iter()
        .map(|(kind, count)| ((*kind).to_owned(), *count))
        .collect();
    eventually(&format!("{slug} is told of: {expected:?}"), || async {
        (told(receiver, slug) == expected).then_some(())
    })
    .await;
}

/// Whatever was on its way before this has arrived: another tenant's notices, made later, have.
async fn all_has_arrived(gate: &Tollgate, receiver: &Receiver, slug: &str) {
    let other = gate.tenant(slug).limit("messages", hard(1)).create().await;
    other.chat("hi").await.expect_ok();
    other.chat("hi").await.expect(429, "usage_limit_exceeded");
    let all = [
        ("limit_reached", 1),
        ("threshold_reached 100", 1),
        ("threshold_reached 80", 1),
    ];
    is_told(receiver, slug, &all).await;
}

async fn chat_at_once(tenant: &Tenant, count: usize) -> usize {
    let asked = (0..count).map(|_| tenant.chat("hi"));
    let answers = join_all(asked).await;
    answers.iter().filter(|answer| answer.status == 200).count()
}

/// HMAC as RFC 2104 writes it down.
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let [inner, outer] = [0x36, 0x5c].map(|pad| block.map(|byte| byte ^ pad));
    let inner = Sha256::new()
        .chain_update(inner)
        .chain_update(message)
        .finalize();
    Sha256::new()
        .chain_update(outer)
        .chain_update(inner)
        .finalize()
        .to_vec()
}

fn assert_signed(post: &Post) {
    let (id, at) = (post.header("webhook-id"), post.header("webhook-timestamp"));
    let mut signed = format!("{id}.{at}.").into_bytes();
    signed.extend(&post.body);
    let keys: [&[u8]; 2] = [b"0123456789abcdef01234567", b"EXAMPLE-of-a-secret"];
    let expected = keys.map(|key| format!("v1,{}", STANDARD.encode(hmac(key, &signed))));
    assert_eq!(post.header("webhook-signature"), expected.join(" "));
}

#[tokio::test]
async fn each_threshold_is_told_once_however_many_ask_and_through_a_restart() {
    let receiver = Receiver::start().await;
    let gate = Tollgate::serve()
        .set("USAGE_WEBHOOK_URL", &receiver.url())
        .set("USAGE_WEBHOOK_SECRET", SECRETS)
        .start()
        .await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(100))
        .create()
        .await;
    assert_eq!(chat_at_once(&acme, 200).await, 100);
    // Those at once may all have been refused by what was reserved.
    acme.chat("hi").await.expect(429, "usage_limit_exceeded");
    let once = [
        ("limit_reached", 1),
        ("threshold_reached 100", 1),
        ("threshold_reached 80", 1),
    ];
    is_told(&receiver, "acme", &once).await;
    for post in receiver.taken() {
        assert_signed(&post);
        let event = post.json();
        assert_eq!(event["specversion"], "1.0");
        assert_eq!(event["id"], post.header("webhook-id"));
        assert_eq!(post.header("content-type"), "application/cloudevents+json");
        let data = &event["data"];
        assert_eq!(event["subject"], data["tenant_id"]);
        assert_eq!(
            (
                &data["feature_key"],
                &data["limit_value"],
                &data["window"],
                &data["unit"]
            ),
            (
                &json!("messages"),
                &json!(100),
                &json!("period"),
                &json!("requests")
            )
        );
        assert_eq!(data["resets_at"], data["window_end"]);
    }

    let gate = gate.restart().await;
    let acme = acme.at(&gate);
    assert_eq!(chat_at_once(&acme, 5).await, 0);
    all_has_arrived(&gate, &receiver, "barrier-1").await;
    assert_eq!(told(&receiver, "acme").len(), 3);
    is_told(&receiver, "acme", &once).await;

    // 100 of 120 are used: what is above that may be told again, 80 % may not.
    gate.cli_json(&[
        "plan", "feature", "set", &acme.plan, "messages", "--hard", "120",
    ])
    .await;
    assert_eq!(chat_at_once(&acme, 40).await, 20);
    acme.chat("hi").await.expect(429, "usage_limit_exceeded");
    let again = [
        ("limit_reached", 2),
        ("threshold_reached 100", 2),
        ("threshold_reached 80", 1),
    ];
    is_told(&receiver, "acme", &again).await;
    all_has_arrived(&gate, &receiver, "barrier-2").await;
    is_told(&receiver, "acme", &again).await;
    gate.finish().await;
}

#[tokio::test]
async fn a_plans_own_thresholds_a_users_limit_and_a_soft_limit_are_told() {
    let receiver = Receiver::start().await;
    let gate = Tollgate::serve()
        .set("USAGE_WEBHOOK_URL", &receiver.url())
        .set("USAGE_ALERT_THRESHOLDS", "100")
        .start()
        .await;
    let per_user = hard(4).scope("user").window("lifetime");
    let acme = gate
        .tenant("acme")
        .limit("messages", per_user)
        .create()
        .await;
    let set = [
        "plan", "feature", "set", &acme.plan, "messages", "--soft", "2", "--hard", "4",
    ];
    let own = [
        "--scope",
        "user",
        "--window",
        "lifetime",
        "--alert-thresholds",
        "50,75",
    ];
    gate.cli_json(&[&set[..], &own].concat()).await;
    for user in ["ann", "bob"] {
        assert_eq!(chat_at_once(&acme.with_user(user), 3).await, 3);
    }
    let of_both = [
        ("soft_limit_reached", 2),
        ("threshold_reached 50", 2),
        ("threshold_reached 75", 2),
    ];
    is_told(&receiver, "acme", &of_both).await;
    let users: Vec<Value> = receiver
        .taken()
        .iter()
        .map(|post| post.json()["data"]["user"].clone())
        .collect();
    assert_eq!(
        users.iter().filter(|user| *user == "ann").count(),
        3,
        "{users:?}"
    );
    assert_eq!(
        receiver.taken()[0].header("webhook-signature"),
        "",
        "there is no secret"
    );
    gate.finish().await;
}

#[tokio::test]
async fn what_could_not_be_delivered_is_once_the_other_side_is_back() {
    let receiver = Receiver::start().await;
    receiver.always(Says::Status(503));
    let gate = Tollgate::serve()
        .set("USAGE_WEBHOOK_URL", &receiver.url())
        .set("USAGE_ALERT_THRESHOLDS", "100")
        .start()
        .await;
    for says in [Says::Nothing, Says::Status(500), Says::Later("1")] {
        receiver.next(says);
    }
    receiver.always(Says::Status(200));
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(1))
        .create()
        .await;
    acme.chat("hi").await.expect_ok();
    is_told(&receiver, "acme", &[("threshold_reached 100", 1)]).await;
    let posts = receiver.posts();
    assert_eq!(posts.len(), 4, "three that failed, and one that did not");
    assert!(posts.iter().all(|post| post.body == posts[0].body));
    assert!(
        posts
            .iter()
            .all(|post| post.header("webhook-id") == posts[0].header("webhook-id"))
    );
    eventually("its deliveries are counted", || async {
        let error = gate.metric("usage_alerts_total", r#"result="error""#).await;
        let ok = gate
            .metric(
                "usage_alerts_total",
                r#"kind="threshold_reached",result="ok""#,
            )
            .await;
        ((error, ok) == (3, 1)).then_some(())
    })
    .await;
    gate.logged("outbox_retry").await;
    assert!(
        !gate.log().contains("token=EXAMPLE"),
        "an address may hold a secret"
    );

    let listed = gate.cli_json(&["alert", "list"]).await;
    let item = &listed["items"][0];
    assert_eq!(
        (&item["type"], &item["status"], &item["attempts"]),
        (
            &json!("tollgate.usage.threshold_reached"),
            &json!("sent"),
            &json!(4)
        )
    );
    let id = item["identifier"].as_str().unwrap();
    let refused = gate.cli(&["alert", "replay", id]).await;
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("dead or uncertain"),
        "{}",
        refused.stderr
    );
    gate.finish().await;
}

#[tokio::test]
async fn a_notice_that_was_given_up_is_said_and_can_be_sent_again() {
    let receiver = Receiver::start().await;
    receiver.next(Says::Status(410));
    let gate = Tollgate::serve()
        .set("USAGE_WEBHOOK_URL", &receiver.url())
        .set("USAGE_ALERT_THRESHOLDS", "100")
        .start()
        .await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(1))
        .create()
        .await;
    acme.chat("hi").await.expect_ok();
    gate.logged("outbox_dead").await;
    assert_eq!(gate.metric("usage_outbox_dead_total", "notice").await, 1);
    let item = gate.cli_json(&["alert", "list"]).await["items"][0].clone();
    assert_eq!(item["status"], "dead");
    assert!(
        item["last_error"].as_str().unwrap().contains("410"),
        "{item}"
    );
    let id = item["identifier"].as_str().unwrap();
    let replayed = gate.cli_json(&["alert", "replay", id]).await;
    assert_eq!(replayed["status"], "pending");
    is_told(&receiver, "acme", &[("threshold_reached 100", 1)]).await;
    gate.finish().await;
}

#[tokio::test]
async fn a_test_notice_says_what_each_address_answered() {
    let (good, bad) = (Receiver::start().await, Receiver::start().await);
    bad.always(Says::Status(404));
    let gate = Tollgate::serve()
        .set(
            "USAGE_WEBHOOK_URL",
            &format!("{},{}", good.url(), bad.url()),
        )
        .set("USAGE_WEBHOOK_SECRET", SECRETS)
        .start()
        .await;
    let run = gate.cli(&["alert", "test", "--output", "json"]).await;
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("1 of 2 addresses"), "{}", run.stderr);
    let items: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(items["items"][0]["status"], "ok");
    assert_eq!(items["items"][1]["detail"], "answered 404");
    assert!(
        !run.stdout.contains("EXAMPLE"),
        "an address may hold a secret"
    );
    assert_signed(&good.taken()[0]);
    assert_eq!(good.taken()[0].json()["type"], "tollgate.alert.test");
    gate.finish().await;
    let gate = Tollgate::serve().start().await;
    let run = gate.cli(&["alert", "test"]).await;
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("USAGE_WEBHOOK_URL"), "{}", run.stderr);
}

/// The program inside the test, on a clock that the test moves.
struct Inside {
    app: App,
    clock: Arc<ManualClock>,
    _directory: tempfile::TempDir,
}

impl Inside {
    /// A tenant `acme` that may have ten messages a minute.
    async fn start(receiver: &Receiver) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let sources = Sources::none()
            .with_flag("TOLLGATE_DATA_DIR", directory.path().display().to_string())
            .with_flag("ENABLE_USAGE_GUARDRAILS", "true".to_owned())
            .with_flag("TOLLGATE_PROVIDER", "simulated".to_owned())
            .with_flag("USAGE_WEBHOOK_URL", receiver.url());
        let config = Config::load(&sources).unwrap().config;
        let clock = ManualClock::at("2026-11-24T14:40:00Z".parse().unwrap());
        let app = App::open(config, Clock::Manual(Arc::clone(&clock)))
            .await
            .unwrap();
        let by = actor(&clock);
        let plans = Plans::new(app.store.clone());
        let plan = NewPlan {
            code: "timed".parse().unwrap(),
            name: "Timed".parse().unwrap(),
            preset: None,
            allowed_models: Default::default(),
            features: vec![],
        };
        plans.create(plan, &by).await.unwrap();
        let change = FeatureChange {
            key: FeatureKey::Messages,
            scope: Scope::Tenant,
            window: WindowKind::Minute,
            soft: Change::Keep,
            hard: Change::Set(Quantity::new(10)),
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
        let tenant = NewTenant {
            slug: "acme".parse().unwrap(),
            name: "Acme".parse().unwrap(),
            plan_code: Some("timed".parse().unwrap()),
        };
        Tenants::new(app.store.clone())
            .create(tenant, &by)
            .await
            .unwrap();
        Self {
            app,
            clock,
            _directory: directory,
        }
    }

    /// Records that many messages, and has all that follows from it done.
    async fn use_up(&self, messages: i64, key: &str) {
        let tenant: TenantRef = "acme".parse().unwrap();
        let record = ManualRecord {
            tenant,
            feature: FeatureKey::Messages,
            quantity: Quantity::new(messages),
            idempotency_key: key.to_owned(),
            at: None,
        };
        self.app.record(&record, &actor(&self.clock)).await.unwrap();
        self.app.recorder.flush().await.unwrap();
        self.settle().await;
    }

    /// Until nothing is due.
    async fn settle(&self) {
        self.app.notices.as_ref().unwrap().step().await.unwrap();
        for sender in &self.app.senders {
            while !matches!(
                self.app.outbox.step(sender.as_ref()).await.unwrap(),
                Progress::Idle | Progress::Failing
            ) {}
        }
    }

    async fn entries(&self) -> Vec<OutboxEntry> {
        let all = self
            .app
            .store
            .list_outbox(&OutboxFilter::default(), None, 50)
            .await;
        all.unwrap()
    }
}

fn actor(clock: &ManualClock) -> Actor {
    Actor {
        name: "test".to_owned(),
        address: None,
        at: clock.now(),
    }
}

#[tokio::test]
async fn a_receiver_that_stays_away_ends_in_a_dead_letter_that_can_be_replayed() {
    let receiver = Receiver::start().await;
    receiver.always(Says::Nothing);
    let inside = Inside::start(&receiver).await;
    inside.use_up(8, "one").await;
    for _ in 0..99 {
        let entries = inside.entries().await;
        assert_eq!(
            (entries.len(), entries[0].status),
            (1, Status::Pending),
            "checks are forgotten"
        );
        inside.clock.advance(Duration::from_secs(3601));
        for sender in &inside.app.senders {
            inside.app.outbox.step(sender.as_ref()).await.unwrap();
        }
    }
    let dead = inside
        .entries()
        .await
        .into_iter()
        .find(|it| it.topic.as_deref() == Some("tollgate.usage.threshold_reached"))
        .unwrap();
    assert_eq!((dead.status, dead.attempts), (Status::Dead, 100));
    assert!(
        dead.last_error
            .unwrap()
            .starts_with("given up after 100 attempts: no answer")
    );
    assert_eq!(receiver.posts().len(), 100);

    receiver.always(Says::Status(204));
    let by = actor(&inside.clock);
    inside
        .app
        .outbox
        .replay(&dead.identifier, &by)
        .await
        .unwrap();
    inside.settle().await;
    assert_eq!(
        told(&receiver, "acme").get("threshold_reached 80"),
        Some(&1)
    );
    inside.app.close().await;
}

#[tokio::test]
async fn a_window_that_ends_is_told_if_something_was_told_of_it() {
    let receiver = Receiver::start().await;
    let inside = Inside::start(&receiver).await;
    inside.use_up(7, "one").await;
    inside.clock.advance(Duration::from_secs(60));
    inside.settle().await;
    assert_eq!(told(&receiver, "acme").len(), 0, "nothing was told");
    inside.use_up(12, "two").await;
    let of_window = |resets: usize| {
        let kinds = [
            ("overshoot", 1),
            ("threshold_reached 100", 1),
            ("threshold_reached 80", 1),
        ];
        let kinds = kinds
            .into_iter()
            .chain((resets > 0).then_some(("window_reset", resets)));
        kinds
            .map(|(kind, count)| (kind.to_owned(), count))
            .collect::<BTreeMap<_, _>>()
    };
    assert_eq!(told(&receiver, "acme"), of_window(0));
    inside.clock.advance(Duration::from_secs(60));
    for _ in 0..3 {
        inside.settle().await;
        assert_eq!(told(&receiver, "acme"), of_window(1));
    }
    let reset = receiver.taken().pop().unwrap().json();
    assert_eq!(reset["data"]["window_end"], "2026-11-24T14:42:00Z");
    assert_eq!(reset["data"]["usage"], 12);
    inside.app.close().await;
}

#[tokio::test]
async fn a_subscription_that_does_not_run_is_told_once_a_status_and_the_api_lists_it() {
    let receiver = Receiver::start().await;
    let gate = Tollgate::serve()
        .set("TOLLGATE_ADMIN_TOKEN", ADMIN)
        .set("USAGE_WEBHOOK_URL", &receiver.url())
        .start()
        .await;
    let acme = gate.tenant("acme").create().await;
    for (status, count) in [("unpaid", 1), ("paused", 2)] {
        gate.cli_json(&[
            "tenant",
            "subscribe",
            "acme",
            "--plan",
            &acme.plan,
            "--status",
            status,
        ])
        .await;
        for _ in 0..3 {
            acme.chat("hi").await.expect(402, "subscription_inactive");
        }
        is_told(&receiver, "acme", &[("subscription_inactive", count)]).await;
        let last = receiver.taken().pop().unwrap().json();
        assert_eq!(last["data"]["subscription_status"], status);
    }
    for (method, path, status) in [
        ("GET", "alerts?tenant=acme&limit=1", 200),
        ("GET", "outbox?kind=notice&status=sent", 200),
        ("GET", "outbox?status=lost", 422),
        ("GET", "outbox?tenant=nobody", 404),
        ("POST", "outbox/none/replay", 404),
    ] {
        let url = format!("{}/api/v1/admin/{path}", gate.base);
        let request = gate.http.request(method.parse().unwrap(), url);
        let answer = request.bearer_auth(ADMIN).send().await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        if status == 200 {
            let text = answer.text().await.unwrap();
            let body: Value = serde_json::from_str(&text).unwrap();
            let item = &body["items"][0];
            assert_eq!(
                item["type"], "tollgate.usage.subscription_inactive",
                "{body}"
            );
            assert_eq!(item["tenant_slug"], "acme");
            assert_eq!(
                body["next_cursor"].is_null(),
                path.starts_with("outbox"),
                "{body}"
            );
        }
    }
    gate.finish().await;
}
