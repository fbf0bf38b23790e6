use clap::Subcommand;

use super::{Actor, Output, Tenants, shown, warn_if_unmetered};
use crate::{
    cli::arguments::{self, LimitOf, LimitValues, WhichLimit},
    domain::{
        feature::FeatureKey,
        limit::Limit,
        tenant::{Tenant, TenantRef},
        time::Timestamp,
    },
    services::{plans::Change, tenants::OverrideChange},
};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum LimitCommand {
    Set(Set),
    Remove(Remove),
}

impl LimitCommand {
    pub(super) async fn run(self, tenants: &Tenants, by: &Actor) -> anyhow::Result<Output> {
        match self {
            Self::Set(command) => command.run(tenants, by).await,
            Self::Remove(command) => command.run(tenants, by).await,
        }
    }
}

/// Sets a tenant's own limit, which stands in place of its plan's of the same scope and window
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: tollgate tenant limit set acme messages --hard 500 --until 2027-01-01T00:00:00Z"
)]
pub(in crate::cli) struct Set {
    /// Tenant id or slug
    tenant: TenantRef,
    /// Feature key
    key: FeatureKey,
    #[command(flatten)]
    values: LimitValues,
    #[command(flatten)]
    limit: LimitOf,
    /// When the plan holds again for this feature, or none
    #[arg(long, value_name = "TS", value_parser = arguments::or_none(arguments::timestamp))]
    until: Option<Change<Timestamp>>,
}

impl Set {
    async fn run(self, tenants: &Tenants, by: &Actor) -> anyhow::Result<Output> {
        let change = OverrideChange {
            soft: self.values.soft(),
            hard: self.values.hard(),
            feature: self.key,
            scope: self.limit.scope,
            window: self.limit.window,
            until: self.until.unwrap_or_default(),
        };
        let before = tenants.get(&self.tenant).await?;
        let tenant = tenants.set_limit(&self.tenant, &change, by).await?;
        let mut output = shown(tenant.clone(), by.at);
        if let Some(end) = end_of_others(&before, &tenant, &change, by.at) {
            output = output.warn(&format!(
                "own limits of one feature end together: all of '{}' {end}",
                change.feature
            ));
        }
        warn_if_unmetered(output, tenants, &tenant, &change.feature).await
    }
}

/// When the tenant's own limits of a feature end, where a change of one of them has others end with it that did not, or
/// has it end with others though that was not asked for.
fn end_of_others(
    before: &Tenant,
    after: &Tenant,
    change: &OverrideChange,
    now: Timestamp,
) -> Option<String> {
    let of = |tenant: &Tenant| {
        let mut own = tenant.overrides.iter();
        own.find(|own| own.feature == change.feature).cloned()
    };
    let (was, is) = (of(before)?, of(after)?);
    let is_other = |limit: &Limit| (limit.scope, limit.window) != (change.scope, change.window);
    let has_others = was.until.is_none_or(|until| now < until) && was.limits.iter().any(is_other);
    let is_new = was.limits.iter().all(is_other);
    let is_unasked = is_new && change.until == Change::Keep && is.until.is_some();
    let is_moved = was.until != is.until;
    (has_others && (is_unasked || is_moved)).then(|| match is.until {
        Some(until) => format!("now end at {until}"),
        None => "now hold until they are removed".to_owned(),
    })
}

/// Takes a tenant's own limits of a feature away, or only one of them; the plan holds again
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate tenant limit remove acme messages")]
pub(in crate::cli) struct Remove {
    /// Tenant id or slug
    tenant: TenantRef,
    /// Feature key
    key: FeatureKey,
    #[command(flatten)]
    which: WhichLimit,
}

impl Remove {
    async fn run(self, tenants: &Tenants, by: &Actor) -> anyhow::Result<Output> {
        let which = self.which.only();
        Ok(shown(
            tenants
                .remove_limit(&self.tenant, &self.key, which, by)
                .await?,
            by.at,
        ))
    }
}
