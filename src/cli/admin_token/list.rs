use super::{AdministratorObject, Administrators, Output};

/// Lists the administrators whose tokens are in use
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate admin-token list")]
pub(in crate::cli) struct List {}

impl List {
    pub(super) async fn run(self, administrators: &Administrators) -> anyhow::Result<Output> {
        let tokens = administrators.list().await?;
        let items: Vec<_> = tokens.into_iter().map(AdministratorObject::from).collect();
        let columns = ["id", "name", "role", "created"];
        Ok(Output::list(&items, &columns, |it| {
            vec![
                it.admin_token_id.to_string(),
                it.name.to_string(),
                it.role.to_string(),
                it.created_at.to_string(),
            ]
        }))
    }
}
