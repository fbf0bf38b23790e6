use super::{Output, UsageOperations, array, cell};
use crate::{
    domain::{feature::FeatureKey, tenant::TenantRef, time::Timestamp},
    services::statement::StatementAsk,
};

/// Shows a tenant's statement: opening + settled + corrected = closing
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: tollgate usage statement --tenant acme --feature messages --output csv"
)]
pub(in crate::cli) struct Statement {
    /// Tenant id or slug
    #[arg(long)]
    tenant: TenantRef,
    /// Feature key, several by repeating or with commas [default: all]
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    feature: Vec<FeatureKey>,
    /// First instant that counts [default: the current period's]
    #[arg(long, value_name = "TS")]
    period_start: Option<Timestamp>,
    /// First instant that no longer counts [default: the current period's]
    #[arg(long, value_name = "TS")]
    period_end: Option<Timestamp>,
}

const MEMBERS: [&str; 10] = [
    "feature_key",
    "unit",
    "opening",
    "granted",
    "settled",
    "corrected",
    "reserved",
    "closing",
    "sent_to_stripe",
    "difference",
];

impl Statement {
    pub(super) async fn run(self, usage: &dyn UsageOperations) -> anyhow::Result<Output> {
        let ask = StatementAsk {
            tenant: self.tenant,
            features: self.feature,
            start: self.period_start,
            end: self.period_end,
        };
        let body = usage.statement(&ask).await?;
        let lines = array(&body, "features");
        let rows = lines
            .iter()
            .map(|line| MEMBERS.iter().map(|name| cell(line, name)).collect());
        let rows = rows.collect();
        let resets = lines.iter().flat_map(|line| {
            array(line, "resets").iter().map(|reset| {
                vec![
                    cell(line, "feature_key"),
                    cell(reset, "at"),
                    cell(reset, "reason"),
                ]
            })
        });
        let resets: Vec<Vec<String>> = resets.collect();
        let note = format!(
            "From {} to {}.",
            cell(&body, "period_start"),
            cell(&body, "period_end")
        );
        let output = Output::of_json(body).table(&MEMBERS, rows).note(note);
        if resets.is_empty() {
            return Ok(output);
        }
        Ok(output.table(&["feature", "reset", "reason"], resets))
    }
}
