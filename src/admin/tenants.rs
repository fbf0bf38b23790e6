//! All tenants: found by name, plan and status, or by how near they are to a limit; and making one.

use askama::Template;
use axum::extract::State;

use super::{
    assets,
    chart::Level,
    form::{Fault, Form},
    format::{self, percent},
    view::{self, PageResult, View},
};
use crate::{
    app::App,
    domain::{
        names::{PlanCode, Slug},
        subscription::SubscriptionStatus,
        tenant::Tenant,
    },
    http::{error::ApiResult, query::Query},
    services::{
        overview::{Near, Picture},
        plans::Plans,
        standings::Standing,
        tenants::{NewTenant, Tenants},
        usage_view::UsageStatus,
    },
    store::catalogue::TenantSearch,
};

/// Tenants on a page.
const PAGE: usize = 50;

#[derive(Template)]
#[template(path = "tenants/list.html")]
struct TenantsPage<'a> {
    view: &'a View,
    picture: &'a Picture,
    rows: Vec<TenantRow>,
    plans: Vec<String>,
    statuses: [&'static str; 11],
    filter: Filter,
    /// The address of the next page; `""`: this is the last.
    next: String,
    form: &'a Form,
    fault: Fault,
}

/// What is looked for, as the address says it.
#[derive(Clone, Debug, Default)]
struct Filter {
    text: String,
    plan: String,
    status: String,
    by_percent: bool,
}

struct TenantRow {
    slug: String,
    name: String,
    plan: String,
    status: String,
    /// `None` without any limit.
    nearest: Option<Nearest>,
}

struct Nearest {
    feature: String,
    percent: String,
    status: UsageStatus,
    level: Level,
}

impl From<&Standing> for Nearest {
    fn from(standing: &Standing) -> Self {
        let limit = &standing.limit;
        let whole = limit.hard.or(limit.soft);
        Self {
            feature: format!(
                "{} per {}",
                limit.feature.default_display_name(),
                limit.kind
            ),
            percent: percent(standing.percent),
            status: standing.status,
            level: Level::of(
                standing.used.get(),
                0,
                limit.soft.map(crate::domain::quantity::Quantity::get),
                whole.map(crate::domain::quantity::Quantity::get),
            ),
        }
    }
}

impl Filter {
    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.plan.is_empty() && self.status.is_empty()
    }

    fn keeps(&self, near: &Near) -> bool {
        let text = self.text.to_ascii_lowercase();
        let is_in = |name: &str| name.to_ascii_lowercase().contains(&text);
        let is_plan = self.plan.is_empty()
            || near
                .plan_code
                .as_ref()
                .is_some_and(|code| code.as_str() == self.plan);
        let is_status = self.status.is_empty() || near.standing.status.as_str() == self.status;
        is_plan && is_status && (is_in(near.slug.as_str()) || is_in(near.name.as_str()))
    }

    fn address(&self, more: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, value) in [
            ("q", &self.text),
            ("plan", &self.plan),
            ("status", &self.status),
        ] {
            if !value.is_empty() {
                query.append_pair(name, value);
            }
        }
        let query = query.finish();
        let joined = if query.is_empty() || more.is_empty() {
            ""
        } else {
            "&"
        };
        format!("/admin/tenants?{query}{joined}{more}")
    }
}

/// `GET /admin/tenants`.
pub(super) async fn list(State(app): State<App>, view: View, mut query: Query) -> PageResult {
    let filter = Filter {
        text: query
            .optional::<String>("q")?
            .unwrap_or_default()
            .trim()
            .to_owned(),
        plan: query.optional("plan")?.unwrap_or_default(),
        status: query.optional("status")?.unwrap_or_default(),
        by_percent: query.optional::<String>("sort")?.as_deref() == Some("percent"),
    };
    let after: Option<Slug> = query.optional("after")?;
    let skip: usize = query
        .optional::<u64>("skip")?
        .and_then(|skip| usize::try_from(skip).ok())
        .unwrap_or(0);
    let form = Form::default();
    let picture = app.overview.picture(&app.tasks).await?;
    // Only the nearest are known by where they stand; all others are listed by name.
    let is_by_standing = filter.by_percent || is_standing(&filter.status);
    let (rows, next) = if is_by_standing {
        by_standing(&picture, &filter, skip)
    } else {
        by_name(&app, &filter, after.as_ref()).await?
    };
    view::show(
        &page(
            &app,
            &view,
            &picture,
            (rows, next, filter),
            &form,
            Fault::default(),
        )
        .await?,
    )
}

/// `POST /admin/tenants`: makes one.
pub(super) async fn create(State(app): State<App>, view: View, form: Form) -> PageResult {
    match make(&app, &view, &form).await {
        Ok(slug) => view::done(&format!("/admin/tenants/{slug}"), "created"),
        Err(error) => {
            let fault = Fault::mend(error)?;
            let picture = app.overview.picture(&app.tasks).await?;
            let filter = Filter::default();
            let (rows, next) = by_name(&app, &filter, None).await?;
            view::mend(&page(&app, &view, &picture, (rows, next, filter), &form, fault).await?)
        }
    }
}

/// Makes the tenant that a form asks for; its slug.
pub(super) async fn make(app: &App, view: &View, form: &Form) -> ApiResult<Slug> {
    let by = view.operator()?;
    let new = NewTenant {
        slug: form.required("slug")?,
        name: form.required("name")?,
        plan_code: form.optional("plan_code")?,
    };
    let tenant = Tenants::new(app.store.clone()).create(new, by).await?;
    Ok(tenant.slug)
}

async fn page<'a>(
    app: &App,
    view: &'a View,
    picture: &'a Picture,
    (rows, next, filter): (Vec<TenantRow>, String, Filter),
    form: &'a Form,
    fault: Fault,
) -> ApiResult<TenantsPage<'a>> {
    let plans = Plans::new(app.store.clone()).list().await?;
    Ok(TenantsPage {
        view,
        picture,
        rows,
        plans: plans.iter().map(|plan| plan.code.to_string()).collect(),
        statuses: [
            "approaching",
            "soft_limit_exceeded",
            "hard_limit_exceeded",
            "active",
            "trialing",
            "past_due",
            "canceled",
            "unpaid",
            "incomplete",
            "incomplete_expired",
            "paused",
        ],
        filter,
        next,
        form,
        fault,
    })
}

fn is_standing(status: &str) -> bool {
    ["approaching", "soft_limit_exceeded", "hard_limit_exceeded"].contains(&status)
}

/// The nearest to a limit first.
fn by_standing(picture: &Picture, filter: &Filter, skip: usize) -> (Vec<TenantRow>, String) {
    let mut kept = picture
        .near
        .iter()
        .filter(|near| filter.keeps(near))
        .skip(skip);
    let rows: Vec<TenantRow> = kept
        .by_ref()
        .take(PAGE)
        .map(|near| TenantRow {
            slug: near.slug.to_string(),
            name: near.name.to_string(),
            plan: near
                .plan_code
                .as_ref()
                .map(PlanCode::to_string)
                .unwrap_or_default(),
            status: String::new(),
            nearest: Some(Nearest::from(&near.standing)),
        })
        .collect();
    let next = match kept.next() {
        Some(_) => filter.address(&format!("sort=percent&skip={}", skip + PAGE)),
        None => String::new(),
    };
    (rows, next)
}

async fn by_name(
    app: &App,
    filter: &Filter,
    after: Option<&Slug>,
) -> ApiResult<(Vec<TenantRow>, String)> {
    let status: Option<SubscriptionStatus> = filter.status.parse().ok();
    let search = TenantSearch {
        text: (!filter.text.is_empty()).then(|| filter.text.clone()),
        plan: filter.plan.parse().ok(),
        status,
    };
    let mut tenants: Vec<Tenant> = app.store.search_tenants(&search, after, PAGE + 1).await?;
    let next = if tenants.len() > PAGE {
        tenants.truncate(PAGE);
        let last = tenants.last().map(|tenant| tenant.slug.to_string());
        filter.address(&format!("after={}", last.unwrap_or_default()))
    } else {
        String::new()
    };
    let plans = app.reports.plans().await?;
    let stand = app.reports.standings(tenants, &plans).await?;
    let rows = stand.into_iter().map(|of| {
        let subscription = of.tenant.subscription.as_ref();
        TenantRow {
            plan: subscription
                .map(|it| it.plan_code.to_string())
                .unwrap_or_default(),
            status: subscription
                .map(|it| it.status.to_string())
                .unwrap_or_default(),
            nearest: of
                .nearest()
                .filter(|it| it.percent.is_some())
                .map(Nearest::from),
            slug: of.tenant.slug.to_string(),
            name: of.tenant.name.to_string(),
        }
    });
    Ok((rows.collect(), next))
}
