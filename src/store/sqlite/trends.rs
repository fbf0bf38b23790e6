//! Sums by hour.

use futures_util::future::BoxFuture;
use rusqlite::{Transaction, params};

use super::{
    Failed, SqliteStore,
    rows::{self, Cells, blob},
};
use crate::{
    domain::{feature::FeatureKey, ids::TenantId, time::Timestamp, window::Window},
    store::{
        StoreResult,
        trends::{Decisions, TrendStore, UsedInHour},
    },
};

impl TrendStore for SqliteStore {
    fn used_by_hour(&self, window: Window) -> BoxFuture<'_, StoreResult<Vec<UsedInHour>>> {
        Box::pin(self.read_much("trends.used_by_hour", move |tx| {
            let features = features(tx)?;
            let mut used = Vec::new();
            for feature in features {
                used.extend(rows::list(
                    tx,
                    "usage_trends",
                    "SELECT * FROM usage_trends WHERE feature_key = ?1 AND hour >= ?2 AND hour < ?3 ORDER BY hour",
                    params![feature.as_str(), window.start().micros(), window.end().micros()],
                    read_used,
                )?);
            }
            Ok(used)
        }))
    }

    fn tenant_used_by_hour<'a>(
        &'a self,
        tenant: TenantId,
        features: &'a [FeatureKey],
        window: Window,
    ) -> BoxFuture<'a, StoreResult<Vec<UsedInHour>>> {
        let mut features = features.to_vec();
        features.sort();
        Box::pin(self.read_much("trends.tenant_used_by_hour", move |tx| {
            let mut used = Vec::new();
            for feature in features {
                used.extend(rows::list(
                    tx,
                    "usage_rollups",
                    "SELECT * FROM usage_rollups WHERE tenant_id = ?1 AND feature_key = ?2 AND dimension = 'all' AND value = ''
                       AND hour >= ?3 AND hour < ?4 ORDER BY hour",
                    params![
                        blob(tenant.uuid()),
                        feature.as_str(),
                        window.start().micros(),
                        window.end().micros()
                    ],
                    read_used,
                )?);
            }
            Ok(used)
        }))
    }

    fn add_decisions(&self, hour: Timestamp, more: Decisions) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(self.write("trends.add_decisions", move |tx| {
            let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            rows::run(
                tx,
                "INSERT INTO decision_trends (hour, allow, soft_limit, hard_limit) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (hour) DO UPDATE SET allow = allow + excluded.allow,
                     soft_limit = soft_limit + excluded.soft_limit, hard_limit = hard_limit + excluded.hard_limit",
                params![
                    hour.micros(),
                    count(more.allow),
                    count(more.soft_limit),
                    count(more.hard_limit)
                ],
            )?;
            Ok(())
        }))
    }

    fn decisions_by_hour(
        &self,
        window: Window,
    ) -> BoxFuture<'_, StoreResult<Vec<(Timestamp, Decisions)>>> {
        Box::pin(self.read_much("trends.decisions_by_hour", move |tx| {
            rows::list(
                tx,
                "decision_trends",
                "SELECT * FROM decision_trends WHERE hour >= ?1 AND hour < ?2 ORDER BY hour",
                params![window.start().micros(), window.end().micros()],
                |cells| {
                    let count = |column| {
                        let count: i64 = cells.get(column)?;
                        Ok::<_, Failed>(u64::try_from(count).unwrap_or(0))
                    };
                    let decisions = Decisions {
                        allow: count("allow")?,
                        soft_limit: count("soft_limit")?,
                        hard_limit: count("hard_limit")?,
                    };
                    Ok((cells.time("hour")?, decisions))
                },
            )
        }))
    }
}

/// Every feature that anybody ever used: one step through the primary key each.
fn features(tx: &Transaction<'_>) -> Result<Vec<FeatureKey>, Failed> {
    let mut features = rows::list(
        tx,
        "usage_trends",
        "WITH RECURSIVE keys (feature_key) AS (
             SELECT min(feature_key) FROM usage_trends
             UNION ALL
             SELECT (SELECT min(feature_key) FROM usage_trends WHERE feature_key > keys.feature_key) FROM keys
             WHERE feature_key IS NOT NULL
         )
         SELECT feature_key FROM keys WHERE feature_key IS NOT NULL",
        [],
        |cells| cells.parse("feature_key"),
    )?;
    features.sort();
    Ok(features)
}

fn read_used(cells: &Cells<'_>) -> Result<UsedInHour, Failed> {
    Ok(UsedInHour {
        feature: cells.parse("feature_key")?,
        hour: cells.time("hour")?,
        quantity: cells.quantity("quantity")?,
    })
}
