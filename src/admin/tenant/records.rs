//! A tenant's events, page by page, and its statement.

use askama::Template;
use axum::extract::State;

use super::{Head, display_name};
use crate::{
    admin::{
        assets,
        format::{self, amount},
        view::{self, PageResult, View},
    },
    app::App,
    clock,
    domain::{ids::EventId, tenant::TenantRef, time::Timestamp, usage::UsageEvent},
    http::{path::InPath, query::Query},
    services::{
        reports::unit_of,
        statement::{Statement, StatementAsk},
    },
};

/// Events on a page.
const PAGE: usize = 50;

#[derive(Template)]
#[template(path = "tenants/events.html")]
struct EventsPage<'a> {
    view: &'a View,
    head: Head,
    events: Vec<EventRow>,
    /// The address of the next page; `""`: this is the last.
    next: String,
}

struct EventRow {
    event: UsageEvent,
    /// Name and quantity of each feature.
    quantities: Vec<(String, String)>,
}

/// `GET /admin/tenants/{t}/events`.
pub(in crate::admin) async fn events(
    State(app): State<App>,
    view: View,
    InPath(tenant): InPath<TenantRef>,
    mut query: Query,
) -> PageResult {
    let policy = app.reports.policy(&tenant).await?;
    let at: Option<u64> = query.optional("before")?;
    let id: Option<EventId> = query.optional("id")?;
    let before = at.zip(id).and_then(|(at, id)| {
        let micros = i64::try_from(at).ok()?;
        Some((Timestamp::from_micros(micros), id))
    });
    let tenant = policy.tenant.tenant_id;
    app.recorder.flush_tenant(tenant).await?;
    let mut events = app.store.list_events(tenant, before, PAGE + 1).await?;
    let head = Head::of(&policy, "events");
    let next = if events.len() > PAGE {
        events.truncate(PAGE);
        let last = events
            .last()
            .map(|it| (it.admitted_at.micros(), it.event_id));
        let (at, id) = last.unwrap_or((0, EventId::new(clock::new_id())));
        format!("/admin/tenants/{}/events?before={at}&id={id}", head.slug)
    } else {
        String::new()
    };
    let rows = events.into_iter().map(|event| EventRow {
        quantities: event
            .quantities
            .iter()
            .map(|(feature, quantity)| {
                let unit = unit_of(&policy, feature);
                (
                    display_name(&policy, feature),
                    amount(quantity, &unit).to_string(),
                )
            })
            .collect(),
        event,
    });
    view::show(&EventsPage {
        view: &view,
        events: rows.collect(),
        head,
        next,
    })
}

#[derive(Template)]
#[template(path = "tenants/statement.html")]
struct StatementPage<'a> {
    view: &'a View,
    head: Head,
    statement: Statement,
    features: Vec<String>,
    /// Sent with a correction, so that it counts once.
    idempotency_key: String,
}

/// `GET /admin/tenants/{t}/statement`.
pub(in crate::admin) async fn statement(
    State(app): State<App>,
    view: View,
    InPath(tenant): InPath<TenantRef>,
    mut query: Query,
) -> PageResult {
    let policy = app.reports.policy(&tenant).await?;
    let day = |text: Option<String>| -> Option<Timestamp> {
        let text = text.filter(|text| !text.is_empty())?;
        let whole = if text.len() == 10 {
            format!("{text}T00:00:00Z")
        } else {
            text
        };
        whole.parse().ok()
    };
    let ask = StatementAsk {
        tenant,
        features: Vec::new(),
        start: day(query.optional("period_start")?),
        end: day(query.optional("period_end")?),
    };
    let statement = app.statements.of(&ask).await?;
    view::show(&StatementPage {
        view: &view,
        head: Head::of(&policy, "statement"),
        features: statement
            .features
            .iter()
            .map(|line| line.feature_key.to_string())
            .collect(),
        statement,
        idempotency_key: clock::new_id().simple().to_string(),
    })
}
