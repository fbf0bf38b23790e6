//! What is going to be written, shown before it is: `.env`, the artifact, and how both differ from what is there.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{
    Section, There, artifact,
    files::{self, EnvChange},
    question::{Answers, row, shown},
    usage::ENABLED,
};
use crate::{cli::usage::ARTIFACT, domain::time::Timestamp};

/// All that the answers lead to.
pub(super) struct Plan {
    sections: Vec<Section>,
    /// Every answer, as it may be shown.
    answers: Vec<(String, String)>,
    env_path: PathBuf,
    env_text: String,
    /// `NAME: old → new`, as they may be shown.
    env_lines: Vec<String>,
    artifact: Option<Artifact>,
    /// What the tests found.
    checks: Vec<String>,
    warnings: Vec<String>,
}

struct Artifact {
    path: PathBuf,
    text: String,
    is_enabled: bool,
    lines: Vec<String>,
}

/// How far it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    DryRun,
    Written,
    Applied,
}

impl Plan {
    pub(super) fn new(
        there: &There,
        sections: &[Section],
        answers: &Answers,
        checks: Vec<String>,
        now: Timestamp,
    ) -> anyhow::Result<Self> {
        let env_path = there.directory.join(".env");
        let before = match fs::read_to_string(&env_path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).context(".env can't be read"),
        };
        let changes = env_changes(there, answers);
        let artifact = sections.contains(&Section::Usage).then(|| {
            let made = there.artifact.with(answers, now);
            Artifact {
                path: there.data_dir.join(ARTIFACT),
                text: artifact::text(&made),
                is_enabled: answers.is(ENABLED, "true"),
                lines: artifact::differences(&there.artifact, &made),
            }
        });
        Ok(Self {
            sections: sections.to_vec(),
            answers: answers
                .iter()
                .map(|(key, value)| (key.to_owned(), shown(key, value)))
                .collect(),
            env_text: files::edited(&before, &changes)?,
            env_lines: env_lines(there, &changes),
            env_path,
            artifact,
            checks,
            warnings: overridden(there, &changes),
        })
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.artifact
            .as_ref()
            .is_some_and(|artifact| artifact.is_enabled)
    }

    pub(super) fn artifact_path(&self) -> &Path {
        self.artifact
            .as_ref()
            .map_or(Path::new(""), |artifact| &artifact.path)
    }

    pub(super) fn artifact_text(&self) -> &str {
        self.artifact.as_ref().map_or("", |artifact| &artifact.text)
    }

    /// For people: every answer, then what changes.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = vec!["Summary".to_owned()];
        let answers = self.answers.iter();
        lines.extend(answers.map(|(key, value)| match value.as_str() {
            "" => format!("  {key}: (blank)"),
            value => format!("  {key}: {value}"),
        }));
        lines.extend(self.checks.iter().map(|check| format!("  {check}")));
        let mut changes = |name: &str, of: &[String]| {
            if of.is_empty() {
                lines.push(format!("{name}: unchanged"));
            } else {
                lines.push(format!("{name}:"));
                lines.extend(of.iter().map(|line| format!("  {line}")));
            }
        };
        changes(".env", &self.env_lines);
        if let Some(artifact) = &self.artifact {
            changes(&artifact.path.display().to_string(), &artifact.lines);
        }
        lines.extend(
            self.warnings
                .iter()
                .map(|warning| format!("note: {warning}")),
        );
        lines
    }

    pub(super) fn json(&self, done: Done) -> Value {
        let sections = self
            .sections
            .iter()
            .map(|section| format!("{section:?}").to_lowercase());
        let answers = self.answers.iter();
        json!({
            "sections": sections.collect::<Vec<_>>(),
            "answers": answers.map(|(key, value)| (key.clone(), json!(value))).collect::<serde_json::Map<_, _>>(),
            "checks": self.checks,
            "env": {"path": self.env_path, "changes": self.env_lines},
            "artifact": self.artifact.as_ref().map(|artifact| json!({
                "path": artifact.path,
                "enabled": artifact.is_enabled,
                "changes": artifact.lines,
            })),
            "notes": self.warnings,
            "written": done != Done::DryRun,
            "applied": done == Done::Applied,
        })
    }

    /// What there is left to know, or to do.
    pub(super) fn closing(&self, done: Done) -> Vec<String> {
        let next = match (done, self.is_enabled()) {
            (Done::DryRun, _) => return vec!["Dry-run complete. Nothing was written.".to_owned()],
            (Done::Written, true) => {
                "Limits hold once `tollgate usage sync-entitlements --create-plans` has brought them into the catalogue."
            }
            (Done::Written | Done::Applied, _) => {
                "Start `tollgate serve` here, or start it again: settings are read at its start."
            }
        };
        vec![
            format!("Wrote {}.", self.env_path.display()),
            next.to_owned(),
        ]
    }

    /// Both files are whole before either takes its place.
    pub(super) fn write(&self) -> anyhow::Result<()> {
        let artifact = match &self.artifact {
            Some(artifact) => {
                let unwritable = || {
                    format!(
                        "the artifact can't be written to {}",
                        artifact.path.display()
                    )
                };
                let directory = artifact.path.parent().unwrap_or(Path::new("."));
                super::make_directory(directory).with_context(unwritable)?;
                Some(files::prepare(&artifact.path, &artifact.text).with_context(unwritable)?)
            }
            None => None,
        };
        let unwritable = || format!("{} can't be written", self.env_path.display());
        let env = files::prepare(&self.env_path, &self.env_text).with_context(unwritable)?;
        if let Some(artifact) = artifact {
            artifact
                .take_its_place()
                .context("the artifact can't take its place")?;
        }
        env.take_its_place().with_context(unwritable)
    }
}

/// What the answers that are settings change in `.env`. A blank secret keeps what is there; any other blank takes the
/// variable away.
fn env_changes(there: &There, answers: &Answers) -> Vec<EnvChange> {
    let mut changes = Vec::new();
    for (key, value) in answers.iter() {
        let Some(setting) = row(key) else {
            continue;
        };
        let is_secret = setting.kind == crate::config::settings::Kind::Secret;
        let change = match (value.is_empty(), is_secret) {
            (true, true) => continue,
            (true, false) if !there.dot_env.contains_key(key) => continue,
            (true, false) => None,
            (false, _) if there.dot_env.get(key).is_some_and(|old| old == value) => continue,
            (false, _) => Some(value.to_owned()),
        };
        changes.push((key.to_owned(), change));
    }
    changes
}

fn env_lines(there: &There, changes: &[EnvChange]) -> Vec<String> {
    let value = |name: &str, value: Option<&String>| {
        value.map_or("none".to_owned(), |value| shown(name, value))
    };
    let lines = changes.iter().map(|(name, new)| {
        let old = value(name, there.dot_env.get(name));
        format!("{name}: {old} → {}", value(name, new.as_ref()))
    });
    lines.collect()
}

/// Variables of the environment that win over what is written.
fn overridden(there: &There, changes: &[EnvChange]) -> Vec<String> {
    let wins = |(name, value): &&EnvChange| {
        let in_environment = there
            .environment
            .get(name)
            .filter(|value| !value.is_empty());
        in_environment.is_some() && in_environment != value.as_ref()
    };
    let changes = changes.iter().filter(wins);
    changes
        .map(|(name, _)| format!("{name} is set in the environment too, which wins over .env"))
        .collect()
}
