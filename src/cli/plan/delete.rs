use super::{Actor, Output, Plans};
use crate::domain::names::PlanCode;

/// Deletes a plan that no tenant is subscribed to
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate plan delete starter --yes")]
pub(in crate::cli) struct Delete {
    /// Code of the plan
    code: PlanCode,
}

impl Delete {
    pub(super) fn question(&self) -> String {
        format!("Delete plan '{}' with all its features?", self.code)
    }

    pub(super) async fn run(self, plans: &Plans, by: &Actor) -> anyhow::Result<Output> {
        plans.delete(&self.code, None, by).await?;
        let json = serde_json::json!({ "plan_code": self.code, "deleted": true });
        Ok(Output::of_json(json).note(format!("Plan '{}' is deleted.", self.code)))
    }
}
