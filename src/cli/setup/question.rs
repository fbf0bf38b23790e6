//! What the wizard asks, and what it was answered.

use std::{collections::BTreeMap, sync::Arc};

use crate::config::{
    self,
    settings::{Kind as SettingKind, SETTINGS, Setting},
};

/// The value as it is kept, or what is wrong with it in words that fit behind "KEY is 'X'; ".
pub(super) type Check = Arc<dyn Fn(&str) -> Result<String, String> + Send + Sync>;

/// One question.
#[derive(Clone)]
pub(super) struct Question {
    /// As answers files name it.
    pub(super) key: String,
    /// One line: what it decides.
    pub(super) explanation: String,
    /// What may be written.
    pub(super) hint: String,
    /// `None`: it must be answered.
    pub(super) default: Option<String>,
    pub(super) form: Form,
    pub(super) check: Check,
}

/// How it is asked on a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    /// Typed unseen, and shown nowhere.
    Secret,
    Switch,
    /// Each with what it means.
    Choice(&'static [(&'static str, &'static str)]),
}

impl Question {
    /// About a setting, in the words of its row.
    pub(super) fn setting(name: &'static str, default: impl Into<Option<String>>) -> Self {
        let setting = config::settings::setting(name);
        let form = match setting.kind {
            SettingKind::Secret => Form::Secret,
            SettingKind::Switch => Form::Switch,
            SettingKind::Value | SettingKind::Number | SettingKind::Choice | SettingKind::Url => {
                Form::Text
            }
        };
        Self {
            key: name.to_owned(),
            explanation: setting.description.replace('`', ""),
            hint: setting.accepts.to_owned(),
            default: default.into(),
            check: match form {
                Form::Switch => {
                    Arc::new(move |text| switch(text).and_then(|text| checked(name, text)))
                }
                _ => Arc::new(move |text| checked(name, text.trim().to_owned())),
            },
            form,
        }
    }

    pub(super) fn choice(mut self, choices: &'static [(&'static str, &'static str)]) -> Self {
        self.form = Form::Choice(choices);
        self
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Takes a blank answer too.
    pub(super) fn or_blank(mut self) -> Self {
        let check = self.check;
        self.check = Arc::new(move |text| {
            if text.trim().is_empty() {
                Ok(String::new())
            } else {
                check(text)
            }
        });
        self
    }

    pub(super) fn is_secret(&self) -> bool {
        self.form == Form::Secret
    }
}

/// The value, if the setting takes it and this version has the part that it needs.
fn checked(name: &'static str, text: String) -> Result<String, String> {
    config::check_value(name, &text).map(|()| text)
}

fn switch(text: &str) -> Result<String, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "y" => Ok("true".to_owned()),
        "false" | "0" | "no" | "n" => Ok("false".to_owned()),
        _ => Err("write true or false".to_owned()),
    }
}

/// What was answered so far, and what is known to come.
#[derive(Clone, Default)]
pub(super) struct Answers {
    answered: BTreeMap<String, String>,
    /// Of answers files: a question can look ahead.
    given: BTreeMap<String, Option<String>>,
}

impl Answers {
    pub(super) fn looking_ahead(given: BTreeMap<String, Option<String>>) -> Self {
        Self {
            given,
            ..Self::default()
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.answered.get(key).map(String::as_str)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.answered.contains_key(key)
    }

    pub(super) fn is(&self, key: &str, value: &str) -> bool {
        self.get(key) == Some(value)
    }

    /// What is answered, or will be.
    pub(super) fn expected(&self, key: &str) -> Option<&str> {
        let given = || self.given.get(key)?.as_deref();
        self.get(key).or_else(given)
    }

    pub(super) fn list(&self, key: &str) -> Vec<String> {
        let text = self.get(key).unwrap_or_default();
        let parts = text.split(',').filter(|part| !part.is_empty());
        parts.map(str::to_owned).collect()
    }

    pub(super) fn put(&mut self, key: &str, value: String) {
        self.answered.insert(key.to_owned(), value);
    }

    pub(super) fn take_back(&mut self, key: &str) -> Option<String> {
        self.answered.remove(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let answered = self.answered.iter();
        answered.map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// The row of an answer that is a setting; others go to the artifact.
pub(super) fn row(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == key)
}

/// An answer as it may be shown.
pub(super) fn shown(key: &str, value: &str) -> String {
    match row(key) {
        _ if value.is_empty() => String::new(),
        Some(setting) => setting.shown(value),
        None => value.to_owned(),
    }
}

/// Whether a value may stand in a file that is not meant to be kept secret.
pub(super) fn is_public(key: &str, value: &str) -> bool {
    row(key)
        .is_none_or(|setting| setting.kind != SettingKind::Secret && setting.shown(value) == value)
}
