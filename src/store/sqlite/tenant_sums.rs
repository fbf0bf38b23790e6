//! Sums of many tenants for reports: as few statements a tenant as there can be.

use rusqlite::{Transaction, named_params};

use super::{
    Failed,
    rows::{self, blob},
    sums::{self, Sums},
};
use crate::{
    domain::{feature::FeatureKey, ids::TenantId, window::Window},
    store::{
        rollups::{CutWindow, Facet, heaviest_of, quantity_of},
        usage::{FeatureSum, HeaviestAsk, TenantAsk, UsedBy},
    },
};

pub(super) fn of(tx: &Transaction<'_>, asks: &[TenantAsk]) -> Result<Vec<Vec<FeatureSum>>, Failed> {
    let horizon = sums::horizon(tx)?;
    let cut = |window: Window| CutWindow::new(window, horizon);
    // In the order of the table, in which neighbours share pages.
    let mut order: Vec<usize> = (0..asks.len()).collect();
    order.sort_by_key(|&index| asks[index].tenant);
    let mut found = vec![Vec::new(); asks.len()];
    for index in order {
        found[index] = of_tenant(tx, &asks[index], cut)?;
    }
    Ok(found)
}

fn of_tenant(
    tx: &Transaction<'_>,
    ask: &TenantAsk,
    cut: impl Fn(Window) -> CutWindow,
) -> Result<Vec<FeatureSum>, Failed> {
    let mut sums = Sums::new(tx, ask.tenant);
    let mut found = Vec::with_capacity(ask.features.len());
    for (feature, window) in &ask.features {
        let cut = cut(*window);
        found.push(FeatureSum {
            feature: feature.clone(),
            quantity: quantity_of(sums.of(feature, Facet::All, &cut)?),
            window: cut.window,
        });
    }
    let Some(others) = ask.others.map(cut) else {
        return Ok(found);
    };
    let mut last = String::new();
    while let Some(feature) = next_feature(tx, ask.tenant, &last)? {
        feature.as_str().clone_into(&mut last);
        if ask.features.iter().any(|(asked, _)| *asked == feature) {
            continue;
        }
        let quantity = quantity_of(sums.of(&feature, Facet::All, &others)?);
        if quantity.get() != 0 {
            found.push(FeatureSum {
                feature,
                quantity,
                window: others.window,
            });
        }
    }
    found[ask.features.len()..].sort_by(|one, other| one.feature.cmp(&other.feature));
    Ok(found)
}

/// Who used most of what is asked for, the heaviest first.
pub(super) fn heaviest(
    tx: &Transaction<'_>,
    asks: &[HeaviestAsk],
) -> Result<Vec<Vec<UsedBy>>, Failed> {
    let horizon = sums::horizon(tx)?;
    let of = |ask: &HeaviestAsk| {
        let cut = CutWindow::new(ask.window, horizon);
        let parts = sums::sums_by(tx, ask.tenant, &ask.feature, ask.by, &cut)?;
        Ok(heaviest_of(parts, ask))
    };
    asks.iter().map(of).collect()
}

/// Every feature that the tenant ever used, in order.
pub(super) fn features(tx: &Transaction<'_>, tenant: TenantId) -> Result<Vec<FeatureKey>, Failed> {
    let mut found: Vec<FeatureKey> = Vec::new();
    while let Some(next) = next_feature(tx, tenant, found.last().map_or("", FeatureKey::as_str))? {
        found.push(next);
    }
    Ok(found)
}

/// The first feature after `last` that the tenant ever used: one step through the primary key.
fn next_feature(
    tx: &Transaction<'_>,
    tenant: TenantId,
    last: &str,
) -> Result<Option<FeatureKey>, Failed> {
    rows::find(
        tx,
        "usage_rollups",
        "SELECT feature_key FROM usage_rollups WHERE tenant_id = :tenant AND feature_key > :last
         ORDER BY feature_key LIMIT 1",
        named_params! { ":tenant": blob(tenant.uuid()), ":last": last },
        |cells| cells.parse("feature_key"),
    )
}
