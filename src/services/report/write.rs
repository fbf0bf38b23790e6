//! The report's files, written by a thread of their own while the next page is read.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Seek as _, Write},
    path::{Path, PathBuf},
};

use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::{
    AdminError, NAMED, ReportAsk, ReportFailed, ReportFiles, ReportSummary, Who, rows::TenantRow,
};
use crate::{domain::time::Timestamp, draft::Draft};

/// Pages that wait for the thread: memory stays that of a few.
const PAGES: usize = 2;
const BUFFER: usize = 256 * 1024;

const COLUMNS: [&str; 22] = [
    "tenant_id",
    "tenant_slug",
    "tenant_name",
    "plan_code",
    "plan_name",
    "subscription_status",
    "feature_key",
    "feature_display_name",
    "unit",
    "quantity",
    "soft_limit",
    "hard_limit",
    "remaining_to_soft_limit",
    "remaining_to_hard_limit",
    "percent_of_soft_limit",
    "percent_of_hard_limit",
    "status",
    "approaching",
    "window_start",
    "window_end",
    "usage_window_start",
    "usage_window_end",
];

/// The thread that writes.
pub(super) struct Writer {
    pages: mpsc::Sender<Vec<TenantRow>>,
    ended: oneshot::Receiver<Result<ReportSummary, ReportFailed>>,
}

impl Writer {
    pub(super) fn start(ask: ReportAsk, files: ReportFiles, generated_at: Timestamp) -> Self {
        let (pages, mut waiting) = mpsc::channel::<Vec<TenantRow>>(PAGES);
        let (sender, ended) = oneshot::channel();
        std::thread::spawn(move || {
            let written = Files::open(&files).and_then(|mut open| {
                while let Some(page) = waiting.blocking_recv() {
                    open.write(&page)?;
                }
                open.finish(&ask, generated_at)
            });
            // Whoever asked may be gone; the files are then as they would be.
            drop(sender.send(written));
        });
        Self { pages, ended }
    }

    /// Whether the thread still takes pages.
    pub(super) async fn send(&self, page: Vec<TenantRow>) -> bool {
        self.pages.send(page).await.is_ok()
    }

    pub(super) async fn finish(self) -> Result<ReportSummary, ReportFailed> {
        drop(self.pages);
        let stopped = || AdminError::Unavailable("the report's writer has stopped".to_owned());
        self.ended.await.map_err(|_| stopped())?
    }
}

struct Files {
    json: Option<JsonFile>,
    csv: Option<CsvFile>,
    summary: ReportSummary,
}

impl Files {
    fn open(files: &ReportFiles) -> Result<Self, ReportFailed> {
        Ok(Self {
            json: files.json.as_deref().map(JsonFile::open).transpose()?,
            csv: files.csv.as_deref().map(CsvFile::open).transpose()?,
            summary: ReportSummary::default(),
        })
    }

    fn write(&mut self, page: &[TenantRow]) -> Result<(), ReportFailed> {
        for tenant in page {
            self.summary.tenant_count += 1;
            self.summary.feature_count += tenant.features.len() as u64;
            if self.summary.flagged.len() < NAMED {
                let flagged = tenant.features.iter();
                let flagged = flagged.filter_map(|feature| feature.flagged(&tenant.tenant_slug));
                self.summary.flagged.extend(flagged);
                self.summary.flagged.truncate(NAMED);
            }
            if let Some(json) = &mut self.json {
                json.write(tenant)?;
            }
            if let Some(csv) = &mut self.csv {
                csv.write(tenant)?;
            }
        }
        Ok(())
    }

    fn finish(self, ask: &ReportAsk, at: Timestamp) -> Result<ReportSummary, ReportFailed> {
        // Both are whole before either takes its place.
        let json = match self.json {
            Some(json) => Some(json.finish(&head(ask, &self.summary, at))?),
            None => None,
        };
        let csv = self.csv.map(CsvFile::finish).transpose()?;
        for placed in json.into_iter().chain(csv) {
            placed.take_its_place()?;
        }
        Ok(self.summary)
    }
}

/// What stands before the tenants, without its closing brace.
fn head(ask: &ReportAsk, summary: &ReportSummary, generated_at: Timestamp) -> String {
    let names = |names: Vec<String>| json!(names);
    let tenants = ask.tenants.iter().map(ToString::to_string).collect();
    let plans = ask.plans.iter().map(ToString::to_string).collect();
    let features = ask.features.iter().map(ToString::to_string).collect();
    let members = [
        ("generated_at", json!(generated_at.to_whole_second())),
        ("applied_period_start", json!(ask.period_start)),
        ("applied_period_end", json!(ask.period_end)),
        ("tenant_filters", names(tenants)),
        ("plan_filters", names(plans)),
        ("feature_filters", names(features)),
    ];
    let mut head = String::from("{\n");
    for (name, value) in members {
        head.push_str(&format!("  \"{name}\": {value},\n"));
    }
    // A decimal, not by way of a float.
    head.push_str(&format!("  \"warn_threshold\": {},\n", ask.warn_at));
    let is_everybody = ask.who == Who::Everybody;
    head.push_str(&format!("  \"include_inactive\": {is_everybody},\n"));
    head.push_str(&format!("  \"tenant_count\": {},\n", summary.tenant_count));
    head.push_str(&format!(
        "  \"feature_count\": {},\n",
        summary.feature_count
    ));
    head
}

/// A file that is whole, and not in its place yet.
struct Placed {
    file: Draft,
    path: PathBuf,
}

impl Placed {
    fn take_its_place(self) -> Result<(), ReportFailed> {
        let taken = self.file.take_its_place();
        taken.map_err(failed(&self.path))
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> ReportFailed + '_ {
    |cause| ReportFailed::File {
        path: path.to_owned(),
        cause,
    }
}

/// As readable as any new file, in a directory that is made if need be.
fn draft(path: &Path) -> Result<Draft, ReportFailed> {
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
    directory
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| Draft::of(path, 0o666))
        .map_err(failed(path))
}

struct JsonFile {
    path: PathBuf,
    /// The list of tenants: how many there are stands before it, and is known at the end.
    tenants: BufWriter<File>,
    is_first: bool,
}

impl JsonFile {
    fn open(path: &Path) -> Result<Self, ReportFailed> {
        let spool = draft(path)?.into_file();
        Ok(Self {
            path: path.to_owned(),
            tenants: BufWriter::with_capacity(BUFFER, spool),
            is_first: true,
        })
    }

    fn write(&mut self, tenant: &TenantRow) -> Result<(), ReportFailed> {
        let separator = if self.is_first { "\n    " } else { ",\n    " };
        self.is_first = false;
        let written = self.tenants.write_all(separator.as_bytes());
        let written = written.and_then(|()| Ok(serde_json::to_writer(&mut self.tenants, tenant)?));
        written.map_err(failed(&self.path))
    }

    fn finish(self, head: &str) -> Result<Placed, ReportFailed> {
        let path = self.path;
        let is_empty = self.is_first;
        let mut whole = draft(&path)?;
        let spool = self
            .tenants
            .into_inner()
            .map_err(|error| failed(&path)(error.into_error()));
        let mut spool = spool?;
        let mut write = || {
            whole.write_all(head.as_bytes())?;
            whole.write_all(b"  \"tenants\": [")?;
            spool.rewind()?;
            io::copy(&mut spool, &mut whole)?;
            let end: &[u8] = if is_empty { b"]\n}\n" } else { b"\n  ]\n}\n" };
            whole.write_all(end)
        };
        write().map_err(failed(&path))?;
        Ok(Placed { file: whole, path })
    }
}

struct CsvFile {
    path: PathBuf,
    rows: csv::Writer<Draft>,
}

impl CsvFile {
    fn open(path: &Path) -> Result<Self, ReportFailed> {
        let mut rows = csv::WriterBuilder::new()
            .terminator(csv::Terminator::CRLF)
            .buffer_capacity(BUFFER)
            .from_writer(draft(path)?);
        let written = rows.write_record(COLUMNS);
        written.map_err(|error| failed(path)(error.into()))?;
        Ok(Self {
            path: path.to_owned(),
            rows,
        })
    }

    fn write(&mut self, tenant: &TenantRow) -> Result<(), ReportFailed> {
        let or_empty = |value: Option<String>| value.unwrap_or_default();
        let of_tenant = [
            tenant.tenant_id.to_string(),
            safe(tenant.tenant_slug.as_str()),
            safe(tenant.tenant_name.as_str()),
            or_empty(tenant.plan_code.as_ref().map(|code| safe(code.as_str()))),
            or_empty(tenant.plan_name.as_ref().map(|name| safe(name.as_str()))),
            tenant.subscription_status.unwrap_or_default().to_owned(),
        ];
        let window = [
            tenant.window_start.to_string(),
            or_empty(tenant.window_end.map(|end| end.to_string())),
        ];
        for feature in &tenant.features {
            let number = |value: Option<_>| {
                or_empty(value.map(|value: crate::domain::quantity::Quantity| value.to_string()))
            };
            let percent =
                |value: Option<super::Percent>| or_empty(value.map(|value| value.to_string()));
            let of_feature = [
                safe(feature.feature_key.as_str()),
                safe(&feature.display_name),
                safe(&feature.unit),
                feature.quantity.to_string(),
                number(feature.soft_limit),
                number(feature.hard_limit),
                number(feature.remaining_to_soft_limit),
                number(feature.remaining_to_hard_limit),
                percent(feature.percent_of_soft_limit),
                percent(feature.percent_of_hard_limit),
                feature.status.as_str().to_owned(),
                feature.approaching.to_string(),
            ];
            let usage_window = [
                feature.usage_window_start.to_string(),
                or_empty(feature.usage_window_end.map(|end| end.to_string())),
            ];
            let cells = of_tenant
                .iter()
                .chain(&of_feature)
                .chain(&window)
                .chain(&usage_window);
            let written = self.rows.write_record(cells);
            written.map_err(|error| failed(&self.path)(error.into()))?;
        }
        Ok(())
    }

    fn finish(self) -> Result<Placed, ReportFailed> {
        let path = self.path;
        let file = self.rows.into_inner();
        let file = file.map_err(|error| failed(&path)(error.into_error()))?;
        Ok(Placed { file, path })
    }
}

/// A text that no spreadsheet runs as a formula: one that begins like one gets a quote before it. Full-width signs
/// count, since spreadsheets of some countries take them too.
fn safe(text: &str) -> String {
    let is_formula = |first: char| "=+-@\t\r\n＝＋－＠".contains(first);
    if text.starts_with(is_formula) {
        format!("'{text}")
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_would_be_run_is_quoted() {
        for (text, expected) in [
            ("=1+1", "'=1+1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("-2", "'-2"),
            ("+1", "'+1"),
            ("＝1", "'＝1"),
            ("a=1", "a=1"),
            ("", ""),
        ] {
            assert_eq!(safe(text), expected);
        }
    }
}
