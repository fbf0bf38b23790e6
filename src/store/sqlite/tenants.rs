//! Tenants, their subscriptions and overrides, in tables.

use rusqlite::{Transaction, params};

use super::{
    Failed, already_exists,
    audit::Change,
    not_found, plans,
    rows::{self, Cells, blob, micros},
};
use crate::{
    domain::{
        administrator::Actor,
        feature::FeatureKey,
        ids::TenantId,
        limit::{Limit, Override},
        names::{DisplayName, PlanCode, Slug},
        subscription::{Period, Subscription, SubscriptionStatus},
        tenant::{Tenant, TenantRef},
        time::Timestamp,
    },
    store::{audited, catalogue::TenantSearch, versions},
};

/// A tenant beside its subscription, whose columns are null if it has none.
const SELECT: &str = "
    SELECT tenants.tenant_id, slug, name, created_at, plan_code, status, status_since, period_start, period_end,
           processor_customer_id
    FROM tenants LEFT JOIN subscriptions ON subscriptions.tenant_id = tenants.tenant_id";

/// One that was deleted, beside what it was subscribed to last.
const SELECT_FORMER: &str = "
    SELECT tenants.tenant_id, slug, name, created_at, plan_code, status, status_since, period_start, period_end,
           processor_customer_id, deleted_at
    FROM tenants LEFT JOIN former_subscriptions ON former_subscriptions.tenant_id = tenants.tenant_id";

pub(super) fn find(tx: &Transaction<'_>, tenant: &TenantRef) -> Result<Option<Tenant>, Failed> {
    find_where(tx, tenant, SELECT, "tenants.deleted_at IS NULL")
}

/// One that was deleted, with its last subscription.
pub(super) fn find_former(
    tx: &Transaction<'_>,
    tenant: &TenantRef,
) -> Result<Option<Tenant>, Failed> {
    find_where(tx, tenant, SELECT_FORMER, "tenants.deleted_at IS NOT NULL")
}

fn find_where(
    tx: &Transaction<'_>,
    tenant: &TenantRef,
    select: &str,
    condition: &str,
) -> Result<Option<Tenant>, Failed> {
    let found = match tenant {
        TenantRef::Id(id) => rows::find(
            tx,
            "tenants",
            &format!("{select} WHERE {condition} AND tenants.tenant_id = ?1"),
            [blob(id.uuid())],
            read_tenant,
        ),
        TenantRef::Slug(slug) => rows::find(
            tx,
            "tenants",
            &format!("{select} WHERE {condition} AND tenants.slug = ?1"),
            [slug.as_str()],
            read_tenant,
        ),
    };
    found?.map(|tenant| with_overrides(tx, tenant)).transpose()
}

/// # Errors
/// `NotFound`.
pub(super) fn get(tx: &Transaction<'_>, tenant: TenantId) -> Result<Tenant, Failed> {
    find(tx, &TenantRef::Id(tenant))?.ok_or_else(|| not_found("tenant", tenant))
}

/// # Errors
/// `NotFound`; `VersionConflict`.
fn get_expected(
    tx: &Transaction<'_>,
    tenant: TenantId,
    expected: Option<i64>,
) -> Result<Tenant, Failed> {
    let stored = get(tx, tenant)?;
    versions::check("tenant", &stored.slug, versions::tenant(&stored), expected)?;
    Ok(stored)
}

pub(super) fn list(
    tx: &Transaction<'_>,
    after: Option<&Slug>,
    limit: usize,
) -> Result<Vec<Tenant>, Failed> {
    // Every slug comes after the empty one.
    let tenants = rows::list(
        tx,
        "tenants",
        &format!(
            "{SELECT} WHERE tenants.deleted_at IS NULL AND tenants.slug > ?1 ORDER BY tenants.slug LIMIT ?2"
        ),
        params![after.map_or("", Slug::as_str), rows::limit(limit)],
        read_tenant,
    )?;
    tenants
        .into_iter()
        .map(|tenant| with_overrides(tx, tenant))
        .collect()
}

/// Looks at every tenant after `after` until enough are found: text in the middle of names has no index.
pub(super) fn list_former(
    tx: &Transaction<'_>,
    after: Option<&Slug>,
    limit: usize,
) -> Result<Vec<(Tenant, Timestamp)>, Failed> {
    rows::list(
        tx,
        "tenants",
        &format!(
            "{SELECT_FORMER} WHERE tenants.deleted_at IS NOT NULL AND slug > ?1 ORDER BY slug LIMIT ?2"
        ),
        params![after.map_or("", Slug::as_str), rows::limit(limit)],
        |cells| Ok((read_tenant(cells)?, cells.time("deleted_at")?)),
    )
}

pub(super) fn search(
    tx: &Transaction<'_>,
    search: &TenantSearch,
    after: Option<&Slug>,
    limit: usize,
) -> Result<Vec<Tenant>, Failed> {
    let tenants = rows::list(
        tx,
        "tenants",
        &format!(
            "{SELECT} WHERE tenants.deleted_at IS NULL AND tenants.slug > ?1
               AND (?2 IS NULL OR instr(lower(slug), lower(?2)) > 0 OR instr(lower(name), lower(?2)) > 0)
               AND (?3 IS NULL OR plan_code = ?3) AND (?4 IS NULL OR status = ?4)
             ORDER BY tenants.slug LIMIT ?5"
        ),
        params![
            after.map_or("", Slug::as_str),
            search.text,
            search.plan.as_ref().map(PlanCode::as_str),
            search.status.map(SubscriptionStatus::as_str),
            rows::limit(limit)
        ],
        read_tenant,
    )?;
    tenants
        .into_iter()
        .map(|tenant| with_overrides(tx, tenant))
        .collect()
}

pub(super) fn create(tx: &Transaction<'_>, tenant: &Tenant, by: &Actor) -> Result<(), Failed> {
    // Deleted tenants count: their slugs are not given again.
    let is_taken = rows::exists(
        tx,
        "SELECT 1 FROM tenants WHERE slug = ?1 OR tenant_id = ?2",
        params![tenant.slug.as_str(), blob(tenant.tenant_id.uuid())],
    )?;
    if is_taken {
        return Err(already_exists("tenant", &tenant.slug));
    }
    Change {
        action: "tenant.create",
        target: tenant.slug.as_str(),
        before: None,
        after: Some(audited::tenant(tenant)),
    }
    .note(tx, by)?;
    rows::run(
        tx,
        "INSERT INTO tenants (tenant_id, slug, name, created_at) VALUES (?1, ?2, ?3, ?4)",
        params![
            blob(tenant.tenant_id.uuid()),
            tenant.slug.as_str(),
            tenant.name.as_str(),
            tenant.created_at.micros(),
        ],
    )?;
    if let Some(subscription) = &tenant.subscription {
        put_subscription(tx, tenant.tenant_id, subscription)?;
    }
    for limits in &tenant.overrides {
        put_override(tx, tenant.tenant_id, limits)?;
    }
    Ok(())
}

pub(super) fn rename(
    tx: &Transaction<'_>,
    tenant: TenantId,
    name: &DisplayName,
    expected: Option<i64>,
    by: &Actor,
) -> Result<(), Failed> {
    let stored = get_expected(tx, tenant, expected)?;
    if stored.name == *name {
        return Ok(());
    }
    let renamed = Tenant {
        name: name.clone(),
        ..stored.clone()
    };
    Change {
        action: "tenant.update",
        target: stored.slug.as_str(),
        before: Some(audited::tenant(&stored)),
        after: Some(audited::tenant(&renamed)),
    }
    .note(tx, by)?;
    rows::run(
        tx,
        "UPDATE tenants SET name = ?2 WHERE tenant_id = ?1",
        params![blob(tenant.uuid()), name.as_str()],
    )?;
    Ok(())
}

/// Its row stays: usage refers to it, and its slug is not given again. Its subscription goes, so that its plan can; what it
/// was is kept.
pub(super) fn delete(
    tx: &Transaction<'_>,
    tenant: TenantId,
    expected: Option<i64>,
    by: &Actor,
) -> Result<(), Failed> {
    let stored = get_expected(tx, tenant, expected)?;
    Change {
        action: "tenant.delete",
        target: stored.slug.as_str(),
        before: Some(audited::tenant(&stored)),
        after: None,
    }
    .note(tx, by)?;
    let id = blob(tenant.uuid());
    rows::run(
        tx,
        "UPDATE keys SET revoked_at = ?2 WHERE tenant_id = ?1 AND revoked_at IS NULL",
        params![id, by.at.micros()],
    )?;
    rows::run(
        tx,
        "INSERT INTO former_subscriptions (tenant_id, plan_code, status, status_since, period_start, period_end,
                                           processor_customer_id)
         SELECT tenant_id, plan_code, status, status_since, period_start, period_end, processor_customer_id
         FROM subscriptions WHERE tenant_id = ?1",
        [id],
    )?;
    rows::run(tx, "DELETE FROM subscriptions WHERE tenant_id = ?1", [id])?;
    rows::run(
        tx,
        "UPDATE tenants SET deleted_at = ?2 WHERE tenant_id = ?1",
        params![id, by.at.micros()],
    )?;
    Ok(())
}

pub(super) fn set_subscription(
    tx: &Transaction<'_>,
    tenant: TenantId,
    subscription: &Subscription,
    expected: Option<i64>,
    by: &Actor,
) -> Result<(), Failed> {
    let stored = get_expected(tx, tenant, expected)?;
    Change {
        action: "subscription.set",
        target: stored.slug.as_str(),
        before: stored.subscription.as_ref().map(audited::subscription),
        after: Some(audited::subscription(subscription)),
    }
    .note(tx, by)?;
    put_subscription(tx, tenant, subscription)
}

fn put_subscription(
    tx: &Transaction<'_>,
    tenant: TenantId,
    subscription: &Subscription,
) -> Result<(), Failed> {
    if !plans::exists(tx, &subscription.plan_code)? {
        return Err(not_found("plan", &subscription.plan_code));
    }
    let first = subscription.period.first();
    rows::run(
        tx,
        "INSERT INTO subscriptions (tenant_id, plan_code, status, status_since, period_start, period_end,
                                    period_months, processor_customer_id)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (tenant_id) DO UPDATE SET
             plan_code = excluded.plan_code, status = excluded.status, status_since = excluded.status_since,
             period_start = excluded.period_start, period_end = excluded.period_end,
             period_months = excluded.period_months, processor_customer_id = excluded.processor_customer_id",
        params![
            blob(tenant.uuid()),
            subscription.plan_code.as_str(),
            subscription.status.as_str(),
            subscription.status_since.micros(),
            first.start().micros(),
            first.end().micros(),
            whole_months(first.start(), first.end()),
            subscription.processor_customer_id,
        ],
    )?;
    Ok(())
}

/// How many months apart two bounds are, if whole months: by how much a period rolls on (`Period::new`).
fn whole_months(start: Timestamp, end: Timestamp) -> Option<i32> {
    let days_apart = end.since(start).as_secs() / 86_400;
    // A month has 28 to 31 days, so only a few numbers of months can match.
    let fewest = i32::try_from(days_apart / 31).ok()?;
    let most = i32::try_from(days_apart / 28).ok()?;
    (fewest.max(1)..=most).find(|&months| start.plus_months(months) == end)
}

pub(super) fn set_override(
    tx: &Transaction<'_>,
    tenant: TenantId,
    limits: &Override,
    expected: Option<i64>,
    by: &Actor,
) -> Result<(), Failed> {
    let stored = get(tx, tenant)?;
    let own = override_of(&stored, &limits.feature);
    match own {
        Some(own) => check_override(&stored, own, expected)?,
        None if expected.is_none_or(|it| it == versions::ABSENT) => {}
        None => return Err(not_found("limit", &limits.feature)),
    }
    Change {
        action: "override.set",
        target: stored.slug.as_str(),
        before: own.map(audited::override_),
        after: Some(audited::override_(limits)),
    }
    .note(tx, by)?;
    delete_override(tx, tenant, &limits.feature)?;
    put_override(tx, tenant, limits)
}

pub(super) fn remove_override(
    tx: &Transaction<'_>,
    tenant: TenantId,
    feature: &FeatureKey,
    expected: Option<i64>,
    by: &Actor,
) -> Result<bool, Failed> {
    let Some(stored) = find(tx, &TenantRef::Id(tenant))? else {
        return Ok(false);
    };
    let Some(limits) = override_of(&stored, feature) else {
        return Ok(false);
    };
    check_override(&stored, limits, expected)?;
    Change {
        action: "override.remove",
        target: stored.slug.as_str(),
        before: Some(audited::override_(limits)),
        after: None,
    }
    .note(tx, by)?;
    delete_override(tx, tenant, feature)?;
    Ok(true)
}

fn check_override(tenant: &Tenant, own: &Override, expected: Option<i64>) -> Result<(), Failed> {
    let name = format!("{} of tenant {}", own.feature, tenant.slug);
    Ok(versions::check(
        "limit",
        name,
        versions::override_(own),
        expected,
    )?)
}

fn override_of<'a>(tenant: &'a Tenant, feature: &FeatureKey) -> Option<&'a Override> {
    tenant
        .overrides
        .iter()
        .find(|limits| limits.feature == *feature)
}

fn delete_override(
    tx: &Transaction<'_>,
    tenant: TenantId,
    feature: &FeatureKey,
) -> Result<(), Failed> {
    rows::run(
        tx,
        "DELETE FROM tenant_overrides WHERE tenant_id = ?1 AND feature_key = ?2",
        params![blob(tenant.uuid()), feature.as_str()],
    )?;
    Ok(())
}

fn put_override(tx: &Transaction<'_>, tenant: TenantId, limits: &Override) -> Result<(), Failed> {
    rows::run(
        tx,
        "INSERT INTO tenant_overrides (tenant_id, feature_key, until) VALUES (?1, ?2, ?3)",
        params![
            blob(tenant.uuid()),
            limits.feature.as_str(),
            micros(limits.until)
        ],
    )?;
    for (position, limit) in (0_i64..).zip(&limits.limits) {
        rows::run(
            tx,
            "INSERT INTO tenant_override_limits
                 (tenant_id, feature_key, scope, window_kind, soft_limit, hard_limit, position)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                blob(tenant.uuid()),
                limits.feature.as_str(),
                limit.scope.as_str(),
                limit.window.as_str(),
                rows::units(limit.soft),
                rows::units(limit.hard),
                position,
            ],
        )?;
    }
    Ok(())
}

fn read_tenant(cells: &Cells<'_>) -> Result<Tenant, Failed> {
    let is_subscribed = cells.get::<Option<String>>("plan_code")?.is_some();
    Ok(Tenant {
        tenant_id: TenantId::new(cells.uuid("tenant_id")?),
        slug: cells.parse("slug")?,
        name: cells.parse("name")?,
        created_at: cells.time("created_at")?,
        subscription: is_subscribed
            .then(|| read_subscription(cells))
            .transpose()?,
        overrides: Vec::new(),
    })
}

fn read_subscription(cells: &Cells<'_>) -> Result<Subscription, Failed> {
    let period = Period::new(cells.time("period_start")?, cells.time("period_end")?);
    Ok(Subscription {
        plan_code: cells.parse("plan_code")?,
        status: cells.parse("status")?,
        status_since: cells.time("status_since")?,
        period: cells.check("period_start, period_end", period)?,
        processor_customer_id: cells.get("processor_customer_id")?,
    })
}

fn with_overrides(tx: &Transaction<'_>, mut tenant: Tenant) -> Result<Tenant, Failed> {
    let id = blob(tenant.tenant_id.uuid());
    tenant.overrides = rows::list(
        tx,
        "tenant_overrides",
        "SELECT * FROM tenant_overrides WHERE tenant_id = ?1",
        [id],
        |cells| {
            Ok(Override {
                feature: cells.parse("feature_key")?,
                limits: Vec::new(),
                until: cells.optional_time("until")?,
            })
        },
    )?;
    if tenant.overrides.is_empty() {
        return Ok(tenant);
    }
    let limits: Vec<(FeatureKey, Limit)> = rows::list(
        tx,
        "tenant_override_limits",
        "SELECT * FROM tenant_override_limits WHERE tenant_id = ?1 ORDER BY position",
        [id],
        |cells| Ok((cells.parse("feature_key")?, plans::read_limit(cells)?)),
    )?;
    for (feature, limit) in limits {
        let limits_of = tenant
            .overrides
            .iter_mut()
            .find(|limits| limits.feature == feature);
        if let Some(limits_of) = limits_of {
            limits_of.limits.push(limit);
        }
    }
    tenant.overrides.sort_by(|a, b| a.feature.cmp(&b.feature));
    Ok(tenant)
}
