//! The alert rules that come along, judged by Prometheus' own tool.

use std::{collections::BTreeSet, fs};

use crate::{
    docs::anchor_of,
    support::{in_repository, promtool},
};

const RULES: &str = "assets/alerts/tollgate.yml";
const TESTS: &str = "tests/alerts/tollgate.test.yml";

fn read(path: &str) -> String {
    fs::read_to_string(in_repository(path)).unwrap()
}

/// What follows `key` in the lines that have it.
fn each<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines()
        .filter_map(move |line| line.trim().strip_prefix(key))
        .map(|value| value.trim().trim_matches('"'))
}

#[test]
fn every_rule_can_be_read_by_prometheus() {
    let rules = in_repository(RULES);
    if let Err(said) = promtool(&["check", "rules", &rules], "") {
        panic!("{said}");
    }
}

#[test]
fn every_alert_fires_in_its_test_and_stays_quiet_in_its_counter_test() {
    let tests = in_repository(TESTS);
    if let Err(said) = promtool(&["test", "rules", &tests], "") {
        panic!("{said}");
    }
    let (rules, tests) = (read(RULES), read(TESTS));
    let alerts: BTreeSet<&str> = each(&rules, "- alert:").collect();
    assert!(alerts.len() >= 15, "{alerts:?}");
    let names: Vec<&str> = each(&tests, "- name:").collect();
    for alert in alerts {
        for what in ["fires", "stays quiet"] {
            let wanted = format!("{alert} {what}");
            assert!(
                names.iter().any(|name| name.starts_with(&wanted)),
                "{TESTS} has no test '{wanted}'"
            );
        }
    }
}

#[test]
fn every_alert_names_its_section_of_the_runbook() {
    let (rules, runbook) = (read(RULES), read("docs/runbook.md"));
    let sections: BTreeSet<String> = each(&runbook, "## ").map(anchor_of).collect();
    let named: Vec<&str> = each(&rules, "runbook_url:").collect();
    assert_eq!(
        named.len(),
        each(&rules, "- alert:").count(),
        "one for each alert"
    );
    for url in named {
        let section = url.strip_prefix("docs/runbook.md#");
        let section = section.unwrap_or_else(|| panic!("{url} is not in docs/runbook.md"));
        assert!(
            sections.contains(section),
            "docs/runbook.md has no section #{section}"
        );
    }
}
