//! Plans by the page: made from a preset, edited limit by limit, previewed, fought over, and undone.

use super::browser::{Browser, TOKEN, serve, value_of};
use crate::support::{Tollgate, hard};

async fn with_starter() -> (Tollgate, Browser) {
    let gate = serve().start().await;
    let browser = Browser::signed_in(&gate, TOKEN).await;
    let form = [
        ("plan_code", "starter"),
        ("name", "Starter"),
        ("preset", "starter"),
    ];
    let page = browser.submit("/admin/plans", &form).await;
    assert!(page.contains("Created."), "{page}");
    (gate, browser)
}

const SOFT: &str = "limit messages tenant period soft";
const HARD: &str = "limit messages tenant period hard";
const STARTER: &str = "/admin/plans/starter";

#[tokio::test]
async fn a_plan_is_made_from_a_preset_and_every_limit_is_a_labelled_field() {
    let (gate, browser) = with_starter().await;
    let page = browser.page(STARTER).await;
    assert_eq!(
        (value_of(&page, SOFT), value_of(&page, HARD)),
        ("150".into(), "200".into())
    );
    for label in ["Messages", "Input tokens", "Output tokens"] {
        for side in ["soft", "hard"] {
            assert_eq!(
                page.matches(&format!(">{label} {side} limit</label>"))
                    .count(),
                1,
                "{label}"
            );
        }
    }
    assert!(page.contains("value=\"save\">Save</button>"), "{page}");
    let list = browser.page("/admin/plans").await;
    assert!(
        list.contains("200 messages per period") && list.contains("250 K input tokens"),
        "{list}"
    );

    let twice = [
        ("plan_code", "starter"),
        ("name", "Again"),
        ("preset", "pro"),
    ];
    let answer = browser.post("/admin/plans", &twice).await;
    assert_eq!(answer.status, 422);
    assert!(
        answer.text.contains("already") && answer.text.contains("value=\"Again\""),
        "{}",
        answer.text
    );
    let bad = [
        ("plan_code", "no spaces"),
        ("name", "<b>x</b>"),
        ("preset", "pro"),
    ];
    let answer = browser.post("/admin/plans", &bad).await;
    assert_eq!(answer.status, 422);
    assert!(
        answer.text.contains("id=\"plan_code-fault\"") && !answer.text.contains("<b>x"),
        "{}",
        answer.text
    );
    gate.finish().await;
}

#[tokio::test]
async fn a_saved_limit_decides_on_the_next_request() {
    let (gate, browser) = with_starter().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(5))
        .create()
        .await;
    let plan = format!("/admin/plans/{}", acme.plan);
    acme.chat("one").await.expect_ok();
    let version = value_of(&browser.page(&plan).await, "version");
    let form = [
        ("do", "save"),
        ("version", version.as_str()),
        (SOFT, "unlimited"),
        (HARD, "1"),
    ];
    let saved = browser.submit(&plan, &form).await;
    assert!(
        saved.contains("Saved.") && value_of(&saved, SOFT) == "unlimited",
        "{saved}"
    );
    acme.chat("two").await.expect(429, "usage_limit_exceeded");
    let form = [("do", "save"), (SOFT, ""), (HARD, " 1,000 ")];
    let saved = browser.submit(&plan, &form).await;
    assert_eq!(value_of(&saved, HARD), "1,000");
    acme.chat("three").await.expect_ok();
    let same = browser.submit(&plan, &form).await;
    assert!(same.contains("Nothing was changed"), "{same}");
    gate.finish().await;
}

#[tokio::test]
async fn what_is_wrong_is_said_beside_its_field_and_nothing_is_saved() {
    let (gate, browser) = with_starter().await;
    for (soft, hard, field, told) in [
        ("300", "200", "soft", "above the hard limit"),
        ("many", "200", "soft", "write a whole number"),
        ("150", "-1", "hard", "write a whole number"),
        ("150", "1e99", "hard", "write a whole number"),
    ] {
        let form = [
            ("do", "save"),
            ("name", "Other"),
            (SOFT, soft),
            (HARD, hard),
        ];
        let answer = browser.post(STARTER, &form).await;
        assert_eq!(answer.status, 422, "{soft} {hard}");
        let id = if field == "soft" { "s1-1" } else { "h1-1" };
        let fault = answer.text.split(&format!("id=\"{id}-fault\"")).nth(1);
        let fault = fault.unwrap_or_else(|| panic!("{id}: {}", answer.text));
        assert!(
            fault.split("</p>").next().unwrap().contains(told),
            "{fault}"
        );
        assert_eq!(value_of(&answer.text, SOFT), soft, "what was typed stays");
        let page = browser.page(STARTER).await;
        assert!(value_of(&page, HARD) == "200" && value_of(&page, "name") == "Starter");
    }
    gate.finish().await;
}

#[tokio::test]
async fn limits_of_other_scopes_and_windows_are_added_edited_and_removed() {
    let (gate, browser) = with_starter().await;
    let form = [
        ("do", "add"),
        ("feature_key", "messages"),
        ("scope", "user"),
        ("window", "day"),
        ("soft_limit", "unlimited"),
        ("hard_limit", "10"),
    ];
    let page = browser.submit(STARTER, &form).await;
    assert_eq!(value_of(&page, "limit messages user day hard"), "10");
    assert!(
        page.contains(">Messages hard limit per user and day</label>"),
        "{page}"
    );
    let cost = [
        ("do", "add"),
        ("feature_key", "cost"),
        ("scope", "tenant"),
        ("window", "period"),
        ("hard_limit", "$12.50"),
    ];
    let page = browser.submit(STARTER, &cost).await;
    assert_eq!(value_of(&page, "limit cost tenant period hard"), "$12.50");
    let shown = gate.cli_json(&["plan", "show", "starter"]).await;
    let features = shown["features"].as_array().unwrap();
    let of_cost = features
        .iter()
        .find(|it| it["feature_key"] == "cost")
        .unwrap();
    assert_eq!(of_cost["hard_limit"], 12_500_000);

    // What is there is not replaced by what was meant as one more.
    let again = [
        ("do", "add"),
        ("feature_key", "messages"),
        ("scope", "user"),
        ("window", "day"),
        ("hard_limit", "unlimited"),
    ];
    let answer = browser.post(STARTER, &again).await;
    assert_eq!(answer.status, 422);
    assert!(
        answer
            .text
            .contains("Messages has a limit per user and day already"),
        "{}",
        answer.text
    );
    assert_eq!(value_of(&answer.text, "limit messages user day hard"), "10");

    let bad = [
        ("do", "add"),
        ("feature_key", "No Spaces"),
        ("hard_limit", "1"),
    ];
    let answer = browser.post(STARTER, &bad).await;
    assert_eq!(answer.status, 422);
    assert!(answer.text.contains("a feature key"), "{}", answer.text);
    let page = browser
        .submit(STARTER, &[("do", "remove messages user day")])
        .await;
    assert!(!page.contains("per user and day"), "{page}");
    let page = browser.submit(STARTER, &[("do", "remove cost")]).await;
    assert!(!page.contains("Cost hard limit"), "{page}");
    gate.finish().await;
}

#[tokio::test]
async fn what_is_typed_beside_an_addition_or_a_removal_is_neither_saved_nor_lost() {
    let (gate, browser) = with_starter().await;
    let version = value_of(&browser.page(STARTER).await, "version");
    let add = [
        ("do", "add"),
        ("feature_key", "cost"),
        ("hard_limit", "$5"),
        ("version", version.as_str()),
        (SOFT, "typed"),
        (HARD, "175"),
    ];
    let answer = browser.post(STARTER, &add).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(answer.text.contains("not saved yet"), "{}", answer.text);
    assert!(
        answer.text.contains("is not a limit"),
        "said beside its field"
    );
    assert_eq!(value_of(&answer.text, HARD), "175");
    assert_eq!(value_of(&answer.text, SOFT), "typed");
    let feature = "name=\"feature_key\" list=\"features\" value=\"\"";
    assert!(answer.text.contains(feature), "it was added");
    let stored = browser.page(STARTER).await;
    assert_eq!(value_of(&stored, "limit cost tenant period hard"), "$5.00");
    assert_eq!(value_of(&stored, HARD), "200");

    let version = value_of(&answer.text, "version");
    let remove = [
        ("do", "remove cost"),
        ("version", version.as_str()),
        (HARD, "175"),
    ];
    let answer = browser.post(STARTER, &remove).await;
    assert!(answer.text.contains("not saved yet"), "{}", answer.text);
    assert!(!answer.text.contains("Cost hard limit"), "{}", answer.text);
    let version = value_of(&answer.text, "version");
    let save = [("do", "save"), ("version", version.as_str()), (HARD, "175")];
    let saved = browser.submit(STARTER, &save).await;
    assert_eq!(value_of(&saved, HARD), "175");

    // Whoever has not seen what somebody else saved is told, before a save puts it back.
    let late = [
        ("do", "remove output_tokens"),
        ("version", version.as_str()),
        (HARD, "190"),
    ];
    let answer = browser.post(STARTER, &late).await;
    assert_eq!(answer.status, 412);
    assert!(
        answer.text.contains("Theirs: <strong>175</strong>"),
        "{}",
        answer.text
    );
    gate.finish().await;
}

#[tokio::test]
async fn a_preview_says_whom_a_change_would_refuse_and_changes_nothing() {
    let (gate, browser) = with_starter().await;
    for (slug, messages) in [("one", 1), ("two", 2), ("three", 3)] {
        gate.cli_json(&[
            "tenant", "create", slug, "--name", slug, "--plan", "starter",
        ])
        .await;
        let key = gate.cli_json(&["key", "create", slug, "--name", "k"]).await["key"].clone();
        let tenant = crate::support::Tenant::known(&gate, key.as_str().unwrap());
        for _ in 0..messages {
            tenant.chat("hi").await.expect_ok();
        }
    }
    gate.is_drained().await;
    let form = [("do", "preview"), (SOFT, "1"), (HARD, "2")];
    let answer = browser.post(STARTER, &form).await;
    assert_eq!(answer.status, 200);
    assert!(
        answer
            .text
            .contains("2 of 3 tenants would be over the limit of messages"),
        "{}",
        answer.text
    );
    assert!(
        answer.text.contains("today it is 0") && answer.text.contains(">two</a>"),
        "{}",
        answer.text
    );
    assert_eq!(
        value_of(&answer.text, HARD),
        "2",
        "the form keeps what was typed"
    );
    assert_eq!(value_of(&browser.page(STARTER).await, HARD), "200");
    let harmless = browser
        .post(STARTER, &[("do", "preview"), (HARD, "500")])
        .await;
    assert!(
        harmless.text.contains("would be over a limit")
            && harmless.text.contains("None of the 3 tenants"),
        "{}",
        harmless.text
    );

    // Of a limit that counts each user: whose users would be over it.
    let each = ["--scope", "user", "--window", "day", "--hard", "100"];
    let set = ["plan", "feature", "set", "starter", "messages"];
    gate.cli_json(&[&set[..], &each].concat()).await;
    let form = [("do", "preview"), ("limit messages user day hard", "3")];
    let answer = browser.post(STARTER, &form).await;
    assert!(
        answer
            .text
            .contains("1 of 3 tenants would have a user over its limit of messages per day")
            && answer.text.contains(">three</a>"),
        "{}",
        answer.text
    );
    gate.finish().await;
}

#[tokio::test]
async fn two_who_edit_one_plan_do_not_undo_each_other() {
    let (gate, browser) = with_starter().await;
    let other = Browser::of_role(&gate, "operator").await;
    let version = value_of(&browser.page(STARTER).await, "version");
    let theirs = [
        ("do", "save"),
        ("version", version.as_str()),
        (SOFT, "150"),
        (HARD, "300"),
    ];
    other.submit(STARTER, &theirs).await;
    let mine = [
        ("do", "save"),
        ("version", version.as_str()),
        (SOFT, "150"),
        (HARD, "400"),
    ];
    let answer = browser.post(STARTER, &mine).await;
    assert_eq!(answer.status, 412);
    assert!(
        answer.text.contains("Someone else saved")
            && answer.text.contains("Theirs: <strong>300</strong>"),
        "{}",
        answer.text
    );
    assert_eq!(value_of(&answer.text, HARD), "400");
    assert_eq!(
        value_of(&browser.page(STARTER).await, HARD),
        "300",
        "theirs is there still"
    );
    // So it is where a field is wrong, too: who mends it has seen both.
    let wrong = [
        ("do", "preview"),
        ("version", version.as_str()),
        (SOFT, "lots"),
        (HARD, "400"),
    ];
    let answer = browser.post(STARTER, &wrong).await;
    assert_eq!(answer.status, 412);
    for told in [
        "Someone else saved",
        "Theirs: <strong>300</strong>",
        "is not a limit",
    ] {
        assert!(answer.text.contains(told), "{told}: {}", answer.text);
    }
    let version = value_of(&answer.text, "version");
    let again = [
        ("do", "save"),
        ("version", version.as_str()),
        (SOFT, "150"),
        (HARD, "400"),
    ];
    let saved = browser.submit(STARTER, &again).await;
    assert_eq!(value_of(&saved, HARD), "400");
    gate.finish().await;
}

#[tokio::test]
async fn who_edits_one_value_does_not_put_back_another() {
    const INPUT: &str = "limit input_tokens tenant period hard";
    let (gate, browser) = with_starter().await;
    let page = browser.page(STARTER).await;
    let field = |name: &str| (format!("was {name}"), value_of(&page, name));
    let (version, was_hard, was_input) = (value_of(&page, "version"), field(HARD), field(INPUT));
    assert_eq!(value_of(&page, &was_hard.0), "200");

    let other = Browser::of_role(&gate, "operator").await;
    let theirs = [("do", "save"), (INPUT, "777,000")];
    other.submit(STARTER, &theirs).await;

    // As the browser sends it: the whole form, of which one value was changed.
    let mine = [
        ("do", "save"),
        ("version", version.as_str()),
        (was_hard.0.as_str(), was_hard.1.as_str()),
        (HARD, "250"),
        (was_input.0.as_str(), was_input.1.as_str()),
        (INPUT, was_input.1.as_str()),
    ];
    let answer = browser.post(STARTER, &mine).await;
    assert_eq!(answer.status, 412);
    assert_eq!(value_of(&answer.text, INPUT), "777,000", "theirs is taken");
    assert_eq!(value_of(&answer.text, HARD), "250", "mine is kept");
    assert!(!answer.text.contains("Theirs:"), "{}", answer.text);
    let version = value_of(&answer.text, "version");
    let again = [
        ("do", "save"),
        ("version", version.as_str()),
        ("was limit messages tenant period hard", "200"),
        (HARD, "250"),
        ("was limit input_tokens tenant period hard", "777,000"),
        (INPUT, "777,000"),
    ];
    let saved = browser.submit(STARTER, &again).await;
    assert_eq!(value_of(&saved, INPUT), "777,000");
    assert_eq!(value_of(&saved, HARD), "250");
    gate.finish().await;
}

#[tokio::test]
async fn a_change_is_undone_from_the_audit_log_unless_another_followed() {
    let (gate, browser) = with_starter().await;
    let mut entries = Vec::new();
    for (was, hard) in [("200", "300"), ("300", "400")] {
        browser
            .submit(STARTER, &[("do", "save"), (SOFT, "150"), (HARD, hard)])
            .await;
        let audit = browser.page("/admin/audit?target=starter").await;
        let change = (format!("<del>{was}</del>"), format!("→ {hard}"));
        assert!(
            audit.contains(&change.0) && audit.contains(&change.1),
            "{audit}"
        );
        let offered: Vec<&str> = audit.split("name=\"entry\" value=\"").skip(1).collect();
        assert_eq!(
            offered.len(),
            1,
            "neither what was made nor what was changed again can be undone by itself: {audit}"
        );
        entries.push(offered[0].split('"').next().unwrap().to_owned());
    }
    let older = browser
        .post("/admin/audit", &[("entry", &entries[0])])
        .await;
    assert_eq!(older.status, 412, "{}", older.text);
    assert!(
        older.text.contains("changed again after that"),
        "{}",
        older.text
    );
    let page = browser
        .submit("/admin/audit", &[("entry", &entries[1])])
        .await;
    assert!(
        page.contains("Undone.") && value_of(&page, HARD) == "300",
        "{page}"
    );
    gate.finish().await;
}

#[tokio::test]
async fn a_plan_is_deleted_when_nobody_is_on_it() {
    let (gate, browser) = with_starter().await;
    gate.cli_json(&[
        "tenant", "create", "acme", "--name", "A", "--plan", "starter",
    ])
    .await;
    let answer = browser.post(STARTER, &[("do", "delete")]).await;
    assert_eq!(answer.status, 422);
    assert!(answer.text.contains("1 subscription"), "{}", answer.text);
    gate.cli_json(&["plan", "create", "other", "--name", "Other"])
        .await;
    browser
        .submit(
            "/admin/tenants/acme",
            &[("do", "subscription"), ("plan_code", "other")],
        )
        .await;
    let list = browser.submit(STARTER, &[("do", "delete")]).await;
    assert!(
        list.contains("Deleted.") && !list.contains("/admin/plans/starter\""),
        "{list}"
    );
    gate.finish().await;
}
