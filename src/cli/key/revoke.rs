use super::{Actor, KeyObject, Keys, Output, shown};
use crate::domain::ids::KeyId;

/// Ends a key at once
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate key revoke key_0190b6f2c1d47a3e8f5b6c7d8e9f0a1b --yes")]
pub(in crate::cli) struct Revoke {
    /// Id of the key, not its secret
    id: KeyId,
}

impl Revoke {
    pub(super) fn question(&self) -> String {
        format!("Revoke key {} at once?", self.id)
    }

    pub(super) async fn run(self, keys: &Keys, by: &Actor) -> anyhow::Result<Output> {
        let (key, tenant) = keys.revoke(self.id, by).await?;
        Ok(shown(&KeyObject::of(key, tenant.slug)))
    }
}
