//! What Stripe tells: its events as they came, and what is known of its subscriptions.

use futures_util::future::BoxFuture;

use super::StoreResult;
use crate::domain::{
    administrator::Actor,
    ids::TenantId,
    processor::{Known, Payment, ProcessorSubscription},
    time::Timestamp,
};

/// How far an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WebhookStatus {
    /// To be looked at, for the first time or again.
    Pending,
    /// What it says is in force, unless something newer is.
    Applied,
    /// Of a type that says nothing here.
    Ignored,
    /// About a tenant or plan that is not known.
    Unmatched,
    /// Given up.
    Dead,
}

impl WebhookStatus {
    pub const ALL: [Self; 5] = [
        Self::Pending,
        Self::Applied,
        Self::Ignored,
        Self::Unmatched,
        Self::Dead,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Applied => "applied",
            Self::Ignored => "ignored",
            Self::Unmatched => "unmatched",
            Self::Dead => "dead",
        }
    }
}

/// An event of Stripe's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    pub event_id: String,
    pub event_type: String,
    /// Of the object that it is about; `""` if it has none.
    pub object_id: String,
    pub happened_at: Timestamp,
    pub received_at: Timestamp,
    pub tenant: Option<TenantId>,
    /// `None` also where the tenant is not there any more.
    pub tenant_slug: Option<String>,
    pub status: WebhookStatus,
    pub attempts: u32,
    pub last_error: Option<String>,
    pub next_attempt_at: Option<Timestamp>,
    /// Its JSON; `""` if it is ignored.
    pub payload: String,
}

/// What became of an event that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    New,
    /// It was there; one that was `Unmatched` or `Dead` is pending again.
    Again(WebhookStatus),
}

/// What became of an attempt to apply one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WebhookEnding {
    Applied { tenant: TenantId },
    Unmatched { error: String },
    Retry { at: Timestamp, error: String },
    Dead { error: String },
}

pub trait WebhookStore: Send + Sync {
    /// Keeps an event, once.
    fn receive_webhook<'a>(&'a self, webhook: &'a Webhook) -> BoxFuture<'a, StoreResult<Arrival>>;

    /// Those pending and due, by when they happened.
    fn list_due_webhooks(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<Webhook>>>;

    fn find_webhook<'a>(&'a self, event_id: &'a str)
    -> BoxFuture<'a, StoreResult<Option<Webhook>>>;

    /// Notes how an attempt ended.
    fn end_webhook<'a>(
        &'a self,
        event_id: &'a str,
        ending: &'a WebhookEnding,
    ) -> BoxFuture<'a, StoreResult<()>>;

    /// Newest first by when they came, older than `before`, at most `limit`.
    fn list_webhooks(
        &self,
        status: Option<WebhookStatus>,
        before: Option<(Timestamp, String)>,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<Webhook>>>;

    /// Makes one pending and due that is unmatched, dead or applied, its attempts counted anew; audited. No if there is
    /// none such.
    fn replay_webhook<'a>(
        &'a self,
        event_id: &'a str,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<bool>>;

    /// Forgets what was applied or ignored and came before `before`, at most `limit`.
    fn prune_webhooks(&self, before: Timestamp, limit: usize) -> BoxFuture<'_, StoreResult<u64>>;

    /// Keeps the state of a subscription, unless what is kept is as new: `order` grows with time.
    fn note_state<'a>(
        &'a self,
        state: &'a ProcessorSubscription,
        order: &'a str,
        tenant: Option<TenantId>,
    ) -> BoxFuture<'a, StoreResult<()>>;

    /// Keeps what became of a subscription's invoice, unless what is kept is as new.
    fn note_payment<'a>(
        &'a self,
        subscription_id: &'a str,
        payment: Payment,
        order: &'a str,
    ) -> BoxFuture<'a, StoreResult<()>>;

    fn find_known<'a>(
        &'a self,
        subscription_id: &'a str,
    ) -> BoxFuture<'a, StoreResult<Option<Known>>>;

    /// All that is known of a tenant's subscriptions.
    fn list_known(&self, tenant: TenantId) -> BoxFuture<'_, StoreResult<Vec<Known>>>;

    /// Whose customer it is: by the tenants' subscriptions, else by what is known of Stripe's.
    fn find_tenant_of_customer<'a>(
        &'a self,
        customer_id: &'a str,
    ) -> BoxFuture<'a, StoreResult<Option<TenantId>>>;
}
