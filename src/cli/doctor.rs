//! `tollgate doctor`: what is around the program here, what runs by the program itself.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use serde_json::json;

use super::{load_quietly, output::Output};
use crate::{
    app::{
        self,
        data_dir::{self, DataDir},
    },
    config::{Config, Database, Loaded, sources::SettingFlags},
    control::{self, Asked, Backend, Progress, Typed},
    journal::Journal,
    services::doctor::{Finding, Severity},
    store::{
        postgres::{self, PostgresUrl},
        sqlite::maintenance,
    },
};

/// Looks for faults in everything, and says how to mend each
///
/// Settings, clock, data dir, database, journal, live totals against stored ones, upstream, limits, tenants and keys.
/// Beside a running server it asks the server; without one it opens the stores. It changes nothing, but that live totals
/// in Redis which differ from the stored ones are mended. Exit code 1 if something is broken, 0 if there are only
/// warnings.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: tollgate doctor --output json")]
pub(super) struct Examine {}

impl Examine {
    /// The part that the running program knows.
    pub(super) async fn run(self, backend: &Backend) -> anyhow::Result<Output> {
        Ok(report(backend.operation.examine().await))
    }
}

/// All of it, as it is typed.
pub(super) async fn run(settings: SettingFlags, words: Vec<String>) -> Output {
    let loaded = match load_quietly(settings) {
        Ok(loaded) => loaded,
        Err(error) => {
            let finding = Finding::error(
                "configuration",
                format!("{error:#}"),
                "mend the setting; the rest can't be looked at before",
            );
            return report(vec![finding]);
        }
    };
    let mut findings = configuration(&loaded);
    findings.extend(data_dir(&loaded.config.data_dir));
    findings.extend(running(&loaded, &words).await);
    report(findings)
}

fn report(findings: Vec<Finding>) -> Output {
    let count = |severity| findings.iter().filter(|it| it.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let body = json!({ "items": findings, "errors": errors, "warnings": warnings });
    let remedies: Vec<String> = findings
        .iter()
        .filter_map(|finding| Some(format!("{}: {}", finding.check, finding.remedy.as_ref()?)))
        .collect();
    let rows = findings.into_iter().map(|finding| {
        vec![
            finding.severity.as_str().to_owned(),
            finding.check,
            finding.detail,
        ]
    });
    let mut output = Output::of_json(body).table(&["", "check", "found"], rows.collect());
    if !remedies.is_empty() {
        output = output.note(format!("What to do:\n  {}", remedies.join("\n  ")));
    }
    let output = output.note(format!("{errors} broken, {warnings} to look at."));
    if errors > 0 {
        output.failing(format!(
            "{errors} of the checks found something broken; see above"
        ))
    } else {
        output
    }
}

fn configuration(loaded: &Loaded) -> Vec<Finding> {
    let check = "configuration";
    let mut findings: Vec<Finding> = loaded
        .warnings
        .iter()
        .map(|warning| Finding::warning(check, warning, "write the name right, or take it out"))
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok(check, "every setting can be read"));
    }
    findings
}

/// Less room than this is a fault, and a warning.
const FAULT_BYTES: u64 = 100 << 20;
const WARNING_BYTES: u64 = 1 << 30;

fn data_dir(path: &Path) -> Vec<Finding> {
    let check = "data dir";
    let shown = path.display();
    let metadata = match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => metadata,
        Ok(_) => {
            return vec![Finding::error(
                check,
                format!("{shown} is no directory"),
                "choose another with TOLLGATE_DATA_DIR",
            )];
        }
        Err(error) => {
            return vec![Finding::warning(
                check,
                format!("{shown}: {error}"),
                "`tollgate serve` makes it; if it should be there, check TOLLGATE_DATA_DIR and the working directory",
            )];
        }
    };
    let mut findings = Vec::new();
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        findings.push(Finding::warning(
            check,
            format!("{shown} has mode {mode:04o}, so others can look into it"),
            format!("chmod 700 {shown}"),
        ));
    }
    if let Err(error) = tempfile::Builder::new()
        .prefix(".doctor-")
        .tempfile_in(path)
    {
        findings.push(Finding::error(
            check,
            format!("{shown} can't be written: {error}"),
            "run as the user that owns it, or mend its permissions",
        ));
    }
    findings.extend(room(path));
    findings.extend(left_behind(path));
    if findings.iter().all(|it| it.severity == Severity::Ok) {
        findings.insert(
            0,
            Finding::ok(
                check,
                format!("{shown} is its owner's alone and can be written"),
            ),
        );
    }
    findings
}

fn room(path: &Path) -> Option<Finding> {
    let check = "disk";
    let stat = rustix::fs::statvfs(path).ok()?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let detail = format!("{} MiB free", free >> 20);
    let remedy = "make room: a full disk refuses chat with 503 until there is some";
    Some(if free < FAULT_BYTES {
        Finding::error(check, detail, remedy)
    } else if free < WARNING_BYTES {
        Finding::warning(check, detail, remedy)
    } else {
        Finding::ok(check, detail)
    })
}

/// What faults and interrupted commands have left in the data dir.
fn left_behind(path: &Path) -> Vec<Finding> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
        .iter()
        .filter(|name| name.contains(".damaged-"))
        .map(|name| {
            if name.starts_with("answers.") {
                return Finding::warning(
                    "answers",
                    format!("{name} was damaged and moved aside; repeats of what it held run again"),
                    "see docs/runbook.md, damaged answers; remove it once that is settled",
                );
            }
            Finding::warning(
                "journal",
                format!("{name} was damaged and moved aside; events that had not reached the store are in it"),
                "see docs/runbook.md, damaged journal; remove it once that is settled",
            )
        })
        .collect()
}

/// What runs: asked of the server, or opened here.
async fn running(loaded: &Loaded, words: &[String]) -> Vec<Finding> {
    let check = "server";
    let path = &loaded.config.data_dir;
    let typed = Typed {
        argv: words.to_vec(),
        ..Typed::default()
    };
    let unheard: Progress = Arc::new(|_| {});
    match control::ask(path, &typed, &unheard).await {
        Ok(Asked::Answered(Ok(output))) => {
            let mut findings = vec![Finding::ok(check, "runs on this data dir, and was asked")];
            let items = output.json()["items"].clone();
            findings.extend(serde_json::from_value::<Vec<Finding>>(items).unwrap_or_default());
            return findings;
        }
        Ok(Asked::Answered(Err(failure))) => {
            return vec![Finding::error(check, failure.message, "restart the server")];
        }
        Err(error) => {
            return vec![Finding::error(
                check,
                error.to_string(),
                "restart the server",
            )];
        }
        Ok(Asked::NoServer) => {}
    }
    let mut findings = vec![Finding::skipped(check, "does not run on this data dir")];
    if !path.is_dir() {
        if let Database::Postgres(url) = &loaded.config.database {
            findings.push(postgres_finding(url).await);
        }
        return findings;
    }
    let held = match DataDir::open(path) {
        Ok(held) => held,
        Err(error) => {
            let remedy = "another command runs, or a server that does not answer; wait, or stop it";
            findings.push(Finding::error("data dir", error.to_string(), remedy));
            return findings;
        }
    };
    let faults = unopenable(&loaded.config).await;
    if faults.is_empty() {
        findings.extend(opened(loaded, held).await);
    } else {
        findings.extend(faults);
        findings.push(Finding::skipped("the rest", "needs database and journal"));
    }
    findings
}

/// What keeps database or journal from being opened: opening them would change them.
async fn unopenable(config: &Config) -> Vec<Finding> {
    let mut faults = Vec::new();
    match &config.database {
        Database::Sqlite(path) => faults.extend(database_fault(path)),
        Database::Postgres(url) => {
            let found = postgres_finding(url).await;
            faults.extend((found.severity != Severity::Ok).then_some(found));
        }
    }
    let journal = data_dir::journal_path(&config.data_dir);
    if let Err(why) = Journal::inspect(&journal) {
        faults.push(Finding::error(
            "journal",
            format!("{}: {why}", journal.display()),
            "`tollgate serve` moves it aside and reads the totals from the store; see docs/runbook.md, damaged journal, first",
        ));
    }
    faults
}

fn database_fault(path: &Path) -> Option<Finding> {
    let check = "store";
    let known = maintenance::newest_schema_version();
    let restore = "restore a backup (`tollgate restore`)";
    match maintenance::inspect(path) {
        Err(error) => Some(Finding::error(check, error.to_string(), restore)),
        Ok(Some(found)) if !found.faults.is_empty() => {
            let detail = format!("the database is damaged: {}", found.faults.join("; "));
            Some(Finding::error(check, detail, restore))
        }
        Ok(Some(found)) if found.schema_version > known => Some(Finding::error(
            check,
            format!(
                "its schema is at version {}, newer than {known}, the newest that this tollgate knows",
                found.schema_version
            ),
            "use the tollgate that wrote it, or restore a backup made before the upgrade",
        )),
        Ok(Some(found)) if found.schema_version < known => Some(Finding::warning(
            check,
            format!(
                "its schema is at version {}; this tollgate's is {known}",
                found.schema_version
            ),
            "`tollgate migrate` backs it up and brings it up to date",
        )),
        Ok(None) => Some(Finding::skipped(
            check,
            format!(
                "there is no database at {} yet; `tollgate serve` makes one",
                path.display()
            ),
        )),
        Ok(Some(_)) => None,
    }
}

async fn postgres_finding(url: &PostgresUrl) -> Finding {
    let check = "store";
    let known = postgres::newest_schema_version();
    match postgres::inspect(url).await {
        Err(error) => Finding::error(
            check,
            error.to_string(),
            "check DATABASE_URL, the server, and the network between here and there",
        ),
        Ok(found) if found.schema_version > known => Finding::error(
            check,
            format!(
                "{url}: its schema is at version {}, newer than {known}, the newest that this tollgate knows",
                found.schema_version
            ),
            "use the tollgate that wrote it, or restore a backup made before the upgrade",
        ),
        Ok(found) if found.schema_version < known => Finding::warning(
            check,
            format!(
                "{url}: Postgres {}, schema version {}; this tollgate's is {known}",
                found.server_version, found.schema_version
            ),
            "make a backup (pg_dump -Fc); `tollgate migrate` or `tollgate serve` then brings it up to date",
        ),
        Ok(found) => Finding::ok(
            check,
            format!(
                "{url}: Postgres {}, schema version {known}",
                found.server_version
            ),
        ),
    }
}

async fn opened(loaded: &Loaded, held: DataDir) -> Vec<Finding> {
    match app::open_local(loaded, held).await {
        Ok(local) => {
            let findings = local.backend.operation.examine().await;
            local.close().await;
            findings
        }
        Err(error) => vec![Finding::error(
            "server",
            format!("can't be started: {error:#}"),
            "mend what it says",
        )],
    }
}
