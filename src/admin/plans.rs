//! All plans, and making one.

use askama::Template;
use axum::extract::State;

use super::{
    assets,
    form::{Fault, Form},
    format::{self, amount},
    view::{self, PageResult, View},
};
use crate::{
    app::App,
    domain::{limit::Limit, plan::PlanFeature, quantity::Quantity},
    http::error::ApiResult,
    services::{
        plans::{NewPlan, Plans},
        presets,
    },
};

#[derive(Template)]
#[template(path = "plans/list.html")]
struct PlansPage<'a> {
    view: &'a View,
    plans: Vec<PlanRow>,
    presets: Vec<PresetChoice>,
    form: &'a Form,
    fault: Fault,
}

struct PlanRow {
    code: String,
    name: String,
    tenants: u64,
    limits: Vec<String>,
}

/// A preset to begin with, and what it allows.
pub(super) struct PresetChoice {
    pub(super) code: &'static str,
    pub(super) name: &'static str,
    pub(super) limits: String,
}

/// `GET /admin/plans`.
pub(super) async fn list(State(app): State<App>, view: View) -> PageResult {
    view::show(&page(&app, &view, &Form::default(), Fault::default()).await?)
}

/// `POST /admin/plans`: makes one.
pub(super) async fn create(State(app): State<App>, view: View, form: Form) -> PageResult {
    match make(&app, &view, &form).await {
        Ok(code) => view::done(&format!("/admin/plans/{code}"), "created"),
        Err(error) => {
            let fault = Fault::mend(error)?;
            view::mend(&page(&app, &view, &form, fault).await?)
        }
    }
}

/// Makes the plan that a form asks for; its code.
pub(super) async fn make(app: &App, view: &View, form: &Form) -> ApiResult<String> {
    let by = view.operator()?;
    let new = NewPlan {
        code: form.required("plan_code")?,
        name: form.required("name")?,
        preset: form.optional("preset")?,
        allowed_models: Default::default(),
        features: Vec::new(),
    };
    let plan = Plans::new(app.store.clone()).create(new, by).await?;
    Ok(plan.code.to_string())
}

async fn page<'a>(
    app: &App,
    view: &'a View,
    form: &'a Form,
    fault: Fault,
) -> ApiResult<PlansPage<'a>> {
    let picture = app.overview.picture(&app.tasks).await?;
    let plans = Plans::new(app.store.clone()).list().await?;
    let rows = plans.into_iter().map(|plan| PlanRow {
        tenants: picture.of_plan.get(&plan.code).copied().unwrap_or(0),
        code: plan.code.to_string(),
        name: plan.name.to_string(),
        limits: plan.features.iter().flat_map(in_words).collect(),
    });
    Ok(PlansPage {
        view,
        plans: rows.collect(),
        presets: preset_choices(),
        form,
        fault,
    })
}

/// The presets in words.
pub(super) fn preset_choices() -> Vec<PresetChoice> {
    let choices = presets::all().iter().map(|preset| {
        let limits: Vec<String> = preset.features.iter().flat_map(in_words).collect();
        PresetChoice {
            code: preset.code.as_str(),
            name: preset.name.as_str(),
            limits: if limits.is_empty() {
                "unlimited".to_owned()
            } else {
                limits.join(", ")
            },
        }
    });
    choices.collect()
}

/// Each limit of a feature, as people say it: `200 Messages per period`.
fn in_words(feature: &PlanFeature) -> Vec<String> {
    let say = |limit: &Limit| {
        let value = limit.hard.or(limit.soft)?;
        let value = amount(value, &feature.unit).short();
        let scope = match limit.scope {
            crate::domain::limit::Scope::Tenant => String::new(),
            other => format!(" and {other}"),
        };
        let name = feature.display_name.as_str().to_lowercase();
        let soft = if limit.hard.is_none() { " (soft)" } else { "" };
        Some(format!("{value} {name} per {}{scope}{soft}", limit.window))
    };
    feature.limits.iter().filter_map(say).collect()
}

/// A limit as its field shows it, and takes it: a number, dollars for money, or the word for none.
pub(super) fn limit_text(value: Option<Quantity>, unit: &str) -> String {
    match value {
        None => UNLIMITED.to_owned(),
        Some(value) if unit == "usd_micros" => amount(value, unit).exact(),
        Some(value) => super::format::grouped(value.get()),
    }
}

const UNLIMITED: &str = "unlimited";
const MICROS_OF_DOLLAR: i128 = 1_000_000;

/// Reads what [`limit_text`] shows, and what people write for it: `1,000,000`, `1M`, `2.5k`, `$12.50`, nothing.
///
/// # Errors
/// What to write instead.
pub(super) fn read_limit(text: &str, unit: &str) -> Result<Option<Quantity>, String> {
    let is_money = unit == "usd_micros";
    let wrong = || {
        let such_as = if is_money {
            "dollars such as $12.50"
        } else {
            "a whole number such as 1,000"
        };
        format!(
            "'{}' is not a limit: write {such_as}, or unlimited.",
            text.trim()
        )
    };
    let plain = text.trim().to_ascii_lowercase();
    if ["", UNLIMITED, "none"].contains(&plain.as_str()) {
        return Ok(None);
    }
    let plain = plain.trim_start_matches('$').trim_start();
    let plain = ungrouped(plain).ok_or_else(wrong)?;
    let (digits, factor) = match plain.strip_suffix(['k', 'm', 'g']) {
        Some(digits) if plain.ends_with('k') => (digits, 1_000),
        Some(digits) if plain.ends_with('m') => (digits, 1_000_000),
        Some(digits) => (digits, 1_000_000_000),
        None => (plain.as_str(), 1),
    };
    let factor: i128 = if is_money {
        factor * MICROS_OF_DOLLAR
    } else {
        factor
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    // `2.000` is two thousand to some and two to others.
    let is_ambiguous = if is_money {
        factor == MICROS_OF_DOLLAR && part.len() == 3 && part.ends_with('0')
    } else {
        factor == 1 && digits.contains('.')
    };
    if is_ambiguous {
        return Err(wrong());
    }
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty()
        || !is_digits(whole)
        || !is_digits(part)
        || whole.len() > 16
        || part.len() > 9
    {
        return Err(wrong());
    }
    let whole: i128 = whole.parse().map_err(|_| wrong())?;
    let tenths: i128 = format!("{part:0<9}").parse().map_err(|_| wrong())?;
    let scaled = tenths * factor;
    let value = whole * factor + scaled / 1_000_000_000;
    let fits = scaled % 1_000_000_000 == 0 && value <= i128::from(Quantity::MAX.get());
    match i64::try_from(value) {
        Ok(value) if fits => Ok(Some(Quantity::new(value))),
        _ => Err(wrong()),
    }
}

/// Without what sets thousands apart: commas, underscores or spaces before three digits each. `None` where they stand
/// elsewhere, as in `12,50`.
fn ungrouped(number: &str) -> Option<String> {
    let is_apart = |letter: char| matches!(letter, ',' | '_') || letter.is_whitespace();
    let digits_end = number
        .find(|letter: char| !letter.is_ascii_digit() && !is_apart(letter))
        .unwrap_or(number.len());
    let (whole, rest) = number.split_at(digits_end);
    // A space may stand before the last letter: `1.5 M`.
    let (rest, letter) = match rest.strip_suffix(['k', 'm', 'g']) {
        Some(before) => (before.trim_end(), &rest[before.len()..]),
        None => (rest, ""),
    };
    let mut groups = whole.trim_end().split(is_apart);
    let first = groups.next()?;
    let groups: Vec<&str> = groups.collect();
    let is_well_set =
        groups.is_empty() || ((1..=3).contains(&first.len()) && !first.starts_with('0'));
    (is_well_set && groups.iter().all(|group| group.len() == 3))
        .then(|| format!("{first}{}{rest}{letter}", groups.concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_read_as_people_write_it() {
        for (text, unit, expected) in [
            ("200", "requests", Some(200)),
            (" 1,000 000 ", "tokens", Some(1_000_000)),
            ("1.5M", "tokens", Some(1_500_000)),
            ("2k", "tokens", Some(2_000)),
            ("0", "tokens", Some(0)),
            ("", "tokens", None),
            ("Unlimited", "tokens", None),
            ("none", "tokens", None),
            ("$12.50", "usd_micros", Some(12_500_000)),
            ("3", "usd_micros", Some(3_000_000)),
            ("$1,234.000001", "usd_micros", Some(1_234_000_001)),
            ("$ 12.505", "usd_micros", Some(12_505_000)),
            ("1_000", "tokens", Some(1_000)),
            ("12 345\u{a0}678", "tokens", Some(12_345_678)),
            ("2 M", "tokens", Some(2_000_000)),
        ] {
            assert_eq!(
                read_limit(text, unit),
                Ok(expected.map(Quantity::new)),
                "{text}"
            );
        }
        for (text, unit) in [
            ("-1", "tokens"),
            ("1.5", "tokens"),
            ("many", "tokens"),
            ("9007199254740992", "tokens"),
            ("$0.0000001", "usd_micros"),
            ("1e9", "tokens"),
            ("k", "tokens"),
            ("2.000", "tokens"),
            ("1.000.000", "tokens"),
            ("10,00", "tokens"),
            ("1,0000", "tokens"),
            ("1000,000", "tokens"),
            (",5", "tokens"),
            ("0,500", "tokens"),
            ("$1.250 000", "usd_micros"),
            ("12,50", "usd_micros"),
            ("1.000", "usd_micros"),
        ] {
            let told = read_limit(text, unit).unwrap_err();
            assert!(told.contains(text) && told.contains("unlimited"), "{told}");
        }
    }

    #[test]
    fn what_a_field_shows_it_takes() {
        for (value, unit) in [
            (None, "tokens"),
            (Some(1_203_441), "tokens"),
            (Some(12_500_000), "usd_micros"),
            (Some(1), "usd_micros"),
        ] {
            let value = value.map(Quantity::new);
            assert_eq!(read_limit(&limit_text(value, unit), unit), Ok(value));
        }
    }
}
