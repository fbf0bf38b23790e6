use super::{Actor, Output, Tenants};
use crate::{
    domain::{feature::FeatureKey, tenant::TenantRef},
    services::objects::ResetObject,
};

/// Has a feature's limits count anew from now until their windows end; totals, report and bill stay as they are
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate tenant reset acme --feature messages --reason outage")]
pub(in crate::cli) struct Reset {
    /// Tenant id or slug
    tenant: TenantRef,
    /// Feature key
    #[arg(long, value_name = "KEY")]
    feature: FeatureKey,
    /// Why, for the audit log
    #[arg(long)]
    reason: String,
}

impl Reset {
    pub(super) async fn run(self, tenants: &Tenants, by: &Actor) -> anyhow::Result<Output> {
        let (reset, tenant) = tenants
            .reset(&self.tenant, self.feature, self.reason, by)
            .await?;
        let reset = ResetObject::of(reset, tenant.slug);
        let facts = vec![
            ("tenant", reset.tenant_slug.to_string()),
            ("feature", reset.feature_key.to_string()),
            ("reset", reset.reset_at.to_string()),
            ("reason", reset.reason.clone()),
        ];
        Ok(Output::object(&reset, facts))
    }
}
