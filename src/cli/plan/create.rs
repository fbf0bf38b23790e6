use super::{Actor, Output, Plans, shown};
use crate::{
    domain::{
        names::{DisplayName, PlanCode},
        plan::AllowedModels,
    },
    services::plans::NewPlan,
};

/// Makes a plan
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate plan create team --name Team --preset starter")]
pub(in crate::cli) struct Create {
    /// Code of the plan
    code: PlanCode,
    /// Name shown to people
    #[arg(long)]
    name: DisplayName,
    /// Begin with the limits of free, starter, pro or enterprise [default: no features]
    #[arg(long)]
    preset: Option<String>,
}

impl Create {
    pub(super) async fn run(self, plans: &Plans, by: &Actor) -> anyhow::Result<Output> {
        let new = NewPlan {
            code: self.code,
            name: self.name,
            preset: self.preset,
            allowed_models: AllowedModels::default(),
            features: vec![],
        };
        Ok(shown(plans.create(new, by).await?))
    }
}
