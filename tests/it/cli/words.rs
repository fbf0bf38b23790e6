use super::Shell;

#[test]
fn help_and_version_go_to_stdout() {
    let shell = Shell::new();
    for words in [
        &["--help"][..],
        &["--version"],
        &["plan", "feature", "set", "--help"],
        &["help", "key"],
    ] {
        let ran = shell.run(words);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{words:?}");
        assert!(ran.stdout.contains("tollgate"), "{words:?}: {ran:?}");
    }
}

#[test]
fn wrong_usage_is_exit_code_2_and_nothing_on_stdout() {
    let shell = Shell::new();
    for words in [
        &["frobnicate"][..],
        &["plan", "create", "p"],
        &["plan", "set", "p"],
        &["plan", "feature", "set", "p", "messages", "--hard", "-1"],
        &["tenant", "create", "Not A Slug", "--name", "x"],
        &["config", "--output", "yaml"],
        &[
            "tenant",
            "subscribe",
            "t",
            "--plan",
            "p",
            "--period-start",
            "2026-01-01T00:00:00Z",
        ],
        &["--openai-api-key=sk-1", "config"],
        &[],
    ] {
        let ran = shell.run(words);
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (2, ""),
            "{words:?}: {ran:?}"
        );
        assert!(!ran.stderr.is_empty(), "{words:?}");
    }
}

#[test]
fn completions_and_the_manual_need_no_settings_and_no_data_dir() {
    let shell = Shell::new().with("TOLLGATE_LISTEN", "malformed");
    for shell_name in ["bash", "zsh", "fish"] {
        let script = shell.run(&["completions", shell_name]);
        assert_eq!(script.code, 0, "{script:?}");
        assert!(
            script.stdout.contains("usage-guardrail-mode"),
            "settings are completed in {shell_name}"
        );
    }
    let manual = shell.run(&["man"]);
    assert_eq!(manual.code, 0);
    for page in [".TH tollgate 1", ".TH tollgate-plan-feature-set 1"] {
        assert!(manual.stdout.contains(page), "no {page}");
    }
    assert_eq!(
        std::fs::read_dir(shell.path()).unwrap().count(),
        0,
        "nothing was made"
    );
}

#[test]
fn what_destroys_is_refused_where_nobody_can_be_asked() {
    let shell = Shell::new();
    let refused = shell.line("plan delete starter");
    assert_eq!(
        refused.failure(1),
        "error: Delete plan 'starter' with all its features? There is no terminal to ask on; add --yes to do it"
    );
}

#[test]
fn colour_is_never_sent_where_there_is_no_terminal() {
    let shell = Shell::new();
    for words in [
        &["--help"][..],
        &["config", "--output", "table"],
        &["frobnicate"],
    ] {
        let ran = shell.run(words);
        assert!(
            !format!("{}{}", ran.stdout, ran.stderr).contains('\u{1b}'),
            "{words:?}"
        );
    }
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let shell = Shell::new();
    for words in [
        &["--help"][..],
        &["serve", "--help"],
        &["man"],
        &["completions", "bash"],
        &["config", "--output", "json"],
        &["plan", "list"],
        &["migrate"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = shell.command(words);
        let output = command.stdout(writer).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*stderr), (Some(0), ""), "{words:?}");
    }
}

#[test]
fn json_is_for_pipes_and_tables_where_they_are_asked_for() {
    let shell = Shell::new();
    shell.json("plan create starter --name Starter --preset starter");
    for line in [
        "plan list",
        "plan show starter",
        "tenant list",
        "config",
        "doctor",
        "migrate",
    ] {
        let ran = shell.line(line);
        assert!(ran.stdout.starts_with('{'), "{line}: {ran:?}");
        let asked = shell.line(&format!("{line} --output json"));
        assert!(
            asked.stdout.starts_with('{') && asked.stdout.ends_with("}\n"),
            "{line}: {asked:?}"
        );
        let table = shell.line(&format!("{line} --output table"));
        assert!(
            !table.stdout.contains('{') && table.stdout.ends_with('\n'),
            "{line}: {table:?}"
        );
    }
}

#[test]
fn a_data_dir_that_cannot_be_used_is_named() {
    let shell = Shell::new();
    let file = shell.path().join("file");
    std::fs::write(&file, "").unwrap();
    let ran = shell.run(&["plan", "list", "--data-dir", "file"]);
    assert!(
        ran.failure(1)
            .starts_with("error: data dir file can't be used"),
        "{ran:?}"
    );
}
