//! The views for reporting tools.

use super::*;

/// Makes the reporting views believe that it is `now`.
async fn pretend(hand: &Client, now: Timestamp) {
    let micros = now.micros();
    let view = format!("CREATE OR REPLACE VIEW reporting_now (at) AS SELECT {micros}::bigint");
    hand.batch_execute(&view).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_reporting_views_roll_periods_over_as_the_program_does() {
    let database = Database::migrated();
    let store = open(&database.url()).await;
    store.create_plan(&plan("starter"), &ada()).await.unwrap();
    let mut tenants = vec![];
    for (number, start) in [
        "2024-01-31T09:30:00.5Z",
        "2024-02-29T00:00:00Z",
        "2025-12-30T23:59:59Z",
        "2026-06-15T12:00:00Z",
        "2030-03-31T00:00:00Z",
    ]
    .into_iter()
    .enumerate()
    {
        let start: Timestamp = start.parse().unwrap();
        let ends = [1, 3, 12].map(|months| start.plus_months(months));
        let lengths = [1, 14 * 24 * 3_600, 40 * 24 * 3_600 + 1]
            .map(|seconds| start.plus(Duration::from_secs(seconds)));
        for (kind, end) in ends.into_iter().chain(lengths).enumerate() {
            let acme = Tenant {
                subscription: Some(subscribed("starter", start, end)),
                ..tenant(&format!("t{number}-{kind}"))
            };
            store.create_tenant(&acme, &ada()).await.unwrap();
            tenants.push(acme);
        }
    }
    let hand = by_hand(&database.url()).await;
    for now in [
        "2023-12-31T23:59:59Z",
        "2024-02-29T09:30:00Z",
        "2024-02-29T09:30:01Z",
        "2026-02-28T00:00:00Z",
        "2026-02-28T23:59:58Z",
        "2026-03-01T00:00:00Z",
        "2026-11-30T23:59:59Z",
        "2028-02-29T00:00:00Z",
        "2031-03-31T00:00:00Z",
    ] {
        let now: Timestamp = now.parse().unwrap();
        pretend(&hand, now).await;
        for acme in &tenants {
            let sql =
                "SELECT window_start, window_end FROM subscription_periods WHERE tenant_id = $1";
            let row = hand
                .query_one(sql, &[&acme.tenant_id.uuid()])
                .await
                .unwrap();
            let in_sql: (i64, i64) = (row.get(0), row.get(1));
            let period = acme.subscription.as_ref().unwrap().period;
            let window = period.window_at(now);
            let expected = (window.start().micros(), window.end().micros());
            assert_eq!(in_sql, expected, "{:?} at {now}", period.first());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_usage_view_sums_the_current_period_of_each_metered_feature() {
    let database = Database::migrated();
    let store = open(&database.url()).await;
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    store.create_plan(&plan("starter"), &ada()).await.unwrap();
    let (start, end) = (at("2026-01-31T09:30:00Z"), at("2026-02-28T09:30:00Z"));
    let acme = Tenant {
        subscription: Some(subscribed("starter", start, end)),
        ..tenant("acme")
    };
    let events = [
        ("2026-02-28T09:29:59Z", 1), // the last period
        ("2026-02-28T09:30:00Z", 2), // its first, cut hour
        ("2026-03-10T12:00:00Z", 4),
        ("2026-03-31T09:29:59.999999Z", 8), // its last, cut hour
        ("2026-03-31T09:30:00Z", 16),       // the next period
    ]
    .map(|(when, messages)| used(acme.tenant_id, messages, at(when)));
    store.create_tenant(&acme, &ada()).await.unwrap();
    store
        .record(events.as_slice().into(), position(1, 1), Tell::default())
        .await
        .unwrap();
    let hand = by_hand(&database.url()).await;
    pretend(&hand, at("2026-03-31T09:00:00Z")).await;
    let sql = "SELECT * FROM subscription_usage ORDER BY tenant_slug, feature_key";
    let found = hand.query(sql, &[]).await.unwrap();
    let found: Vec<(Vec<String>, i64)> = found
        .iter()
        .map(|row| ((0..8).map(|column| row.get(column)).collect(), row.get(8)))
        .collect();
    let id = acme.tenant_id.to_string();
    let row = |feature: &str, unit: &str, quantity| {
        let texts = [
            &id,
            "acme",
            "starter",
            "active",
            feature,
            unit,
            "2026-02-28T09:30:00Z",
            "2026-03-31T09:30:00Z",
        ];
        (texts.map(str::to_owned).to_vec(), quantity)
    };
    let expected = [row("messages", "requests", 14), row("seats", "units", 28)];
    assert_eq!(found, expected);
}
