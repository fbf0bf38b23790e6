//! Usage on its way to Stripe's meters.

use std::collections::HashSet;

use futures_util::future::BoxFuture;
use rusqlite::{Transaction, params};

use super::{
    Failed, SqliteStore, outbox,
    rows::{self, Cells, blob},
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
        stripe::{
            self, CANCELABLE, CANCELED, HandedOn, LaneSums, MeterSums, MeterUse, Slot, StripeStore,
            Unconfirmed, Which,
        },
    },
};

const KIND: &str = Kind::StripeMeterEvent.as_str();

impl StripeStore for SqliteStore {
    fn hand_on(
        &self,
        which: Which,
        now: Timestamp,
        again: Timestamp,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<HandedOn>> {
        Box::pin(async move {
            // Most looks find nothing, and a look must not keep the one writer from its work.
            let any = self
                .read("stripe.look", move |tx| list_slots(tx, which, now, 1))
                .await?;
            if any.is_empty() {
                return Ok(HandedOn::default());
            }
            self.write("stripe.hand_on", move |tx| {
                hand_on(tx, which, now, again, limit)
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
        let features = features.to_vec();
        Box::pin(self.read("stripe.told", move |tx| {
            features
                .iter()
                .map(|feature| told(tx, tenant, feature, window))
                .collect()
        }))
    }

    fn meter_sums<'a>(
        &'a self,
        tenant: TenantId,
        feature: &'a FeatureKey,
        window: Window,
    ) -> BoxFuture<'a, StoreResult<MeterSums>> {
        let feature = feature.clone();
        Box::pin(self.read("stripe.meter_sums", move |tx| {
            meter_sums(tx, tenant, &feature, window)
        }))
    }

    fn lane_sums<'a>(
        &'a self,
        lane: &'a str,
        window: Window,
        but: &'a str,
    ) -> BoxFuture<'a, StoreResult<LaneSums>> {
        let (lane, but) = (lane.to_owned(), but.to_owned());
        Box::pin(self.read("stripe.lane_sums", move |tx| {
            let of = params![lane, window.start().micros(), window.end().micros(), but];
            Ok(LaneSums {
                sent: sum(
                    tx,
                    "SELECT total(value) AS sum FROM outbox
                     WHERE lane = ?1 AND about_at >= ?2 AND about_at < ?3 AND about_at IS NOT NULL
                       AND identifier <> ?4 AND status IN ('sent', 'confirmed')",
                    of,
                )?,
                doubtful: sum(
                    tx,
                    "SELECT total(value) AS sum FROM outbox
                     WHERE lane = ?1 AND about_at >= ?2 AND about_at < ?3 AND about_at IS NOT NULL
                       AND identifier <> ?4 AND status IN ('pending', 'uncertain') AND doubt_since IS NOT NULL",
                    of,
                )?,
            })
        }))
    }

    fn list_unconfirmed<'a>(
        &'a self,
        sent_before: Timestamp,
        after: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Unconfirmed>>> {
        let after = after.to_owned();
        Box::pin(self.read("stripe.list_unconfirmed", move |tx| {
            rows::list(
                tx,
                "outbox",
                "SELECT lane, min(about_at) AS first, max(about_at) AS last FROM outbox
                 WHERE lane > ?1 AND about_at IS NOT NULL AND status = 'sent' AND finished_at < ?2
                 GROUP BY lane ORDER BY lane LIMIT ?3",
                params![after, sent_before.micros(), rows::limit(limit)],
                |cells| {
                    Ok(Unconfirmed {
                        lane: cells.get("lane")?,
                        first: cells.time("first")?,
                        last: cells.time("last")?,
                    })
                },
            )
        }))
    }

    fn confirm<'a>(
        &'a self,
        lane: &'a str,
        window: Window,
        sent_before: Timestamp,
    ) -> BoxFuture<'a, StoreResult<u64>> {
        let lane = lane.to_owned();
        Box::pin(self.write("stripe.confirm", move |tx| {
            rows::run(
                tx,
                "UPDATE outbox SET status = 'confirmed'
                 WHERE lane = ?1 AND about_at >= ?2 AND about_at < ?3 AND about_at IS NOT NULL AND status = 'sent'
                   AND finished_at < ?4",
                params![
                    lane,
                    window.start().micros(),
                    window.end().micros(),
                    sent_before.micros()
                ],
            )
        }))
    }

    fn doubt_pending(&self) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(self.write("stripe.doubt_pending", move |tx| {
            rows::run(
                tx,
                "UPDATE outbox SET doubt_since = coalesce(doubt_since, about_at) WHERE kind = ?1 AND status = 'pending'",
                [KIND],
            )
        }))
    }

    fn look_again(&self, now: Timestamp, limit: usize) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(self.write("stripe.look_again", move |tx| {
            rows::run(
                tx,
                "UPDATE outbox SET status = 'pending', next_attempt_at = ?1, finished_at = NULL
                 WHERE identifier IN (
                     SELECT identifier FROM outbox WHERE kind = ?2 AND status = 'uncertain'
                     ORDER BY created_at LIMIT ?3
                 )",
                params![now.micros(), KIND, rows::limit(limit)],
            )
        }))
    }

    fn count_waiting(&self) -> BoxFuture<'_, StoreResult<(u64, Option<Timestamp>)>> {
        Box::pin(self.read("stripe.count_waiting", move |tx| {
            let found = rows::find(
                tx,
                "stripe_waiting",
                "SELECT count(*) AS count, min(slot) AS oldest FROM stripe_waiting",
                [],
                |cells| {
                    let count: i64 = cells.get("count")?;
                    let count = u64::try_from(count).unwrap_or_default();
                    Ok((count, cells.optional_time("oldest")?))
                },
            )?;
            Ok(found.unwrap_or_default())
        }))
    }
}

/// In the transaction that records the events: what counts of those that are new.
pub(super) fn add_waiting(
    tx: &Transaction<'_>,
    uses: &[MeterUse],
    new: &HashSet<EventId>,
) -> Result<(), Failed> {
    for (slot, added) in stripe::summed(uses, new) {
        rows::run(
            tx,
            "INSERT INTO stripe_waiting (tenant_id, feature_key, meter, slot, period_start, due_at, customer_id, quantity)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT (tenant_id, feature_key, meter, slot, period_start) DO UPDATE SET
                 quantity = quantity + excluded.quantity, due_at = min(due_at, excluded.due_at),
                 customer_id = coalesce(excluded.customer_id, customer_id)",
            params![
                blob(slot.tenant.uuid()),
                slot.feature.as_str(),
                slot.meter,
                slot.start.micros(),
                slot.period_start.micros(),
                added.due_at.micros(),
                added.customer,
                added.quantity.get(),
            ],
        )?;
    }
    Ok(())
}

/// In the transaction that notes an entry as sent.
pub(super) fn note_told(tx: &Transaction<'_>, identifier: &str) -> Result<(), Failed> {
    rows::run(
        tx,
        "INSERT INTO stripe_told (tenant_id, feature_key, at, quantity)
         SELECT tenant_id, feature_key, max(about_at / 3600000000 * 3600000000, about_period), value FROM outbox
         WHERE identifier = ?1 AND about_period IS NOT NULL
         ON CONFLICT (tenant_id, feature_key, at) DO UPDATE SET quantity = quantity + excluded.quantity",
        [identifier],
    )?;
    Ok(())
}

/// A slot that waits, and whose it is at Stripe.
struct Waiting {
    slot: Slot,
    quantity: Quantity,
    customer: Option<String>,
}

/// With [`Which::All`] those without a customer are left out: they would come again and again.
fn list_slots(
    tx: &Transaction<'_>,
    which: Which,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<Waiting>, Failed> {
    let columns =
        "SELECT stripe_waiting.*, coalesce(processor_customer_id, customer_id) AS customer
         FROM stripe_waiting LEFT JOIN subscriptions USING (tenant_id)";
    let sql = match which {
        Which::Due => format!("{columns} WHERE due_at <= ?1 ORDER BY due_at LIMIT ?2"),
        Which::All => format!(
            "{columns} WHERE slot <= ?1 AND coalesce(processor_customer_id, customer_id) IS NOT NULL
             ORDER BY slot LIMIT ?2"
        ),
    };
    rows::list(
        tx,
        "stripe_waiting",
        &sql,
        params![now.micros(), rows::limit(limit)],
        read_waiting,
    )
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

fn hand_on(
    tx: &Transaction<'_>,
    which: Which,
    now: Timestamp,
    again: Timestamp,
    limit: usize,
) -> Result<HandedOn, Failed> {
    let waiting = list_slots(tx, which, now, limit)?;
    let mut done = HandedOn {
        is_more: waiting.len() >= limit,
        ..HandedOn::default()
    };
    for Waiting {
        slot,
        quantity,
        customer,
    } in waiting
    {
        let Some(customer) = customer else {
            done.without_customer += 1;
            put_off(tx, &slot, again)?;
            continue;
        };
        remove(tx, &slot)?;
        if quantity == Quantity::ZERO {
            continue; // it was corrected before anybody was told
        }
        done.entries += 1;
        enqueue(tx, &slot, &customer, quantity, now)?;
    }
    Ok(done)
}

fn put_off(tx: &Transaction<'_>, slot: &Slot, again: Timestamp) -> Result<(), Failed> {
    rows::run(
        tx,
        "UPDATE stripe_waiting SET due_at = ?6
         WHERE tenant_id = ?1 AND feature_key = ?2 AND meter = ?3 AND slot = ?4 AND period_start = ?5",
        params![
            blob(slot.tenant.uuid()),
            slot.feature.as_str(),
            slot.meter,
            slot.start.micros(),
            slot.period_start.micros(),
            again.micros(),
        ],
    )?;
    Ok(())
}

fn remove(tx: &Transaction<'_>, slot: &Slot) -> Result<(), Failed> {
    rows::run(
        tx,
        "DELETE FROM stripe_waiting
         WHERE tenant_id = ?1 AND feature_key = ?2 AND meter = ?3 AND slot = ?4 AND period_start = ?5",
        params![
            blob(slot.tenant.uuid()),
            slot.feature.as_str(),
            slot.meter,
            slot.start.micros(),
            slot.period_start.micros(),
        ],
    )?;
    Ok(())
}

fn enqueue(
    tx: &Transaction<'_>,
    slot: &Slot,
    customer: &str,
    value: Quantity,
    now: Timestamp,
) -> Result<(), Failed> {
    let cancels = if value < Quantity::ZERO {
        find_canceled(tx, slot, customer, value, now)?
    } else {
        None
    };
    if let Some(canceled) = &cancels {
        rows::run(
            tx,
            "UPDATE outbox SET topic = ?2 WHERE identifier = ?1",
            params![canceled, CANCELED],
        )?;
    }
    let prefix = slot.prefix();
    let entries = rows::find(
        tx,
        "outbox",
        "SELECT count(*) AS count FROM outbox WHERE identifier >= ?1 AND identifier < ?1 || '~'",
        [&prefix],
        |cells| cells.get::<i64>("count"),
    )?;
    let mut identifier = format!("{prefix}{}", slot.part(entries.unwrap_or(0), now));
    // An identifier that is there would swallow this usage.
    while rows::exists(
        tx,
        "SELECT 1 FROM outbox WHERE identifier = ?1",
        [&identifier],
    )? {
        identifier.push('a');
    }
    let entry = stripe::entry(slot, customer, value, identifier, cancels, now);
    outbox::enqueue(tx, &[entry])?;
    Ok(())
}

/// The event of the same slot that `value` takes back whole, if Stripe still cancels it.
fn find_canceled(
    tx: &Transaction<'_>,
    slot: &Slot,
    customer: &str,
    value: Quantity,
    now: Timestamp,
) -> Result<Option<String>, Failed> {
    rows::find(
        tx,
        "outbox",
        "SELECT identifier FROM outbox
         WHERE identifier >= ?1 AND identifier < ?1 || '~' AND status IN ('sent', 'confirmed') AND topic = ?2
           AND lane = ?3 AND value = ?4 AND finished_at > ?5 AND doubt_since IS NULL
         ORDER BY finished_at DESC LIMIT 1",
        params![
            slot.prefix(),
            stripe::USAGE,
            stripe::lane(customer, &slot.meter),
            -value.get(),
            now.minus(CANCELABLE).micros(),
        ],
        |cells| cells.get("identifier"),
    )
}

fn told(
    tx: &Transaction<'_>,
    tenant: TenantId,
    feature: &FeatureKey,
    window: Window,
) -> Result<Quantity, Failed> {
    sum(
        tx,
        "SELECT total(quantity) AS sum FROM stripe_told
         WHERE tenant_id = ?1 AND feature_key = ?2 AND at >= ?3 AND at < ?4",
        params![
            blob(tenant.uuid()),
            feature.as_str(),
            window.start().micros(),
            window.end().micros()
        ],
    )
}

fn meter_sums(
    tx: &Transaction<'_>,
    tenant: TenantId,
    feature: &FeatureKey,
    window: Window,
) -> Result<MeterSums, Failed> {
    let of = params![
        blob(tenant.uuid()),
        feature.as_str(),
        window.start().micros(),
        window.end().micros()
    ];
    let mut sums = MeterSums {
        waiting: sum(
            tx,
            "SELECT total(quantity) AS sum FROM stripe_waiting
             WHERE tenant_id = ?1 AND feature_key = ?2 AND slot >= ?3 AND slot < ?4",
            of,
        )?,
        told: told(tx, tenant, feature, window)?,
        ..MeterSums::default()
    };
    let by_status = rows::list(
        tx,
        "outbox",
        "SELECT status, CAST(total(value) AS INTEGER) AS sum FROM outbox
         WHERE tenant_id = ?1 AND feature_key = ?2 AND about_at >= ?3 AND about_at < ?4 AND about_at IS NOT NULL
         GROUP BY status",
        of,
        |cells| {
            let status = cells.one_of("status", &Status::ALL, Status::as_str)?;
            Ok((status, cells.quantity("sum")?))
        },
    )?;
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

/// `total()` does not fail on a sum beyond 64 bits as `sum()` does, and is exact up to 2^53, where quantities end.
fn sum(tx: &Transaction<'_>, sql: &str, params: impl rusqlite::Params) -> Result<Quantity, Failed> {
    let sum = rows::find(tx, "outbox", sql, params, |cells| {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a whole number: the cast saturates, and so do quantities"
        )]
        cells.get::<f64>("sum").map(|sum| Quantity::new(sum as i64))
    })?;
    Ok(sum.unwrap_or(Quantity::ZERO))
}
