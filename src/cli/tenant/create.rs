use super::{Actor, Output, Tenants, shown};
use crate::{
    domain::names::{DisplayName, PlanCode, Slug},
    services::tenants::NewTenant,
};

/// Makes a tenant, subscribed if a plan is named
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate tenant create acme --name 'Acme Inc' --plan starter")]
pub(in crate::cli) struct Create {
    /// The tenant's name in URLs and commands
    slug: Slug,
    /// Name shown to people
    #[arg(long)]
    name: DisplayName,
    /// Plan to subscribe to; its period starts now and lasts a month
    #[arg(long, value_name = "CODE")]
    plan: Option<PlanCode>,
}

impl Create {
    pub(super) async fn run(self, tenants: &Tenants, by: &Actor) -> anyhow::Result<Output> {
        let new = NewTenant {
            slug: self.slug,
            name: self.name,
            plan_code: self.plan,
        };
        Ok(shown(tenants.create(new, by).await?, by.at))
    }
}
