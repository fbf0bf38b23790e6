use super::{Actor, Administrators, Output, shown};
use crate::domain::{administrator::Role, names::DisplayName};

/// Makes an administrator's token, shown once
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate admin-token create ada --role operator")]
pub(in crate::cli) struct Create {
    /// Name that the audit log shows; no two in use may share one
    name: DisplayName,
    /// `viewer` reads, `operator` changes plans, tenants, keys and grants, `owner` also administrators
    #[arg(long)]
    role: Role,
}

impl Create {
    pub(super) async fn run(
        self,
        administrators: &Administrators,
        by: &Actor,
    ) -> anyhow::Result<Output> {
        let issued = administrators.create(self.name, self.role, by).await?;
        Ok(shown(&issued.into()).note("The token is shown this once only."))
    }
}
