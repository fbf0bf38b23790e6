//! Every metric, declared once (interface.md §5).
//!
//! Labels are bounded: a plan's code and a feature's key are the operator's to choose, a model's name is the
//! client's and goes through `ModelLabels`; tenants, keys and users are never labels.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramTimer, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
};

use super::{
    events::{Decision, FailReason, OvershootCause},
    models::ModelLabels,
};
use crate::{
    domain::{feature::FeatureKey, limit::LimitType, quantity::Quantity},
    store::{
        maintenance::Transacted,
        outbox::{Kind, Status},
    },
};

/// From 1 µs on: a decision is made in memory.
const DECISION_BUCKETS: [f64; 12] = [
    1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 0.025, 0.25, 1.0,
];
/// From 50 µs on: a commit waits for the disk.
const COMMIT_BUCKETS: [f64; 12] = [
    5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3, 6.4e-3, 0.0128, 0.05, 0.25, 1.0,
];
const TRANSACTION_BUCKETS: [f64; 8] = [5e-4, 1e-3, 2.5e-3, 0.01, 0.05, 0.25, 1.0, 5.0];
const REQUEST_BUCKETS: [f64; 14] = [
    2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 60.0, 600.0,
];
const UPSTREAM_BUCKETS: [f64; 12] = [
    5e-3, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0,
];

/// Events of Stripe that are acted on (billing/stripe/event.rs).
const STRIPE_EVENTS: [&str; 7] = [
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.resumed",
    "invoice.paid",
    "invoice.payment_failed",
];

/// The notices that there are, by their types without the prefix.
const NOTICES: [&str; 7] = [
    "threshold_reached",
    "soft_limit_reached",
    "limit_reached",
    "overshoot",
    "window_reset",
    "subscription_inactive",
    "stripe_entry_dead",
];

/// How reservations ended, counted since the start by the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReservationsEnded {
    pub settled: u64,
    pub released: u64,
    pub expired: u64,
    pub reaped: u64,
}

/// What is read off elsewhere at the moment of a scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observed {
    pub reservations_held: u64,
    /// Held by a stream whose client has gone.
    pub reservations_detached: u64,
    pub oldest_reservation: Option<Duration>,
    pub reservations_ended: ReservationsEnded,
    pub journal_pending: u64,
}

/// All metrics of one [`App`](crate), in a registry of their own.
pub struct Metrics {
    registry: Registry,
    models: ModelLabels,
    /// Counters that follow a count kept elsewhere are moved by one scrape at a time.
    observing: Mutex<()>,

    decisions: IntCounterVec,
    limit_hits: IntCounterVec,
    recorded: IntCounterVec,
    fail_open: IntCounterVec,
    overshoot: IntCounterVec,
    reservations_held: IntGauge,
    reservations_detached: IntGauge,
    reservations_ended: IntCounterVec,
    oldest_reservation: Gauge,
    journal_pending: IntGauge,
    ledger_drift: IntGaugeVec,
    pub(super) journal_damaged: IntCounter,
    pub(super) drain_failures: IntCounter,
    pub(super) catalogue_stale: IntCounter,
    pub(super) estimated: IntCounter,
    unpriced: IntCounterVec,
    alerts: IntCounterVec,
    outbox: IntGaugeVec,
    outbox_dead: IntCounterVec,
    stripe_pending: IntGauge,
    stripe_push: IntCounterVec,
    stripe_webhooks: IntCounterVec,
    decision_seconds: Histogram,
    commit_seconds: Histogram,
    http_requests: IntCounterVec,
    store_seconds: HistogramVec,
    store_repeats: IntCounterVec,
    store_failures: IntCounterVec,
    http_seconds: HistogramVec,
    upstream_seconds: HistogramVec,
    cache_hit: IntCounter,
    cache_miss: IntCounter,
}

/// Registers as it makes, so that no metric is declared and then forgotten.
struct Declare(Registry);

impl Declare {
    fn add<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let metric = made.expect("names and labels of metrics are constants");
        self.0
            .register(Box::new(metric.clone()))
            .expect("each metric is declared once");
        metric
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.add(Histogram::with_opts(options))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.add(HistogramVec::new(options, labels))
    }
}

impl Metrics {
    /// `cache_backend` is the setting's value: `redb` or `memory`.
    #[must_use]
    pub fn new(cache_backend: &str) -> Self {
        let declare = Declare(Registry::new());
        let reservations = declare.add(IntGaugeVec::new(
            Opts::new(
                "usage_reservations",
                "Reservations in flight; detached: their client has gone",
            ),
            &["state"],
        ));
        let cache = declare.counters(
            "cache_requests_total",
            "Look-ups in the catalogue's cache",
            &["backend", "result"],
        );
        let build = declare.add(IntGaugeVec::new(
            Opts::new("build_info", "Always 1; its label is the version"),
            &["version"],
        ));
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);

        let metrics = Self {
            models: ModelLabels::default(),
            observing: Mutex::new(()),
            decisions: declare.counters(
                "usage_guardrail_decisions_total",
                "Decisions on requests, by what was decided",
                &["decision", "plan_code"],
            ),
            limit_hits: declare.counters(
                "usage_limit_hits_total",
                "Limits that warned or refused a request",
                &["plan_code", "limit_type", "feature_key"],
            ),
            recorded: declare.counters(
                "usage_recorded_total",
                "Quantities recorded, in units of the feature",
                &["feature_key", "plan_code"],
            ),
            fail_open: declare.counters(
                "usage_guardrail_fail_open_total",
                "Requests let through without a decision",
                &["reason"],
            ),
            overshoot: declare.counters(
                "usage_overshoot_total",
                "Quantities recorded beyond a hard limit",
                &["feature_key", "cause"],
            ),
            reservations_held: reservations.with_label_values(&["held"]),
            reservations_detached: reservations.with_label_values(&["detached"]),
            reservations_ended: declare.counters(
                "usage_reservations_total",
                "Reservations that ended, by how",
                &["end"],
            ),
            oldest_reservation: declare.add(Gauge::new(
                "usage_reservation_oldest_seconds",
                "Age of the oldest reservation in flight; 0 if there is none",
            )),
            journal_pending: declare.add(IntGauge::new(
                "usage_journal_pending",
                "Events in the journal that are not in the store yet",
            )),
            ledger_drift: declare.add(IntGaugeVec::new(
                Opts::new(
                    "usage_ledger_drift",
                    "By how much live totals differ from the store's, as last measured; 0 unless something is wrong",
                ),
                &["feature_key"],
            )),
            journal_damaged: declare.counter(
                "usage_journal_damaged_total",
                "Journals found damaged and moved aside",
            ),
            drain_failures: declare.counter(
                "usage_drain_failures_total",
                "Batches of the journal that could not be written to the store; they are tried again",
            ),
            catalogue_stale: declare.counter(
                "usage_catalogue_stale_total",
                "Requests decided on a plan or key that may be out of date, since the store was away",
            ),
            estimated: declare.counter(
                "usage_estimated_total",
                "Requests counted with the tokenizer, since the provider reported no usage",
            ),
            unpriced: declare.counters(
                "usage_unpriced_total",
                "Requests to models without a price; their cost counts as 0",
                &["model"],
            ),
            alerts: declare.counters(
                "usage_alerts_total",
                "Attempts to send notices, by what became of them; rejected: given up",
                &["kind", "result"],
            ),
            outbox: declare.add(IntGaugeVec::new(
                Opts::new("usage_outbox_entries", "Entries of the outbox"),
                &["kind", "status"],
            )),
            outbox_dead: declare.counters(
                "usage_outbox_dead_total",
                "Entries of the outbox that were given up",
                &["kind"],
            ),
            stripe_pending: declare.add(IntGauge::new(
                "stripe_outbox_pending",
                "Usage that waits to be told to Stripe, by intervals and entries of the outbox",
            )),
            stripe_push: declare.counters(
                "stripe_push_total",
                "Attempts to tell Stripe of usage; duplicate: it had it already, rejected: given up",
                &["result"],
            ),
            stripe_webhooks: declare.counters(
                "stripe_webhook_events_total",
                "Events that Stripe sent; rejected: not its own, or about a tenant or plan that is not known",
                &["event_type", "result"],
            ),
            decision_seconds: declare.histogram(
                "usage_decision_seconds",
                "Time to decide on a request",
                &DECISION_BUCKETS,
            ),
            commit_seconds: declare.histogram(
                "usage_commit_seconds",
                "Time until usage was written down durably",
                &COMMIT_BUCKETS,
            ),
            store_seconds: declare.histograms(
                "usage_store_transaction_seconds",
                "Time of a transaction of a store on a server, its repeats included",
                &["transaction"],
                &TRANSACTION_BUCKETS,
            ),
            store_repeats: declare.counters(
                "usage_store_repeats_total",
                "Transactions of a store on a server that were run again",
                &["transaction"],
            ),
            store_failures: declare.counters(
                "usage_store_failures_total",
                "Transactions of a store on a server that could not be done",
                &["transaction"],
            ),
            http_requests: declare.counters(
                "http_requests_total",
                "Requests answered",
                &["route", "method", "status"],
            ),
            http_seconds: declare.histograms(
                "http_request_duration_seconds",
                "Time to the head of the answer",
                &["route"],
                &REQUEST_BUCKETS,
            ),
            upstream_seconds: declare.histograms(
                "upstream_request_duration_seconds",
                "Time the upstream took, to the end of its answer",
                &["model"],
                &UPSTREAM_BUCKETS,
            ),
            cache_hit: cache.with_label_values(&[cache_backend, "hit"]),
            cache_miss: cache.with_label_values(&[cache_backend, "miss"]),
            registry: declare.0,
        };
        metrics.touch();
        metrics
    }

    /// A counter that is only there once it has counted looks like one that was forgotten, and its first step is
    /// invisible to `rate()`: those whose labels are known begin at 0.
    fn touch(&self) {
        for reason in FailReason::ALL {
            self.fail_open.with_label_values(&[reason.as_str()]);
        }
        for end in ["settled", "released", "expired", "reaped"] {
            self.reservations_ended.with_label_values(&[end]);
        }
        for kind in NOTICES {
            for result in ["ok", "error", "rejected"] {
                self.alerts.with_label_values(&[kind, result]);
            }
        }
        for result in ["ok", "error", "duplicate", "rejected"] {
            self.stripe_push.with_label_values(&[result]);
        }
        for event_type in STRIPE_EVENTS {
            for result in ["ok", "error", "duplicate", "rejected"] {
                self.stripe_webhooks
                    .with_label_values(&[event_type, result]);
            }
        }
        for kind in Kind::ALL {
            self.outbox_dead.with_label_values(&[kind.as_str()]);
            for status in Status::ALL {
                self.outbox
                    .with_label_values(&[kind.as_str(), status.as_str()]);
            }
        }
        for feature in FeatureKey::BUILT_IN {
            self.ledger_drift.with_label_values(&[feature.as_str()]);
            for cause in OvershootCause::ALL {
                self.overshoot
                    .with_label_values(&[feature.as_str(), cause.as_str()]);
            }
        }
    }

    /// Makes the counters of a plan begin at 0.
    pub fn touch_plan<'a>(
        &self,
        plan_code: &str,
        features: impl IntoIterator<Item = &'a FeatureKey>,
    ) {
        for decision in Decision::ALL {
            self.decisions
                .with_label_values(&[decision.as_str(), plan_code]);
        }
        for feature in features {
            self.recorded
                .with_label_values(&[feature.as_str(), plan_code]);
            for limit_type in [LimitType::SoftLimit, LimitType::HardLimit] {
                self.limit_hits.with_label_values(&[
                    plan_code,
                    limit_type.as_str(),
                    feature.as_str(),
                ]);
            }
        }
    }

    /// How often it was decided so since the start, by all plans together.
    #[must_use]
    pub fn decided(&self, decision: Decision) -> u64 {
        let families = self.decisions.collect();
        let samples = families.iter().flat_map(|family| family.get_metric());
        let of_it = samples.filter(|sample| {
            let labels = sample.get_label();
            labels
                .iter()
                .any(|it| it.value() == decision.as_str() && it.name() == "decision")
        });
        of_it
            .map(|sample| whole(sample.get_counter().get_value()))
            .sum()
    }

    /// By how much live totals and the store's differ now, all features together.
    #[must_use]
    pub fn drift(&self) -> u64 {
        let families = self.ledger_drift.collect();
        let samples = families.iter().flat_map(|family| family.get_metric());
        samples
            .map(|sample| whole(sample.get_gauge().get_value()))
            .sum()
    }

    /// How many requests since the start were of models without a price: by model, the most first.
    #[must_use]
    pub fn unpriced(&self) -> Vec<(String, u64)> {
        let families = self.unpriced.collect();
        let samples = families.iter().flat_map(|family| family.get_metric());
        let mut models: Vec<(String, u64)> = samples
            .filter_map(|sample| {
                let model = sample.get_label().first()?.value().to_owned();
                Some((model, whole(sample.get_counter().get_value())))
            })
            .filter(|(_, requests)| 0 < *requests)
            .collect();
        models.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        models
    }

    /// Names, or patterns of names, of models that always find room among the labels: those of the price list and
    /// of the upstream. Replaces the list given before.
    pub fn list_models(&self, patterns: impl IntoIterator<Item = String>) {
        self.models.list(patterns);
    }

    /// Brings gauges, and counters that follow counts kept elsewhere, up to date.
    pub fn observe(&self, observed: &Observed) {
        let _one_at_a_time = self
            .observing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.reservations_held
            .set(gauge(observed.reservations_held));
        self.reservations_detached
            .set(gauge(observed.reservations_detached));
        self.oldest_reservation.set(
            observed
                .oldest_reservation
                .map_or(0.0, |age| age.as_secs_f64()),
        );
        self.journal_pending.set(gauge(observed.journal_pending));
        let ended = observed.reservations_ended;
        for (end, total) in [
            ("settled", ended.settled),
            ("released", ended.released),
            ("expired", ended.expired),
            ("reaped", ended.reaped),
        ] {
            let counter = self.reservations_ended.with_label_values(&[end]);
            counter.inc_by(total.saturating_sub(counter.get()));
        }
    }

    /// Sets by how much live totals differ from the store's, per feature; those not named do not.
    pub fn set_drift<'a>(&self, drift: impl IntoIterator<Item = (&'a FeatureKey, u64)>) {
        self.ledger_drift.reset();
        self.touch();
        for (feature, difference) in drift {
            self.ledger_drift
                .with_label_values(&[feature.as_str()])
                .set(gauge(difference));
        }
    }

    /// Sets how many entries the outbox has of each kind and status; those not named have none.
    pub fn set_outbox(&self, counts: &[(Kind, Status, u64)]) {
        self.outbox.reset();
        self.touch();
        for (kind, status, count) in counts {
            self.outbox
                .with_label_values(&[kind.as_str(), status.as_str()])
                .set(gauge(*count));
        }
    }

    /// Sets how much waits to be told to Stripe.
    pub fn set_stripe_pending(&self, count: u64) {
        self.stripe_pending.set(gauge(count));
    }

    pub fn count_stripe_push(&self, result: &str) {
        self.stripe_push.with_label_values(&[result]).inc();
    }

    pub fn count_stripe_webhook(&self, event_type: &str, result: &str) {
        self.stripe_webhooks
            .with_label_values(&[event_type, result])
            .inc();
    }

    /// All metrics in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_else(|error| {
                tracing::error!(%error, "metrics could not be written");
                String::new()
            })
    }

    pub fn cache_hit(&self) {
        self.cache_hit.inc();
    }

    pub fn cache_miss(&self) {
        self.cache_miss.inc();
    }

    pub fn decided_in(&self, took: Duration) {
        self.decision_seconds.observe(took.as_secs_f64());
    }

    /// A transaction of a store has ended.
    pub fn transacted(&self, it: Transacted) {
        let name = &[it.name];
        let took = it.took.as_secs_f64();
        self.store_seconds.with_label_values(name).observe(took);
        let repeats = u64::from(it.attempts.saturating_sub(1));
        self.store_repeats.with_label_values(name).inc_by(repeats);
        let failures = self.store_failures.with_label_values(name);
        failures.inc_by(u64::from(!it.is_done));
    }

    pub fn committed_in(&self, took: Duration) {
        self.commit_seconds.observe(took.as_secs_f64());
    }

    /// Measures a call of the upstream until it is dropped.
    pub fn upstream_begins(&self, model: &str) -> HistogramTimer {
        self.upstream_seconds
            .with_label_values(&[&*self.models.label(model)])
            .start_timer()
    }

    /// `route` is the matched pattern, never the path: a client chooses paths.
    pub fn http_answered(
        &self,
        route: &str,
        method: &http::Method,
        status: http::StatusCode,
        took: Duration,
    ) {
        self.http_requests
            .with_label_values(&[route, method_label(method), status.as_str()])
            .inc();
        self.http_seconds
            .with_label_values(&[route])
            .observe(took.as_secs_f64());
    }

    pub(super) fn count_decision(&self, decision: Decision, plan_code: &str) {
        self.decisions
            .with_label_values(&[decision.as_str(), plan_code])
            .inc();
    }

    pub(super) fn count_hit(&self, plan_code: &str, limit_type: LimitType, feature: &FeatureKey) {
        self.limit_hits
            .with_label_values(&[plan_code, limit_type.as_str(), feature.as_str()])
            .inc();
    }

    pub(super) fn add_recorded(&self, feature: &FeatureKey, plan_code: &str, quantity: Quantity) {
        self.recorded
            .with_label_values(&[feature.as_str(), plan_code])
            .inc_by(counted(quantity));
    }

    /// `kind`: a notice's type without its prefix; `result`: `ok`, `error` or `rejected`.
    pub(super) fn count_alert(&self, kind: &str, result: &str) {
        self.alerts.with_label_values(&[kind, result]).inc();
    }

    pub(super) fn count_outbox_dead(&self, kind: Kind) {
        self.outbox_dead.with_label_values(&[kind.as_str()]).inc();
    }

    pub(super) fn count_fail_open(&self, reason: FailReason) {
        self.fail_open.with_label_values(&[reason.as_str()]).inc();
    }

    pub(super) fn add_overshoot(
        &self,
        feature: &FeatureKey,
        cause: OvershootCause,
        quantity: Quantity,
    ) {
        self.overshoot
            .with_label_values(&[feature.as_str(), cause.as_str()])
            .inc_by(counted(quantity));
    }

    pub(super) fn count_unpriced(&self, model: &str) {
        self.unpriced
            .with_label_values(&[&*self.models.label(model)])
            .inc();
    }
}

/// Counters only grow: what a correction takes away is not counted.
fn counted(quantity: Quantity) -> u64 {
    u64::try_from(quantity.get()).unwrap_or(0)
}

/// What a whole number became in the library's samples, which are floats.
fn whole(value: f64) -> u64 {
    format!("{value:.0}").parse().unwrap_or(0)
}

fn gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A client can send any token as a method; the usual ones are labels.
fn method_label(method: &http::Method) -> &'static str {
    use http::Method;
    [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
    ]
    .iter()
    .position(|known| known == method)
    .map_or("other", |index| {
        ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"][index]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_with_known_labels_begin_at_zero() {
        let metrics = Metrics::new("redb");
        metrics.touch_plan("starter", &[FeatureKey::Messages]);
        let text = metrics.render();
        for line in [
            r#"usage_guardrail_fail_open_total{reason="store"} 0"#,
            r#"usage_reservations_total{end="reaped"} 0"#,
            r#"usage_overshoot_total{cause="provider",feature_key="output_tokens"} 0"#,
            r#"usage_guardrail_decisions_total{decision="hard_limit",plan_code="starter"} 0"#,
            r#"usage_limit_hits_total{feature_key="messages",limit_type="soft_limit",plan_code="starter"} 0"#,
            r#"usage_recorded_total{feature_key="messages",plan_code="starter"} 0"#,
            r#"usage_reservations{state="detached"} 0"#,
            r#"cache_requests_total{backend="redb",result="hit"} 0"#,
            "usage_estimated_total 0",
            "usage_decision_seconds_count 0",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is missing from\n{text}"
            );
        }
        assert!(text.contains("build_info{version="));
    }

    #[test]
    fn counts_kept_elsewhere_are_followed_and_never_added_twice() {
        let metrics = Metrics::new("memory");
        let mut observed = Observed {
            reservations_held: 3,
            oldest_reservation: Some(Duration::from_millis(1500)),
            ..Observed::default()
        };
        observed.reservations_ended.settled = 7;
        metrics.observe(&observed);
        observed.reservations_ended.settled = 9;
        metrics.observe(&observed);
        metrics.observe(&observed);
        let text = metrics.render();
        assert!(
            text.contains(r#"usage_reservations_total{end="settled"} 9"#),
            "{text}"
        );
        assert!(text.contains(r#"usage_reservations{state="held"} 3"#));
        assert!(text.contains("usage_reservation_oldest_seconds 1.5"));
    }

    #[test]
    fn a_method_that_a_client_invents_is_no_label_of_its_own() {
        let metrics = Metrics::new("redb");
        let method = http::Method::from_bytes(b"BREW").unwrap();
        metrics.http_answered(
            "/v1/models",
            &method,
            http::StatusCode::OK,
            Duration::from_millis(1),
        );
        metrics.http_answered(
            "/v1/models",
            &http::Method::PATCH,
            http::StatusCode::OK,
            Duration::ZERO,
        );
        let text = metrics.render();
        assert!(
            text.contains(
                r#"http_requests_total{method="other",route="/v1/models",status="200"} 1"#
            ),
            "{text}"
        );
        assert!(
            text.contains(
                r#"http_requests_total{method="PATCH",route="/v1/models",status="200"} 1"#
            )
        );
    }
}
