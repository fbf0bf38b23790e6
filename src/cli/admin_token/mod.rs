//! `tollgate admin-token …`.

mod create;
mod list;
mod revoke;

use clap::Subcommand;

use super::output::Output;
use crate::{
    control::Backend,
    domain::administrator::Actor,
    services::{administrators::Administrators, objects::AdministratorObject},
};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum AdminTokenCommand {
    Create(create::Create),
    List(list::List),
    Revoke(revoke::Revoke),
}

impl AdminTokenCommand {
    pub(super) fn question(&self) -> Option<String> {
        match self {
            Self::Revoke(command) => Some(command.question()),
            Self::Create(_) | Self::List(_) => None,
        }
    }

    pub(super) async fn run(self, backend: &Backend) -> anyhow::Result<Output> {
        let administrators = &backend.administrators;
        let by = backend.actor();
        match self {
            Self::Create(command) => command.run(administrators, &by).await,
            Self::List(command) => command.run(administrators).await,
            Self::Revoke(command) => command.run(administrators, &by).await,
        }
    }
}

fn shown(administrator: &AdministratorObject) -> Output {
    let mut facts = vec![
        ("id", administrator.admin_token_id.to_string()),
        ("name", administrator.name.to_string()),
        ("role", administrator.role.to_string()),
        ("created", administrator.created_at.to_string()),
    ];
    if let Some(token) = &administrator.token {
        facts.insert(0, ("token", token.as_str().to_owned()));
    }
    Output::object(administrator, facts)
}
