use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::Shell;
use crate::support::{PATIENCE, Tollgate};

/// A terminal that a person sits at: a window of tmux with the wizard in it.
struct Screen {
    socket: String,
    shell: Shell,
}

impl Screen {
    fn of(shell: Shell, words: &str) -> Self {
        let socket = format!("tollgate-{}", tollgate::clock::new_id());
        let screen = Self { socket, shell };
        let line = format!(
            "cd {} && env -i TERM=tmux-256color {} {words}; echo \"exit code $?\"; exec sleep 1000",
            screen.shell.path().display(),
            env!("CARGO_BIN_EXE_tollgate")
        );
        screen.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            "180",
            "-y",
            "60",
            "sh",
            "-c",
            &line,
        ]);
        screen
    }

    fn tmux(&self, words: &[&str]) -> Output {
        let output = Command::new("tmux")
            .args(["-L", &self.socket])
            .args(words)
            .output()
            .expect("tmux is there (`make deps` installs it)");
        assert!(output.status.success(), "{words:?}: {output:?}");
        output
    }

    fn text(&self) -> String {
        let output = self.tmux(&["capture-pane", "-p", "-S", "-200"]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits until the last question on the screen is the one with this key.
    #[track_caller]
    fn asks(&self, key: &str) -> &Self {
        self.shows(&format!("? {key}: "), |text, wanted| {
            text.lines()
                .rev()
                .find(|line| line.starts_with("? "))
                .is_some_and(|line| line.starts_with(wanted))
        })
    }

    #[track_caller]
    fn says(&self, wanted: &str) -> &Self {
        self.shows(wanted, |text, wanted| text.contains(wanted))
    }

    #[track_caller]
    fn shows(&self, wanted: &str, holds: impl Fn(&str, &str) -> bool) -> &Self {
        let deadline = Instant::now() + PATIENCE;
        while !holds(&self.text(), wanted) {
            assert!(
                Instant::now() < deadline,
                "no '{wanted}' on the screen:\n{}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        self
    }

    fn keys(&self, keys: &[&str]) -> &Self {
        self.tmux(&[&["send-keys"], keys].concat());
        self
    }

    fn enter(&self) -> &Self {
        self.keys(&["Enter"])
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = Command::new("tmux")
            .args(["-L", &self.socket, "kill-server"])
            .output();
    }
}

fn dot_env(shell: &Shell) -> String {
    fs::read_to_string(shell.path().join(".env")).unwrap()
}

fn artifact(shell: &Shell) -> Value {
    let path = shell.path().join("var/reports/usage-entitlements.json");
    let text = fs::read_to_string(path).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    assert!(
        text.ends_with("}\n") && text.starts_with("{\n  \"enabled\""),
        "{text}"
    );
    value
}

const LIMITS_OF_STARTER: [&str; 6] = [
    "USAGE_STARTER_MESSAGES_SOFT_LIMIT",
    "USAGE_STARTER_MESSAGES_HARD_LIMIT",
    "USAGE_STARTER_INPUT_TOKENS_SOFT_LIMIT",
    "USAGE_STARTER_INPUT_TOKENS_HARD_LIMIT",
    "USAGE_STARTER_OUTPUT_TOKENS_SOFT_LIMIT",
    "USAGE_STARTER_OUTPUT_TOKENS_HARD_LIMIT",
];

#[test]
fn a_person_who_takes_every_default_has_limits_that_hold() {
    let screen = Screen::of(Shell::new(), "setup --sections usage");
    screen.asks("ENABLE_USAGE_GUARDRAILS").keys(&["y", "Enter"]);
    for key in [
        "USAGE_GUARDRAIL_CACHE_TTL_SECONDS",
        "USAGE_GUARDRAIL_SOFT_LIMIT_MODE",
        "USAGE_GUARDRAIL_CACHE_BACKEND",
        "USAGE_DIMENSIONS",
        "USAGE_PLAN_CODES",
    ] {
        screen.asks(key).enter();
    }
    for key in LIMITS_OF_STARTER {
        screen.asks(key).enter();
    }
    for key in LIMITS_OF_STARTER {
        screen.asks(&key.replace("STARTER", "PRO")).enter();
    }
    screen.says("? Write this?").enter();
    screen
        .says("? Bring these limits into the catalogue now?")
        .enter();
    screen
        .says("Synced usage entitlements for 2 plan(s).")
        .says("exit code 0");
    let shell = &screen.shell;
    assert!(
        dot_env(shell).contains("ENABLE_USAGE_GUARDRAILS=true\n"),
        "{}",
        dot_env(shell)
    );
    let mode = fs::metadata(shell.path().join(".env"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let made = artifact(shell);
    assert_eq!(made["plans"][1]["features"][2]["hard_limit"], 600_000);
    assert_eq!(
        shell.json("plan show starter")["features"][0]["hard_limit"],
        200
    );
}

#[test]
fn a_person_who_opts_out_keeps_the_plans() {
    let shell = Shell::new();
    fs::create_dir_all(shell.path().join("var/reports")).unwrap();
    let there = json!({"enabled": true, "plans": [{"plan_code": "gold", "features": []}]});
    let path = shell.path().join("var/reports/usage-entitlements.json");
    fs::write(&path, there.to_string()).unwrap();
    fs::write(
        shell.path().join(".env"),
        "# mine\nENABLE_USAGE_GUARDRAILS=true # on\nOTHER=1\n",
    )
    .unwrap();
    let screen = Screen::of(shell, "setup --sections usage");
    screen.asks("ENABLE_USAGE_GUARDRAILS").keys(&["n", "Enter"]);
    screen.says("? Write this?").enter();
    screen.says("exit code 0");
    assert_eq!(
        dot_env(&screen.shell),
        "# mine\nENABLE_USAGE_GUARDRAILS=false # on\nOTHER=1\n"
    );
    let made = artifact(&screen.shell);
    assert_eq!(
        (&made["enabled"], &made["plans"]),
        (&json!(false), &there["plans"])
    );
}

#[test]
fn a_person_may_go_back_and_is_told_of_a_wrong_value() {
    let screen = Screen::of(Shell::new(), "setup --sections usage,admin");
    screen.asks("ENABLE_USAGE_GUARDRAILS").keys(&["y", "Enter"]);
    screen
        .asks("USAGE_GUARDRAIL_CACHE_TTL_SECONDS")
        .keys(&["soon", "Enter"]);
    screen
        .says("whole number of seconds from 0 to 86400")
        .keys(&["BSpace", "BSpace", "BSpace", "BSpace", "9", "Enter"]);
    screen
        .asks("USAGE_GUARDRAIL_SOFT_LIMIT_MODE")
        .keys(&["Escape"]);
    screen
        .asks("USAGE_GUARDRAIL_CACHE_TTL_SECONDS")
        .keys(&["Enter"]);
    screen
        .asks("USAGE_GUARDRAIL_SOFT_LIMIT_MODE")
        .keys(&["Down", "Enter"]);
    screen
        .asks("USAGE_GUARDRAIL_CACHE_BACKEND")
        .keys(&["Up", "Enter"]);
    screen.says("is not in this version yet");
    screen.asks("USAGE_GUARDRAIL_CACHE_BACKEND").enter();
    screen.asks("USAGE_DIMENSIONS").keys(&["messages", "Enter"]);
    screen.asks("USAGE_PLAN_CODES").keys(&["free", "Enter"]);
    screen.asks("USAGE_FREE_MESSAGES_SOFT_LIMIT").enter();
    screen
        .asks("USAGE_FREE_MESSAGES_HARD_LIMIT")
        .keys(&["19", "Enter"]);
    screen
        .says("the soft limit 20 is above it")
        .keys(&["BSpace", "BSpace", "none", "Enter"]);
    screen.asks("TOLLGATE_LISTEN").enter();
    screen.asks("TOLLGATE_ADMIN_TOKEN").enter();
    screen.says("? Write this?").keys(&["n", "Enter"]);
    screen.says("nothing was written").says("exit code 1");
    assert_eq!(fs::read_dir(screen.shell.path()).unwrap().count(), 0);
}

#[test]
fn without_a_terminal_nobody_is_asked() {
    let shell = Shell::new();
    let ran = shell.line("setup");
    assert!(ran.failure(1).contains("--non-interactive"), "{ran:?}");
}

const USAGE: &str = "setup --sections usage --non-interactive --var ENABLE_USAGE_GUARDRAILS=true";

#[test]
fn answers_given_beforehand_are_written_and_applied() {
    let shell = Shell::new();
    fs::write(
        shell.path().join("a.json"),
        r#"{"usage_plan_codes": "pro-eu,starter", "USAGE_DIMENSIONS": "messages", "USAGE_PRO_EU_MESSAGES_HARD_LIMIT": 7,
            "USAGE_STARTER_MESSAGES_SOFT_LIMIT": null, "USAGE_STARTER_MESSAGES_HARD_LIMIT": ""}"#,
    )
    .unwrap();
    fs::write(
        shell.path().join("b.json"),
        r#"{"USAGE_PRO_EU_MESSAGES_HARD_LIMIT": 8, "USAGE_GUARDRAIL_CACHE_TTL_SECONDS": 5}"#,
    )
    .unwrap();
    let ran = shell.line(&format!(
        "{USAGE} --answers-file a.json --answers-file b.json --var usage_guardrail_soft_limit_mode=block --export-answers out.json --summary-path summary.json"
    ));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stdout
            .contains("Synced usage entitlements for 2 plan(s).\n"),
        "{ran:?}"
    );
    assert_eq!(
        dot_env(&shell),
        "ENABLE_USAGE_GUARDRAILS=true\nUSAGE_GUARDRAIL_CACHE_BACKEND=redb\nUSAGE_GUARDRAIL_CACHE_TTL_SECONDS=5\nUSAGE_GUARDRAIL_SOFT_LIMIT_MODE=block\n"
    );
    let plans = artifact(&shell)["plans"].clone();
    let limits = |plan: usize| {
        (
            plans[plan]["features"][0]["soft_limit"].clone(),
            plans[plan]["features"][0]["hard_limit"].clone(),
        )
    };
    assert_eq!(
        limits(0),
        (Value::Null, json!(8)),
        "a later file wins; without a preset: unlimited"
    );
    assert_eq!(
        limits(1),
        (json!(150), Value::Null),
        "null is the default, blank is unlimited"
    );
    let summary: Value =
        serde_json::from_str(&fs::read_to_string(shell.path().join("summary.json")).unwrap())
            .unwrap();
    assert_eq!(
        (&summary["written"], &summary["applied"]),
        (&json!(true), &json!(true))
    );

    // What was exported gives the same again, and nothing changes.
    let again = shell.line("setup --sections usage --non-interactive --answers-file out.json");
    assert!(again.stdout.contains(".env: unchanged\n"), "{again:?}");
    assert!(
        again
            .stdout
            .contains("inserted=0 updated=0 pruned=0 unchanged=1"),
        "{again:?}"
    );
}

#[test]
fn a_dry_run_writes_nothing() {
    let shell = Shell::new();
    let ran = shell.line(&format!("{USAGE} --dry-run"));
    assert!(
        ran.stdout
            .contains("  starter.messages.hard_limit: none → 200\n"),
        "{ran:?}"
    );
    assert!(
        ran.stdout
            .ends_with("Dry-run complete. Nothing was written.\n"),
        "{ran:?}"
    );
    assert_eq!(fs::read_dir(shell.path()).unwrap().count(), 0);
}

#[test]
fn what_is_wrong_with_answers_is_named_and_nothing_is_written() {
    let shell = Shell::new();
    for (line, words) in [
        (
            "setup --non-interactive",
            "the answer OPENAI_API_KEY is missing",
        ),
        (
            "setup --non-interactive --var USAGE_BOGUS=1",
            "USAGE_BOGUS, which no question asks for",
        ),
        (
            &format!("{USAGE} --var USAGE_STARTER_MESSAGES_SOFT_LIMIT=300"),
            "USAGE_STARTER_MESSAGES_HARD_LIMIT is '200'; the soft limit 300 is above it",
        ),
        (
            &format!("{USAGE} --var USAGE_PLAN_CODES=a-b,a.b"),
            "USAGE_PLAN_CODES is 'a-b,a.b'; 'a-b' and 'a.b' would both be A_B",
        ),
        (
            &format!("{USAGE} --var USAGE_GUARDRAIL_CACHE_BACKEND=redis"),
            "is not in this version yet",
        ),
        (
            "setup --sections storage --non-interactive --var DATABASE_URL=postgres://u:hunter22@h/db",
            "is not in this version yet",
        ),
        (
            "setup --sections stripe --non-interactive --var ENABLE_STRIPE_USAGE=true",
            "is not in this version yet",
        ),
        (
            "setup --sections admin --non-interactive --var TOLLGATE_ADMIN_TOKEN=hunter22",
            "TOLLGATE_ADMIN_TOKEN can't be used",
        ),
        (
            "setup --non-interactive --answers-file nowhere.json",
            "nowhere.json can't be read",
        ),
    ] {
        let ran = shell.line(line);
        assert!(ran.failure(1).contains(words), "{line}: {ran:?}");
        assert!(!ran.stderr.contains("hunter22"), "{ran:?}");
        assert_eq!(fs::read_dir(shell.path()).unwrap().count(), 0, "{line}");
    }
}

#[test]
fn no_secret_reaches_summary_or_exported_answers() {
    let shell = Shell::new();
    let token = "an-administrators-token-of-36-letters";
    let ran = shell.line(&format!(
        "setup --sections provider,admin --non-interactive --var TOLLGATE_PROVIDER=openai --var OPENAI_API_KEY=sk-plainly-fake-key \
         --var OPENAI_BASE_URL=http://127.0.0.1:1/v1 --var TOLLGATE_ADMIN_TOKEN={token} --export-answers out.json --summary-path summary.json"
    ));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stderr
            .contains("http://127.0.0.1:1/v1/models can't be read: "),
        "{ran:?}"
    );
    let read = |name: &str| fs::read_to_string(shell.path().join(name)).unwrap();
    for text in [
        &ran.stdout,
        &ran.stderr,
        &read("out.json"),
        &read("summary.json"),
    ] {
        assert!(
            !text.contains("plainly-fake") && !text.contains("administrators-token"),
            "{text}"
        );
    }
    assert!(read(".env").contains("OPENAI_API_KEY=sk-plainly-fake-key\n"));
    let answers: Value = serde_json::from_str(&read("out.json")).unwrap();
    assert_eq!(answers["OPENAI_API_KEY"], Value::Null);
    // The key that is there is kept by a blank answer.
    let again =
        shell.line("setup --sections provider,admin --non-interactive --answers-file out.json");
    assert_eq!(again.code, 0, "{again:?}");
    assert!(again.stdout.contains(".env: unchanged\n"), "{again:?}");
}

#[tokio::test]
async fn a_server_enforces_what_was_chosen() {
    let settings = Tollgate::serve();
    let chosen = settings
        .cli(&[
            "setup",
            "--sections",
            "usage",
            "--non-interactive",
            "--var",
            "ENABLE_USAGE_GUARDRAILS=true",
            "--var",
            "USAGE_PLAN_CODES=tiny",
            "--var",
            "USAGE_TINY_MESSAGES_HARD_LIMIT=1",
        ])
        .await;
    assert_eq!(chosen.code, 0, "{chosen:?}");
    let gate = settings.start().await;
    gate.cli_json(&[
        "tenant", "create", "acme", "--name", "Acme", "--plan", "tiny",
    ])
    .await;
    let key = gate
        .cli_json(&["key", "create", "acme", "--name", "k"])
        .await["key"]
        .clone();
    let acme = crate::support::Tenant::known(&gate, key.as_str().unwrap());
    acme.chat("one").await.expect_ok();
    acme.chat("two").await.expect(429, "usage_limit_exceeded");
    gate.finish().await;
}
