//! Sums over windows: whole hours from rollups, cut ones from events.
//!
//! Each sum is taken in two halves (the upper and lower 32 bits of every quantity), since `sum()` fails beyond
//! 64 bits: a few absurd events of one tenant must not break its report, let alone everybody's.

use std::collections::BTreeMap;

use rusqlite::{ToSql, Transaction, named_params};

use super::{
    Failed,
    rows::{self, Cells, blob},
};
use crate::{
    domain::{
        feature::FeatureKey,
        ids::{KeyId, TenantId},
        limit::Subject,
        quantity::Quantity,
        time::Timestamp,
        window::Window,
    },
    store::{
        rollups::{CutWindow, Facet, Span, quantity_of},
        usage::{CounterOf, Dimension, Total, Totals},
    },
};

/// Every event admitted at or after this is still there.
pub(super) fn horizon(tx: &Transaction<'_>) -> Result<Timestamp, Failed> {
    let until = rows::find(
        tx,
        "usage_horizon",
        "SELECT pruned_until FROM usage_horizon",
        [],
        |cells| cells.time("pruned_until"),
    )?;
    until.ok_or_else(|| Failed::Corrupt("table usage_horizon has lost its row".to_owned()))
}

pub(super) fn totals(
    tx: &Transaction<'_>,
    tenant: TenantId,
    features: &[FeatureKey],
    window: Window,
    by: Option<Dimension>,
) -> Result<Totals, Failed> {
    let cut = CutWindow::new(window, horizon(tx)?);
    let mut totals = Vec::new();
    for feature in features {
        let whole = sum(tx, tenant, feature, Facet::All, &cut)?;
        let Some(by) = by else {
            totals.push(Total {
                feature: feature.clone(),
                quantity: quantity_of(whole),
                by: None,
            });
            continue;
        };
        let mut parts = sums_by(tx, tenant, feature, by, &cut)?;
        // Usage that names no key or model has no row of that dimension: it is what the others leave.
        let rest = whole - parts.values().sum::<i128>();
        *parts.entry(String::new()).or_insert(0) += rest;
        for (value, quantity) in parts.into_iter().filter(|(_, quantity)| *quantity != 0) {
            totals.push(Total {
                feature: feature.clone(),
                quantity: quantity_of(quantity),
                by: Some(value),
            });
        }
    }
    Ok(Totals {
        window: cut.window,
        totals,
    })
}

pub(super) fn counters(
    tx: &Transaction<'_>,
    tenant: TenantId,
    counters: &[CounterOf],
) -> Result<Vec<Quantity>, Failed> {
    let horizon = horizon(tx)?;
    counters
        .iter()
        .map(|counter| {
            let facet = match &counter.subject {
                Subject::Tenant => Facet::All,
                Subject::Key(key) => Facet::Key(*key),
                Subject::User(user) => Facet::User(user),
            };
            let cut = CutWindow::new(counter.window, horizon);
            sum(tx, tenant, &counter.feature, facet, &cut).map(quantity_of)
        })
        .collect()
}

/// What corrections add up to.
pub(super) fn corrections(
    tx: &Transaction<'_>,
    tenant: TenantId,
    features: &[FeatureKey],
    window: Window,
) -> Result<Vec<Quantity>, Failed> {
    let tenant = blob(tenant.uuid());
    let (start, end) = (window.start().micros(), window.end().micros());
    let sum = |feature: &FeatureKey| {
        let used = Used::of(feature);
        let mut params: Vec<(&str, &dyn ToSql)> =
            vec![(":tenant", &tenant), (":start", &start), (":end", &end)];
        used.add_param(&mut params);
        let sql = format!(
            "SELECT sum({used} >> 32) AS high, sum({used} & 4294967295) AS low FROM usage_events
             WHERE tenant_id = :tenant AND admitted_at >= :start AND admitted_at < :end AND source = 'correction'",
            used = used.expression,
        );
        let halves = rows::find(tx, "usage_events", &sql, params.as_slice(), read_halves)?;
        Ok(quantity_of(halves.unwrap_or(0)))
    };
    features.iter().map(sum).collect()
}

/// What `facet` of `tenant` used of one feature in a window.
pub(super) fn sum(
    tx: &Transaction<'_>,
    tenant: TenantId,
    feature: &FeatureKey,
    facet: Facet<'_>,
    cut: &CutWindow,
) -> Result<i128, Failed> {
    let mut whole = 0;
    if cut.hours.start < cut.hours.end {
        let from_rollups = rows::find(
            tx,
            "usage_rollups",
            "SELECT sum(quantity >> 32) AS high, sum(quantity & 4294967295) AS low FROM usage_rollups
             WHERE tenant_id = :tenant AND feature_key = :feature AND dimension = :dimension AND value = :value
               AND hour >= :start AND hour < :end",
            named_params! {
                ":tenant": blob(tenant.uuid()),
                ":feature": feature.as_str(),
                ":dimension": facet.dimension(),
                ":value": facet.value(),
                ":start": cut.hours.start,
                ":end": cut.hours.end,
            },
            read_halves,
        )?;
        whole += from_rollups.unwrap_or(0);
    }
    for edge in cut.edges.iter().flatten() {
        whole += sum_events(tx, tenant, feature, facet, *edge)?;
    }
    Ok(whole)
}

fn sum_events(
    tx: &Transaction<'_>,
    tenant: TenantId,
    feature: &FeatureKey,
    facet: Facet<'_>,
    edge: Span,
) -> Result<i128, Failed> {
    let used = Used::of(feature);
    let condition = match facet {
        Facet::All => "",
        Facet::Key(_) => "AND key_id = :value",
        Facet::Model(_) => "AND model = :value",
        Facet::User(_) => "AND end_user = :value",
    };
    let tenant = blob(tenant.uuid());
    let value: Option<Box<dyn ToSql>> = match facet {
        Facet::All => None,
        Facet::Key(key) => Some(Box::new(blob(key.uuid()))),
        Facet::Model(name) | Facet::User(name) => Some(Box::new(name.to_owned())),
    };
    let mut params: Vec<(&str, &dyn ToSql)> = vec![
        (":tenant", &tenant),
        (":start", &edge.start),
        (":end", &edge.end),
    ];
    used.add_param(&mut params);
    if let Some(value) = &value {
        params.push((":value", value));
    }
    let sql = format!(
        "SELECT sum({used} >> 32) AS high, sum({used} & 4294967295) AS low FROM usage_events
         WHERE tenant_id = :tenant AND admitted_at >= :start AND admitted_at < :end {condition}",
        used = used.expression,
    );
    let halves = rows::find(tx, "usage_events", &sql, params.as_slice(), read_halves)?;
    Ok(halves.unwrap_or(0))
}

/// What was used of one feature in a window, by key, user or model; only those named.
pub(super) fn sums_by(
    tx: &Transaction<'_>,
    tenant: TenantId,
    feature: &FeatureKey,
    by: Dimension,
    cut: &CutWindow,
) -> Result<BTreeMap<String, i128>, Failed> {
    let mut parts = BTreeMap::new();
    if cut.hours.start < cut.hours.end {
        for (value, quantity) in rollups_by(tx, tenant, feature, by, cut.hours)? {
            *parts.entry(value).or_insert(0) += quantity;
        }
    }
    for edge in cut.edges.iter().flatten() {
        for (value, quantity) in events_by(tx, tenant, feature, by, *edge)? {
            *parts.entry(value).or_insert(0) += quantity;
        }
    }
    Ok(parts)
}

/// Steps from value to value through the primary key, so that only the hours asked are read of each.
fn rollups_by(
    tx: &Transaction<'_>,
    tenant: TenantId,
    feature: &FeatureKey,
    by: Dimension,
    hours: Span,
) -> Result<Vec<(String, i128)>, Failed> {
    let dimension = by.as_str();
    rows::list(
        tx,
        "usage_rollups",
        "WITH RECURSIVE named (value) AS (
             SELECT min(value) FROM usage_rollups
             WHERE tenant_id = :tenant AND feature_key = :feature AND dimension = :dimension
             UNION ALL
             SELECT (SELECT min(value) FROM usage_rollups
                     WHERE tenant_id = :tenant AND feature_key = :feature AND dimension = :dimension
                       AND value > named.value)
             FROM named WHERE named.value IS NOT NULL
         )
         SELECT named.value AS value, sum(quantity >> 32) AS high, sum(quantity & 4294967295) AS low
         FROM named CROSS JOIN usage_rollups AS rollup
             ON rollup.tenant_id = :tenant AND rollup.feature_key = :feature AND rollup.dimension = :dimension
             AND rollup.value = named.value AND rollup.hour >= :start AND rollup.hour < :end
         GROUP BY named.value",
        named_params! {
            ":tenant": blob(tenant.uuid()),
            ":feature": feature.as_str(),
            ":dimension": dimension,
            ":start": hours.start,
            ":end": hours.end,
        },
        |cells| Ok((cells.get("value")?, read_halves(cells)?)),
    )
}

fn events_by(
    tx: &Transaction<'_>,
    tenant: TenantId,
    feature: &FeatureKey,
    by: Dimension,
    edge: Span,
) -> Result<Vec<(String, i128)>, Failed> {
    let column = match by {
        Dimension::Key => "key_id",
        Dimension::User => "end_user",
        Dimension::Model => "model",
    };
    let used = Used::of(feature);
    let tenant = blob(tenant.uuid());
    let mut params: Vec<(&str, &dyn ToSql)> = vec![
        (":tenant", &tenant),
        (":start", &edge.start),
        (":end", &edge.end),
    ];
    used.add_param(&mut params);
    let sql = format!(
        "SELECT {column} AS value, sum({used} >> 32) AS high, sum({used} & 4294967295) AS low FROM usage_events
         WHERE tenant_id = :tenant AND admitted_at >= :start AND admitted_at < :end AND {column} IS NOT NULL
         GROUP BY {column}",
        used = used.expression,
    );
    rows::list(tx, "usage_events", &sql, params.as_slice(), |cells| {
        let value = match by {
            Dimension::Key => KeyId::new(cells.uuid("value")?).to_string(),
            Dimension::User | Dimension::Model => cells.get("value")?,
        };
        Ok((value, read_halves(cells)?))
    })
}

/// Where a row of `usage_events` has the quantity of a feature.
struct Used {
    expression: &'static str,
    /// The path into column `extra`.
    path: Option<String>,
}

impl Used {
    fn of(feature: &FeatureKey) -> Self {
        let column = |expression| Self {
            expression,
            path: None,
        };
        match feature {
            FeatureKey::Messages => column("messages"),
            FeatureKey::InputTokens => column("input_tokens"),
            FeatureKey::OutputTokens => column("output_tokens"),
            FeatureKey::Cost => column("cost"),
            FeatureKey::Named(name) => Self {
                expression: "json_extract(extra, :path)",
                path: Some(format!("$.\"{name}\"")),
            },
        }
    }

    fn add_param<'a>(&'a self, params: &mut Vec<(&str, &'a dyn ToSql)>) {
        if let Some(path) = &self.path {
            params.push((":path", path));
        }
    }
}

fn read_halves(cells: &Cells<'_>) -> Result<i128, Failed> {
    let high: Option<i64> = cells.get("high")?;
    let low: Option<i64> = cells.get("low")?;
    Ok((i128::from(high.unwrap_or(0)) << 32) + i128::from(low.unwrap_or(0)))
}
