//! The first page: what the gate did, who is near a limit, how its parts do, and what needs a person.

use askama::Template;
use axum::{extract::State, response::Response};

use super::{
    assets,
    chart::{Bar, Chart},
    form::Form,
    format::{self, amount},
    near::{self, NearRow},
    outbox,
    start::{self, Start},
    view::{self, PageResult, View},
};
use crate::{
    app::App,
    config::Guardrails,
    domain::{feature::FeatureKey, quantity::Quantity},
    http::{
        error::ApiResult,
        ops::{Ops as _, Part, PartStatus, Parts},
    },
    services::{
        doctor,
        overview::{Figures, Picture, Sums},
    },
    store::outbox::{Kind, OutboxFilter, Status},
};

/// How many of those near a limit the page shows.
const SHOWN: usize = 8;

#[derive(Template)]
#[template(path = "overview.html")]
struct OverviewPage<'a> {
    view: &'a View,
    figures: Vec<Stretch>,
    chart: Chart,
    has_refusals: bool,
    picture: &'a Picture,
    near: Vec<NearRow>,
    parts: [PartRow; 4],
    /// `None` where Stripe is not told of anything.
    stripe: Option<StripeRow>,
    needs: Vec<Need>,
    journal_pending: u64,
    in_flight: u64,
}

/// Figures of a stretch of time, against those of the one before.
struct Stretch {
    name: &'static str,
    /// When it began, and what it is held against.
    between: String,
    rows: Vec<Figure>,
}

struct Figure {
    name: &'static str,
    value: String,
    before: String,
    change: Option<String>,
}

pub(super) struct PartRow {
    pub(super) name: &'static str,
    pub(super) part: Part,
}

impl PartRow {
    pub(super) fn all(parts: Parts) -> [Self; 4] {
        [
            ("Journal", parts.journal),
            ("Store", parts.store),
            ("Ledger", parts.ledger),
            ("Upstream", parts.provider),
        ]
        .map(|(name, part)| Self { name, part })
    }

    pub(super) fn word(&self) -> (&'static str, &'static str) {
        match self.part.status {
            PartStatus::Ok => ("good", "works"),
            PartStatus::Degraded => ("warn", "degraded"),
            PartStatus::Down => ("bad", "down"),
        }
    }
}

/// How telling Stripe goes.
struct StripeRow {
    colour: &'static str,
    word: &'static str,
    pending: u64,
    /// What Stripe, or the way to it, said last to one that is to be sent again.
    error: Option<String>,
}

/// Something that somebody should look at.
struct Need {
    text: String,
    /// Where; `""`: nowhere on the page.
    href: String,
}

/// `GET /admin`: the overview, the first steps, or signing in.
#[utoipa::path(
    get, path = "/admin", tag = "operation",
    responses((status = 200, description = "The page for people; without a session, to sign in", body = String, content_type = "text/html")),
)]
pub(super) async fn show(State(app): State<App>, view: View) -> PageResult {
    match start::step(&app, &view).await? {
        Start::Over => overview(&app, &view).await,
        step => start::show(&app, &view, step, None).await,
    }
}

/// `POST /admin/start`: a first step.
pub(super) async fn change(
    State(app): State<App>,
    view: Result<View, Response>,
    form: Form,
) -> PageResult {
    match view {
        Ok(view) => start::take(&app, &view, &form).await,
        Err(sign_in) => Ok(sign_in),
    }
}

async fn overview(app: &App, view: &View) -> PageResult {
    let overview = async {
        let picture = app.overview.picture(&app.tasks).await?;
        let near = near::rows(app, &picture, SHOWN).await?;
        Ok((picture, near))
    };
    let (figures, (picture, near), stripe, needs, readiness) = tokio::try_join!(
        async { Ok(app.overview.figures().await?) },
        overview,
        stripe(app),
        needs(app),
        async { Ok(app.readiness().await) },
    )?;
    let page = OverviewPage {
        view,
        has_refusals: figures.hours.iter().any(|hour| hour.refused > 0),
        chart: chart(&figures),
        figures: vec![
            stretch(
                "Today",
                format!(
                    "since 00:00 UTC, against yesterday until {} UTC",
                    format::hour(figures.yesterday_until)
                ),
                &figures.today,
                &figures.yesterday,
            ),
            stretch(
                "This calendar month",
                format!(
                    "since {}, against {} until {} {} UTC",
                    format::date(figures.month_start),
                    format::date(figures.last_month_start),
                    format::date(figures.last_month_until),
                    format::hour(figures.last_month_until)
                ),
                &figures.month,
                &figures.last_month,
            ),
        ],
        near,
        picture: &picture,
        parts: PartRow::all(readiness.parts),
        stripe,
        needs,
        journal_pending: app.recorder.journal().pending(),
        in_flight: app.recorder.ledger().in_flight().held,
    };
    view::show(&page)
}

fn stretch(name: &'static str, between: String, now: &Sums, then: &Sums) -> Stretch {
    let figure = |name, unit, now: Quantity, then: Quantity| Figure {
        name,
        value: amount(now, unit).to_string(),
        before: amount(then, unit).to_string(),
        change: format::change(now, then),
    };
    let counted = |count: u64| Quantity::new(i64::try_from(count).unwrap_or(i64::MAX));
    let cost = FeatureKey::Cost;
    Stretch {
        name,
        between,
        rows: vec![
            figure(
                "Requests",
                "requests",
                now.of(&FeatureKey::Messages),
                then.of(&FeatureKey::Messages),
            ),
            figure("Tokens", "tokens", now.tokens(), then.tokens()),
            figure("Cost", cost.default_unit(), now.of(&cost), then.of(&cost)),
            figure(
                "Refused",
                "requests",
                counted(now.decisions.hard_limit),
                counted(then.decisions.hard_limit),
            ),
            figure(
                "Warned",
                "requests",
                counted(now.decisions.soft_limit),
                counted(then.decisions.soft_limit),
            ),
        ],
    }
}

fn chart(figures: &Figures) -> Chart {
    let positive = |quantity: Quantity| u64::try_from(quantity.get()).unwrap_or(0);
    let bars = figures.hours.iter().map(|hour| Bar {
        title: format!(
            "{}: {} requests, {} refused",
            format::exact_time(hour.hour),
            format::grouped(hour.messages.get()),
            hour.refused
        ),
        value: positive(hour.messages),
        on_top: hour.refused,
    });
    let messages: Quantity = figures.hours.iter().map(|hour| hour.messages).sum();
    let label = format!(
        "Requests by hour in the last 48 hours: {} in all",
        format::grouped(messages.get())
    );
    Chart::new(
        label,
        bars.collect(),
        ("48 hours ago".to_owned(), "now".to_owned()),
        |top| {
            format!(
                "{} an hour",
                amount(
                    Quantity::new(i64::try_from(top).unwrap_or(i64::MAX)),
                    "requests"
                )
                .short()
            )
        },
    )
}

async fn stripe(app: &App) -> ApiResult<Option<StripeRow>> {
    /// How many that are to be sent are looked at for what went wrong.
    const LOOKED_AT: usize = 20;
    let Some(stripe) = &app.stripe else {
        return Ok(None);
    };
    let status = stripe.status().await?;
    let filter = OutboxFilter {
        kind: Some(Kind::StripeMeterEvent),
        status: Some(Status::Pending),
        tenant: None,
    };
    let pending = app.store.list_outbox(&filter, None, LOOKED_AT).await?;
    let error = pending.into_iter().find_map(|entry| entry.last_error);
    let is_given_up = status.dead.get() > 0 || status.uncertain.get() > 0;
    let (colour, word) = match (is_given_up, &error) {
        (true, _) => ("bad", "not told of everything"),
        (false, Some(_)) => ("warn", "tried again"),
        (false, None) => ("good", "works"),
    };
    Ok(Some(StripeRow {
        colour,
        word,
        pending: u64::try_from(status.pending.get()).unwrap_or(0),
        error,
    }))
}

async fn needs(app: &App) -> ApiResult<Vec<Need>> {
    let mut needs = Vec::new();
    if app.config.guardrails != Guardrails::On {
        needs.push(Need {
            text: "Guardrails are off: nothing is metered and no limit holds. Set ENABLE_USAGE_GUARDRAILS=true and start again.".to_owned(),
            href: String::new(),
        });
    }
    for (plan, found) in doctor::untouchable_limits(&app.store, &app.config).await? {
        needs.push(Need {
            text: format!(
                "No request can touch a limit of plan {plan}, {}: {}.",
                found.feature, found.why
            ),
            href: format!("/admin/plans/{plan}"),
        });
    }
    for (text, href) in outbox::needs(app).await? {
        needs.push(Need {
            text,
            href: href.to_owned(),
        });
    }
    needs.extend(unpriced(&app.metrics.unpriced()));
    let drift = app.metrics.drift();
    if drift > 0 {
        needs.push(Need {
            text: format!(
                "Live totals and the store's differ by {drift} in all. `tollgate doctor` says where."
            ),
            href: String::new(),
        });
    }
    Ok(needs)
}

/// What models without a price were used, in one line.
fn unpriced(models: &[(String, u64)]) -> Option<Need> {
    let (most, _) = models.first()?;
    let requests: u64 = models.iter().map(|(_, requests)| requests).sum();
    let shown = models.iter().take(3).map(|(model, _)| model.as_str());
    let mut named = shown.collect::<Vec<_>>().join(", ");
    if models.len() > 3 {
        named.push_str(", …");
    }
    Some(Need {
        text: format!(
            "{} {} since the start cost nothing, since no price is known: {named}. `tollgate price check {most}` says what to write.",
            format::grouped(i64::try_from(requests).unwrap_or(i64::MAX)),
            if requests == 1 { "request" } else { "requests" },
        ),
        href: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_without_a_price_are_named_in_one_line() {
        assert!(unpriced(&[]).is_none());
        let models = ["a", "b", "c", "d"].map(|model| (model.to_owned(), 600));
        let need = unpriced(&models).unwrap();
        assert!(
            need.text.starts_with("2,400 requests") && need.text.contains(": a, b, c, …."),
            "{}",
            need.text
        );
        let need = unpriced(&models[..1]).unwrap();
        assert!(
            need.text.contains("`tollgate price check a`"),
            "{}",
            need.text
        );
    }
}
