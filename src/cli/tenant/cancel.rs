use super::{Actor, Output, Tenants, shown};
use crate::domain::tenant::TenantRef;

/// Ends a tenant's subscription at once; its requests are refused from then on
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate tenant cancel acme --yes")]
pub(in crate::cli) struct Cancel {
    /// Tenant id or slug
    tenant: TenantRef,
}

impl Cancel {
    pub(super) fn question(&self) -> String {
        format!(
            "Cancel the subscription of tenant '{}' at once?",
            self.tenant
        )
    }

    pub(super) async fn run(self, tenants: &Tenants, by: &Actor) -> anyhow::Result<Output> {
        Ok(shown(tenants.cancel(&self.tenant, by).await?, by.at))
    }
}
