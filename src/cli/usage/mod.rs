//! `tollgate usage …`.

mod record;
mod show;
mod totals;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::Value;

use super::output::{NOTHING, Output};
use crate::{control::Backend, services::UsageOperations};

/// How often `usage show --watch` looks again.
pub(super) const WATCH_INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum UsageCommand {
    Show(show::Show),
    Totals(totals::Totals),
    Record(record::Record),
}

impl UsageCommand {
    pub(super) fn is_watching(&self) -> bool {
        matches!(self, Self::Show(command) if command.is_watching())
    }

    pub(super) async fn run(self, backend: &Backend) -> anyhow::Result<Output> {
        let usage: &Arc<dyn UsageOperations> = backend
            .usage
            .as_ref()
            .context("usage can't be read here: the server keeps none")?;
        let now = backend.clock.now();
        match self {
            Self::Show(command) => command.run(usage.as_ref(), now).await,
            Self::Totals(command) => command.run(usage.as_ref(), now).await,
            Self::Record(command) => command.run(usage.as_ref(), now).await,
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
