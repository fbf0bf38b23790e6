//! Sums of many tenants for reports, in a few statements for all of them.

use std::collections::{BTreeMap, HashMap};

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
        rollups::{CutWindow, Edge, Facet, heaviest_of, quantity_of},
        usage::{FeatureSum, HeaviestAsk, TenantAsk, UsedBy},
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

/// Who used most of what is asked for, the heaviest first: two statements for all asks.
pub(super) async fn heaviest(tx: &Tx, asks: &[HeaviestAsk]) -> Result<Vec<Vec<UsedBy>>, Failed> {
    let horizon = sums::horizon(tx).await?;
    let (mut hours, mut edges) = (Parts::default(), Parts::default());
    for (place, ask) in asks.iter().enumerate() {
        let cut = CutWindow::new(ask.window, horizon);
        if cut.hours.start < cut.hours.end {
            hours.add(place, ask, Edge::whole(cut.hours));
        }
        for edge in cut.edges.iter().flatten() {
            edges.add(place, ask, *edge);
        }
    }
    let mut found = vec![BTreeMap::new(); asks.len()];
    if !hours.of.is_empty() {
        // Steps from value to value through the primary key, so that only the hours asked are read of each.
        let from_rollups = "
            SELECT nth, found.value, found.sum FROM unnest(
                $1::bigint[], $2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::bigint[])
                AS asked (nth, tenant_id, feature, dimension, starts, ends)
            CROSS JOIN LATERAL (
                WITH RECURSIVE named (value) AS (
                    (SELECT value FROM usage_rollups
                     WHERE tenant_id = asked.tenant_id AND feature_key = asked.feature
                       AND dimension = asked.dimension ORDER BY value LIMIT 1)
                    UNION ALL
                    SELECT (SELECT value FROM usage_rollups
                            WHERE tenant_id = asked.tenant_id AND feature_key = asked.feature
                              AND dimension = asked.dimension AND value > named.value
                            ORDER BY value LIMIT 1)
                    FROM named WHERE named.value IS NOT NULL
                )
                SELECT named.value, used.sum::text AS sum FROM named CROSS JOIN LATERAL (
                    SELECT sum(quantity) FROM usage_rollups
                    WHERE tenant_id = asked.tenant_id AND feature_key = asked.feature
                      AND dimension = asked.dimension AND value = named.value
                      AND hour >= asked.starts AND hour < asked.ends
                ) AS used WHERE used.sum IS NOT NULL
            ) AS found";
        hours.sum(tx, from_rollups, &mut found).await?;
    }
    if !edges.of.is_empty() {
        let from_events = format!(
            "SELECT nth, found.value, found.sum FROM unnest(
                $1::bigint[], $2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::bigint[])
                AS asked (nth, tenant_id, feature, dimension, starts, ends)
             CROSS JOIN LATERAL (
                SELECT CASE asked.dimension
                           WHEN 'key' THEN 'key_' || replace(key_id::text, '-', '')
                           WHEN 'user' THEN end_user
                           ELSE model END AS value,
                       coalesce(sum({used}), 0)::text AS sum
                FROM usage_events
                WHERE tenant_id = asked.tenant_id AND admitted_at >= asked.starts AND admitted_at < asked.ends
                GROUP BY 1
             ) AS found WHERE found.value IS NOT NULL",
            used = sums::USED,
        );
        edges.sum(tx, &from_events, &mut found).await?;
    }
    let found = found.into_iter().zip(asks);
    Ok(found.map(|(parts, ask)| heaviest_of(parts, ask)).collect())
}

/// Spans of which the parts are summed, as the columns that the statements take.
#[derive(Default)]
struct Parts<'a> {
    /// Which ask each belongs to.
    of: Vec<(usize, Edge)>,
    nths: Vec<i64>,
    tenants: Vec<Uuid>,
    features: Vec<&'a str>,
    dimensions: Vec<&'static str>,
    starts: Vec<i64>,
    ends: Vec<i64>,
}

impl<'a> Parts<'a> {
    fn add(&mut self, place: usize, ask: &'a HeaviestAsk, edge: Edge) {
        self.nths.push(rows::limit(self.of.len()));
        self.of.push((place, edge));
        self.tenants.push(ask.tenant.uuid());
        self.features.push(ask.feature.as_str());
        self.dimensions.push(ask.by.as_str());
        self.starts.push(edge.span.start);
        self.ends.push(edge.span.end);
    }

    /// Adds each sum to the part of its place, or takes it off.
    async fn sum(
        &self,
        tx: &Tx,
        sql: &str,
        found: &mut [BTreeMap<String, i128>],
    ) -> Result<(), Failed> {
        let values = params![
            self.nths,
            self.tenants,
            self.features,
            self.dimensions,
            self.starts,
            self.ends,
        ];
        let parts = rows::list(tx, "usage_rollups, usage_events", sql, values, |cells| {
            let nth: i64 = cells.get("nth")?;
            let nth = cells.check("nth", usize::try_from(nth))?;
            Ok((nth, cells.get::<String>("value")?, cells.sum("sum")?))
        })
        .await?;
        for (nth, value, sum) in parts {
            let (place, edge) = self.of[nth];
            *found[place].entry(value).or_insert(0) += edge.adds(sum);
        }
        Ok(())
    }
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
