//! Stripe, as far as it is called: a real HTTP server with Stripe's rules, which keeps what it was told and fails on demand.
//!
//! The rules: an identifier is remembered for 24 hours and no longer; a meter event is at most 35 days old and 5 minutes
//! ahead; one call at a time a customer and meter; values are whole numbers; sums are of whole minutes; an event can be
//! canceled for 24 hours.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, RawQuery, Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::StatusCode;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tollgate::{clock::Clock, domain::time::Timestamp};

pub(crate) const KEY: &str = "sk_test_EXAMPLE_of_a_key";
pub(crate) const WEBHOOK_SECRET: &str = "whsec_EXAMPLE_of_a_secret";

const REMEMBERED: i64 = 24 * 3600;
const OLDEST: i64 = 35 * 24 * 3600;
const AHEAD: i64 = 5 * 60;

/// What it does with a call that tells it of usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StripeFault {
    /// 429, with `Retry-After` in seconds.
    Busy(Option<&'static str>),
    /// 500, and nothing is done.
    Fails,
    /// 500, but it is done.
    AppliesAndFails,
    /// The connection breaks, and nothing is done.
    HangsUp,
    /// The connection breaks after it is done.
    AppliesAndHangsUp,
    /// It is done after a while.
    Slow(Duration),
    /// It is done, and the answer never comes.
    AppliesAndHangs,
    /// 401.
    WrongKey,
}

/// Usage that it was told of and took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MeterEvent {
    pub(crate) identifier: String,
    pub(crate) event_name: String,
    pub(crate) customer: String,
    pub(crate) value: i64,
    pub(crate) timestamp: i64,
    pub(crate) received_at: i64,
    pub(crate) is_canceled: bool,
}

#[derive(Default)]
struct Books {
    meters: Vec<Value>,
    events: Vec<MeterEvent>,
    /// Identifiers, and when they came.
    seen: HashMap<String, i64>,
    in_call: HashSet<(String, String)>,
    lock_timeouts: usize,
    calls: usize,
    next: VecDeque<StripeFault>,
    always: Option<StripeFault>,
    /// Of every call anything may become; the state of a generator.
    chaos: Option<u64>,
    /// Empty: any is taken.
    customers: HashSet<String>,
    /// Sums are of what came longer ago than this.
    summary_lag: i64,
    features: Vec<Value>,
    product_features: BTreeMap<String, Vec<Value>>,
    products: Vec<Value>,
    prices: Vec<Value>,
    subscriptions: Vec<Value>,
    writes: Vec<String>,
}

impl Books {
    /// Half of all calls are served.
    fn chance(&mut self) -> Option<StripeFault> {
        const FAULTS: [StripeFault; 8] = [
            StripeFault::Busy(Some("1")),
            StripeFault::Busy(None),
            StripeFault::Fails,
            StripeFault::AppliesAndFails,
            StripeFault::HangsUp,
            StripeFault::AppliesAndHangsUp,
            StripeFault::Slow(Duration::from_millis(200)),
            StripeFault::WrongKey,
        ];
        let state = self.chaos.as_mut()?;
        // Steele and Vigna's splitmix64.
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        FAULTS.get((mixed >> 60) as usize).copied()
    }
}

/// The server; it ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct FakeStripe {
    base: String,
    clock: Clock,
    books: Arc<Mutex<Books>>,
}

impl FakeStripe {
    pub(crate) async fn start() -> Self {
        Self::start_with(Clock::System).await
    }

    pub(crate) async fn start_with(clock: Clock) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let stripe = Self {
            base: format!("http://{}", listener.local_addr().expect("an address")),
            clock,
            books: Arc::default(),
        };
        let router = Router::new()
            .route("/v1/billing/meters", get(meters))
            .route("/v1/billing/meters/{id}/event_summaries", get(summaries))
            .route("/v1/billing/meter_events", post(meter_event))
            .route("/v1/billing/meter_event_adjustments", post(adjustment))
            .route(
                "/v1/entitlements/features",
                get(features).post(create_feature),
            )
            .route("/v1/entitlements/features/{id}", post(update_feature))
            .route(
                "/v1/products/{id}/features",
                get(product_features).post(attach_feature),
            )
            .route("/v1/products", get(products))
            .route("/v1/prices", get(prices))
            .route("/v1/subscriptions", get(subscriptions))
            .route("/v1/subscriptions/{id}", get(subscription))
            .layer(from_fn_with_state(stripe.clone(), around))
            .with_state(stripe.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(router.clone());
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(serving);
            }
        });
        stripe
    }

    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }

    fn now(&self) -> i64 {
        self.clock.now().seconds()
    }

    /// A meter that may be told; `change` replaces members.
    pub(crate) fn add_meter(&self, event_name: &str, change: Value) {
        let mut meter = json!({
            "id": format!("mtr_{event_name}"), "object": "billing.meter", "event_name": event_name, "status": "active",
            "default_aggregation": {"formula": "sum"}, "event_time_window": null,
            "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
            "value_settings": {"event_payload_key": "value"},
        });
        for (key, value) in change.as_object().expect("an object") {
            meter[key] = value.clone();
        }
        self.books().meters.push(meter);
    }

    /// From here on only these customers are known.
    pub(crate) fn add_customer(&self, customer: &str) {
        self.books().customers.insert(customer.to_owned());
    }

    pub(crate) fn add_product(&self, id: &str, metadata: Value) {
        self.books()
            .products
            .push(json!({ "id": id, "object": "product", "active": true, "metadata": metadata }));
    }

    pub(crate) fn add_price(&self, lookup_key: &str, product: &str) {
        self.books().prices.push(
            json!({ "id": format!("price_{lookup_key}"), "object": "price", "lookup_key": lookup_key, "product": product }),
        );
    }

    /// Puts a subscription in, in place of the one of its id.
    pub(crate) fn put_subscription(&self, subscription: &Value) {
        let mut books = self.books();
        books
            .subscriptions
            .retain(|it| it["id"] != subscription["id"]);
        books.subscriptions.push(subscription.clone());
    }

    /// Does this to the next call that tells it of usage.
    pub(crate) fn next(&self, fault: StripeFault) {
        self.books().next.push_back(fault);
    }

    /// Does this to every such call that no `next` is there for.
    pub(crate) fn always(&self, fault: Option<StripeFault>) {
        self.books().always = fault;
    }

    /// From here on anything may become of each such call, by this seed; `None`: no more.
    pub(crate) fn chaos(&self, seed: Option<u64>) {
        self.books().chaos = seed;
    }

    pub(crate) fn set_summary_lag(&self, seconds: i64) {
        self.books().summary_lag = seconds;
    }

    /// What somebody else tells it.
    pub(crate) fn told_by_others(&self, customer: &str, event_name: &str, value: i64, at: i64) {
        let received_at = self.now();
        let mut books = self.books();
        let identifier = format!("other-{}", books.events.len());
        books.events.push(MeterEvent {
            identifier,
            event_name: event_name.to_owned(),
            customer: customer.to_owned(),
            value,
            timestamp: at,
            received_at,
            is_canceled: false,
        });
    }

    /// As somebody does in Stripe's dashboard.
    pub(crate) fn forget_event(&self, identifier: &str) {
        self.books().events.retain(|it| it.identifier != identifier);
    }

    pub(crate) fn events(&self) -> Vec<MeterEvent> {
        self.books().events.clone()
    }

    /// What a customer is billed of a meter.
    pub(crate) fn sum(&self, customer: &str, event_name: &str) -> i64 {
        let events = self.events();
        let counted = events
            .iter()
            .filter(|it| it.customer == customer && it.event_name == event_name);
        counted
            .filter(|it| !it.is_canceled)
            .map(|it| it.value)
            .sum()
    }

    /// How many calls told it of usage, whatever it did.
    pub(crate) fn calls(&self) -> usize {
        self.books().calls
    }

    /// How many of them were refused since another one of the same customer and meter ran.
    pub(crate) fn lock_timeouts(&self) -> usize {
        self.books().lock_timeouts
    }

    /// What else was written, such as `feature messages`.
    pub(crate) fn writes(&self) -> Vec<String> {
        self.books().writes.clone()
    }

    /// The lookup keys of a product's features.
    pub(crate) fn features_of(&self, product: &str) -> Vec<String> {
        let books = self.books();
        let attached = books.product_features.get(product).into_iter().flatten();
        let keys = attached.map(|it| it["entitlement_feature"]["lookup_key"].as_str());
        keys.map(|key| key.expect("a key").to_owned()).collect()
    }

    /// Sends an event to a tollgate as Stripe does; its answer.
    pub(crate) async fn deliver(&self, to: &str, event: &Value) -> (u16, Value) {
        let body = event.to_string();
        let signature = signed(WEBHOOK_SECRET, self.now(), &body);
        deliver_signed(to, &signature, body).await
    }
}

/// Posts `body` to the webhooks of the tollgate at `to`.
pub(crate) async fn deliver_signed(to: &str, signature: &str, body: String) -> (u16, Value) {
    let response = super::gate::client()
        .post(format!("{to}/webhooks/stripe"))
        .header("stripe-signature", signature)
        .header("content-type", "application/json")
        .body(body)
        .send()
        .await
        .expect("an answer");
    let status = response.status().as_u16();
    (status, response.json().await.unwrap_or(Value::Null))
}

/// The header `Stripe-Signature` of `body`.
pub(crate) fn signed(secret: &str, at: i64, body: &str) -> String {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
    let tag = ring::hmac::sign(&key, format!("{at}.{body}").as_bytes());
    let hex: String = tag.as_ref().iter().map(|it| format!("{it:02x}")).collect();
    format!("t={at},v1={hex}")
}

/// An event of Stripe's.
pub(crate) fn event(id: &str, event_type: &str, created: i64, object: &Value) -> Value {
    json!({ "id": id, "object": "event", "type": event_type, "created": created, "data": { "object": object } })
}

/// Failures that concern every call, and Stripe's clock in every answer.
async fn around(State(stripe): State<FakeStripe>, request: Request, next: Next) -> Response {
    let authorization = request.headers().get("authorization");
    let is_ours = authorization.is_some_and(|it| it == format!("Bearer {KEY}").as_str());
    let tells =
        request.method() == http::Method::POST && request.uri().path().contains("/meter_event");
    let fault = if tells {
        let mut books = stripe.books();
        books.calls += 1;
        let by_chance = books.chance();
        books.next.pop_front().or(books.always).or(by_chance)
    } else {
        None
    };
    let mut response = if !is_ours {
        refused(StatusCode::UNAUTHORIZED, "", "Invalid API Key provided")
    } else {
        match fault {
            None => next.run(request).await,
            Some(StripeFault::Busy(after)) => {
                let mut response =
                    refused(StatusCode::TOO_MANY_REQUESTS, "rate_limit", "slow down");
                if let Some(after) = after {
                    response
                        .headers_mut()
                        .insert("retry-after", after.parse().expect("a header"));
                }
                response
            }
            Some(StripeFault::Fails) => failed(),
            Some(StripeFault::AppliesAndFails) => {
                next.run(request).await;
                failed()
            }
            Some(StripeFault::HangsUp) => broken(),
            Some(StripeFault::AppliesAndHangsUp) => {
                next.run(request).await;
                broken()
            }
            Some(StripeFault::Slow(pause)) => {
                tokio::time::sleep(pause).await;
                next.run(request).await
            }
            Some(StripeFault::AppliesAndHangs) => {
                next.run(request).await;
                std::future::pending().await
            }
            Some(StripeFault::WrongKey) => {
                refused(StatusCode::UNAUTHORIZED, "", "Invalid API Key provided")
            }
        }
    };
    let date = date_of(stripe.clock.now());
    response
        .headers_mut()
        .insert("date", date.parse().expect("a header"));
    response
}

fn date_of(at: Timestamp) -> String {
    let at = jiff::Timestamp::from_second(at.seconds()).expect("a time");
    jiff::fmt::rfc2822::DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&at)
        .expect("a date")
}

fn refused(status: StatusCode, code: &str, message: &str) -> Response {
    let error =
        json!({ "error": { "type": "invalid_request_error", "code": code, "message": message } });
    (status, Json(error)).into_response()
}

fn bad(message: &str) -> Response {
    refused(StatusCode::BAD_REQUEST, "", message)
}

fn failed() -> Response {
    refused(
        StatusCode::INTERNAL_SERVER_ERROR,
        "",
        "An unknown error occurred",
    )
}

/// A connection that breaks before the answer is whole.
fn broken() -> Response {
    let pieces = [Ok("{"), Err(std::io::Error::other("broken"))];
    Body::from_stream(futures_util::stream::iter(pieces)).into_response()
}

type Fields = HashMap<String, String>;

fn fields(text: &str) -> Fields {
    form_urlencoded::parse(text.as_bytes())
        .into_owned()
        .collect()
}

fn query(text: Option<String>) -> Fields {
    fields(&text.unwrap_or_default())
}

/// A page of a list.
fn page(items: Vec<Value>, query: &Fields) -> Response {
    let limit: usize = query
        .get("limit")
        .map_or(10, |it| it.parse().expect("a number"));
    let after = query.get("starting_after");
    let from = after.map_or(0, |after| {
        let found = items.iter().position(|it| it["id"] == after.as_str());
        found.expect("starting_after is there") + 1
    });
    let has_more = items.len() > from + limit;
    let data: Vec<Value> = items.into_iter().skip(from).take(limit).collect();
    Json(json!({ "object": "list", "data": data, "has_more": has_more })).into_response()
}

async fn meters(State(stripe): State<FakeStripe>, RawQuery(asked): RawQuery) -> Response {
    let meters = stripe.books().meters.clone();
    page(meters, &query(asked))
}

async fn meter_event(State(stripe): State<FakeStripe>, body: String) -> Response {
    let form = fields(&body);
    let text = |name: &str| form.get(name).cloned().unwrap_or_default();
    let (event_name, identifier) = (text("event_name"), text("identifier"));
    let now = stripe.now();
    let (customer, lane) = {
        let mut books = stripe.books();
        let meter = books
            .meters
            .iter()
            .find(|it| it["event_name"] == event_name.as_str() && it["status"] == "active");
        let Some(meter) = meter else {
            return bad(&format!(
                "No active meter found for event name {event_name}"
            ));
        };
        let key = meter["customer_mapping"]["event_payload_key"].as_str();
        let customer = text(&format!("payload[{}]", key.expect("a key")));
        if identifier.is_empty() || identifier.len() > 100 {
            return bad("identifier: at most 100 characters");
        }
        if !books.customers.is_empty() && !books.customers.contains(&customer) {
            return bad(&format!("No such customer: '{customer}'"));
        }
        let lane = (customer.clone(), event_name.clone());
        if !books.in_call.insert(lane.clone()) {
            books.lock_timeouts += 1;
            return refused(
                StatusCode::TOO_MANY_REQUESTS,
                "lock_timeout",
                "This object cannot be accessed right now because another API request is accessing it",
            );
        }
        (customer, lane)
    };
    // Long enough for a second call to meet the first.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let mut books = stripe.books();
    books.in_call.remove(&lane);
    let meter = books
        .meters
        .iter()
        .find(|it| it["event_name"] == event_name.as_str() && it["status"] == "active");
    let key = meter.and_then(|it| it["value_settings"]["event_payload_key"].as_str());
    let value = text(&format!("payload[{}]", key.expect("a key")));
    let Ok(value) = value.parse::<i64>() else {
        return bad(&format!("value: '{value}' is no whole number"));
    };
    let timestamp: i64 = text("timestamp").parse().expect("a timestamp is sent");
    if timestamp < now - OLDEST || now + AHEAD < timestamp {
        return bad(
            "The timestamp must be within the past 35 calendar days or up to 5 minutes in the future.",
        );
    }
    let seen = books.seen.get(&identifier);
    if seen.is_some_and(|at| now < at + REMEMBERED) {
        return bad(&format!(
            "An event already exists with identifier {identifier}."
        ));
    }
    books.seen.insert(identifier.clone(), now);
    books.events.push(MeterEvent {
        identifier: identifier.clone(),
        event_name: event_name.clone(),
        customer,
        value,
        timestamp,
        received_at: now,
        is_canceled: false,
    });
    Json(json!({ "object": "billing.meter_event", "event_name": event_name, "identifier": identifier })).into_response()
}

async fn adjustment(State(stripe): State<FakeStripe>, body: String) -> Response {
    let form = fields(&body);
    let identifier = form.get("cancel[identifier]").cloned().unwrap_or_default();
    let now = stripe.now();
    let mut books = stripe.books();
    let found = books
        .events
        .iter_mut()
        .find(|it| it.identifier == identifier);
    let Some(event) = found else {
        return refused(
            StatusCode::NOT_FOUND,
            "resource_missing",
            "No such meter event",
        );
    };
    if event.received_at + REMEMBERED < now {
        return bad("Events can be canceled within 24 hours of Stripe receiving them.");
    }
    if event.is_canceled {
        return bad("This event is already canceled.");
    }
    event.is_canceled = true;
    Json(json!({ "object": "billing.meter_event_adjustment", "status": "pending" })).into_response()
}

async fn summaries(
    State(stripe): State<FakeStripe>,
    Path(id): Path<String>,
    RawQuery(asked): RawQuery,
) -> Response {
    let asked = query(asked);
    let number = |name: &str| asked.get(name).and_then(|it| it.parse::<i64>().ok());
    let (Some(start), Some(end)) = (number("start_time"), number("end_time")) else {
        return bad("start_time and end_time are required");
    };
    if start % 60 != 0 || end % 60 != 0 || end <= start {
        return bad("start_time and end_time must align with minute boundaries");
    }
    let customer = asked.get("customer").cloned().unwrap_or_default();
    let now = stripe.now();
    let books = stripe.books();
    let counted = books.events.iter().filter(|it| {
        format!("mtr_{}", it.event_name) == id
            && it.customer == customer
            && (start..end).contains(&it.timestamp)
            && it.received_at <= now - books.summary_lag
            && !it.is_canceled
    });
    let values: Vec<i64> = counted.map(|it| it.value).collect();
    let data = if values.is_empty() {
        Vec::new()
    } else {
        let sum: i64 = values.iter().sum();
        vec![
            json!({ "id": "mtrusg_1", "aggregated_value": sum as f64, "start_time": start, "end_time": end }),
        ]
    };
    Json(json!({ "object": "list", "data": data, "has_more": false })).into_response()
}

async fn features(State(stripe): State<FakeStripe>, RawQuery(asked): RawQuery) -> Response {
    let features = stripe.books().features.clone();
    page(features, &query(asked))
}

async fn create_feature(State(stripe): State<FakeStripe>, body: String) -> Response {
    let form = fields(&body);
    let (key, name) = (form["lookup_key"].clone(), form["name"].clone());
    let mut books = stripe.books();
    if books
        .features
        .iter()
        .any(|it| it["lookup_key"] == key.as_str())
    {
        return bad("a feature with this lookup_key already exists");
    }
    let feature = json!({ "id": format!("feat_{key}"), "object": "entitlements.feature", "lookup_key": key, "name": name });
    books.features.push(feature.clone());
    books.writes.push(format!("feature {key}"));
    Json(feature).into_response()
}

async fn update_feature(
    State(stripe): State<FakeStripe>,
    Path(id): Path<String>,
    body: String,
) -> Response {
    let form = fields(&body);
    let mut books = stripe.books();
    let Some(feature) = books.features.iter_mut().find(|it| it["id"] == id.as_str()) else {
        return refused(StatusCode::NOT_FOUND, "resource_missing", "No such feature");
    };
    feature["name"] = json!(form["name"]);
    let feature = feature.clone();
    books.writes.push(format!("rename {id}"));
    Json(feature).into_response()
}

async fn product_features(
    State(stripe): State<FakeStripe>,
    Path(id): Path<String>,
    RawQuery(asked): RawQuery,
) -> Response {
    let attached = stripe.books().product_features.get(&id).cloned();
    page(attached.unwrap_or_default(), &query(asked))
}

async fn attach_feature(
    State(stripe): State<FakeStripe>,
    Path(id): Path<String>,
    body: String,
) -> Response {
    let form = fields(&body);
    let mut books = stripe.books();
    let feature = form["entitlement_feature"].clone();
    let found = books
        .features
        .iter()
        .find(|it| it["id"] == feature.as_str());
    let Some(found) = found.cloned() else {
        return bad("No such feature");
    };
    let attached = books.product_features.entry(id.clone()).or_default();
    if attached
        .iter()
        .any(|it| it["entitlement_feature"]["id"] == feature.as_str())
    {
        return bad("the feature is attached already");
    }
    let made = json!({ "id": format!("prodft_{}", attached.len()), "entitlement_feature": found });
    attached.push(made.clone());
    books.writes.push(format!("attach {feature} to {id}"));
    Json(made).into_response()
}

async fn products(State(stripe): State<FakeStripe>, RawQuery(asked): RawQuery) -> Response {
    let products = stripe.books().products.clone();
    page(products, &query(asked))
}

async fn prices(State(stripe): State<FakeStripe>, RawQuery(asked): RawQuery) -> Response {
    let asked = query(asked);
    let mut prices = stripe.books().prices.clone();
    if let Some(key) = asked.get("lookup_keys[]") {
        prices.retain(|it| it["lookup_key"] == key.as_str());
    }
    page(prices, &asked)
}

async fn subscriptions(State(stripe): State<FakeStripe>, RawQuery(asked): RawQuery) -> Response {
    let subscriptions = stripe.books().subscriptions.clone();
    page(subscriptions, &query(asked))
}

async fn subscription(State(stripe): State<FakeStripe>, Path(id): Path<String>) -> Response {
    let books = stripe.books();
    match books
        .subscriptions
        .iter()
        .find(|it| it["id"] == id.as_str())
    {
        Some(found) => Json(found.clone()).into_response(),
        None => refused(
            StatusCode::NOT_FOUND,
            "resource_missing",
            "No such subscription",
        ),
    }
}
