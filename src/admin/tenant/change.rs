//! What the forms of a tenant's page do: each button says it in `do`.

use std::time::Duration;

use axum::extract::State;

use super::{Secret, address, page, records::mend_correction};
use crate::{
    admin::{
        form::{Fault, Form},
        plans::read_limit,
        view::{self, PageResult, View},
    },
    app::App,
    domain::{
        administrator::Actor,
        feature::FeatureKey,
        ids::{GrantId, KeyId},
        limit::Scope,
        names::DisplayName,
        quantity::Quantity,
        tenant::{Tenant, TenantRef},
        window::WindowKind,
    },
    http::{
        error::{ApiError, ApiResult},
        path::InPath,
    },
    services::{
        keys::{Issued, Keys, NewKey},
        plans::Change,
        reporting::Correction,
        reports::unit_of,
        tenants::{NewGrant, OverrideChange, StatusChange, SubscriptionChange, Tenants},
    },
};

/// What a form has done.
enum Done {
    /// To be said on the tenant's page.
    Said(&'static str),
    /// A key was made or changed; its secret is shown once, here.
    Key(Box<Issued>, Rotated),
    /// The tenant is gone.
    Deleted,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rotated {
    No,
    Yes,
}

/// `POST /admin/tenants/{t}`.
pub(in crate::admin) async fn change(
    State(app): State<App>,
    view: View,
    InPath(name): InPath<TenantRef>,
    form: Form,
) -> PageResult {
    let by = view.operator()?;
    let tenant = Tenants::new(app.store.clone()).get(&name).await?;
    match act(&app, &tenant, &form, by).await {
        Ok(Done::Said(said)) => view::done(&address(&tenant), said),
        Ok(Done::Deleted) => view::done("/admin/tenants", "deleted"),
        Ok(Done::Key(issued, rotated)) => {
            use secrecy::ExposeSecret as _;
            app.refresh().await;
            let none = Form::default();
            let mut page = page(&app, &view, &name, &none).await?;
            page.secret = Some(Secret {
                name: issued.key.name.to_string(),
                secret: issued.secret.expose_secret().to_owned(),
                is_rotated: rotated == Rotated::Yes,
            });
            view::show(&page)
        }
        Err(error) => {
            let fault = Fault::mend(error)?;
            if form.text("do") == "correct" {
                return mend_correction(&app, &view, &name, &form, fault).await;
            }
            let mut page = page(&app, &view, &name, &form).await?;
            page.fault = fault;
            view::mend(&page)
        }
    }
}

async fn act(app: &App, tenant: &Tenant, form: &Form, by: &Actor) -> ApiResult<Done> {
    let id = TenantRef::Id(tenant.tenant_id);
    let tenants = Tenants::new(app.store.clone());
    let keys = Keys::new(app.store.clone());
    match form.text("do") {
        "key.create" => {
            let new = NewKey {
                name: form.required("name")?,
                user: form.optional("user")?,
                expires_at: form.time("expires_at")?,
            };
            let issued = keys.create(&id, new, by).await?;
            Ok(Done::Key(Box::new(issued), Rotated::No))
        }
        "key.rotate" => {
            let key = own_key(app, tenant, form).await?;
            let grace = Duration::from_secs(form.optional("grace_seconds")?.unwrap_or(0));
            let issued = keys.rotate(key, grace, by).await?;
            Ok(Done::Key(Box::new(issued), Rotated::Yes))
        }
        "key.revoke" => {
            let key = own_key(app, tenant, form).await?;
            keys.revoke(key, by).await?;
            Ok(Done::Said("revoked"))
        }
        "grant.add" => {
            let feature: FeatureKey = form.required("feature_key")?;
            let new = NewGrant {
                quantity: quantity(app, tenant, &feature, form, "quantity").await?,
                feature,
                reason: form.required("reason")?,
                expires_at: form.time("expires_at")?,
            };
            tenants.add_grant(&id, new, by).await?;
            Ok(Done::Said("granted"))
        }
        "grant.end" => {
            let grant: GrantId = form.required("grant")?;
            let (own, _) = tenants.list_grants(&id).await?;
            if !own.iter().any(|it| it.grant_id == grant) {
                return Err(ApiError::NotFound(format!(
                    "grant '{grant}' of this tenant"
                )));
            }
            tenants.end_grant(grant, by).await?;
            Ok(Done::Said("grant-ended"))
        }
        "limit.set" => set_limit(app, tenant, form, by).await,
        "limit.remove" => {
            let place: (Scope, WindowKind) = (form.required("scope")?, form.required("window")?);
            let feature: FeatureKey = form.required("feature_key")?;
            tenants.remove_limit(&id, &feature, Some(place), by).await?;
            Ok(Done::Said("limit-removed"))
        }
        "subscription" => {
            let status = form.optional("status")?;
            let change = SubscriptionChange {
                plan_code: Some(form.required("plan_code")?),
                status: status.map_or(StatusChange::Keep, StatusChange::Set),
                period_start: form.time("current_period_start")?,
                period_end: form.time("current_period_end")?,
                processor_customer_id: match form.raw("processor_customer_id") {
                    None => Change::Keep,
                    Some(text) if text.trim().is_empty() => Change::Clear,
                    Some(text) => Change::Set(text.trim().to_owned()),
                },
            };
            tenants.subscribe(&id, &change, by).await?;
            Ok(Done::Said("subscribed"))
        }
        "cancel" => {
            tenants.cancel(&id, by).await?;
            Ok(Done::Said("canceled"))
        }
        "rename" => {
            let name: DisplayName = form.required("name")?;
            tenants.rename(&id, name, by).await?;
            Ok(Done::Said("renamed"))
        }
        "delete" => {
            if form.text("confirm") != tenant.slug.as_str() {
                let accepted = format!("{}, to say that it is this one", tenant.slug);
                return Err(ApiError::bad_field("confirm", "something else", accepted));
            }
            tenants.delete(&id, by).await?;
            Ok(Done::Deleted)
        }
        "correct" => correct(app, tenant, form, by).await,
        "reset" => {
            let feature: FeatureKey = form.required("feature_key")?;
            tenants
                .reset(&id, feature, form.required("reason")?, by)
                .await?;
            Ok(Done::Said("reset"))
        }
        _ => Err(ApiError::bad_field(
            "do",
            "nothing that this page does",
            "what a button says",
        )),
    }
}

/// The key that the form names, if it is this tenant's.
async fn own_key(app: &App, tenant: &Tenant, form: &Form) -> ApiResult<KeyId> {
    let key: KeyId = form.required("key")?;
    if app.store.get_key(key).await?.tenant_id == tenant.tenant_id {
        return Ok(key);
    }
    Err(ApiError::NotFound(format!("key '{key}' of this tenant")))
}

async fn unit(app: &App, tenant: &Tenant, feature: &FeatureKey) -> ApiResult<String> {
    let policy = app.reports.policy(&TenantRef::Id(tenant.tenant_id)).await?;
    Ok(unit_of(&policy, feature))
}

/// A quantity as people write it: `1,000`, `2.5k`, `$12.50`; with a sign in front, below zero.
async fn quantity(
    app: &App,
    tenant: &Tenant,
    feature: &FeatureKey,
    form: &Form,
    name: &'static str,
) -> ApiResult<Quantity> {
    let unit = unit(app, tenant, feature).await?;
    let text = form.text(name);
    let (size, is_negative) = match text.strip_prefix(['-', '−']) {
        Some(size) => (size, true),
        None => (text.strip_prefix('+').unwrap_or(text), false),
    };
    let read = read_limit(size, &unit).ok().flatten();
    let read = read.ok_or_else(|| {
        let accepted = if unit == "usd_micros" {
            "dollars such as $12.50"
        } else {
            "a whole number"
        };
        ApiError::bad_field(name, format!("'{text}'"), accepted)
    })?;
    Ok(if is_negative {
        Quantity::ZERO.minus(read)
    } else {
        read
    })
}

async fn set_limit(app: &App, tenant: &Tenant, form: &Form, by: &Actor) -> ApiResult<Done> {
    let feature: FeatureKey = form.required("feature_key")?;
    let unit = unit(app, tenant, &feature).await?;
    let value = |name: &'static str| {
        read_limit(form.text(name), &unit)
            .map(|value| value.map_or(Change::Clear, Change::Set))
            .map_err(|message| ApiError::Invalid {
                param: name.to_owned(),
                message,
            })
    };
    let change = OverrideChange {
        feature,
        scope: form.required("scope")?,
        window: form.required("window")?,
        soft: value("soft_limit")?,
        hard: value("hard_limit")?,
        until: form.time("until")?.map_or(Change::Clear, Change::Set),
    };
    let id = TenantRef::Id(tenant.tenant_id);
    Tenants::new(app.store.clone())
        .set_limit(&id, &change, by)
        .await?;
    Ok(Done::Said("limit-set"))
}

async fn correct(app: &App, tenant: &Tenant, form: &Form, by: &Actor) -> ApiResult<Done> {
    let feature: FeatureKey = form.required("feature_key")?;
    let correction = Correction {
        quantity: quantity(app, tenant, &feature, form, "quantity").await?,
        feature,
        reason: form.required("reason")?,
        of: form.optional("event_id")?,
        // A form that is sent twice, by an impatient finger or a reload, corrects once.
        idempotency_key: form.optional("idempotency_key")?,
    };
    let policy = app.reports.policy(&TenantRef::Id(tenant.tenant_id)).await?;
    let correcting = {
        let (app, by) = (app.clone(), by.clone());
        async move { app.reporting.correct(&policy, &correction, &by).await }
    };
    // A task of its own: what is written down is counted, whether its sender waits or not.
    let corrected = app.tasks.spawn(correcting).await;
    corrected.map_err(|_| ApiError::stopped())??;
    Ok(Done::Said("corrected"))
}
