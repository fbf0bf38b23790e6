use super::{Output, UsageOperations, cell};
use crate::{
    cli::arguments,
    domain::{
        administrator::Actor, feature::FeatureKey, quantity::Quantity, tenant::TenantRef,
        time::Timestamp,
    },
    services::ManualRecord,
};

/// Records usage by hand; the same idempotency key again records nothing
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: tollgate usage record --tenant acme --feature messages --quantity 3 --idempotency-key import-7"
)]
pub(in crate::cli) struct Record {
    /// Tenant id or slug
    #[arg(long)]
    tenant: TenantRef,
    /// Feature key
    #[arg(long, value_name = "KEY")]
    feature: FeatureKey,
    /// How much
    #[arg(long, value_name = "N", value_parser = arguments::quantity, allow_negative_numbers = true)]
    quantity: Quantity,
    /// Names this record, so that a repeat counts once
    #[arg(long, value_name = "ID")]
    idempotency_key: String,
    /// When it was used [default: now]
    #[arg(long, value_name = "TS")]
    at: Option<Timestamp>,
}

impl Record {
    pub(super) async fn run(
        self,
        usage: &dyn UsageOperations,
        by: &Actor,
    ) -> anyhow::Result<Output> {
        let record = ManualRecord {
            tenant: self.tenant,
            feature: self.feature,
            quantity: self.quantity,
            idempotency_key: self.idempotency_key,
            at: self.at,
        };
        let body = usage.record(&record, by).await?;
        let note = if body["duplicate"] == true {
            "This idempotency key was recorded before; nothing was added."
        } else {
            "Recorded."
        };
        let row = vec![cell(&body, "event_id"), cell(&body, "duplicate")];
        Ok(Output::of_json(body)
            .table(&["event", "duplicate"], vec![row])
            .note(note))
    }
}
