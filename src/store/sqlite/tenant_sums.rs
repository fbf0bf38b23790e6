//! Sums of many tenants for reports: as few statements a tenant as there can be.

use rusqlite::{Transaction, named_params};

use super::{
    Failed,
    rows::{self, blob},
    sums,
};
use crate::{
    domain::{feature::FeatureKey, ids::TenantId, window::Window},
    store::{
        rollups::{CutWindow, Facet, Span, heaviest_of, quantity_of},
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
    let mut edges = Edges::default();
    let mut found = Vec::with_capacity(ask.features.len());
    for (feature, window) in &ask.features {
        let cut = cut(*window);
        found.push(FeatureSum {
            feature: feature.clone(),
            quantity: quantity_of(sum(tx, ask.tenant, feature, &cut, &mut edges)?),
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
        let quantity = quantity_of(sum(tx, ask.tenant, &feature, &others, &mut edges)?);
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

fn sum(
    tx: &Transaction<'_>,
    tenant: TenantId,
    feature: &FeatureKey,
    cut: &CutWindow,
    edges: &mut Edges,
) -> Result<i128, Failed> {
    let Some(column) = built_in(feature) else {
        return sums::sum(tx, tenant, feature, Facet::All, cut);
    };
    let hours = CutWindow {
        edges: [None, None],
        ..cut.clone()
    };
    let mut whole = sums::sum(tx, tenant, feature, Facet::All, &hours)?;
    for edge in cut.edges.iter().flatten() {
        whole += edges.sums(tx, tenant, *edge)?[column];
    }
    Ok(whole)
}

/// Where a feature that has a column of its own stands among [`Edges`].
fn built_in(feature: &FeatureKey) -> Option<usize> {
    match feature {
        FeatureKey::Messages => Some(0),
        FeatureKey::InputTokens => Some(1),
        FeatureKey::OutputTokens => Some(2),
        FeatureKey::Cost => Some(3),
        FeatureKey::Named(_) => None,
    }
}

/// What one tenant used in cut hours of the features that have columns: most of its features share their windows.
#[derive(Default)]
struct Edges(Vec<(Span, [i128; 4])>);

impl Edges {
    fn sums(
        &mut self,
        tx: &Transaction<'_>,
        tenant: TenantId,
        edge: Span,
    ) -> Result<[i128; 4], Failed> {
        if let Some((_, sums)) = self.0.iter().find(|(span, _)| *span == edge) {
            return Ok(*sums);
        }
        let found = rows::find(
            tx,
            "usage_events",
            "SELECT sum(messages >> 32) AS high_0, sum(messages & 4294967295) AS low_0,
                    sum(input_tokens >> 32) AS high_1, sum(input_tokens & 4294967295) AS low_1,
                    sum(output_tokens >> 32) AS high_2, sum(output_tokens & 4294967295) AS low_2,
                    sum(cost >> 32) AS high_3, sum(cost & 4294967295) AS low_3
             FROM usage_events WHERE tenant_id = :tenant AND admitted_at >= :start AND admitted_at < :end",
            named_params! { ":tenant": blob(tenant.uuid()), ":start": edge.start, ":end": edge.end },
            |cells| {
                let half = |column| Ok::<_, Failed>(cells.get::<Option<i64>>(column)?.unwrap_or(0));
                let whole = |high, low| Ok::<_, Failed>((i128::from(half(high)?) << 32) + i128::from(half(low)?));
                Ok([
                    whole("high_0", "low_0")?,
                    whole("high_1", "low_1")?,
                    whole("high_2", "low_2")?,
                    whole("high_3", "low_3")?,
                ])
            },
        )?;
        let sums = found.unwrap_or_default();
        self.0.push((edge, sums));
        Ok(sums)
    }
}
