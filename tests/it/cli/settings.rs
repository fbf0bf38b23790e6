use std::fs;

use super::Shell;

fn listed(shell: &Shell, words: &[&str], name: &str) -> (String, String) {
    let all = shell
        .run(&[&["config", "--output", "json"], words].concat())
        .json();
    let found = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|item| item["name"] == name)
        .unwrap();
    let text = |member: &str| found[member].as_str().unwrap_or_default().to_owned();
    (text("value"), text("source"))
}

fn is(value: &str, source: &str) -> (String, String) {
    (value.to_owned(), source.to_owned())
}

#[test]
fn a_flag_wins_over_the_environment_over_dot_env_over_the_default() {
    let name = "USAGE_GUARDRAIL_CACHE_TTL_SECONDS";
    let shell = Shell::new();
    assert_eq!(listed(&shell, &[], name), is("30", "default"));
    fs::write(shell.path().join(".env"), format!("{name}=31\n")).unwrap();
    assert_eq!(listed(&shell, &[], name), is("31", ".env"));
    let shell = shell.with(name, "32");
    assert_eq!(listed(&shell, &[], name), is("32", "environment"));
    let flag = ["--usage-guardrail-cache-ttl-seconds", "33"];
    assert_eq!(listed(&shell, &flag, name), is("33", "flag"));
}

#[test]
fn a_dollar_in_dot_env_is_a_letter_like_others() {
    let shell = Shell::new();
    let dot_env = "TOLLGATE_DEFAULT_MODEL=gpt$HOME\nTOLLGATE_METRICS_TOKEN=abc$def12345678\n";
    fs::write(shell.path().join(".env"), dot_env).unwrap();
    let listed = |name| listed(&shell, &[], name);
    assert_eq!(listed("TOLLGATE_DEFAULT_MODEL"), is("gpt$HOME", ".env"));
    assert_eq!(listed("TOLLGATE_METRICS_TOKEN"), is("…5678", ".env"));
}

#[test]
fn passwords_of_addresses_are_not_shown_wherever_they_stand() {
    for address in [
        "postgres://u@h/db?password=topsecret",
        "postgres://u:p/topsecret@h/db",
        "postgres://u:a,topsecret@h/db",
        "postgres://u:top?secret@h/db",
        "postgres://u:x@h/db?nope=1&password=topsecret",
        "postgres://u:x?topsecret=1@h/db",
    ] {
        let shell = Shell::new().with("DATABASE_URL", address);
        let ran = shell.run(&["config", "--output", "json"]);
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(said.contains('…') && !said.contains("secret@"), "{said}");
        assert!(!said.contains("topsecret"), "{said}");
    }
}

#[test]
fn secrets_are_shown_by_their_end_only() {
    let token = "a-very-long-administrators-token-9876";
    let shell = Shell::new().with("TOLLGATE_ADMIN_TOKEN", token);
    assert_eq!(
        listed(&shell, &[], "TOLLGATE_ADMIN_TOKEN"),
        is("…9876", "environment")
    );
    for form in ["table", "json"] {
        let ran = shell.run(&["config", "--output", form]);
        assert!(!ran.stdout.contains("administrators"), "{ran:?}");
    }
}

#[test]
fn a_malformed_value_stops_serve_with_one_line() {
    let shell = Shell::new().with("TOLLGATE_LISTEN", "everywhere");
    assert_eq!(
        shell.run(&["serve"]).failure(1),
        "error: TOLLGATE_LISTEN is 'everywhere'; write an address and port, such as 127.0.0.1:8080 or [::]:8080"
    );
    let shell = Shell::new().with("TOLLGATE_ADMIN_TOKEN", "hunter2");
    let ran = shell.run(&["serve"]);
    assert!(ran.failure(1).contains("TOLLGATE_ADMIN_TOKEN"), "{ran:?}");
    assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
    let flag = Shell::new().run(&["serve", "--usage-guardrail-mode=maybe"]);
    assert!(
        flag.failure(2).ends_with("; write enforce or observe"),
        "{flag:?}"
    );
}

#[test]
fn redis_without_an_address_stops_serve_and_says_where_to_write_it() {
    let shell = Shell::new().with("USAGE_GUARDRAIL_CACHE_BACKEND", "redis");
    let ran = shell.run(&["serve"]);
    let refusal = ran.failure(1);
    assert!(
        refusal.contains("set USAGE_GUARDRAIL_REDIS_URL or REDIS_URL"),
        "{refusal}"
    );
}

#[test]
fn an_unknown_variable_is_a_warning_with_the_nearest_name() {
    let shell = Shell::new()
        .with("TOLLGATE_LISTN", "127.0.0.1:1")
        .with("SOMEONE_ELSES", "x");
    let ran = shell.run(&["config"]);
    assert_eq!(ran.code, 0);
    assert_eq!(
        ran.stderr,
        "warning: unknown variable TOLLGATE_LISTN in the environment is ignored; did you mean TOLLGATE_LISTEN?\n"
    );
}

#[test]
fn the_nearest_name_has_the_words_of_the_unknown_one() {
    let ran = Shell::new().with("USAGE_MODE", "observe").run(&["config"]);
    assert!(
        ran.stderr.ends_with("did you mean USAGE_GUARDRAIL_MODE?\n"),
        "{ran:?}"
    );
}

#[test]
fn a_faulty_dot_env_is_named_by_line_without_its_content() {
    let shell = Shell::new();
    fs::write(
        shell.path().join(".env"),
        "LOG_FORMAT=json\nOPENAI_API_KEY sk-very-secret\n",
    )
    .unwrap();
    let ran = shell.run(&["config"]);
    assert!(ran.failure(1).starts_with("error: line 2 of "), "{ran:?}");
    assert!(!ran.stderr.contains("sk-very-secret"), "{ran:?}");
}
