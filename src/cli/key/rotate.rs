use std::time::Duration;

use super::{Actor, Keys, Output, issued};
use crate::{cli::arguments, domain::ids::KeyId};

/// Gives a key a new secret, shown once; id and counters stay
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: tollgate key rotate key_0190b6f2c1d47a3e8f5b6c7d8e9f0a1b --grace-seconds 3600"
)]
pub(in crate::cli) struct Rotate {
    /// Id of the key, not its secret
    id: KeyId,
    /// How long the old secret still works, up to 30 days
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = arguments::seconds)]
    grace_seconds: u64,
}

impl Rotate {
    pub(super) async fn run(self, keys: &Keys, by: &Actor) -> anyhow::Result<Output> {
        let grace = Duration::from_secs(self.grace_seconds);
        Ok(issued(keys.rotate(self.id, grace, by).await?))
    }
}
