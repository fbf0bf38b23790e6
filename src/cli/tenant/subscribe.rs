use super::{Actor, Output, Tenants, shown};
use crate::{
    cli::arguments,
    domain::{
        names::PlanCode, subscription::SubscriptionStatus, tenant::TenantRef, time::Timestamp,
    },
    services::{
        plans::Change,
        tenants::{StatusChange, SubscriptionChange},
    },
};

/// Subscribes a tenant to a plan, or moves it to another; a period that runs is kept unless dates are given
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate tenant subscribe acme --plan pro")]
pub(in crate::cli) struct Subscribe {
    /// Tenant id or slug
    tenant: TenantRef,
    /// Code of the plan
    #[arg(long, value_name = "CODE")]
    plan: PlanCode,
    /// `active`, `trialing`, `past_due`, `canceled`, `unpaid`, `incomplete`, `incomplete_expired` or `paused`
    /// [default: as it is, else active]
    #[arg(long)]
    status: Option<SubscriptionStatus>,
    /// First instant of the period
    #[arg(long, value_name = "TS", requires = "period_end")]
    period_start: Option<Timestamp>,
    /// First instant after it; whole months apart it rolls on by months, else by its length
    #[arg(long, value_name = "TS", requires = "period_start")]
    period_end: Option<Timestamp>,
    /// The customer at the payment processor, such as Stripe's cus_…, or none
    #[arg(long, value_name = "C", value_parser = arguments::or_none(arguments::text))]
    processor_customer_id: Option<Change<String>>,
}

impl Subscribe {
    pub(super) async fn run(self, tenants: &Tenants, by: &Actor) -> anyhow::Result<Output> {
        let change = SubscriptionChange {
            plan_code: Some(self.plan),
            status: self.status.map_or(StatusChange::Revive, StatusChange::Set),
            period_start: self.period_start,
            period_end: self.period_end,
            processor_customer_id: self.processor_customer_id.unwrap_or_default(),
        };
        Ok(shown(
            tenants.subscribe(&self.tenant, &change, by).await?,
            by.at,
        ))
    }
}
