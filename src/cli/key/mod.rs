//! `tollgate key …`.

mod create;
mod list;
mod revoke;
mod rotate;

use clap::Subcommand;

use super::output::{Output, or_dash};
use crate::{
    control::Backend,
    domain::administrator::Actor,
    services::{
        keys::{Issued, Keys},
        objects::KeyObject,
    },
};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum KeyCommand {
    Create(create::Create),
    List(list::List),
    Revoke(revoke::Revoke),
    Rotate(rotate::Rotate),
}

impl KeyCommand {
    pub(super) fn question(&self) -> Option<String> {
        match self {
            Self::Revoke(command) => Some(command.question()),
            Self::Create(_) | Self::List(_) | Self::Rotate(_) => None,
        }
    }

    pub(super) async fn run(self, backend: &Backend) -> anyhow::Result<Output> {
        let keys = Keys::new(backend.store.clone());
        let by = backend.actor();
        match self {
            Self::Create(command) => command.run(&keys, &by).await,
            Self::List(command) => command.run(&keys).await,
            Self::Revoke(command) => command.run(&keys, &by).await,
            Self::Rotate(command) => command.run(&keys, &by).await,
        }
    }
}

/// A key whose secret is told now and never again.
fn issued(issued: Issued) -> Output {
    let key = KeyObject::of(issued.key, issued.tenant.slug).with_secret(&issued.secret);
    shown(&key).note("The secret is shown this once only.")
}

fn shown(key: &KeyObject) -> Output {
    let mut facts = vec![
        ("id", key.key_id.to_string()),
        ("name", key.name.to_string()),
        ("tenant", key.tenant_slug.to_string()),
        ("user", or_dash(key.user.as_ref())),
        ("created", key.created_at.to_string()),
        ("expires", or_dash(key.expires_at)),
        ("revoked", or_dash(key.revoked_at)),
    ];
    if let Some(secret) = &key.key {
        facts.insert(0, ("key", secret.as_str().to_owned()));
    }
    Output::object(key, facts)
}
