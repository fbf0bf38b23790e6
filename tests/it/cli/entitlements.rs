use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::Shell;
use crate::support::Tollgate;

fn artifact(enabled: bool, hard: i64) -> String {
    json!({"enabled": enabled, "plans": [{"plan_code": "starter", "features": [
        {"feature_key": "messages", "display_name": "Messages", "unit": "requests", "is_metered": true,
         "soft_limit": 150, "hard_limit": hard},
        {"feature_key": "seats", "display_name": "Seats", "unit": "seats", "is_metered": false,
         "soft_limit": null, "hard_limit": 5}]}]})
    .to_string()
}

fn shell_with(artifact: &str) -> Shell {
    let shell = Shell::new();
    shell.json("plan create starter --name Starter --preset starter");
    fs::create_dir_all(shell.path().join("var/reports")).unwrap();
    fs::write(
        shell.path().join("var/reports/usage-entitlements.json"),
        artifact,
    )
    .unwrap();
    shell
}

#[test]
fn a_sync_says_what_it_did_and_a_second_one_that_nothing_changed() {
    let shell = shell_with(&artifact(true, 300));
    let dry = shell.line("usage sync-entitlements --dry-run");
    let changes = "path=var/reports/usage-entitlements.json\n\
                   enabled=true\n\
                   plan=starter inserted=1 updated=1 pruned=0 unchanged=0\n  \
                     messages.hard_limit: 200 → 300\n  \
                     seats: none → none/5 seats, not metered\n";
    assert_eq!(
        dry.stdout,
        format!("{changes}Dry-run complete. Re-run without --dry-run to apply changes.\n")
    );
    assert_eq!(
        shell.json("plan show starter")["features"][0]["hard_limit"],
        200
    );
    let done = shell.line("usage sync-entitlements");
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
    assert_eq!(
        done.stdout,
        format!("{changes}Synced usage entitlements for 1 plan(s).\n")
    );
    assert_eq!(
        shell.json("plan show starter")["features"][0]["hard_limit"],
        300
    );
    let again = shell.line("usage sync-entitlements --plan STARTER --prune-missing");
    assert!(
        again
            .stdout
            .contains("plan=starter inserted=0 updated=0 pruned=2 unchanged=2\n"),
        "{again:?}"
    );
    let body = shell.json("usage sync-entitlements --output json");
    assert_eq!(body["plans"][0]["unchanged"], 2);
    assert_eq!(body["path"], "var/reports/usage-entitlements.json");
}

#[test]
fn what_is_refused_leaves_one_line_and_changes_nothing() {
    let shell = shell_with(&artifact(false, 300));
    let before = shell.json("plan list");
    let refused = |line: &str, words: &[&str]| {
        let ran = shell.line(line);
        let failure = ran.failure(1).to_owned();
        for word in words {
            assert!(failure.contains(word), "{line}: {failure}");
        }
        assert_eq!(shell.json("plan list"), before, "{line}");
    };
    refused(
        "usage sync-entitlements",
        &["enabled is false", "--allow-disabled-artifact"],
    );
    let missing = "usage sync-entitlements --path nowhere.json";
    refused(missing, &["nowhere.json can't be read", "tollgate setup"]);
    fs::write(shell.path().join("bad.json"), artifact(true, 100)).unwrap();
    let bad = "usage sync-entitlements --path bad.json";
    refused(
        bad,
        &[
            "bad.json",
            "plans[0].features[0].soft_limit is 150; write at most the hard_limit, 100",
        ],
    );
    fs::write(shell.path().join("good.json"), artifact(true, 400)).unwrap();
    let gold = "usage sync-entitlements --path good.json --plan gold";
    refused(gold, &["no plan that matches gold"]);
    let stripe = "usage sync-entitlements --path good.json --stripe";
    refused(stripe, &["Stripe is off", "set ENABLE_STRIPE_USAGE=true"]);
    fs::write(
        shell.path().join("unknown.json"),
        artifact(true, 400).replace("starter", "gold"),
    )
    .unwrap();
    let unknown = "usage sync-entitlements --path unknown.json";
    refused(unknown, &["plans[0].plan_code is 'gold'", "--create-plans"]);
    let made = shell.line("usage sync-entitlements --path unknown.json --create-plans");
    assert!(made.stdout.contains("  name: none → Gold\n"), "{made:?}");
}

#[test]
fn an_unknown_field_is_a_warning_that_names_it() {
    let text = artifact(true, 300).replace("\"unit\":\"seats\"", "\"unti\":\"seats\"");
    let shell = shell_with(&text);
    let ran = shell.line("usage sync-entitlements");
    assert_eq!(ran.code, 0);
    assert_eq!(
        ran.stderr,
        "warning: field plans[0].features[1].unti is not known and is ignored\n"
    );
}

#[tokio::test]
async fn a_sync_beside_a_running_server_holds_within_a_second() {
    let gate = Tollgate::serve().start().await;
    let acme = gate.tenant("acme").create().await;
    acme.chat("one").await.expect_ok();
    let artifact = json!({"enabled": true, "plans": [{"plan_code": acme.plan, "features": [
        {"feature_key": "messages", "hard_limit": 1}]}]});
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join("limits.json");
    fs::write(&path, artifact.to_string()).unwrap();
    let run = gate
        .cli(&[
            "usage",
            "sync-entitlements",
            "--path",
            path.to_str().unwrap(),
        ])
        .await;
    assert_eq!(run.code, 0, "{run:?}");
    let synced = Instant::now();
    acme.chat("two").await.expect(429, "usage_limit_exceeded");
    assert!(synced.elapsed() < Duration::from_secs(1));
    gate.finish().await;
}

fn report(shell: &Shell, line: &str) -> (Value, String) {
    let ran = shell.line(line);
    assert_eq!(ran.code, 0, "{ran:?}");
    let read =
        |name: &str| fs::read_to_string(shell.path().join("var/reports").join(name)).unwrap();
    let json = serde_json::from_str(&read("usage-dashboard.json")).unwrap();
    (json, read("usage-dashboard.csv"))
}

/// Three tenants in November 2026, one of them canceled, with usage in the middle of an hour.
fn shell_with_usage() -> Shell {
    let shell = Shell::new();
    shell.json("plan create starter --name Starter --preset starter");
    shell.json("plan create daily --name Daily");
    shell.json("plan feature set daily messages --hard 100 --window day");
    shell.json("plan feature set daily messages --hard 40 --window lifetime");
    shell.json("plan create teams --name Teams");
    shell.json("plan feature set teams seats");
    for (slug, plan) in [("acme", "starter"), ("beta", "daily"), ("gone", "starter")] {
        shell.json(&format!("tenant create {slug} --name {slug}"));
        shell.json(&format!(
            "tenant subscribe {slug} --plan {plan} --period-start 2026-11-01T00:30:00Z --period-end 2026-12-01T00:30:00Z"
        ));
    }
    shell.json("tenant cancel gone --yes");
    for (number, tenant, feature, quantity, at) in [
        (1, "acme", "messages", 100, "2026-11-01T00:31:00Z"),
        (2, "acme", "messages", 20, "2026-11-24T10:15:00Z"),
        (3, "acme", "messages", 999, "2026-11-01T00:29:59Z"),
        (4, "acme", "seats", 3, "2026-11-24T10:15:00Z"),
        (5, "beta", "messages", 41, "2026-11-24T12:00:00Z"),
        (6, "gone", "messages", 7, "2026-11-24T10:15:00Z"),
    ] {
        shell.json(&format!(
            "usage record --tenant {tenant} --feature {feature} --quantity {quantity} --idempotency-key k{number} --at {at}"
        ));
    }
    shell
}

const AS_OF: &str = "--as-of 2026-11-24T12:00:00Z";

#[test]
fn a_report_holds_what_was_used_and_what_is_left() {
    let shell = shell_with_usage();
    let (json, csv) = report(&shell, &format!("usage export-report {AS_OF}"));
    let names: Vec<&String> = json.as_object().unwrap().keys().collect();
    assert_eq!(
        names,
        [
            "generated_at",
            "applied_period_start",
            "applied_period_end",
            "tenant_filters",
            "plan_filters",
            "feature_filters",
            "warn_threshold",
            "include_inactive",
            "tenant_count",
            "feature_count",
            "tenants"
        ]
    );
    assert_eq!(
        (&json["tenant_count"], &json["feature_count"]),
        (&json!(2), &json!(5))
    );
    assert_eq!(
        (&json["warn_threshold"], &json["applied_period_start"]),
        (&json!(0.8), &Value::Null)
    );
    let acme = &json["tenants"][0];
    assert_eq!(
        (&acme["tenant_slug"], &acme["plan_name"]),
        (&json!("acme"), &json!("Starter"))
    );
    assert_eq!(
        acme["features"][0],
        json!({"feature_key": "messages", "display_name": "Messages", "unit": "requests", "quantity": 120,
            "soft_limit": 150, "hard_limit": 200, "remaining_to_soft_limit": 30, "remaining_to_hard_limit": 80,
            "percent_of_soft_limit": 80.0, "percent_of_hard_limit": 60.0, "status": "approaching", "approaching": true,
            "usage_window_start": "2026-11-01T00:30:00Z", "usage_window_end": "2026-12-01T00:30:00Z"})
    );
    assert_eq!(
        acme["features"][3]["feature_key"], "seats",
        "used, though its plan has it not"
    );
    let beta = &json["tenants"][1]["features"][0];
    assert_eq!(
        (&beta["hard_limit"], &beta["usage_window_end"]),
        (&json!(40), &Value::Null),
        "its longest limit"
    );
    assert_eq!(beta["status"], "hard_limit_exceeded");

    let mut rows = csv.split("\r\n");
    assert_eq!(
        rows.next(),
        Some(
            "tenant_id,tenant_slug,tenant_name,plan_code,plan_name,subscription_status,feature_key,\
             feature_display_name,unit,quantity,soft_limit,hard_limit,remaining_to_soft_limit,\
             remaining_to_hard_limit,percent_of_soft_limit,percent_of_hard_limit,status,approaching,\
             window_start,window_end,usage_window_start,usage_window_end"
        )
    );
    let first = rows.next().unwrap().split_once(',').unwrap().1;
    assert_eq!(
        first,
        "acme,acme,starter,Starter,active,messages,Messages,requests,120,150,200,30,80,80.00,60.00,approaching,true,\
         2026-11-01T00:30:00Z,2026-12-01T00:30:00Z,2026-11-01T00:30:00Z,2026-12-01T00:30:00Z"
    );
    assert_eq!(csv.matches("\r\n").count(), 6);
}

#[test]
fn a_report_ends_with_how_many_and_who_is_near() {
    let shell = shell_with_usage();
    let ran = shell.line(&format!("usage export-report {AS_OF}"));
    assert_eq!(
        ran.stdout,
        "json=var/reports/usage-dashboard.json\n\
         csv=var/reports/usage-dashboard.csv\n\
         Usage report generated for 2 tenant(s).\n  \
           acme messages: 120 of 200 requests (60.00 %), approaching\n  \
           beta messages: 41 of 40 requests (102.50 %), hard_limit_exceeded\n"
    );
    // It has no table: each line is a cell.
    let ran = shell.line(&format!("usage export-report {AS_OF} --output csv"));
    assert!(
        ran.stdout
            .starts_with("json=var/reports/usage-dashboard.json\r\n"),
        "{ran:?}"
    );
}

#[test]
fn a_report_as_of_an_instant_is_the_same_whatever_comes_after() {
    let shell = shell_with_usage();
    let line = format!("usage export-report {AS_OF}");
    let (mut first, csv) = report(&shell, &line);
    shell.json("usage record --tenant acme --feature messages --quantity 5 --idempotency-key later --at 2026-11-24T12:00:01Z");
    let (mut second, again) = report(&shell, &line);
    assert_eq!(csv, again);
    first["generated_at"] = Value::Null;
    second["generated_at"] = Value::Null;
    assert_eq!(first.to_string(), second.to_string());
    shell.json("usage record --tenant acme --feature messages --quantity 5 --idempotency-key within --at 2026-11-24T12:00:00.5Z");
    let (third, _) = report(&shell, &line);
    assert_eq!(third["tenants"][0]["features"][0]["quantity"], 125);
}

#[test]
fn a_credit_beyond_what_was_used_is_reported_as_nothing_used() {
    let shell = shell_with_usage();
    shell.json("usage correct --tenant acme --feature messages --quantity -500 --reason credit");
    let line = "usage export-report --tenant acme --feature messages";
    let (json, _) = report(&shell, line);
    let row = &json["tenants"][0]["features"][0];
    assert_eq!(row["quantity"], 0, "{row}");
    assert_eq!(row["remaining_to_hard_limit"], row["hard_limit"], "{row}");
    assert!(row["hard_limit"].is_i64(), "{row}");
}

#[test]
fn a_report_is_narrowed_by_what_is_asked() {
    let shell = shell_with_usage();
    let slugs = |arguments: &str| {
        let (json, _) = report(&shell, &format!("usage export-report {AS_OF} {arguments}"));
        let tenants = json["tenants"].as_array().unwrap().iter();
        tenants
            .map(|tenant| tenant["tenant_slug"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(slugs("--include-inactive"), ["acme", "beta", "gone"]);
    assert_eq!(slugs("--tenant beta,acme --tenant gone"), ["acme", "beta"]);
    assert_eq!(slugs("--plan STARTER"), ["acme"]);
    let (json, csv) = report(
        &shell,
        &format!("usage export-report {AS_OF} --feature messages,seats --tenant acme"),
    );
    assert_eq!(json["feature_count"], 2);
    assert_eq!(json["feature_filters"], json!(["messages", "seats"]));
    assert_eq!(csv.matches("\r\n").count(), 3);
    let period = "--period-start 2026-11-24T10:00:00Z --period-end 2026-11-24T11:00:00Z";
    let (json, _) = report(&shell, &format!("usage export-report {period}"));
    assert_eq!(json["applied_period_start"], "2026-11-24T10:00:00Z");
    assert_eq!(json["tenants"][0]["features"][0]["quantity"], 20);
    let (json, _) = report(
        &shell,
        &format!("usage export-report {AS_OF} --warn-threshold 0.81"),
    );
    assert_eq!(json["tenants"][0]["features"][0]["status"], "ok");
}

#[test]
fn a_report_that_can_not_be_made_says_why() {
    let shell = shell_with_usage();
    for (line, words) in [
        (
            "usage export-report --tenant nobody",
            "there is no tenant 'nobody'",
        ),
        ("usage export-report --plan gold", "there is no plan 'gold'"),
        (
            "usage export-report --output-json var/tollgate.db/x.json",
            "can't be written to",
        ),
        (
            "usage export-report --period-start 2026-11-02T00:00:00Z --period-end 2026-11-01T00:00:00Z",
            "period_end is '2026-11-01T00:00:00Z'",
        ),
    ] {
        let ran = shell.line(line);
        assert!(ran.failure(1).contains(words), "{ran:?}");
    }
    let wrong = shell.line("usage export-report --warn-threshold 80");
    assert_eq!(wrong.code, 2, "{wrong:?}");
    assert!(
        !shell
            .path()
            .join("var/reports/usage-dashboard.json")
            .exists()
    );
}

#[test]
fn names_that_a_spreadsheet_would_run_are_defused_and_quoted() {
    let shell = Shell::new();
    shell.json("plan create p --name P --preset free");
    let name = "=HYPERLINK(\"http://x\"),\"a\"";
    let made = shell.run(&["tenant", "create", "evil", "--name", name, "--plan", "p"]);
    assert_eq!(made.code, 0, "{made:?}");
    let (json, csv) = report(&shell, "usage export-report");
    assert_eq!(
        json["tenants"][0]["tenant_name"], name,
        "JSON is no spreadsheet"
    );
    assert!(
        csv.contains("\"'=HYPERLINK(\"\"http://x\"\"),\"\"a\"\"\""),
        "{csv}"
    );
}

#[tokio::test]
async fn a_report_beside_a_server_holds_the_usage_of_an_answer_just_given() {
    let gate = Tollgate::serve().start().await;
    let acme = gate.tenant("acme").create().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join("report.json");
    for count in 1..=3 {
        acme.chat("hi").await.expect_ok();
        let run = gate
            .cli(&[
                "usage",
                "export-report",
                "--no-csv",
                "--output-json",
                path.to_str().unwrap(),
            ])
            .await;
        assert_eq!(run.code, 0, "{run:?}");
        let json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(json["tenants"][0]["features"][0]["quantity"], count);
    }
    gate.finish().await;
}
