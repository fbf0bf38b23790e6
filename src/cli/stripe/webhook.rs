use clap::Subcommand;
use serde_json::json;

use super::Output;
use crate::{
    billing::stripe::WebhookObject, cli::output::or_dash, control::Backend, services::AdminError,
    store::webhooks::WebhookStatus,
};

/// More than anyone reads.
const LISTED: usize = 500;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum WebhookCommand {
    List(List),
    Replay(Replay),
}

/// Lists events that Stripe sent, those that came last first, and what became of each
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate stripe webhook list --status unmatched")]
pub(in crate::cli) struct List {
    /// Only those that are so far
    #[arg(long, value_name = "S")]
    status: Option<StatusArg>,
}

/// Applies an event again, as one whose tenant or plan is there by now
#[derive(Debug, clap::Args)]
#[command(
    after_help = "What Stripe said later stays in force.\n\nExample: tollgate stripe webhook replay evt_1Nv0FGQ9RKHgCVdKqFrx7yQK"
)]
pub(in crate::cli) struct Replay {
    /// Id of the event, evt_…
    id: String,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum StatusArg {
    Pending,
    Applied,
    Ignored,
    Unmatched,
    Dead,
}

impl From<StatusArg> for WebhookStatus {
    fn from(status: StatusArg) -> Self {
        match status {
            StatusArg::Pending => Self::Pending,
            StatusArg::Applied => Self::Applied,
            StatusArg::Ignored => Self::Ignored,
            StatusArg::Unmatched => Self::Unmatched,
            StatusArg::Dead => Self::Dead,
        }
    }
}

impl WebhookCommand {
    pub(super) async fn run(self, backend: &Backend) -> anyhow::Result<Output> {
        match self {
            Self::List(command) => list(backend, command).await,
            Self::Replay(command) => replay(backend, &command.id).await,
        }
    }
}

async fn list(backend: &Backend, asked: List) -> anyhow::Result<Output> {
    let status = asked.status.map(WebhookStatus::from);
    let found = backend.store.list_webhooks(status, None, LISTED).await?;
    let items: Vec<WebhookObject> = found.into_iter().map(WebhookObject::from).collect();
    let columns = [
        "came",
        "event",
        "tenant",
        "status",
        "attempts",
        "last error",
        "id",
    ];
    Ok(Output::list(&items, &columns, |it| {
        vec![
            it.received_at.to_string(),
            it.event_type.clone(),
            or_dash(it.tenant_slug.as_ref()),
            it.status.to_owned(),
            it.attempts.to_string(),
            or_dash(it.last_error.as_ref()),
            it.event_id.clone(),
        ]
    }))
}

async fn replay(backend: &Backend, id: &str) -> anyhow::Result<Output> {
    let is_replayed = backend.store.replay_webhook(id, &backend.actor()).await?;
    if !is_replayed {
        return match backend.store.find_webhook(id).await? {
            Some(found) => Err(AdminError::invalid(
                "id",
                format!("{id} ({})", found.status.as_str()),
                "the id of an event that is unmatched, dead or applied",
            )
            .into()),
            None => Err(AdminError::not_found("event of Stripe's", id).into()),
        };
    }
    // Without a server nobody else would apply it.
    if let Some(stripe) = &backend.stripe {
        stripe.apply_pending().await?;
    }
    let found = backend.store.find_webhook(id).await?;
    let found = found.ok_or_else(|| AdminError::not_found("event of Stripe's", id))?;
    let shown = WebhookObject::from(found);
    let note = match &shown.last_error {
        None => format!("{id} is {}.", shown.status),
        Some(error) => format!("{id} is {}: {error}.", shown.status),
    };
    Ok(Output::of_json(json!(shown)).note(note))
}
