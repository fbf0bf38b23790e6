//! A tenant's events, page by page, and its statement.

use askama::Template;
use axum::extract::State;

use super::{Head, display_name};
use crate::{
    admin::{
        assets,
        form::{Fault, Form},
        format::{self, amount},
        view::{self, PageResult, View},
    },
    app::App,
    clock,
    domain::{ids::EventId, tenant::TenantRef, time::Timestamp, usage::UsageEvent},
    http::{error::ApiResult, path::InPath, query::Query},
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
    /// As they were asked.
    from: String,
    to: String,
    /// A correction that was not taken, as it was filled in.
    form: &'a Form,
    fault: Fault,
}

/// `GET /admin/tenants/{t}/statement`.
pub(in crate::admin) async fn statement(
    State(app): State<App>,
    view: View,
    InPath(tenant): InPath<TenantRef>,
    mut query: Query,
) -> PageResult {
    let from: Option<String> = query.optional("period_start")?;
    let to: Option<String> = query.optional("period_end")?;
    let day = |text: &Option<String>| -> Option<Timestamp> {
        let text = text.as_ref().filter(|text| !text.is_empty())?;
        let midnight = if text.len() == 10 { "T00:00:00Z" } else { "" };
        format!("{text}{midnight}").parse().ok()
    };
    let ask = StatementAsk {
        start: day(&from),
        end: day(&to),
        ..period_of(tenant.clone())
    };
    let (statement, fault) = match app.statements.of(&ask).await {
        Ok(statement) => (statement, Fault::default()),
        Err(error) if ask.start.is_some() || ask.end.is_some() => {
            let fault = Fault::of_service(error)?;
            (app.statements.of(&period_of(tenant.clone())).await?, fault)
        }
        Err(error) => return Err(error.into()),
    };
    let form = Form::default();
    let mut page = statement_page(&app, &view, &tenant, statement, &form).await?;
    page.from = from.unwrap_or_default();
    page.to = to.unwrap_or_default();
    if fault == Fault::default() {
        return view::show(&page);
    }
    page.fault = fault;
    view::mend(&page)
}

/// The statement's page with a correction that was not taken, and why.
pub(super) async fn mend_correction(
    app: &App,
    view: &View,
    tenant: &TenantRef,
    form: &Form,
    fault: Fault,
) -> PageResult {
    let statement = app.statements.of(&period_of(tenant.clone())).await?;
    let mut page = statement_page(app, view, tenant, statement, form).await?;
    page.fault = fault;
    view::mend(&page)
}

/// The current period.
fn period_of(tenant: TenantRef) -> StatementAsk {
    StatementAsk {
        tenant,
        features: Vec::new(),
        start: None,
        end: None,
    }
}

async fn statement_page<'a>(
    app: &App,
    view: &'a View,
    tenant: &TenantRef,
    statement: Statement,
    form: &'a Form,
) -> ApiResult<StatementPage<'a>> {
    let policy = app.reports.policy(tenant).await?;
    let key = form.text("idempotency_key");
    Ok(StatementPage {
        view,
        head: Head::of(&policy, "statement"),
        features: statement
            .features
            .iter()
            .map(|line| line.feature_key.to_string())
            .collect(),
        statement,
        idempotency_key: if key.is_empty() {
            clock::new_id().simple().to_string()
        } else {
            key.to_owned()
        },
        from: String::new(),
        to: String::new(),
        form,
        fault: Fault::default(),
    })
}
