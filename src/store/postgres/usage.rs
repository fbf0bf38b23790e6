//! Usage events: recording them with their rollups, listing and pruning them.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
};

use futures_util::future::BoxFuture;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::{
    Failed, PostgresStore, check,
    forget::Forgetting,
    outbox, partitions,
    pool::{Kind, Tx},
    reservations,
    rows::{self, Cells, params},
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

impl UsageStore for PostgresStore {
    fn record(
        &self,
        batch: Batch,
        drained: JournalPosition,
        tell: Tell,
    ) -> BoxFuture<'_, StoreResult<Recorded>> {
        Box::pin(async move {
            // By id, as every replica does: they then wait for each other, if ever, in one direction only.
            let batch = with_plain_names(batch);
            let mut sorted: Vec<&UsageEvent> = batch.events().collect();
            sorted.sort_by_key(|event| event.event_id);
            let (sorted, tell) = (sorted.as_slice(), &tell);
            self.ensure_months(sorted.iter().map(|event| event.event_id))
                .await?;
            let name = "usage.record";
            let recording = || {
                self.pool
                    .transact(name, Kind::WRITE_AT_LEISURE, |tx| async move {
                        record(&tx, sorted, drained, tell).await
                    })
            };
            match recording().await {
                Ok(Record::Done(recorded)) => Ok(recorded),
                Ok(Record::NoMonth) => {
                    // Another replica has dropped it since.
                    self.forget_months();
                    self.ensure_months(sorted.iter().map(|event| event.event_id))
                        .await?;
                    match recording().await? {
                        Record::Done(recorded) => Ok(recorded),
                        Record::NoMonth => Err(crate::store::StoreError::Unavailable(format!(
                            "{name}: an event's month can't be made"
                        ))),
                    }
                }
                Err(error) => Err(error),
            }
        })
    }

    fn drained(&self, journal: Uuid) -> BoxFuture<'_, StoreResult<Seq>> {
        Box::pin(self.read_at_leisure("usage.drained", move |tx| async move {
            position_of(&tx, journal).await
        }))
    }

    fn totals<'a>(
        &'a self,
        tenant: TenantId,
        features: &'a [FeatureKey],
        window: Window,
        by: Option<Dimension>,
    ) -> BoxFuture<'a, StoreResult<Totals>> {
        Box::pin(self.read_much("usage.totals", move |tx| async move {
            sums::totals(&tx, tenant, features, window, by).await
        }))
    }

    fn tenant_sums(
        &self,
        asks: Vec<TenantAsk>,
    ) -> BoxFuture<'_, StoreResult<Vec<Vec<FeatureSum>>>> {
        Box::pin(async move {
            let asks = asks.as_slice();
            self.read_at_leisure("usage.tenant_sums", |tx| async move {
                tenant_sums::of(&tx, asks).await
            })
            .await
        })
    }

    fn heaviest(&self, asks: Vec<HeaviestAsk>) -> BoxFuture<'_, StoreResult<Vec<Vec<UsedBy>>>> {
        Box::pin(async move {
            let asks = asks.as_slice();
            self.read_at_leisure("usage.heaviest", |tx| async move {
                tenant_sums::heaviest(&tx, asks).await
            })
            .await
        })
    }

    fn list_used_features(&self, tenant: TenantId) -> BoxFuture<'_, StoreResult<Vec<FeatureKey>>> {
        Box::pin(self.read("usage.list_used_features", move |tx| async move {
            let used = tenant_sums::features(&tx, &[tenant]).await?;
            Ok(used.into_iter().map(|(_, feature)| feature).collect())
        }))
    }

    fn counters<'a>(
        &'a self,
        tenant: TenantId,
        counters: &'a [CounterOf],
        journal: Uuid,
    ) -> BoxFuture<'a, StoreResult<(Vec<Quantity>, Seq)>> {
        Box::pin(self.read("usage.counters", move |tx| async move {
            let settled = sums::counters(&tx, tenant, counters).await?;
            Ok((settled, position_of(&tx, journal).await?))
        }))
    }

    fn has_event(&self, event: EventId) -> BoxFuture<'_, StoreResult<bool>> {
        Box::pin(async move { Ok(!self.list_known_events(&[event]).await?.is_empty()) })
    }

    fn list_known_events<'a>(
        &'a self,
        events: &'a [EventId],
    ) -> BoxFuture<'a, StoreResult<HashSet<EventId>>> {
        Box::pin(async move {
            let (ids, times) = keys_of(events);
            let (ids, times) = (&ids, &times);
            self.read("usage.list_known_events", |tx| async move {
            let known = rows::list(
                &tx,
                "usage_events",
                "SELECT event_id FROM usage_events JOIN unnest($1::uuid[], $2::bigint[]) AS asked (event_id, id_time)
                     USING (event_id, id_time)",
                params![ids, times],
                |cells| Ok(EventId::new(cells.uuid("event_id")?)),
            )
            .await?;
            Ok(known.into_iter().collect())
        })
        .await
        })
    }

    fn find_event(&self, event: EventId) -> BoxFuture<'_, StoreResult<Option<UsageEvent>>> {
        Box::pin(self.read("usage.find_event", move |tx| async move {
            rows::find(
                &tx,
                "usage_events",
                "SELECT * FROM usage_events WHERE event_id = $1 AND id_time = $2",
                params![event.uuid(), partitions::id_time(event.uuid())],
                read_event,
            )
            .await
        }))
    }

    fn list_events(
        &self,
        tenant: TenantId,
        before: Option<(Timestamp, EventId)>,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<UsageEvent>>> {
        Box::pin(async move {
            let (at, id) =
                before.map_or((i64::MAX, Uuid::max()), |(at, id)| (at.micros(), id.uuid()));
            self.read_much("usage.list_events", |tx| async move {
                rows::list(
                    &tx,
                    "usage_events",
                    "SELECT * FROM usage_events
                 WHERE tenant_id = $1 AND admitted_at <= $2 AND (admitted_at < $2 OR event_id < $3)
                 ORDER BY admitted_at DESC, event_id DESC LIMIT $4",
                    params![tenant.uuid(), at, id, rows::limit(limit)],
                    read_event,
                )
                .await
            })
            .await
        })
    }

    fn list_events_of_request<'a>(
        &'a self,
        request_id: &'a str,
    ) -> BoxFuture<'a, StoreResult<Vec<UsageEvent>>> {
        Box::pin(
            self.read("usage.list_events_of_request", move |tx| async move {
                rows::list(
                    &tx,
                    "usage_events",
                    "SELECT * FROM usage_events WHERE request_id = $1 AND request_id <> ''
                 ORDER BY recorded_at, event_id LIMIT 100",
                    params![rows::text(request_id)],
                    read_event,
                )
                .await
            }),
        )
    }

    fn corrections<'a>(
        &'a self,
        tenant: TenantId,
        features: &'a [FeatureKey],
        window: Window,
    ) -> BoxFuture<'a, StoreResult<Vec<Quantity>>> {
        Box::pin(self.read("usage.corrections", move |tx| async move {
            sums::corrections(&tx, tenant, features, window).await
        }))
    }

    fn prune_events(&self, before: Timestamp, limit: usize) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(async move {
            if let Some(dropped) = self.drop_old_month(before).await? {
                return Ok(dropped);
            }
            self.write_at_leisure("usage.prune_events", |tx| async move {
                prune_events(&tx, before, limit).await
            })
            .await
        })
    }

    fn forget_user<'a>(
        &'a self,
        tenant: TenantId,
        user: &'a str,
        replacement: &'a str,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<u64>> {
        Box::pin(async move {
            let what = Forgetting {
                tenant,
                user: rows::text(user).into_owned(),
                replacement: replacement.to_owned(),
            };
            self.forget(&what, by).await
        })
    }

    fn check_rollups(&self) -> BoxFuture<'_, StoreResult<Vec<String>>> {
        Box::pin(
            self.read_at_leisure("usage.check_rollups", move |tx| async move {
                check::rollups(&tx).await
            }),
        )
    }

    fn ping(&self) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(self.read("usage.ping", move |tx| async move {
            sums::horizon(&tx).await.map(|_| ())
        }))
    }
}

/// `ON CONFLICT DO NOTHING` forgives a repeated id and nothing else. One statement of arrays, however many events.
const INSERT_EVENTS: &str = "
    INSERT INTO usage_events (event_id, id_time, tenant_id, admitted_at, recorded_at, source, request_id, key_id,
                              end_user, model, messages, input_tokens, output_tokens, cost, extra, estimated, reason,
                              price_id)
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::bigint[], $5::bigint[], $6::text[], $7::text[],
                         $8::uuid[], $9::text[], $10::text[], $11::bigint[], $12::bigint[], $13::bigint[],
                         $14::bigint[], $15::text[], $16::boolean[], $17::text[], $18::text[])
    ON CONFLICT (event_id, id_time) DO NOTHING
    RETURNING event_id";

/// Stops at ±`ROLLUP_MAX` ($7), as SQLite's does.
const ADD_TO_ROLLUPS: &str = "
    INSERT INTO usage_rollups (tenant_id, feature_key, dimension, value, hour, quantity)
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[])
    ON CONFLICT (tenant_id, feature_key, dimension, value, hour)
    DO UPDATE SET quantity = least(greatest(usage_rollups.quantity + excluded.quantity, -$7::bigint), $7)";

/// As [`ADD_TO_ROLLUPS`], of all tenants; the bound is $4.
const ADD_TO_TRENDS: &str = "
    INSERT INTO usage_trends (feature_key, hour, quantity)
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[])
    ON CONFLICT (feature_key, hour)
    DO UPDATE SET quantity = least(greatest(usage_trends.quantity + excluded.quantity, -$4::bigint), $4)";

enum Record {
    Done(Recorded),
    /// Nothing was written: an event's partition is not there.
    NoMonth,
}

/// Events as Postgres can hold them ([`rows::text`]): names that become alike count together from here on.
fn with_plain_names(batch: Batch) -> Batch {
    let is_plain = |event: &UsageEvent| {
        let model = event.model.as_deref().unwrap_or_default();
        !event.user.contains('\0') && !model.contains('\0')
    };
    if batch.events().all(is_plain) {
        return batch; // nearly always
    }
    let plain = |event: &UsageEvent| UsageEvent {
        user: rows::text(&event.user).into_owned(),
        model: event.model.as_deref().map(|it| rows::text(it).into_owned()),
        ..event.clone()
    };
    batch.events().map(plain).collect()
}

/// `events` are sorted by id. Rollups are added to in the order of their key, and what all tenants share comes last: it
/// is locked for the shortest time.
async fn record(
    tx: &Tx,
    events: &[&UsageEvent],
    drained: JournalPosition,
    tell: &Tell,
) -> Result<Record, Failed> {
    let mut inserted = match insert(tx, events).await {
        Ok(inserted) => inserted,
        Err(Failed::Sql(error)) if error.code() == Some(&SqlState::CHECK_VIOLATION) => {
            // The transaction is over; its commit will only say so.
            return Ok(Record::NoMonth);
        }
        Err(failed) => return Err(failed),
    };
    let recorded = Recorded {
        inserted: inserted.len() as u64,
        duplicates: (events.len() - inserted.len()) as u64,
    };
    let new: HashSet<EventId> = inserted.iter().copied().map(EventId::new).collect();
    let mut rollups = Rollups::default();
    for event in events {
        // Of two with one id in a batch, the first was inserted.
        if inserted.remove(&event.event_id.uuid()) {
            rollups.add(event);
        }
    }
    let of_reservations = events
        .iter()
        .filter(|event| event.source == Source::Reservation);
    let of_reservations: Vec<Uuid> = of_reservations.map(|event| event.event_id.uuid()).collect();
    reservations::note_recorded(tx, &of_reservations).await?;
    outbox::enqueue(tx, &tell.entries).await?;
    stripe::add_waiting(tx, &tell.meters, &new).await?;
    note_position(tx, drained).await?;
    let trends = rollups.of_all_tenants();
    add_to_rollups(tx, rollups).await?;
    let trends: Vec<(&str, i64, i64)> = trends
        .iter()
        .map(|((feature, hour), quantity)| (feature.as_str(), *hour, *quantity))
        .collect();
    rows::run(
        tx,
        ADD_TO_TRENDS,
        params![
            column(&trends, |it| it.0),
            column(&trends, |it| it.1),
            column(&trends, |it| it.2),
            ROLLUP_MAX,
        ],
    )
    .await?;
    // Last, as other changes wait for whoever makes one.
    if !tell.late.is_empty() {
        let late: Vec<Uuid> = tell.late.iter().map(|tenant| tenant.uuid()).collect();
        rows::run(
            tx,
            "SELECT add_catalogue_change('tenant', id::text) FROM unnest($1::uuid[]) AS late (id)",
            params![late],
        )
        .await?;
        rows::run(tx, "SELECT pg_notify('tollgate_catalogue', '')", params![]).await?;
    }
    Ok(Record::Done(recorded))
}

fn column<'a, T, C>(rows: &'a [T], of: impl Fn(&'a T) -> C) -> Vec<C> {
    rows.iter().map(of).collect()
}

/// Those that were not there.
async fn insert(tx: &Tx, events: &[&UsageEvent]) -> Result<HashSet<Uuid>, Failed> {
    let used = |feature: FeatureKey| column(events, |it| it.quantities.of(&feature).get());
    let extra = events.iter().map(|event| extra_of(&event.quantities));
    let extra: Vec<Option<String>> = extra.collect::<Result<_, Failed>>()?;
    let ids = rows::list(
        tx,
        "usage_events",
        INSERT_EVENTS,
        params![
            column(events, |it| it.event_id.uuid()),
            column(events, |it| partitions::id_time(it.event_id.uuid())),
            column(events, |it| it.tenant_id.uuid()),
            column(events, |it| it.admitted_at.micros()),
            column(events, |it| it.recorded_at.micros()),
            column(events, |it| it.source.as_str()),
            column(events, |it| rows::text(&it.request_id)),
            column(events, |it| it.key_id.map(KeyId::uuid)),
            column(events, |it| it.user.as_str()),
            column(events, |it| it.model.as_deref()),
            used(FeatureKey::Messages),
            used(FeatureKey::InputTokens),
            used(FeatureKey::OutputTokens),
            used(FeatureKey::Cost),
            extra,
            column(events, |it| it.estimated),
            column(events, |it| it.reason.as_deref().map(rows::text)),
            column(events, |it| it.price_id.as_deref().map(rows::text)),
        ],
        |cells| cells.uuid("event_id"),
    )
    .await?;
    Ok(ids.into_iter().collect())
}

async fn add_to_rollups(tx: &Tx, rollups: Rollups<'_>) -> Result<(), Failed> {
    let sorted = rollups.into_sorted();
    let values: Vec<Cow<'_, str>> = sorted.iter().map(|(key, _)| key.facet.value()).collect();
    rows::run(
        tx,
        ADD_TO_ROLLUPS,
        params![
            column(&sorted, |(key, _)| key.tenant.uuid()),
            column(&sorted, |(key, _)| key.feature.as_str()),
            column(&sorted, |(key, _)| key.facet.dimension()),
            column(&values, |value| &**value),
            column(&sorted, |(key, _)| key.hour),
            column(&sorted, |(_, quantity)| *quantity),
            ROLLUP_MAX,
        ],
    )
    .await?;
    Ok(())
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
async fn note_position(tx: &Tx, drained: JournalPosition) -> Result<(), Failed> {
    let seq = i64::try_from(drained.seq.0)
        .map_err(|_| Failed::Corrupt(format!("{} is no place in a journal", drained.seq.0)))?;
    rows::run(
        tx,
        "INSERT INTO journal_positions (journal, seq) VALUES ($1, $2)
         ON CONFLICT (journal) DO UPDATE SET seq = greatest(journal_positions.seq, excluded.seq)",
        params![drained.journal, seq],
    )
    .await?;
    Ok(())
}

async fn position_of(tx: &Tx, journal: Uuid) -> Result<Seq, Failed> {
    let seq = rows::find(
        tx,
        "journal_positions",
        "SELECT seq FROM journal_positions WHERE journal = $1",
        params![journal],
        |cells| {
            let seq: i64 = cells.get("seq")?;
            cells.check("seq", u64::try_from(seq))
        },
    )
    .await?;
    Ok(Seq(seq.unwrap_or(0)))
}

async fn prune_events(tx: &Tx, before: Timestamp, limit: usize) -> Result<u64, Failed> {
    let by_row = partitions::first_by_row(tx, before).await?;
    let admitted: Vec<i64> = rows::list(
        tx,
        "usage_events",
        "DELETE FROM usage_events WHERE (event_id, id_time) IN (
             SELECT event_id, id_time FROM usage_events
             WHERE recorded_at < $1 AND admitted_at < $1 AND (id_time < 0 OR id_time >= $3)
             ORDER BY recorded_at LIMIT $2
         ) RETURNING admitted_at",
        params![before.micros(), rows::limit(limit), by_row],
        |cells| cells.get("admitted_at"),
    )
    .await?;
    if let Some(latest) = admitted.iter().max() {
        // From here on, sums can't cut an hour before this: some of its events are gone.
        rows::run(
            tx,
            "UPDATE usage_horizon SET pruned_until = greatest(pruned_until, $1)",
            params![latest.saturating_add(1)],
        )
        .await?;
    }
    Ok(admitted.len() as u64)
}

/// The primary keys of events.
fn keys_of(events: &[EventId]) -> (Vec<Uuid>, Vec<i64>) {
    let ids = events.iter().map(|event| event.uuid());
    ids.map(|id| (id, partitions::id_time(id))).unzip()
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
