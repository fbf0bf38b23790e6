use clap::Subcommand;

use super::{Actor, Output, Plans, shown};
use crate::{
    cli::arguments::{self, LimitOf, LimitValues, WhichLimit},
    domain::{
        feature::FeatureKey,
        names::{DisplayName, PlanCode},
    },
    services::plans::{Change, FeatureChange},
};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum FeatureCommand {
    Set(Set),
    Remove(Remove),
}

impl FeatureCommand {
    pub(super) fn question(&self) -> Option<String> {
        match self {
            Self::Set(_) => None,
            Self::Remove(command) => Some(command.question()),
        }
    }

    pub(super) async fn run(self, plans: &Plans, by: &Actor) -> anyhow::Result<Output> {
        match self {
            Self::Set(command) => command.run(plans, by).await,
            Self::Remove(command) => command.run(plans, by).await,
        }
    }
}

/// Sets one limit of one feature, making the feature if the plan lacks it; what is left out stays
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: tollgate plan feature set starter messages --soft 150 --hard 200\n         tollgate plan feature set starter messages --hard 10 --scope user --window day"
)]
pub(in crate::cli) struct Set {
    /// Code of the plan
    code: PlanCode,
    /// Feature key: `messages`, `input_tokens`, `output_tokens`, `cost`, or a name of your own
    key: FeatureKey,
    #[command(flatten)]
    values: LimitValues,
    #[command(flatten)]
    limit: LimitOf,
    /// Unit [default: `requests`, `tokens`, `usd_micros`, else `units`]
    #[arg(long)]
    unit: Option<String>,
    /// Name shown to people
    #[arg(long, value_name = "NAME")]
    display_name: Option<DisplayName>,
    /// Carry and show it only; --not-metered=false meters it again
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    not_metered: Option<bool>,
    /// Event name of the Stripe meter that it is pushed to, or none
    #[arg(long, value_name = "METER", value_parser = arguments::or_none(arguments::text))]
    stripe_meter: Option<Change<String>>,
    /// Percentages at which notices go out, or none for those of the settings
    #[arg(long, value_name = "N,…", value_parser = arguments::or_none(arguments::percents))]
    alert_thresholds: Option<Change<Vec<u16>>>,
}

impl Set {
    async fn run(self, plans: &Plans, by: &Actor) -> anyhow::Result<Output> {
        let change = FeatureChange {
            soft: self.values.soft(),
            hard: self.values.hard(),
            key: self.key,
            scope: self.limit.scope,
            window: self.limit.window,
            unit: self.unit,
            display_name: self.display_name,
            is_metered: self.not_metered.map(|not_metered| !not_metered),
            stripe_meter: self.stripe_meter.unwrap_or_default(),
            alert_thresholds: self.alert_thresholds.unwrap_or_default(),
        };
        Ok(shown(plans.set_feature(&self.code, &change, by).await?))
    }
}

/// Takes a feature away, or only one of its limits
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: tollgate plan feature remove starter messages --scope user --window day --yes"
)]
pub(in crate::cli) struct Remove {
    /// Code of the plan
    code: PlanCode,
    /// Feature key
    key: FeatureKey,
    #[command(flatten)]
    which: WhichLimit,
}

impl Remove {
    fn question(&self) -> String {
        let Self { code, key, which } = self;
        match which.only() {
            None => format!("Remove feature '{key}' with all its limits from plan '{code}'?"),
            Some((scope, window)) => {
                format!("Remove the {window} limit of '{key}' per {scope} from plan '{code}'?")
            }
        }
    }

    async fn run(self, plans: &Plans, by: &Actor) -> anyhow::Result<Output> {
        let plan = plans
            .remove_feature(&self.code, &self.key, self.which.only(), None, by)
            .await?;
        Ok(shown(plan))
    }
}
