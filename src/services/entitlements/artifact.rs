//! Reading the entitlements artifact (interface.md §7): all that is wrong with it at once, each by its JSON path.

use std::{fmt, str::FromStr};

use serde_json::value::RawValue;

use crate::{
    domain::{
        feature::FeatureKey,
        limit::{Limit, Scope},
        names::{DisplayName, PlanCode},
        quantity::Quantity,
        time::Timestamp,
        window::WindowKind,
    },
    json,
    services::plans,
};

/// The version of the format that is read; files without one are read as this.
pub const SCHEMA_VERSION: i64 = 1;

const LIMIT: &str = "a whole number from 0 to 2^53 - 1, or null";

/// Something in the artifact that can't be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Such as `plans[0].features[1].soft_limit`; empty for the whole.
    pub path: String,
    /// `is 300; write at most the hard_limit, 200`.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => write!(f, "the artifact {}", self.problem),
            path => write!(f, "{path} {}", self.problem),
        }
    }
}

/// The artifact as far as it could be read.
#[derive(Debug, Default)]
pub struct Artifact {
    pub is_enabled: bool,
    pub plans: Vec<PlanEntry>,
    pub faults: Vec<Fault>,
    /// The paths of fields that are not known.
    pub unknown: Vec<String>,
}

/// A plan of the artifact.
#[derive(Debug)]
pub struct PlanEntry {
    pub path: String,
    pub code: PlanCode,
    pub name: Option<DisplayName>,
    pub features: Vec<FeatureEntry>,
}

/// A feature of the artifact; what it leaves out stays as it is.
#[derive(Debug)]
pub struct FeatureEntry {
    pub key: FeatureKey,
    pub display_name: Option<DisplayName>,
    pub unit: Option<String>,
    pub is_metered: Option<bool>,
    pub limits: LimitsEntry,
    /// `Some(None)`: null, the settings' thresholds.
    pub alert_thresholds: Option<Option<Vec<u16>>>,
    pub stripe_meter: Option<Option<String>>,
}

/// What an entry says of its feature's limits.
#[derive(Debug)]
pub enum LimitsEntry {
    /// The flat pair alone, the limit of the tenant per period unless it says else; others stay.
    Pair(Limit),
    /// `limits`: these and no others.
    Whole(Vec<Limit>),
}

impl Artifact {
    /// Reads `text`; `known` are further fields of the whole that are none of its own.
    #[must_use]
    pub fn read(text: &str, known: &[&str]) -> Self {
        let mut reader = Reader::default();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        match serde_json::from_str::<&RawValue>(text) {
            Ok(whole) => reader.artifact(whole, known),
            Err(error) => {
                let (line, column) = (error.line(), error.column());
                reader.fault(
                    "",
                    format!("is not JSON: it breaks at line {line}, column {column}"),
                );
            }
        }
        reader.0
    }
}

/// The members of an object; those that nobody took are not known.
struct Fields<'a> {
    path: String,
    members: Vec<(json::Member<'a>, bool)>,
}

impl<'a> Fields<'a> {
    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        let (member, is_taken) = self.members.iter_mut().find(|(it, _)| it.0 == name)?;
        *is_taken = true;
        Some(member.1)
    }
}

#[derive(Default)]
struct Reader(Artifact);

impl Reader {
    fn fault(&mut self, path: &str, problem: impl Into<String>) {
        self.0.faults.push(Fault {
            path: path.to_owned(),
            problem: problem.into(),
        });
    }

    fn wrong(&mut self, path: &str, value: &RawValue, accepted: &str) {
        let shown = json::shown(value);
        self.fault(path, format!("is {shown}; write {accepted}"));
    }

    fn artifact(&mut self, whole: &RawValue, known: &[&str]) {
        let Some(mut fields) = self.object("", whole) else {
            return;
        };
        for name in known {
            fields.take(name);
        }
        self.schema_version(&mut fields);
        if let Some(value) = fields.take("generated_at") {
            self.parsed::<Timestamp>(
                "generated_at",
                value,
                "a time in RFC 3339, such as 2026-11-01T00:00:00Z",
            );
        }
        let enabled = self.required(&mut fields, "enabled", "true or false");
        self.0.is_enabled = enabled
            .and_then(|value| self.switch("enabled", value))
            .unwrap_or_default();
        if let Some(plans) = self.required(&mut fields, "plans", "a list of plans") {
            for (index, plan) in self.list("plans", plans).into_iter().enumerate() {
                self.plan(&format!("plans[{index}]"), plan);
            }
        }
        self.rest(fields);
    }

    fn schema_version(&mut self, fields: &mut Fields<'_>) {
        let Some(value) = fields.take("schema_version") else {
            return;
        };
        if value.get() != SCHEMA_VERSION.to_string() {
            self.wrong(
                "schema_version",
                value,
                &format!("{SCHEMA_VERSION}, the one version that this tollgate reads"),
            );
        }
    }

    fn plan(&mut self, path: &str, plan: &RawValue) {
        let Some(mut fields) = self.object(path, plan) else {
            return;
        };
        let code = self
            .required(&mut fields, "plan_code", "the code of a plan")
            .and_then(|value| {
                self.parsed::<PlanCode>(
                    &format!("{path}.plan_code"),
                    value,
                    "1-64 letters, digits, '_', '.', '-'",
                )
            });
        let is_twice = |plan: &PlanEntry| Some(&plan.code) == code.as_ref();
        if let Some(first) = self.0.plans.iter().find(|plan| is_twice(plan)) {
            let problem = format!(
                "is '{}' again, as {}.plan_code; write each plan once",
                first.code, first.path
            );
            self.fault(&format!("{path}.plan_code"), problem);
        }
        let name = fields.take("name").and_then(|value| {
            self.parsed(
                &format!("{path}.name"),
                value,
                "a name of 1-200 characters without control characters",
            )
        });
        let mut features: Vec<FeatureEntry> = Vec::new();
        if let Some(list) = self.required(&mut fields, "features", "a list of features") {
            let at = format!("{path}.features");
            for (index, feature) in self.list(&at, list).into_iter().enumerate() {
                let at = format!("{at}[{index}]");
                let Some(feature) = self.feature(&at, feature) else {
                    continue;
                };
                if features.iter().any(|there| there.key == feature.key) {
                    let problem =
                        format!("is '{}' again; write each feature once a plan", feature.key);
                    self.fault(&format!("{at}.feature_key"), problem);
                }
                features.push(feature);
            }
        }
        self.rest(fields);
        if let Some(code) = code {
            self.0.plans.push(PlanEntry {
                path: path.to_owned(),
                code,
                name,
                features,
            });
        }
    }

    fn feature(&mut self, path: &str, feature: &RawValue) -> Option<FeatureEntry> {
        let mut fields = self.object(path, feature)?;
        let at = |name: &str| format!("{path}.{name}");
        let key = self
            .required(&mut fields, "feature_key", "the key of a feature")
            .and_then(|value| {
                self.parsed(
                    &at("feature_key"),
                    value,
                    "1-64 of a-z, 0-9, '_', '.', '-', such as messages",
                )
            });
        let display_name = fields.take("display_name").and_then(|value| {
            self.parsed(
                &at("display_name"),
                value,
                "a name of 1-200 characters without control characters",
            )
        });
        let unit = fields
            .take("unit")
            .and_then(|value| self.words(&at("unit"), value, 64));
        let is_metered = fields
            .take("is_metered")
            .and_then(|value| self.switch(&at("is_metered"), value));
        let alert_thresholds = fields
            .take("alert_thresholds")
            .map(|value| self.thresholds(&at("alert_thresholds"), value));
        let stripe_meter = fields.take("stripe_meter").map(|value| {
            let value = (value.get() != "null").then_some(value);
            value.and_then(|value| self.words(&at("stripe_meter"), value, 100))
        });
        let limits = self.limits(path, &mut fields);
        self.rest(fields);
        Some(FeatureEntry {
            key: key?,
            display_name,
            unit,
            is_metered,
            limits,
            alert_thresholds,
            stripe_meter,
        })
    }

    fn limits(&mut self, path: &str, fields: &mut Fields<'_>) -> LimitsEntry {
        let flat = self.limit_of(path, fields).unwrap_or(Limit {
            scope: Scope::Tenant,
            window: WindowKind::Period,
            soft: None,
            hard: None,
        });
        let Some(list) = fields.take("limits") else {
            return LimitsEntry::Pair(flat);
        };
        let at = format!("{path}.limits");
        let mut limits: Vec<Limit> = Vec::new();
        for (index, limit) in self.list(&at, list).into_iter().enumerate() {
            let at = format!("{at}[{index}]");
            let Some(limit) = self.limit(&at, limit) else {
                continue;
            };
            let is_same =
                |there: &Limit| (there.scope, there.window) == (limit.scope, limit.window);
            if limits.iter().any(is_same) {
                let problem = format!(
                    "is the limit per {} and {} again; write each scope and window once",
                    limit.scope, limit.window
                );
                self.fault(&at, problem);
            }
            limits.push(limit);
        }
        if flat.soft.is_some() || flat.hard.is_some() {
            self.add_pair(path, flat, &mut limits);
        }
        limits.retain(|limit| limit.soft.is_some() || limit.hard.is_some());
        LimitsEntry::Whole(limits)
    }

    /// The flat pair beside `limits` is one more limit, or says the same again.
    fn add_pair(&mut self, path: &str, flat: Limit, limits: &mut Vec<Limit>) {
        let is_same = |there: &&Limit| (there.scope, there.window) == (flat.scope, flat.window);
        match limits.iter().find(is_same) {
            None => limits.insert(0, flat),
            Some(there) if *there == flat => {}
            Some(_) => self.fault(
                &format!("{path}.limits"),
                format!(
                    "has a limit per {} and {}, and the flat pair is another; write it once",
                    flat.scope, flat.window
                ),
            ),
        }
    }

    fn limit(&mut self, path: &str, limit: &RawValue) -> Option<Limit> {
        let mut fields = self.object(path, limit)?;
        let limit = self.limit_of(path, &mut fields);
        self.rest(fields);
        limit
    }

    fn limit_of(&mut self, path: &str, fields: &mut Fields<'_>) -> Option<Limit> {
        let scope = fields.take("scope").map_or(Some(Scope::Tenant), |value| {
            self.parsed(&format!("{path}.scope"), value, "tenant, key or user")
        });
        let window = fields
            .take("window")
            .map_or(Some(WindowKind::Period), |value| {
                self.parsed(
                    &format!("{path}.window"),
                    value,
                    "minute, hour, day, week, month, period or lifetime",
                )
            });
        let mut value = |name: &str| {
            let value = fields.take(name).filter(|value| value.get() != "null")?;
            self.quantity(&format!("{path}.{name}"), value)
        };
        let (soft, hard) = (value("soft_limit"), value("hard_limit"));
        if let (Some(soft), Some(hard)) = (soft, hard)
            && soft > hard
        {
            let problem = format!("is {soft}; write at most the hard_limit, {hard}");
            self.fault(&format!("{path}.soft_limit"), problem);
        }
        Some(Limit {
            scope: scope?,
            window: window?,
            soft,
            hard,
        })
    }

    fn quantity(&mut self, path: &str, value: &RawValue) -> Option<Quantity> {
        let number = serde_json::from_str::<Quantity>(value.get()).ok();
        let number = number.filter(|number| *number >= Quantity::ZERO);
        if number.is_none() {
            self.wrong(path, value, LIMIT);
        }
        number
    }

    fn thresholds(&mut self, path: &str, value: &RawValue) -> Option<Vec<u16>> {
        if value.get() == "null" {
            return None;
        }
        let percents = serde_json::from_str::<Vec<u16>>(value.get()).ok();
        let percents = percents.filter(|percents| plans::are_thresholds(percents));
        if percents.is_none() {
            self.wrong(
                path,
                value,
                "a list of whole percentages from 1 to 1000, such as [80,100], or null",
            );
        }
        percents
    }

    fn switch(&mut self, path: &str, value: &RawValue) -> Option<bool> {
        let read = serde_json::from_str(value.get()).ok();
        if read.is_none() {
            self.wrong(path, value, "true or false");
        }
        read
    }

    fn words(&mut self, path: &str, value: &RawValue, longest: usize) -> Option<String> {
        let text = serde_json::from_str::<String>(value.get()).ok();
        let text = text.filter(|text| plans::is_text(text, longest));
        if text.is_none() {
            let accepted =
                format!("a text of 1 to {longest} characters without control characters");
            self.wrong(path, value, &accepted);
        }
        text
    }

    fn parsed<T: FromStr>(&mut self, path: &str, value: &RawValue, accepted: &str) -> Option<T> {
        let text = serde_json::from_str::<String>(value.get()).ok();
        let read = text.and_then(|text| text.parse().ok());
        if read.is_none() {
            self.wrong(path, value, accepted);
        }
        read
    }

    fn list<'a>(&mut self, path: &str, value: &'a RawValue) -> Vec<&'a RawValue> {
        serde_json::from_str(value.get()).unwrap_or_else(|_| {
            self.wrong(path, value, "a list");
            Vec::new()
        })
    }

    fn object<'a>(&mut self, path: &str, value: &'a RawValue) -> Option<Fields<'a>> {
        match json::members(value.get()) {
            Ok(members) => Some(Fields {
                path: path.to_owned(),
                members: members.into_iter().map(|member| (member, false)).collect(),
            }),
            // Of a repeated key two readers would take two values.
            Err(_) if value.get().starts_with('{') => {
                self.fault(path, "has a key more than once; write it once");
                None
            }
            Err(_) => {
                self.wrong(path, value, "an object");
                None
            }
        }
    }

    fn required<'a>(
        &mut self,
        fields: &mut Fields<'a>,
        name: &str,
        accepted: &str,
    ) -> Option<&'a RawValue> {
        let value = fields.take(name);
        if value.is_none() {
            let path = fields.path_of(name);
            self.fault(&path, format!("is missing; write {accepted}"));
        }
        value
    }

    fn rest(&mut self, fields: Fields<'_>) {
        for (member, is_taken) in &fields.members {
            if !is_taken {
                self.0.unknown.push(fields.path_of(&member.0));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        let read = Artifact::read(text, &[]);
        read.faults.iter().map(ToString::to_string).collect()
    }

    fn one_feature(feature: &str) -> String {
        format!(r#"{{"enabled": true, "plans": [{{"plan_code": "p", "features": [{feature}]}}]}}"#)
    }

    #[test]
    fn the_smallest_artifact_is_read() {
        let read = Artifact::read(&one_feature(r#"{"feature_key": "messages"}"#), &[]);
        assert_eq!((read.faults.len(), read.unknown.len()), (0, 0));
        let feature = &read.plans[0].features[0];
        let LimitsEntry::Pair(flat) = feature.limits else {
            panic!("no list of limits")
        };
        assert_eq!((flat.soft, flat.hard), (None, None));
        assert_eq!((feature.is_metered, &feature.unit), (None, &None));
    }

    #[test]
    fn every_fault_is_named_by_its_path_and_all_at_once() {
        let text = r#"{"enabled": 1, "generated_at": "noon", "schema_version": 2, "plans": [
            {"plan_code": "a", "features": [
                {"feature_key": "messages", "soft_limit": 300, "hard_limit": 200},
                {"feature_key": "messages", "hard_limit": -1},
                {"feature_key": "Bad Key", "is_metered": "yes", "hard_limit": 1.5},
                {"soft_limit": "9"}, 7]},
            {"plan_code": "a", "features": {}},
            {"features": []}]}"#;
        assert_eq!(
            faults(text),
            [
                "schema_version is 2; write 1, the one version that this tollgate reads",
                "generated_at is \"noon\"; write a time in RFC 3339, such as 2026-11-01T00:00:00Z",
                "enabled is 1; write true or false",
                "plans[0].features[0].soft_limit is 300; write at most the hard_limit, 200",
                "plans[0].features[1].hard_limit is -1; write a whole number from 0 to 2^53 - 1, or null",
                "plans[0].features[1].feature_key is 'messages' again; write each feature once a plan",
                "plans[0].features[2].feature_key is \"Bad Key\"; write 1-64 of a-z, 0-9, '_', '.', '-', such as messages",
                "plans[0].features[2].is_metered is \"yes\"; write true or false",
                "plans[0].features[2].hard_limit is 1.5; write a whole number from 0 to 2^53 - 1, or null",
                "plans[0].features[3].feature_key is missing; write the key of a feature",
                "plans[0].features[3].soft_limit is \"9\"; write a whole number from 0 to 2^53 - 1, or null",
                "plans[0].features[4] is 7; write an object",
                "plans[1].plan_code is 'a' again, as plans[0].plan_code; write each plan once",
                "plans[1].features is {}; write a list",
                "plans[2].plan_code is missing; write the code of a plan",
            ]
        );
    }

    #[test]
    fn what_is_no_artifact_at_all_is_said_plainly() {
        for (text, expected) in [
            (
                "",
                "the artifact is not JSON: it breaks at line 1, column 0",
            ),
            ("[]", "the artifact is []; write an object"),
            (
                "{\"enabled\": true,\n}",
                "the artifact is not JSON: it breaks at line 2, column 1",
            ),
            (
                r#"{"enabled": true, "enabled": false, "plans": []}"#,
                "the artifact has a key more than once; write it once",
            ),
        ] {
            assert_eq!(faults(text), [expected], "{text}");
        }
        assert_eq!(
            faults("{}"),
            [
                "enabled is missing; write true or false",
                "plans is missing; write a list of plans"
            ]
        );
    }

    #[test]
    fn limits_stand_beside_the_flat_pair_and_never_twice() {
        let read = |feature: &str| Artifact::read(&one_feature(feature), &[]);
        let both = read(
            r#"{"feature_key": "messages", "hard_limit": 200, "limits": [
                {"scope": "user", "window": "day", "hard_limit": 9}]}"#,
        );
        let LimitsEntry::Whole(limits) = &both.plans[0].features[0].limits else {
            panic!("a list of limits")
        };
        assert_eq!(limits.len(), 2);
        assert_eq!(
            (limits[0].window, limits[1].window),
            (WindowKind::Period, WindowKind::Day)
        );
        // As the JSON API gives a feature back: the flat pair is the first limit once more.
        let again = read(
            r#"{"feature_key": "m", "scope": "user", "window": "day", "soft_limit": null, "hard_limit": 5,
                "limits": [{"scope": "user", "window": "day", "hard_limit": 5}]}"#,
        );
        assert!(again.faults.is_empty(), "{:?}", again.faults);
        let twice = r#"{"feature_key": "m", "hard_limit": 6, "limits": [
            {"hard_limit": 5}, {"window": "day", "soft_limit": 2, "hard_limit": 1}, {"window": "day"}, {"scope": "x"}]}"#;
        assert_eq!(
            faults(&one_feature(twice)),
            [
                "plans[0].features[0].limits[1].soft_limit is 2; write at most the hard_limit, 1",
                "plans[0].features[0].limits[2] is the limit per tenant and day again; write each scope and window once",
                "plans[0].features[0].limits[3].scope is \"x\"; write tenant, key or user",
                "plans[0].features[0].limits has a limit per tenant and period, and the flat pair is another; write it once",
            ]
        );
    }

    #[test]
    fn unknown_fields_are_named_and_no_fault() {
        let text = r#"{"enabled": true, "note": 1, "dry_run": true, "plans": [{"plan_code": "p", "colour": "red",
            "features": [{"feature_key": "m", "hard_limt": 3, "limits": [{"kind": "x"}]}]}]}"#;
        let read = Artifact::read(text, &["dry_run"]);
        assert!(read.faults.is_empty());
        assert_eq!(
            read.unknown,
            [
                "plans[0].features[0].limits[0].kind",
                "plans[0].features[0].hard_limt",
                "plans[0].colour",
                "note"
            ]
        );
    }
}
