//! Sums over windows: whole hours from rollups, cut ones from events.
//!
//! However many sums are asked for, they are two statements: one over rollups, one over events. Postgres sums without
//! an end, so that a few absurd events break nothing; sums come as text.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{
    Failed,
    pool::Tx,
    rows::{self, params},
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
        rollups::{CutWindow, Edge, Facet, Span, quantity_of},
        usage::{CounterOf, Dimension, Total, Totals},
    },
};

/// What a row of `usage_events` has of the feature in column `feature` of `asked`.
pub(super) const USED: &str = "CASE asked.feature
        WHEN 'messages' THEN messages WHEN 'input_tokens' THEN input_tokens
        WHEN 'output_tokens' THEN output_tokens WHEN 'cost' THEN cost
        ELSE (extra::jsonb ->> asked.feature)::bigint END";

/// Every event admitted at or after this is still there.
pub(super) async fn horizon(tx: &Tx) -> Result<Timestamp, Failed> {
    let until = rows::find(
        tx,
        "usage_horizon",
        "SELECT pruned_until FROM usage_horizon",
        params![],
        |cells| cells.time("pruned_until"),
    )
    .await?;
    until.ok_or_else(|| Failed::Corrupt("table usage_horizon has lost its row".to_owned()))
}

/// One sum that is asked for.
pub(super) struct Ask<'a> {
    pub(super) tenant: TenantId,
    pub(super) feature: &'a FeatureKey,
    pub(super) facet: Facet<'a>,
    pub(super) cut: &'a CutWindow,
}

pub(super) async fn totals(
    tx: &Tx,
    tenant: TenantId,
    features: &[FeatureKey],
    window: Window,
    by: Option<Dimension>,
) -> Result<Totals, Failed> {
    let cut = CutWindow::new(window, horizon(tx).await?);
    let asks: Vec<Ask<'_>> = features
        .iter()
        .map(|feature| Ask {
            tenant,
            feature,
            facet: Facet::All,
            cut: &cut,
        })
        .collect();
    let sums = all(tx, &asks).await?;
    let mut totals = Vec::new();
    for (feature, whole) in features.iter().zip(sums) {
        let Some(by) = by else {
            totals.push(Total {
                feature: feature.clone(),
                quantity: quantity_of(whole),
                by: None,
            });
            continue;
        };
        let mut parts = sums_by(tx, tenant, feature, by, &cut).await?;
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

pub(super) async fn counters(
    tx: &Tx,
    tenant: TenantId,
    counters: &[CounterOf],
) -> Result<Vec<Quantity>, Failed> {
    let horizon = horizon(tx).await?;
    let cuts: Vec<CutWindow> = counters
        .iter()
        .map(|counter| CutWindow::new(counter.window, horizon))
        .collect();
    let asks: Vec<Ask<'_>> = counters
        .iter()
        .zip(&cuts)
        .map(|(counter, cut)| Ask {
            tenant,
            feature: &counter.feature,
            facet: match &counter.subject {
                Subject::Tenant => Facet::All,
                Subject::Key(key) => Facet::Key(*key),
                Subject::User(user) => Facet::User(user),
            },
            cut,
        })
        .collect();
    let sums = all(tx, &asks).await?;
    Ok(sums.into_iter().map(quantity_of).collect())
}

/// What corrections add up to.
pub(super) async fn corrections(
    tx: &Tx,
    tenant: TenantId,
    features: &[FeatureKey],
    window: Window,
) -> Result<Vec<Quantity>, Failed> {
    let names: Vec<&str> = features.iter().map(FeatureKey::as_str).collect();
    let sql = format!(
        "SELECT coalesce((SELECT sum({USED}) FROM usage_events
             WHERE tenant_id = $2 AND admitted_at >= $3 AND admitted_at < $4 AND source = 'correction'), 0)::text AS sum
         FROM unnest($1::text[]) WITH ORDINALITY AS asked (feature, place) ORDER BY place"
    );
    let (start, end) = (window.start().micros(), window.end().micros());
    let values = params![names, tenant.uuid(), start, end];
    rows::list(tx, "usage_events", &sql, values, |cells| {
        cells.sum("sum").map(quantity_of)
    })
    .await
}

/// Every sum asked for, in order.
pub(super) async fn all(tx: &Tx, asks: &[Ask<'_>]) -> Result<Vec<i128>, Failed> {
    let mut sums = vec![0; asks.len()];
    let (mut hours, mut edges) = (Spans::default(), Spans::default());
    for (place, ask) in asks.iter().enumerate() {
        if ask.cut.hours.start < ask.cut.hours.end {
            hours.add(place, ask, Edge::whole(ask.cut.hours));
        }
        for edge in ask.cut.edges.iter().flatten() {
            edges.add(place, ask, *edge);
        }
    }
    if !hours.of.is_empty() {
        let from_rollups = "
            SELECT nth, coalesce((SELECT sum(quantity) FROM usage_rollups
                WHERE tenant_id = asked.tenant_id AND feature_key = asked.feature AND dimension = asked.dimension
                  AND value = asked.value AND hour >= asked.starts AND hour < asked.ends), 0)::text AS sum
            FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[])
                AS asked (nth, tenant_id, feature, dimension, value, starts, ends)";
        hours.sum(tx, from_rollups, &mut sums).await?;
    }
    if !edges.of.is_empty() {
        let from_events = format!(
            "SELECT nth, coalesce((SELECT sum({USED}) FROM usage_events
                WHERE tenant_id = asked.tenant_id AND admitted_at >= asked.starts AND admitted_at < asked.ends
                  AND CASE asked.dimension
                      WHEN 'all' THEN TRUE
                      WHEN 'key' THEN 'key_' || replace(key_id::text, '-', '') = asked.value
                      WHEN 'user' THEN end_user = asked.value
                      ELSE model = asked.value END), 0)::text AS sum
             FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[])
                AS asked (nth, tenant_id, feature, dimension, value, starts, ends)"
        );
        edges.sum(tx, &from_events, &mut sums).await?;
    }
    Ok(sums)
}

/// Spans to sum, as the columns that the statements take.
#[derive(Default)]
struct Spans<'a> {
    /// Which sum each belongs to.
    of: Vec<(usize, Edge)>,
    nths: Vec<i64>,
    tenants: Vec<Uuid>,
    features: Vec<&'a str>,
    dimensions: Vec<&'static str>,
    values: Vec<String>,
    starts: Vec<i64>,
    ends: Vec<i64>,
}

impl<'a> Spans<'a> {
    fn add(&mut self, place: usize, ask: &Ask<'a>, edge: Edge) {
        self.nths.push(rows::limit(self.of.len()));
        self.of.push((place, edge));
        self.tenants.push(ask.tenant.uuid());
        self.features.push(ask.feature.as_str());
        self.dimensions.push(ask.facet.dimension());
        self.values
            .push(rows::text(&ask.facet.value()).into_owned());
        self.starts.push(edge.span.start);
        self.ends.push(edge.span.end);
    }

    /// Adds each sum to that of its place, or takes it off.
    async fn sum(&self, tx: &Tx, sql: &str, sums: &mut [i128]) -> Result<(), Failed> {
        let values = params![
            self.nths,
            self.tenants,
            self.features,
            self.dimensions,
            self.values,
            self.starts,
            self.ends,
        ];
        let found = rows::list(tx, "usage_rollups, usage_events", sql, values, |cells| {
            let nth: i64 = cells.get("nth")?;
            Ok((cells.check("nth", usize::try_from(nth))?, cells.sum("sum")?))
        })
        .await?;
        for (nth, sum) in found {
            let (place, edge) = self.of[nth];
            sums[place] += edge.adds(sum);
        }
        Ok(())
    }
}

/// What was used of one feature in a window, by key, user or model; only those named.
async fn sums_by(
    tx: &Tx,
    tenant: TenantId,
    feature: &FeatureKey,
    by: Dimension,
    cut: &CutWindow,
) -> Result<BTreeMap<String, i128>, Failed> {
    let mut parts = BTreeMap::new();
    if cut.hours.start < cut.hours.end {
        for (value, quantity) in rollups_by(tx, tenant, feature, by, cut.hours).await? {
            *parts.entry(value).or_insert(0) += quantity;
        }
    }
    for edge in cut.edges.iter().flatten() {
        for (value, quantity) in events_by(tx, tenant, feature, by, edge.span).await? {
            *parts.entry(value).or_insert(0) += edge.adds(quantity);
        }
    }
    Ok(parts)
}

/// Steps from value to value through the primary key, so that only the hours asked are read of each.
async fn rollups_by(
    tx: &Tx,
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
             (SELECT value FROM usage_rollups
              WHERE tenant_id = $1 AND feature_key = $2 AND dimension = $3 ORDER BY value LIMIT 1)
             UNION ALL
             SELECT (SELECT value FROM usage_rollups
                     WHERE tenant_id = $1 AND feature_key = $2 AND dimension = $3 AND value > named.value
                     ORDER BY value LIMIT 1)
             FROM named WHERE named.value IS NOT NULL
         )
         SELECT named.value, used.sum::text AS sum FROM named CROSS JOIN LATERAL (
             SELECT sum(quantity) FROM usage_rollups
             WHERE tenant_id = $1 AND feature_key = $2 AND dimension = $3 AND value = named.value
               AND hour >= $4 AND hour < $5
         ) AS used WHERE used.sum IS NOT NULL",
        params![
            tenant.uuid(),
            feature.as_str(),
            dimension,
            hours.start,
            hours.end
        ],
        |cells| Ok((cells.get("value")?, cells.sum("sum")?)),
    )
    .await
}

async fn events_by(
    tx: &Tx,
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
    let sql = format!(
        "SELECT {column} AS value, coalesce(sum({USED}), 0)::text AS sum
         FROM usage_events CROSS JOIN (VALUES ($2::text)) AS asked (feature)
         WHERE tenant_id = $1 AND admitted_at >= $3 AND admitted_at < $4 AND {column} IS NOT NULL
         GROUP BY {column}"
    );
    let values = params![tenant.uuid(), feature.as_str(), span.start, span.end];
    rows::list(tx, "usage_events", &sql, values, |cells| {
        let value = match by {
            Dimension::Key => KeyId::new(cells.uuid("value")?).to_string(),
            Dimension::User | Dimension::Model => cells.get("value")?,
        };
        Ok((value, cells.sum("sum")?))
    })
    .await
}
