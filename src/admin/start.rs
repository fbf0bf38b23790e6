//! The first steps: a plan, a tenant, its key, and a request that is seen to arrive.

use askama::Template;

use super::{
    assets,
    form::{Fault, Form},
    format::{amount, grouped},
    plans::{self, PresetChoice},
    tenants,
    view::{self, PageResult, View},
};
use crate::{
    app::App,
    config::ProviderKind,
    domain::{
        feature::FeatureKey,
        names::Slug,
        tenant::{Tenant, TenantRef},
        usage::UsageEvent,
    },
    http::error::ApiResult,
    services::keys::{Keys, NewKey},
    services::{plans::Plans, tenants::Tenants},
};

/// How soon the page looks again whether the request has arrived.
const LOOK_AGAIN_MILLIS: u32 = 2_000;

/// What is to be done next.
pub(super) enum Start {
    Plan,
    Tenant,
    Key(Tenant),
    /// A request is waited for.
    Request(Tenant),
    Arrived(Tenant, Box<UsageEvent>),
    /// There is a plan and a tenant, and nobody asked to go on with a certain one.
    Over,
}

#[derive(Template)]
#[template(path = "start.html")]
struct StartPage<'a> {
    view: &'a View,
    /// 1 to 4; 5 when all is done.
    step: usize,
    tenant: String,
    presets: Vec<PresetChoice>,
    plans: Vec<String>,
    form: &'a Form,
    fault: Fault,
    base: &'a str,
    model: String,
    /// Shown once; `""`: not made just now.
    secret: String,
    arrived: Vec<String>,
    look_again: u32,
}

/// Where the first steps stand, by what is there and by whom the address names as `first`.
///
/// # Errors
/// `Unavailable`.
pub(super) async fn step(app: &App, view: &View) -> ApiResult<Start> {
    let plans = Plans::new(app.store.clone()).list().await?;
    if plans.is_empty() {
        return Ok(Start::Plan);
    }
    if app.store.count_tenants().await? == 0 {
        return Ok(Start::Tenant);
    }
    let Some(tenant) = view.first() else {
        return Ok(Start::Over);
    };
    let tenant = Tenants::new(app.store.clone())
        .get(&TenantRef::Slug(tenant))
        .await?;
    let id = tenant.tenant_id;
    app.recorder.flush_tenant(id).await?;
    if let Some(event) = app.store.list_events(id, None, 1).await?.pop() {
        return Ok(Start::Arrived(tenant, Box::new(event)));
    }
    let has_key = app
        .store
        .list_keys(id)
        .await?
        .iter()
        .any(|key| key.is_valid_at(view.now));
    Ok(if has_key {
        Start::Request(tenant)
    } else {
        Start::Key(tenant)
    })
}

pub(super) async fn show(
    app: &App,
    view: &View,
    step: Start,
    fault: Option<(&Form, Fault)>,
) -> PageResult {
    let none = Form::default();
    let is_fault = fault.is_some();
    let (form, fault) = fault.unwrap_or((&none, Fault::default()));
    let mut page = page(app, view, form).await?;
    page.fault = fault;
    match step {
        Start::Plan => page.step = 1,
        Start::Tenant | Start::Over => page.step = 2,
        Start::Key(tenant) => {
            page.step = 3;
            page.tenant = tenant.slug.to_string();
        }
        Start::Request(tenant) => {
            page.step = 4;
            page.tenant = tenant.slug.to_string();
            page.look_again = LOOK_AGAIN_MILLIS;
        }
        Start::Arrived(tenant, event) => {
            page.step = 5;
            page.tenant = tenant.slug.to_string();
            let quantities = event.quantities.iter();
            page.arrived = quantities
                .map(|(feature, quantity)| match feature {
                    FeatureKey::InputTokens => format!("{} input tokens", grouped(quantity.get())),
                    FeatureKey::OutputTokens => {
                        format!("{} output tokens", grouped(quantity.get()))
                    }
                    _ => amount(quantity, feature.default_unit()).exact(),
                })
                .collect();
        }
    }
    if is_fault {
        view::mend(&page)
    } else {
        view::show(&page)
    }
}

async fn page<'a>(app: &App, view: &'a View, form: &'a Form) -> ApiResult<StartPage<'a>> {
    let plans = Plans::new(app.store.clone()).list().await?;
    Ok(StartPage {
        view,
        step: 1,
        tenant: String::new(),
        presets: plans::preset_choices(),
        plans: plans.iter().map(|plan| plan.code.to_string()).collect(),
        form,
        fault: Fault::default(),
        base: view.base(),
        model: match app.config.provider {
            ProviderKind::Simulated => "simulated".to_owned(),
            ProviderKind::OpenAi => app.config.default_model.clone(),
        },
        secret: String::new(),
        arrived: Vec::new(),
        look_again: 0,
    })
}

/// Takes the step that a form asks for.
pub(super) async fn take(app: &App, view: &View, form: &Form) -> PageResult {
    let (taken, step) = match form.text("do") {
        "plan" => (
            plans::make(app, view, form)
                .await
                .map(|_| "/admin".to_owned()),
            Start::Plan,
        ),
        "tenant" => (
            tenants::make(app, view, form)
                .await
                .map(|slug| format!("/admin?first={slug}")),
            Start::Tenant,
        ),
        _ => {
            let slug: Slug = form.required("first")?;
            let tenant = TenantRef::Slug(slug);
            let tenant = Tenants::new(app.store.clone()).get(&tenant).await?;
            match make_key(app, view, &tenant, form).await {
                Ok(shown) => return Ok(shown),
                Err(error) => (Err(error), Start::Key(tenant)),
            }
        }
    };
    match taken {
        Ok(next) => view::go(&next),
        Err(error) => show(app, view, step, Some((form, Fault::mend(error)?))).await,
    }
}

/// Makes a key, and shows it with what to do with it.
async fn make_key(app: &App, view: &View, tenant: &Tenant, form: &Form) -> PageResult {
    use secrecy::ExposeSecret as _;
    let by = view.operator()?;
    let new = NewKey {
        name: form.required("name")?,
        user: None,
        expires_at: None,
    };
    let id = TenantRef::Id(tenant.tenant_id);
    let issued = Keys::new(app.store.clone()).create(&id, new, by).await?;
    let mut page = page(app, view, form).await?;
    page.step = 4;
    page.tenant = tenant.slug.to_string();
    page.secret = issued.secret.expose_secret().to_owned();
    view::show(&page)
}
