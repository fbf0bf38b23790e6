//! `tollgate stripe …`: usage on its way to Stripe, and what Stripe tells.

mod outbox;
mod push;
mod reconcile;
mod sync;
mod webhook;

use std::sync::Arc;

use anyhow::Context as _;
use clap::Subcommand;

pub(super) use self::sync::shown as sync_shown;
use super::output::Output;
use crate::{billing::stripe::Stripe, control::Backend};

#[derive(Debug, Subcommand)]
pub(super) enum StripeCommand {
    Push(push::Push),
    Sync(sync::Sync),
    Reconcile(reconcile::Reconcile),
    /// Lists what is on its way to Stripe, and sends again what was given up
    #[command(
        subcommand,
        after_help = "Example: tollgate stripe outbox list --status dead"
    )]
    Outbox(outbox::OutboxCommand),
    /// Lists what Stripe told, and applies again what could not be
    #[command(
        subcommand,
        after_help = "Example: tollgate stripe webhook list --status unmatched"
    )]
    Webhook(webhook::WebhookCommand),
}

impl StripeCommand {
    pub(super) async fn run(self, backend: &Backend) -> anyhow::Result<Output> {
        match self {
            Self::Push(command) => command.run(backend).await,
            Self::Sync(command) => command.run(backend).await,
            Self::Reconcile(command) => command.run(backend).await,
            Self::Outbox(command) => command.run(backend).await,
            Self::Webhook(command) => command.run(backend).await,
        }
    }
}

/// # Errors
/// Stripe is off.
pub(super) fn stripe_of(backend: &Backend) -> anyhow::Result<&Arc<Stripe>> {
    backend.stripe.as_ref().context(
        "Stripe is off; set ENABLE_STRIPE_USAGE=true and STRIPE_SECRET_KEY, and restart the server",
    )
}
