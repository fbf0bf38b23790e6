//! The first page: who is near a limit, and what each figure is counted between.

use super::{
    browser::{Browser, TOKEN, serve},
    chromium::Chromium,
};
use crate::support::{Tenant, Tollgate, eventually, hard};

/// A tenant whose users `bob` and `eve` may not ask any more today, and whose key is at 80 % of its week.
async fn with_two_spent_users() -> (Tollgate, Tenant) {
    let gate = serve().start().await;
    let acme = gate
        .tenant("acme")
        .limit("messages", hard(4).scope("user").window("day"))
        .limit("messages", hard(10).scope("key").window("week"))
        .create()
        .await;
    for user in ["bob", "eve"] {
        let asks = acme.with_user(user);
        for _ in 0..4 {
            asks.chat("hi").await.expect_ok();
        }
        asks.chat("hi").await.expect(429, "usage_limit_exceeded");
    }
    acme.with_user("ann").chat("hi").await.expect_ok();
    (gate, acme)
}

/// What the page says under "Near or over a limit", a row a limit.
async fn near(browser: &Browser) -> Vec<String> {
    let page = browser.page("/admin").await;
    let list = page.split("<h2 id=\"near\">").nth(1).unwrap();
    let list = list.split("</section>").next().unwrap();
    let rows = list.split("<li class=\"meter\">").skip(1);
    rows.map(str::to_owned).collect()
}

#[tokio::test]
async fn keys_and_end_users_near_their_own_limits_are_named_with_their_tenant() {
    let (gate, _) = with_two_spent_users().await;
    let browser = Browser::signed_in(&gate, TOKEN).await;
    let rows = eventually("both limits are named", || async {
        let rows = near(&browser).await;
        (rows.len() == 2).then_some(rows)
    })
    .await;
    let [user, key] = [&rows[0], &rows[1]];
    for said in [
        "<a href=\"/admin/tenants/acme#parts\">",
        "user bob",
        "Messages per day",
        "100 %",
        "1 more user near it",
        "resets <time",
    ] {
        assert!(user.contains(said), "{said}: {user}");
    }
    for said in ["key test", "Messages per week", "90 %", ">9</span> of"] {
        assert!(key.contains(said), "{said}: {key}");
    }
    assert!(!rows.concat().contains("ann"), "not near: {rows:?}");

    // A key that can't be used any more is nobody's worry.
    let keys = gate.cli_json(&["key", "list", "--tenant", "acme"]).await;
    let id = keys["items"][0]["key_id"].as_str().unwrap();
    gate.cli_json(&["key", "revoke", id, "--yes"]).await;
    let rows = near(&browser).await;
    assert!(rows.len() == 1 && rows[0].contains("user bob"), "{rows:?}");
    gate.finish().await;
}

#[tokio::test]
async fn each_figure_says_from_when_until_when_it_is_counted() {
    let gate = serve().start().await;
    gate.tenant("acme")
        .create()
        .await
        .chat("hi")
        .await
        .expect_ok();
    let page = Browser::signed_in(&gate, TOKEN).await.page("/admin").await;
    let hint = |after: &str| {
        let text = page.split(after).nth(1).unwrap();
        let text = text.split("<span class=\"hint\">").nth(1).unwrap();
        text.split('<').next().unwrap().to_owned()
    };
    let today = hint(">Today ");
    assert!(
        today.starts_with("since 00:00 UTC, against yesterday until ")
            && today.ends_with(":00 UTC"),
        "{today}"
    );
    let month = hint(">This calendar month ");
    let words: Vec<&str> = month.split(' ').collect();
    let [_, start, _, before, _, until, hour, zone] = words[..] else {
        panic!("{month}")
    };
    assert!(
        start.ends_with("-01,") && before.ends_with("-01"),
        "{month}"
    );
    assert!(
        before <= until && zone == "UTC" && hour.ends_with(":00"),
        "{month}"
    );
    assert!(until <= start.trim_end_matches(','), "{month}");
    gate.finish().await;
}

#[tokio::test]
async fn in_the_browser_the_nearest_stand_first_and_lead_to_where_each_of_them_stands() {
    let (gate, _) = with_two_spent_users().await;
    let chrome = Chromium::start(&gate).await;
    chrome.sign_in(TOKEN).await;
    eventually("the overview names them", || async {
        chrome.go("/admin").await;
        chrome.text().await.contains("key test").then_some(())
    })
    .await;
    let shown = "const near = document.getElementById('near').closest('section'); \
        return [...near.querySelectorAll('li.meter')].map(it => it.innerText.replace(/\\s+/g, ' '))";
    let rows = chrome.run(shown).await;
    let row = |index: usize| rows[index].as_str().unwrap().to_owned();
    assert!(
        row(0).starts_with("acme → user bob Messages per day 100 % 4 of 4"),
        "{rows}"
    );
    assert!(
        row(0).contains("1 more user near it") && row(0).contains("resets in"),
        "{rows}"
    );
    assert!(
        row(1).starts_with("acme → key test Messages per week 90 % 9 of 10"),
        "{rows}"
    );
    chrome.press("acme").await;
    chrome.sees("Each key and end user").await;
    let at = chrome.run("return location.pathname + location.hash").await;
    assert_eq!(at, "/admin/tenants/acme#parts");
    for user in ["user bob", "user eve", "key test"] {
        chrome.sees(user).await;
    }
    chrome.is_quiet().await;
    drop(chrome);
    gate.finish().await;
}
