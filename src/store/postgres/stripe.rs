//! Usage on its way to Stripe's meters.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::{
    Failed, PostgresStore, outbox,
    pool::Tx,
    rows::{self, Cells, Params, params},
};
use crate::{
    domain::{
        feature::FeatureKey,
        ids::{EventId, TenantId},
        quantity::Quantity,
        time::Timestamp,
        window::Window,
    },
    store::{
        StoreResult,
        outbox::{Kind, Status},
        rollups::quantity_of,
        stripe::{
            self, CANCELABLE, CANCELED, HandedOn, LaneSums, MeterSums, MeterUse, Slot, StripeStore,
            Unconfirmed, Which,
        },
    },
};

const KIND: &str = Kind::StripeMeterEvent.as_str();
/// Held while slots are handed on, so that replicas do it one after the other: what an entry is called, and which one
/// it takes back, follows from those that are there.
pub(super) const LOCK: i64 = 0x746f_6c6c_6d65_7472;
const MICRO: Duration = Duration::from_micros(1);

impl StripeStore for PostgresStore {
    fn hand_on(
        &self,
        which: Which,
        now: Timestamp,
        again: Timestamp,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<HandedOn>> {
        Box::pin(async move {
            // Most looks find nothing, and a look should cost little.
            let is_any = self
                .read_at_leisure("stripe.look", |tx| async move {
                    rows::exists(&tx, places_of(which), params![now.micros(), 1_i64]).await
                })
                .await?;
            if !is_any {
                return Ok(HandedOn::default());
            }
            self.write_at_leisure("stripe.hand_on", |tx| async move {
                hand_on(&tx, which, now, again, limit).await
            })
            .await
        })
    }

    fn told<'a>(
        &'a self,
        tenant: TenantId,
        features: &'a [FeatureKey],
        window: Window,
    ) -> BoxFuture<'a, StoreResult<Vec<Quantity>>> {
        Box::pin(self.read("stripe.told", move |tx| async move {
            let mut sums = Vec::with_capacity(features.len());
            for feature in features {
                sums.push(told(&tx, tenant, feature, window).await?);
            }
            Ok(sums)
        }))
    }

    fn meter_sums<'a>(
        &'a self,
        tenant: TenantId,
        feature: &'a FeatureKey,
        window: Window,
    ) -> BoxFuture<'a, StoreResult<MeterSums>> {
        Box::pin(self.read("stripe.meter_sums", move |tx| async move {
            meter_sums(&tx, tenant, feature, window).await
        }))
    }

    fn lane_sums<'a>(
        &'a self,
        lane: &'a str,
        window: Window,
        but: &'a str,
    ) -> BoxFuture<'a, StoreResult<LaneSums>> {
        Box::pin(self.read_at_leisure("stripe.lane_sums", move |tx| async move {
            let of = params![lane, window.start().micros(), window.end().micros(), but];
            Ok(LaneSums {
                sent: sum(
                    &tx,
                    "SELECT coalesce(sum(value), 0)::text AS sum FROM outbox
                     WHERE lane = $1 AND about_at >= $2 AND about_at < $3 AND about_at IS NOT NULL
                       AND identifier <> $4 AND status IN ('sent', 'confirmed')",
                    of,
                )
                .await?,
                doubtful: sum(
                    &tx,
                    "SELECT coalesce(sum(value), 0)::text AS sum FROM outbox
                     WHERE lane = $1 AND about_at >= $2 AND about_at < $3 AND about_at IS NOT NULL
                       AND identifier <> $4 AND status IN ('pending', 'uncertain') AND doubt_since IS NOT NULL",
                    of,
                )
                .await?,
            })
        }))
    }

    fn list_unconfirmed<'a>(
        &'a self,
        sent_before: Timestamp,
        after: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Unconfirmed>>> {
        Box::pin(
            self.read_at_leisure("stripe.list_unconfirmed", move |tx| async move {
                rows::list(
                    &tx,
                    "outbox",
                    "SELECT lane, min(about_at) AS first, max(about_at) AS last FROM outbox
                 WHERE lane > $1 AND about_at IS NOT NULL AND status = 'sent' AND finished_at < $2
                 GROUP BY lane ORDER BY lane LIMIT $3",
                    params![after, sent_before.micros(), rows::limit(limit)],
                    |cells| {
                        Ok(Unconfirmed {
                            lane: cells.get("lane")?,
                            first: cells.time("first")?,
                            last: cells.time("last")?,
                        })
                    },
                )
                .await
            }),
        )
    }

    fn confirm<'a>(
        &'a self,
        lane: &'a str,
        window: Window,
        sent_before: Timestamp,
    ) -> BoxFuture<'a, StoreResult<u64>> {
        Box::pin(self.write_at_leisure("stripe.confirm", move |tx| async move {
            rows::run(
                &tx,
                "UPDATE outbox SET status = 'confirmed'
                 WHERE lane = $1 AND about_at >= $2 AND about_at < $3 AND about_at IS NOT NULL AND status = 'sent'
                   AND finished_at < $4",
                params![
                    lane,
                    window.start().micros(),
                    window.end().micros(),
                    sent_before.micros()
                ],
            )
            .await
        }))
    }

    fn doubt_pending(&self) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(
            self.write_at_leisure("stripe.doubt_pending", move |tx| async move {
                rows::run(
                    &tx,
                    "UPDATE outbox SET doubt_since = coalesce(doubt_since, about_at)
                 WHERE kind = $1 AND status = 'pending'",
                    params![KIND],
                )
                .await
            }),
        )
    }

    fn look_again(&self, now: Timestamp, limit: usize) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(
            self.write_at_leisure("stripe.look_again", move |tx| async move {
                rows::run(
                    &tx,
                    "UPDATE outbox SET status = 'pending', next_attempt_at = $1, finished_at = NULL
                 WHERE status = 'uncertain' AND identifier IN (
                     SELECT identifier FROM outbox WHERE kind = $2 AND status = 'uncertain'
                     ORDER BY created_at LIMIT $3
                 )",
                    params![now.micros(), KIND, rows::limit(limit)],
                )
                .await
            }),
        )
    }

    fn count_waiting(&self) -> BoxFuture<'_, StoreResult<(u64, Option<Timestamp>)>> {
        Box::pin(
            self.read_at_leisure("stripe.count_waiting", move |tx| async move {
                let found = rows::find(
                    &tx,
                    "stripe_waiting",
                    "SELECT count(*) AS count, min(slot) AS oldest FROM stripe_waiting",
                    params![],
                    |cells| {
                        let count: i64 = cells.get("count")?;
                        let count = u64::try_from(count).unwrap_or_default();
                        Ok((count, cells.optional_time("oldest")?))
                    },
                )
                .await?;
                Ok(found.unwrap_or_default())
            }),
        )
    }
}

/// In the transaction that records the events: what counts of those that are new. Slots are taken in the order of their
/// key, as whoever hands them on takes them.
pub(super) async fn add_waiting(
    tx: &Tx,
    uses: &[MeterUse],
    new: &HashSet<EventId>,
) -> Result<(), Failed> {
    let slots = stripe::summed(uses, new);
    if slots.is_empty() {
        return Ok(());
    }
    let places = Places::of(slots.keys());
    let due: Vec<i64> = slots.values().map(|it| it.due_at.micros()).collect();
    let customers: Vec<Option<&str>> = slots.values().map(|it| it.customer.as_deref()).collect();
    let quantities: Vec<i64> = slots.values().map(|it| it.quantity.get()).collect();
    rows::run(
        tx,
        "INSERT INTO stripe_waiting (tenant_id, feature_key, meter, slot, period_start, due_at, customer_id, quantity)
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[],
                              $8::bigint[])
             AS given (tenant_id, feature_key, meter, slot, period_start, due_at, customer_id, quantity)
         ORDER BY tenant_id, feature_key COLLATE \"C\", meter COLLATE \"C\", slot, period_start
         ON CONFLICT (tenant_id, feature_key, meter, slot, period_start) DO UPDATE SET
             quantity = stripe_waiting.quantity + excluded.quantity,
             due_at = least(stripe_waiting.due_at, excluded.due_at),
             customer_id = coalesce(excluded.customer_id, stripe_waiting.customer_id)",
        params![
            places.tenants,
            places.features,
            places.meters,
            places.starts,
            places.periods,
            due,
            customers,
            quantities,
        ],
    )
    .await?;
    Ok(())
}

/// In the transaction that notes entries as sent.
pub(super) async fn note_told(tx: &Tx, identifiers: &[&str]) -> Result<(), Failed> {
    rows::run(
        tx,
        "INSERT INTO stripe_told (tenant_id, feature_key, at, quantity)
         SELECT tenant_id, feature_key, greatest(about_at / 3600000000 * 3600000000, about_period) AS at,
                sum(value)::bigint
         FROM outbox WHERE identifier = ANY ($1) AND about_period IS NOT NULL
         GROUP BY tenant_id, feature_key, at ORDER BY tenant_id, feature_key, at
         ON CONFLICT (tenant_id, feature_key, at) DO UPDATE SET quantity = stripe_told.quantity + excluded.quantity",
        params![identifiers],
    )
    .await?;
    Ok(())
}

/// The keys of slots as columns.
struct Places<'a> {
    tenants: Vec<Uuid>,
    features: Vec<&'a str>,
    meters: Vec<&'a str>,
    starts: Vec<i64>,
    periods: Vec<i64>,
}

impl<'a> Places<'a> {
    fn of(slots: impl Iterator<Item = &'a Slot> + Clone) -> Self {
        Self {
            tenants: slots.clone().map(|it| it.tenant.uuid()).collect(),
            features: slots.clone().map(|it| it.feature.as_str()).collect(),
            meters: slots.clone().map(|it| it.meter.as_str()).collect(),
            starts: slots.clone().map(|it| it.start.micros()).collect(),
            periods: slots.map(|it| it.period_start.micros()).collect(),
        }
    }
}

/// A slot that waits, and whose it is at Stripe.
struct Waiting {
    slot: Slot,
    quantity: Quantity,
    customer: Option<String>,
}

/// The keys of slots. With [`Which::All`] those without a customer are left out: they would come again and again.
const fn places_of(which: Which) -> &'static str {
    match which {
        Which::Due => {
            "SELECT tenant_id, feature_key, meter, slot, period_start FROM stripe_waiting
             WHERE due_at <= $1 ORDER BY due_at LIMIT $2"
        }
        Which::All => {
            "SELECT tenant_id, feature_key, meter, slot, stripe_waiting.period_start
             FROM stripe_waiting LEFT JOIN subscriptions USING (tenant_id)
             WHERE slot <= $1 AND coalesce(processor_customer_id, customer_id) IS NOT NULL
             ORDER BY slot LIMIT $2"
        }
    }
}

/// Nobody adds to them until this transaction is over.
async fn list_slots(
    tx: &Tx,
    which: Which,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<Waiting>, Failed> {
    let places = places_of(which);
    rows::list(
        tx,
        "stripe_waiting",
        &format!(
            "WITH asked AS MATERIALIZED ({places})
             SELECT stripe_waiting.*, coalesce(processor_customer_id, customer_id) AS customer
             FROM asked JOIN stripe_waiting USING (tenant_id, feature_key, meter, slot, period_start)
             LEFT JOIN subscriptions USING (tenant_id)
             ORDER BY stripe_waiting.tenant_id, stripe_waiting.feature_key, stripe_waiting.meter, stripe_waiting.slot,
                      stripe_waiting.period_start
             FOR UPDATE OF stripe_waiting"
        ),
        params![now.micros(), rows::limit(limit)],
        read_waiting,
    )
    .await
}

fn read_waiting(cells: &Cells<'_>) -> Result<Waiting, Failed> {
    Ok(Waiting {
        slot: Slot {
            tenant: TenantId::new(cells.uuid("tenant_id")?),
            feature: cells.parse("feature_key")?,
            meter: cells.get("meter")?,
            start: cells.time("slot")?,
            period_start: cells.time("period_start")?,
        },
        quantity: cells.quantity("quantity")?,
        customer: cells.get("customer")?,
    })
}

async fn hand_on(
    tx: &Tx,
    which: Which,
    now: Timestamp,
    again: Timestamp,
    limit: usize,
) -> Result<HandedOn, Failed> {
    rows::lock(tx, LOCK).await?;
    let waiting = list_slots(tx, which, now, limit).await?;
    let (known, unknown): (Vec<_>, Vec<_>) = waiting.iter().partition(|it| it.customer.is_some());
    put_off(tx, Places::of(unknown.iter().map(|it| &it.slot)), again).await?;
    remove(tx, Places::of(known.iter().map(|it| &it.slot))).await?;
    // What was corrected before anybody was told is left out.
    let to_tell = known.into_iter().filter(|it| it.quantity != Quantity::ZERO);
    let entries = enqueue(tx, &to_tell.collect::<Vec<_>>(), now).await?;
    Ok(HandedOn {
        entries,
        without_customer: unknown.len() as u64,
        is_more: waiting.len() >= limit,
    })
}

async fn put_off(tx: &Tx, places: Places<'_>, again: Timestamp) -> Result<(), Failed> {
    rows::run(
        tx,
        "UPDATE stripe_waiting SET due_at = $6
         FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::bigint[])
             AS given (tenant_id, feature_key, meter, slot, period_start)
         WHERE stripe_waiting.tenant_id = given.tenant_id AND stripe_waiting.feature_key = given.feature_key
           AND stripe_waiting.meter = given.meter AND stripe_waiting.slot = given.slot
           AND stripe_waiting.period_start = given.period_start",
        params![
            places.tenants,
            places.features,
            places.meters,
            places.starts,
            places.periods,
            again.micros(),
        ],
    )
    .await?;
    Ok(())
}

async fn remove(tx: &Tx, places: Places<'_>) -> Result<(), Failed> {
    rows::run(
        tx,
        "DELETE FROM stripe_waiting
         USING unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::bigint[])
             AS given (tenant_id, feature_key, meter, slot, period_start)
         WHERE stripe_waiting.tenant_id = given.tenant_id AND stripe_waiting.feature_key = given.feature_key
           AND stripe_waiting.meter = given.meter AND stripe_waiting.slot = given.slot
           AND stripe_waiting.period_start = given.period_start",
        params![
            places.tenants,
            places.features,
            places.meters,
            places.starts,
            places.periods,
        ],
    )
    .await?;
    Ok(())
}

/// An entry of a slot that was handed on before.
struct Earlier {
    identifier: String,
    lane: Option<String>,
    value: Option<Quantity>,
    /// Whether Stripe has it, and still cancels it.
    is_cancelable: bool,
}

/// Makes an entry of each; how many. Nobody else does so meanwhile, nor takes what is here.
async fn enqueue(tx: &Tx, waiting: &[&Waiting], now: Timestamp) -> Result<u64, Failed> {
    if waiting.is_empty() {
        return Ok(0);
    }
    let mut earlier = list_earlier(tx, waiting, now).await?;
    let latest = list_latest(tx, waiting).await?;
    let (mut entries, mut canceled) = (Vec::new(), Vec::new());
    for Waiting {
        slot,
        quantity,
        customer,
    } in waiting
    {
        let customer = customer.as_deref().unwrap_or_default();
        let lane = stripe::lane(customer, &slot.meter);
        let of_slot = earlier.entry(slot.prefix()).or_default();
        let cancels = find_canceled(of_slot, &lane, *quantity);
        canceled.extend(cancels.clone());
        let part = slot.part(i64::try_from(of_slot.len()).unwrap_or(i64::MAX), now);
        let mut identifier = format!("{}{part}", slot.prefix());
        // An identifier that is there would swallow this usage.
        while of_slot.iter().any(|it| it.identifier == identifier) {
            identifier.push('a');
        }
        of_slot.push(Earlier {
            identifier: identifier.clone(),
            lane: None,
            value: None,
            is_cancelable: false,
        });
        let made_at = match latest.get(&lane) {
            // Another replica's clock is ahead of this one's. In a lane, entries go in the order in which they were made.
            Some(latest) if *latest > now => latest.plus(MICRO),
            Some(_) | None => now,
        };
        entries.push(stripe::entry(
            slot, customer, *quantity, identifier, cancels, made_at,
        ));
    }
    mark_canceled(tx, &canceled).await?;
    let made = outbox::enqueue(tx, &entries).await?;
    if made != entries.len() as u64 {
        return Err(Failed::Corrupt(format!(
            "of {} entries for Stripe {made} are new; none is handed on",
            entries.len()
        )));
    }
    Ok(made)
}

/// What the outbox has of the slots, by the prefix of their identifiers; what was sent last comes first.
async fn list_earlier(
    tx: &Tx,
    waiting: &[&Waiting],
    now: Timestamp,
) -> Result<BTreeMap<String, Vec<Earlier>>, Failed> {
    let prefixes: HashSet<String> = waiting.iter().map(|it| it.slot.prefix()).collect();
    let prefixes: Vec<String> = prefixes.into_iter().collect();
    let mut earlier: BTreeMap<String, Vec<Earlier>> = BTreeMap::new();
    let found = rows::list(
        tx,
        "outbox",
        "SELECT prefix, identifier, lane, value,
                (status IN ('sent', 'confirmed') AND topic IS NOT DISTINCT FROM $2 AND finished_at > $3
                 AND doubt_since IS NULL) AS is_cancelable
         FROM unnest($1::text[]) AS asked (prefix)
         JOIN outbox ON identifier >= prefix AND identifier < prefix || '~'
         ORDER BY finished_at DESC NULLS LAST",
        params![prefixes, stripe::USAGE, now.minus(CANCELABLE).micros()],
        |cells| {
            let of_slot = Earlier {
                identifier: cells.get("identifier")?,
                lane: cells.get("lane")?,
                value: cells.optional_quantity("value")?,
                is_cancelable: cells.get::<Option<bool>>("is_cancelable")? == Some(true),
            };
            Ok((cells.get::<String>("prefix")?, of_slot))
        },
    )
    .await?;
    for (prefix, of_slot) in found {
        earlier.entry(prefix).or_default().push(of_slot);
    }
    Ok(earlier)
}

/// When the last entry was made that waits in the slots' lanes; lanes in which none waits are left out.
async fn list_latest(tx: &Tx, waiting: &[&Waiting]) -> Result<BTreeMap<String, Timestamp>, Failed> {
    let lanes: HashSet<String> = waiting
        .iter()
        .map(|it| stripe::lane(it.customer.as_deref().unwrap_or_default(), &it.slot.meter))
        .collect();
    let lanes: Vec<String> = lanes.into_iter().collect();
    let latest = rows::list(
        tx,
        "outbox",
        "SELECT asked.lane, created_at FROM unnest($1::text[]) AS asked (lane) CROSS JOIN LATERAL (
             SELECT created_at FROM outbox
             WHERE kind = $2 AND outbox.lane = asked.lane AND status = 'pending'
             ORDER BY created_at DESC, identifier DESC LIMIT 1
         ) AS latest",
        params![lanes, KIND],
        |cells| Ok((cells.get("lane")?, cells.time("created_at")?)),
    )
    .await?;
    Ok(latest.into_iter().collect())
}

/// The event of the same slot that `value` takes back whole, if Stripe still cancels it; it does so once.
fn find_canceled(earlier: &mut [Earlier], lane: &str, value: Quantity) -> Option<String> {
    if value >= Quantity::ZERO {
        return None;
    }
    let taken_back = Some(Quantity::ZERO.minus(value));
    let canceled = earlier.iter_mut().find(|it| {
        it.is_cancelable && it.lane.as_deref() == Some(lane) && it.value == taken_back
    })?;
    canceled.is_cancelable = false;
    Some(canceled.identifier.clone())
}

async fn mark_canceled(tx: &Tx, identifiers: &[String]) -> Result<(), Failed> {
    if identifiers.is_empty() {
        return Ok(());
    }
    rows::run(
        tx,
        "UPDATE outbox SET topic = $2 WHERE identifier = ANY ($1)",
        params![identifiers, CANCELED],
    )
    .await?;
    Ok(())
}

async fn told(
    tx: &Tx,
    tenant: TenantId,
    feature: &FeatureKey,
    window: Window,
) -> Result<Quantity, Failed> {
    sum(
        tx,
        "SELECT coalesce(sum(quantity), 0)::text AS sum FROM stripe_told
         WHERE tenant_id = $1 AND feature_key = $2 AND at >= $3 AND at < $4",
        params![
            tenant.uuid(),
            feature.as_str(),
            window.start().micros(),
            window.end().micros()
        ],
    )
    .await
}

async fn meter_sums(
    tx: &Tx,
    tenant: TenantId,
    feature: &FeatureKey,
    window: Window,
) -> Result<MeterSums, Failed> {
    let of = params![
        tenant.uuid(),
        feature.as_str(),
        window.start().micros(),
        window.end().micros()
    ];
    let mut sums = MeterSums {
        waiting: sum(
            tx,
            "SELECT coalesce(sum(quantity), 0)::text AS sum FROM stripe_waiting
             WHERE tenant_id = $1 AND feature_key = $2 AND slot >= $3 AND slot < $4",
            of,
        )
        .await?,
        told: told(tx, tenant, feature, window).await?,
        ..MeterSums::default()
    };
    let by_status = rows::list(
        tx,
        "outbox",
        "SELECT status, coalesce(sum(value), 0)::text AS sum FROM outbox
         WHERE tenant_id = $1 AND feature_key = $2 AND about_at >= $3 AND about_at < $4 AND about_at IS NOT NULL
         GROUP BY status",
        of,
        |cells| {
            let status = cells.one_of("status", &Status::ALL, Status::as_str)?;
            Ok((status, cells.sum("sum").map(quantity_of)?))
        },
    )
    .await?;
    for (status, value) in by_status {
        match status {
            Status::Pending => sums.pending = value,
            Status::Sent => sums.unconfirmed = value,
            Status::Uncertain => sums.uncertain = value,
            Status::Dead => sums.dead = value,
            Status::Confirmed => {}
        }
    }
    Ok(sums)
}

async fn sum(tx: &Tx, sql: &str, params: Params<'_>) -> Result<Quantity, Failed> {
    let sum = rows::find(tx, "outbox", sql, params, |cells| {
        cells.sum("sum").map(quantity_of)
    });
    Ok(sum.await?.unwrap_or(Quantity::ZERO))
}
