use serde_json::json;

use super::{Output, stripe_of};
use crate::{
    billing::stripe::{SyncAsk, Synced},
    control::Backend,
};

/// Checks the meters, brings plans' features to Stripe's products, and looks for subscriptions whose webhook was missed
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A plan's product is that of the price whose lookup_key is the plan's code, else the one whose metadata.plan_code is. A plan without one is named, and nothing is written for it.\n\nExample: tollgate stripe sync"
)]
pub(in crate::cli) struct Sync {
    /// Only this plan's features, whatever its case; several by repeating or with commas
    #[arg(long, value_name = "CODE", value_delimiter = ',')]
    plan: Vec<String>,
}

impl Sync {
    pub(super) async fn run(self, backend: &Backend) -> anyhow::Result<Output> {
        let ask = SyncAsk { plans: self.plan };
        let synced = stripe_of(backend)?.sync(&ask).await?;
        let mut lines = shown(&synced);
        lines.push(format!(
            "Looked at {} subscription(s) of Stripe's.",
            synced.subscriptions + synced.unmatched.len() as u64
        ));
        let output = Output::of_json(json!(synced)).lines(lines);
        let unmatched = synced.unmatched.iter();
        Ok(unmatched.fold(output, |output, why| {
            output.warn(&format!("not taken: subscription {why}"))
        }))
    }
}

/// A line a plan.
pub(in crate::cli) fn shown(synced: &Synced) -> Vec<String> {
    let plans = synced.plans.iter().map(|plan| match &plan.product {
        Some(product) => format!(
            "plan={} product={product} created={} renamed={} attached={}",
            plan.plan_code,
            plan.created.len(),
            plan.renamed.len(),
            plan.attached.len()
        ),
        None => format!(
            "plan={} product=none: nothing was written; give a price the lookup_key '{}', or a product the metadata plan_code={}",
            plan.plan_code, plan.plan_code, plan.plan_code
        ),
    });
    plans.collect()
}
