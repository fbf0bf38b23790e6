//! Stripe: usage goes to its meters, its subscriptions decide plan and period, and both sides are compared.
//!
//! Usage comes together in slots, in the transaction that records it ([`uses()`] says what counts); due slots become
//! entries of the outbox, which `push` sends, one call at a time a customer and meter. Of an attempt whose outcome is not
//! known, Stripe knows the identifier for a day; after that its summaries decide before anything is sent again
//! (`push::settle_doubt`). `reconcile` confirms what was sent and explains differences. `webhooks` keeps what Stripe tells
//! and applies it in any order; `sync` looks for itself. Nothing here is on a request's way, and usage is never taken
//! from an invoice.

mod client;
mod event;
mod meters;
mod notice;
mod push;
mod reconcile;
mod result;
mod signature;
mod status;
mod sync;
mod uses;
mod webhooks;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use secrecy::SecretString;

pub use self::{
    client::CallError,
    push::{MeterSender, Pushed},
    reconcile::{Difference, ReconcileAsk, ReconcileError, Reconciled},
    status::StripeStatus,
    sync::{PlanSynced, SyncAsk, Synced},
    uses::{Metering, uses},
    webhooks::{Received, WebhookError, WebhookObject},
};
use self::{client::Client, meters::Meters};
use crate::{
    clock::Clock,
    config::Config,
    domain::time::Timestamp,
    services::{catalogue::Catalogue, notices::Notices, outbox::Outbox, recorder::Recorder},
    store::{
        SharedStore, StoreResult,
        stripe::{HandedOn, Which},
    },
    telemetry::metrics::Metrics,
};

/// How many slots one transaction hands on.
const HANDED_ON: usize = 1_000;
/// When a slot is looked at again whose tenant has no customer at Stripe.
const WITHOUT_CUSTOMER: Duration = Duration::from_secs(600);

/// Why something that Stripe has a part in could not be done.
#[derive(Debug, thiserror::Error)]
pub enum StripeError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    #[error("{0}")]
    Refused(String),
}

/// What the Stripe part stands on.
pub struct StripeParts {
    pub store: SharedStore,
    pub catalogue: Arc<Catalogue>,
    pub recorder: Arc<Recorder>,
    pub outbox: Outbox,
    pub notices: Option<Arc<Notices>>,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
}

/// Everything that has to do with Stripe.
pub struct Stripe {
    parts: StripeParts,
    client: Client,
    meters: Meters,
    secrets: Vec<SecretString>,
    confirming: tokio::sync::Mutex<reconcile::Confirming>,
}

impl Stripe {
    /// # Errors
    /// One line: the key is missing, or a file of certificates can't be used.
    pub fn new(config: &Config, parts: StripeParts) -> anyhow::Result<Arc<Self>> {
        let key = config.stripe_secret_key.clone().context(
            "ENABLE_STRIPE_USAGE is true, but STRIPE_SECRET_KEY is not set; set it to the key of your account, or turn Stripe off",
        )?;
        Ok(Arc::new(Self {
            parts,
            client: Client::new(&config.stripe_api_base, key)?,
            meters: Meters::default(),
            secrets: config.stripe_webhook_secrets.clone(),
            confirming: tokio::sync::Mutex::default(),
        }))
    }

    fn now(&self) -> Timestamp {
        self.parts.clock.now()
    }

    /// Hands slots to the outbox.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError): what is left is handed on by the next call.
    pub async fn hand_on(&self, which: Which) -> StoreResult<HandedOn> {
        let now = self.now();
        let again = now.plus(WITHOUT_CUSTOMER);
        let mut all = HandedOn::default();
        loop {
            let done = self
                .parts
                .store
                .hand_on(which, now, again, HANDED_ON)
                .await?;
            all.entries += done.entries;
            all.without_customer += done.without_customer;
            if !done.is_more {
                return Ok(all);
            }
        }
    }
}

/// Checks a key of Stripe's at `base` by a call that reads only; says what is wrong.
///
/// # Errors
/// [`CallError`].
pub async fn check_key(base: &str, key: SecretString) -> Result<(), CallError> {
    let client = Client::new(base, key).map_err(|error| CallError::NotSent(error.to_string()))?;
    client
        .get("/v1/billing/meters", &[("limit", "1")])
        .await
        .map(|_| ())
}
