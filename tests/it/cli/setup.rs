use std::{fs, os::unix::fs::PermissionsExt as _};

use serde_json::{Value, json};

use super::{Shell, screen::Screen};
use crate::support::{FakeOpenAi, Reply, Tollgate};

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
    screen.asks("USAGE_GUARDRAIL_REDIS_URL").keys(&["Escape"]);
    screen
        .asks("USAGE_GUARDRAIL_CACHE_BACKEND")
        .keys(&["Down", "Enter"]);
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
            "setup --sections storage --non-interactive --var DATABASE_URL=postgres://u:hunter22@h/db?sslmode=maybe",
            "DATABASE_URL",
        ),
        (
            "setup --sections stripe --non-interactive --var ENABLE_STRIPE_USAGE=true",
            "STRIPE_SECRET_KEY",
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

fn reply(status: u16, body: &str) -> Reply {
    let headers = vec![("content-type", "application/json")];
    Reply::Raw(status, headers, body.to_owned())
}

/// The wizard, where the upstream lives in this test: it must not hold up the test's runtime.
async fn set_up(shell: Shell, line: String) -> super::Ran {
    tokio::task::spawn_blocking(move || shell.line(&line))
        .await
        .unwrap()
}

#[tokio::test]
async fn an_upstream_that_was_entered_is_tried_and_what_it_says_is_told() {
    let upstream = FakeOpenAi::start().await;
    let line = format!(
        "setup --sections provider --non-interactive --var TOLLGATE_PROVIDER=openai --var OPENAI_API_KEY=sk-EXAMPLE \
         --var OPENAI_BASE_URL={} --summary-path summary.json",
        upstream.base_url()
    );
    let models = r#"{"object":"list","data":[{"id":"gpt-5.1","object":"model"}]}"#;
    upstream.next(reply(200, models));
    let answered = set_up(Shell::new(), line.clone()).await;
    assert_eq!(answered.code, 0, "{answered:?}");
    let said = format!("{}{}", answered.stdout, answered.stderr);
    let found = format!("{} answers, with 1 models", upstream.base_url());
    assert!(said.contains(&found), "{said}");
    assert_eq!(
        (upstream.calls(), upstream.last().body.as_str()),
        (1, ""),
        "it was asked once, and for no answer of a model"
    );

    for (code, words) in [
        (401, "the upstream refuses the key (401"),
        (503, "the upstream answers 503"),
    ] {
        upstream.next(reply(code, "{}"));
        let refused = set_up(Shell::new(), line.clone()).await;
        assert!(refused.stderr.contains(words), "{refused:?}");
        assert!(!refused.stderr.contains("sk-EXAMPLE"), "{refused:?}");
    }
}

#[test]
fn what_is_there_already_is_offered_and_only_what_was_changed_is_written() {
    let shell = Shell::new();
    let first = shell.line(&format!(
        "{USAGE} --var USAGE_PLAN_CODES=gold --var USAGE_DIMENSIONS=messages --var USAGE_GOLD_MESSAGES_HARD_LIMIT=9 \
         --var USAGE_GUARDRAIL_CACHE_TTL_SECONDS=7"
    ));
    assert_eq!(first.code, 0, "{first:?}");
    let path = shell.path().join(".env");
    let with_a_line_of_mine = format!("# mine\nMINE=1\n{}", dot_env(&shell));
    fs::write(&path, &with_a_line_of_mine).unwrap();

    let screen = Screen::of(shell, "setup --sections usage");
    // Every default is what is there: guardrails on, seven seconds, one plan, its limit.
    for key in [
        "ENABLE_USAGE_GUARDRAILS",
        "USAGE_GUARDRAIL_CACHE_TTL_SECONDS",
        "USAGE_GUARDRAIL_SOFT_LIMIT_MODE",
        "USAGE_GUARDRAIL_CACHE_BACKEND",
    ] {
        screen.asks(key).enter();
    }
    screen.asks("USAGE_DIMENSIONS").keys(&["messages", "Enter"]);
    screen.asks("USAGE_PLAN_CODES").says("gold").enter();
    screen.asks("USAGE_GOLD_MESSAGES_SOFT_LIMIT").enter();
    screen
        .asks("USAGE_GOLD_MESSAGES_HARD_LIMIT")
        .keys(&["8", "Enter"]);
    screen.says("? Write this?").says("9 → 8").enter();
    screen
        .says("? Bring these limits into the catalogue now?")
        .enter();
    screen.says("exit code 0");
    assert_eq!(dot_env(&screen.shell), with_a_line_of_mine);
    assert_eq!(
        artifact(&screen.shell)["plans"][0]["features"][0]["hard_limit"],
        8
    );
    let plan = screen.shell.json("plan show gold");
    assert_eq!(plan["features"][0]["hard_limit"], 8);
}
