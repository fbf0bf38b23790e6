//! `tollgate reservation …`: what is in flight.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::{Value, json};

use super::{
    arguments,
    output::{NOTHING, Output},
};
use crate::{
    control::Backend,
    domain::{ids::ReservationId, tenant::TenantRef},
    services::UsageOperations,
};

#[derive(Debug, Subcommand)]
pub(super) enum ReservationCommand {
    List(List),
    Release(Release),
}

/// Lists requests in flight and reservations that are not settled yet, the oldest first
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate reservation list --tenant acme --older-than 60")]
pub(super) struct List {
    /// Tenant id or slug [default: all tenants]
    #[arg(long)]
    tenant: Option<TenantRef>,
    /// Only what is at least this old
    #[arg(long, value_name = "SECONDS", value_parser = arguments::seconds)]
    older_than: Option<u64>,
}

/// Gives back what a request or reservation holds; if it is settled later, its usage counts all the same
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: tollgate reservation release res_0190b6f2c1d47a3e8f5b6c7d8e9f0a1b --yes"
)]
pub(super) struct Release {
    /// Id of the reservation
    id: ReservationId,
}

impl ReservationCommand {
    pub(super) fn question(&self) -> Option<String> {
        match self {
            Self::List(_) => None,
            Self::Release(command) => Some(format!(
                "Release {}? Others may use what it holds while it still runs.",
                command.id
            )),
        }
    }

    pub(super) async fn run(self, backend: &Backend) -> anyhow::Result<Output> {
        let usage: &Arc<dyn UsageOperations> = backend
            .usage
            .as_ref()
            .context("nothing in flight can be seen here: the server keeps no usage")?;
        match self {
            Self::List(command) => command.run(usage.as_ref()).await,
            Self::Release(command) => {
                usage.release(command.id, &backend.actor()).await?;
                let released = json!({ "reservation_id": command.id, "released": true });
                Ok(Output::of_json(released).note(format!("Released {}.", command.id)))
            }
        }
    }
}

impl List {
    async fn run(self, usage: &dyn UsageOperations) -> anyhow::Result<Output> {
        let older_than = Duration::from_secs(self.older_than.unwrap_or(0));
        let body = usage.in_flight(self.tenant.as_ref(), older_than).await?;
        let items = body["items"].as_array().map_or(&[][..], Vec::as_slice);
        let rows = items.iter().map(|item| {
            vec![
                text(&item["reservation_id"]),
                text(&item["tenant_slug"]),
                quantities(&item["quantities"]),
                text(&item["age_seconds"]),
                text(&item["expires_at"]),
                text(&item["request_id"]),
                text(&item["node"]),
            ]
        });
        let rows = rows.collect();
        let columns = [
            "id", "tenant", "holds", "age (s)", "expires", "request", "node",
        ];
        Ok(Output::of_json(body).table(&columns, rows))
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => NOTHING.to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `messages 1, input_tokens 40`.
fn quantities(value: &Value) -> String {
    let held = value.as_object().into_iter().flatten();
    let held: Vec<String> = held
        .map(|(feature, quantity)| format!("{feature} {quantity}"))
        .collect();
    if held.is_empty() {
        NOTHING.to_owned()
    } else {
        held.join(", ")
    }
}
