//! Plans, tenants, subscriptions, overrides and grants, and the feed of what changed.

use futures_util::future::BoxFuture;
use futures_util::future::try_join3;
use uuid::Uuid;

use super::{
    Failed, PostgresStore, already_exists,
    audit::Change,
    not_found, plans,
    pool::Tx,
    rows::{self, Cells, micros, params},
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
        catalogue::{CatalogueStore, Changed, Changes, LOOK_EVERY, TenantPolicy, TenantSearch},
    },
};

/// Beyond so many changed things it is cheaper to drop a cache whole than to name each.
const LONGEST_FEED: usize = 10_000;
/// Nor are more rows of the feed looked through than this: after a large import a server must start at once.
const LONGEST_FEED_ROWS: usize = 100_000;

impl CatalogueStore for PostgresStore {
    fn find_plan<'a>(&'a self, code: &'a PlanCode) -> BoxFuture<'a, StoreResult<Option<Plan>>> {
        Box::pin(self.read("catalogue.find_plan", move |tx| async move {
            plans::find(&tx, code).await
        }))
    }

    fn list_plans(&self) -> BoxFuture<'_, StoreResult<Vec<Plan>>> {
        Box::pin(self.read("catalogue.list_plans", move |tx| async move {
            plans::list(&tx).await
        }))
    }

    fn create_plan<'a>(&'a self, plan: &'a Plan, by: &'a Actor) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.change("catalogue.create_plan", move |tx| async move {
            plans::create(&tx, plan, by).await
        }))
    }

    fn update_plan<'a>(&'a self, plan: &'a Plan, by: &'a Actor) -> BoxFuture<'a, StoreResult<i64>> {
        Box::pin(self.change("catalogue.update_plan", move |tx| async move {
            plans::update(&tx, plan, by).await
        }))
    }

    fn put_plans<'a>(&'a self, plans: &'a [Plan], by: &'a Actor) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.change("catalogue.put_plans", move |tx| async move {
            for plan in plans {
                plans::put(&tx, plan, by).await?;
            }
            Ok(())
        }))
    }

    fn delete_plan<'a>(
        &'a self,
        code: &'a PlanCode,
        expected_version: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.change("catalogue.delete_plan", move |tx| async move {
            plans::delete(&tx, code, expected_version, by).await
        }))
    }

    fn find_tenant<'a>(
        &'a self,
        tenant: &'a TenantRef,
    ) -> BoxFuture<'a, StoreResult<Option<Tenant>>> {
        Box::pin(self.read("catalogue.find_tenant", move |tx| async move {
            tenants::find(&tx, tenant).await
        }))
    }

    fn find_policy(&self, tenant: TenantId) -> BoxFuture<'_, StoreResult<Option<TenantPolicy>>> {
        Box::pin(self.read("catalogue.find_policy", move |tx| async move {
            find_policy(&tx, tenant).await
        }))
    }

    fn find_former<'a>(
        &'a self,
        tenant: &'a TenantRef,
    ) -> BoxFuture<'a, StoreResult<Option<TenantPolicy>>> {
        Box::pin(self.read("catalogue.find_former", move |tx| async move {
            match tenants::find_former(&tx, tenant).await? {
                Some(tenant) => policy_of(&tx, tenant).await.map(Some),
                None => Ok(None),
            }
        }))
    }

    fn list_tenants<'a>(
        &'a self,
        after: Option<&'a Slug>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Tenant>>> {
        Box::pin(self.read("catalogue.list_tenants", move |tx| async move {
            tenants::list(&tx, after, limit).await
        }))
    }

    fn list_former<'a>(
        &'a self,
        after: Option<&'a Slug>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<(Tenant, Timestamp)>>> {
        Box::pin(self.read("catalogue.list_former", move |tx| async move {
            tenants::list_former(&tx, after, limit).await
        }))
    }

    fn search_tenants<'a>(
        &'a self,
        search: &'a TenantSearch,
        after: Option<&'a Slug>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Tenant>>> {
        Box::pin(
            self.read_much("catalogue.search_tenants", move |tx| async move {
                tenants::search(&tx, search, after, limit).await
            }),
        )
    }

    fn create_tenant<'a>(
        &'a self,
        tenant: &'a Tenant,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(
            self.change("catalogue.create_tenant", move |tx| async move {
                tenants::create(&tx, tenant, by).await
            }),
        )
    }

    fn rename_tenant<'a>(
        &'a self,
        tenant: TenantId,
        name: &'a DisplayName,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(
            self.change("catalogue.rename_tenant", move |tx| async move {
                tenants::rename(&tx, tenant, name, expected, by).await
            }),
        )
    }

    fn delete_tenant<'a>(
        &'a self,
        tenant: TenantId,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(
            self.change("catalogue.delete_tenant", move |tx| async move {
                tenants::delete(&tx, tenant, expected, by).await
            }),
        )
    }

    fn set_subscription<'a>(
        &'a self,
        tenant: TenantId,
        subscription: &'a Subscription,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(
            self.change("catalogue.set_subscription", move |tx| async move {
                tenants::set_subscription(&tx, tenant, subscription, expected, by).await
            }),
        )
    }

    fn set_override<'a>(
        &'a self,
        tenant: TenantId,
        limits: &'a Override,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.change("catalogue.set_override", move |tx| async move {
            tenants::set_override(&tx, tenant, limits, expected, by).await
        }))
    }

    fn remove_override<'a>(
        &'a self,
        tenant: TenantId,
        feature: &'a FeatureKey,
        expected: Option<i64>,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<bool>> {
        Box::pin(
            self.change("catalogue.remove_override", move |tx| async move {
                tenants::remove_override(&tx, tenant, feature, expected, by).await
            }),
        )
    }

    fn add_grant<'a>(&'a self, grant: &'a Grant, by: &'a Actor) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.change("catalogue.add_grant", move |tx| async move {
            add_grant(&tx, grant, by).await
        }))
    }

    fn list_grants(&self, tenant: TenantId) -> BoxFuture<'_, StoreResult<Vec<Grant>>> {
        Box::pin(self.read("catalogue.list_grants", move |tx| async move {
            grants_of(&tx, &[tenant]).await
        }))
    }

    fn count_tenants(&self) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(self.read("catalogue.count_tenants", move |tx| async move {
            let count = rows::find(
                &tx,
                "tenants",
                "SELECT count(*) AS tenants FROM tenants WHERE deleted_at IS NULL",
                params![],
                |cells| cells.get::<i64>("tenants"),
            )
            .await?;
            Ok(u64::try_from(count.unwrap_or(0)).unwrap_or(0))
        }))
    }

    fn list_grants_of(
        &self,
        tenants: Vec<TenantId>,
    ) -> BoxFuture<'_, StoreResult<Vec<Vec<Grant>>>> {
        Box::pin(async move {
            let tenants = tenants.as_slice();
            self.read("catalogue.list_grants_of", |tx| async move {
                let grants = grants_of(&tx, tenants).await?.into_iter();
                let grants = grants.map(|grant| (grant.tenant_id, grant));
                Ok(rows::by_tenant(tenants, grants))
            })
            .await
        })
    }

    fn revoke_grant<'a>(
        &'a self,
        grant: GrantId,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<Grant>> {
        Box::pin(self.change("catalogue.revoke_grant", move |tx| async move {
            revoke_grant(&tx, grant, by).await
        }))
    }

    fn add_reset<'a>(
        &'a self,
        tenant: TenantId,
        reset: &'a Reset,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.change("catalogue.add_reset", move |tx| async move {
            add_reset(&tx, tenant, reset, by).await
        }))
    }

    fn list_resets_of(
        &self,
        tenants: Vec<TenantId>,
    ) -> BoxFuture<'_, StoreResult<Vec<Vec<Reset>>>> {
        Box::pin(async move {
            let tenants = tenants.as_slice();
            self.read("catalogue.list_resets_of", |tx| async move {
                let resets = resets_of(&tx, tenants).await?;
                Ok(rows::by_tenant(tenants, resets))
            })
            .await
        })
    }

    fn changes_since(&self, version: i64) -> BoxFuture<'_, StoreResult<Changes>> {
        Box::pin(self.read("catalogue.changes_since", move |tx| async move {
            changes_since(&tx, version).await
        }))
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // A message may be lost.
            let _ = tokio::time::timeout(LOOK_EVERY, self.pool.watch().changed()).await;
        })
    }

    fn prune_changes(&self, before: Timestamp, limit: usize) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(self.write_at_leisure("catalogue.prune_changes", move |tx| async move {
            // Only from the beginning: a gap inside the feed would go unseen.
            rows::run(
                &tx,
                "WITH first AS MATERIALIZED (SELECT version, changed_at FROM catalogue_changes ORDER BY version LIMIT $2)
                 DELETE FROM catalogue_changes
                 WHERE version <= (SELECT max(version) FROM first)
                   AND version < coalesce((SELECT min(version) FROM first WHERE changed_at >= $1), 9223372036854775807)",
                params![before.micros(), rows::limit(limit)],
            ).await
        }))
    }
}

pub(super) async fn find_policy(tx: &Tx, tenant: TenantId) -> Result<Option<TenantPolicy>, Failed> {
    match tenants::find(tx, &TenantRef::Id(tenant)).await? {
        Some(tenant) => policy_of(tx, tenant).await.map(Some),
        None => Ok(None),
    }
}

async fn policy_of(tx: &Tx, tenant: Tenant) -> Result<TenantPolicy, Failed> {
    let plan = async {
        match &tenant.subscription {
            Some(subscription) => plans::find(tx, &subscription.plan_code).await,
            None => Ok(None),
        }
    };
    // Asked together: one way there and back for all.
    let tenants = [tenant.tenant_id];
    let (plan, grants, resets) =
        try_join3(plan, grants_of(tx, &tenants), resets_of(tx, &tenants)).await?;
    Ok(TenantPolicy {
        resets: resets.into_iter().map(|(_, reset)| reset).collect(),
        tenant,
        plan,
        grants,
    })
}

async fn resets_of(tx: &Tx, tenants: &[TenantId]) -> Result<Vec<(TenantId, Reset)>, Failed> {
    let tenants: Vec<Uuid> = tenants.iter().map(|tenant| tenant.uuid()).collect();
    rows::list(
        tx,
        "resets",
        "SELECT * FROM resets WHERE tenant_id = ANY ($1) ORDER BY at, feature_key",
        params![tenants],
        |cells| {
            let reset = Reset {
                feature: cells.parse("feature_key")?,
                at: cells.time("at")?,
                reason: cells.get("reason")?,
            };
            Ok((TenantId::new(cells.uuid("tenant_id")?), reset))
        },
    )
    .await
}

async fn add_reset(tx: &Tx, tenant: TenantId, reset: &Reset, by: &Actor) -> Result<(), Failed> {
    let stored = tenants::get(tx, tenant).await?;
    let is_there = rows::exists(
        tx,
        "SELECT 1 FROM resets WHERE tenant_id = $1 AND feature_key = $2 AND at = $3",
        params![tenant.uuid(), reset.feature.as_str(), reset.at.micros()],
    )
    .await?;
    if is_there {
        return Err(already_exists("reset", reset.at));
    }
    Change {
        action: "tenant.reset",
        target: stored.slug.as_str(),
        before: None,
        after: Some(audited::reset(reset)),
    }
    .note(tx, by)
    .await?;
    rows::run(
        tx,
        "INSERT INTO resets (tenant_id, feature_key, at, reason) VALUES ($1, $2, $3, $4)",
        params![
            tenant.uuid(),
            reset.feature.as_str(),
            reset.at.micros(),
            reset.reason
        ],
    )
    .await?;
    Ok(())
}

async fn add_grant(tx: &Tx, grant: &Grant, by: &Actor) -> Result<(), Failed> {
    tenants::get(tx, grant.tenant_id).await?;
    if find_grant(tx, grant.grant_id).await?.is_some() {
        return Err(already_exists("grant", grant.grant_id));
    }
    Change {
        action: "grant.add",
        target: &grant.grant_id.to_string(),
        before: None,
        after: Some(audited::grant(grant)),
    }
    .note(tx, by)
    .await?;
    rows::run(
        tx,
        "INSERT INTO grants (grant_id, tenant_id, feature_key, quantity, reason, created_at, expires_at, revoked_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        params![
            grant.grant_id.uuid(),
            grant.tenant_id.uuid(),
            grant.feature.as_str(),
            grant.quantity.get(),
            grant.reason,
            grant.created_at.micros(),
            grant.expires_at.micros(),
            micros(grant.revoked_at),
        ],
    ).await?;
    Ok(())
}

async fn revoke_grant(tx: &Tx, grant: GrantId, by: &Actor) -> Result<Grant, Failed> {
    let stored = find_grant(tx, grant)
        .await?
        .ok_or_else(|| not_found("grant", grant))?;
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
    .note(tx, by)
    .await?;
    rows::run(
        tx,
        "UPDATE grants SET revoked_at = $2 WHERE grant_id = $1",
        params![grant.uuid(), by.at.micros()],
    )
    .await?;
    Ok(revoked)
}

/// All grants of these tenants, the oldest first.
async fn grants_of(tx: &Tx, tenants: &[TenantId]) -> Result<Vec<Grant>, Failed> {
    let tenants: Vec<Uuid> = tenants.iter().map(|tenant| tenant.uuid()).collect();
    rows::list(
        tx,
        "grants",
        "SELECT * FROM grants WHERE tenant_id = ANY ($1) ORDER BY created_at, grant_id",
        params![tenants],
        read_grant,
    )
    .await
}

async fn find_grant(tx: &Tx, grant: GrantId) -> Result<Option<Grant>, Failed> {
    rows::find(
        tx,
        "grants",
        "SELECT * FROM grants WHERE grant_id = $1",
        params![grant.uuid()],
        read_grant,
    )
    .await
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

async fn changes_since(tx: &Tx, since: i64) -> Result<Changes, Failed> {
    // The counter outlives the rows: a feed that was pruned whole still knows its version.
    let version = rows::find(
        tx,
        "catalogue_version",
        "SELECT version FROM catalogue_version",
        params![],
        |cells| cells.get::<i64>("version"),
    )
    .await?
    .unwrap_or(0);
    let changed = match since.cmp(&version) {
        std::cmp::Ordering::Equal => Vec::new(),
        // The store has gone back in time: a backup was restored.
        std::cmp::Ordering::Greater => vec![Changed::Everything],
        std::cmp::Ordering::Less => changed_after(tx, since, version).await?,
    };
    Ok(Changes { version, changed })
}

async fn changed_after(tx: &Tx, since: i64, version: i64) -> Result<Vec<Changed>, Failed> {
    let reaches_back = rows::exists(
        tx,
        "SELECT 1 FROM catalogue_changes WHERE version = $1",
        params![since.saturating_add(1)],
    )
    .await?;
    let rows = version.saturating_sub(since);
    let is_long = usize::try_from(rows).is_ok_and(|rows| rows > LONGEST_FEED_ROWS);
    if !reaches_back || is_long {
        return Ok(vec![Changed::Everything]);
    }
    let mut changed = rows::list(
        tx,
        "catalogue_changes",
        "SELECT kind, id FROM catalogue_changes WHERE version > $1 GROUP BY kind, id ORDER BY min(version) LIMIT $2",
        params![since, rows::limit(LONGEST_FEED + 1)],
        read_changed,
    ).await?;
    if changed.len() > LONGEST_FEED {
        changed = vec![Changed::Everything];
    }
    Ok(changed)
}

fn read_changed(cells: &Cells<'_>) -> Result<Changed, Failed> {
    let kind: String = cells.get("kind")?;
    match kind.as_str() {
        "plan" => Ok(Changed::Plan(cells.parse("id")?)),
        "key" => Ok(Changed::Key(KeyId::new(cells.parse("id")?))),
        _ => Ok(Changed::Tenant(TenantId::new(cells.parse("id")?))),
    }
}
