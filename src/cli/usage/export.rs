use std::path::PathBuf;

use super::Output;
use crate::{
    control::{Backend, Progress, Step},
    domain::{feature::FeatureKey, names::PlanCode, tenant::TenantRef, time::Timestamp},
    services::{
        AdminError, UsageOperations,
        report::{Flagged, ReportAsk, ReportFiles, ReportSummary, Who},
        usage_view::WarnAt,
    },
};

/// Where the report is, within the data dir.
const JSON: &str = "reports/usage-dashboard.json";
const CSV: &str = "reports/usage-dashboard.csv";

/// Writes what every tenant used, with its limits, to a JSON and a CSV file
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: tollgate usage export-report --plan pro --feature messages,output_tokens --output-csv usage.csv --no-json"
)]
pub(in crate::cli) struct ExportReport {
    /// The report as it stood at the end of this second [default: now]
    #[arg(long, value_name = "TS")]
    as_of: Option<Timestamp>,
    /// Count from here on, in place of the start of each subscription's current period
    #[arg(long, value_name = "TS")]
    period_start: Option<Timestamp>,
    /// Count up to here, in place of the period's end
    #[arg(long, value_name = "TS")]
    period_end: Option<Timestamp>,
    /// Only this tenant, by slug or id; several by repeating or with commas
    #[arg(long, value_name = "T", value_delimiter = ',')]
    tenant: Vec<TenantRef>,
    /// Only tenants of this plan, whatever its case; several by repeating or with commas
    #[arg(long, value_name = "P", value_delimiter = ',')]
    plan: Vec<PlanCode>,
    /// Only this feature; several by repeating or with commas
    #[arg(long, value_name = "K", value_delimiter = ',')]
    feature: Vec<FeatureKey>,
    /// Tenants whose subscription does not run, or who have none, too
    #[arg(long)]
    include_inactive: bool,
    /// From which share of its soft, else hard limit on a feature is approaching
    #[arg(long, value_name = "SHARE", default_value = "0.8")]
    warn_threshold: WarnAt,
    /// The JSON file [default: reports/usage-dashboard.json in the data dir]
    #[arg(long, value_name = "F", conflicts_with = "no_json")]
    output_json: Option<PathBuf>,
    /// The CSV file [default: reports/usage-dashboard.csv in the data dir]
    #[arg(long, value_name = "F", conflicts_with = "no_csv")]
    output_csv: Option<PathBuf>,
    /// Write no JSON file
    #[arg(long)]
    no_json: bool,
    /// Write no CSV file
    #[arg(long)]
    no_csv: bool,
}

impl ExportReport {
    pub(super) async fn run(
        self,
        usage: &dyn UsageOperations,
        backend: &Backend,
        progress: &Progress,
    ) -> anyhow::Result<Output> {
        // As it is shown, and as a file: the server's working directory is another.
        let place = |is_left_out: bool, asked: Option<PathBuf>, usual: &str| {
            let path = asked.unwrap_or_else(|| backend.data_dir.join(usual));
            (!is_left_out).then(|| (path.display().to_string(), backend.directory.join(path)))
        };
        let json = place(self.no_json, self.output_json, JSON);
        let csv = place(self.no_csv, self.output_csv, CSV);
        let file = |place: &Option<(String, PathBuf)>| place.as_ref().map(|(_, path)| path.clone());
        if let (Some((shown, json)), Some((_, csv))) = (&json, &csv)
            && json == csv
        {
            let accepted =
                "another file than --output-json names, or leave one out by --no-json or --no-csv";
            return Err(AdminError::invalid("output_csv", shown, accepted).into());
        }
        let files = ReportFiles {
            json: file(&json),
            csv: file(&csv),
        };
        let ask = ReportAsk {
            as_of: self.as_of,
            period_start: self.period_start,
            period_end: self.period_end,
            tenants: self.tenant,
            plans: self.plan,
            features: self.feature,
            who: if self.include_inactive {
                Who::Everybody
            } else {
                Who::Active
            },
            warn_at: self.warn_threshold,
        };
        let steps = |done, total| progress(Step { done, total });
        let summary = usage.export(&ask, files, &steps).await?;
        let shown = |place: Option<(String, PathBuf)>| place.map(|(shown, _)| shown);
        Ok(shown_report(&summary, shown(json), shown(csv)))
    }
}

fn shown_report(summary: &ReportSummary, json: Option<String>, csv: Option<String>) -> Output {
    let mut body = serde_json::json!(summary);
    body["json_path"] = json.clone().into();
    body["csv_path"] = csv.clone().into();
    let mut lines = Vec::new();
    lines.extend(json.map(|path| format!("json={path}")));
    lines.extend(csv.map(|path| format!("csv={path}")));
    lines.push(format!(
        "Usage report generated for {} tenant(s).",
        summary.tenant_count
    ));
    lines.extend(summary.flagged.iter().map(line));
    Output::of_json(body).lines(lines)
}

fn line(flagged: &Flagged) -> String {
    let limit = flagged.hard_limit.or(flagged.soft_limit);
    let limit = limit.map_or(String::new(), |limit| format!(" of {limit}"));
    let percent = flagged
        .percent
        .map_or(String::new(), |percent| format!(" ({percent} %)"));
    format!(
        "  {} {}: {}{limit} {}{percent}, {}",
        flagged.tenant_slug,
        flagged.feature_key,
        flagged.quantity,
        flagged.unit,
        flagged.status.as_str()
    )
}
