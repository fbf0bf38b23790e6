//! Arguments that several commands share, and how they are read.

use std::str::FromStr;

use anyhow::Context as _;

use crate::{
    domain::{
        limit::Scope, plan::AllowedModels, quantity::Quantity, time::Timestamp, window::Window,
        window::WindowKind,
    },
    services::plans::Change,
};

/// Which limit of a feature.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct LimitOf {
    /// Whose usage the limit counts: tenant, key or user
    #[arg(long, value_name = "SCOPE", default_value_t = Scope::Tenant)]
    pub scope: Scope,
    /// What it counts in: minute, hour, day, week, month, period or lifetime
    #[arg(long, value_name = "WINDOW", default_value_t = WindowKind::Period)]
    pub window: WindowKind,
}

/// One limit of a feature, or all of them.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct WhichLimit {
    /// Only the limit of this scope (and of --window, or of the period)
    #[arg(long, value_name = "SCOPE")]
    scope: Option<Scope>,
    /// Only the limit of this window (and of --scope, or of the tenant)
    #[arg(long, value_name = "WINDOW")]
    window: Option<WindowKind>,
}

impl WhichLimit {
    /// `None`: all.
    #[must_use]
    pub fn only(self) -> Option<(Scope, WindowKind)> {
        let is_given = self.scope.is_some() || self.window.is_some();
        let scope = self.scope.unwrap_or_default();
        is_given.then_some((scope, self.window.unwrap_or(WindowKind::Period)))
    }
}

/// The two values of a limit.
#[derive(Clone, Debug, clap::Args)]
pub struct LimitValues {
    /// Soft limit, or none to take it away
    #[arg(long, value_name = "N", value_parser = or_none(quantity), allow_negative_numbers = true)]
    soft: Option<Change<Quantity>>,
    /// Hard limit, or none to take it away
    #[arg(long, value_name = "N", value_parser = or_none(quantity), allow_negative_numbers = true)]
    hard: Option<Change<Quantity>>,
}

impl LimitValues {
    #[must_use]
    pub fn soft(&self) -> Change<Quantity> {
        self.soft.clone().unwrap_or_default()
    }

    #[must_use]
    pub fn hard(&self) -> Change<Quantity> {
        self.hard.clone().unwrap_or_default()
    }
}

/// A window that is asked for.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct PeriodArgs {
    /// First instant that counts, such as 2026-11-01T00:00:00Z
    #[arg(long, value_name = "TS")]
    period_start: Timestamp,
    /// First instant that no longer counts
    #[arg(long, value_name = "TS")]
    period_end: Timestamp,
}

impl PeriodArgs {
    /// # Errors
    /// If it ends before it starts.
    pub fn window(self) -> anyhow::Result<Window> {
        Window::new(self.period_start, self.period_end)
            .context("--period-end must be after --period-start")
    }
}

/// Reads `none` as taking a value away, anything else by `read`.
pub fn or_none<T: Clone + Send + Sync + 'static>(
    read: fn(&str) -> Result<T, String>,
) -> impl Fn(&str) -> Result<Change<T>, String> + Clone + Send + Sync + 'static {
    move |text| match text {
        "none" => Ok(Change::Clear),
        text => read(text).map(Change::Set),
    }
}

/// # Errors
/// What may be written.
pub fn quantity(text: &str) -> Result<Quantity, String> {
    let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let value = text
        .parse()
        .ok()
        .filter(|value| is_digits && *value <= Quantity::MAX.get());
    value
        .map(Quantity::new)
        .ok_or_else(|| "write a whole number from 0 to 2^53 - 1".to_owned())
}

/// # Errors
/// What may be written.
pub fn seconds(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| "write a whole number of seconds, such as 3600".to_owned())
}

/// A quantity that may take away.
///
/// # Errors
/// What may be written.
pub fn signed_quantity(text: &str) -> Result<Quantity, String> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let magnitude = quantity(digits).map_err(|_| {
        "write a whole number of at most 2^53 - 1, with a - to take away".to_owned()
    })?;
    Ok(if text.starts_with('-') {
        Quantity::ZERO.minus(magnitude)
    } else {
        magnitude
    })
}

/// # Errors
/// What may be written.
pub fn text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// # Errors
/// What may be written.
pub fn timestamp(text: &str) -> Result<Timestamp, String> {
    text.parse()
        .map_err(|error: <Timestamp as FromStr>::Err| error.to_string())
}

/// # Errors
/// What may be written.
pub fn percents(text: &str) -> Result<Vec<u16>, String> {
    let percents = text.split(',').map(|percent| percent.trim().parse());
    let percents: Result<Vec<u16>, _> = percents.collect();
    percents.map_err(|_| "write whole percentages separated by commas, such as 80,100".to_owned())
}

/// `any`, or patterns separated by commas.
///
/// # Errors
/// What may be written.
pub fn models(text: &str) -> Result<AllowedModels, String> {
    if text == "any" {
        return Ok(AllowedModels::default());
    }
    let patterns: Vec<String> = text
        .split(',')
        .map(|pattern| pattern.trim().to_owned())
        .collect();
    if patterns.iter().any(String::is_empty) {
        return Err(
            "write patterns separated by commas, such as gpt-5.1*,llama-*, or any".to_owned(),
        );
    }
    Ok(AllowedModels(patterns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_takes_away_and_a_number_sets() {
        let read = or_none(quantity);
        assert_eq!(read("none"), Ok(Change::Clear));
        assert_eq!(read("0"), Ok(Change::Set(Quantity::ZERO)));
        for bad in ["", "-1", "+1", "1.5", "1e3", "9007199254740992", "None"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn any_allows_every_model() {
        assert_eq!(models("any"), Ok(AllowedModels::default()));
        assert_eq!(
            models("a*, b"),
            Ok(AllowedModels(vec!["a*".to_owned(), "b".to_owned()]))
        );
        assert!(models("a,,b").is_err());
    }

    #[test]
    fn a_scope_or_a_window_alone_names_one_limit() {
        let which = |scope, window| WhichLimit { scope, window }.only();
        assert_eq!(which(None, None), None);
        assert_eq!(
            which(Some(Scope::User), None),
            Some((Scope::User, WindowKind::Period))
        );
        assert_eq!(
            which(None, Some(WindowKind::Day)),
            Some((Scope::Tenant, WindowKind::Day))
        );
    }
}
