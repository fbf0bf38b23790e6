use super::{Output, UsageOperations, cell};
use crate::{
    cli::arguments,
    domain::{
        administrator::Actor, feature::FeatureKey, ids::EventId, quantity::Quantity,
        tenant::TenantRef,
    },
    services::reporting::Correction,
};

/// Adds to recorded usage, or takes away; audited
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: tollgate usage correct --tenant acme --feature messages --quantity -3 --reason outage"
)]
pub(in crate::cli) struct Correct {
    /// Tenant id or slug
    #[arg(long)]
    tenant: TenantRef,
    /// Feature key
    #[arg(long, value_name = "KEY")]
    feature: FeatureKey,
    /// How much to add; below 0 takes away
    #[arg(long, value_name = "N", value_parser = arguments::signed_quantity, allow_hyphen_values = true)]
    quantity: Quantity,
    /// Why, for the audit log and the statement
    #[arg(long)]
    reason: String,
    /// The event that is corrected: the correction counts in its window, and for its key and user
    #[arg(long, value_name = "EVENT_ID")]
    of: Option<EventId>,
    /// Names this correction, so that a repeat counts once
    #[arg(long, value_name = "ID")]
    idempotency_key: Option<String>,
}

impl Correct {
    pub(super) async fn run(
        self,
        usage: &dyn UsageOperations,
        by: &Actor,
    ) -> anyhow::Result<Output> {
        let correction = Correction {
            feature: self.feature,
            quantity: self.quantity,
            reason: self.reason,
            of: self.of,
            idempotency_key: self.idempotency_key,
        };
        let body = usage.correct(&self.tenant, &correction, by).await?;
        let note = if body["duplicate"] == true {
            "This idempotency key was used for a correction before; nothing was changed."
        } else {
            "Corrected."
        };
        let row = vec![cell(&body, "event_id"), cell(&body, "duplicate")];
        Ok(Output::of_json(body)
            .table(&["event", "duplicate"], vec![row])
            .note(note))
    }
}
