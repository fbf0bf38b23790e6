use super::{Actor, Keys, Output, issued};
use crate::{
    domain::{names::DisplayName, tenant::TenantRef, time::Timestamp},
    services::keys::NewKey,
};

/// Makes an API key of a tenant; its secret is shown once
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate key create acme --name laptop")]
pub(in crate::cli) struct Create {
    /// Tenant id or slug
    tenant: TenantRef,
    /// Name shown to people
    #[arg(long)]
    name: DisplayName,
    /// Fixes the end user of every request made with the key
    #[arg(long)]
    user: Option<String>,
    /// When it stops working
    #[arg(long, value_name = "TS")]
    expires: Option<Timestamp>,
}

impl Create {
    pub(super) async fn run(self, keys: &Keys, by: &Actor) -> anyhow::Result<Output> {
        let new = NewKey {
            name: self.name,
            user: self.user,
            expires_at: self.expires,
        };
        Ok(issued(keys.create(&self.tenant, new, by).await?))
    }
}
