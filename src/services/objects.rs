//! The objects of interface.md §4 (plan, feature, tenant, key, grant, administrator), as the command line and the JSON API show them.
//!
//! When something was made or ended is shown in whole seconds.

use std::collections::BTreeMap;

use secrecy::SecretString;
use serde::Serialize;

use super::{administrators::IssuedToken, secrets::Told};
use crate::domain::{
    administrator::{AdminToken, Role},
    feature::FeatureKey,
    grant::Grant,
    ids::{AdminTokenId, EventId, GrantId, KeyId, TenantId},
    limit::{Limit, Override, Scope},
    names::{DisplayName, PlanCode, Slug},
    plan::{AllowedModels, Plan, PlanFeature},
    quantity::Quantity,
    reset::Reset,
    subscription::SubscriptionStatus,
    tenant::{ApiKey, Tenant},
    time::Timestamp,
    usage::{Source, UsageEvent},
    window::WindowKind,
};
use crate::store::audit::AuditEntry;

/// A usage event.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct EventObject {
    pub event_id: EventId,
    pub request_id: String,
    /// `chat`, `reservation`, `cloudevent`, `manual` or `correction`.
    #[schema(value_type = String)]
    pub source: Source,
    pub admitted_at: Timestamp,
    pub recorded_at: Timestamp,
    pub key_id: Option<KeyId>,
    pub user: String,
    pub model: Option<String>,
    #[schema(value_type = Object)]
    pub quantities: BTreeMap<FeatureKey, Quantity>,
    pub estimated: bool,
    pub reason: Option<String>,
}

impl EventObject {
    #[must_use]
    pub fn of(event: &UsageEvent) -> Self {
        let quantities = event.quantities.iter();
        Self {
            event_id: event.event_id,
            request_id: event.request_id.clone(),
            source: event.source,
            admitted_at: event.admitted_at,
            recorded_at: event.recorded_at,
            key_id: event.key_id,
            user: event.user.clone(),
            model: event.model.clone(),
            quantities: quantities
                .map(|(feature, quantity)| (feature.clone(), quantity))
                .collect(),
            estimated: event.estimated,
            reason: event.reason.clone(),
        }
    }
}

/// A reset.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ResetObject {
    pub tenant_slug: Slug,
    pub feature_key: FeatureKey,
    /// To the microsecond: usage before it no longer counts.
    pub reset_at: Timestamp,
    pub reason: String,
}

impl ResetObject {
    #[must_use]
    pub fn of(reset: Reset, tenant_slug: Slug) -> Self {
        Self {
            tenant_slug,
            feature_key: reset.feature,
            reset_at: reset.at,
            reason: reset.reason,
        }
    }
}

/// A plan.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PlanObject {
    pub plan_code: PlanCode,
    pub name: DisplayName,
    pub allowed_models: AllowedModels,
    pub features: Vec<FeatureObject>,
    pub version: i64,
}

impl From<Plan> for PlanObject {
    fn from(plan: Plan) -> Self {
        Self {
            plan_code: plan.code,
            name: plan.name,
            allowed_models: plan.allowed_models,
            features: plan.features.into_iter().map(FeatureObject::from).collect(),
            version: plan.version,
        }
    }
}

/// A plan's feature; the flat fields are the first of `limits`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct FeatureObject {
    pub feature_key: FeatureKey,
    pub display_name: DisplayName,
    pub unit: String,
    pub is_metered: bool,
    pub scope: Scope,
    pub window: WindowKind,
    pub soft_limit: Option<Quantity>,
    pub hard_limit: Option<Quantity>,
    pub limits: Vec<Limit>,
    pub alert_thresholds: Option<Vec<u16>>,
    pub stripe_meter: Option<String>,
}

impl From<PlanFeature> for FeatureObject {
    fn from(feature: PlanFeature) -> Self {
        let first = feature.limits.first();
        Self {
            feature_key: feature.key,
            display_name: feature.display_name,
            unit: feature.unit,
            is_metered: feature.is_metered,
            scope: first.map_or(Scope::Tenant, |limit| limit.scope),
            window: first.map_or(WindowKind::Period, |limit| limit.window),
            soft_limit: first.and_then(|limit| limit.soft),
            hard_limit: first.and_then(|limit| limit.hard),
            limits: feature.limits,
            alert_thresholds: feature.alert_thresholds,
            stripe_meter: feature.stripe_meter,
        }
    }
}

/// A tenant.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct TenantObject {
    pub tenant_id: TenantId,
    pub slug: Slug,
    pub name: DisplayName,
    pub plan_code: Option<PlanCode>,
    pub subscription: Option<SubscriptionObject>,
    pub overrides: Vec<OverrideObject>,
    pub created_at: Timestamp,
}

/// A tenant's subscription, with its period as it stands now.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SubscriptionObject {
    pub plan_code: PlanCode,
    pub status: SubscriptionStatus,
    pub current_period_start: Timestamp,
    pub current_period_end: Timestamp,
    pub processor_customer_id: Option<String>,
}

/// A tenant's own limits of one feature.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct OverrideObject {
    pub feature_key: FeatureKey,
    pub limits: Vec<Limit>,
    pub until: Option<Timestamp>,
}

impl From<Override> for OverrideObject {
    fn from(own: Override) -> Self {
        Self {
            feature_key: own.feature,
            limits: own.limits,
            until: own.until,
        }
    }
}

impl TenantObject {
    /// The tenant as it stands at `now`: overrides that have ended are left out.
    #[must_use]
    pub fn at(tenant: Tenant, now: Timestamp) -> Self {
        let holds = |own: &Override| own.until.is_none_or(|until| now < until);
        let overrides = tenant.overrides.into_iter().filter(holds);
        let subscription = tenant.subscription.map(|subscription| {
            let period = subscription.period.window_at(now);
            SubscriptionObject {
                plan_code: subscription.plan_code,
                status: subscription.status,
                current_period_start: period.start(),
                current_period_end: period.end(),
                processor_customer_id: subscription.processor_customer_id,
            }
        });
        Self {
            tenant_id: tenant.tenant_id,
            slug: tenant.slug,
            name: tenant.name,
            plan_code: subscription.as_ref().map(|it| it.plan_code.clone()),
            subscription,
            overrides: overrides.map(OverrideObject::from).collect(),
            created_at: tenant.created_at.to_whole_second(),
        }
    }
}

/// A tenant's key; `key` is its secret, there only in the answer that makes it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct KeyObject {
    pub key_id: KeyId,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub key: Option<Told>,
    pub name: DisplayName,
    pub tenant_id: TenantId,
    pub tenant_slug: Slug,
    pub user: Option<String>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

impl KeyObject {
    #[must_use]
    pub fn of(key: ApiKey, tenant_slug: Slug) -> Self {
        Self {
            key_id: key.key_id,
            key: None,
            name: key.name,
            tenant_id: key.tenant_id,
            tenant_slug,
            user: key.user,
            created_at: key.created_at.to_whole_second(),
            expires_at: key.expires_at,
            revoked_at: key.revoked_at.map(Timestamp::to_whole_second),
        }
    }

    #[must_use]
    pub fn with_secret(mut self, secret: &SecretString) -> Self {
        self.key = Some(Told::new(secret));
        self
    }
}

/// An administrator; `token` is the secret, there only in the answer that makes it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AdministratorObject {
    pub admin_token_id: AdminTokenId,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub token: Option<Told>,
    pub name: DisplayName,
    pub role: Role,
    pub created_at: Timestamp,
}

impl From<AdminToken> for AdministratorObject {
    fn from(token: AdminToken) -> Self {
        Self {
            admin_token_id: token.admin_token_id,
            token: None,
            name: token.name,
            role: token.role,
            created_at: token.created_at.to_whole_second(),
        }
    }
}

impl From<IssuedToken> for AdministratorObject {
    fn from(issued: IssuedToken) -> Self {
        Self {
            token: Some(Told::new(&issued.secret)),
            ..issued.token.into()
        }
    }
}

/// A change that was made.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AuditObject {
    pub at: Timestamp,
    /// An administrator's name, or `cli`, `setup`, `stripe`.
    pub actor: String,
    /// Such as `plan.update`.
    pub action: String,
    /// A plan's code, a tenant's slug, else an id.
    pub target: String,
    /// Null if it was not there.
    #[schema(value_type = Option<Object>)]
    pub before: Option<serde_json::Value>,
    /// Null if it is gone.
    #[schema(value_type = Option<Object>)]
    pub after: Option<serde_json::Value>,
    /// The peer's, if the change came over the network.
    pub address: Option<String>,
}

impl From<AuditEntry> for AuditObject {
    fn from(entry: AuditEntry) -> Self {
        Self {
            at: entry.by.at.to_whole_second(),
            actor: entry.by.name,
            action: entry.action,
            target: entry.target,
            before: entry.before,
            after: entry.after,
            address: entry.by.address,
        }
    }
}

/// A grant; `remaining` is null where it is not known.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct GrantObject {
    pub grant_id: GrantId,
    pub tenant_id: TenantId,
    pub tenant_slug: Slug,
    pub feature_key: FeatureKey,
    pub quantity: Quantity,
    pub remaining: Option<Quantity>,
    pub reason: String,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
}

impl GrantObject {
    /// The grant as it stands at `now`; `left` counts only while it is not over.
    #[must_use]
    pub fn at(grant: Grant, tenant_slug: Slug, left: Option<Quantity>, now: Timestamp) -> Self {
        let remaining = if grant.is_active_at(now) {
            left
        } else {
            Some(Quantity::ZERO)
        };
        Self {
            grant_id: grant.grant_id,
            tenant_id: grant.tenant_id,
            tenant_slug,
            feature_key: grant.feature,
            quantity: grant.quantity,
            remaining,
            reason: grant.reason,
            created_at: grant.created_at.to_whole_second(),
            expires_at: grant.expires_at,
            revoked_at: grant.revoked_at.map(Timestamp::to_whole_second),
        }
    }
}
