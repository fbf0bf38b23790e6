//! Section `usage`, "Usage & Entitlements": guardrails, and the limits of each plan (interface.md §6).

use std::{collections::BTreeMap, sync::Arc};

use super::{
    There,
    question::{Answers, Check, Form, Question},
};
use crate::{
    config::{Config, sources::Sources},
    domain::{feature::FeatureKey, names::PlanCode, quantity::Quantity},
    ledger,
    services::presets,
};

const SOFT_MODES: &[(&str, &str)] = &[
    (
        "warn",
        "let the request pass, and say that the limit is passed",
    ),
    ("block", "refuse the request, as at a hard limit"),
];

const BACKENDS: &[(&str, &str)] = &[
    ("redb", "in the data dir, kept across restarts; one server"),
    ("memory", "summed up again at each start; one server"),
    ("redis", "shared by several servers"),
];

pub(super) const ENABLED: &str = "ENABLE_USAGE_GUARDRAILS";
pub(super) const DIMENSIONS: &str = "USAGE_DIMENSIONS";
pub(super) const PLAN_CODES: &str = "USAGE_PLAN_CODES";

pub(super) const KEYS: [&str; 7] = [
    ENABLED,
    "USAGE_GUARDRAIL_CACHE_TTL_SECONDS",
    "USAGE_GUARDRAIL_SOFT_LIMIT_MODE",
    "USAGE_GUARDRAIL_CACHE_BACKEND",
    "USAGE_GUARDRAIL_REDIS_URL",
    DIMENSIONS,
    PLAN_CODES,
];

const USUAL_DIMENSIONS: [&str; 3] = ["messages", "input_tokens", "output_tokens"];
const USUAL_PLANS: &str = "starter,pro";

/// Which of a limit's two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Soft,
    Hard,
}

impl Level {
    pub(super) const BOTH: [Self; 2] = [Self::Soft, Self::Hard];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Soft => "soft",
            Self::Hard => "hard",
        }
    }

    /// Its field in the artifact.
    pub(super) const fn field(self) -> &'static str {
        match self {
            Self::Soft => "soft_limit",
            Self::Hard => "hard_limit",
        }
    }
}

/// `USAGE_STARTER_MESSAGES_SOFT_LIMIT`.
pub(super) fn limit_key(plan: &str, dimension: &str, level: Level) -> String {
    format!(
        "USAGE_{}_{}_{}_LIMIT",
        in_capitals(plan),
        in_capitals(dimension),
        in_capitals(level.as_str())
    )
}

fn in_capitals(name: &str) -> String {
    name.to_ascii_uppercase().replace(['-', '.'], "_")
}

/// Whether a key could be one of a limit, whatever the plans are.
pub(super) fn is_limit_key(key: &str) -> bool {
    let inner = key.strip_prefix("USAGE_");
    let inner = inner.and_then(|key| {
        key.strip_suffix("_SOFT_LIMIT")
            .or(key.strip_suffix("_HARD_LIMIT"))
    });
    inner.is_some_and(|inner| inner.trim_matches('_').contains('_'))
}

pub(super) fn questions(there: &There, answers: &Answers) -> Vec<Question> {
    let setting = |name| Question::setting(name, there.value(name));
    let mut questions = vec![setting(ENABLED)];
    if !answers.is(ENABLED, "true") {
        return questions;
    }
    questions.push(setting("USAGE_GUARDRAIL_CACHE_TTL_SECONDS"));
    questions.push(setting("USAGE_GUARDRAIL_SOFT_LIMIT_MODE").choice(SOFT_MODES));
    questions.push(setting("USAGE_GUARDRAIL_CACHE_BACKEND").choice(BACKENDS));
    if answers.is("USAGE_GUARDRAIL_CACHE_BACKEND", "redis") {
        let name = "USAGE_GUARDRAIL_REDIS_URL";
        let question = Question::setting(name, there.value(name).unwrap_or_default());
        questions.push(
            question
                .or_blank()
                .hint("a redis:// address; blank takes REDIS_URL's"),
        );
    }
    questions.push(dimensions(there));
    if !answers.has(DIMENSIONS) {
        return questions;
    }
    questions.push(plan_codes(there, answers.list(DIMENSIONS)));
    for plan in answers.list(PLAN_CODES) {
        for dimension in answers.list(DIMENSIONS) {
            for level in Level::BOTH {
                questions.push(limit(there, answers, &plan, &dimension, level));
            }
        }
    }
    questions
}

/// Asks the Redis that totals are to be shared in, if they are.
pub(super) async fn test(there: &There, answers: &Answers) -> Result<Option<String>, String> {
    if !answers.is("USAGE_GUARDRAIL_CACHE_BACKEND", "redis") {
        return Ok(None);
    }
    let own = answers.get("USAGE_GUARDRAIL_REDIS_URL").unwrap_or_default();
    let address = match own {
        "" => there.value("REDIS_URL").unwrap_or_default(),
        own => own.to_owned(),
    };
    if address.is_empty() {
        return Err("no Redis is named; give its address here or in REDIS_URL".to_owned());
    }
    let sources = Sources::none().with_flag("USAGE_GUARDRAIL_REDIS_URL", address);
    let loaded = Config::load(&sources).map_err(|error| error.to_string())?;
    let servers = ledger::look_at_servers(loaded.config.redis_urls).await?;
    Ok(Some(format!(
        "Redis answers; servers: {}, version {}",
        servers.count,
        servers.versions.join(", ")
    )))
}

fn dimensions(there: &There) -> Question {
    let mut usual: Vec<String> = USUAL_DIMENSIONS
        .iter()
        .map(|&name| name.to_owned())
        .collect();
    // What the artifact limits already is asked too, so that nothing falls out of it unasked.
    for dimension in there.artifact.metered_features() {
        if !usual.contains(&dimension) {
            usual.push(dimension);
        }
    }
    Question {
        key: DIMENSIONS.to_owned(),
        explanation: "What is limited".to_owned(),
        hint: "feature keys separated by commas, such as messages,input_tokens,output_tokens,cost"
            .to_owned(),
        default: Some(usual.join(",")),
        form: Form::Text,
        check: names(
            |name| {
                name.parse::<FeatureKey>()
                    .map_err(|error| error.to_string())
            },
            |name| vec![in_capitals(name)],
        ),
    }
}

fn plan_codes(there: &There, dimensions: Vec<String>) -> Question {
    let plans = there.artifact.plan_codes();
    let usual = if plans.is_empty() {
        USUAL_PLANS.to_owned()
    } else {
        plans.join(",")
    };
    Question {
        key: PLAN_CODES.to_owned(),
        explanation: "The plans that limits are set for".to_owned(),
        hint: "plan codes separated by commas; free, starter, pro and enterprise have presets"
            .to_owned(),
        default: Some(usual),
        form: Form::Text,
        check: names(
            |name| name.parse::<PlanCode>().map_err(|error| error.to_string()),
            move |plan| {
                let keys = dimensions
                    .iter()
                    .map(|dimension| limit_key(plan, dimension, Level::Soft));
                std::iter::once(in_capitals(plan)).chain(keys).collect()
            },
        ),
    }
}

/// Several names of one kind, no two of which stand for the same variable.
fn names<T>(
    read: impl Fn(&str) -> Result<T, String> + Send + Sync + 'static,
    variables: impl Fn(&str) -> Vec<String> + Send + Sync + 'static,
) -> Check {
    Arc::new(move |text| {
        let mut taken: BTreeMap<String, &str> = BTreeMap::new();
        let mut names: Vec<&str> = Vec::new();
        for name in text
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            read(name)?;
            for variable in variables(name) {
                if let Some(other) = taken.insert(variable.clone(), name) {
                    return Err(if other == name {
                        format!("write '{name}' once")
                    } else {
                        format!(
                            "'{other}' and '{name}' would both be {variable}; write one of them, or rename one"
                        )
                    });
                }
            }
            names.push(name);
        }
        if names.is_empty() {
            return Err("write at least one".to_owned());
        }
        Ok(names.join(","))
    })
}

fn limit(there: &There, answers: &Answers, plan: &str, dimension: &str, level: Level) -> Question {
    let usual = there
        .artifact
        .limit(plan, dimension, level)
        .unwrap_or_else(|| preset(plan, dimension, level));
    let soft = match level {
        Level::Soft => None,
        Level::Hard => answers.get(&limit_key(plan, dimension, Level::Soft)),
    };
    let soft = soft.and_then(|text| text.parse::<i64>().ok());
    let unit = dimension.parse::<FeatureKey>();
    let unit = unit.map_or("units", |feature| feature.default_unit());
    Question {
        key: limit_key(plan, dimension, level),
        explanation: match level {
            Level::Soft => format!("From how many {unit} of {dimension} on plan {plan} warns"),
            Level::Hard => format!("How many {unit} of {dimension} plan {plan} allows a period"),
        },
        hint: "a whole number; none for unlimited".to_owned(),
        default: Some(usual),
        form: Form::Text,
        check: Arc::new(move |text| value(text, soft)),
    }
}

fn value(text: &str, soft: Option<i64>) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty()
        || text.eq_ignore_ascii_case("none")
        || text.eq_ignore_ascii_case("unlimited")
    {
        return Ok(String::new());
    }
    let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse::<i64>().ok();
    let number = number.filter(|number| is_digits && *number <= Quantity::MAX.get());
    match (number, soft) {
        (None, _) => {
            Err("write a whole number from 0 to 2^53 - 1, or none for unlimited".to_owned())
        }
        (Some(hard), Some(soft)) if hard < soft => Err(format!(
            "the soft limit {soft} is above it; write at least {soft}, or none for unlimited"
        )),
        (Some(number), _) => Ok(number.to_string()),
    }
}

/// The preset's value; blank where it, or the plan's preset, has none.
fn preset(plan: &str, dimension: &str, level: Level) -> String {
    let preset = presets::all().iter().find(|it| it.code.as_str() == plan);
    let features = preset.into_iter().flat_map(|preset| &preset.features);
    let feature = features.into_iter().find(|it| it.key.as_str() == dimension);
    let limit = feature.and_then(|feature| feature.limits.first());
    let value = limit.and_then(|limit| match level {
        Level::Soft => limit.soft,
        Level::Hard => limit.hard,
    });
    value.map(|value| value.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(question: &Question, text: &str) -> Result<String, String> {
        (question.check)(text)
    }

    #[test]
    fn questions_come_in_the_order_of_the_contract_with_its_defaults() {
        let there = There::default();
        let mut answers = Answers::default();
        let mut asked = vec![];
        loop {
            let open = questions(&there, &answers)
                .into_iter()
                .find(|question| !answers.has(&question.key));
            let Some(question) = open else { break };
            let answer = if question.key == ENABLED {
                "true"
            } else {
                question.default.as_deref().unwrap()
            };
            let value = ask(&question, answer).unwrap();
            asked.push(format!(
                "{}={}",
                question.key,
                question.default.as_deref().unwrap()
            ));
            answers.put(&question.key, value);
        }
        assert_eq!(
            asked[..8],
            [
                "ENABLE_USAGE_GUARDRAILS=false",
                "USAGE_GUARDRAIL_CACHE_TTL_SECONDS=30",
                "USAGE_GUARDRAIL_SOFT_LIMIT_MODE=warn",
                "USAGE_GUARDRAIL_CACHE_BACKEND=redb",
                "USAGE_DIMENSIONS=messages,input_tokens,output_tokens",
                "USAGE_PLAN_CODES=starter,pro",
                "USAGE_STARTER_MESSAGES_SOFT_LIMIT=150",
                "USAGE_STARTER_MESSAGES_HARD_LIMIT=200",
            ]
        );
        assert_eq!(asked.len(), 6 + 2 * 3 * 2);
        assert_eq!(
            asked.last().unwrap(),
            "USAGE_PRO_OUTPUT_TOKENS_HARD_LIMIT=600000"
        );
    }

    #[test]
    fn two_codes_of_one_variable_are_refused() {
        let question = plan_codes(&There::default(), vec!["messages".to_owned()]);
        for (text, expected) in [
            (
                "pro-eu,pro.eu",
                Err("'pro-eu' and 'pro.eu' would both be PRO_EU; write one of them, or rename one"),
            ),
            (
                "pro,Pro",
                Err("'pro' and 'Pro' would both be PRO; write one of them, or rename one"),
            ),
            ("pro,pro", Err("write 'pro' once")),
            (" , ", Err("write at least one")),
            (" free , pro", Ok("free,pro")),
        ] {
            assert_eq!(
                ask(&question, text),
                expected.map(str::to_owned).map_err(str::to_owned),
                "{text}"
            );
        }
        assert!(
            ask(&question, "-bad")
                .unwrap_err()
                .contains("is not a plan code")
        );
        let mixed = plan_codes(&There::default(), vec!["b_c".to_owned(), "c".to_owned()]);
        assert!(
            ask(&mixed, "a,a_b")
                .unwrap_err()
                .contains("USAGE_A_B_C_SOFT_LIMIT"),
            "plan a with b_c is plan a_b with c"
        );
    }

    #[test]
    fn a_limit_is_a_number_or_none_and_never_below_the_soft_one() {
        for (text, soft, expected) in [
            ("", None, Some("")),
            ("none", Some(5), Some("")),
            ("0", None, Some("0")),
            ("007", None, Some("7")),
            ("5", Some(5), Some("5")),
            ("4", Some(5), None),
            ("-1", None, None),
            ("1.5", None, None),
            ("9007199254740992", None, None),
        ] {
            assert_eq!(
                value(text, soft).ok().as_deref(),
                expected,
                "{text:?} {soft:?}"
            );
        }
    }

    #[test]
    fn a_key_of_a_limit_is_known_by_its_form() {
        for (key, expected) in [
            ("USAGE_STARTER_MESSAGES_HARD_LIMIT", true),
            ("USAGE_A_B_SOFT_LIMIT", true),
            ("USAGE_HARD_LIMIT", false),
            ("USAGE_MESSAGES_HARD_LIMIT", false),
            ("USAGE_BOGUS", false),
        ] {
            assert_eq!(is_limit_key(key), expected, "{key}");
        }
    }
}
