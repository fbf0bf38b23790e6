//! Stripe's meters: which there are, and whether usage may be sent to them.

use std::time::Duration;

use serde_json::Value;
use tokio::sync::Mutex;

use super::client::{CallError, Client};
use crate::domain::{quantity::Quantity, time::Timestamp, window::Window};

/// A meter that changes is seen within this.
const KEPT: Duration = Duration::from_secs(600);
/// One that is missing may just have been made.
const MISSING_FOR: Duration = Duration::from_secs(10);
const FAILED_FOR: Duration = Duration::from_secs(5);

/// A meter, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meter {
    pub(super) id: String,
    pub(super) event_name: String,
    status: String,
    formula: String,
    customer_by: String,
    /// The keys of an event's payload.
    pub(super) customer_key: String,
    pub(super) value_key: String,
    /// Set if events are summed up before Stripe gets them.
    event_time_window: Option<String>,
}

impl Meter {
    fn of(json: &Value) -> Option<Self> {
        let text = |value: &Value, default: &str| value.as_str().unwrap_or(default).to_owned();
        let customer = &json["customer_mapping"];
        Some(Self {
            id: json["id"].as_str()?.to_owned(),
            event_name: json["event_name"].as_str()?.to_owned(),
            status: text(&json["status"], "active"),
            formula: text(&json["default_aggregation"]["formula"], ""),
            customer_by: text(&customer["type"], "by_id"),
            customer_key: text(&customer["event_payload_key"], "stripe_customer_id"),
            value_key: text(&json["value_settings"]["event_payload_key"], "value"),
            event_time_window: json["event_time_window"].as_str().map(str::to_owned),
        })
    }

    /// Why usage must not be sent to it: it would be billed wrongly, or not at all.
    pub(super) fn fault(&self) -> Option<String> {
        let name = &self.event_name;
        if self.status != "active" {
            return Some(format!("meter '{name}' is {}; activate it", self.status));
        }
        if self.formula != "sum" {
            return Some(format!(
                "meter '{name}' aggregates by '{}'; it must be 'sum', so make another meter",
                self.formula
            ));
        }
        if let Some(window) = &self.event_time_window {
            return Some(format!(
                "meter '{name}' takes events that were summed up by {window} before; make one without event_time_window"
            ));
        }
        if self.customer_by != "by_id" {
            return Some(format!(
                "meter '{name}' finds customers '{}'; it must be 'by_id'",
                self.customer_by
            ));
        }
        if self.customer_key == self.value_key {
            return Some(format!(
                "meter '{name}' takes customer and value from one key, '{}'",
                self.value_key
            ));
        }
        None
    }
}

/// The meters, read again from time to time.
#[derive(Default)]
pub(super) struct Meters(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    meters: Option<(Timestamp, Vec<Meter>)>,
    /// They could not be read: who asks at the same time does not wait as long again.
    failed: Option<(Timestamp, CallError)>,
}

impl Meters {
    /// Reads them now, for somebody who looks for what is wrong.
    ///
    /// # Errors
    /// [`CallError`]; what was read before stays.
    pub(super) async fn read_again(
        &self,
        client: &Client,
        now: Timestamp,
    ) -> Result<(), CallError> {
        let mut kept = self.0.lock().await;
        let (listed, _) = client.list("/v1/billing/meters", &[]).await?;
        *kept = Kept {
            meters: Some((now, listed.iter().filter_map(Meter::of).collect())),
            failed: None,
        };
        Ok(())
    }

    /// Of several of one name the one that may be used. While they can't be read again, what was read before counts.
    ///
    /// # Errors
    /// [`CallError`].
    pub(super) async fn find(
        &self,
        client: &Client,
        event_name: &str,
        now: Timestamp,
    ) -> Result<Option<Meter>, CallError> {
        let mut kept = self.0.lock().await;
        let known = kept.meters.as_ref().map(|(read_at, meters)| {
            let found = best(meters, event_name);
            let is_usable = found.as_ref().is_some_and(|it| it.fault().is_none());
            (
                read_at.plus(if is_usable { KEPT } else { MISSING_FOR }),
                found,
            )
        });
        if let Some((until, found)) = &known
            && now < *until
        {
            return Ok(found.clone());
        }
        let read = match &kept.failed {
            Some((at, error)) if now < at.plus(FAILED_FOR) => Err(error.clone()),
            _ => client.list("/v1/billing/meters", &[]).await,
        };
        match read {
            Ok((listed, _)) => {
                let meters: Vec<Meter> = listed.iter().filter_map(Meter::of).collect();
                let found = best(&meters, event_name);
                *kept = Kept {
                    meters: Some((now, meters)),
                    failed: None,
                };
                Ok(found)
            }
            Err(error) => {
                let failed_at = kept.failed.as_ref().map(|(at, _)| *at);
                let failed_at = failed_at.filter(|at| now < at.plus(FAILED_FOR));
                kept.failed = Some((failed_at.unwrap_or(now), error.clone()));
                match known {
                    Some((_, Some(found))) => Ok(Some(found)),
                    Some((_, None)) | None => Err(error),
                }
            }
        }
    }
}

fn best(meters: &[Meter], event_name: &str) -> Option<Meter> {
    let of_name = meters.iter().filter(|it| it.event_name == event_name);
    of_name.min_by_key(|it| it.fault().is_some()).cloned()
}

/// What a customer used of a meter in `window`, whose bounds are whole minutes, as Stripe sums it.
///
/// # Errors
/// [`CallError`].
pub(super) async fn summary(
    client: &Client,
    meter: &Meter,
    customer: &str,
    window: Window,
) -> Result<Quantity, CallError> {
    let (start, end) = (
        window.start().seconds().to_string(),
        window.end().seconds().to_string(),
    );
    let path = format!("/v1/billing/meters/{}/event_summaries", meter.id);
    let query = [
        ("customer", customer),
        ("start_time", &start),
        ("end_time", &end),
    ];
    let (summaries, _) = client.list(&path, &query).await?;
    let values = summaries.iter().map(|it| whole(&it["aggregated_value"]));
    values
        .sum::<Option<i64>>()
        .map(Quantity::new)
        .ok_or_else(|| CallError::Unclear {
            error: "a summary's value is no whole number".to_owned(),
            retry_after: None,
        })
}

/// Stripe writes sums as floats; those of whole numbers are whole.
fn whole(value: &Value) -> Option<i64> {
    if let Some(value) = value.as_i64() {
        return Some(value);
    }
    let value = value.as_f64().filter(|it| it.fract() == 0.0)?;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "whole, and quantities end long before 64 bits do"
    )]
    Some(value as i64)
}

/// The whole minutes around an interval.
pub(super) fn minutes_around(first: Timestamp, last: Timestamp) -> Window {
    let start = Timestamp::from_seconds(first.seconds().div_euclid(60) * 60);
    let end = Timestamp::from_seconds((last.seconds().div_euclid(60) + 1) * 60);
    Window::new(start, end).expect("a minute later is later")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn meter(change: Value) -> Meter {
        let mut json = json!({
            "id": "mtr_1", "event_name": "msgs", "status": "active",
            "default_aggregation": {"formula": "sum"},
            "customer_mapping": {"type": "by_id", "event_payload_key": "who"},
            "value_settings": {"event_payload_key": "many"},
            "event_time_window": null,
        });
        for (key, value) in change.as_object().unwrap() {
            json[key] = value.clone();
        }
        Meter::of(&json).unwrap()
    }

    #[test]
    fn a_meter_that_would_bill_wrongly_is_refused() {
        let good = meter(json!({}));
        assert_eq!(
            (good.fault(), &*good.customer_key, &*good.value_key),
            (None, "who", "many")
        );
        for (change, why) in [
            (json!({"status": "inactive"}), "is inactive"),
            (
                json!({"default_aggregation": {"formula": "count"}}),
                "aggregates by 'count'",
            ),
            (
                json!({"default_aggregation": {"formula": "last"}}),
                "aggregates by 'last'",
            ),
            (json!({"event_time_window": "day"}), "summed up by day"),
            (
                json!({"customer_mapping": {"type": "by_email", "event_payload_key": "who"}}),
                "by_email",
            ),
            (
                json!({"value_settings": {"event_payload_key": "who"}}),
                "from one key",
            ),
        ] {
            let fault = meter(change).fault().unwrap();
            assert!(fault.contains(why), "{fault}");
        }
        let archived = meter(json!({"id": "mtr_0", "status": "inactive"}));
        assert_eq!(best(&[archived, good.clone()], "msgs"), Some(good));
    }

    #[test]
    fn sums_are_whole_however_they_are_written() {
        for (text, expected) in [
            ("10", Some(10)),
            ("10.0", Some(10)),
            ("-3", Some(-3)),
            ("1.5", None),
            ("\"1\"", None),
        ] {
            assert_eq!(
                whole(&serde_json::from_str(text).unwrap()),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn summaries_are_asked_for_by_whole_minutes() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let window = minutes_around(at("2026-01-01T00:00:59Z"), at("2026-01-01T00:02:00Z"));
        assert_eq!(
            (window.start(), window.end()),
            (at("2026-01-01T00:00:00Z"), at("2026-01-01T00:03:00Z"))
        );
    }
}
