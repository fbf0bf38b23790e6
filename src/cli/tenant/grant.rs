use clap::Subcommand;

use super::{Actor, Backend, Output, Tenants, or_dash, warn_if_unmetered};
use crate::{
    cli::arguments,
    domain::{
        feature::FeatureKey,
        grant::Grant,
        ids::GrantId,
        quantity::Quantity,
        tenant::{Tenant, TenantRef},
        time::Timestamp,
    },
    services::{objects::GrantObject, tenants::NewGrant},
};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum GrantCommand {
    Add(Add),
    List(List),
    Revoke(Revoke),
}

impl GrantCommand {
    pub(super) fn question(&self) -> Option<String> {
        match self {
            Self::Revoke(command) => Some(format!("Revoke grant {} at once?", command.id)),
            Self::Add(_) | Self::List(_) => None,
        }
    }

    pub(super) async fn run(
        self,
        backend: &Backend,
        tenants: &Tenants,
        by: &Actor,
    ) -> anyhow::Result<Output> {
        match self {
            Self::Add(command) => command.run(tenants, by).await,
            Self::List(command) => command.run(backend, tenants, by.at).await,
            Self::Revoke(command) => command.run(tenants, by).await,
        }
    }
}

/// Raises a tenant's hard limits by an extra allowance
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: tollgate tenant grant add acme --feature messages --quantity 50 --reason goodwill"
)]
pub(in crate::cli) struct Add {
    /// Tenant id or slug
    tenant: TenantRef,
    /// Feature key
    #[arg(long, value_name = "KEY")]
    feature: FeatureKey,
    /// How much
    #[arg(long, value_name = "N", value_parser = arguments::quantity, allow_negative_numbers = true)]
    quantity: Quantity,
    /// Why, for the audit log
    #[arg(long)]
    reason: String,
    /// When it ends [default: the end of the current period]
    #[arg(long, value_name = "TS")]
    expires: Option<Timestamp>,
}

impl Add {
    async fn run(self, tenants: &Tenants, by: &Actor) -> anyhow::Result<Output> {
        let new = NewGrant {
            feature: self.feature,
            quantity: self.quantity,
            reason: self.reason,
            expires_at: self.expires,
        };
        let (grant, tenant) = tenants.add_grant(&self.tenant, new, by).await?;
        let (left, feature) = (grant.quantity, grant.feature.clone());
        let output = shown(grant, &tenant, Some(left), by.at);
        warn_if_unmetered(output, tenants, &tenant, &feature).await
    }
}

/// Lists a tenant's grants, ended ones included
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate tenant grant list acme")]
pub(in crate::cli) struct List {
    /// Tenant id or slug
    tenant: TenantRef,
}

impl List {
    async fn run(
        self,
        backend: &Backend,
        tenants: &Tenants,
        now: Timestamp,
    ) -> anyhow::Result<Output> {
        let (grants, tenant) = tenants.list_grants(&self.tenant).await?;
        let left = match &backend.usage {
            Some(usage) => {
                usage
                    .grants_left(&TenantRef::Id(tenant.tenant_id), now)
                    .await?
            }
            None => vec![],
        };
        let left_of = |id: GrantId| {
            left.iter()
                .find(|(grant, _)| *grant == id)
                .map(|(_, left)| *left)
        };
        let items = grants.into_iter().map(|grant| {
            let left = left_of(grant.grant_id);
            GrantObject::at(grant, tenant.slug.clone(), left, now)
        });
        let items: Vec<_> = items.collect();
        let columns = [
            "id",
            "feature",
            "quantity",
            "remaining",
            "expires",
            "revoked",
            "reason",
        ];
        Ok(Output::list(&items, &columns, |grant| {
            vec![
                grant.grant_id.to_string(),
                grant.feature_key.to_string(),
                grant.quantity.to_string(),
                or_dash(grant.remaining),
                grant.expires_at.to_string(),
                or_dash(grant.revoked_at),
                grant.reason.clone(),
            ]
        }))
    }
}

/// Ends a grant at once; what was used of it stays used
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: tollgate tenant grant revoke gra_0190b6f2c1d47a3e8f5b6c7d8e9f0a1b --yes"
)]
pub(in crate::cli) struct Revoke {
    /// Id of the grant
    id: GrantId,
}

impl Revoke {
    async fn run(self, tenants: &Tenants, by: &Actor) -> anyhow::Result<Output> {
        let (grant, tenant) = tenants.revoke_grant(self.id, by).await?;
        Ok(shown(grant, &tenant, None, by.at))
    }
}

fn shown(grant: Grant, tenant: &Tenant, left: Option<Quantity>, now: Timestamp) -> Output {
    let grant = GrantObject::at(grant, tenant.slug.clone(), left, now);
    let facts = vec![
        ("grant", grant.grant_id.to_string()),
        ("tenant", grant.tenant_slug.to_string()),
        ("feature", grant.feature_key.to_string()),
        ("quantity", grant.quantity.to_string()),
        ("remaining", or_dash(grant.remaining)),
        ("expires", grant.expires_at.to_string()),
        ("revoked", or_dash(grant.revoked_at)),
        ("reason", grant.reason.clone()),
    ];
    Output::object(&grant, facts)
}
