//! The page in a real browser: with scripts and without, by keyboard, narrow, dark and zoomed.

use serde_json::{Value, json};

use super::{
    browser::{TOKEN, serve},
    chromium::{Chromium, Screen},
};
use crate::support::{FakeOpenAi, Tenant, Tollgate, eventually, hard, soft};

/// A name that takes over the page of whoever does not escape it.
const MARKUP: &str = "<img src=x onerror=\"document.title='taken over'\">";

/// A gate with a tenant that has used something, and the address of its plan.
async fn gate_with_acme() -> (Tollgate, Tenant, String) {
    let gate = serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(50))
        .create()
        .await;
    acme.chat("hi").await.expect_ok();
    let plan = format!("/admin/plans/{}", acme.plan);
    (gate, acme, plan)
}

#[tokio::test]
async fn what_is_set_in_the_browser_judges_the_next_request() {
    let (gate, acme, plan) = gate_with_acme().await;
    let chrome = Chromium::start(&gate).await;
    chrome.sign_in(TOKEN).await;
    chrome.sees("Today").await;

    chrome.go("/admin/tenants").await;
    chrome.write("Name", MARKUP).await;
    chrome.write("Slug", "newcomer").await;
    chrome.choose("plan_code", &acme.plan).await;
    chrome.press("Create tenant").await;
    chrome.sees("Created.").await;
    chrome.sees(MARKUP).await;
    chrome.write("Name of the key", MARKUP).await;
    chrome.press("Create key").await;
    chrome.sees("Shown only now").await;
    let secret = chrome
        .run("return document.getElementById('secret').textContent")
        .await;
    let newcomer = Tenant::known(&gate, secret.as_str().unwrap());
    newcomer.chat("one").await.expect_ok();
    for page in [
        "/admin/tenants",
        "/admin/audit",
        "/admin/tenants/newcomer",
        "/admin",
    ] {
        chrome.go(page).await;
        let taken = "return [document.title, document.images.length]";
        let taken = chrome.run(taken).await;
        assert!(taken[0] != "taken over" && taken[1] == 0, "{page}: {taken}");
    }

    chrome.go(&plan).await;
    chrome.write("Messages soft limit", "9").await;
    chrome.write("Messages hard limit", "1").await;
    chrome.press("Save").await;
    let soft = chrome.field("Messages soft limit").await;
    let said = soft.prop("validationMessage").await.unwrap();
    assert_eq!(
        said.as_deref(),
        Some("The soft limit is above the hard limit.")
    );
    newcomer.chat("two").await.expect_ok();
    chrome.write("Messages soft limit", "unlimited").await;
    chrome.write("Feature", "cost").await;
    chrome.press("Add").await;
    chrome.sees("not saved yet").await;
    newcomer.chat("two and a half").await.expect_ok();
    chrome.press("Save").await;
    chrome.sees("Saved.").await;
    newcomer
        .chat("three")
        .await
        .expect(429, "usage_limit_exceeded");

    chrome.is_quiet().await;
    drop(chrome);
    gate.finish().await;
}

#[tokio::test]
async fn two_who_edit_one_plan_see_each_other_and_an_ended_session_changes_nothing() {
    let (gate, _, plan) = gate_with_acme().await;
    let made = gate
        .cli_json(&["admin-token", "create", "ada", "--role", "operator"])
        .await;
    let chrome = Chromium::start(&gate).await;
    chrome.sign_in(made["token"].as_str().unwrap()).await;
    chrome.go(&plan).await;
    let first = chrome.client.window().await.unwrap();
    let second = chrome.client.new_window(true).await.unwrap();
    chrome.client.switch_to_window(second.handle).await.unwrap();
    chrome.go(&plan).await;
    chrome.write("Messages hard limit", "70").await;
    chrome.press("Save").await;
    chrome.sees("Saved.").await;

    chrome.client.switch_to_window(first).await.unwrap();
    chrome.write("Messages hard limit", "80").await;
    chrome.press("Save").await;
    chrome.sees("Someone else saved this plan meanwhile").await;
    chrome.sees("Theirs: 70").await;
    let typed = chrome.field("Messages hard limit").await;
    assert_eq!(typed.prop("value").await.unwrap().as_deref(), Some("80"));

    let id = made["admin_token_id"].as_str().unwrap();
    gate.cli_json(&["admin-token", "revoke", id, "--yes"]).await;
    chrome.press("Save").await;
    chrome
        .sees("Your session is over, and nothing was changed")
        .await;
    let code = plan.rsplit('/').next().unwrap();
    let limits = gate.cli_json(&["plan", "show", code]).await;
    assert!(
        limits.to_string().contains("70") && !limits.to_string().contains("80"),
        "{limits}"
    );

    chrome.write("Admin token", TOKEN).await;
    chrome.press("Sign in").await;
    chrome.sees("Delete this plan").await;
    chrome.is_quiet().await;
    drop(chrome);
    gate.finish().await;
}

#[tokio::test]
async fn everything_can_be_done_by_keyboard_alone() {
    let (gate, acme, _) = gate_with_acme().await;
    let chrome = Chromium::start(&gate).await;
    chrome.go("/admin").await;
    chrome.tab_to("Sign in").await;
    chrome.go("/admin").await;
    chrome.keys(TOKEN.chars()).await; // the field has the focus from the start
    chrome.enter().await;
    chrome.sees("Sign out").await;

    chrome.tab_to("Skip to content").await;
    chrome.tab_to("Plans").await;
    chrome.enter().await;
    chrome.sees("Create a plan").await;
    chrome.tab_to("Test").await;
    chrome.enter().await;
    chrome.sees("Delete this plan").await;
    chrome.tab_to("Messages hard limit").await;
    chrome.overwrite("1").await;
    chrome.tab_to("Save").await;
    chrome.enter().await;
    chrome.sees("Saved.").await;
    acme.chat("again").await.expect(429, "usage_limit_exceeded");

    chrome.tab_to("Tenants").await;
    chrome.enter().await;
    chrome.sees("Create a tenant").await;
    chrome.tab_to("acme").await;
    chrome.enter().await;
    chrome.sees("Limits and keys").await;
    chrome.tab_to("Make a key").await;
    chrome.enter().await;
    chrome.tab_to("Name of the key").await;
    chrome.keys("second".chars()).await;
    chrome.enter().await;
    chrome.sees("Shown only now").await;
    chrome.is_quiet().await;
    drop(chrome);
    gate.finish().await;
}

#[tokio::test]
async fn everything_can_be_done_without_scripts() {
    let (gate, acme, plan) = gate_with_acme().await;
    let chrome = Chromium::start(&gate).await;
    chrome
        .tell(
            "Emulation.setScriptExecutionDisabled",
            json!({ "value": true }),
        )
        .await;
    chrome.sign_in(TOKEN).await;
    chrome.go("/admin/in-flight").await;
    chrome.sees("Look again").await;
    let live = chrome.text().await;
    assert!(!live.contains("live"), "no script runs: {live}");
    chrome.go(&plan).await;
    chrome.write("Messages hard limit", "1").await;
    chrome.press("Show what it would do").await;
    chrome.sees("1 of 1 tenant would be over").await;
    chrome.press("Save").await;
    chrome.sees("Saved.").await;
    acme.chat("again").await.expect(429, "usage_limit_exceeded");
    chrome.go("/admin/tenants").await;
    chrome.write("Name", "Newcomer").await;
    chrome.write("Slug", "newcomer").await;
    chrome.press("Create tenant").await;
    chrome.sees("Created.").await;
    chrome.write("Name of the key", "first").await;
    chrome.press("Create key").await;
    chrome.sees("Shown only now").await;
    drop(chrome);
    gate.finish().await;
}

#[tokio::test]
async fn what_is_in_flight_is_seen_live_and_released_by_hand() {
    let upstream = FakeOpenAi::start().await;
    let gate = serve().upstream(&upstream).start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(5))
        .create()
        .await;
    let chrome = Chromium::start(&gate).await;
    chrome.sign_in(TOKEN).await;
    chrome.go("/admin/in-flight").await;
    chrome.sees("Nothing is in flight").await;
    eventually("the page is live", || async {
        let hidden = "return document.querySelector('[data-live-mark]').hidden";
        (chrome.run(hidden).await == false).then_some(())
    })
    .await;

    let held = acme
        .post(
            "/api/v1/usage/reservations",
            &json!({ "quantities": { "messages": 2 } }),
        )
        .await;
    assert_eq!(held.status, 201, "{}", held.text);
    chrome.sees("acme").await;
    let _ = chrome.run("window.same = true").await;
    let release = "document.querySelector('button.danger').id";
    let id = chrome.run(&format!("return {release}")).await;
    let focused = format!(
        "document.getElementById('{}').focus()",
        id.as_str().unwrap()
    );
    let _ = chrome.run(&focused).await;
    // Ages change each second: the rows were replaced, and the focus is where it was.
    let rows = "return document.querySelector('tbody time').textContent";
    let before = chrome.run(rows).await;
    eventually("the rows are replaced", || async {
        (chrome.run(rows).await != before).then_some(())
    })
    .await;
    assert_eq!(chrome.run("return document.activeElement.id").await, id);
    chrome.enter().await;
    chrome.client.accept_alert().await.expect("it asks before");
    chrome.sees("Released").await;
    chrome.sees("Nothing is in flight").await;
    assert_eq!(acme.reserved("messages").await, 0);
    chrome.is_quiet().await;
    drop(chrome);
    gate.finish().await;
}

#[tokio::test]
async fn every_page_fits_a_telephone_and_200_percent_and_the_dark() {
    let gate = serve().start().await;
    let long = "a-tenant-with-quite-a-long-slug-that-goes-on-for-the-whole-field";
    let acme = gate
        .tenant(&long[..56])
        .limit("messages", hard(5))
        .limit("input_tokens", soft(1_000_000).scope("user").window("day"))
        .create()
        .await
        .with_user("somebody-with-an-address@a-long-name-of-a-company.example.com");
    for _ in 0..5 {
        acme.chat("hi").await.expect_ok();
    }
    let held = gate.tenant("holder").create().await;
    let made = json!({ "quantities": { "messages": 2, "output_tokens": 12_345_678 } });
    let made = held.post("/api/v1/usage/reservations", &made).await;
    let reservation = made.json()["reservation_id"].as_str().unwrap().to_owned();
    let tenant = format!("/admin/tenants/{}", &long[..56]);
    let mut pages: Vec<String> = [
        "/admin",
        "/admin/plans",
        "/admin/tenants",
        "/admin/tenants?sort=percent",
        "/admin/in-flight",
        "/admin/outbox",
        "/admin/audit",
        "/admin/administrators",
        "/admin/sessions",
        "/admin/status",
    ]
    .map(str::to_owned)
    .into();
    pages.push(format!("/admin/plans/{}", acme.plan));
    pages.extend(["", "/usage", "/events", "/statement"].map(|page| format!("{tenant}{page}")));

    let chrome = Chromium::start(&gate).await;
    chrome.go("/admin").await;
    let mut screens = vec![fits(&chrome, "sign in").await];
    chrome.sign_in(TOKEN).await;
    for page in &pages {
        chrome.go(page).await;
        screens.push(fits(&chrome, page).await);
    }
    assert_eq!(screens.concat(), Vec::<String>::new());
    chrome.is_quiet().await;
    drop(chrome);
    held.request(
        reqwest::Method::DELETE,
        &format!("/api/v1/usage/reservations/{reservation}"),
    )
    .send()
    .await
    .unwrap();
    gate.finish().await;
}

/// What is wrong with the page on each of the screens.
async fn fits(chrome: &Chromium, page: &str) -> Vec<String> {
    const SCREENS: [Screen; 4] = [
        Screen {
            width: 375,
            scale: 2,
            scheme: "light",
        },
        Screen {
            width: 320,
            scale: 1,
            scheme: "light",
        },
        Screen {
            width: 640,
            scale: 2,
            scheme: "light",
        },
        Screen {
            width: 1280,
            scale: 1,
            scheme: "dark",
        },
    ];
    // How wide it is beyond the screen, how bright its ground and its text are, and what is too small for a finger.
    const LOOK: &str = "const root = document.documentElement; const style = getComputedStyle(document.body); \
        const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0); \
        const small = [...document.querySelectorAll('button:not(.unseen), input:not([type=hidden]), select, summary')] \
            .filter(it => it.checkVisibility() && it.getBoundingClientRect().height < 24 && !it.closest('label')); \
        return [root.scrollWidth - root.clientWidth, light(style.backgroundColor), light(style.color), \
            small.map(it => it.outerHTML.slice(0, 120))]";
    let mut faults = Vec::new();
    for screen in SCREENS {
        chrome.look(screen).await;
        let look = chrome.run(LOOK).await;
        let [over, ground, text] = [0, 1, 2].map(|index| look[index].as_f64().expect("a number"));
        if over > 0.0 {
            faults.push(format!("{page} at {}: {over} px too wide", screen.width));
        }
        if (screen.scheme == "dark") != (ground < 200.0 && text > 500.0) {
            faults.push(format!("{page} is not {}: {ground}, {text}", screen.scheme));
        }
        if look[3] != Value::Array(Vec::new()) {
            faults.push(format!(
                "{page} at {}: too small: {}",
                screen.width, look[3]
            ));
        }
    }
    faults
}
