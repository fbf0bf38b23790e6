use std::{os::unix::fs::PermissionsExt as _, process::Stdio};

use serde_json::json;

use super::Shell;

/// A shell with plan `starter` and tenant `acme` on it.
fn with_acme() -> Shell {
    let shell = Shell::new();
    shell.json("plan create starter --name Starter --preset starter");
    shell.json("tenant create acme --name Acme --plan starter");
    shell
}

#[test]
fn a_plan_is_made_shown_changed_and_deleted() {
    let shell = Shell::new();
    assert_eq!(shell.json("plan list"), json!({"items": []}));
    let plan = shell.json("plan create team --name Team --preset starter");
    assert_eq!(plan["plan_code"], "team");
    assert_eq!(plan["version"], 1);
    assert_eq!(plan["features"][0]["feature_key"], "messages");
    assert_eq!(plan["features"][0]["hard_limit"], 200);
    assert_eq!(
        plan["features"][0]["limits"],
        json!([
            {"scope": "tenant", "window": "period", "soft_limit": 150, "hard_limit": 200}
        ])
    );
    assert_eq!(shell.json("plan show team"), plan);

    let changed = shell.json("plan set team --name Crew --allowed-models gpt-5.1*,llama-*");
    assert_eq!(changed["allowed_models"], json!(["gpt-5.1*", "llama-*"]));
    assert_eq!(
        (&changed["name"], &changed["version"]),
        (&json!("Crew"), &json!(2))
    );
    assert_eq!(
        shell.json("plan set team --allowed-models any")["allowed_models"],
        json!([])
    );

    assert_eq!(shell.json("plan delete team --yes")["deleted"], true);
    assert_eq!(shell.json("plan list"), json!({"items": []}));
    let gone = shell.line("plan show team");
    assert!(
        gone.failure(1)
            .starts_with("error: there is no plan 'team'; `tollgate plan list`"),
        "{gone:?}"
    );
}

#[test]
fn a_plans_code_is_taken_once() {
    let shell = Shell::new();
    shell.json("plan create team --name Team");
    let again = shell.line("plan create team --name Team");
    assert!(
        again
            .failure(1)
            .starts_with("error: plan 'team' exists already; "),
        "{again:?}"
    );
}

#[test]
fn one_limit_of_one_feature_is_set_and_taken_away() {
    let shell = with_acme();
    let plan = shell.json("plan feature set starter messages --hard 300");
    assert_eq!(
        plan["features"][0]["soft_limit"], 150,
        "what is not named stays"
    );
    assert_eq!(plan["features"][0]["hard_limit"], 300);
    let plan = shell.json("plan feature set starter messages --hard 10 --scope user --window day");
    assert_eq!(plan["features"][0]["limits"].as_array().unwrap().len(), 2);
    let plan = shell.json("plan feature set starter messages --soft none");
    assert_eq!(plan["features"][0]["soft_limit"], json!(null));
    let plan = shell.json("plan feature remove starter messages --scope user --window day --yes");
    assert_eq!(plan["features"][0]["limits"].as_array().unwrap().len(), 1);
    let plan = shell.json("plan feature set starter seats --hard 5 --not-metered --unit seats");
    assert_eq!(plan["features"][3]["is_metered"], false);
    let plan = shell.json("plan feature remove starter seats --yes");
    assert_eq!(plan["features"].as_array().unwrap().len(), 3);
}

#[test]
fn a_soft_limit_above_the_hard_one_is_refused_and_nothing_is_written() {
    let shell = with_acme();
    let before = shell.json("plan show starter");
    let refused = shell.line("plan feature set starter messages --soft 201");
    assert_eq!(
        refused.failure(1),
        "error: soft_limit is '201'; write at most the hard_limit, 200"
    );
    assert_eq!(shell.json("plan show starter"), before);
}

#[test]
fn a_plan_with_subscriptions_stays() {
    let shell = with_acme();
    let refused = shell.line("plan delete starter --yes");
    assert!(
        refused
            .failure(1)
            .contains("plan 'starter' has 1 subscription(s)"),
        "{refused:?}"
    );
    assert_eq!(
        shell.json("plan list")["items"].as_array().unwrap().len(),
        1
    );
}

#[test]
fn a_tenant_is_found_by_slug_and_by_id() {
    let shell = with_acme();
    let by_slug = shell.json("tenant show acme");
    assert_eq!(by_slug["slug"], "acme");
    assert_eq!(by_slug["plan_code"], "starter");
    assert_eq!(by_slug["subscription"]["status"], "active");
    let id = by_slug["tenant_id"].as_str().unwrap();
    assert_eq!(shell.json(&format!("tenant show {id}")), by_slug);
    assert_eq!(shell.json("tenant list")["items"][0]["tenant_id"], id);
    let again = shell.line("tenant create acme --name Other");
    assert!(
        again
            .failure(1)
            .starts_with("error: tenant 'acme' exists already"),
        "{again:?}"
    );
}

#[test]
fn another_plan_keeps_the_period_and_dates_set_it() {
    let shell = with_acme();
    shell.json("plan create pro --name Pro --preset pro");
    let before = shell.json("tenant show acme")["subscription"].clone();
    let moved = shell.json("tenant subscribe acme --plan pro --status trialing");
    assert_eq!(
        moved["subscription"]["current_period_start"],
        before["current_period_start"]
    );
    assert_eq!(moved["subscription"]["status"], "trialing");
    let dated = shell.json(
        "tenant subscribe acme --plan pro --period-start 2020-01-31T00:00:00Z --period-end 2020-02-29T00:00:00Z --processor-customer-id cus_1",
    );
    let start = dated["subscription"]["current_period_start"]
        .as_str()
        .unwrap();
    assert!(
        start > "2020-02-29",
        "the period has rolled on to now: {start}"
    );
    assert_eq!(dated["subscription"]["processor_customer_id"], "cus_1");
    let canceled = shell.json("tenant cancel acme --yes");
    assert_eq!(canceled["subscription"]["status"], "canceled");
    assert_eq!(
        shell.json("tenant subscribe acme --plan pro")["subscription"]["status"],
        "active"
    );
    let missing = shell.line("tenant subscribe acme --plan gold");
    assert!(
        missing.failure(1).contains("there is no plan 'gold'"),
        "{missing:?}"
    );
}

#[test]
fn a_tenants_own_limit_is_set_and_taken_away() {
    let shell = with_acme();
    let own = shell.json("tenant limit set acme messages --hard 5 --until 2999-01-01T00:00:00Z");
    assert_eq!(
        own["overrides"],
        json!([{
            "feature_key": "messages",
            "limits": [{"scope": "tenant", "window": "period", "soft_limit": null, "hard_limit": 5}],
            "until": "2999-01-01T00:00:00Z",
        }])
    );
    let past = shell.line("tenant limit set acme messages --until 2020-01-01T00:00:00Z");
    assert!(
        past.failure(1)
            .starts_with("error: until is '2020-01-01T00:00:00Z'"),
        "{past:?}"
    );
    assert_eq!(
        shell.json("tenant limit remove acme messages")["overrides"],
        json!([])
    );
    let again = shell.line("tenant limit remove acme messages");
    assert!(
        again
            .failure(1)
            .starts_with("error: there is no limit 'messages of tenant acme'"),
        "{again:?}"
    );
}

#[test]
fn a_grant_lasts_to_the_end_of_the_period_unless_it_says_otherwise() {
    let shell = with_acme();
    let end = shell.json("tenant show acme")["subscription"]["current_period_end"].clone();
    let grant =
        shell.json("tenant grant add acme --feature messages --quantity 50 --reason goodwill");
    assert_eq!(
        (&grant["expires_at"], &grant["quantity"]),
        (&end, &json!(50))
    );
    assert_eq!(
        (&grant["remaining"], &grant["tenant_slug"]),
        (&json!(50), &json!("acme"))
    );
    let id = grant["grant_id"].as_str().unwrap();
    assert_eq!(
        shell.json("tenant grant list acme")["items"][0]["grant_id"],
        id
    );
    let revoked = shell.json(&format!("tenant grant revoke {id} --yes"));
    assert!(revoked["revoked_at"].is_string(), "{revoked}");
    for (command, field) in [
        (
            "tenant grant add acme --feature messages --quantity -3 --reason x",
            "--quantity",
        ),
        ("tenant limit set acme messages --hard -3", "--hard"),
        ("plan feature set starter messages --soft -3", "--soft"),
    ] {
        let below = shell.line(command);
        assert_eq!(below.code, 2);
        for part in ["'-3'", field, "whole number from 0"] {
            assert!(below.stderr.contains(part), "{below:?}");
        }
    }
    let none = shell.line("tenant grant add acme --feature messages --quantity 0 --reason x");
    assert!(
        none.failure(1).starts_with("error: quantity is '0'"),
        "{none:?}"
    );
}

#[test]
fn own_limits_that_end_with_others_are_told() {
    let shell = with_acme();
    let set = |limit: &str| {
        let ran = shell.line(&format!("tenant limit set acme messages {limit}"));
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.stderr
    };
    let warning = |end: &str| {
        format!("warning: own limits of one feature end together: all of 'messages' {end}\n")
    };
    let until = "now end at 2099-01-01T00:00:00Z";
    assert_eq!(set("--hard 50"), "");
    let of_day = "--hard 10 --window day --until 2099-01-01T00:00:00Z";
    assert_eq!(set(of_day), warning(until));
    assert_eq!(set(of_day), "", "as it was");
    assert_eq!(set("--hard 5 --window hour"), warning(until));
    let forever = warning("now hold until they are removed");
    assert_eq!(set("--hard 50 --until none"), forever);
}

#[test]
fn what_has_no_effect_is_told_at_once() {
    let shell = with_acme();
    let warning = "warning: the plan of tenant 'acme' does not meter 'mesages': this has no effect until it does\n";
    for command in [
        "tenant grant add acme --feature FEATURE --quantity 5 --reason goodwill",
        "tenant limit set acme FEATURE --hard 5",
    ] {
        for (feature, expected) in [("messages", ""), ("mesages", warning)] {
            let ran = shell.line(&command.replace("FEATURE", feature));
            assert_eq!((ran.code, ran.stderr.as_str()), (0, expected), "{ran:?}");
        }
    }
}

#[test]
fn a_keys_secret_is_shown_once_and_rotating_keeps_its_id() {
    let shell = with_acme();
    let made = shell.json("key create acme --name laptop --user ada");
    let secret = made["key"].as_str().unwrap();
    assert!(secret.starts_with("tg_") && secret.len() == 46, "{secret}");
    assert_eq!(
        (&made["tenant_slug"], &made["user"]),
        (&json!("acme"), &json!("ada"))
    );
    let list = shell.line("key list --tenant acme");
    assert!(!list.stdout.contains(&secret[3..]), "{list:?}");
    let id = made["key_id"].as_str().unwrap();
    let rotated = shell.json(&format!("key rotate {id} --grace-seconds 60"));
    assert_eq!(rotated["key_id"], id);
    assert_ne!(rotated["key"], made["key"]);
    let revoked = shell.json(&format!("key revoke {id} --yes"));
    assert!(
        revoked["revoked_at"].is_string() && revoked.get("key").is_none(),
        "{revoked}"
    );
    let dead = shell.line(&format!("key rotate {id}"));
    assert!(dead.failure(1).starts_with("error: key_id is "), "{dead:?}");
}

#[test]
fn tables_are_for_people_and_json_for_programs() {
    let shell = with_acme();
    let table = shell.line("plan list --output table").stdout;
    assert!(table.starts_with("plan     name     models"), "{table}");
    assert!(table.contains("messages 150/200 per period"), "{table}");
    assert!(
        shell.line("plan list").stdout.starts_with('{'),
        "stdout is no terminal"
    );
}

#[test]
fn commands_at_the_same_time_wait_for_each_other() {
    let shell = with_acme();
    let running: Vec<_> = (0..8)
        .map(|number| {
            let name = format!("key-{number}");
            let mut command = shell.command(&["key", "create", "acme", "--name", &name]);
            command
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in running {
        let ended = child.wait_with_output().unwrap();
        assert!(
            ended.status.success(),
            "{}",
            String::from_utf8_lossy(&ended.stderr)
        );
    }
    assert_eq!(
        shell.json("key list --tenant acme")["items"]
            .as_array()
            .unwrap()
            .len(),
        8
    );
}

#[test]
fn the_data_dir_is_the_owners_alone() {
    let shell = with_acme();
    let mode = std::fs::metadata(shell.path().join("var"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
}
