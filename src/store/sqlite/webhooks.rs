//! What Stripe tells.

use futures_util::future::BoxFuture;
use rusqlite::{Transaction, params};
use serde_json::json;

use super::{
    Failed, SqliteStore,
    audit::Change,
    rows::{self, Cells, blob},
};
use crate::{
    domain::{
        administrator::Actor,
        ids::TenantId,
        processor::{Known, Payment, ProcessorSubscription},
        time::Timestamp,
    },
    store::{
        StoreResult,
        webhooks::{Arrival, Webhook, WebhookEnding, WebhookStatus, WebhookStore},
    },
};

const TABLE: &str = "stripe_webhooks";
const SELECT: &str =
    "SELECT stripe_webhooks.*, slug FROM stripe_webhooks LEFT JOIN tenants USING (tenant_id)";

impl WebhookStore for SqliteStore {
    fn receive_webhook<'a>(&'a self, webhook: &'a Webhook) -> BoxFuture<'a, StoreResult<Arrival>> {
        let webhook = webhook.clone();
        Box::pin(self.write("webhooks.receive", move |tx| receive(tx, &webhook)))
    }

    fn list_due_webhooks(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<Webhook>>> {
        Box::pin(self.read("webhooks.list_due", move |tx| {
            rows::list(
                tx,
                TABLE,
                &format!(
                    "{SELECT} WHERE next_attempt_at <= ?1 ORDER BY happened_at, event_id LIMIT ?2"
                ),
                params![now.micros(), rows::limit(limit)],
                read,
            )
        }))
    }

    fn find_webhook<'a>(
        &'a self,
        event_id: &'a str,
    ) -> BoxFuture<'a, StoreResult<Option<Webhook>>> {
        let event_id = event_id.to_owned();
        Box::pin(self.read("webhooks.find", move |tx| find(tx, &event_id)))
    }

    fn end_webhook<'a>(
        &'a self,
        event_id: &'a str,
        ending: &'a WebhookEnding,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let (event_id, ending) = (event_id.to_owned(), ending.clone());
        Box::pin(self.write("webhooks.end", move |tx| end(tx, &event_id, &ending)))
    }

    fn list_webhooks(
        &self,
        status: Option<WebhookStatus>,
        before: Option<(Timestamp, String)>,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<Webhook>>> {
        let (at, event_id) = before.unwrap_or((Timestamp::NEVER, String::new()));
        Box::pin(self.read("webhooks.list", move |tx| {
            rows::list(
                tx,
                TABLE,
                &format!(
                    "{SELECT} WHERE (received_at, event_id) < (?1, ?2) AND (?3 IS NULL OR status = ?3)
                     ORDER BY received_at DESC, event_id DESC LIMIT ?4"
                ),
                params![
                    at.micros(),
                    event_id,
                    status.map(WebhookStatus::as_str),
                    rows::limit(limit)
                ],
                read,
            )
        }))
    }

    fn replay_webhook<'a>(
        &'a self,
        event_id: &'a str,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<bool>> {
        let (event_id, by) = (event_id.to_owned(), by.clone());
        Box::pin(self.write("webhooks.replay", move |tx| replay(tx, &event_id, &by)))
    }

    fn prune_webhooks(&self, before: Timestamp, limit: usize) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(self.write("webhooks.prune", move |tx| {
            rows::run(
                tx,
                "DELETE FROM stripe_webhooks WHERE event_id IN (
                     SELECT event_id FROM stripe_webhooks
                     WHERE received_at < ?1 AND status IN ('applied', 'ignored') ORDER BY received_at LIMIT ?2
                 )",
                params![before.micros(), rows::limit(limit)],
            )
        }))
    }

    fn note_state<'a>(
        &'a self,
        state: &'a ProcessorSubscription,
        order: &'a str,
        tenant: Option<TenantId>,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let (state, order) = (state.clone(), order.to_owned());
        Box::pin(self.write("webhooks.note_state", move |tx| {
            rows::run(
                tx,
                "INSERT INTO stripe_subscriptions (subscription_id, tenant_id, customer_id, state, state_order)
                 VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (subscription_id) DO UPDATE SET
                     tenant_id = coalesce(excluded.tenant_id, tenant_id), customer_id = excluded.customer_id,
                     state = excluded.state, state_order = excluded.state_order
                 WHERE state_order < excluded.state_order",
                params![
                    state.subscription_id,
                    tenant.map(|tenant| blob(tenant.uuid())),
                    state.customer_id,
                    rows::to_json(&state)?,
                    order
                ],
            )?;
            // Whose it is may be known only now, of a state that was known before.
            rows::run(
                tx,
                "UPDATE stripe_subscriptions SET tenant_id = ?2 WHERE subscription_id = ?1 AND tenant_id IS NULL",
                params![
                    state.subscription_id,
                    tenant.map(|tenant| blob(tenant.uuid()))
                ],
            )?;
            Ok(())
        }))
    }

    fn note_payment<'a>(
        &'a self,
        subscription_id: &'a str,
        payment: Payment,
        order: &'a str,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let (subscription_id, order) = (subscription_id.to_owned(), order.to_owned());
        Box::pin(self.write("webhooks.note_payment", move |tx| {
            rows::run(
                tx,
                "INSERT INTO stripe_subscriptions (subscription_id, payment, payment_order) VALUES (?1, ?2, ?3)
                 ON CONFLICT (subscription_id) DO UPDATE SET
                     payment = excluded.payment, payment_order = excluded.payment_order
                 WHERE payment_order < excluded.payment_order",
                params![subscription_id, payment.as_str(), order],
            )?;
            Ok(())
        }))
    }

    fn find_known<'a>(
        &'a self,
        subscription_id: &'a str,
    ) -> BoxFuture<'a, StoreResult<Option<Known>>> {
        let subscription_id = subscription_id.to_owned();
        Box::pin(self.read("webhooks.find_known", move |tx| {
            rows::find(
                tx,
                "stripe_subscriptions",
                "SELECT * FROM stripe_subscriptions WHERE subscription_id = ?1",
                [subscription_id],
                read_known,
            )
        }))
    }

    fn list_known(&self, tenant: TenantId) -> BoxFuture<'_, StoreResult<Vec<Known>>> {
        Box::pin(self.read("webhooks.list_known", move |tx| {
            rows::list(
                tx,
                "stripe_subscriptions",
                "SELECT * FROM stripe_subscriptions WHERE tenant_id = ?1 ORDER BY subscription_id",
                [blob(tenant.uuid())],
                read_known,
            )
        }))
    }

    fn find_tenant_of_customer<'a>(
        &'a self,
        customer_id: &'a str,
    ) -> BoxFuture<'a, StoreResult<Option<TenantId>>> {
        let customer_id = customer_id.to_owned();
        Box::pin(self.read("webhooks.find_tenant_of_customer", move |tx| {
            rows::find(
                tx,
                "subscriptions",
                "SELECT tenant_id FROM (
                     SELECT tenant_id, 1 AS rank FROM subscriptions WHERE processor_customer_id = ?1
                     UNION ALL SELECT tenant_id, 2 FROM stripe_subscriptions WHERE customer_id = ?1 AND tenant_id IS NOT NULL
                 ) JOIN tenants USING (tenant_id) WHERE deleted_at IS NULL ORDER BY rank, tenant_id LIMIT 1",
                [customer_id],
                |cells| cells.uuid("tenant_id").map(TenantId::new),
            )
        }))
    }
}

fn find(tx: &Transaction<'_>, event_id: &str) -> Result<Option<Webhook>, Failed> {
    rows::find(
        tx,
        TABLE,
        &format!("{SELECT} WHERE event_id = ?1"),
        [event_id],
        read,
    )
}

fn receive(tx: &Transaction<'_>, webhook: &Webhook) -> Result<Arrival, Failed> {
    if let Some(known) = find(tx, &webhook.event_id)? {
        if matches!(known.status, WebhookStatus::Unmatched | WebhookStatus::Dead) {
            make_pending(tx, &webhook.event_id, webhook.received_at)?;
        }
        return Ok(Arrival::Again(known.status));
    }
    rows::run(
        tx,
        "INSERT INTO stripe_webhooks (event_id, event_type, object_id, happened_at, received_at, status, attempts,
                                      next_attempt_at, payload)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7, ?8)",
        params![
            webhook.event_id,
            webhook.event_type,
            webhook.object_id,
            webhook.happened_at.micros(),
            webhook.received_at.micros(),
            webhook.status.as_str(),
            rows::micros(webhook.next_attempt_at),
            webhook.payload,
        ],
    )?;
    Ok(Arrival::New)
}

fn make_pending(tx: &Transaction<'_>, event_id: &str, now: Timestamp) -> Result<u64, Failed> {
    rows::run(
        tx,
        "UPDATE stripe_webhooks SET status = 'pending', attempts = 0, next_attempt_at = ?2 WHERE event_id = ?1",
        params![event_id, now.micros()],
    )
}

fn end(tx: &Transaction<'_>, event_id: &str, ending: &WebhookEnding) -> Result<(), Failed> {
    let (status, error, tenant, next) = match ending {
        WebhookEnding::Applied { tenant } => (WebhookStatus::Applied, None, Some(*tenant), None),
        WebhookEnding::Unmatched { error } => (WebhookStatus::Unmatched, Some(error), None, None),
        WebhookEnding::Retry { at, error } => {
            (WebhookStatus::Pending, Some(error), None, Some(*at))
        }
        WebhookEnding::Dead { error } => (WebhookStatus::Dead, Some(error), None, None),
    };
    rows::run(
        tx,
        "UPDATE stripe_webhooks SET status = ?2, last_error = ?3, tenant_id = coalesce(?4, tenant_id),
             next_attempt_at = ?5, attempts = attempts + 1
         WHERE event_id = ?1 AND status = 'pending'",
        params![
            event_id,
            status.as_str(),
            error,
            tenant.map(|tenant| blob(tenant.uuid())),
            rows::micros(next),
        ],
    )?;
    Ok(())
}

fn replay(tx: &Transaction<'_>, event_id: &str, by: &Actor) -> Result<bool, Failed> {
    let Some(found) = find(tx, event_id)? else {
        return Ok(false);
    };
    let is_over = matches!(
        found.status,
        WebhookStatus::Unmatched | WebhookStatus::Dead | WebhookStatus::Applied
    );
    if !is_over {
        return Ok(false);
    }
    Change {
        action: "webhook.replay",
        target: event_id,
        before: Some(json!({ "status": found.status.as_str() })),
        after: Some(json!({ "status": WebhookStatus::Pending.as_str() })),
    }
    .note(tx, by)?;
    make_pending(tx, event_id, by.at)?;
    Ok(true)
}

fn read(cells: &Cells<'_>) -> Result<Webhook, Failed> {
    Ok(Webhook {
        event_id: cells.get("event_id")?,
        event_type: cells.get("event_type")?,
        object_id: cells.get("object_id")?,
        happened_at: cells.time("happened_at")?,
        received_at: cells.time("received_at")?,
        tenant: cells.optional_uuid("tenant_id")?.map(TenantId::new),
        tenant_slug: cells.get("slug")?,
        status: cells.one_of("status", &WebhookStatus::ALL, WebhookStatus::as_str)?,
        attempts: cells.get("attempts")?,
        last_error: cells.get("last_error")?,
        next_attempt_at: cells.optional_time("next_attempt_at")?,
        payload: cells.get("payload")?,
    })
}

fn read_known(cells: &Cells<'_>) -> Result<Known, Failed> {
    let payment: Option<String> = cells.get("payment")?;
    let payment = payment.map(|_| cells.one_of("payment", &Payment::ALL, Payment::as_str));
    Ok(Known {
        tenant: cells.optional_uuid("tenant_id")?.map(TenantId::new),
        state: cells.optional_json("state")?,
        state_order: cells.get("state_order")?,
        payment: payment.transpose()?,
        payment_order: cells.get("payment_order")?,
    })
}
