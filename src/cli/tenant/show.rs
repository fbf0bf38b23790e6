use super::{Output, Tenants, Timestamp, shown};
use crate::domain::tenant::TenantRef;

/// Shows one tenant with its subscription and own limits
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate tenant show acme")]
pub(in crate::cli) struct Show {
    /// Tenant id or slug
    tenant: TenantRef,
}

impl Show {
    pub(super) async fn run(self, tenants: &Tenants, now: Timestamp) -> anyhow::Result<Output> {
        Ok(shown(tenants.get(&self.tenant).await?, now))
    }
}
