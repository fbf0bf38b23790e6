use super::{Output, stripe_of};
use crate::control::Backend;

/// Tells Stripe now of all that was used up to now, instead of interval by interval
#[derive(Debug, clap::Args)]
#[command(
    after_help = "What can't be sent is tried again by itself; what was given up is listed by `tollgate stripe outbox list --status dead`.\n\nExample: tollgate stripe push"
)]
pub(in crate::cli) struct Push {}

impl Push {
    pub(super) async fn run(self, backend: &Backend) -> anyhow::Result<Output> {
        let pushed = stripe_of(backend)?.push().await?;
        let facts = vec![
            ("new events", pushed.handed_on.to_string()),
            ("still pending", pushed.pending.to_string()),
            ("uncertain", pushed.uncertain.to_string()),
            ("dead", pushed.dead.to_string()),
            ("without customer", pushed.without_customer.to_string()),
        ];
        let output = Output::object(&pushed, facts);
        if pushed.pending > 0 {
            let why = "Stripe did not take everything; what is left goes by itself, and `tollgate stripe outbox list --status pending` says what holds it up";
            return Ok(output.failing(why));
        }
        Ok(output)
    }
}
