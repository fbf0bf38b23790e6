//! `POST /api/v1/usage/events`: usage as CloudEvents 1.0 (structured, binary or batch; the HTTP binding, §3).

use std::collections::{HashMap, HashSet};

use axum::{Json, extract::State};
use base64::Engine as _;
use http::{HeaderMap, header::CONTENT_TYPE};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    caller::Caller,
    error::{ApiError, ApiResult},
    extract::WholeBody,
    fields::Fields,
};
use crate::{
    app::App,
    domain::{
        feature::FeatureKey,
        ids::KeyId,
        tenant::TenantRef,
        time::Timestamp,
        usage::{Source, event_id_of},
    },
    json::{self, Member},
    services::{catalogue::Policy, reporting::Report},
};

const MOST_EVENTS: usize = 1_000;
/// Of an id, a source and the like.
const LONGEST_ATTRIBUTE: usize = 1_024;
const MODES: &str = "Send 'application/cloudevents+json', 'application/cloudevents-batch+json', or a JSON body \
                     with the event's attributes in ce- headers.";

/// What became of each event, in the order sent.
#[derive(Serialize, utoipa::ToSchema)]
pub struct EventsBody {
    results: Vec<EventResult>,
}

/// What became of one event, in the order sent.
#[derive(Serialize, utoipa::ToSchema)]
struct EventResult {
    /// Null if it has none.
    id: Option<String>,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Rejection>,
}

#[derive(Clone, Copy, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
enum Status {
    Accepted,
    /// Its id and source were there before; it added nothing.
    Duplicate,
    Rejected,
}

/// Why an event was rejected; the others of its batch are not.
#[derive(Serialize, utoipa::ToSchema)]
struct Rejection {
    code: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    param: Option<String>,
}

/// Report usage as CloudEvents: one, structured or binary, or a batch of at most 1,000.
#[utoipa::path(
    post, path = "/api/v1/usage/events", tag = "usage", security(("tenant_key" = [])),
    request_body(content(
        (serde_json::Value = "application/cloudevents+json"),
        (Vec<serde_json::Value> = "application/cloudevents-batch+json"),
        (serde_json::Value = "application/json"),
    )),
    responses((status = 200, description = "What became of each, in the order sent", body = EventsBody)),
)]
pub async fn take(
    State(app): State<App>,
    mut caller: Caller,
    headers: HeaderMap,
    WholeBody(body): WholeBody,
) -> ApiResult<Json<EventsBody>> {
    caller.name_user(&headers, None)?;
    let events = read(&headers, &body)?;
    let policy = app
        .catalogue
        .policy(caller.key().tenant_id)
        .await?
        .ok_or(ApiError::InvalidApiKey)?;
    let now = app.clock.now();
    let guarded = caller.guarded();
    let terms = Terms {
        policy: &policy,
        key: guarded.key_id,
        user: caller.user(),
        request_id: &guarded.request_id,
        times: app.reporting.times(now),
        now,
    };
    let read: Vec<(Option<String>, ApiResult<Report>)> = events
        .into_iter()
        .map(|event| {
            let id = event.as_ref().ok().and_then(Event::id);
            (id, event.and_then(|event| terms.report(&event)))
        })
        .collect();
    let features = read.iter().filter_map(|(_, report)| report.as_ref().ok());
    let features = features.flat_map(|report| report.quantities.iter());
    let features = features.map(|(feature, _)| feature.clone()).collect();
    let unknown = app.reporting.unknown_of(features).await?;
    let mut results: Vec<EventResult> = Vec::with_capacity(read.len());
    let mut reports = Vec::new();
    for (id, report) in read {
        let (status, error) = match known(report, &unknown) {
            Ok(report) => {
                reports.push(report);
                (Status::Accepted, None)
            }
            Err(rejection) => (Status::Rejected, Some(rejection)),
        };
        results.push(EventResult { id, status, error });
    }
    // A task of its own: what is written down is counted, whether its sender waits or not.
    let reporting = {
        let app = app.clone();
        async move { app.reporting.report(&policy, reports, now).await }
    };
    let reported = app.tasks.spawn(reporting).await;
    let mut reported = reported.map_err(|_| ApiError::stopped())??.into_iter();
    for result in &mut results {
        if matches!(result.status, Status::Accepted)
            && reported
                .next()
                .is_some_and(|reported| reported.is_duplicate)
        {
            result.status = Status::Duplicate;
        }
    }
    Ok(Json(EventsBody { results }))
}

/// A report all of whose features some plan defines.
fn known(report: ApiResult<Report>, unknown: &HashSet<FeatureKey>) -> Result<Report, Rejection> {
    let report = report.map_err(|error| Rejection::of(&error))?;
    let found = report
        .quantities
        .iter()
        .map(|(feature, _)| feature.clone())
        .find(|feature| unknown.contains(feature));
    match found {
        None => Ok(report),
        Some(feature) => Err(Rejection {
            code: "unknown_feature",
            message: format!("No plan defines the feature '{feature}'."),
            param: Some(format!("data.quantities.{feature}")),
        }),
    }
}

/// What events are read by.
struct Terms<'a> {
    policy: &'a Policy,
    key: KeyId,
    /// The key's own user, or the header's; `""`: the event may name one.
    user: &'a str,
    request_id: &'a str,
    times: std::ops::RangeInclusive<Timestamp>,
    now: Timestamp,
}

/// An event's attributes and data, whichever way they came.
struct Event<'a> {
    /// JSON values in structured mode, texts in binary mode.
    attributes: HashMap<String, Attribute<'a>>,
    data: Data<'a>,
}

enum Attribute<'a> {
    Json(&'a RawValue),
    Text(String),
}

enum Data<'a> {
    None,
    Json(&'a RawValue),
    Bytes(Vec<u8>),
}

/// The events of a body, each read or rejected by itself.
///
/// # Errors
/// [`ApiError::Unreadable`] for a body that is neither an event nor a batch of at most 1,000.
fn read<'a>(headers: &HeaderMap, body: &'a [u8]) -> ApiResult<Vec<ApiResult<Event<'a>>>> {
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    let media_type = content_type.split(';').next().unwrap_or("").trim();
    let is = |wanted: &str| media_type.eq_ignore_ascii_case(wanted);
    if is("application/cloudevents-batch+json") {
        let events = json::read_list(body)?;
        if events.len() > MOST_EVENTS {
            return Err(ApiError::Unreadable(format!(
                "The batch has {} events; send at most {MOST_EVENTS} at once.",
                events.len()
            )));
        }
        return Ok(events.into_iter().map(structured).collect());
    }
    if is("application/cloudevents+json") {
        let object = json::read_object(body)?;
        return Ok(vec![of_members(object.members)]);
    }
    if headers.contains_key("ce-specversion") || headers.contains_key("ce-id") {
        return Ok(vec![binary(headers, media_type, body)]);
    }
    Err(ApiError::Unreadable(format!(
        "The body is no CloudEvent: Content-Type is '{}'. {MODES}",
        content_type.escape_debug()
    )))
}

fn structured(value: &RawValue) -> ApiResult<Event<'_>> {
    let members = json::members(value.get()).map_err(|_| {
        ApiError::bad_field(
            "event",
            json::shown(value),
            "an object, each key at most once",
        )
    })?;
    of_members(members)
}

fn of_members(members: Vec<Member<'_>>) -> ApiResult<Event<'_>> {
    let mut event = Event {
        attributes: HashMap::new(),
        data: Data::None,
    };
    for (name, value) in members {
        match name.as_ref() {
            "data" if value.get() != "null" => event.data = Data::Json(value),
            "data_base64" if value.get() != "null" => {
                let decoded = serde_json::from_str::<String>(value.get())
                    .ok()
                    .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok());
                let accepted = "JSON in base64; or send it as data";
                event.data = Data::Bytes(decoded.ok_or_else(|| {
                    ApiError::bad_field("data_base64", json::shown(value), accepted)
                })?);
            }
            _ if value.get() == "null" => {}
            _ => {
                event
                    .attributes
                    .insert(name.into_owned(), Attribute::Json(value));
            }
        }
    }
    Ok(event)
}

/// Attributes are headers, percent-encoded (HTTP binding §3.1.3.2); the body is the data.
fn binary<'a>(headers: &HeaderMap, media_type: &str, body: &'a [u8]) -> ApiResult<Event<'a>> {
    let mut attributes = HashMap::new();
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix("ce-") else {
            continue;
        };
        let text = percent_decoded(value.as_bytes()).ok_or_else(|| {
            ApiError::bad_field(format!("ce-{name}"), "not UTF-8", "percent-encoded UTF-8")
        })?;
        if attributes
            .insert(name.to_owned(), Attribute::Text(text))
            .is_some()
        {
            let accepted = "the header once";
            return Err(ApiError::bad_field(
                format!("ce-{name}"),
                "there twice",
                accepted,
            ));
        }
    }
    let media_type = Attribute::Text(media_type.to_owned());
    attributes.insert("datacontenttype".to_owned(), media_type);
    Ok(Event {
        attributes,
        data: Data::Bytes(body.to_vec()),
    })
}

fn percent_decoded(value: &[u8]) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut at = 0;
    while at < value.len() {
        let digits = value.get(at + 1..at + 3).filter(|_| value[at] == b'%');
        let decoded = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match decoded {
            Some(byte) => {
                bytes.push(byte);
                at += 3;
            }
            None => {
                bytes.push(value[at]);
                at += 1;
            }
        }
    }
    // A quoted value, as some senders write it (RFC 9110 §5.6.4).
    let text = String::from_utf8(bytes).ok()?;
    let unquoted = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'));
    Some(unquoted.unwrap_or(&text).to_owned())
}

impl Event<'_> {
    fn id(&self) -> Option<String> {
        let id = self.attribute("id").ok()??;
        Some(id.chars().take(LONGEST_ATTRIBUTE).collect())
    }

    fn attribute(&self, name: &str) -> ApiResult<Option<String>> {
        match self.attributes.get(name) {
            None => Ok(None),
            Some(Attribute::Text(text)) => Ok(Some(text.clone())),
            Some(Attribute::Json(value)) => serde_json::from_str(value.get())
                .map(Some)
                .map_err(|_| ApiError::bad_field(name, json::shown(value), "a text")),
        }
    }

    fn required(&self, name: &str) -> ApiResult<String> {
        let accepted = format!("a text of 1-{LONGEST_ATTRIBUTE} bytes");
        match self.attribute(name)? {
            Some(text) if (1..=LONGEST_ATTRIBUTE).contains(&text.len()) => Ok(text),
            Some(text) => {
                let found = format!("a text of {} bytes", text.len());
                Err(ApiError::bad_field(name, found, accepted))
            }
            None => Err(ApiError::bad_field(name, "missing", accepted)),
        }
    }

    /// What every `CloudEvent` must have; its id and source.
    fn check(&self) -> ApiResult<(String, String)> {
        match self.required("specversion")?.as_str() {
            "1.0" => {}
            other => {
                let found = format!("'{}'", other.escape_debug());
                return Err(ApiError::bad_field("specversion", found, "1.0"));
            }
        }
        self.required("type")?;
        if let Some(media_type) = self.attribute("datacontenttype")? {
            let media_type = media_type
                .split(';')
                .next()
                .unwrap_or("")
                .trim()
                .to_ascii_lowercase();
            if media_type != "application/json" && !media_type.ends_with("+json") {
                let found = format!("'{}'", media_type.escape_debug());
                return Err(ApiError::bad_field(
                    "datacontenttype",
                    found,
                    "application/json",
                ));
            }
        }
        Ok((self.required("id")?, self.required("source")?))
    }
}

impl Terms<'_> {
    fn report(&self, event: &Event<'_>) -> ApiResult<Report> {
        let (id, source) = event.check()?;
        self.check_subject(event)?;
        let owned: Box<RawValue>;
        let data = match &event.data {
            Data::Json(value) => *value,
            Data::Bytes(bytes) => {
                let read = json::read_object(bytes)?;
                owned = RawValue::from_string(read.text.to_owned())
                    .map_err(|_| ApiError::bad_field("data", "not JSON", "a JSON object"))?;
                &owned
            }
            Data::None => {
                let accepted = "an object with quantities, and maybe user and model";
                return Err(ApiError::bad_field("data", "missing", accepted));
            }
        };
        let mut data = Fields::of_value("data", data)?;
        let quantities = data.quantities("quantities")?;
        let named = data.short_text("user")?;
        let model = data.short_text("model")?;
        data.finish()?;
        let user = match (self.user, named) {
            ("", Some(user)) => user,
            (user, _) => user.to_owned(),
        };
        let tenant = self.policy.tenant.tenant_id;
        Ok(Report {
            event_id: event_id_of(tenant, Source::Cloudevent, &format!("{source}\0{id}")),
            source: Source::Cloudevent,
            request_id: self.request_id.to_owned(),
            key_id: Some(self.key),
            user,
            model: model.filter(|model| !model.is_empty()),
            quantities,
            at: self.time(event)?,
            reason: None,
        })
    }

    fn check_subject(&self, event: &Event<'_>) -> ApiResult<()> {
        let Some(subject) = event.attribute("subject")? else {
            return Ok(());
        };
        let tenant = &self.policy.tenant;
        let is_own = match subject.parse() {
            Ok(TenantRef::Id(id)) => id == tenant.tenant_id,
            Ok(TenantRef::Slug(slug)) => slug == tenant.slug,
            Err(_) => false,
        };
        if is_own {
            return Ok(());
        }
        let shown: String = subject.chars().take(64).collect();
        let found = format!("'{}'", shown.escape_debug());
        let accepted = format!("'{}', or leave it out", tenant.slug);
        Err(ApiError::bad_field("subject", found, accepted))
    }

    /// When it was used: that decides the windows that it counts in.
    fn time(&self, event: &Event<'_>) -> ApiResult<Timestamp> {
        let Some(time) = event.attribute("time")? else {
            return Ok(self.now);
        };
        let read = time.parse().ok().filter(|time| self.times.contains(time));
        read.ok_or_else(|| {
            let shown: String = time.chars().take(64).collect();
            let accepted = format!(
                "a time in RFC 3339 from {} to five minutes ahead",
                self.times.start().to_whole_second()
            );
            ApiError::bad_field("time", format!("'{}'", shown.escape_debug()), accepted)
        })
    }
}

impl Rejection {
    fn of(error: &ApiError) -> Self {
        let param = match error {
            ApiError::Invalid { param, .. } => Some(param.clone()),
            _ => None,
        };
        Self {
            code: error.code(),
            message: error.message(),
            param,
        }
    }
}
