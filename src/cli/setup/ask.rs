//! Asking on a terminal, one question at a time; Esc goes back to the question before.

use inquire::{
    Confirm, InquireError, Password, PasswordDisplayMode, Select, Text, validator::Validation,
};

use super::question::{Form, Question};

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Value(String),
    /// To the question before.
    Back,
}

/// Whoever answers: a person at a terminal, or answers that were given beforehand.
pub(super) trait Asker {
    /// A section begins.
    fn section(&mut self, title: &str);
    /// `earlier` is what was answered before, where the person has come back.
    fn ask(&mut self, question: &Question, earlier: Option<&str>) -> anyhow::Result<Answer>;
    /// What was entered does not work: keep it, or go back?
    fn failed(&mut self, problem: &str) -> anyhow::Result<Answer>;
}

/// A person at a terminal.
pub(super) struct Terminal;

impl Asker for Terminal {
    fn section(&mut self, title: &str) {
        eprintln!("\n{title}");
    }

    fn ask(&mut self, question: &Question, earlier: Option<&str>) -> anyhow::Result<Answer> {
        let default = earlier.or(question.default.as_deref()).unwrap_or_default();
        let message = format!("{}: {}", question.key, question.explanation);
        let hint = match &question.form {
            Form::Switch => "y or n",
            Form::Secret if earlier.is_some_and(|it| !it.is_empty()) => {
                "blank keeps what was entered before"
            }
            Form::Choice(_) | Form::Secret | Form::Text => question.hint.as_str(),
        };
        let help = format!("{hint}; Esc goes back");
        loop {
            let typed = match &question.form {
                Form::Switch => switch(&message, &help, default == "true"),
                Form::Choice(choices) => choice(&message, &help, choices, default),
                Form::Secret => secret(&message, &help, question, earlier.unwrap_or_default()),
                Form::Text => text(&message, &help, question, default),
            };
            let Some(typed) = answered(typed)? else {
                return Ok(Answer::Back);
            };
            match (question.check)(&typed) {
                Ok(value) => return Ok(Answer::Value(value)),
                // A text is checked while it is typed; what can't be had of a choice is only known now.
                Err(problem) => eprintln!("  {typed}: {problem}"),
            }
        }
    }

    fn failed(&mut self, problem: &str) -> anyhow::Result<Answer> {
        eprintln!("  {problem}");
        let keep = Confirm::new("Keep it all the same?")
            .with_default(false)
            .with_help_message("no goes back to the question");
        Ok(match answered(keep.prompt_skippable())? {
            Some(true) => Answer::Value(String::new()),
            Some(false) | None => Answer::Back,
        })
    }
}

/// Asks for a yes; Esc is a no.
pub(super) fn confirm(message: &str, default: Usually) -> anyhow::Result<bool> {
    let confirm = Confirm::new(message).with_default(default == Usually::Yes);
    Ok(answered(confirm.prompt_skippable())?.unwrap_or(false))
}

/// What Enter alone means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usually {
    Yes,
}

fn answered<T>(prompted: Result<Option<T>, InquireError>) -> anyhow::Result<Option<T>> {
    match prompted {
        Ok(answer) => Ok(answer),
        Err(InquireError::OperationCanceled) => Ok(None),
        Err(InquireError::OperationInterrupted) => {
            anyhow::bail!("the setup was interrupted; nothing was written")
        }
        Err(InquireError::NotTTY) => anyhow::bail!(super::NO_TERMINAL),
        Err(error) => Err(error.into()),
    }
}

fn switch(message: &str, help: &str, default: bool) -> Result<Option<String>, InquireError> {
    let asked = Confirm::new(message)
        .with_default(default)
        .with_help_message(help)
        .with_formatter(&|yes| if yes { "yes" } else { "no" }.to_owned())
        .prompt_skippable();
    Ok(asked?.map(|yes| yes.to_string()))
}

fn choice(
    message: &str,
    help: &str,
    choices: &[(&str, &str)],
    default: &str,
) -> Result<Option<String>, InquireError> {
    let lines = choices
        .iter()
        .map(|(value, meaning)| format!("{value}: {meaning}"));
    let cursor = choices.iter().position(|(value, _)| *value == default);
    let picked = Select::new(message, lines.collect())
        .with_starting_cursor(cursor.unwrap_or(0))
        .with_help_message(help)
        .raw_prompt_skippable()?;
    Ok(picked.map(|picked| choices[picked.index].0.to_owned()))
}

/// Nothing typed is `earlier`: a secret is not put where it could be read.
fn secret(
    message: &str,
    help: &str,
    question: &Question,
    earlier: &str,
) -> Result<Option<String>, InquireError> {
    let check = question.check.clone();
    let or_earlier = {
        let earlier = earlier.to_owned();
        move |typed: &str| match typed {
            "" => earlier.clone(),
            typed => typed.to_owned(),
        }
    };
    let judge = {
        let or_earlier = or_earlier.clone();
        move |typed: &str| Ok(judged(check(&or_earlier(typed))))
    };
    let typed = Password::new(message)
        .without_confirmation()
        .with_display_mode(PasswordDisplayMode::Masked)
        .with_help_message(help)
        .with_validator(judge)
        .prompt_skippable()?;
    Ok(typed.map(|typed| or_earlier(&typed)))
}

fn text(
    message: &str,
    help: &str,
    question: &Question,
    default: &str,
) -> Result<Option<String>, InquireError> {
    let check = question.check.clone();
    let text = Text::new(message)
        .with_help_message(help)
        .with_validator(move |typed: &str| Ok(judged(check(typed))));
    // An empty default would be shown as "()".
    let text = if default.is_empty() {
        text
    } else {
        text.with_default(default)
    };
    text.prompt_skippable()
}

fn judged(checked: Result<String, String>) -> Validation {
    match checked {
        Ok(_) => Validation::Valid,
        Err(problem) => Validation::Invalid(problem.into()),
    }
}
