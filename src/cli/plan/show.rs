use super::{Output, Plans, shown};
use crate::domain::names::PlanCode;

/// Shows one plan with its features and limits
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate plan show starter")]
pub(in crate::cli) struct Show {
    /// Code of the plan
    code: PlanCode,
}

impl Show {
    pub(super) async fn run(self, plans: &Plans) -> anyhow::Result<Output> {
        Ok(shown(plans.get(&self.code).await?))
    }
}
