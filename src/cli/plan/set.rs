use super::{Actor, Output, Plans, shown};
use crate::{
    cli::arguments,
    domain::{
        names::{DisplayName, PlanCode},
        plan::AllowedModels,
    },
    services::plans::PlanChange,
};

/// Changes a plan's name or the models it allows
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate plan set starter --allowed-models 'gpt-5.1*,llama-*'")]
pub(in crate::cli) struct Set {
    /// Code of the plan
    code: PlanCode,
    #[command(flatten)]
    change: Changed,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct Changed {
    /// Name shown to people
    #[arg(long)]
    name: Option<DisplayName>,
    /// Patterns of model names, or any
    #[arg(long, value_name = "GLOB,…|any", value_parser = arguments::models)]
    allowed_models: Option<AllowedModels>,
}

impl Set {
    pub(super) async fn run(self, plans: &Plans, by: &Actor) -> anyhow::Result<Output> {
        let Changed {
            name,
            allowed_models,
        } = self.change;
        let change = PlanChange {
            name,
            allowed_models,
            features: None,
        };
        Ok(shown(plans.set(&self.code, &change, None, by).await?))
    }
}
