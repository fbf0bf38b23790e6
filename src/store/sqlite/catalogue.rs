//! Plans, tenants, subscriptions, overrides and grants, and the feed of what changed.

use futures_util::future::BoxFuture;
use rusqlite::{Transaction, params};

use super::{
    Failed, SqliteStore, already_exists,
    audit::Change,
    not_found, plans,
    rows::{self, Cells, blob, micros},
    tenants,
};
use crate::{
    domain::{
        administrator::Actor,
        feature::FeatureKey,
        grant::Grant,
        ids::{GrantId, KeyId, TenantId},
        limit::Override,
        names::{DisplayName, PlanCode, Slug},
        plan::Plan,
        reset::Reset,
        subscription::Subscription,
        tenant::{Tenant, TenantRef},
        time::Timestamp,
    },
    store::{
        StoreResult, audited,
        catalogue::{CatalogueStore, Changed, Changes, TenantPolicy, TenantSearch},
    },
};

/// Beyond so many changed things it is cheaper to drop a cache whole than to name each.
const LONGEST_FEED: usize = 10_000;
/// Nor are more rows of the feed looked through than this: after a large import a server must start at once.
const LONGEST_FEED_ROWS: usize = 100_000;

impl CatalogueStore for SqliteStore {
    fn find_plan<'a>(&'a self, code: &'a PlanCode) -> BoxFuture<'a, StoreResult<Option<Plan>>> {
        let code = code.clone();
        Box::pin(self.read("catalogue.find_plan", move |tx| plans::find(tx, &code)))
    }

    fn list_plans(&self) -> BoxFuture<'_, StoreResult<Vec<Plan>>> {
        Box::pin(self.read("catalogue.list_plans", plans::list))
    }

    fn create_plan<'a>(&'a self, plan: &'a Plan, by: &'a Actor) -> BoxFuture<'a, StoreResult<()>> {
        let (plan, by) = (plan.clone(), by.clone());
        Box::pin(self.write("catalogue.create_plan", move |tx| {
            plans::create(tx, &plan, &by)
        }))
    }

    fn update_plan<'a>(&'a self, plan: &'a Plan, by: &'a Actor) -> BoxFuture<'a, StoreResult<i64>> {
        let (plan, by) = (plan.clone(), by.clone());
        Box::pin(self.write("catalogue.update_plan", move |tx| {
            plans::update(tx, &plan, &by)
        }))
    }

    fn put_plans<'a>(&'a self, plans: &'a [Plan], by: &'a Actor) -> BoxFuture<'a, StoreResult<()>> {
        let (plans, by) = (plans.to_vec(), by.clone());
        Box::pin(self.write("catalogue.put_plans", move |tx| {
            plans.iter().try_for_each(|plan| plans::put(tx, plan, &by))
        }))
    }

    fn delete_plan<'a>(
        &'a self,
        code: &'a PlanCode,
        expected_version: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let (code, by) = (code.clone(), by.clone());
        Box::pin(self.write("catalogue.delete_plan", move |tx| {
            plans::delete(tx, &code, expected_version, &by)
        }))
    }

    fn find_tenant<'a>(
        &'a self,
        tenant: &'a TenantRef,
    ) -> BoxFuture<'a, StoreResult<Option<Tenant>>> {
        let tenant = tenant.clone();
        Box::pin(self.read("catalogue.find_tenant", move |tx| {
            tenants::find(tx, &tenant)
        }))
    }

    fn find_policy(&self, tenant: TenantId) -> BoxFuture<'_, StoreResult<Option<TenantPolicy>>> {
        Box::pin(self.read("catalogue.find_policy", move |tx| find_policy(tx, tenant)))
    }

    fn find_former<'a>(
        &'a self,
        tenant: &'a TenantRef,
    ) -> BoxFuture<'a, StoreResult<Option<TenantPolicy>>> {
        let tenant = tenant.clone();
        Box::pin(self.read("catalogue.find_former", move |tx| {
            tenants::find_former(tx, &tenant)?
                .map(|tenant| policy_of(tx, tenant))
                .transpose()
        }))
    }

    fn list_tenants<'a>(
        &'a self,
        after: Option<&'a Slug>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Tenant>>> {
        let after = after.cloned();
        Box::pin(self.read("catalogue.list_tenants", move |tx| {
            tenants::list(tx, after.as_ref(), limit)
        }))
    }

    fn list_former<'a>(
        &'a self,
        after: Option<&'a Slug>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<(Tenant, Timestamp)>>> {
        let after = after.cloned();
        Box::pin(self.read("catalogue.list_former", move |tx| {
            tenants::list_former(tx, after.as_ref(), limit)
        }))
    }

    fn search_tenants<'a>(
        &'a self,
        search: &'a TenantSearch,
        after: Option<&'a Slug>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Tenant>>> {
        let (search, after) = (search.clone(), after.cloned());
        Box::pin(self.read_much("catalogue.search_tenants", move |tx| {
            tenants::search(tx, &search, after.as_ref(), limit)
        }))
    }

    fn create_tenant<'a>(
        &'a self,
        tenant: &'a Tenant,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let (tenant, by) = (tenant.clone(), by.clone());
        Box::pin(self.write("catalogue.create_tenant", move |tx| {
            tenants::create(tx, &tenant, &by)
        }))
    }

    fn rename_tenant<'a>(
        &'a self,
        tenant: TenantId,
        name: &'a DisplayName,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let (name, by) = (name.clone(), by.clone());
        Box::pin(self.write("catalogue.rename_tenant", move |tx| {
            tenants::rename(tx, tenant, &name, expected, &by)
        }))
    }

    fn delete_tenant<'a>(
        &'a self,
        tenant: TenantId,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let by = by.clone();
        Box::pin(self.write("catalogue.delete_tenant", move |tx| {
            tenants::delete(tx, tenant, expected, &by)
        }))
    }

    fn set_subscription<'a>(
        &'a self,
        tenant: TenantId,
        subscription: &'a Subscription,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let (subscription, by) = (subscription.clone(), by.clone());
        Box::pin(self.write("catalogue.set_subscription", move |tx| {
            tenants::set_subscription(tx, tenant, &subscription, expected, &by)
        }))
    }

    fn set_override<'a>(
        &'a self,
        tenant: TenantId,
        limits: &'a Override,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let (limits, by) = (limits.clone(), by.clone());
        Box::pin(self.write("catalogue.set_override", move |tx| {
            tenants::set_override(tx, tenant, &limits, expected, &by)
        }))
    }

    fn remove_override<'a>(
        &'a self,
        tenant: TenantId,
        feature: &'a FeatureKey,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<bool>> {
        let (feature, by) = (feature.clone(), by.clone());
        Box::pin(self.write("catalogue.remove_override", move |tx| {
            tenants::remove_override(tx, tenant, &feature, expected, &by)
        }))
    }

    fn add_grant<'a>(&'a self, grant: &'a Grant, by: &'a Actor) -> BoxFuture<'a, StoreResult<()>> {
        let (grant, by) = (grant.clone(), by.clone());
        Box::pin(self.write("catalogue.add_grant", move |tx| add_grant(tx, &grant, &by)))
    }

    fn list_grants(&self, tenant: TenantId) -> BoxFuture<'_, StoreResult<Vec<Grant>>> {
        Box::pin(self.read("catalogue.list_grants", move |tx| grants_of(tx, tenant)))
    }

    fn count_tenants(&self) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(self.read("catalogue.count_tenants", move |tx| {
            let count = rows::find(
                tx,
                "tenants",
                "SELECT count(*) AS tenants FROM tenants WHERE deleted_at IS NULL",
                [],
                |cells| cells.get::<i64>("tenants"),
            )?;
            Ok(u64::try_from(count.unwrap_or(0)).unwrap_or(0))
        }))
    }

    fn list_grants_of(
        &self,
        tenants: Vec<TenantId>,
    ) -> BoxFuture<'_, StoreResult<Vec<Vec<Grant>>>> {
        Box::pin(self.read("catalogue.list_grants_of", move |tx| {
            tenants
                .iter()
                .map(|tenant| grants_of(tx, *tenant))
                .collect()
        }))
    }

    fn revoke_grant<'a>(
        &'a self,
        grant: GrantId,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<Grant>> {
        let by = by.clone();
        Box::pin(self.write("catalogue.revoke_grant", move |tx| {
            revoke_grant(tx, grant, &by)
        }))
    }

    fn add_reset<'a>(
        &'a self,
        tenant: TenantId,
        reset: &'a Reset,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let (reset, by) = (reset.clone(), by.clone());
        Box::pin(self.write("catalogue.add_reset", move |tx| {
            add_reset(tx, tenant, &reset, &by)
        }))
    }

    fn list_resets_of(
        &self,
        tenants: Vec<TenantId>,
    ) -> BoxFuture<'_, StoreResult<Vec<Vec<Reset>>>> {
        Box::pin(self.read("catalogue.list_resets_of", move |tx| {
            tenants
                .iter()
                .map(|tenant| resets_of(tx, *tenant))
                .collect()
        }))
    }

    fn changes_since(&self, version: i64) -> BoxFuture<'_, StoreResult<Changes>> {
        Box::pin(self.read("catalogue.changes_since", move |tx| {
            changes_since(tx, version)
        }))
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.pool.changed().await;
        })
    }

    fn prune_changes(&self, before: Timestamp, limit: usize) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(self.write("catalogue.prune_changes", move |tx| {
            // Only from the beginning: a gap inside the feed would go unseen.
            rows::run(
                tx,
                "WITH first AS MATERIALIZED (SELECT version, changed_at FROM catalogue_changes ORDER BY version LIMIT ?2)
                 DELETE FROM catalogue_changes
                 WHERE version <= (SELECT max(version) FROM first)
                   AND version < coalesce((SELECT min(version) FROM first WHERE changed_at >= ?1), 9223372036854775807)",
                params![before.micros(), rows::limit(limit)],
            )
        }))
    }
}

pub(super) fn find_policy(
    tx: &Transaction<'_>,
    tenant: TenantId,
) -> Result<Option<TenantPolicy>, Failed> {
    tenants::find(tx, &TenantRef::Id(tenant))?
        .map(|tenant| policy_of(tx, tenant))
        .transpose()
}

fn policy_of(tx: &Transaction<'_>, tenant: Tenant) -> Result<TenantPolicy, Failed> {
    let plan = match &tenant.subscription {
        Some(subscription) => plans::find(tx, &subscription.plan_code)?,
        None => None,
    };
    let grants = grants_of(tx, tenant.tenant_id)?;
    Ok(TenantPolicy {
        resets: resets_of(tx, tenant.tenant_id)?,
        tenant,
        plan,
        grants,
    })
}

fn resets_of(tx: &Transaction<'_>, tenant: TenantId) -> Result<Vec<Reset>, Failed> {
    rows::list(
        tx,
        "resets",
        "SELECT * FROM resets WHERE tenant_id = ?1 ORDER BY at, feature_key",
        [blob(tenant.uuid())],
        |cells| {
            Ok(Reset {
                feature: cells.parse("feature_key")?,
                at: cells.time("at")?,
                reason: cells.get("reason")?,
            })
        },
    )
}

fn add_reset(
    tx: &Transaction<'_>,
    tenant: TenantId,
    reset: &Reset,
    by: &Actor,
) -> Result<(), Failed> {
    let stored = tenants::get(tx, tenant)?;
    let is_there = rows::exists(
        tx,
        "SELECT 1 FROM resets WHERE tenant_id = ?1 AND feature_key = ?2 AND at = ?3",
        params![
            blob(tenant.uuid()),
            reset.feature.as_str(),
            reset.at.micros()
        ],
    )?;
    if is_there {
        return Err(already_exists("reset", reset.at));
    }
    Change {
        action: "tenant.reset",
        target: stored.slug.as_str(),
        before: None,
        after: Some(audited::reset(reset)),
    }
    .note(tx, by)?;
    rows::run(
        tx,
        "INSERT INTO resets (tenant_id, feature_key, at, reason) VALUES (?1, ?2, ?3, ?4)",
        params![
            blob(tenant.uuid()),
            reset.feature.as_str(),
            reset.at.micros(),
            reset.reason
        ],
    )?;
    Ok(())
}

fn add_grant(tx: &Transaction<'_>, grant: &Grant, by: &Actor) -> Result<(), Failed> {
    tenants::get(tx, grant.tenant_id)?;
    if find_grant(tx, grant.grant_id)?.is_some() {
        return Err(already_exists("grant", grant.grant_id));
    }
    Change {
        action: "grant.add",
        target: &grant.grant_id.to_string(),
        before: None,
        after: Some(audited::grant(grant)),
    }
    .note(tx, by)?;
    rows::run(
        tx,
        "INSERT INTO grants (grant_id, tenant_id, feature_key, quantity, reason, created_at, expires_at, revoked_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            blob(grant.grant_id.uuid()),
            blob(grant.tenant_id.uuid()),
            grant.feature.as_str(),
            grant.quantity.get(),
            grant.reason,
            grant.created_at.micros(),
            grant.expires_at.micros(),
            micros(grant.revoked_at),
        ],
    )?;
    Ok(())
}

fn revoke_grant(tx: &Transaction<'_>, grant: GrantId, by: &Actor) -> Result<Grant, Failed> {
    let stored = find_grant(tx, grant)?.ok_or_else(|| not_found("grant", grant))?;
    if stored.revoked_at.is_some() {
        return Ok(stored);
    }
    let revoked = Grant {
        revoked_at: Some(by.at),
        ..stored.clone()
    };
    Change {
        action: "grant.revoke",
        target: &grant.to_string(),
        before: Some(audited::grant(&stored)),
        after: Some(audited::grant(&revoked)),
    }
    .note(tx, by)?;
    rows::run(
        tx,
        "UPDATE grants SET revoked_at = ?2 WHERE grant_id = ?1",
        params![blob(grant.uuid()), by.at.micros()],
    )?;
    Ok(revoked)
}

fn grants_of(tx: &Transaction<'_>, tenant: TenantId) -> Result<Vec<Grant>, Failed> {
    rows::list(
        tx,
        "grants",
        "SELECT * FROM grants WHERE tenant_id = ?1 ORDER BY created_at, grant_id",
        [blob(tenant.uuid())],
        read_grant,
    )
}

fn find_grant(tx: &Transaction<'_>, grant: GrantId) -> Result<Option<Grant>, Failed> {
    rows::find(
        tx,
        "grants",
        "SELECT * FROM grants WHERE grant_id = ?1",
        [blob(grant.uuid())],
        read_grant,
    )
}

fn read_grant(cells: &Cells<'_>) -> Result<Grant, Failed> {
    Ok(Grant {
        grant_id: GrantId::new(cells.uuid("grant_id")?),
        tenant_id: TenantId::new(cells.uuid("tenant_id")?),
        feature: cells.parse("feature_key")?,
        quantity: cells.quantity("quantity")?,
        reason: cells.get("reason")?,
        created_at: cells.time("created_at")?,
        expires_at: cells.time("expires_at")?,
        revoked_at: cells.optional_time("revoked_at")?,
    })
}

fn changes_since(tx: &Transaction<'_>, since: i64) -> Result<Changes, Failed> {
    // The counter outlives the rows: a feed that was pruned whole still knows its version.
    let version = rows::find(
        tx,
        "sqlite_sequence",
        "SELECT seq FROM sqlite_sequence WHERE name = 'catalogue_changes'",
        [],
        |cells| cells.get::<i64>("seq"),
    )?
    .unwrap_or(0);
    let changed = match since.cmp(&version) {
        std::cmp::Ordering::Equal => Vec::new(),
        // The store has gone back in time: a backup was restored.
        std::cmp::Ordering::Greater => vec![Changed::Everything],
        std::cmp::Ordering::Less => changed_after(tx, since, version)?,
    };
    Ok(Changes { version, changed })
}

fn changed_after(tx: &Transaction<'_>, since: i64, version: i64) -> Result<Vec<Changed>, Failed> {
    let reaches_back = rows::exists(
        tx,
        "SELECT 1 FROM catalogue_changes WHERE version = ?1",
        [since.saturating_add(1)],
    )?;
    let rows = version.saturating_sub(since);
    let is_long = usize::try_from(rows).is_ok_and(|rows| rows > LONGEST_FEED_ROWS);
    if !reaches_back || is_long {
        return Ok(vec![Changed::Everything]);
    }
    let mut changed = rows::list(
        tx,
        "catalogue_changes",
        "SELECT kind, id FROM catalogue_changes WHERE version > ?1 GROUP BY kind, id ORDER BY min(version) LIMIT ?2",
        params![since, rows::limit(LONGEST_FEED + 1)],
        read_changed,
    )?;
    if changed.len() > LONGEST_FEED {
        changed = vec![Changed::Everything];
    }
    Ok(changed)
}

fn read_changed(cells: &Cells<'_>) -> Result<Changed, Failed> {
    let kind: String = cells.get("kind")?;
    match kind.as_str() {
        "plan" => Ok(Changed::Plan(cells.parse("id")?)),
        "key" => Ok(Changed::Key(KeyId::new(cells.uuid("id")?))),
        _ => Ok(Changed::Tenant(TenantId::new(cells.uuid("id")?))),
    }
}
