//! One tenant: where it stands, what it used, its keys, grants, own limits and subscription.

mod change;
mod records;

use std::{collections::BTreeMap, sync::Arc};

use askama::Template;
use axum::extract::State;

use super::{
    assets,
    chart::{Bar, Chart, Level},
    form::{Fault, Form},
    format::{self, amount, percent, unit_word},
    near,
    plans::limit_text,
    view::{self, PageResult, View},
};
use crate::{
    app::App,
    domain::{
        feature::FeatureKey,
        ids::KeyId,
        limit::{Limit, Override},
        quantity::Quantity,
        subscription::Subscription,
        tenant::{ApiKey, Tenant, TenantRef},
        time::Timestamp,
        window::{Window, WindowKind},
    },
    http::{error::ApiResult, path::InPath, query::Query},
    services::{
        catalogue::Policy,
        keys::Keys,
        objects::GrantObject,
        plans::Plans,
        reports::unit_of,
        tenants::Tenants,
        usage_view::{DEFAULT_WARN_PERCENT, Percent, UsageItem, UsageStatus},
    },
    store::{
        trends::UsedInHour,
        usage::{Dimension, Total},
    },
};

pub(super) use change::change;
pub(super) use records::{events, statement};

const HOUR: std::time::Duration = std::time::Duration::from_secs(3600);
const DAY: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
/// How many keys, users or models a table shows.
const MOST_PARTS: usize = 20;
/// How many end users are looked at for each limit that counts them.
const MOST_USERS: usize = 10;

#[derive(Template)]
#[template(path = "tenants/tenant.html")]
struct TenantPage<'a> {
    view: &'a View,
    head: Head,
    limits: Vec<LimitBar>,
    /// Of single keys and end users, the nearest first.
    parts: Vec<LimitBar>,
    chart: Chart,
    keys: Vec<KeyRow>,
    grants: Vec<GrantObject>,
    overrides: Vec<OverrideRow>,
    period: Option<Window>,
    plans: Vec<String>,
    statuses: [&'static str; 8],
    features: Vec<String>,
    windows: [&'static str; 7],
    form: &'a Form,
    fault: Fault,
    secret: Option<Secret>,
}

/// What is above every page of a tenant.
struct Head {
    slug: String,
    name: String,
    plan: String,
    status: String,
    is_planned: bool,
    at: &'static str,
}

impl Head {
    fn of(policy: &Policy, at: &'static str) -> Self {
        let subscription = policy.subscription();
        Self {
            slug: policy.tenant.slug.to_string(),
            name: policy.tenant.name.to_string(),
            plan: policy.plan_code().to_owned(),
            status: subscription
                .map(|it| it.status.to_string())
                .unwrap_or_default(),
            is_planned: policy.plan.is_some(),
            at,
        }
    }

    fn status_colour(&self) -> &'static str {
        match self.status.as_str() {
            "active" | "trialing" => "good",
            "past_due" => "warn",
            _ => "bad",
        }
    }
}

/// A limit, and how far it is used.
struct LimitBar {
    /// The key or end user that it counts; `None`: the tenant as a whole.
    who: Option<String>,
    name: String,
    window: &'static str,
    status: UsageStatus,
    percent: String,
    used: String,
    of: String,
    unit: String,
    reserved: Option<String>,
    soft: Option<String>,
    granted: Option<String>,
    remaining: Option<String>,
    level: Level,
    resets_at: Option<Timestamp>,
}

struct KeyRow {
    key: ApiKey,
    is_valid: bool,
}

struct OverrideRow {
    feature: String,
    place: String,
    soft: String,
    hard: String,
    until: Option<Timestamp>,
    scope: &'static str,
    window: &'static str,
}

/// A key's secret, shown once.
struct Secret {
    name: String,
    secret: String,
    /// Whether an old one serves a while longer.
    is_rotated: bool,
}

/// `GET /admin/tenants/{t}`.
pub(super) async fn show(
    State(app): State<App>,
    view: View,
    InPath(tenant): InPath<TenantRef>,
) -> PageResult {
    let form = Form::default();
    view::show(&page(&app, &view, &tenant, &form).await?)
}

async fn page<'a>(
    app: &App,
    view: &'a View,
    tenant: &TenantRef,
    form: &'a Form,
) -> ApiResult<TenantPage<'a>> {
    let current = app.reports.current_of(tenant).await?;
    let policy = &current.policy;
    let id = TenantRef::Id(policy.tenant.tenant_id);
    let items = current
        .states
        .iter()
        .map(|state| UsageItem::of(state, DEFAULT_WARN_PERCENT));
    let (keys, _) = Keys::new(app.store.clone()).list(&id).await?;
    let (grants, _) = Tenants::new(app.store.clone()).list_grants(&id).await?;
    let left = app.catalogue.grants_left(policy, view.now).await?;
    let grants = grants.into_iter().map(|grant| {
        let left = left
            .iter()
            .find(|(of, _)| *of == grant.grant_id)
            .map(|(_, left)| *left);
        GrantObject::at(grant, policy.tenant.slug.clone(), left, view.now)
    });
    let parts = parts_near(app, policy, &keys, view.now).await?;
    let plans = Plans::new(app.store.clone()).list().await?;
    let metered = policy
        .plan
        .iter()
        .flat_map(|plan| &plan.features)
        .filter(|it| it.is_metered);
    Ok(TenantPage {
        view,
        head: Head::of(policy, ""),
        limits: items.map(|item| bar(policy, None, &item)).collect(),
        parts,
        chart: by_hour(app, policy, &FeatureKey::Messages, view.now).await?,
        keys: keys
            .into_iter()
            .rev()
            .map(|key| KeyRow {
                is_valid: key.is_valid_at(view.now),
                key,
            })
            .collect(),
        grants: grants.rev().collect(),
        overrides: own_limits(policy, view.now),
        period: policy
            .subscription()
            .map(|it: &Subscription| it.period.window_at(view.now)),
        plans: plans.iter().map(|plan| plan.code.to_string()).collect(),
        statuses: [
            "active",
            "trialing",
            "past_due",
            "canceled",
            "unpaid",
            "incomplete",
            "incomplete_expired",
            "paused",
        ],
        features: metered.map(|feature| feature.key.to_string()).collect(),
        windows: WindowKind::ALL.map(WindowKind::as_str),
        form,
        fault: Fault::default(),
        secret: None,
    })
}

impl TenantPage<'_> {
    /// Whether the form whose button does `what` is the one at fault.
    fn failed(&self, what: &str) -> bool {
        !self.fault.message.is_empty() && self.form.text("do") == what
    }

    /// What was typed into a field of the form at fault.
    fn typed(&self, what: &str, name: &str) -> &str {
        self.typed_or(what, name, "")
    }

    /// As [`typed`](Self::typed), and `usual` where the form is not at fault.
    fn typed_or<'a>(&'a self, what: &str, name: &str, usual: &'a str) -> &'a str {
        if self.failed(what) {
            self.form.text(name)
        } else {
            usual
        }
    }
}

pub(super) fn display_name(policy: &Policy, feature: &FeatureKey) -> String {
    let planned = policy.plan.as_ref().and_then(|plan| plan.feature(feature));
    planned.map_or_else(
        || feature.default_display_name(),
        |it| it.display_name.to_string(),
    )
}

/// Where single keys and end users stand.
async fn parts_near(
    app: &App,
    policy: &Arc<Policy>,
    keys: &[ApiKey],
    now: Timestamp,
) -> ApiResult<Vec<LimitBar>> {
    let valid = keys.iter().rev().filter(|key| key.is_valid_at(now));
    let valid: Vec<KeyId> = valid.map(|key| key.key_id).take(MOST_PARTS).collect();
    let subjects = app.reports.subjects(policy, &valid, MOST_USERS).await?;
    let bars = subjects.iter().take(MOST_PARTS).map(|it| {
        let item = UsageItem::of(&it.state, DEFAULT_WARN_PERCENT);
        bar(policy, near::who(&it.subject, keys), &item)
    });
    Ok(bars.collect())
}

fn bar(policy: &Policy, who: Option<String>, item: &UsageItem) -> LimitBar {
    let feature = &item.feature;
    let shown = |quantity: Quantity| amount(quantity, &feature.unit).to_string();
    let some = |quantity: Quantity| (quantity > Quantity::ZERO).then(|| shown(quantity));
    let whole = feature.hard_limit.or(feature.soft_limit);
    LimitBar {
        who,
        name: display_name(policy, &feature.feature_key),
        window: feature.window.as_str(),
        status: item.status,
        percent: percent(item.percent),
        used: shown(feature.used),
        of: whole.map_or_else(|| "unlimited".to_owned(), shown),
        unit: unit_word(&feature.unit).to_owned(),
        reserved: some(item.reserved),
        soft: feature
            .soft_limit
            .filter(|_| feature.hard_limit.is_some())
            .map(shown),
        granted: some(item.granted),
        remaining: feature.remaining.map(shown),
        level: Level::of(
            feature.used.get(),
            item.reserved.get(),
            feature.soft_limit.map(Quantity::get),
            whole.map(Quantity::get),
        ),
        resets_at: item.resets_at,
    }
}

fn own_limits(policy: &Policy, now: Timestamp) -> Vec<OverrideRow> {
    let holds = |own: &&Override| own.until.is_none_or(|until| now < until);
    let own = policy.tenant.overrides.iter().filter(holds);
    let rows = own.flat_map(|own| {
        let unit = unit_of(policy, &own.feature);
        let row = move |limit: &Limit| OverrideRow {
            feature: own.feature.to_string(),
            place: format!("per {} and {}", limit.scope, limit.window),
            soft: limit_text(limit.soft, &unit),
            hard: limit_text(limit.hard, &unit),
            until: own.until,
            scope: limit.scope.as_str(),
            window: limit.window.as_str(),
        };
        own.limits.iter().map(row).collect::<Vec<_>>()
    });
    rows.collect()
}

/// The last 48 hours of a feature.
async fn by_hour(
    app: &App,
    policy: &Policy,
    feature: &FeatureKey,
    now: Timestamp,
) -> ApiResult<Chart> {
    let end = Window::hour_of(now).end();
    let starts: Vec<Timestamp> = (0..48).map(|hour| end.minus(HOUR * (48 - hour))).collect();
    drawn(
        app,
        policy,
        feature,
        (&starts, end),
        ("48 hours ago", "an hour"),
    )
    .await
}

/// The last 30 days of a feature.
async fn by_day(
    app: &App,
    policy: &Policy,
    feature: &FeatureKey,
    now: Timestamp,
) -> ApiResult<Chart> {
    let today = WindowKind::Day.window_at(now, &policy.anchors());
    let starts: Vec<Timestamp> = (0..30)
        .map(|day| today.start().minus(DAY * (29 - day)))
        .collect();
    drawn(
        app,
        policy,
        feature,
        (&starts, today.end()),
        ("30 days ago", "a day"),
    )
    .await
}

/// Bars from each of `starts` to the next one, the last one to `end`.
async fn drawn(
    app: &App,
    policy: &Policy,
    feature: &FeatureKey,
    (starts, end): (&[Timestamp], Timestamp),
    (from, each): (&str, &str),
) -> ApiResult<Chart> {
    let tenant = policy.tenant.tenant_id;
    let begin = starts.first().copied().unwrap_or(end);
    let used: Vec<UsedInHour> = match Window::new(begin, end) {
        Ok(window) => {
            app.recorder.flush_tenant(tenant).await?;
            app.store
                .tenant_used_by_hour(tenant, std::slice::from_ref(feature), window)
                .await?
        }
        Err(_) => Vec::new(),
    };
    let mut sums: BTreeMap<Timestamp, Quantity> = starts
        .iter()
        .map(|start| (*start, Quantity::ZERO))
        .collect();
    for it in &used {
        if let Some((_, sum)) = sums.range_mut(..=it.hour).next_back() {
            *sum = sum.plus(it.quantity);
        }
    }
    let unit = unit_of(policy, feature);
    let bars = sums.iter().map(|(start, sum)| Bar {
        title: format!(
            "{}: {}",
            format::exact_time(*start),
            amount(*sum, &unit).exact()
        ),
        value: u64::try_from(sum.get()).unwrap_or(0),
        on_top: 0,
    });
    let all: Quantity = sums.values().copied().sum();
    let name = display_name(policy, feature);
    let label = format!("{name} since {from}: {} in all", amount(all, &unit).exact());
    let highest = |top: u64| {
        let top = Quantity::new(i64::try_from(top).unwrap_or(i64::MAX));
        format!("{} {} {each}", amount(top, &unit).short(), unit_word(&unit))
    };
    Ok(Chart::new(
        label,
        bars.collect(),
        (from.to_owned(), "now".to_owned()),
        highest,
    ))
}

#[derive(Template)]
#[template(path = "tenants/usage.html")]
struct UsagePage<'a> {
    view: &'a View,
    head: Head,
    features: Vec<(String, String)>,
    feature: String,
    hours: Chart,
    days: Chart,
    parts: Vec<Parts>,
    window: Window,
}

/// What was used by each key, user or model.
struct Parts {
    by: &'static str,
    rows: Vec<(String, String, String)>,
    /// How many more there are.
    more: usize,
}

/// `GET /admin/tenants/{t}/usage`.
pub(super) async fn usage(
    State(app): State<App>,
    view: View,
    InPath(tenant): InPath<TenantRef>,
    mut query: Query,
) -> PageResult {
    let policy = app.reports.policy(&tenant).await?;
    let feature: FeatureKey = query.optional("feature")?.unwrap_or(FeatureKey::Messages);
    let window = WindowKind::Period.window_at(view.now, &policy.anchors());
    let totals = app.reports.totals(&policy, &[], window, None).await?;
    let mut features: Vec<FeatureKey> = totals.totals.into_iter().map(|it| it.feature).collect();
    if !features.contains(&feature) {
        features.push(feature.clone());
    }
    let (keys, _) = Keys::new(app.store.clone()).list(&tenant).await?;
    let key_name = |id: &str| {
        let found = keys.iter().find(|key| key.key_id.to_string() == id);
        found.map_or_else(|| id.to_owned(), |key| key.name.to_string())
    };
    let mut parts = Vec::new();
    for (by, dimension) in [
        ("key", Dimension::Key),
        ("end user", Dimension::User),
        ("model", Dimension::Model),
    ] {
        let asked = [feature.clone()];
        let totals = app
            .reports
            .totals(&policy, &asked, window, Some(dimension))
            .await?;
        let name = |by: &str| match (by, dimension) {
            ("", Dimension::Key) => "no key".to_owned(),
            ("", Dimension::User) => "no user named".to_owned(),
            ("", Dimension::Model) => "no model named".to_owned(),
            (by, Dimension::Key) => key_name(by),
            (by, _) => by.to_owned(),
        };
        parts.push(parts_of(
            by,
            totals.totals,
            &unit_of(&policy, &feature),
            name,
        ));
    }
    let page = UsagePage {
        view: &view,
        head: Head::of(&policy, "usage"),
        features: features
            .iter()
            .map(|key| (key.to_string(), display_name(&policy, key)))
            .collect(),
        hours: by_hour(&app, &policy, &feature, view.now).await?,
        days: by_day(&app, &policy, &feature, view.now).await?,
        feature: feature.to_string(),
        parts,
        window,
    };
    view::show(&page)
}

fn parts_of(
    by: &'static str,
    mut totals: Vec<Total>,
    unit: &str,
    name: impl Fn(&str) -> String,
) -> Parts {
    totals.sort_by_key(|total| std::cmp::Reverse(total.quantity));
    // What corrections took away is no part of what was used.
    let used = |total: &Total| total.quantity.at_least_zero();
    let all: Quantity = totals.iter().map(used).sum();
    let more = totals.len().saturating_sub(MOST_PARTS);
    let rows = totals.iter().take(MOST_PARTS).map(|total| {
        let share = (total.quantity >= Quantity::ZERO)
            .then(|| Percent::of(total.quantity, all))
            .flatten();
        (
            name(total.by.as_deref().unwrap_or_default()),
            amount(total.quantity, unit).to_string(),
            percent(share),
        )
    });
    Parts {
        by,
        rows: rows.collect(),
        more,
    }
}

/// The tenant's own address.
fn address(tenant: &Tenant) -> String {
    format!("/admin/tenants/{}", tenant.slug)
}
