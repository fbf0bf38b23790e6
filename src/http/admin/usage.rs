//! What tenants used.

use std::{cmp::Reverse, collections::BTreeMap, fmt, str::FromStr};

use axum::{
    Json,
    extract::{RawQuery, State},
};

use super::access::Viewer;
use crate::{
    app::App,
    domain::{
        names::{PlanCode, Slug},
        subscription::SubscriptionStatus,
        tenant::TenantRef,
    },
    http::{
        error::ApiResult,
        fields::{FieldType, parsed_from_text},
        openapi::errors,
        paging::{Listed, Page, Paging},
        path::InPath,
        query::Query,
        usage::{TotalsParams, TotalsQuery},
    },
    services::{
        reports::CurrentUsage,
        usage_view::{TotalsBody, UsageBody, UsageItem, UsageStatus},
    },
};

/// How many tenants are looked at for one page: a filter that matches few must not read all of them at once.
const MOST_LOOKED_AT: usize = 5_000;
/// How many tenants are read from the store at once.
const CHUNK: usize = 500;

/// What a tenant used in its current windows.
#[utoipa::path(
    get, path = "/tenants/{t}/usage", tag = "reports", security(("administrator" = ["viewer"])),
    responses((status = 200, description = "As `GET /api/v1/usage`", body = UsageBody), errors::NotFound),
)]
pub(super) async fn of_tenant(
    State(app): State<App>,
    _: Viewer,
    InPath(tenant): InPath<TenantRef>,
    query: Query,
) -> ApiResult<Json<UsageBody>> {
    query.finish()?;
    let current = app.reports.current_of(&tenant).await?;
    Ok(Json(UsageBody::of(&current)))
}

/// What a tenant used in any window; a deleted one too.
#[utoipa::path(
    get, path = "/tenants/{t}/totals", tag = "reports", security(("administrator" = ["viewer"])),
    params(TotalsParams),
    responses((status = 200, description = "As `GET /api/v1/usage/totals`", body = TotalsBody), errors::NotFound),
)]
pub(super) async fn totals(
    State(app): State<App>,
    _: Viewer,
    InPath(tenant): InPath<TenantRef>,
    RawQuery(query): RawQuery,
) -> ApiResult<Json<TotalsBody>> {
    let query = TotalsQuery::read(query.as_deref().unwrap_or(""))?;
    let policy = app.reports.policy_ever(&tenant).await?;
    let totals = app
        .reports
        .totals(&policy, &query.features, query.window, query.by)
        .await?;
    Ok(Json(TotalsBody::of(&policy, &totals, query.by)))
}

/// How a list of tenants is narrowed.
struct Filter {
    status: Option<StatusFilter>,
    plan: Option<PlanCode>,
}

/// Where usage stands, or where the subscription does: no word is in both.
#[derive(Clone, Copy)]
enum StatusFilter {
    Usage(UsageStatus),
    Subscription(SubscriptionStatus),
}

impl FieldType for StatusFilter {
    const ACCEPTED: &'static str = "ok, approaching, soft_limit_exceeded or hard_limit_exceeded (the worst of its limits), or the status of a subscription, such as active";

    fn of_text(text: &str) -> Option<Self> {
        let usage = [
            UsageStatus::Ok,
            UsageStatus::Approaching,
            UsageStatus::SoftLimitExceeded,
            UsageStatus::HardLimitExceeded,
        ];
        let is_it = |status: &UsageStatus| status.as_str() == text;
        match usage.into_iter().find(is_it) {
            Some(status) => Some(Self::Usage(status)),
            None => SubscriptionStatus::of_text(text).map(Self::Subscription),
        }
    }
}

impl Filter {
    fn keeps(&self, current: &CurrentUsage, body: &UsageBody) -> bool {
        let subscription = current.policy.subscription();
        let is_status = self.status.is_none_or(|status| match status {
            StatusFilter::Usage(status) => worst(body) == status,
            StatusFilter::Subscription(status) => {
                subscription.is_some_and(|it| it.status == status)
            }
        });
        let is_plan = self
            .plan
            .as_ref()
            .is_none_or(|plan| subscription.is_some_and(|it| it.plan_code == *plan));
        is_status && is_plan
    }
}

fn worst(body: &UsageBody) -> UsageStatus {
    let statuses = body.features.iter().map(|item| item.status);
    statuses.max().unwrap_or(UsageStatus::Ok)
}

fn highest_percent(body: &UsageBody) -> i64 {
    let percents = body
        .features
        .iter()
        .filter_map(|item: &UsageItem| item.percent);
    percents.map(|percent| percent.0).max().unwrap_or(-1)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    Slug,
    Percent,
}

impl FromStr for Sort {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "slug" => Ok(Self::Slug),
            "percent" => Ok(Self::Percent),
            _ => Err(()),
        }
    }
}

/// Where a list by percent goes on: behind this percentage (in hundredths, −1 without any) and slug.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ByPercent {
    percent: Reverse<i64>,
    slug: String,
}

impl fmt::Display for ByPercent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.percent.0, self.slug)
    }
}

impl FromStr for ByPercent {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (percent, slug) = text.split_once(':').ok_or(())?;
        Ok(Self {
            percent: Reverse(percent.parse().map_err(|_| ())?),
            slug: slug.to_owned(),
        })
    }
}

parsed_from_text! {
    Sort => "slug or percent",
    ByPercent => "the next_cursor of the page before",
}

/// What all tenants used in their current windows.
#[utoipa::path(
    get, path = "/usage", tag = "reports", security(("administrator" = ["viewer"])),
    params(
        Paging,
        ("status" = Option<String>, Query, description = "`ok`, `approaching`, `soft_limit_exceeded` or `hard_limit_exceeded`: the worst of a tenant's limits; or a subscription's status, such as `past_due`"),
        ("plan" = Option<PlanCode>, Query, description = "Of tenants of this plan"),
        ("sort" = Option<String>, Query, description = "`slug`, or `percent`: the highest first"),
    ),
    responses((status = 200, description = "By slug, or as `sort` says; with a filter a page may be short, or empty, and others follow", body = Listed<UsageBody>)),
)]
pub(super) async fn of_all(
    State(app): State<App>,
    _: Viewer,
    mut query: Query,
) -> ApiResult<Json<Listed<UsageBody>>> {
    let filter = Filter {
        status: query.optional("status")?,
        plan: query.optional("plan")?,
    };
    match query.optional("sort")?.unwrap_or(Sort::Slug) {
        Sort::Slug => {
            let page = Page::of(&mut query)?;
            query.finish()?;
            by_slug(&app, &filter, &page).await
        }
        Sort::Percent => {
            let page = Page::of(&mut query)?;
            query.finish()?;
            by_percent(&app, &filter, &page).await
        }
    }
}

async fn by_slug(
    app: &App,
    filter: &Filter,
    page: &Page<Slug>,
) -> ApiResult<Json<Listed<UsageBody>>> {
    let (mut rows, mut after, mut looked_at) = (Vec::new(), page.after.clone(), 0);
    loop {
        let chunk = app.reports.current_page(after.as_ref(), CHUNK).await?;
        looked_at += CHUNK;
        after = chunk.last.clone();
        for current in chunk.tenants {
            let body = UsageBody::of(&current);
            if filter.keeps(&current, &body) {
                rows.push(body);
            }
        }
        let is_full = rows.len() >= page.to_read();
        if is_full || after.is_none() {
            break;
        }
        if looked_at >= MOST_LOOKED_AT {
            return Ok(Json(page.show_until(rows, after, |body| body)));
        }
    }
    let slug = |body: &UsageBody| Slug::of_text(&body.tenant_slug).expect("a tenant's slug is one");
    rows.truncate(page.to_read());
    Ok(Json(page.show(rows, slug, |body| body)))
}

async fn by_percent(
    app: &App,
    filter: &Filter,
    page: &Page<ByPercent>,
) -> ApiResult<Json<Listed<UsageBody>>> {
    // Whoever is highest may be anywhere, so all are looked at; no more are kept than the page has.
    let mut first: BTreeMap<ByPercent, UsageBody> = BTreeMap::new();
    let mut slug: Option<Slug> = None;
    loop {
        let chunk = app.reports.current_page(slug.as_ref(), CHUNK).await?;
        for current in chunk.tenants {
            let body = UsageBody::of(&current);
            let key = ByPercent {
                percent: Reverse(highest_percent(&body)),
                slug: body.tenant_slug.clone(),
            };
            let is_later = page.after.as_ref().is_none_or(|after| key > *after);
            if is_later && filter.keeps(&current, &body) {
                first.insert(key, body);
            }
            if first.len() > page.to_read() {
                first.pop_last();
            }
        }
        slug = chunk.last;
        if slug.is_none() {
            break;
        }
    }
    Ok(Json(page.show(
        first.into_iter().collect(),
        |(key, _)| key.clone(),
        |(_, body)| body,
    )))
}
