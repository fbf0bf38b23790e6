//! What audit entries say of things, the same for every backend: JSON for people, in the words of the admin API,
//! and never a secret or its hash.

use serde_json::{Map, Value, json};

use crate::domain::{
    administrator::AdminToken,
    grant::Grant,
    limit::{Limit, Override},
    plan::{Plan, PlanFeature},
    reset::Reset,
    session::Session,
    subscription::Subscription,
    tenant::{ApiKey, Tenant},
};

fn limits(limits: &[Limit]) -> Value {
    limits
        .iter()
        .map(|limit| {
            json!({
                "scope": limit.scope,
                "window": limit.window,
                "soft_limit": limit.soft,
                "hard_limit": limit.hard,
            })
        })
        .collect()
}

fn feature(feature: &PlanFeature) -> Value {
    json!({
        "feature_key": feature.key,
        "display_name": feature.display_name,
        "unit": feature.unit,
        "is_metered": feature.is_metered,
        "limits": limits(&feature.limits),
        "alert_thresholds": feature.alert_thresholds,
        "stripe_meter": feature.stripe_meter,
    })
}

pub(super) fn plan(plan: &Plan) -> Value {
    json!({
        "plan_code": plan.code,
        "name": plan.name,
        "allowed_models": plan.allowed_models,
        "features": plan.features.iter().map(feature).collect::<Value>(),
        "version": plan.version,
    })
}

pub(super) fn tenant(tenant: &Tenant) -> Value {
    json!({
        "tenant_id": tenant.tenant_id,
        "slug": tenant.slug,
        "name": tenant.name,
        "created_at": tenant.created_at,
        "subscription": tenant.subscription.as_ref().map(subscription),
        "overrides": tenant.overrides.iter().map(override_).collect::<Value>(),
    })
}

pub(super) fn subscription(subscription: &Subscription) -> Value {
    let first = subscription.period.first();
    json!({
        "plan_code": subscription.plan_code,
        "status": subscription.status,
        "status_since": subscription.status_since,
        "first_period_start": first.start(),
        "first_period_end": first.end(),
        "processor_customer_id": subscription.processor_customer_id,
    })
}

pub(super) fn override_(limits_of: &Override) -> Value {
    json!({
        "feature_key": limits_of.feature,
        "limits": limits(&limits_of.limits),
        "until": limits_of.until,
    })
}

pub(super) fn grant(grant: &Grant) -> Value {
    json!({
        "grant_id": grant.grant_id,
        "tenant_id": grant.tenant_id,
        "feature_key": grant.feature,
        "quantity": grant.quantity,
        "reason": grant.reason,
        "created_at": grant.created_at,
        "expires_at": grant.expires_at,
        "revoked_at": grant.revoked_at,
    })
}

pub(super) fn reset(reset: &Reset) -> Value {
    json!({
        "feature_key": reset.feature,
        "at": reset.at,
        "reason": reset.reason,
    })
}

pub(super) fn key(key: &ApiKey) -> Value {
    json!({
        "key_id": key.key_id,
        "tenant_id": key.tenant_id,
        "name": key.name,
        "user": key.user,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    })
}

pub(super) fn admin_token(token: &AdminToken) -> Value {
    json!({
        "admin_token_id": token.admin_token_id,
        "name": token.name,
        "role": token.role,
        "created_at": token.created_at,
        "revoked_at": token.revoked_at,
    })
}

pub(super) fn session(session: &Session) -> Value {
    json!({
        "session_id": session.session_id,
        "admin_token_id": session.admin_token_id,
        "created_at": session.created_at,
        "expires_at": session.expires_at,
        "address": session.address,
        "user_agent": session.user_agent,
    })
}

/// `value` with one more member.
pub(super) fn with(value: Value, name: &str, member: impl Into<Value>) -> Value {
    let mut object = match value {
        Value::Object(object) => object,
        other => Map::from_iter([("value".to_owned(), other)]),
    };
    object.insert(name.to_owned(), member.into());
    Value::Object(object)
}
