use super::{Actor, Administrators, Output, shown};
use crate::domain::ids::AdminTokenId;

/// Ends an administrator's token at once
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: tollgate admin-token revoke adm_0190b6f2c1d47a3e8f5b6c7d8e9f0a1b --yes"
)]
pub(in crate::cli) struct Revoke {
    /// Id of the token, not the token itself
    id: AdminTokenId,
}

impl Revoke {
    pub(super) fn question(&self) -> String {
        format!("Revoke administrator token {} at once?", self.id)
    }

    pub(super) async fn run(
        self,
        administrators: &Administrators,
        by: &Actor,
    ) -> anyhow::Result<Output> {
        Ok(shown(&administrators.revoke(self.id, by).await?.into()))
    }
}
