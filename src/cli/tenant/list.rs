use super::{Output, TenantObject, Tenants, Timestamp, or_dash};

/// Lists all tenants
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate tenant list --output json")]
pub(in crate::cli) struct List {}

impl List {
    pub(super) async fn run(self, tenants: &Tenants, now: Timestamp) -> anyhow::Result<Output> {
        let all = tenants.list_all().await?;
        let items: Vec<_> = all
            .into_iter()
            .map(|tenant| TenantObject::at(tenant, now))
            .collect();
        let columns = ["tenant", "name", "plan", "status", "period end", "id"];
        Ok(Output::list(&items, &columns, |tenant| {
            let subscription = tenant.subscription.as_ref();
            vec![
                tenant.slug.to_string(),
                tenant.name.to_string(),
                or_dash(tenant.plan_code.as_ref()),
                or_dash(subscription.map(|it| it.status)),
                or_dash(subscription.map(|it| it.current_period_end)),
                tenant.tenant_id.to_string(),
            ]
        }))
    }
}
