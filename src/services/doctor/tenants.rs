//! Plans, tenants, subscriptions and keys.

use std::{collections::BTreeMap, time::Duration};

use super::{Doctor, Finding, untouchable_limits};
use crate::{
    domain::{
        feature::FeatureKey,
        grant::Grant,
        limit::{Limit, Scope},
        names::{PlanCode, Slug},
        plan::Plan,
        reach,
        subscription::SubscriptionStatus,
        tenant::Tenant,
        time::Timestamp,
        window::WindowKind,
    },
    store::StoreResult,
};

/// How many tenants are read at a time.
const PAGE: usize = 500;
/// Keys that end within this are named.
const EXPIRY_NOTICE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Things that are named one by one; more are counted.
const MOST_NAMED: usize = 10;

/// Per limit of a plan: how many tenants have an override in its place.
type Shadows = BTreeMap<(String, FeatureKey, Scope, WindowKind), usize>;

/// Names things up to a number, and counts the rest.
struct Named {
    check: &'static str,
    remedy: &'static str,
    found: Vec<String>,
}

impl Named {
    const fn new(check: &'static str, remedy: &'static str) -> Self {
        Self {
            check,
            remedy,
            found: Vec::new(),
        }
    }

    fn findings(self, make: fn(&str, String, String) -> Finding) -> Vec<Finding> {
        let more = self.found.len().saturating_sub(MOST_NAMED);
        let named = self.found.into_iter().take(MOST_NAMED);
        let mut findings: Vec<_> = named
            .map(|detail| make(self.check, detail, self.remedy.to_owned()))
            .collect();
        if more > 0 {
            findings.push(make(
                self.check,
                format!("and {more} more"),
                self.remedy.to_owned(),
            ));
        }
        findings
    }
}

/// Who is which customer of the payment processor.
#[derive(Default)]
struct Customers(BTreeMap<String, Vec<Slug>>);

impl Customers {
    fn note(&mut self, tenant: &Tenant) {
        let subscription = tenant.subscription.as_ref();
        if let Some(customer) = subscription.and_then(|it| it.processor_customer_id.clone()) {
            self.0
                .entry(customer)
                .or_default()
                .push(tenant.slug.clone());
        }
    }

    fn shared(self) -> Named {
        let mut named = Named::new(
            "stripe-customers",
            "give each a customer of its own (`tollgate tenant subscribe T --processor-customer-id`), or have Stripe's subscriptions name theirs in metadata.tenant_id",
        );
        let shared = self.0.into_iter().filter(|(_, slugs)| slugs.len() > 1);
        named.found = shared
            .map(|(customer, slugs)| {
                let slugs: Vec<&str> = slugs.iter().map(Slug::as_str).take(MOST_NAMED).collect();
                format!(
                    "customer {customer} is that of several tenants ({}): what Stripe says of it changes one of them",
                    slugs.join(", ")
                )
            })
            .collect();
        named
    }
}

impl Doctor<'_> {
    pub(super) async fn tenants(&self) -> StoreResult<Vec<Finding>> {
        let now = self.clock.now();
        let plans = self.store.list_plans().await?;
        let mut no_plan = Named::new(
            "tenants",
            "`tollgate tenant subscribe T --plan CODE`; until then its requests get 402",
        );
        let mut inactive = Named::new(
            "subscriptions",
            "settle the payment, or `tollgate tenant subscribe T --plan CODE --status active`",
        );
        let mut expiring = Named::new(
            "keys",
            "`tollgate key create` a new one and hand it over in time",
        );
        let mut own_limits = Named::new("limits", "`tollgate tenant limit set` or `remove`");
        let mut grants = Named::new(
            "grants",
            "`tollgate tenant grant revoke`, or have the plan meter it: `tollgate plan feature set`",
        );
        let mut customers = Customers::default();
        let mut shadows = Shadows::new();
        let mut subscribers: BTreeMap<String, usize> = BTreeMap::new();
        let mut count = 0;
        let mut after = None;
        loop {
            let page = self.store.list_tenants(after.as_ref(), PAGE).await?;
            count += page.len();
            let granted = page.iter().map(|tenant| tenant.tenant_id).collect();
            let granted = self.store.list_grants_of(granted).await?;
            for (tenant, granted) in page.iter().zip(granted) {
                let plan = plan_of(tenant, &plans);
                no_plan.found.extend(lacks_plan(tenant, plan));
                inactive.found.extend(is_inactive(tenant, now));
                if let Some(plan) = plan {
                    *subscribers.entry(plan.code.to_string()).or_default() += 1;
                    note_shadows(tenant, plan, now, &mut shadows);
                    own_limits
                        .found
                        .extend(self.own_untouchable(tenant, plan, now));
                    grants
                        .found
                        .extend(unmetered_grants(tenant, plan, &granted, now));
                }
                customers.note(tenant);
                expiring
                    .found
                    .extend(self.expiring_keys(tenant, now).await?);
            }
            if page.len() < PAGE {
                break;
            }
            after = page.last().map(|tenant| tenant.slug.clone());
        }
        let mut findings = self.limits(&plans, &shadows, &subscribers).await?;
        findings.extend(own_limits.findings(Finding::warning));
        findings.extend(grants.findings(Finding::warning));
        if self.stripe.is_some() {
            findings.extend(customers.shared().findings(Finding::warning));
        }
        findings.push(Finding::ok("tenants", format!("looked at: {count}")));
        findings.extend(no_plan.findings(Finding::error));
        findings.extend(inactive.findings(Finding::warning));
        findings.extend(expiring.findings(Finding::warning));
        Ok(findings)
    }

    async fn limits(
        &self,
        plans: &[Plan],
        shadows: &Shadows,
        subscribers: &BTreeMap<String, usize>,
    ) -> StoreResult<Vec<Finding>> {
        let check = "limits";
        let remedy = "`tollgate plan feature set` or `remove`";
        let mut findings = Vec::new();
        for (plan, found) in untouchable_limits(self.store, self.config).await? {
            let detail = format!(
                "plan {plan}, {}: no request can touch this limit: {}",
                found.feature, found.why
            );
            findings.push(Finding::warning(check, detail, remedy));
        }
        for ((plan, feature, scope, window), shadowed) in shadows {
            let all = subscribers.get(plan).copied().unwrap_or(0);
            if *shadowed == all {
                let detail = format!(
                    "plan {plan}, {feature}, {scope} per {window}: no request can touch this limit: each of its {all} tenants has one of its own in its place"
                );
                findings.push(Finding::warning(check, detail, remedy));
            }
        }
        for (plan, feature) in custom_limits(plans) {
            if !self.store.is_feature_used(feature).await? {
                let detail = format!(
                    "plan {plan}, {feature}: no chat request counts it, and nothing was ever reported"
                );
                findings.push(Finding::warning(
                    check,
                    detail,
                    "report it (POST /api/v1/usage/events, reservations, `tollgate usage record`), or name it as the requests are counted: messages, input_tokens, output_tokens, cost",
                ));
            }
        }
        if findings.is_empty() {
            findings.push(Finding::ok(
                check,
                format!("plans looked at: {}", plans.len()),
            ));
        }
        Ok(findings)
    }

    /// With overrides in place.
    fn own_untouchable(&self, tenant: &Tenant, plan: &Plan, now: Timestamp) -> Vec<String> {
        let own: Vec<(&FeatureKey, Vec<Limit>)> = tenant
            .overrides
            .iter()
            .filter(|own| own.until.is_none_or(|until| now < until))
            .map(|own| {
                let planned = plan.feature(&own.feature).map_or(&[][..], |it| &it.limits);
                let mut limits: Vec<Limit> = planned.to_vec();
                for limit in &own.limits {
                    limits.retain(|it| (it.scope, it.window) != (limit.scope, limit.window));
                    limits.push(*limit);
                }
                (&own.feature, limits)
            })
            .collect();
        let limits = own
            .iter()
            .map(|(feature, limits)| (*feature, limits.as_slice()));
        let found = reach::untouchable(limits, self.config.soft_limit_mode);
        let mut lines: Vec<String> = found
            .into_iter()
            .map(|one| {
                format!(
                    "tenant {}, {}: no request can touch this limit: {}",
                    tenant.slug, one.feature, one.why
                )
            })
            .collect();
        for (feature, _) in &own {
            if plan.feature(feature).is_none_or(|it| !it.is_metered) {
                lines.push(format!(
                    "tenant {}, {feature}: no request can touch this limit: plan {} does not meter {feature}",
                    tenant.slug, plan.code
                ));
            }
        }
        lines
    }

    async fn expiring_keys(&self, tenant: &Tenant, now: Timestamp) -> StoreResult<Vec<String>> {
        let keys = self.store.list_keys(tenant.tenant_id).await?;
        let soon = now.plus(EXPIRY_NOTICE);
        let ending = keys.into_iter().filter(|key| key.is_valid_at(now));
        Ok(ending
            .filter_map(|key| {
                let at = key.expires_at.filter(|at| *at < soon)?;
                Some(format!(
                    "key {} '{}' of tenant {} expires at {at}",
                    key.key_id, key.name, tenant.slug
                ))
            })
            .collect())
    }
}

fn plan_of<'a>(tenant: &Tenant, plans: &'a [Plan]) -> Option<&'a Plan> {
    let code = &tenant.subscription.as_ref()?.plan_code;
    plans.iter().find(|plan| plan.code == *code)
}

fn lacks_plan(tenant: &Tenant, plan: Option<&Plan>) -> Option<String> {
    match (&tenant.subscription, plan) {
        (None, _) => Some(format!("tenant {} has no subscription", tenant.slug)),
        (Some(subscription), None) => Some(format!(
            "tenant {} is subscribed to plan {}, which is not defined",
            tenant.slug, subscription.plan_code
        )),
        (Some(_), Some(_)) => None,
    }
}

fn is_inactive(tenant: &Tenant, now: Timestamp) -> Option<String> {
    let subscription = tenant.subscription.as_ref()?;
    let runs = subscription.runs_at(now);
    if runs && subscription.status != SubscriptionStatus::PastDue {
        return None;
    }
    let state = if runs {
        "still served"
    } else {
        "refused with 402"
    };
    Some(format!(
        "tenant {}: subscription {} since {}, {state}",
        tenant.slug, subscription.status, subscription.status_since
    ))
}

fn unmetered_grants(tenant: &Tenant, plan: &Plan, grants: &[Grant], now: Timestamp) -> Vec<String> {
    let unmetered = grants.iter().filter(|grant| {
        let feature = plan.feature(&grant.feature);
        grant.is_active_at(now) && feature.is_none_or(|it| !it.is_metered)
    });
    unmetered
        .map(|grant| {
            let (id, feature) = (grant.grant_id, &grant.feature);
            format!(
                "tenant {}, {feature}: grant {id} has no effect: plan {} does not meter {feature}",
                tenant.slug, plan.code
            )
        })
        .collect()
}

fn note_shadows(tenant: &Tenant, plan: &Plan, now: Timestamp, shadows: &mut Shadows) {
    for own in &tenant.overrides {
        if own.until.is_some_and(|until| until <= now) {
            continue;
        }
        let planned = plan.feature(&own.feature).map_or(&[][..], |it| &it.limits);
        for limit in planned {
            let is_replaced = own
                .limits
                .iter()
                .any(|it| (it.scope, it.window) == (limit.scope, limit.window));
            if is_replaced {
                let key = (
                    plan.code.to_string(),
                    own.feature.clone(),
                    limit.scope,
                    limit.window,
                );
                *shadows.entry(key).or_default() += 1;
            }
        }
    }
}

/// Limits of features that chat requests do not count.
fn custom_limits(plans: &[Plan]) -> impl Iterator<Item = (&PlanCode, &FeatureKey)> {
    let is_limited = |limit: &Limit| limit.soft.is_some() || limit.hard.is_some();
    plans.iter().flat_map(move |plan| {
        let features = plan.features.iter().filter(move |feature| {
            feature.is_metered
                && !feature.key.is_built_in()
                && feature.limits.iter().any(is_limited)
        });
        features.map(move |feature| (&plan.code, &feature.key))
    })
}
