//! The files of `packaging/`, as far as they can be judged without building them: `make dist` and `make test-deb` do
//! the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use serde_json::Value;
use tollgate::config::settings::SETTINGS;

use crate::support::{Tollgate, in_repository};

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

/// What follows `key` on the lines of a file that begin with it.
fn values_of<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let lines = text
        .lines()
        .map(|line| line.trim().trim_start_matches("- "));
    lines.filter_map(|line| line.strip_prefix(key)).collect()
}

/// `NAME: value` lines of a YAML file between two lines, with what a shell would put in for `${NAME…}`.
fn settings_between(text: &str, from: &str, to: &str) -> BTreeMap<String, String> {
    let part = text.split(from).nth(1).expect(from);
    let part = part.split(to).next().expect(to);
    let lines = part.lines().filter_map(|line| line.trim().split_once(": "));
    let lines = lines.filter(|(name, _)| !name.starts_with('#'));
    let filled = |value: &str| {
        let mut value = value.trim_matches('"').to_owned();
        while let Some((before, rest)) = value.split_once("${") {
            let (inside, after) = rest.split_once('}').expect("it ends");
            let (name, otherwise) = inside.split_once(':').expect("it has an alternative");
            let put_in = match otherwise.split_at(1) {
                ("-", otherwise) => otherwise.to_owned(),
                // It must be set.
                _ => format!("{}-long-enough-to-be-taken-by-it", name.to_lowercase()),
            };
            value = format!("{before}{put_in}{after}");
        }
        value
    };
    lines
        .map(|(name, value)| (name.to_owned(), filled(value)))
        .collect()
}

/// `tollgate config` takes the settings and has them in force.
async fn are_in_force(settings: &BTreeMap<String, String>) {
    let mut serve = Tollgate::serve();
    for (name, value) in settings {
        serve = serve.set(name, value);
    }
    let run = serve.cli(&["config", "--output", "json"]).await;
    assert_eq!(run.code, 0, "{settings:?}: {run:?}");
    let listed: Value = serde_json::from_str(&run.stdout).unwrap();
    for (name, value) in settings {
        let items = listed["items"].as_array().unwrap();
        let item = items.iter().find(|item| item["name"] == name.as_str());
        let item = item.unwrap_or_else(|| panic!("{name} is no setting"));
        let shown = item["value"].as_str().unwrap_or_default();
        let is_shown = shown == value || shown.contains('…');
        // The test's own directory; an empty variable is none.
        if name != "TOLLGATE_DATA_DIR" && !value.is_empty() {
            assert!(is_shown, "{name}: {value} became {shown}");
            assert_eq!(item["source"], "environment", "{name}");
        }
    }
}

#[tokio::test]
async fn the_settings_of_compose_and_kubernetes_are_taken_as_they_stand() {
    let text = read("packaging/compose.yaml");
    let compose = settings_between(&text, "environment: &settings\n", "  read_only:");
    assert!(compose.len() >= 6, "{compose:?}");
    assert_eq!(compose["OPENAI_BASE_URL"], "https://api.openai.com/v1");
    are_in_force(&compose).await;
    let text = read("packaging/kubernetes.yaml");
    let mut kubernetes = settings_between(&text, "\ndata:\n", "---");
    assert!(kubernetes.len() >= 5, "{kubernetes:?}");
    // From the secret that the file tells how to make.
    let secret = text.split("--from-literal=").skip(1);
    let secret = secret.map(|it| it.split([' ', '\n']).next().unwrap());
    for (name, value) in secret.filter_map(|it| it.split_once('=')) {
        let value = value.replace("://…", "://somebody:a-password@there.example/0");
        let value = value.replace('…', "a-value-of-more-than-32-characters");
        kubernetes.insert(name.to_owned(), value);
    }
    assert!(
        kubernetes.contains_key("TOLLGATE_ADMIN_TOKEN"),
        "{kubernetes:?}"
    );
    are_in_force(&kubernetes).await;
}

#[test]
fn ports_directories_and_users_are_the_images() {
    let image = read("packaging/Containerfile");
    let word = |name: &str| {
        let after = image.split(&format!("{name}=")).nth(1).expect("it is set");
        after.split_whitespace().next().expect("a value")
    };
    let (directory, listen) = (word("TOLLGATE_DATA_DIR"), word("TOLLGATE_LISTEN"));
    let port = listen
        .strip_prefix("0.0.0.0:")
        .expect("every address of it");
    assert_eq!(values_of(&image, "EXPOSE "), [port]);
    assert_eq!(values_of(&image, "VOLUME "), [directory]);
    assert_eq!(values_of(&image, "WORKDIR "), [directory]);
    let user = values_of(&image, "USER ")[0].split(':').next().unwrap();

    let compose = read("packaging/compose.yaml");
    let published = values_of(&compose, "ports: ");
    assert_eq!(published.len(), 2, "one a replica");
    for it in published {
        assert!(it.ends_with(&format!(":{port}\"]")), "{it}");
    }
    for (name, journal) in [("tollgate-1:", "journal-1"), ("tollgate-2:", "journal-2")] {
        let of_replica = compose.split(name).nth(1).unwrap();
        let volumes = values_of(of_replica, "volumes: ")[0];
        assert_eq!(
            volumes,
            format!("[\"{journal}:{directory}\"]"),
            "a journal of its own"
        );
    }
    let tmpfs = values_of(&compose, "tmpfs: ")[0];
    assert!(tmpfs.contains(&format!("uid={user},gid={user}")), "{tmpfs}");

    let kubernetes = read("packaging/kubernetes.yaml");
    assert_eq!(
        values_of(&kubernetes, "TOLLGATE_LISTEN: "),
        [format!("\"{listen}\"")]
    );
    assert_eq!(values_of(&kubernetes, "TOLLGATE_DATA_DIR: "), [directory]);
    for key in ["runAsUser: ", "runAsGroup: ", "fsGroup: "] {
        assert_eq!(values_of(&kubernetes, key), [user], "{key}");
    }
    assert!(kubernetes.contains(&format!("{{name: http, containerPort: {port}}}")));
    assert!(kubernetes.contains(&format!("{{name: data, mountPath: {directory}}}")));
    assert!(kubernetes.contains("{name: tmp, mountPath: /tmp}"));
    assert_eq!(
        values_of(&kubernetes, "prometheus.io/port: "),
        [format!("\"{port}\"")]
    );
}

#[tokio::test]
async fn what_probes_and_health_checks_ask_is_answered() {
    let gate = Tollgate::serve().start().await;
    let kubernetes = read("packaging/kubernetes.yaml");
    let probes = values_of(&kubernetes, "httpGet: {path: ");
    assert_eq!(probes.len(), 2, "live and ready");
    for probe in probes {
        let (path, port) = probe.split_once(", port: ").unwrap();
        assert_eq!(port, "http}", "the port's name");
        assert_eq!(gate.get(path).await.status, 200, "{path}");
    }
    // Prometheus asks where it always does.
    assert_eq!(gate.get("/metrics").await.status, 200);

    let image = read("packaging/Containerfile");
    let check = image.split("HEALTHCHECK ").nth(1).unwrap();
    let check = check.split("CMD ").nth(1).unwrap().lines().next().unwrap();
    let words: Vec<String> = serde_json::from_str(check).unwrap();
    let listen = gate.base.trim_start_matches("http://").to_owned();
    let words: Vec<&str> = words.iter().map(String::as_str).skip(1).collect();
    let run = gate
        .cli(&[&words[..], &["--listen", &listen]].concat())
        .await;
    assert_eq!(run.code, 0, "{run:?}");

    // What is started there is a command that there is.
    let image = values_of(&image, "CMD ");
    let started = image.last().unwrap();
    assert_eq!(*started, "[\"serve\"]");
    assert_eq!(values_of(&kubernetes, "args: "), ["[serve]"]);
    let run = gate.cli(&["serve", "--help"]).await;
    assert_eq!(run.code, 0, "{run:?}");
    gate.finish().await;
}
