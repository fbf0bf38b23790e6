use std::path::Path;

use super::*;

/// Every command with its path, such as `plan feature set`.
fn commands() -> Vec<(String, clap::Command)> {
    fn walk(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
        found.push((path.to_owned(), command.clone()));
        for subcommand in command
            .get_subcommands()
            .filter(|one| one.get_name() != "help")
        {
            walk(
                subcommand,
                &format!("{path} {}", subcommand.get_name()),
                found,
            );
        }
    }
    let mut parser = parser();
    parser.build();
    let mut found = vec![];
    walk(&parser, "tollgate", &mut found);
    found
}

fn parsed(line: &str) -> Result<Cli, clap::Error> {
    parse(line.split_whitespace().map(OsString::from).collect())
}

#[test]
fn the_parser_is_sound() {
    parser().debug_assert();
    whole_parser().debug_assert();
}

#[test]
fn every_help_has_an_example_that_parses() {
    for (path, command) in commands() {
        let help = command.get_after_long_help().or(command.get_after_help());
        let help = help.map(ToString::to_string).unwrap_or_default();
        let example = help
            .split("Example: ")
            .nth(1)
            .unwrap_or_else(|| panic!("{path} has no example"));
        let line = example.lines().next().unwrap();
        assert!(line.starts_with("tollgate "), "{path}: {line}");
        let line = line
            .split([">", "&"].map(|c| c.chars().next().unwrap()))
            .next()
            .unwrap();
        let line = line.replace("'Acme Inc'", "Acme").replace('\'', "");
        parsed(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

/// One text to read through: what is said of every command, in the order of the list.
#[test]
fn the_help_of_every_command_is_the_one_that_was_read() {
    let helps = commands().into_iter().map(|(path, mut command)| {
        let help = command.render_long_help();
        format!("$ {path} --help\n{help}")
    });
    let helps: Vec<String> = helps.collect();
    insta::assert_snapshot!("help", helps.join("\n\n"));
}

#[test]
fn every_help_reads_well() {
    for (path, command) in commands() {
        let about = command
            .get_about()
            .map(ToString::to_string)
            .unwrap_or_default();
        assert!(
            about.starts_with(|first: char| first.is_ascii_uppercase() || path == "tollgate"),
            "{path}: {about:?} begins with a capital"
        );
        assert!(
            path == "tollgate" || !about.ends_with('.'),
            "{path}: {about:?} is one line of a list, without a full stop"
        );
        assert!(!about.contains('\n'), "{path}: {about:?} is one line");
        for argument in command
            .get_arguments()
            .filter(|argument| !argument.is_hide_set())
        {
            let help = argument
                .get_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            let name = argument.get_id();
            assert!(!help.is_empty(), "{path}: {name} is not explained");
            assert!(
                help.starts_with(|first: char| !first.is_ascii_lowercase()) && !help.ends_with('.'),
                "{path}: {name}: {help:?} begins with a capital and has no full stop"
            );
        }
    }
}

#[test]
fn settings_are_flags_of_every_command_before_and_after_its_name() {
    for line in [
        "tollgate --data-dir /a --usage-guardrail-stream-cutoff=false plan list",
        "tollgate plan list --data-dir /a --usage-guardrail-stream-cutoff=false",
        "tollgate plan --data-dir /a list --usage-guardrail-stream-cutoff=false",
    ] {
        let cli = parsed(line).unwrap();
        let sources = Sources {
            flags: cli.settings,
            environment: [].into(),
            dot_env: [].into(),
            log_format: LogFormat::Json,
        };
        let config = Config::load(&sources).unwrap().config;
        assert_eq!(config.data_dir, Path::new("/a"), "{line}");
        assert_eq!(
            config.stream_cutoff,
            crate::config::StreamCutoff::Off,
            "{line}"
        );
    }
}

#[test]
fn a_switch_needs_no_value_and_takes_none_that_follows() {
    let cli = parsed("tollgate --enable-usage-guardrails serve").unwrap();
    assert!(matches!(cli.command, Command::Serve(_)));
}

#[test]
fn no_flag_takes_a_secret() {
    for flag in [
        "--openai-api-key=x",
        "--admin-token=x",
        "--stripe-secret-key=x",
        "--metrics-token=x",
    ] {
        assert!(
            parsed(&format!("tollgate {flag} config")).is_err(),
            "{flag}"
        );
    }
}

#[test]
fn what_destroys_asks_and_what_does_not_does_not() {
    let question = |line: &str| match parsed(line).unwrap().command {
        Command::Stored(command) => command.question(),
        other => panic!("{other:?}"),
    };
    let id = "0190b6f2c1d47a3e8f5b6c7d8e9f0a1b";
    for line in [
        "tollgate plan delete p".to_owned(),
        "tollgate plan feature remove p messages".to_owned(),
        "tollgate tenant cancel t".to_owned(),
        format!("tollgate tenant grant revoke gra_{id}"),
        format!("tollgate key revoke key_{id}"),
    ] {
        assert!(question(&line).is_some(), "{line}");
    }
    for line in [
        "tollgate plan list",
        "tollgate key create t --name n",
        "tollgate plan feature set p messages --hard 1",
    ] {
        assert_eq!(question(line), None, "{line}");
    }
}

#[test]
fn wrong_usage_is_told_from_refusals() {
    let flag = parsed("tollgate --listen x config").unwrap().settings;
    let sources = |flags, listen: &str| Sources {
        flags,
        environment: [("TOLLGATE_LISTEN".to_owned(), listen.into())].into(),
        dot_env: [].into(),
        log_format: LogFormat::Json,
    };
    let failed = |sources: &Sources| failure_of(&Config::load(sources).unwrap_err().into());
    assert_eq!(failed(&sources(flag, "127.0.0.1:1")).exit_code, 2);
    assert_eq!(failed(&sources(SettingFlags::default(), "x")).exit_code, 1);
}

#[test]
fn a_failure_is_one_line_with_a_way_on() {
    let missing = failure_of(&AdminError::not_found("plan", "gold").into());
    assert_eq!(
        missing.message,
        "there is no plan 'gold'; `tollgate plan list` shows them, `tollgate plan create` makes one"
    );
    assert_eq!(missing.exit_code, 1);
    let lines = failure_of(&anyhow::anyhow!("one\n  two\n"));
    assert_eq!(lines.message, "one two");
}

#[test]
fn a_command_that_starts_things_is_not_taken_from_others() {
    for line in ["serve", "config", "man"] {
        let error = stored_of(&[line.to_owned()]).unwrap_err().to_string();
        assert!(error.contains("need the stores"), "{line}: {error}");
    }
    let failure =
        failure_of(&stored_of(&["plan".to_owned(), "frobnicate".to_owned()]).unwrap_err());
    assert_eq!(failure.exit_code, 2);
    assert!(!failure.message.contains('\n'));
}
