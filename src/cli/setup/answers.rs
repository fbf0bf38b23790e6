//! Answers that were given beforehand: files, `--var`, and the file that `--export-answers` writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde_json::{Map, Value};

use super::{
    ask::{Answer, Asker},
    question::{Answers, Question, is_public},
    usage,
};

/// Answers by upper-case key; `None` (null in a file): the default.
pub(super) type Given = BTreeMap<String, Option<String>>;

/// Reads answers files in their order, then variables: later ones win.
pub(super) fn read(files: &[PathBuf], variables: &[String]) -> anyhow::Result<Given> {
    let mut given = Given::new();
    for path in files {
        let shown = path.display();
        let text = fs::read_to_string(path)
            .with_context(|| format!("the answers file {shown} can't be read"))?;
        let members: Map<String, Value> = serde_json::from_str(&text).with_context(|| {
            format!("the answers file {shown} is not one flat JSON object of answers")
        })?;
        for (key, value) in members {
            let key = key.to_ascii_uppercase();
            let value = match value {
                Value::Null => None,
                Value::String(text) => Some(text),
                Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
                Value::Array(_) | Value::Object(_) => bail!(
                    "{key} in {shown} is a list or an object; write a text, a number, true, false or null (several values with commas)"
                ),
            };
            given.insert(key, value);
        }
    }
    for variable in variables {
        let Some((key, value)) = variable.split_once('=') else {
            bail!("--var takes KEY=VALUE, and this one has no '='");
        };
        given.insert(key.trim().to_ascii_uppercase(), Some(value.to_owned()));
    }
    Ok(given)
}

/// Refuses keys that no question has, whatever is answered to others.
pub(super) fn check_keys(given: &Given, known: &BTreeSet<String>) -> anyhow::Result<()> {
    let is_known = |key: &&String| known.contains(*key) || usage::is_limit_key(key);
    let unknown: Vec<&String> = given.keys().filter(|key| !is_known(key)).collect();
    let Some(first) = unknown.first() else {
        return Ok(());
    };
    let distance = |known: &&String| strsim::damerau_levenshtein(known, first);
    let nearest = known.iter().min_by_key(distance).map_or("", String::as_str);
    let names: Vec<String> = unknown
        .iter()
        .map(|key| key.escape_debug().to_string())
        .collect();
    bail!(
        "the answers hold {}, which no question asks for; did you mean {nearest}?",
        names.join(", ")
    )
}

/// Answers from what was given, else with the defaults.
pub(super) struct Beforehand<'a>(pub(super) &'a Given);

impl Asker for Beforehand<'_> {
    fn section(&mut self, _: &str) {}

    fn ask(&mut self, question: &Question, _: Option<&str>) -> anyhow::Result<Answer> {
        let key = &question.key;
        let given = self.0.get(key).cloned().flatten();
        if let Some(text) = &given {
            match (question.check)(text) {
                Ok(value) => return Ok(Answer::Value(value)),
                // Blank stands for the default where it is no answer of its own.
                Err(_) if text.trim().is_empty() => {}
                Err(problem) => bail!("{}", wrong(question, text, &problem)),
            }
        }
        let Some(default) = &question.default else {
            bail!(
                "the answer {key} is missing ({}); write {}",
                question.explanation,
                question.hint
            );
        };
        match (question.check)(default) {
            Ok(value) => Ok(Answer::Value(value)),
            Err(problem) => bail!("{} (the default)", wrong(question, default, &problem)),
        }
    }

    fn failed(&mut self, problem: &str) -> anyhow::Result<Answer> {
        eprintln!("warning: {problem}");
        Ok(Answer::Value(String::new()))
    }
}

fn wrong(question: &Question, text: &str, problem: &str) -> String {
    if question.is_secret() {
        return format!("{} can't be used; {problem}", question.key);
    }
    let text = super::question::shown(&question.key, text);
    format!("{} is '{}'; {problem}", question.key, text.escape_debug())
}

/// Writes the answers so that they can be given again; secrets are null, so that they must come from elsewhere.
pub(super) fn export(path: &Path, answers: &Answers) -> anyhow::Result<()> {
    let members = answers.iter().map(|(key, value)| {
        let is_shown = is_public(key, value);
        (key.to_owned(), is_shown.then(|| value.to_owned()))
    });
    let members: BTreeMap<String, Option<String>> = members.collect();
    let text = format!("{:#}\n", serde_json::json!(members));
    super::files::write_private(path, &text)
        .with_context(|| format!("the answers can't be written to {}", path.display()))
}
