use super::{Output, UsageOperations, array, cell};
use crate::{
    cli::arguments::PeriodArgs,
    domain::{feature::FeatureKey, tenant::TenantRef, time::Timestamp},
    services::TotalsAsk,
    store::usage::Dimension,
};

/// Shows what a tenant used in any window
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: tollgate usage totals --tenant acme --period-start 2026-11-01T00:00:00Z --period-end 2026-12-01T00:00:00Z"
)]
pub(in crate::cli) struct Totals {
    /// Tenant id or slug
    #[arg(long)]
    tenant: TenantRef,
    #[command(flatten)]
    period: PeriodArgs,
    /// Feature key, several by repeating or with commas [default: all]
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    feature: Vec<FeatureKey>,
    /// Break down by key, user or model
    #[arg(long)]
    by: Option<By>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum By {
    Key,
    User,
    Model,
}

impl By {
    const fn dimension(self) -> Dimension {
        match self {
            Self::Key => Dimension::Key,
            Self::User => Dimension::User,
            Self::Model => Dimension::Model,
        }
    }

    /// Its member in a row of the answer.
    const fn member(self) -> &'static str {
        match self {
            Self::Key => "key_id",
            Self::User => "user",
            Self::Model => "model",
        }
    }
}

impl Totals {
    pub(super) async fn run(
        self,
        usage: &dyn UsageOperations,
        now: Timestamp,
    ) -> anyhow::Result<Output> {
        let ask = TotalsAsk {
            tenant: self.tenant,
            features: self.feature,
            window: self.period.window()?,
            by: self.by.map(By::dimension),
        };
        let body = usage.totals(&ask, now).await?;
        let mut members = vec![
            "feature_key",
            "unit",
            "quantity",
            "window_start",
            "window_end",
        ];
        if let Some(by) = self.by {
            members.insert(1, by.member());
        }
        let rows = array(&body, "totals")
            .iter()
            .map(|total| members.iter().map(|member| cell(total, member)).collect());
        let rows = rows.collect();
        let columns: Vec<_> = members.iter().map(heading).collect();
        Ok(Output::of_json(body).table(&columns, rows))
    }
}

fn heading<'a>(member: &'a &str) -> &'a str {
    match *member {
        "feature_key" => "feature",
        "key_id" => "key",
        "window_start" => "from",
        "window_end" => "to",
        other => other,
    }
}
