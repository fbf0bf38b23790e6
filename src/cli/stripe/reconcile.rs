use super::{Output, stripe_of};
use crate::{
    billing::stripe::ReconcileAsk,
    cli::{arguments::timestamp, output::or_dash},
    control::Backend,
    domain::{tenant::TenantRef, time::Timestamp, window::Window},
};

/// Compares what was used with what Stripe sums up, and gives each difference its reason
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: tollgate stripe reconcile --tenant acme --period-start 2026-11-01T00:00:00Z --period-end 2026-12-01T00:00:00Z"
)]
pub(in crate::cli) struct Reconcile {
    /// Only this tenant, by id or slug
    #[arg(long, value_name = "T")]
    tenant: Option<TenantRef>,
    /// Start of the period [default: that of each subscription]
    #[arg(long, value_name = "TS", value_parser = timestamp, requires = "period_end")]
    period_start: Option<Timestamp>,
    /// End of the period, excluded [default: now]
    #[arg(long, value_name = "TS", value_parser = timestamp, requires = "period_start")]
    period_end: Option<Timestamp>,
}

impl Reconcile {
    pub(super) async fn run(self, backend: &Backend) -> anyhow::Result<Output> {
        let window = match (self.period_start, self.period_end) {
            (Some(start), Some(end)) => Some(Window::new(start, end)?),
            _ => None,
        };
        let ask = ReconcileAsk {
            tenant: self.tenant,
            window,
        };
        let stripe = stripe_of(backend)?;
        stripe.confirm_some().await?;
        let found = stripe.reconcile(&ask).await?;
        let columns = [
            "tenant",
            "meter",
            "customer",
            "used",
            "at Stripe",
            "difference",
            "reasons",
        ];
        Ok(Output::list(&found, &columns, |it| {
            let reasons = it.reasons.iter();
            let reasons: Vec<String> = reasons
                .map(|it| format!("{} {}: {}", it.reason, it.quantity, it.detail))
                .collect();
            vec![
                it.tenant_slug.clone(),
                it.meter.clone(),
                or_dash(it.customer.as_ref()),
                it.used.to_string(),
                it.at_stripe.to_string(),
                it.difference.to_string(),
                or_dash((!reasons.is_empty()).then(|| reasons.join("\n"))),
            ]
        }))
    }
}
