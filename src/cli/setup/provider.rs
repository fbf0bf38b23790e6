//! Section `provider`: which model answers.

use std::sync::Arc;

use super::{
    There,
    question::{Answers, Question},
};
use crate::{
    config::{Config, ProviderKind, sources::Sources},
    provider::{openai, probe, tls},
};

const CHOICES: &[(&str, &str)] = &[
    ("openai", "OpenAI, or any server that speaks its API"),
    (
        "simulated",
        "made-up answers, to try tollgate without a key",
    ),
];

pub(super) const KEYS: [&str; 4] = [
    "TOLLGATE_PROVIDER",
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "TOLLGATE_DEFAULT_MODEL",
];

pub(super) fn questions(there: &There, answers: &Answers) -> Vec<Question> {
    let provider = Question::setting("TOLLGATE_PROVIDER", there.value("TOLLGATE_PROVIDER"));
    let mut questions = vec![provider.choice(CHOICES)];
    if !answers.is("TOLLGATE_PROVIDER", "openai") {
        return questions;
    }
    let has_key = there.has("OPENAI_API_KEY");
    let base_url = there.value("OPENAI_BASE_URL");
    let expected = answers
        .expected("OPENAI_BASE_URL")
        .or(base_url.as_deref())
        .unwrap_or_default();
    let is_needed = openai::is_own_host(expected) && !has_key;
    let key = Question::setting("OPENAI_API_KEY", (!is_needed).then(String::new)).or_blank();
    questions.push(key.hint(if has_key {
        "the upstream's key; blank keeps the one that is there"
    } else {
        "the upstream's key; blank for a server that wants none"
    }));
    let mut base = Question::setting("OPENAI_BASE_URL", base_url);
    if answers.is("OPENAI_API_KEY", "") && !has_key {
        let check = base.check;
        base.check = Arc::new(move |text| {
            match check(text)? {
            url if openai::is_own_host(&url) => {
                Err("OpenAI's own address needs OPENAI_API_KEY; give one, or write another server's address".to_owned())
            }
            url => Ok(url),
        }
        });
    }
    questions.push(base);
    questions.push(Question::setting(
        "TOLLGATE_DEFAULT_MODEL",
        there.value("TOLLGATE_DEFAULT_MODEL"),
    ));
    questions
}

/// Asks the upstream for its models. What failed, for people.
pub(super) async fn test(there: &There, answers: &Answers) -> Result<Option<String>, String> {
    let mut sources = Sources::none();
    for name in KEYS {
        let value = answers.get(name).filter(|value| !value.is_empty());
        let value = value.map(str::to_owned).or_else(|| there.current(name));
        if let Some(value) = value {
            sources = sources.with_flag(name, value);
        }
    }
    let config = Config::load(&sources)
        .map_err(|error| error.to_string())?
        .config;
    if config.provider == ProviderKind::Simulated {
        return Ok(None);
    }
    let base_url = config.openai_base_url.clone();
    let settings = openai::Settings {
        base_url: config.openai_base_url,
        api_key: config.openai_api_key,
        stream_usage: config.stream_usage,
        timeout: config.upstream_timeout,
        roots: tls::Roots::Environment,
    };
    match probe::models(&settings).await {
        Ok(Some(count)) => Ok(Some(format!("{base_url} answers, with {count} models"))),
        Ok(None) => Ok(Some(format!("{base_url} answers"))),
        Err(problem) => Err(format!("{base_url}/models can't be read: {problem}")),
    }
}
