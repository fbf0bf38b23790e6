//! `tollgate tenant …`.

mod cancel;
mod create;
mod grant;
mod limit;
mod list;
mod reset;
mod show;
mod subscribe;

use clap::Subcommand;

use super::{
    output::{Output, or_dash},
    plan::limit_in_words,
};
use crate::{
    control::Backend,
    domain::{administrator::Actor, feature::FeatureKey, tenant::Tenant, time::Timestamp},
    services::{objects::TenantObject, tenants::Tenants},
};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum TenantCommand {
    Create(create::Create),
    List(list::List),
    Show(show::Show),
    Subscribe(subscribe::Subscribe),
    Cancel(cancel::Cancel),
    Reset(reset::Reset),
    /// Gives a tenant limits of its own, in place of its plan's
    #[command(
        subcommand,
        after_help = "Example: tollgate tenant limit set acme messages --hard 500 --until 2027-01-01T00:00:00Z"
    )]
    Limit(limit::LimitCommand),
    /// Gives a tenant extra allowance
    #[command(
        subcommand,
        after_help = "Example: tollgate tenant grant add acme --feature messages --quantity 50 --reason goodwill"
    )]
    Grant(grant::GrantCommand),
}

impl TenantCommand {
    pub(super) fn question(&self) -> Option<String> {
        match self {
            Self::Cancel(command) => Some(command.question()),
            Self::Grant(command) => command.question(),
            Self::Create(_)
            | Self::List(_)
            | Self::Show(_)
            | Self::Subscribe(_)
            | Self::Reset(_)
            | Self::Limit(_) => None,
        }
    }

    pub(super) async fn run(self, backend: &Backend) -> anyhow::Result<Output> {
        let tenants = Tenants::new(backend.store.clone());
        let by = backend.actor();
        match self {
            Self::Create(command) => command.run(&tenants, &by).await,
            Self::List(command) => command.run(&tenants, by.at).await,
            Self::Show(command) => command.run(&tenants, by.at).await,
            Self::Subscribe(command) => command.run(&tenants, &by).await,
            Self::Cancel(command) => command.run(&tenants, &by).await,
            Self::Reset(command) => command.run(&tenants, &by).await,
            Self::Limit(command) => command.run(&tenants, &by).await,
            Self::Grant(command) => command.run(backend, &tenants, &by).await,
        }
    }
}

/// One tenant, as it stands at `now`.
/// Says so where the tenant's plan does not meter what has just been granted or limited: a slip of the pen, most likely.
async fn warn_if_unmetered(
    output: Output,
    tenants: &Tenants,
    tenant: &Tenant,
    feature: &FeatureKey,
) -> anyhow::Result<Output> {
    if tenants.is_metered(tenant, feature).await? {
        return Ok(output);
    }
    let slug = &tenant.slug;
    Ok(output.warn(&format!(
        "the plan of tenant '{slug}' does not meter '{feature}': this has no effect until it does"
    )))
}

fn shown(tenant: Tenant, now: Timestamp) -> Output {
    let tenant = TenantObject::at(tenant, now);
    let subscription = tenant.subscription.as_ref();
    let facts = vec![
        ("tenant", tenant.slug.to_string()),
        ("id", tenant.tenant_id.to_string()),
        ("name", tenant.name.to_string()),
        ("plan", or_dash(tenant.plan_code.as_ref())),
        ("status", or_dash(subscription.map(|it| it.status))),
        (
            "period start",
            or_dash(subscription.map(|it| it.current_period_start)),
        ),
        (
            "period end",
            or_dash(subscription.map(|it| it.current_period_end)),
        ),
        (
            "customer",
            or_dash(subscription.and_then(|it| it.processor_customer_id.as_ref())),
        ),
        ("created", tenant.created_at.to_string()),
    ];
    let rows = tenant.overrides.iter().flat_map(|own| {
        own.limits.iter().map(|limit| {
            vec![
                own.feature_key.to_string(),
                limit_in_words(limit),
                or_dash(own.until),
            ]
        })
    });
    let rows: Vec<_> = rows.collect();
    let output = Output::object(&tenant, facts);
    if rows.is_empty() {
        return output;
    }
    output.table(&["own limit", "soft/hard", "until"], rows)
}
