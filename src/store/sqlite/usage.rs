//! Usage events: recording them with their rollups, listing and pruning them.

use std::collections::{BTreeMap, HashSet};

use futures_util::future::BoxFuture;
use rusqlite::{Transaction, params};
use uuid::Uuid;

use super::{
    Failed, SqliteStore, check,
    forget::Forgetting,
    outbox, reservations,
    rows::{self, Cells, blob},
    stripe, sums, tenant_sums,
};
use crate::{
    domain::{
        administrator::Actor,
        feature::FeatureKey,
        ids::{EventId, KeyId, TenantId},
        quantity::Quantity,
        time::Timestamp,
        usage::{Quantities, Source, UsageEvent},
        window::Window,
    },
    store::{
        StoreResult,
        rollups::{ROLLUP_MAX, Rollups},
        usage::{
            Batch, CounterOf, Dimension, FeatureSum, HeaviestAsk, JournalPosition, Recorded, Seq,
            Tell, TenantAsk, Totals, UsageStore, UsedBy,
        },
    },
};

impl UsageStore for SqliteStore {
    fn record(
        &self,
        batch: Batch,
        drained: JournalPosition,
        tell: Tell,
    ) -> BoxFuture<'_, StoreResult<Recorded>> {
        Box::pin(self.write("usage.record", move |tx| {
            let mut new = HashSet::new();
            let recorded = record(tx, &batch, drained, |event| {
                if !tell.meters.is_empty() {
                    new.insert(event);
                }
            })?;
            outbox::enqueue(tx, &tell.entries)?;
            stripe::add_waiting(tx, &tell.meters, &new)?;
            for tenant in &tell.late {
                rows::run(
                    tx,
                    "INSERT INTO catalogue_changes (kind, id, changed_at)
                     SELECT 'tenant', ?1, at FROM change_in_progress",
                    params![blob(tenant.uuid())],
                )?;
            }
            Ok(recorded)
        }))
    }

    fn drained(&self, journal: Uuid) -> BoxFuture<'_, StoreResult<Seq>> {
        Box::pin(self.read("usage.drained", move |tx| position_of(tx, journal)))
    }

    fn totals<'a>(
        &'a self,
        tenant: TenantId,
        features: &'a [FeatureKey],
        window: Window,
        by: Option<Dimension>,
    ) -> BoxFuture<'a, StoreResult<Totals>> {
        let features = features.to_vec();
        Box::pin(self.read_much("usage.totals", move |tx| {
            sums::totals(tx, tenant, &features, window, by)
        }))
    }

    fn tenant_sums(
        &self,
        asks: Vec<TenantAsk>,
    ) -> BoxFuture<'_, StoreResult<Vec<Vec<FeatureSum>>>> {
        Box::pin(self.read_much("usage.tenant_sums", move |tx| tenant_sums::of(tx, &asks)))
    }

    fn heaviest(&self, asks: Vec<HeaviestAsk>) -> BoxFuture<'_, StoreResult<Vec<Vec<UsedBy>>>> {
        Box::pin(self.read_much("usage.heaviest", move |tx| tenant_sums::heaviest(tx, &asks)))
    }

    fn list_used_features(&self, tenant: TenantId) -> BoxFuture<'_, StoreResult<Vec<FeatureKey>>> {
        Box::pin(self.read("usage.list_used_features", move |tx| {
            list_used_features(tx, tenant)
        }))
    }

    fn counters<'a>(
        &'a self,
        tenant: TenantId,
        counters: &'a [CounterOf],
        journal: Uuid,
    ) -> BoxFuture<'a, StoreResult<(Vec<Quantity>, Seq)>> {
        let counters = counters.to_vec();
        Box::pin(self.read("usage.counters", move |tx| {
            let settled = sums::counters(tx, tenant, &counters)?;
            Ok((settled, position_of(tx, journal)?))
        }))
    }

    fn has_event(&self, event: EventId) -> BoxFuture<'_, StoreResult<bool>> {
        Box::pin(self.read("usage.has_event", move |tx| {
            let mut statement =
                tx.prepare_cached("SELECT 1 FROM usage_events WHERE event_id = ?1")?;
            Ok(statement.exists(params![blob(event.uuid())])?)
        }))
    }

    fn list_known_events<'a>(
        &'a self,
        events: &'a [EventId],
    ) -> BoxFuture<'a, StoreResult<HashSet<EventId>>> {
        let events = events.to_vec();
        Box::pin(self.read("usage.list_known_events", move |tx| {
            let mut statement =
                tx.prepare_cached("SELECT 1 FROM usage_events WHERE event_id = ?1")?;
            let mut known = HashSet::new();
            for event in events {
                if statement.exists(params![blob(event.uuid())])? {
                    known.insert(event);
                }
            }
            Ok(known)
        }))
    }

    fn find_event(&self, event: EventId) -> BoxFuture<'_, StoreResult<Option<UsageEvent>>> {
        Box::pin(self.read("usage.find_event", move |tx| {
            rows::find(
                tx,
                "usage_events",
                "SELECT * FROM usage_events WHERE event_id = ?1",
                [blob(event.uuid())],
                read_event,
            )
        }))
    }

    fn list_events(
        &self,
        tenant: TenantId,
        before: Option<(Timestamp, EventId)>,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<UsageEvent>>> {
        let (at, id) = before.map_or((i64::MAX, [u8::MAX; 16]), |(at, id)| {
            (at.micros(), blob(id.uuid()))
        });
        Box::pin(self.read_much("usage.list_events", move |tx| {
            rows::list(
                tx,
                "usage_events",
                "SELECT * FROM usage_events
                 WHERE tenant_id = ?1 AND admitted_at <= ?2 AND (admitted_at < ?2 OR event_id < ?3)
                 ORDER BY admitted_at DESC, event_id DESC LIMIT ?4",
                params![blob(tenant.uuid()), at, id, rows::limit(limit)],
                read_event,
            )
        }))
    }

    fn list_events_of_request<'a>(
        &'a self,
        request_id: &'a str,
    ) -> BoxFuture<'a, StoreResult<Vec<UsageEvent>>> {
        let request_id = request_id.to_owned();
        Box::pin(self.read("usage.list_events_of_request", move |tx| {
            rows::list(
                tx,
                "usage_events",
                "SELECT * FROM usage_events WHERE request_id = ?1 AND request_id <> ''
                 ORDER BY recorded_at, event_id LIMIT 100",
                [request_id],
                read_event,
            )
        }))
    }

    fn corrections<'a>(
        &'a self,
        tenant: TenantId,
        features: &'a [FeatureKey],
        window: Window,
    ) -> BoxFuture<'a, StoreResult<Vec<Quantity>>> {
        let features = features.to_vec();
        Box::pin(self.read("usage.corrections", move |tx| {
            sums::corrections(tx, tenant, &features, window)
        }))
    }

    fn prune_events(&self, before: Timestamp, limit: usize) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(self.write("usage.prune_events", move |tx| {
            prune_events(tx, before, limit)
        }))
    }

    fn forget_user<'a>(
        &'a self,
        tenant: TenantId,
        user: &'a str,
        replacement: &'a str,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<u64>> {
        let what = Forgetting {
            tenant,
            user: user.to_owned(),
            replacement: replacement.to_owned(),
        };
        Box::pin(self.forget(what, by.clone()))
    }

    fn check_rollups(&self) -> BoxFuture<'_, StoreResult<Vec<String>>> {
        Box::pin(self.read_much("usage.check_rollups", check::rollups))
    }

    fn ping(&self) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(self.read("usage.ping", move |tx| sums::horizon(tx).map(|_| ())))
    }
}

/// `ON CONFLICT DO NOTHING` forgives a repeated id and nothing else, where `OR IGNORE` would also lose an event that
/// breaks a constraint, without a word.
const INSERT_EVENT: &str = "
    INSERT INTO usage_events (event_id, tenant_id, admitted_at, recorded_at, source, request_id, key_id, end_user, model,
                              messages, input_tokens, output_tokens, cost, extra, estimated, reason, price_id)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)
    ON CONFLICT (event_id) DO NOTHING";

/// Stops at ±`ROLLUP_MAX` (?7, ?8): beyond 64 bits SQLite would make a float of it, which the column refuses.
const ADD_TO_ROLLUP: &str = "
    INSERT INTO usage_rollups (tenant_id, feature_key, dimension, value, hour, quantity)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (tenant_id, feature_key, dimension, value, hour)
    DO UPDATE SET quantity = min(max(quantity + excluded.quantity, ?7), ?8)";

/// As [`ADD_TO_ROLLUP`], of all tenants; bounds are ?4 and ?5.
const ADD_TO_TREND: &str = "
    INSERT INTO usage_trends (feature_key, hour, quantity) VALUES (?1, ?2, ?3)
    ON CONFLICT (feature_key, hour) DO UPDATE SET quantity = min(max(quantity + excluded.quantity, ?4), ?5)";

fn record(
    tx: &Transaction<'_>,
    batch: &Batch,
    drained: JournalPosition,
    mut is_new: impl FnMut(EventId),
) -> Result<Recorded, Failed> {
    let mut recorded = Recorded::default();
    let mut rollups = Rollups::default();
    let mut insert = tx.prepare_cached(INSERT_EVENT)?;
    for event in batch.events() {
        let used = |feature| event.quantities.of(&feature).get();
        let inserted = insert.execute(params![
            blob(event.event_id.uuid()),
            blob(event.tenant_id.uuid()),
            event.admitted_at.micros(),
            event.recorded_at.micros(),
            event.source.as_str(),
            event.request_id,
            event.key_id.map(|key| blob(key.uuid())),
            event.user,
            event.model,
            used(FeatureKey::Messages),
            used(FeatureKey::InputTokens),
            used(FeatureKey::OutputTokens),
            used(FeatureKey::Cost),
            extra_of(&event.quantities)?,
            event.estimated,
            event.reason,
            event.price_id,
        ])?;
        if inserted == 0 {
            recorded.duplicates += 1;
        } else {
            recorded.inserted += 1;
            is_new(event.event_id);
            rollups.add(event);
        }
        if event.source == Source::Reservation {
            reservations::note_recorded(tx, event.event_id)?;
        }
    }
    let mut add = tx.prepare_cached(ADD_TO_TREND)?;
    for ((feature, hour), quantity) in rollups.of_all_tenants() {
        add.execute(params![
            feature.as_str(),
            hour,
            quantity,
            -ROLLUP_MAX,
            ROLLUP_MAX
        ])?;
    }
    let mut add = tx.prepare_cached(ADD_TO_ROLLUP)?;
    for (key, quantity) in rollups.into_sorted() {
        add.execute(params![
            blob(key.tenant.uuid()),
            key.feature.as_str(),
            key.facet.dimension(),
            key.facet.value(),
            key.hour,
            quantity,
            -ROLLUP_MAX,
            ROLLUP_MAX,
        ])?;
    }
    note_position(tx, drained)?;
    Ok(recorded)
}

/// Quantities of the features that have no column of their own, as JSON.
fn extra_of(quantities: &Quantities) -> Result<Option<String>, Failed> {
    if quantities.named().len() == 0 {
        return Ok(None);
    }
    let named: BTreeMap<&FeatureKey, Quantity> = quantities.named().collect();
    rows::to_json(&named).map(Some)
}

/// A position never goes back: a batch that is written again after a crash may be an old one.
fn note_position(tx: &Transaction<'_>, drained: JournalPosition) -> Result<(), Failed> {
    let seq = i64::try_from(drained.seq.0)
        .map_err(|_| Failed::Corrupt(format!("{} is no place in a journal", drained.seq.0)))?;
    rows::run(
        tx,
        "INSERT INTO journal_positions (journal, seq) VALUES (?1, ?2)
         ON CONFLICT (journal) DO UPDATE SET seq = max(seq, excluded.seq)",
        params![blob(drained.journal), seq],
    )?;
    Ok(())
}

fn position_of(tx: &Transaction<'_>, journal: Uuid) -> Result<Seq, Failed> {
    let seq = rows::find(
        tx,
        "journal_positions",
        "SELECT seq FROM journal_positions WHERE journal = ?1",
        [blob(journal)],
        |cells| {
            let seq: i64 = cells.get("seq")?;
            cells.check("seq", u64::try_from(seq))
        },
    )?;
    Ok(Seq(seq.unwrap_or(0)))
}

/// Steps from feature to feature through the primary key, however many hours each has.
fn list_used_features(tx: &Transaction<'_>, tenant: TenantId) -> Result<Vec<FeatureKey>, Failed> {
    let mut features = rows::list(
        tx,
        "usage_rollups",
        "WITH RECURSIVE used (feature_key) AS (
             SELECT min(feature_key) FROM usage_rollups WHERE tenant_id = ?1
             UNION ALL
             SELECT (SELECT min(feature_key) FROM usage_rollups
                     WHERE tenant_id = ?1 AND feature_key > used.feature_key)
             FROM used WHERE used.feature_key IS NOT NULL
         )
         SELECT feature_key FROM used WHERE feature_key IS NOT NULL",
        [blob(tenant.uuid())],
        |cells| cells.parse("feature_key"),
    )?;
    features.sort();
    Ok(features)
}

fn prune_events(tx: &Transaction<'_>, before: Timestamp, limit: usize) -> Result<u64, Failed> {
    let admitted: Vec<i64> = rows::list(
        tx,
        "usage_events",
        "DELETE FROM usage_events WHERE event_id IN (
             SELECT event_id FROM usage_events WHERE recorded_at < ?1 AND admitted_at < ?1
             ORDER BY recorded_at LIMIT ?2
         ) RETURNING admitted_at",
        params![before.micros(), rows::limit(limit)],
        |cells| cells.get("admitted_at"),
    )?;
    if let Some(latest) = admitted.iter().max() {
        // From here on, sums can't cut an hour before this: some of its events are gone.
        rows::run(
            tx,
            "UPDATE usage_horizon SET pruned_until = max(pruned_until, ?1)",
            [latest.saturating_add(1)],
        )?;
    }
    Ok(u64::try_from(admitted.len()).unwrap_or(u64::MAX))
}

/// A row of `usage_events`; quantities in the order of [`FeatureKey`].
pub(super) fn read_event(cells: &Cells<'_>) -> Result<UsageEvent, Failed> {
    let mut quantities = Quantities::default();
    for feature in FeatureKey::BUILT_IN {
        quantities.add(feature.clone(), cells.quantity(feature.as_str())?);
    }
    let extra: Option<BTreeMap<FeatureKey, Quantity>> = cells.optional_json("extra")?;
    for (feature, quantity) in extra.into_iter().flatten() {
        quantities.add(feature, quantity);
    }
    Ok(UsageEvent {
        event_id: EventId::new(cells.uuid("event_id")?),
        request_id: cells.get("request_id")?,
        source: cells.one_of("source", &Source::ALL, Source::as_str)?,
        tenant_id: TenantId::new(cells.uuid("tenant_id")?),
        key_id: cells.optional_uuid("key_id")?.map(KeyId::new),
        user: cells.get("end_user")?,
        model: cells.get("model")?,
        quantities,
        estimated: cells.get("estimated")?,
        reason: cells.get("reason")?,
        price_id: cells.get("price_id")?,
        admitted_at: cells.time("admitted_at")?,
        recorded_at: cells.time("recorded_at")?,
    })
}
