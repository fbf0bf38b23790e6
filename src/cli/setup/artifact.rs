//! The entitlements artifact: as it is, and as the answers make it.

use std::{collections::BTreeMap, fs, io, path::Path};

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};

use super::{
    question::Answers,
    usage::{DIMENSIONS, ENABLED, Level, PLAN_CODES, limit_key},
};
use crate::{
    domain::{feature::FeatureKey, time::Timestamp},
    services::entitlements::artifact::{Artifact, SCHEMA_VERSION},
};

/// The artifact that is there; null if there is none.
#[derive(Clone, Debug, Default)]
pub(super) struct Existing(Value);

impl Existing {
    /// # Errors
    /// If it is there and can't be read: it would be replaced without a look at what it says.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => {
                return Err(error).with_context(|| format!("the artifact {shown} can't be read"));
            }
        };
        if let Some(fault) = Artifact::read(&text, &[]).faults.first() {
            bail!("the artifact {shown} can't be used: {fault}; mend it, or move it aside");
        }
        let value = serde_json::from_str(text.trim_start_matches('\u{feff}'))?;
        Ok(Self(value))
    }

    fn plans(&self) -> impl Iterator<Item = &Value> {
        self.0["plans"].as_array().into_iter().flatten()
    }

    fn plan(&self, code: &str) -> Option<&Value> {
        self.plans().find(|plan| plan["plan_code"] == code)
    }

    pub(super) fn plan_codes(&self) -> Vec<String> {
        let codes = self.plans().filter_map(|plan| plan["plan_code"].as_str());
        codes.map(str::to_owned).collect()
    }

    /// The features that some plan limits, each once.
    pub(super) fn metered_features(&self) -> Vec<String> {
        let mut keys: Vec<String> = Vec::new();
        for feature in self.plans().flat_map(features).filter(|it| is_metered(it)) {
            let key = feature["feature_key"].as_str().unwrap_or_default();
            if !keys.iter().any(|known| known == key) {
                keys.push(key.to_owned());
            }
        }
        keys
    }

    /// One value of a limit as a question's default, blank for unlimited; `None` if the plan has no such feature.
    pub(super) fn limit(&self, plan: &str, feature: &str, level: Level) -> Option<String> {
        let feature = features(self.plan(plan)?).find(|it| it["feature_key"] == feature)?;
        let value = match &feature[level.field()] {
            Value::Null => own_period(feature).map_or(&Value::Null, |limit| &limit[level.field()]),
            value => value,
        };
        Some(
            value
                .as_i64()
                .map(|value| value.to_string())
                .unwrap_or_default(),
        )
    }

    /// The artifact that the answers of section `usage` make of it.
    pub(super) fn with(&self, answers: &Answers, now: Timestamp) -> Value {
        let mut artifact = self.0.as_object().cloned().unwrap_or_default();
        let is_enabled = answers.is(ENABLED, "true");
        artifact.insert("enabled".to_owned(), is_enabled.into());
        artifact.insert("generated_at".to_owned(), json!(now.to_whole_second()));
        artifact.insert("schema_version".to_owned(), SCHEMA_VERSION.into());
        if is_enabled {
            let codes = answers.list(PLAN_CODES);
            let plans = codes.iter().map(|code| self.plan_with(code, answers));
            artifact.insert("plans".to_owned(), plans.collect());
        } else {
            artifact.entry("plans").or_insert_with(|| json!([]));
        }
        Value::Object(artifact)
    }

    fn plan_with(&self, code: &str, answers: &Answers) -> Value {
        let there = self.plan(code);
        let mut plan = there
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default();
        plan.insert("plan_code".to_owned(), code.into());
        let dimensions = answers.list(DIMENSIONS);
        let mut listed: Vec<Value> = Vec::new();
        for dimension in &dimensions {
            let is_it = |feature: &&Value| feature["feature_key"] == *dimension;
            let feature = there.and_then(|plan| features(plan).find(is_it));
            listed.push(feature_with(feature, code, dimension, answers));
        }
        // Entitlements that are not metered are no question's: they are carried on.
        let carried = there.into_iter().flat_map(features).filter(|feature| {
            let is_asked = dimensions.iter().any(|it| feature["feature_key"] == *it);
            !is_asked && !is_metered(feature)
        });
        listed.extend(carried.cloned());
        plan.insert("features".to_owned(), listed.into());
        Value::Object(plan)
    }
}

fn features(plan: &Value) -> impl Iterator<Item = &Value> {
    plan["features"].as_array().into_iter().flatten()
}

fn is_metered(feature: &Value) -> bool {
    feature["is_metered"] != false
}

/// The limit per tenant and period of a feature's list.
fn own_period(feature: &Value) -> Option<&Value> {
    let limits = feature["limits"].as_array()?;
    limits.iter().find(|limit| is_own_period(limit))
}

fn is_own_period(limit: &Value) -> bool {
    let is = |name: &str, usual: &str| limit[name].is_null() || limit[name] == usual;
    is("scope", "tenant") && is("window", "period")
}

fn feature_with(there: Option<&Value>, plan: &str, dimension: &str, answers: &Answers) -> Value {
    let mut feature = there
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    let key = dimension.parse::<FeatureKey>();
    let or_insert = |feature: &mut Map<String, Value>, name: &str, value: Value| {
        feature.entry(name).or_insert(value);
    };
    if let Ok(key) = &key {
        or_insert(
            &mut feature,
            "display_name",
            key.default_display_name().into(),
        );
        or_insert(&mut feature, "unit", key.default_unit().into());
    }
    feature.insert("feature_key".to_owned(), dimension.into());
    feature.insert("is_metered".to_owned(), true.into());
    // The flat pair says it from here on, and only once.
    feature.remove("scope");
    feature.remove("window");
    if let Some(limits) = feature.get_mut("limits").and_then(Value::as_array_mut) {
        limits.retain(|limit| !is_own_period(limit));
        if limits.is_empty() {
            feature.remove("limits");
        }
    }
    for level in Level::BOTH {
        let answer = answers
            .get(&limit_key(plan, dimension, level))
            .unwrap_or_default();
        let value = answer.parse::<i64>().map_or(Value::Null, Value::from);
        feature.insert(level.field().to_owned(), value);
    }
    Value::Object(feature)
}

/// As the file has it: indent 2, sorted keys, a newline at its end.
pub(super) fn text(artifact: &Value) -> String {
    format!("{:#}\n", sorted(artifact))
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let members: BTreeMap<&String, Value> = object
                .iter()
                .map(|(key, value)| (key, sorted(value)))
                .collect();
            members
                .into_iter()
                .map(|(key, value)| (key.clone(), value))
                .collect::<Map<_, _>>()
                .into()
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

/// What differs, `starter.messages.hard_limit: 200 → 300`; when it was made does not count.
pub(super) fn differences(old: &Existing, new: &Value) -> Vec<String> {
    let (old, new) = (flat(&old.0), flat(new));
    let mut paths: Vec<&String> = new.keys().chain(old.keys()).collect();
    paths.sort();
    paths.dedup();
    let value = |value: Option<&Value>| value.map_or("none".to_owned(), Value::to_string);
    let differing = paths
        .into_iter()
        .filter(|path| old.get(*path) != new.get(*path));
    let lines = differing.map(|path| {
        format!(
            "{path}: {} → {}",
            value(old.get(path)),
            value(new.get(path))
        )
    });
    lines.collect()
}

/// Every value by the names of its plan and feature.
fn flat(artifact: &Value) -> BTreeMap<String, Value> {
    let mut flat = BTreeMap::new();
    for plan in artifact["plans"].as_array().into_iter().flatten() {
        let code = plan["plan_code"].as_str().unwrap_or_default();
        for feature in features(plan) {
            let key = feature["feature_key"].as_str().unwrap_or_default();
            let members = feature.as_object().into_iter().flatten();
            for (name, value) in members.filter(|(name, _)| *name != "feature_key") {
                flat.insert(format!("{code}.{key}.{name}"), value.clone());
            }
        }
    }
    if let Some(enabled) = artifact.get("enabled") {
        flat.insert("enabled".to_owned(), enabled.clone());
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(pairs: &[(&str, &str)]) -> Answers {
        let mut answers = Answers::default();
        for (key, value) in pairs {
            answers.put(key, (*value).to_owned());
        }
        answers
    }

    fn existing() -> Existing {
        Existing(json!({"enabled": true, "note": "kept", "plans": [
            {"plan_code": "starter", "features": [
                {"feature_key": "messages", "display_name": "Turns", "is_metered": true, "alert_thresholds": [50],
                 "limits": [{"soft_limit": 1, "hard_limit": 2}, {"scope": "user", "window": "day", "hard_limit": 9}]},
                {"feature_key": "seats", "is_metered": false, "hard_limit": 3}]},
            {"plan_code": "old", "features": []}]}))
    }

    #[test]
    fn what_no_question_asks_is_carried_on() {
        let answers = answers(&[
            (ENABLED, "true"),
            (DIMENSIONS, "messages"),
            (PLAN_CODES, "starter"),
            ("USAGE_STARTER_MESSAGES_SOFT_LIMIT", ""),
            ("USAGE_STARTER_MESSAGES_HARD_LIMIT", "7"),
        ]);
        assert_eq!(
            existing()
                .limit("starter", "messages", Level::Hard)
                .as_deref(),
            Some("2")
        );
        let made = existing().with(&answers, Timestamp::EPOCH);
        assert_eq!(
            made,
            json!({"enabled": true, "note": "kept", "generated_at": "1970-01-01T00:00:00Z", "schema_version": 1,
                "plans": [{"plan_code": "starter", "features": [
                    {"feature_key": "messages", "display_name": "Turns", "is_metered": true, "unit": "requests",
                     "alert_thresholds": [50], "soft_limit": null, "hard_limit": 7,
                     "limits": [{"scope": "user", "window": "day", "hard_limit": 9}]},
                    {"feature_key": "seats", "is_metered": false, "hard_limit": 3}]}]})
        );
        let read = Artifact::read(&text(&made), &[]);
        assert!(read.faults.is_empty(), "{:?}", read.faults);
        assert!(
            differences(&existing(), &made)
                .contains(&"starter.messages.hard_limit: none → 7".to_owned())
        );
    }

    #[test]
    fn opting_out_keeps_the_plans_and_says_that_they_do_not_hold() {
        let off = answers(&[(ENABLED, "false")]);
        let made = existing().with(&off, Timestamp::EPOCH);
        assert_eq!(
            (&made["enabled"], &made["plans"]),
            (&json!(false), &existing().0["plans"])
        );
        assert_eq!(differences(&existing(), &made), ["enabled: true → false"]);
        assert_eq!(
            Existing::default().with(&off, Timestamp::EPOCH)["plans"],
            json!([])
        );
    }

    #[test]
    fn the_file_is_sorted_and_indented_by_two() {
        assert_eq!(
            text(&json!({"b": [{"d": 1, "c": null}], "a": true})),
            "{\n  \"a\": true,\n  \"b\": [\n    {\n      \"c\": null,\n      \"d\": 1\n    }\n  ]\n}\n"
        );
    }
}
