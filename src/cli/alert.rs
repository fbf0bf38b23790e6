//! `tollgate alert …`: notices, and what became of them.

use anyhow::bail;
use clap::Subcommand;
use serde_json::json;

use super::output::{Output, or_dash};
use crate::{
    control::Backend,
    services::outbox::{self, OutboxObject},
    store::outbox::{Kind, OutboxFilter},
};

/// More than anyone reads; the API lists all.
const LISTED: usize = 500;

#[derive(Debug, Subcommand)]
pub(super) enum AlertCommand {
    Test(Test),
    List(List),
    Replay(Replay),
}

/// Sends a test notice to each address now, and says what it answered
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Where notices go: USAGE_WEBHOOK_URL. An address that does not take the test ends with exit code 1.\n\n\
                  Example: tollgate alert test"
)]
pub(super) struct Test {}

/// Lists the last notices, the newest first, and what became of each
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate alert list --output table")]
pub(super) struct List {}

/// Sends a notice, or another entry of the outbox, again that was given up
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: tollgate alert replay ntc_0190b6f2c1d47a3e8f5b6c7d8e9f0a1b.5f2d8c1b9e7a3c40"
)]
pub(super) struct Replay {
    /// Identifier of the entry
    id: String,
}

impl AlertCommand {
    pub(super) async fn run(self, backend: &Backend) -> anyhow::Result<Output> {
        match self {
            Self::Test(_) => test(backend).await,
            Self::List(_) => list(backend).await,
            Self::Replay(command) => {
                let replayed =
                    outbox::replay(&backend.store, &command.id, &backend.actor()).await?;
                let note = format!("{} is sent again.", replayed.identifier);
                Ok(Output::of_json(json!(replayed)).note(note))
            }
        }
    }
}

async fn test(backend: &Backend) -> anyhow::Result<Output> {
    let Some(notices) = &backend.notices else {
        bail!("notices go nowhere; set USAGE_WEBHOOK_URL to the addresses that take them");
    };
    let tested = notices.test().await;
    let failed = tested.iter().filter(|it| it.failure.is_some()).count();
    let items: Vec<_> = tested
        .iter()
        .map(|it| {
            let status = if it.failure.is_some() { "error" } else { "ok" };
            json!({ "address": it.address, "status": status, "detail": it.failure })
        })
        .collect();
    let rows = tested.iter().map(|it| {
        let answer = it.failure.clone().unwrap_or_else(|| "took it".to_owned());
        vec![it.address.clone(), answer]
    });
    let output =
        Output::of_json(json!({ "items": items })).table(&["address", "answer"], rows.collect());
    if failed > 0 {
        let all = tested.len();
        return Ok(output.failing(format!("{failed} of {all} addresses did not take the test")));
    }
    Ok(output)
}

async fn list(backend: &Backend) -> anyhow::Result<Output> {
    let filter = OutboxFilter {
        kind: Some(Kind::Notice),
        ..OutboxFilter::default()
    };
    let entries = backend.store.list_outbox(&filter, None, LISTED).await?;
    let items: Vec<OutboxObject> = entries.into_iter().map(OutboxObject::from).collect();
    let columns = [
        "made",
        "notice",
        "tenant",
        "feature",
        "percent",
        "status",
        "attempts",
        "last error",
        "id",
    ];
    Ok(Output::list(&items, &columns, |it| {
        let notice = it.topic.as_deref().unwrap_or_default();
        vec![
            it.created_at.to_string(),
            notice.rsplit('.').next().unwrap_or_default().to_owned(),
            or_dash(it.tenant_slug.as_ref()),
            or_dash(it.feature_key.as_ref()),
            or_dash(it.value),
            it.status.to_owned(),
            it.attempts.to_string(),
            or_dash(it.last_error.as_ref()),
            it.identifier.clone(),
        ]
    }))
}
