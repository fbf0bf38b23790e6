use clap::Subcommand;
use serde_json::json;

use super::Output;
use crate::{
    cli::output::or_dash,
    control::Backend,
    domain::tenant::TenantRef,
    services::{
        AdminError,
        outbox::{self, OutboxObject},
    },
    store::outbox::{Kind, OutboxFilter, Status},
};

/// More than anyone reads; the API lists all.
const LISTED: usize = 500;
/// How many are replayed at once.
const REPLAYED: usize = 10_000;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum OutboxCommand {
    List(List),
    Replay(Replay),
}

/// Lists meter events, the newest first, and what became of each
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate stripe outbox list --status dead")]
pub(in crate::cli) struct List {
    /// Only those that are so far
    #[arg(long, value_name = "S")]
    status: Option<StatusArg>,
    /// Only this tenant's, by id or slug
    #[arg(long, value_name = "T")]
    tenant: Option<TenantRef>,
}

/// Sends a meter event again that is dead or uncertain, or all dead ones
#[derive(Debug, clap::Args)]
#[command(
    after_help = "What may have arrived is looked for in Stripe's sums first, so that nothing counts twice.\n\nExample: tollgate stripe outbox replay --dead"
)]
pub(in crate::cli) struct Replay {
    /// Identifier of the event
    #[arg(required_unless_present = "dead")]
    id: Option<String>,
    /// All that are dead
    #[arg(long, conflicts_with = "id")]
    dead: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum StatusArg {
    Pending,
    Sent,
    Confirmed,
    Uncertain,
    Dead,
}

impl From<StatusArg> for Status {
    fn from(status: StatusArg) -> Self {
        match status {
            StatusArg::Pending => Self::Pending,
            StatusArg::Sent => Self::Sent,
            StatusArg::Confirmed => Self::Confirmed,
            StatusArg::Uncertain => Self::Uncertain,
            StatusArg::Dead => Self::Dead,
        }
    }
}

impl OutboxCommand {
    pub(super) async fn run(self, backend: &Backend) -> anyhow::Result<Output> {
        match self {
            Self::List(command) => list(backend, command).await,
            Self::Replay(Replay { id: Some(id), .. }) => {
                let replayed = outbox::replay(&backend.store, &id, &backend.actor()).await?;
                let note = format!("{} is sent again.", replayed.identifier);
                Ok(Output::of_json(json!(replayed)).note(note))
            }
            Self::Replay(Replay { id: None, .. }) => replay_dead(backend).await,
        }
    }
}

async fn list(backend: &Backend, asked: List) -> anyhow::Result<Output> {
    let tenant = match &asked.tenant {
        Some(tenant) => {
            let found = backend.store.find_tenant(tenant).await?;
            let found = found.ok_or_else(|| AdminError::not_found("tenant", tenant))?;
            Some(found.tenant_id)
        }
        None => None,
    };
    let filter = OutboxFilter {
        kind: Some(Kind::StripeMeterEvent),
        status: asked.status.map(Status::from),
        tenant,
    };
    let entries = backend.store.list_outbox(&filter, None, LISTED).await?;
    let items: Vec<OutboxObject> = entries.into_iter().map(OutboxObject::from).collect();
    let columns = [
        "used",
        "tenant",
        "feature",
        "value",
        "what",
        "status",
        "attempts",
        "last error",
        "id",
    ];
    Ok(Output::list(&items, &columns, |it| {
        vec![
            or_dash(it.about_at),
            or_dash(it.tenant_slug.as_ref()),
            or_dash(it.feature_key.as_ref()),
            or_dash(it.value),
            or_dash(it.topic.as_ref()),
            it.status.to_owned(),
            it.attempts.to_string(),
            or_dash(it.last_error.as_ref()),
            it.identifier.clone(),
        ]
    }))
}

async fn replay_dead(backend: &Backend) -> anyhow::Result<Output> {
    let filter = OutboxFilter {
        kind: Some(Kind::StripeMeterEvent),
        status: Some(Status::Dead),
        tenant: None,
    };
    let dead = backend.store.list_outbox(&filter, None, REPLAYED).await?;
    let mut items = Vec::with_capacity(dead.len());
    for entry in dead {
        items.push(outbox::replay(&backend.store, &entry.identifier, &backend.actor()).await?);
    }
    let note = format!("{} event(s) are sent again.", items.len());
    Ok(Output::of_json(json!({ "items": items })).note(note))
}
