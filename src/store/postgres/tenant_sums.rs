//! Sums of many tenants for reports, in a few statements for all of them.

use std::collections::HashMap;

use uuid::Uuid;

use super::{
    Failed,
    pool::Tx,
    rows::{self, params},
    sums::{self, Ask},
};
use crate::{
    domain::{feature::FeatureKey, ids::TenantId},
    store::{
        rollups::{CutWindow, Facet, quantity_of},
        usage::{FeatureSum, TenantAsk},
    },
};

/// A sum on its way: of which ask, of what, in which window, and whether it was asked for by name.
struct Wanted {
    ask: usize,
    feature: FeatureKey,
    cut: CutWindow,
    is_named: bool,
}

pub(super) async fn of(tx: &Tx, asks: &[TenantAsk]) -> Result<Vec<Vec<FeatureSum>>, Failed> {
    let horizon = sums::horizon(tx).await?;
    let mut wanted = Vec::new();
    for (index, ask) in asks.iter().enumerate() {
        wanted.extend(ask.features.iter().map(|(feature, window)| Wanted {
            ask: index,
            feature: feature.clone(),
            cut: CutWindow::new(*window, horizon),
            is_named: true,
        }));
    }
    let with_others = asks.iter().filter(|ask| ask.others.is_some());
    let mut used: HashMap<TenantId, Vec<FeatureKey>> = HashMap::new();
    let tenants: Vec<TenantId> = with_others.map(|ask| ask.tenant).collect();
    for (tenant, feature) in features(tx, &tenants).await? {
        used.entry(tenant).or_default().push(feature);
    }
    for (index, ask) in asks.iter().enumerate() {
        let Some(window) = ask.others else { continue };
        let is_other =
            |feature: &&FeatureKey| !ask.features.iter().any(|(asked, _)| asked == *feature);
        let others = used.get(&ask.tenant).into_iter().flatten().filter(is_other);
        wanted.extend(others.map(|feature| Wanted {
            ask: index,
            feature: feature.clone(),
            cut: CutWindow::new(window, horizon),
            is_named: false,
        }));
    }
    let sums = wanted.iter().map(|it| Ask {
        tenant: asks[it.ask].tenant,
        feature: &it.feature,
        facet: Facet::All,
        cut: &it.cut,
    });
    let sums = sums::all(tx, &sums.collect::<Vec<_>>()).await?;
    let mut found = vec![Vec::new(); asks.len()];
    for (it, sum) in wanted.into_iter().zip(sums) {
        let quantity = quantity_of(sum);
        if it.is_named || quantity.get() != 0 {
            found[it.ask].push(FeatureSum {
                feature: it.feature,
                quantity,
                window: it.cut.window,
            });
        }
    }
    Ok(found)
}

/// Every feature that each of the tenants ever used, in order: one step through the primary key each.
pub(super) async fn features(
    tx: &Tx,
    tenants: &[TenantId],
) -> Result<Vec<(TenantId, FeatureKey)>, Failed> {
    if tenants.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = tenants.iter().map(|tenant| tenant.uuid()).collect();
    let mut found = rows::list(
        tx,
        "usage_rollups",
        "SELECT asked.tenant_id, found.feature_key FROM (SELECT DISTINCT unnest($1::uuid[]) AS tenant_id) AS asked
         CROSS JOIN LATERAL (
             WITH RECURSIVE used (feature_key) AS (
                 (SELECT feature_key FROM usage_rollups WHERE tenant_id = asked.tenant_id ORDER BY feature_key LIMIT 1)
                 UNION ALL
                 SELECT (SELECT feature_key FROM usage_rollups
                         WHERE tenant_id = asked.tenant_id AND feature_key > used.feature_key
                         ORDER BY feature_key LIMIT 1)
                 FROM used WHERE used.feature_key IS NOT NULL
             )
             SELECT feature_key FROM used WHERE feature_key IS NOT NULL
         ) AS found",
        params![ids],
        |cells| {
            let tenant = TenantId::new(cells.uuid("tenant_id")?);
            Ok((tenant, cells.parse::<FeatureKey>("feature_key")?))
        },
    )
    .await?;
    found.sort();
    Ok(found)
}
