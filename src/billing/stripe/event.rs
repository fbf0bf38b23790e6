//! Reads Stripe's events: which are about us, and the subscription that one shows.

use serde_json::Value;

use super::webhooks::WebhookError;
use crate::{
    domain::{
        names::PlanCode, processor::ProcessorSubscription, subscription::SubscriptionStatus,
        time::Timestamp,
    },
    store::webhooks::{Webhook, WebhookStatus},
};

pub(super) const SUBSCRIPTION_EVENTS: [&str; 5] = [
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.resumed",
];
pub(super) const PAID: &str = "invoice.paid";
pub(super) const PAYMENT_FAILED: &str = "invoice.payment_failed";

/// An event as it is kept; of one that says nothing here, without what it says.
pub(super) fn webhook_of(body: &[u8], now: Timestamp) -> Result<Webhook, WebhookError> {
    let text = std::str::from_utf8(body).map_err(|_| WebhookError::Payload("no UTF-8"))?;
    let event: Value = serde_json::from_str(text).map_err(|_| WebhookError::Payload("no JSON"))?;
    let word = |value: &Value, what| match value.as_str() {
        Some(word) if !word.is_empty() && word.len() <= 255 => Ok(word.to_owned()),
        _ => Err(WebhookError::Payload(what)),
    };
    let event_id = word(&event["id"], "it has no id")?;
    let event_type = word(&event["type"], "it has no type")?;
    let created = event["created"].as_i64();
    let created = created.ok_or(WebhookError::Payload("it has no created"))?;
    let object = &event["data"]["object"];
    let is_about_us = match event_type.as_str() {
        PAID | PAYMENT_FAILED => subscription_of_invoice(object).is_some(),
        other => SUBSCRIPTION_EVENTS.contains(&other),
    };
    let (status, payload) = if is_about_us {
        (WebhookStatus::Pending, text.to_owned())
    } else {
        (WebhookStatus::Ignored, String::new())
    };
    Ok(Webhook {
        event_id,
        event_type,
        object_id: object["id"].as_str().unwrap_or_default().to_owned(),
        happened_at: Timestamp::from_seconds(created),
        received_at: now,
        tenant: None,
        tenant_slug: None,
        status,
        attempts: 0,
        last_error: None,
        next_attempt_at: is_about_us.then_some(now),
        payload,
    })
}

/// The id of an object that may be there whole or by its id only.
pub(super) fn id_of(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["id"].as_str())
}

/// Older versions of the API have it on the invoice itself.
pub(super) fn subscription_of_invoice(invoice: &Value) -> Option<&str> {
    id_of(&invoice["subscription"])
        .or_else(|| id_of(&invoice["parent"]["subscription_details"]["subscription"]))
}

/// Reads a subscription; its period is on its items, in older versions of the API on itself.
pub(super) fn subscription_of(
    id: &str,
    customer: &str,
    plan_code: PlanCode,
    object: &Value,
) -> Result<ProcessorSubscription, String> {
    let status = object["status"].as_str().unwrap_or_default();
    let status: SubscriptionStatus = status.parse().map_err(|error| format!("{error}"))?;
    let first = &object["items"]["data"][0];
    let time = |value: &Value| value.as_i64().map(Timestamp::from_seconds);
    let bound = |name: &str| {
        let found = time(&first[name]).or_else(|| time(&object[name]));
        found.ok_or_else(|| format!("subscription {id} has no {name}"))
    };
    let recurring = &first["price"]["recurring"];
    let count = recurring["interval_count"].as_i64().unwrap_or(1);
    let months = match recurring["interval"].as_str() {
        Some("month") => i32::try_from(count).ok(),
        Some("year") => i32::try_from(count).ok().and_then(|it| it.checked_mul(12)),
        _ => None,
    };
    let period_start = bound("current_period_start")?;
    Ok(ProcessorSubscription {
        subscription_id: id.to_owned(),
        customer_id: customer.to_owned(),
        plan_code,
        status,
        created_at: time(&object["created"]).unwrap_or(period_start),
        period_start,
        period_end: bound("current_period_end")?,
        anchor: time(&object["billing_cycle_anchor"]),
        months: months.filter(|it| *it > 0),
    })
}
