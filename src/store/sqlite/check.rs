//! Proves that rollups are the sums of their events.

use std::collections::BTreeMap;

use rusqlite::{Transaction, params};

use super::{
    Failed,
    rows::{self, Cells, blob},
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
pub(super) fn rollups(tx: &Transaction<'_>) -> Result<Vec<String>, Failed> {
    let from = sums::horizon(tx)?;
    let mut lines = Vec::new();
    let mut last = Vec::new();
    while let Some(tenant) = next_tenant(tx, &last)? {
        compare(tx, tenant, from, &mut lines)?;
        if lines.len() > MOST_LINES {
            lines.truncate(MOST_LINES);
            lines.push("… and more".to_owned());
            break;
        }
        last = blob(tenant.uuid()).to_vec();
    }
    lines.extend(trends(tx)?);
    Ok(lines)
}

/// Differences between the sums of all tenants and their rollups.
fn trends(tx: &Transaction<'_>) -> Result<Vec<String>, Failed> {
    rows::list(
        tx,
        "usage_trends",
        "SELECT feature_key, hour, sum(rollup) AS rollup, sum(trend) AS trend FROM (
             SELECT feature_key, hour, total(quantity) AS rollup, 0.0 AS trend FROM usage_rollups WHERE dimension = 'all'
             GROUP BY feature_key, hour
             UNION ALL
             SELECT feature_key, hour, 0.0, quantity FROM usage_trends
         ) GROUP BY feature_key, hour HAVING sum(rollup) <> sum(trend) LIMIT ?1",
        [rows::limit(MOST_LINES)],
        |cells| {
            let feature: String = cells.get("feature_key")?;
            let (rollups, trend): (f64, f64) = (cells.get("rollup")?, cells.get("trend")?);
            let hour = cells.time("hour")?;
            Ok(format!(
                "{feature}, hour {hour}: all tenants {trend}, their rollups {rollups}"
            ))
        },
    )
}

/// The first tenant after `last` that has rollups or events.
fn next_tenant(tx: &Transaction<'_>, last: &[u8]) -> Result<Option<TenantId>, Failed> {
    let next = rows::find(
        tx,
        "usage_rollups, usage_events",
        "SELECT min(tenant_id) AS tenant_id FROM (
             SELECT min(tenant_id) AS tenant_id FROM usage_rollups WHERE tenant_id > ?1
             UNION ALL
             SELECT min(tenant_id) FROM usage_events WHERE tenant_id > ?1
         )",
        [last],
        |cells| cells.optional_uuid("tenant_id"),
    )?;
    Ok(next.flatten().map(TenantId::new))
}

fn compare(
    tx: &Transaction<'_>,
    tenant: TenantId,
    from: Timestamp,
    lines: &mut Vec<String>,
) -> Result<(), Failed> {
    let mut expected = sums_of_events(tx, tenant, from)?;
    let stored = rows::list(
        tx,
        "usage_rollups",
        "SELECT * FROM usage_rollups WHERE tenant_id = ?1 AND hour >= ?2",
        params![blob(tenant.uuid()), from.micros()],
        |cells| Ok((read_place(cells)?, cells.get::<i64>("quantity")?)),
    )?;
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
fn sums_of_events(
    tx: &Transaction<'_>,
    tenant: TenantId,
    from: Timestamp,
) -> Result<BTreeMap<Place, i64>, Failed> {
    let mut sums = BTreeMap::new();
    rows::each(
        tx,
        "usage_events",
        "SELECT * FROM usage_events WHERE tenant_id = ?1 AND admitted_at >= ?2",
        params![blob(tenant.uuid()), from.micros()],
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
    )?;
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
