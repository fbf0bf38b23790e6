//! Section `stripe`: whether usage is billed.

use secrecy::SecretString;

use super::{
    There,
    question::{Answers, Question},
};
use crate::{
    billing::stripe::{self, CallError},
    config::{Config, sources::Sources},
};

pub(super) const KEYS: [&str; 3] = [
    "ENABLE_STRIPE_USAGE",
    "STRIPE_SECRET_KEY",
    "STRIPE_WEBHOOK_SECRET",
];

pub(super) fn questions(there: &There, answers: &Answers) -> Vec<Question> {
    let mut questions = vec![Question::setting(
        "ENABLE_STRIPE_USAGE",
        there.value("ENABLE_STRIPE_USAGE"),
    )];
    if answers.is("ENABLE_STRIPE_USAGE", "true") {
        for name in ["STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET"] {
            let is_there = there.has(name);
            let question = Question::setting(name, is_there.then(String::new));
            questions.push(if is_there {
                question
                    .or_blank()
                    .hint("blank keeps the one that is there")
            } else {
                question
            });
        }
    }
    questions
}

/// Has Stripe look at the key, which is shown nowhere. What failed, for people; a Stripe that can't be reached from here
/// says nothing about the key.
pub(super) async fn test(there: &There, answers: &Answers) -> Result<Option<String>, String> {
    if !answers.is("ENABLE_STRIPE_USAGE", "true") {
        return Ok(None);
    }
    let given = answers.get("STRIPE_SECRET_KEY");
    let given = given.filter(|key| !key.is_empty()).map(str::to_owned);
    let Some(key) = given.or_else(|| there.current("STRIPE_SECRET_KEY")) else {
        return Ok(None);
    };
    let mut sources = Sources::none();
    if let Some(base) = there.current("STRIPE_API_BASE") {
        sources = sources.with_flag("STRIPE_API_BASE", base);
    }
    let config = Config::load(&sources).map_err(|error| error.to_string())?;
    let base = config.config.stripe_api_base;
    match stripe::check_key(&base, SecretString::from(key)).await {
        Ok(()) => Ok(Some(format!("{base} takes the key"))),
        Err(CallError::NotSent(error) | CallError::Unclear { error, .. }) => {
            Ok(Some(format!("the key was not checked: {base}: {error}")))
        }
        Err(CallError::Refused { status, .. }) => Err(format!(
            "{base} refuses STRIPE_SECRET_KEY (status {}); it needs to read meters, prices, products and subscriptions and to write meter events and features",
            status.as_u16()
        )),
    }
}
