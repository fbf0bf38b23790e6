//! What is in flight: live where the browser runs scripts, and given back by hand.

use std::{convert::Infallible, fmt::Write as _, time::Duration};

use askama::Template;
use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{
    assets,
    form::Form,
    format::{self, amount},
    view::{self, PageResult, View},
};
use crate::{
    app::App,
    domain::{administrator::Role, ids::ReservationId, time::Timestamp},
    http::{browser, error::ApiError},
    services::{AdminError, in_flight::InFlightObject},
};

/// How many are shown: the oldest.
const MOST: usize = 200;
/// How often a page that is live looks again.
const EACH: Duration = Duration::from_secs(1);
/// After how many looks without news something is sent all the same, so that a reader who has gone is noticed.
const QUIET: u32 = 15;

#[derive(Template)]
#[template(path = "in_flight/page.html")]
struct InFlightPage<'a> {
    view: &'a View,
    rows: Rows,
}

#[derive(Template)]
#[template(path = "in_flight/rows.html")]
struct Rows {
    rows: Vec<Row>,
    /// How many there are in all.
    count: u64,
    now: Timestamp,
    is_operator: bool,
}

struct Row {
    it: InFlightObject,
    began_at: Timestamp,
    /// What it holds: name and amount of each feature.
    held: Vec<(String, String)>,
}

impl Rows {
    async fn read(app: &App, is_operator: bool, now: Timestamp) -> Result<Self, AdminError> {
        let all = app.in_flight.list(None, Duration::ZERO).await?;
        let count = u64::try_from(all.len()).unwrap_or(u64::MAX);
        let rows = all.into_iter().take(MOST).map(|it| Row {
            began_at: now.minus(Duration::from_secs(it.age_seconds)),
            held: it
                .quantities
                .iter()
                .map(|(feature, quantity)| {
                    let held = amount(*quantity, feature.default_unit()).to_string();
                    (feature.default_display_name(), held)
                })
                .collect(),
            it,
        });
        Ok(Self {
            rows: rows.collect(),
            count,
            now,
            is_operator,
        })
    }
}

/// `GET /admin/in-flight`.
pub(super) async fn list(State(app): State<App>, view: View) -> PageResult {
    let rows = Rows::read(&app, view.is_operator(), view.now).await?;
    view::show(&InFlightPage { view: &view, rows })
}

/// `POST /admin/in-flight`: gives back what the one in `reservation` holds.
pub(super) async fn release(State(app): State<App>, view: View, form: Form) -> PageResult {
    let by = view.operator()?;
    let id: ReservationId = form.required("reservation")?;
    match app.in_flight.release(id, by).await {
        Ok(()) => view::done("/admin/in-flight", "released"),
        // Between the look and the press it may have ended by itself.
        Err(AdminError::NotFound { .. }) => view::done("/admin/in-flight", "ended-before"),
        Err(error) => Err(error.into()),
    }
}

/// `GET /admin/in-flight/live`: the rows again, as server-sent events, whenever they have changed.
pub(super) async fn live(State(app): State<App>, _: View, headers: HeaderMap) -> PageResult {
    let Some(secret) = browser::session_secret(&headers) else {
        return std::future::ready(Err(ApiError::Internal)).await; // a view is there only with a session
    };
    let mut ticks = interval(EACH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watch = Watch {
        stopping: app.tasks.stopping(),
        app,
        secret: secret.to_owned(),
        ticks,
        last: String::new(),
        quiet: 0,
        is_over: false,
    };
    let events = stream::unfold(watch, |mut watch| async move {
        let event = watch.next().await?;
        Some((Ok::<_, Infallible>(event), watch))
    });
    let mut response: Response = Body::from_stream(events).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    // nginx would keep events until it has a buffer full.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// Somebody who watches.
struct Watch {
    app: App,
    secret: String,
    stopping: CancellationToken,
    ticks: Interval,
    last: String,
    quiet: u32,
    is_over: bool,
}

impl Watch {
    /// The next event, in the form of the wire; `None` ends the stream: the server stops, the store is away (the
    /// browser comes back by itself), or the session is over, which is said first.
    async fn next(&mut self) -> Option<String> {
        loop {
            tokio::select! {
                () = self.stopping.cancelled() => return None,
                _ = self.ticks.tick() => {}
            }
            if self.is_over {
                return None;
            }
            let now = self.app.clock.now();
            let session = self.app.sessions.find(&self.secret, now).await.ok()?;
            let Some(session) = session else {
                self.is_over = true;
                return Some("event: over\ndata:\n\n".to_owned());
            };
            let is_operator = session.administrator.may(Role::Operator);
            let rows = Rows::read(&self.app, is_operator, now).await.ok()?;
            let rows = rows.render().ok()?;
            if rows != self.last {
                self.quiet = 0;
                self.last = rows;
                return Some(event(&self.last));
            }
            self.quiet += 1;
            if self.quiet == QUIET {
                self.quiet = 0;
                return Some(":\n\n".to_owned());
            }
        }
    }
}

/// `text` as one event: a field `data` for each of its lines.
fn event(text: &str) -> String {
    let mut event = String::with_capacity(text.len() + 64);
    for line in text.lines() {
        // Writing to a text can't fail.
        let _ = writeln!(event, "data: {line}");
    }
    event.push('\n');
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_an_event_is_data() {
        assert_eq!(event("<p>\n</p>"), "data: <p>\ndata: </p>\n\n");
        assert_eq!(event(""), "\n");
    }
}
