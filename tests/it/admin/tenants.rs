//! Tenants by the page: found, made, and everything that is done with one.

use super::browser::{Browser, TOKEN, serve, value_of};
use crate::support::{Tenant, Tollgate, hard};

const ACME: &str = "/admin/tenants/acme";

async fn with_acme() -> (Tollgate, Browser, Tenant) {
    let gate = serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(4))
        .create()
        .await;
    let browser = Browser::signed_in(&gate, TOKEN).await;
    (gate, browser, acme)
}

/// The secret that a page shows once.
fn secret_of(page: &str) -> String {
    let after = page.split("<code id=\"secret\">").nth(1);
    let after = after.unwrap_or_else(|| panic!("no secret: {page}"));
    after.split('<').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_limit_is_shown_with_what_is_used_of_it_and_the_overview_names_the_nearest() {
    let (gate, browser, acme) = with_acme().await;
    let calm = browser.page("/admin").await;
    assert!(
        calm.contains("<h1>Overview</h1>") && calm.contains("Nobody is at 80 %"),
        "{calm}"
    );
    for _ in 0..4 {
        acme.chat("hi").await.expect_ok();
    }
    acme.chat("one more")
        .await
        .expect(429, "usage_limit_exceeded");
    let page = browser.page(ACME).await;
    assert!(
        page.contains("100 %") && page.contains("over its limit") && page.contains(">4</span> of"),
        "{page}"
    );
    let overview = crate::support::eventually("the overview names it", || async {
        let page = browser.page("/admin").await;
        page.contains("href=\"/admin/tenants/acme\"")
            .then_some(page)
    })
    .await;
    assert!(
        overview.contains("title=\"4 requests\">4</span>"),
        "today's requests: {overview}"
    );
    assert!(
        overview.contains("title=\"1 request\">1</span>"),
        "the refused one: {overview}"
    );
    let usage = browser
        .page("/admin/tenants/acme/usage?feature=messages")
        .await;
    assert!(
        usage.contains("4 requests in all") && usage.contains(">test</th>"),
        "{usage}"
    );
    gate.finish().await;
}

#[tokio::test]
async fn tenants_are_found_by_name_plan_status_and_percent() {
    let (gate, browser, acme) = with_acme().await;
    let form = [
        ("slug", "zeta"),
        ("name", "Zeta <i>Labs</i>"),
        ("plan_code", acme.plan.as_str()),
    ];
    let made = browser.submit("/admin/tenants", &form).await;
    assert!(
        made.contains("Zeta &#60;i&#62;Labs") && !made.contains("<i>Labs"),
        "{made}"
    );
    for _ in 0..4 {
        acme.chat("hi").await.expect_ok();
    }
    gate.is_drained().await;
    let lists = async |query: &str| {
        let page = browser.page(&format!("/admin/tenants{query}")).await;
        ["acme", "zeta"].map(|slug| page.contains(&format!("href=\"/admin/tenants/{slug}\"")))
    };
    assert_eq!(lists("").await, [true, true]);
    assert_eq!(lists("?q=LABS").await, [false, true]);
    assert_eq!(lists(&format!("?plan={}", acme.plan)).await, [true, true]);
    assert_eq!(lists("?status=canceled").await, [false, false]);
    crate::support::eventually("the picture is new", || async {
        (lists("?sort=percent&q=&plan=&status=").await == [true, false]).then_some(())
    })
    .await;
    assert_eq!(lists("?status=hard_limit_exceeded").await, [true, false]);
    let twice = browser.post("/admin/tenants", &form).await;
    assert_eq!(twice.status, 422);
    assert!(
        twice.text.contains("already") && twice.text.contains("value=\"zeta\""),
        "{}",
        twice.text
    );
    gate.finish().await;
}

#[tokio::test]
async fn a_key_is_made_shown_once_rotated_and_revoked() {
    let (gate, browser, acme) = with_acme().await;
    let made = browser
        .post(ACME, &[("do", "key.create"), ("name", "Production")])
        .await;
    assert_eq!(made.status, 200, "{}", made.text);
    let first = secret_of(&made.text);
    let with = |secret: &str| acme.with_key(secret);
    with(&first).chat("hi").await.expect_ok();
    let page = browser.page(ACME).await;
    assert!(
        page.contains("Production") && !page.contains(&first),
        "it is shown once"
    );
    let key = page.split("Production").nth(1).unwrap();
    let key = &key[key.find("key_").unwrap()..][..36];

    let form = [("do", "key.rotate"), ("key", key), ("grace_seconds", "0")];
    let second = secret_of(&browser.post(ACME, &form).await.text);
    with(&first).chat("hi").await.expect(401, "invalid_api_key");
    with(&second).chat("hi").await.expect_ok();
    browser
        .submit(ACME, &[("do", "key.revoke"), ("key", key)])
        .await;
    with(&second)
        .chat("hi")
        .await
        .expect(401, "invalid_api_key");

    gate.tenant("other").create().await;
    let elsewhere = browser
        .post(
            "/admin/tenants/other",
            &[("do", "key.revoke"), ("key", key)],
        )
        .await;
    assert_eq!(elsewhere.status, 422, "another tenant's key");
    let bad = browser
        .post(ACME, &[("do", "key.create"), ("name", "")])
        .await;
    assert_eq!(bad.status, 422);
    gate.finish().await;
}

#[tokio::test]
async fn grants_own_limits_and_the_subscription_hold_from_the_next_request_on() {
    let (gate, browser, acme) = with_acme().await;
    for _ in 0..4 {
        acme.chat("hi").await.expect_ok();
    }
    acme.chat("hi").await.expect(429, "usage_limit_exceeded");
    let grant = [
        ("do", "grant.add"),
        ("feature_key", "messages"),
        ("quantity", "1"),
        ("reason", "goodwill"),
    ];
    let page = browser.submit(ACME, &grant).await;
    assert!(page.contains("goodwill"), "{page}");
    acme.chat("hi").await.expect_ok();
    acme.chat("hi").await.expect(429, "usage_limit_exceeded");

    let id = value_of(&page, "grant");
    let page = browser
        .submit(ACME, &[("do", "grant.end"), ("grant", id.as_str())])
        .await;
    assert!(page.contains("The grant is over."), "{page}");

    let own = [
        ("do", "limit.set"),
        ("feature_key", "messages"),
        ("scope", "tenant"),
        ("window", "period"),
        ("soft_limit", "unlimited"),
        ("hard_limit", "10"),
    ];
    browser.submit(ACME, &own).await;
    acme.chat("hi").await.expect_ok();
    let removed = [
        ("do", "limit.remove"),
        ("feature_key", "messages"),
        ("scope", "tenant"),
        ("window", "period"),
    ];
    browser.submit(ACME, &removed).await;
    acme.chat("hi").await.expect(429, "usage_limit_exceeded");

    let reset = [
        ("do", "reset"),
        ("feature_key", "messages"),
        ("reason", "an outage"),
    ];
    browser.submit(ACME, &reset).await;
    acme.chat("hi").await.expect_ok();

    browser.submit(ACME, &[("do", "cancel")]).await;
    acme.chat("hi").await.expect(402, "subscription_inactive");
    let revive = [
        ("do", "subscription"),
        ("plan_code", acme.plan.as_str()),
        ("status", "active"),
    ];
    browser.submit(ACME, &revive).await;
    acme.chat("hi").await.expect_ok();
    gate.finish().await;
}

#[tokio::test]
async fn what_is_wrong_is_said_and_what_was_typed_stays() {
    let (gate, browser, _acme) = with_acme().await;
    for (form, told) in [
        (
            vec![
                ("do", "grant.add"),
                ("feature_key", "messages"),
                ("quantity", "lots"),
                ("reason", "typed reason"),
            ],
            "lots",
        ),
        (
            vec![
                ("do", "grant.add"),
                ("feature_key", "messages"),
                ("quantity", "5"),
                ("reason", ""),
            ],
            "Reason",
        ),
        (
            vec![
                ("do", "limit.set"),
                ("feature_key", "messages"),
                ("scope", "tenant"),
                ("window", "day"),
                ("soft_limit", "9"),
                ("hard_limit", "5"),
            ],
            "at most",
        ),
        (vec![("do", "delete"), ("confirm", "wrong")], "acme"),
        (vec![("do", "nonsense")], "do"),
    ] {
        let answer = browser.post(ACME, &form).await;
        assert_eq!(answer.status, 422, "{form:?}: {}", answer.text);
        let fault = answer
            .text
            .split("class=\"note bad\" role=\"alert\">")
            .nth(1);
        let fault = fault.unwrap_or_else(|| panic!("{form:?}: {}", answer.text));
        let fault = fault.split("</p>").next().unwrap().to_lowercase();
        assert!(fault.contains(&told.to_lowercase()), "{form:?}: {fault}");
        if form.contains(&("reason", "typed reason")) {
            assert!(
                answer.text.contains("value=\"typed reason\""),
                "{}",
                answer.text
            );
        }
    }
    let plan = gate.cli_json(&["tenant", "show", "acme"]).await["plan_code"].clone();
    let plan = plan.as_str().unwrap();
    let output = ["feature", "set", plan, "output_tokens", "--hard", "100"];
    gate.cli_json(&[&["plan"][..], &output].concat()).await;
    let subscription = [
        ("do", "subscription"),
        ("plan_code", plan),
        ("status", "past_due"),
        ("current_period_start", "2026-03-01T00:00"),
        ("current_period_end", "2026-02-01T00:00"),
    ];
    let answer = browser.post(ACME, &subscription).await;
    assert_eq!(answer.status, 422, "{}", answer.text);
    for kept in [
        "value=\"past_due\" selected",
        "value=\"2026-03-01T00:00\"",
        "value=\"2026-02-01T00:00\"",
    ] {
        assert!(answer.text.contains(kept), "{kept}: {}", answer.text);
    }
    let reset = [
        ("do", "reset"),
        ("feature_key", "output_tokens"),
        ("reason", ""),
    ];
    let answer = browser.post(ACME, &reset).await;
    let chosen = answer.text.split("id=\"reset-feature\"").nth(1).unwrap();
    assert!(
        chosen.contains("<option selected>output_tokens"),
        "{chosen}"
    );
    let long = "x".repeat(201);
    let answer = browser
        .post(ACME, &[("do", "rename"), ("name", long.as_str())])
        .await;
    assert!(
        answer.text.contains(&format!("value=\"{long}\"")),
        "{}",
        answer.text
    );
    gate.finish().await;
}

#[tokio::test]
async fn events_are_paged_and_a_correction_is_in_the_statement() {
    let gate = serve().start().await;
    let acme = gate.tenant("acme").create().await;
    let browser = Browser::signed_in(&gate, TOKEN).await;
    for number in 0..55 {
        acme.with_user(&format!("user-{number}-"))
            .chat("hi")
            .await
            .expect_ok();
    }
    let first = browser.page("/admin/tenants/acme/events").await;
    assert!(
        first.contains("user-54-") && !first.contains("user-4-"),
        "{first}"
    );
    let next = first
        .split("href=\"/admin/tenants/acme/events?")
        .nth(1)
        .expect("another page");
    let next = next
        .split('"')
        .next()
        .unwrap()
        .replace("&#38;", "&")
        .replace("&amp;", "&");
    let second = browser
        .page(&format!("/admin/tenants/acme/events?{next}"))
        .await;
    assert!(
        second.contains("user-0-") && !second.contains("user-5-"),
        "{second}"
    );

    let statement = browser.page("/admin/tenants/acme/statement").await;
    let key = value_of(&statement, "idempotency_key");
    let form = [
        ("do", "correct"),
        ("idempotency_key", key.as_str()),
        ("feature_key", "messages"),
        ("quantity", "-5"),
        ("reason", "an outage"),
    ];
    for _ in 0..2 {
        browser.submit(ACME, &form).await;
    }
    let statement = browser.page("/admin/tenants/acme/statement").await;
    assert!(
        statement.contains("title=\"−5 requests\"") && statement.contains("title=\"50 requests\""),
        "sent twice, it counts once: {statement}"
    );
    let events = browser.page("/admin/tenants/acme/events").await;
    assert!(events.contains("an outage"), "{events}");

    // What is wrong is said where it was filled in, and nothing of it is lost.
    let wrong = [
        ("do", "correct"),
        ("feature_key", "messages"),
        ("quantity", "-7"),
        ("reason", "a typo"),
        ("event_id", "nonsense"),
    ];
    let answer = browser.post(ACME, &wrong).await;
    assert_eq!(answer.status, 422);
    assert!(answer.text.contains("c-event-fault"), "{}", answer.text);
    for (name, typed) in &wrong[2..] {
        assert_eq!(value_of(&answer.text, name), *typed);
    }
    let backwards = "/admin/tenants/acme/statement?period_start=2026-02-01&period_end=2026-01-01";
    let answer = browser.get(backwards).await;
    assert_eq!(answer.status, 422);
    assert_eq!(value_of(&answer.text, "period_start"), "2026-02-01");
    assert!(answer.text.contains("a time after"), "{}", answer.text);
    gate.finish().await;
}

#[tokio::test]
async fn a_tenant_is_renamed_and_deleted_once_its_slug_is_typed() {
    let (gate, browser, acme) = with_acme().await;
    let page = browser
        .submit(ACME, &[("do", "rename"), ("name", "Acme & Sons")])
        .await;
    assert!(page.contains("<h1>Acme &#38; Sons</h1>"), "{page}");
    let list = browser
        .submit(ACME, &[("do", "delete"), ("confirm", "acme")])
        .await;
    assert!(
        list.contains("Deleted.") && !list.contains("href=\"/admin/tenants/acme\""),
        "{list}"
    );
    acme.chat("hi").await.expect(401, "invalid_api_key");
    assert_eq!(browser.get(ACME).await.status, 404);
    gate.finish().await;
}

#[tokio::test]
async fn limits_per_key_and_per_user_are_bars_of_their_own_the_nearest_first() {
    let gate = serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(10).scope("key").window("day"))
        .limit("output_tokens", hard(2_000).scope("user"))
        .create()
        .await;
    let made = ["key", "create", "acme", "--name", "unused"];
    gate.cli_json(&made).await;
    for user in ["ada", "grace", ""] {
        acme.with_user(user).chat("hi").await.expect_ok();
    }
    let browser = Browser::signed_in(&gate, TOKEN).await;
    let page = browser.page("/admin/tenants/acme").await;
    let bars = page.split("Each key and end user").nth(1).unwrap();
    let bars = bars.split("</section>").next().unwrap();
    let place = |text: &str| {
        let found = bars.find(text);
        found.unwrap_or_else(|| panic!("{text}: {bars}"))
    };
    let whole = place("<strong>key test</strong>");
    assert!(bars[whole..].contains("30 %"), "{bars}");
    for user in ["user ada", "user grace", "requests that name no user"] {
        let user = place(&format!("<strong>{user}</strong>"));
        assert!(
            whole < user && user < place("<strong>key unused</strong>"),
            "{bars}"
        );
    }
    gate.finish().await;
}
