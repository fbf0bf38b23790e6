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
    let mut sums = Sums::new(tx, tenant);
    let mut totals = Vec::new();
    for feature in features {
        let whole = sums.of(feature, Facet::All, &cut)?;
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
    let mut sums = Sums::new(tx, tenant);
    counters
        .iter()
        .map(|counter| {
            let facet = match &counter.subject {
                Subject::Tenant => Facet::All,
                Subject::Key(key) => Facet::Key(*key),
                Subject::User(user) => Facet::User(user),
            };
            let cut = CutWindow::new(counter.window, horizon);
            sums.of(&counter.feature, facet, &cut).map(quantity_of)
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

/// Sums of one tenant. What it used in cut hours is read once for all features that have columns, since most share
/// their windows.
pub(super) struct Sums<'t, 'f> {
    tx: &'t Transaction<'t>,
    tenant: TenantId,
    edges: Vec<(Facet<'f>, Span, [i128; COLUMNS.len()])>,
}

/// The features that have columns of their own in `usage_events`, named as they are.
const COLUMNS: &[FeatureKey; 4] = FeatureKey::BUILT_IN;

impl<'t, 'f> Sums<'t, 'f> {
    pub(super) fn new(tx: &'t Transaction<'t>, tenant: TenantId) -> Self {
        Self {
            tx,
            tenant,
            edges: Vec::new(),
        }
    }

    /// What `facet` of the tenant used of one feature in a window.
    pub(super) fn of(
        &mut self,
        feature: &FeatureKey,
        facet: Facet<'f>,
        cut: &CutWindow,
    ) -> Result<i128, Failed> {
        let mut whole = 0;
        if cut.hours.start < cut.hours.end {
            whole += self.rollups(feature, facet, cut.hours)?;
        }
        let column = feature.built_in_place();
        for edge in cut.edges.iter().flatten() {
            whole += edge.adds(match column {
                Some(column) => self.columns(facet, edge.span)?[column],
                None => self.events(feature, facet, edge.span)?,
            });
        }
        Ok(whole)
    }

    fn rollups(&self, feature: &FeatureKey, facet: Facet<'_>, hours: Span) -> Result<i128, Failed> {
        let sum = rows::find(
            self.tx,
            "usage_rollups",
            "SELECT sum(quantity >> 32) AS high, sum(quantity & 4294967295) AS low FROM usage_rollups
             WHERE tenant_id = :tenant AND feature_key = :feature AND dimension = :dimension AND value = :value
               AND hour >= :start AND hour < :end",
            named_params! {
                ":tenant": blob(self.tenant.uuid()),
                ":feature": feature.as_str(),
                ":dimension": facet.dimension(),
                ":value": facet.value(),
                ":start": hours.start,
                ":end": hours.end,
            },
            read_halves,
        )?;
        Ok(sum.unwrap_or(0))
    }

    fn columns(&mut self, facet: Facet<'f>, span: Span) -> Result<[i128; COLUMNS.len()], Failed> {
        let mut known = self.edges.iter();
        if let Some((.., sums)) = known.find(|(of, at, _)| *of == facet && *at == span) {
            return Ok(*sums);
        }
        let halves = |(place, feature): (usize, &FeatureKey)| {
            let column = feature.as_str();
            format!(
                "sum({column} >> 32) AS high_{place}, sum({column} & 4294967295) AS low_{place}"
            )
        };
        let halves: Vec<String> = COLUMNS.iter().enumerate().map(halves).collect();
        let sums = self.of_events(&halves.join(", "), facet, span, None, |cells| {
            let mut sums = [0; COLUMNS.len()];
            for (place, sum) in sums.iter_mut().enumerate() {
                *sum = read_halves_as(cells, &format!("high_{place}"), &format!("low_{place}"))?;
            }
            Ok(sums)
        })?;
        let sums = sums.unwrap_or_default();
        self.edges.push((facet, span, sums));
        Ok(sums)
    }

    fn events(&self, feature: &FeatureKey, facet: Facet<'_>, span: Span) -> Result<i128, Failed> {
        let used = Used::of(feature);
        let halves = format!(
            "sum({used} >> 32) AS high, sum({used} & 4294967295) AS low",
            used = used.expression
        );
        let sum = self.of_events(&halves, facet, span, used.path.as_deref(), read_halves)?;
        Ok(sum.unwrap_or(0))
    }

    /// `select` over the events of `facet` in `span`; `path` is the parameter that it has, if any.
    fn of_events<T>(
        &self,
        select: &str,
        facet: Facet<'_>,
        span: Span,
        path: Option<&str>,
        read: impl FnMut(&Cells<'_>) -> Result<T, Failed>,
    ) -> Result<Option<T>, Failed> {
        let condition = match facet {
            Facet::All => "",
            Facet::Key(_) => "AND key_id = :value",
            Facet::Model(_) => "AND model = :value",
            Facet::User(_) => "AND end_user = :value",
        };
        let tenant = blob(self.tenant.uuid());
        let value: Option<Box<dyn ToSql>> = match facet {
            Facet::All => None,
            Facet::Key(key) => Some(Box::new(blob(key.uuid()))),
            Facet::Model(name) | Facet::User(name) => Some(Box::new(name.to_owned())),
        };
        let mut params: Vec<(&str, &dyn ToSql)> = vec![
            (":tenant", &tenant),
            (":start", &span.start),
            (":end", &span.end),
        ];
        if let Some(path) = &path {
            params.push((":path", path));
        }
        if let Some(value) = &value {
            params.push((":value", value));
        }
        let sql = format!(
            "SELECT {select} FROM usage_events
             WHERE tenant_id = :tenant AND admitted_at >= :start AND admitted_at < :end {condition}"
        );
        rows::find(self.tx, "usage_events", &sql, params.as_slice(), read)
    }
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
        for (value, quantity) in events_by(tx, tenant, feature, by, edge.span)? {
            *parts.entry(value).or_insert(0) += edge.adds(quantity);
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
    span: Span,
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
        (":start", &span.start),
        (":end", &span.end),
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
    read_halves_as(cells, "high", "low")
}

fn read_halves_as(cells: &Cells<'_>, high: &str, low: &str) -> Result<i128, Failed> {
    let high: Option<i64> = cells.get(high)?;
    let low: Option<i64> = cells.get(low)?;
    Ok((i128::from(high.unwrap_or(0)) << 32) + i128::from(low.unwrap_or(0)))
}
