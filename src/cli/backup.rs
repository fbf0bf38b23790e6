//! `tollgate backup`.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::json;

use super::output::Output;
use crate::control::Backend;

/// Writes everything to one file: plans, tenants, keys and all usage, as of one instant
///
/// The server goes on meanwhile. Whatever was answered before that instant is in the file, nothing that came later is.
/// The file is readable by its owner only: it holds conversations, and hashes of keys.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: tollgate backup /backups/tollgate-2026-11-24.backup\n\n`tollgate restore` brings it back."
)]
pub(super) struct Backup {
    /// The file to write; one that is there is replaced when the new one is whole
    path: PathBuf,
}

impl Backup {
    pub(super) fn question(&self) -> Option<String> {
        let is_there = self.path.is_file();
        is_there.then(|| format!("Replace the file {}?", self.path.display()))
    }

    pub(super) async fn run(self, backend: &Backend) -> anyhow::Result<Output> {
        let path = backend.directory.join(&self.path);
        let manifest = backend
            .operation
            .backup(&path)
            .await
            .context("no backup was made")?;
        let name = path.display().to_string();
        let body = json!({
            "path": name,
            "made_at": manifest.made_at.to_whole_second(),
            "schema_version": manifest.schema_version,
            "journal_events": manifest.events,
            "bytes": manifest.file_bytes(),
        });
        let facts = vec![
            ("file", name),
            ("made at", manifest.made_at.to_whole_second().to_string()),
            ("bytes", manifest.file_bytes().to_string()),
            ("events from the journal", manifest.events.to_string()),
        ];
        Ok(Output::object(&body, facts))
    }
}
