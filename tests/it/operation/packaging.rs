//! The files of `packaging/`, as far as they can be judged without building them: `make dist` and `make test-deb` do
//! the rest.

use std::{collections::BTreeSet, fs};

use tollgate::config::settings::SETTINGS;

use crate::support::in_repository;

fn read(path: &str) -> String {
    fs::read_to_string(in_repository(path)).unwrap()
}

/// Words in capitals with one of the prefixes that settings have.
fn settings_named_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|it: char| !(it.is_ascii_alphanumeric() || it == '_'));
    let prefixes = [
        "TOLLGATE_",
        "USAGE_",
        "ENABLE_",
        "STRIPE_",
        "OPENAI_",
        "DATABASE_",
        "REDIS_",
        "LOG_FORMAT",
    ];
    words
        .filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix)))
        .filter(|word| word.chars().all(|it| it.is_ascii_uppercase() || it == '_'))
        .collect()
}

#[test]
fn packages_set_only_settings_that_there_are() {
    for file in [
        "packaging/tollgate.env",
        "packaging/tollgate.service",
        "packaging/Containerfile",
        "packaging/compose.yaml",
        "packaging/kubernetes.yaml",
    ] {
        let text = read(file);
        let named = settings_named_in(&text);
        assert!(!named.is_empty(), "{file} names none");
        for name in named {
            assert!(
                SETTINGS.iter().any(|setting| setting.name == name),
                "{file} sets {name}, which is no setting"
            );
        }
    }
}

#[test]
fn whoever_ends_the_server_leaves_its_streams_the_time_they_have() {
    const STOP_SECONDS: u32 = 30;
    for (file, key) in [
        ("packaging/tollgate.service", "TimeoutStopSec="),
        ("packaging/compose.yaml", "stop_grace_period: "),
        (
            "packaging/kubernetes.yaml",
            "terminationGracePeriodSeconds: ",
        ),
    ] {
        let text = read(file);
        let line = text.lines().find_map(|line| line.trim().strip_prefix(key));
        let seconds: u32 = line.unwrap().trim_end_matches('s').parse().unwrap();
        assert!(seconds > STOP_SECONDS, "{file}: {key}{seconds}");
    }
}

#[test]
fn the_image_runs_as_nobody_and_checks_itself_with_a_command_that_there_is() {
    let text = read("packaging/Containerfile");
    assert!(text.contains("\nFROM scratch\n"));
    assert!(text.contains("\nUSER 65532:65532\n"));
    assert!(text.contains(r#"CMD ["/tollgate", "healthcheck"]"#));
}
