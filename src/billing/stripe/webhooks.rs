//! What Stripe tells: each event is checked, kept once, and applied; what is newer stays, whatever comes later.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::{
    Stripe, StripeError,
    event::{
        PAID, PAYMENT_FAILED, SUBSCRIPTION_EVENTS, id_of, subscription_of, subscription_of_invoice,
        webhook_of,
    },
    signature::{self, SignatureError},
};
use crate::{
    domain::{
        administrator::Actor,
        ids::TenantId,
        names::PlanCode,
        processor::{self, Known, Payment, ProcessorSubscription},
        subscription::Subscription,
        tenant::{Tenant, TenantRef},
        time::Timestamp,
    },
    store::{
        StoreError, StoreResult, versions,
        webhooks::{Arrival, Webhook, WebhookEnding, WebhookStatus},
    },
};

/// After so many attempts an event is dead, until it is replayed or comes again.
const MOST_ATTEMPTS: u32 = 12;
/// The first pause; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How many events one step looks at.
const BATCH: usize = 100;
/// How often somebody else may be faster before an attempt is given up.
const RACES: usize = 10;

/// The name that metrics have for an event's type: there are many more than matter.
fn label(event_type: &str) -> &'static str {
    let known = SUBSCRIPTION_EVENTS.iter().chain(&[PAID, PAYMENT_FAILED]);
    let mut known = known.filter(|it| **it == event_type);
    known.next().copied().unwrap_or("other")
}

/// An event was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    pub is_duplicate: bool,
}

/// Why one was not.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error("webhooks are not taken: STRIPE_WEBHOOK_SECRET is not set")]
    NoSecret,
    #[error(transparent)]
    Signature(#[from] SignatureError),
    #[error("the body is no event of Stripe's: {0}")]
    Payload(&'static str),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A webhook as commands and the API show it.
#[derive(Clone, Debug, Serialize)]
pub struct WebhookObject {
    pub event_id: String,
    pub event_type: String,
    pub object_id: String,
    pub tenant_slug: Option<String>,
    /// `pending`, `applied`, `ignored`, `unmatched` or `dead`.
    pub status: &'static str,
    pub attempts: u32,
    pub last_error: Option<String>,
    pub happened_at: Timestamp,
    pub received_at: Timestamp,
    pub next_attempt_at: Option<Timestamp>,
}

impl From<Webhook> for WebhookObject {
    fn from(webhook: Webhook) -> Self {
        Self {
            event_id: webhook.event_id,
            event_type: webhook.event_type,
            object_id: webhook.object_id,
            tenant_slug: webhook.tenant_slug,
            status: webhook.status.as_str(),
            attempts: webhook.attempts,
            last_error: webhook.last_error,
            happened_at: webhook.happened_at.to_whole_second(),
            received_at: webhook.received_at.to_whole_second(),
            next_attempt_at: webhook.next_attempt_at.map(Timestamp::to_whole_second),
        }
    }
}

/// Why an event is not applied.
enum NotApplied {
    /// Its tenant or plan is not known.
    Unmatched(String),
    Store(StoreError),
}

impl From<StoreError> for NotApplied {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Stripe {
    /// Takes an event: kept when this returns, and applied at once if that can be.
    ///
    /// # Errors
    /// [`WebhookError`]: it is not kept.
    pub async fn receive(&self, header: &str, body: &[u8]) -> Result<Received, WebhookError> {
        let received = self.receive_kept(header, body).await;
        if let Err(error) = &received {
            let result = match error {
                WebhookError::Store(_) => "error",
                WebhookError::NoSecret | WebhookError::Signature(_) | WebhookError::Payload(_) => {
                    "rejected"
                }
            };
            self.parts.metrics.count_stripe_webhook("other", result);
        }
        received
    }

    async fn receive_kept(&self, header: &str, body: &[u8]) -> Result<Received, WebhookError> {
        if self.secrets.is_empty() {
            return Err(WebhookError::NoSecret);
        }
        let now = self.now();
        signature::verify(header, body, &self.secrets, now)?;
        let webhook = webhook_of(body, now)?;
        match self.parts.store.receive_webhook(&webhook).await? {
            Arrival::New => {}
            Arrival::Again(WebhookStatus::Applied | WebhookStatus::Ignored) => {
                self.count(&webhook.event_type, "duplicate");
                return Ok(Received { is_duplicate: true });
            }
            Arrival::Again(
                WebhookStatus::Pending | WebhookStatus::Unmatched | WebhookStatus::Dead,
            ) => {
                self.process(&webhook).await;
                return Ok(Received { is_duplicate: true });
            }
        }
        if webhook.status == WebhookStatus::Ignored {
            self.count(&webhook.event_type, "ok");
        } else {
            self.process(&webhook).await;
        }
        Ok(Received {
            is_duplicate: false,
        })
    }

    fn count(&self, event_type: &str, result: &str) {
        let event_type = label(event_type);
        self.parts.metrics.count_stripe_webhook(event_type, result);
    }

    /// Applies what is pending, in the order in which it happened. Whether there may be more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn apply_pending(&self) -> StoreResult<bool> {
        let due = self
            .parts
            .store
            .list_due_webhooks(self.now(), BATCH)
            .await?;
        for webhook in &due {
            self.process(webhook).await;
        }
        Ok(due.len() >= BATCH)
    }

    /// Tries to apply an event, and notes what became of it; what can't be noted is tried again.
    async fn process(&self, webhook: &Webhook) {
        let applied = self.apply(webhook).await;
        let attempts = webhook.attempts.saturating_add(1);
        let ending = match applied {
            Ok(tenant) => WebhookEnding::Applied { tenant },
            Err(NotApplied::Unmatched(error)) => WebhookEnding::Unmatched { error },
            Err(NotApplied::Store(error)) if attempts >= MOST_ATTEMPTS => WebhookEnding::Dead {
                error: format!("given up after {attempts} attempts: {error}"),
            },
            Err(NotApplied::Store(error)) => WebhookEnding::Retry {
                at: self
                    .now()
                    .plus(FIRST_PAUSE * 2_u32.pow(attempts.min(12) - 1)),
                error: error.to_string(),
            },
        };
        let result = match &ending {
            WebhookEnding::Applied { .. } => "ok",
            WebhookEnding::Retry { .. } => "error",
            WebhookEnding::Unmatched { .. } | WebhookEnding::Dead { .. } => "rejected",
        };
        self.count(&webhook.event_type, result);
        if let WebhookEnding::Unmatched { error } | WebhookEnding::Dead { error } = &ending {
            tracing::warn!(
                code = "stripe_webhook_not_applied",
                event_id = webhook.event_id,
                event_type = webhook.event_type,
                error,
                "an event of Stripe's is kept and not applied; mend what it says, then `tollgate stripe webhook replay`"
            );
        }
        let ended = self
            .parts
            .store
            .end_webhook(&webhook.event_id, &ending)
            .await;
        if let Err(error) = ended {
            tracing::debug!(%error, "what became of an event can't be noted; it is applied again");
        }
        // What changed holds for the next request.
        if let Err(error) = self.parts.catalogue.poll().await {
            tracing::debug!(%error, "the catalogue's changes can't be read; the next poll makes up for it");
        }
    }

    async fn apply(&self, webhook: &Webhook) -> Result<TenantId, NotApplied> {
        let event: Value = serde_json::from_str(&webhook.payload)
            .map_err(|error| NotApplied::Unmatched(format!("can't be read: {error}")))?;
        let object = &event["data"]["object"];
        let payment = match webhook.event_type.as_str() {
            PAID => Some(Payment::Paid),
            PAYMENT_FAILED => Some(Payment::Failed),
            _ => None,
        };
        match payment {
            Some(payment) => self.apply_payment(webhook, object, payment).await,
            None => {
                let finality = finality_of(&webhook.event_type);
                let order = processor::order(webhook.happened_at, finality, &webhook.event_id);
                self.apply_state(object, &order).await
            }
        }
    }

    async fn apply_payment(
        &self,
        webhook: &Webhook,
        invoice: &Value,
        payment: Payment,
    ) -> Result<TenantId, NotApplied> {
        let store = &self.parts.store;
        let subscription = subscription_of_invoice(invoice).unwrap_or_default();
        let order = processor::order(webhook.happened_at, 0, &webhook.event_id);
        store.note_payment(subscription, payment, &order).await?;
        let known = store.find_known(subscription).await?;
        let Some(tenant) = known.and_then(|known| known.tenant) else {
            return Err(NotApplied::Unmatched(format!(
                "subscription {subscription} is not known yet"
            )));
        };
        self.settle_tenant(tenant).await
    }

    /// Takes note of a subscription as `object` shows it; what it means for its tenant holds when this returns.
    async fn apply_state(&self, object: &Value, order: &str) -> Result<TenantId, NotApplied> {
        let unmatched = |why: String| NotApplied::Unmatched(why);
        let id = object["id"]
            .as_str()
            .ok_or_else(|| unmatched("it has no id".to_owned()))?;
        let customer = id_of(&object["customer"])
            .ok_or_else(|| unmatched(format!("subscription {id} has no customer")))?;
        let known = self.parts.store.find_known(id).await?;
        let tenant = self.tenant_of(object, customer).await?;
        let plan_code = self.plan_of(object, known.as_ref()).await?;
        let state = subscription_of(id, customer, plan_code, object).map_err(unmatched)?;
        self.parts
            .store
            .note_state(&state, order, Some(tenant))
            .await?;
        let before = known.filter(|it| it.state.as_ref().is_some_and(|it| *it != state));
        if before.is_some_and(|it| processor::is_tie(&it.state_order, order)) {
            self.look_at(state, tenant).await?;
        }
        self.settle_tenant(tenant).await
    }

    /// Asks Stripe how a subscription stands of which two states came with one second; as far as that can be asked.
    async fn look_at(
        &self,
        state: ProcessorSubscription,
        tenant: TenantId,
    ) -> Result<(), NotApplied> {
        let id = &state.subscription_id;
        let answer = match self
            .client
            .get(&format!("/v1/subscriptions/{id}"), &[])
            .await
        {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(%error, subscription_id = id, "which of two states is the last can't be asked");
                return Ok(());
            }
        };
        let plan_code = self.plan_of(&answer.json, None).await?;
        let seen = subscription_of(id, &state.customer_id, plan_code, &answer.json);
        let seen = seen.map_err(NotApplied::Unmatched)?;
        let order = processor::order(answer.date.unwrap_or_else(|| self.now()), 0, id);
        self.parts
            .store
            .note_state(&seen, &order, Some(tenant))
            .await?;
        Ok(())
    }

    /// By `metadata.tenant_id`, else by the customer.
    async fn tenant_of(&self, object: &Value, customer: &str) -> Result<TenantId, NotApplied> {
        let store = &self.parts.store;
        if let Some(named) = object["metadata"]["tenant_id"].as_str() {
            let found = match named.parse::<TenantRef>() {
                Ok(tenant) => store.find_tenant(&tenant).await?,
                Err(_) => None,
            };
            let unknown = || NotApplied::Unmatched(format!("there is no tenant '{named}'"));
            return found.map(|it| it.tenant_id).ok_or_else(unknown);
        }
        let found = store.find_tenant_of_customer(customer).await?;
        found.ok_or_else(|| {
            NotApplied::Unmatched(format!(
                "no tenant has the customer {customer}, and metadata.tenant_id is not set"
            ))
        })
    }

    /// By `metadata.plan_code`, else by the `lookup_key` of a price; one that is over may have lost both.
    async fn plan_of(&self, object: &Value, known: Option<&Known>) -> Result<PlanCode, NotApplied> {
        if let Some(named) = object["metadata"]["plan_code"].as_str() {
            return match self.find_plan(named).await? {
                Some(code) => Ok(code),
                None => Err(NotApplied::Unmatched(format!("there is no plan '{named}'"))),
            };
        }
        let items = object["items"]["data"].as_array();
        let keys = items.into_iter().flatten();
        let keys: Vec<&str> = keys
            .filter_map(|item| item["price"]["lookup_key"].as_str())
            .collect();
        for key in &keys {
            if let Some(code) = self.find_plan(key).await? {
                return Ok(code);
            }
        }
        let before = known.and_then(|known| known.state.as_ref());
        if let Some(before) = before.filter(|_| object["status"] == "canceled") {
            return Ok(before.plan_code.clone());
        }
        Err(NotApplied::Unmatched(format!(
            "no price has a plan's code as lookup_key (found: {}), and metadata.plan_code is not set",
            if keys.is_empty() {
                "none".to_owned()
            } else {
                keys.join(", ")
            }
        )))
    }

    async fn find_plan(&self, code: &str) -> StoreResult<Option<PlanCode>> {
        let Ok(code) = code.parse::<PlanCode>() else {
            return Ok(None);
        };
        let found = self.parts.store.find_plan(&code).await?;
        Ok(found.map(|plan| plan.code))
    }

    /// Brings the tenant's subscription to what is known of Stripe's.
    async fn settle_tenant(&self, tenant: TenantId) -> Result<TenantId, NotApplied> {
        let store = &self.parts.store;
        for _ in 0..RACES {
            // The tenant first: whoever changes it after what is known was read is noticed.
            let found = store.find_tenant(&TenantRef::Id(tenant)).await?;
            let Some(found) = found else {
                return Err(NotApplied::Unmatched("its tenant is deleted".to_owned()));
            };
            let known = store.list_known(tenant).await?;
            let Some(state) = processor::current(&known) else {
                return Ok(tenant);
            };
            let now = self.now();
            let Some(wanted) = wanted(&state, &found, now) else {
                let why = format!("the period of {} has no length", state.subscription_id);
                return Err(NotApplied::Unmatched(why));
            };
            if found.subscription.as_ref() == Some(&wanted) {
                return Ok(tenant);
            }
            let by = Actor {
                name: "stripe".to_owned(),
                address: None,
                at: now,
            };
            let version = versions::tenant(&found);
            match store
                .set_subscription(tenant, &wanted, Some(version), &by)
                .await
            {
                Ok(()) => return Ok(tenant),
                Err(StoreError::VersionConflict { .. }) => {}
                Err(StoreError::NotFound { what, name }) => {
                    return Err(NotApplied::Unmatched(format!(
                        "there is no {what} '{name}'"
                    )));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let busy = "the tenant is changed by others all the time".to_owned();
        Err(StoreError::Unavailable(busy).into())
    }

    /// Looks at all of Stripe's subscriptions, for webhooks that were missed. How many were taken, and what of those is
    /// to be said that were not.
    ///
    /// # Errors
    /// [`StripeError`].
    pub(super) async fn pull_subscriptions(&self) -> Result<(u64, Vec<String>), StripeError> {
        let (listed, date) = self
            .client
            .list("/v1/subscriptions", &[("status", "all")])
            .await?;
        let seen_at = date.unwrap_or_else(|| self.now());
        let (mut taken, mut left_out) = (0, Vec::new());
        for object in &listed {
            let id = object["id"].as_str().unwrap_or_default();
            // As final as nothing: an event of the same second may be newer.
            let order = processor::order(seen_at, 0, id);
            match self.apply_state(object, &order).await {
                Ok(_) => taken += 1,
                Err(NotApplied::Unmatched(why)) => left_out.push(format!("{id}: {why}")),
                Err(NotApplied::Store(error)) => return Err(error.into()),
            }
        }
        if let Err(error) = self.parts.catalogue.poll().await {
            tracing::debug!(%error, "the catalogue's changes can't be read; the next poll makes up for it");
        }
        Ok((taken, left_out))
    }
}

/// Of two events of one second, which is the last.
fn finality_of(event_type: &str) -> u8 {
    match event_type {
        "customer.subscription.created" => 1,
        "customer.subscription.deleted" => 9,
        _ => 2,
    }
}

/// The tenant's subscription as Stripe has it; `None` if its period has no length.
fn wanted(state: &ProcessorSubscription, tenant: &Tenant, now: Timestamp) -> Option<Subscription> {
    let before = tenant.subscription.as_ref();
    let same = before.filter(|it| it.status == state.status);
    Some(Subscription {
        plan_code: state.plan_code.clone(),
        status: state.status,
        status_since: same.map_or(now, |it| it.status_since),
        period: state.period()?,
        processor_customer_id: Some(state.customer_id.clone()),
    })
}
