//! `tollgate usage …`.

mod correct;
mod explain;
mod export;
mod record;
mod show;
mod statement;
mod sync;
mod totals;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::Value;

use super::output::{NOTHING, Output};
use crate::{
    control::{Backend, Input, Progress, Typed},
    services::UsageOperations,
};
pub(in crate::cli) use sync::ARTIFACT;

/// How often `usage show --watch` looks again.
pub(super) const WATCH_INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum UsageCommand {
    Show(show::Show),
    Totals(totals::Totals),
    Record(record::Record),
    #[command(name = "sync-entitlements")]
    Sync(sync::Sync),
    ExportReport(export::ExportReport),
    Correct(correct::Correct),
    Statement(statement::Statement),
    Explain(explain::Explain),
}

impl UsageCommand {
    pub(super) fn is_watching(&self) -> bool {
        matches!(self, Self::Show(command) if command.is_watching())
    }

    /// The file that goes with the command to wherever it runs.
    pub(super) fn input(&self, data_dir: &Path) -> anyhow::Result<Option<Input>> {
        match self {
            Self::Sync(command) => command.input(data_dir).map(Some),
            Self::Show(_)
            | Self::Totals(_)
            | Self::Record(_)
            | Self::Statement(_)
            | Self::Explain(_)
            | Self::Correct(_)
            | Self::ExportReport(_) => Ok(None),
        }
    }

    pub(super) async fn run(
        self,
        backend: &Backend,
        typed: &Typed,
        progress: &Progress,
    ) -> anyhow::Result<Output> {
        let usage: &Arc<dyn UsageOperations> = backend
            .usage
            .as_ref()
            .context("usage can't be read here: the server keeps none")?;
        let now = backend.clock.now();
        match self {
            Self::Show(command) => command.run(usage.as_ref(), now).await,
            Self::Totals(command) => command.run(usage.as_ref(), now).await,
            Self::Record(command) => command.run(usage.as_ref(), &backend.actor()).await,
            Self::Sync(command) => command.run(backend, typed).await,
            Self::ExportReport(command) => command.run(usage.as_ref(), backend, progress).await,
            Self::Statement(command) => command.run(usage.as_ref()).await,
            Self::Explain(command) => command.run(usage.as_ref()).await,
            Self::Correct(command) => command.run(usage.as_ref(), &backend.actor()).await,
        }
    }
}

/// A member of a JSON body for people: text without its quotes, a dash for what is not there.
fn cell(object: &Value, name: &str) -> String {
    match &object[name] {
        Value::Null => NOTHING.to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn array<'a>(object: &'a Value, name: &str) -> &'a [Value] {
    object[name].as_array().map_or(&[], Vec::as_slice)
}
