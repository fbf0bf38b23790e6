//! What is to be told to others, what became of it, and what Stripe told.

use askama::Template;
use axum::extract::State;

use super::{
    assets,
    form::Form,
    format::{self, amount},
    view::{self, PageResult, View},
};
use crate::{
    app::App,
    domain::{feature::FeatureKey, time::Timestamp},
    http::{
        error::{ApiError, ApiResult},
        query::Query,
    },
    services::AdminError,
    store::{
        StoreResult,
        outbox::{Kind, OutboxEntry, OutboxFilter, Status},
        webhooks::{Webhook, WebhookStatus},
    },
};

/// Entries on a page.
const PAGE: usize = 50;
/// How many of Stripe's events are shown: the last.
const WEBHOOKS: usize = 20;

#[derive(Template)]
#[template(path = "outbox.html")]
struct OutboxPage<'a> {
    view: &'a View,
    kinds: Vec<(&'static str, &'static str)>,
    statuses: Vec<&'static str>,
    /// What is asked for; `""`: any.
    kind: &'static str,
    status: &'static str,
    /// How many entries are in each state that has any.
    counts: Vec<(u64, &'static str)>,
    rows: Vec<Row>,
    /// The address of the next page; `""`: this is the last.
    next: String,
    has_stripe: bool,
    webhooks: Vec<Webhook>,
}

struct Row {
    it: OutboxEntry,
    what: String,
    value: String,
    colour: &'static str,
    is_given_up: bool,
    /// While it is pending.
    next: Option<Timestamp>,
}

impl OutboxPage<'_> {
    fn colour_of(webhook: &Webhook) -> &'static str {
        match webhook.status {
            WebhookStatus::Applied => "good",
            WebhookStatus::Ignored => "",
            WebhookStatus::Pending | WebhookStatus::Unmatched => "warn",
            WebhookStatus::Dead => "bad",
        }
    }

    fn can_apply(webhook: &Webhook) -> bool {
        matches!(
            webhook.status,
            WebhookStatus::Unmatched | WebhookStatus::Dead
        )
    }
}

/// `GET /admin/outbox`.
pub(super) async fn list(State(app): State<App>, view: View, mut query: Query) -> PageResult {
    let kind = one_of(&mut query, "kind", &Kind::ALL, Kind::as_str)?;
    let status = one_of(&mut query, "status", &Status::ALL, Status::as_str)?;
    let before: Option<String> = query.optional("before")?;
    let before = before.as_deref().and_then(place_of);
    let filter = OutboxFilter {
        kind,
        status,
        tenant: None,
    };
    let mut entries = app.store.list_outbox(&filter, before, PAGE + 1).await?;
    let next = next_of(&mut entries, &filter);
    let webhooks = if app.stripe.is_some() {
        app.store.list_webhooks(None, None, WEBHOOKS).await?
    } else {
        Vec::new()
    };
    view::show(&OutboxPage {
        view: &view,
        kinds: Kind::ALL
            .map(|kind| (kind.as_str(), name_of(kind)))
            .to_vec(),
        statuses: Status::ALL.map(Status::as_str).to_vec(),
        kind: kind.map_or("", Kind::as_str),
        status: status.map_or("", Status::as_str),
        counts: counts(&app).await?,
        rows: entries.into_iter().map(row).collect(),
        next,
        has_stripe: app.stripe.is_some(),
        webhooks,
    })
}

/// `POST /admin/outbox`: sends the entry in `entry` again, or applies Stripe's event in `webhook` again.
pub(super) async fn replay(State(app): State<App>, view: View, form: Form) -> PageResult {
    let by = view.operator()?;
    if let Some(event_id) = form.optional::<String>("webhook")? {
        let is_replayed = app.store.replay_webhook(&event_id, by).await?;
        if let (true, Some(stripe)) = (is_replayed, &app.stripe) {
            stripe.apply_pending().await?;
        }
        let done = if is_replayed {
            "applied-again"
        } else {
            "not-given-up"
        };
        return view::done("/admin/outbox", done);
    }
    let identifier: String = form.required("entry")?;
    match app.outbox.replay(&identifier, by).await {
        Ok(_) => view::done("/admin/outbox", "replayed"),
        // Between the look and the press somebody else may have pressed it.
        Err(AdminError::Invalid { .. }) => view::done("/admin/outbox", "not-given-up"),
        Err(error) => Err(error.into()),
    }
}

/// What somebody should look at: how many entries, in words, and the address of the page that shows them.
pub(super) async fn needs(app: &App) -> StoreResult<Vec<(String, &'static str)>> {
    let counts = counts(app).await?;
    let needs = counts.into_iter().filter_map(|(count, status)| {
        let entries = if count == 1 {
            "1 entry".to_owned()
        } else {
            format!("{count} entries")
        };
        match status {
            "dead" => Some((
                format!("{entries} of the outbox given up: somebody was not told."),
                "/admin/outbox?status=dead",
            )),
            "uncertain" => Some((
                format!(
                    "{entries} of the outbox uncertain: whether somebody was told can't be known."
                ),
                "/admin/outbox?status=uncertain",
            )),
            _ => None,
        }
    });
    Ok(needs.collect())
}

const fn is_given_up(status: Status) -> bool {
    matches!(status, Status::Dead | Status::Uncertain)
}

async fn counts(app: &App) -> StoreResult<Vec<(u64, &'static str)>> {
    let counted = app.store.count_outbox().await?;
    let of = |status: Status| {
        let counts = counted.iter().filter(|it| it.1 == status);
        (counts.map(|it| it.2).sum(), status.as_str())
    };
    let counts = Status::ALL.into_iter().map(of);
    Ok(counts.filter(|(count, _)| *count > 0).collect())
}

fn row(it: OutboxEntry) -> Row {
    let topic = it.topic.as_deref().unwrap_or_default();
    let what = match it.kind {
        Kind::Notice => topic
            .rsplit('.')
            .next()
            .unwrap_or_default()
            .replace('_', " "),
        Kind::StripeMeterEvent => format!("meter event, {topic}"),
        Kind::AnalyticsBatch | Kind::NoticeCheck => name_of(it.kind).to_owned(),
    };
    let unit = match it.kind {
        Kind::AnalyticsBatch => "events",
        Kind::Notice | Kind::NoticeCheck => "percent",
        Kind::StripeMeterEvent => it
            .feature
            .as_ref()
            .map_or("units", FeatureKey::default_unit),
    };
    Row {
        what,
        value: it
            .value
            .map_or_else(|| "–".to_owned(), |value| amount(value, unit).to_string()),
        colour: match it.status {
            Status::Pending => "warn",
            Status::Sent | Status::Confirmed => "good",
            Status::Uncertain | Status::Dead => "bad",
        },
        is_given_up: is_given_up(it.status),
        next: it.next_attempt_at.filter(|_| it.attempts > 0),
        it,
    }
}

const fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::AnalyticsBatch => "events for analytics",
        Kind::Notice => "notices",
        Kind::NoticeCheck => "looks at limits",
        Kind::StripeMeterEvent => "usage for Stripe",
    }
}

/// Cuts the entry off that belongs to the next page; the address of that page, `""` if there is none.
fn next_of(entries: &mut Vec<OutboxEntry>, filter: &OutboxFilter) -> String {
    if entries.len() <= PAGE {
        return String::new();
    }
    entries.truncate(PAGE);
    let mut query = form_urlencoded::Serializer::new(String::new());
    if let Some(kind) = filter.kind {
        query.append_pair("kind", kind.as_str());
    }
    if let Some(status) = filter.status {
        query.append_pair("status", status.as_str());
    }
    if let Some(last) = entries.last() {
        let place = format!("{}/{}", last.created_at.micros(), last.identifier);
        query.append_pair("before", &place);
    }
    format!("/admin/outbox?{}", query.finish())
}

fn place_of(text: &str) -> Option<(Timestamp, String)> {
    let (at, identifier) = text.split_once('/')?;
    Some((
        Timestamp::from_micros(at.parse().ok()?),
        identifier.to_owned(),
    ))
}

/// A choice of the page's own; an address that somebody made up is told so.
fn one_of<T: Copy>(
    query: &mut Query,
    field: &'static str,
    all: &[T],
    name: fn(T) -> &'static str,
) -> ApiResult<Option<T>> {
    let text: Option<String> = query.optional(field)?;
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let found = all.iter().copied().find(|it| name(*it) == text);
    let names = || {
        all.iter()
            .map(|it| name(*it))
            .collect::<Vec<_>>()
            .join(", ")
    };
    found
        .map(Some)
        .ok_or_else(|| ApiError::bad_field(field, format!("'{}'", text.escape_debug()), names()))
}
