//! Proves that rollups are the sums of their events.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{
    Failed,
    pool::Tx,
    rows::{self, Cells, params},
    sums, usage,
};
use crate::{
    domain::{ids::TenantId, time::Timestamp},
    store::rollups::{Rollups, within_rollup},
};

/// More differences than a person reads; the first ones tell the story.
const MOST_LINES: usize = 1_000;

/// One rollup of a tenant, by the rest of its primary key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    feature: String,
    dimension: String,
    value: String,
    hour: i64,
}

/// Differences between rollups and the events that are still there, tenant by tenant, as lines for people. Hours
/// that have lost events to pruning can't be compared, and are left out.
pub(super) async fn rollups(tx: &Tx) -> Result<Vec<String>, Failed> {
    let from = sums::horizon(tx).await?;
    let mut lines = Vec::new();
    let mut last = None;
    while let Some(tenant) = next_tenant(tx, last).await? {
        compare(tx, tenant, from, &mut lines).await?;
        if lines.len() > MOST_LINES {
            lines.truncate(MOST_LINES);
            lines.push("… and more".to_owned());
            break;
        }
        last = Some(tenant);
    }
    lines.extend(trends(tx).await?);
    Ok(lines)
}

/// Differences between the sums of all tenants and their rollups.
async fn trends(tx: &Tx) -> Result<Vec<String>, Failed> {
    rows::list(
        tx,
        "usage_trends",
        "SELECT feature_key, hour, sum(rollup)::text AS rollup, sum(trend)::text AS trend FROM (
             SELECT feature_key, hour, sum(quantity) AS rollup, 0 AS trend FROM usage_rollups WHERE dimension = 'all'
             GROUP BY feature_key, hour
             UNION ALL
             SELECT feature_key, hour, 0, quantity FROM usage_trends
         ) AS both_sums GROUP BY feature_key, hour HAVING sum(rollup) <> sum(trend)
         ORDER BY feature_key, hour LIMIT $1",
        params![rows::limit(MOST_LINES)],
        |cells| {
            let feature: String = cells.get("feature_key")?;
            let (rollups, trend) = (cells.sum("rollup")?, cells.sum("trend")?);
            let hour = cells.time("hour")?;
            Ok(format!(
                "{feature}, hour {hour}: all tenants {trend}, their rollups {rollups}"
            ))
        },
    )
    .await
}

/// The first tenant after `last` that has rollups or events.
async fn next_tenant(tx: &Tx, last: Option<TenantId>) -> Result<Option<TenantId>, Failed> {
    let is_next = if last.is_some() { ">" } else { ">=" };
    let last = last.map_or(Uuid::nil(), TenantId::uuid);
    let next = rows::find(
        tx,
        "usage_rollups, usage_events",
        &format!(
            "SELECT tenant_id FROM (
                 (SELECT tenant_id FROM usage_rollups WHERE tenant_id {is_next} $1 ORDER BY tenant_id LIMIT 1)
                 UNION ALL
                 (SELECT tenant_id FROM usage_events WHERE tenant_id {is_next} $1 ORDER BY tenant_id LIMIT 1)
             ) AS next ORDER BY tenant_id LIMIT 1"
        ),
        params![last],
        |cells| cells.uuid("tenant_id"),
    )
    .await?;
    Ok(next.map(TenantId::new))
}

async fn compare(
    tx: &Tx,
    tenant: TenantId,
    from: Timestamp,
    lines: &mut Vec<String>,
) -> Result<(), Failed> {
    let mut expected = sums_of_events(tx, tenant, from).await?;
    let stored = rows::list(
        tx,
        "usage_rollups",
        "SELECT * FROM usage_rollups WHERE tenant_id = $1 AND hour >= $2",
        params![tenant.uuid(), from.micros()],
        |cells| Ok((read_place(cells)?, cells.get::<i64>("quantity")?)),
    )
    .await?;
    for (place, rollup) in stored {
        let events = expected.remove(&place).unwrap_or(0);
        if rollup != events {
            lines.push(difference(tenant, &place, rollup, events));
        }
    }
    for (place, events) in expected.into_iter().filter(|(_, events)| *events != 0) {
        lines.push(difference(tenant, &place, 0, events));
    }
    Ok(())
}

/// Adds up one event at a time: a tenant may have more than fit in memory.
async fn sums_of_events(
    tx: &Tx,
    tenant: TenantId,
    from: Timestamp,
) -> Result<BTreeMap<Place, i64>, Failed> {
    let mut sums = BTreeMap::new();
    rows::each(
        tx,
        "usage_events",
        "SELECT * FROM usage_events WHERE tenant_id = $1 AND admitted_at >= $2",
        params![tenant.uuid(), from.micros()],
        |cells| {
            let event = usage::read_event(cells)?;
            let mut rollups = Rollups::default();
            rollups.add(&event);
            for (key, quantity) in rollups.into_sorted() {
                let place = Place {
                    feature: key.feature.to_string(),
                    dimension: key.facet.dimension().to_owned(),
                    value: key.facet.value().into_owned(),
                    hour: key.hour,
                };
                let sum = sums.entry(place).or_insert(0);
                *sum = within_rollup(*sum + quantity);
            }
            Ok(())
        },
    )
    .await?;
    // The hour that the horizon cuts has lost events.
    sums.retain(|place: &Place, _| place.hour >= from.micros());
    Ok(sums)
}

fn read_place(cells: &Cells<'_>) -> Result<Place, Failed> {
    Ok(Place {
        feature: cells.get("feature_key")?,
        dimension: cells.get("dimension")?,
        value: cells.get("value")?,
        hour: cells.get("hour")?,
    })
}

fn difference(tenant: TenantId, place: &Place, rollup: i64, events: i64) -> String {
    let Place {
        feature,
        dimension,
        value,
        hour,
    } = place;
    let whose = match dimension.as_str() {
        "all" => String::new(),
        _ => format!(", {dimension} {value:?}"),
    };
    let hour = Timestamp::from_micros(*hour);
    format!("{tenant}, {feature}{whose}, hour {hour}: rollup {rollup}, events {events}")
}
