use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::Output;
use crate::{
    billing::stripe::SyncAsk,
    cli::stripe::{stripe_of, sync_shown},
    control::{Backend, Input, Typed},
    services::entitlements::{Entitlements, SyncOptions, Synced},
};

/// Where the artifact is, within the data dir.
pub(in crate::cli) const ARTIFACT: &str = "reports/usage-entitlements.json";

/// Brings the plans of the entitlements artifact into the catalogue
#[derive(Debug, clap::Args)]
#[command(
    after_help = "All plans are changed together or none is, and running servers hold requests against the new limits at once.\n\nExample: tollgate usage sync-entitlements --dry-run"
)]
pub(in crate::cli) struct Sync {
    /// The artifact [default: reports/usage-entitlements.json in the data dir]
    #[arg(long, value_name = "F")]
    path: Option<PathBuf>,
    /// Only this plan, whatever its case; several by repeating or with commas
    #[arg(long, value_name = "CODE", value_delimiter = ',')]
    plan: Vec<String>,
    /// Take features away that the artifact leaves out
    #[arg(long)]
    prune_missing: bool,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Take an artifact that says `"enabled": false`
    #[arg(long)]
    allow_disabled_artifact: bool,
    /// Make plans that are not there
    #[arg(long)]
    create_plans: bool,
    /// Bring features to Stripe too
    #[arg(long)]
    stripe: bool,
}

impl Sync {
    pub(super) fn input(&self, data_dir: &Path) -> anyhow::Result<Input> {
        let path = self.path.clone().unwrap_or_else(|| data_dir.join(ARTIFACT));
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "the artifact {shown} can't be read; `tollgate setup` writes it, or name another with --path"
            )
        })?;
        Ok(Input { path: shown, text })
    }

    pub(super) async fn run(self, backend: &Backend, typed: &Typed) -> anyhow::Result<Output> {
        // Before anything is written: Stripe may be off.
        let stripe = match self.stripe {
            true if self.dry_run => bail!("--stripe writes to Stripe; leave it or --dry-run out"),
            true => Some(stripe_of(backend)?),
            false => None,
        };
        let plans = self.plan.clone();
        let input = typed.input.as_ref();
        let input = input.context("the artifact did not come along with the command")?;
        let options = SyncOptions {
            plans: self.plan,
            prune_missing: self.prune_missing,
            dry_run: self.dry_run,
            allow_disabled_artifact: self.allow_disabled_artifact,
            create_plans: self.create_plans,
        };
        let synced = Entitlements::new(backend.store.clone())
            .sync(&input.text, &options, &backend.actor())
            .await
            .with_context(|| format!("{} is not taken, nothing was written", input.path))?;
        let output = shown(&input.path, &synced);
        let Some(stripe) = stripe else {
            return Ok(output);
        };
        let there = stripe
            .sync_features(&SyncAsk { plans })
            .await
            .context("the plans are synced, and could not be brought to Stripe")?;
        Ok(output.with("stripe", serde_json::json!(there.plans), sync_shown(&there)))
    }
}

fn shown(path: &str, synced: &Synced) -> Output {
    let mut json = serde_json::json!(synced);
    json["path"] = path.into();
    let mut lines = vec![
        format!("path={path}"),
        format!("enabled={}", synced.enabled),
    ];
    for plan in &synced.plans {
        lines.push(format!(
            "plan={} inserted={} updated={} pruned={} unchanged={}",
            plan.plan_code, plan.inserted, plan.updated, plan.pruned, plan.unchanged
        ));
        lines.extend(plan.changes.iter().map(|change| format!("  {change}")));
    }
    lines.push(if synced.dry_run {
        "Dry-run complete. Re-run without --dry-run to apply changes.".to_owned()
    } else {
        format!(
            "Synced usage entitlements for {} plan(s).",
            synced.plans.len()
        )
    });
    let output = Output::of_json(json).lines(lines);
    synced
        .warnings
        .iter()
        .fold(output, |output, warning| output.warn(warning))
}
