use super::{KeyObject, Keys, Output, or_dash};
use crate::domain::tenant::TenantRef;

/// Lists a tenant's keys, ended ones included
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate key list --tenant acme")]
pub(in crate::cli) struct List {
    /// Tenant id or slug
    #[arg(long)]
    tenant: TenantRef,
}

impl List {
    pub(super) async fn run(self, keys: &Keys) -> anyhow::Result<Output> {
        let (keys, tenant) = keys.list(&self.tenant).await?;
        let items = keys
            .into_iter()
            .map(|key| KeyObject::of(key, tenant.slug.clone()));
        let items: Vec<_> = items.collect();
        let columns = ["id", "name", "user", "created", "expires", "revoked"];
        Ok(Output::list(&items, &columns, |key| {
            vec![
                key.key_id.to_string(),
                key.name.to_string(),
                or_dash(key.user.as_ref()),
                key.created_at.to_string(),
                or_dash(key.expires_at),
                or_dash(key.revoked_at),
            ]
        }))
    }
}
