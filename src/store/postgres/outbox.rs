//! The outbox.

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::json;
use uuid::Uuid;

use super::{
    Failed, PostgresStore,
    audit::Change,
    pool::Tx,
    rows::{self, Cells, micros, params, units},
    stripe,
};
use crate::{
    domain::{administrator::Actor, feature::FeatureKey, ids::TenantId, time::Timestamp},
    store::{
        StoreResult,
        outbox::{
            About, Ending, Finished, Kind, Lease, Leased, NewEntry, OutboxEntry, OutboxFilter,
            OutboxStore, Replaying, Status,
        },
    },
};

const TABLE: &str = "outbox";

/// Held by a replay, shared by leases: which entry of a lane is the oldest does not change while one is taken.
pub(super) const LOCK: i64 = 0x746f_6c6c_6f75_7462;

impl OutboxStore for PostgresStore {
    fn enqueue<'a>(&'a self, entries: &'a [NewEntry]) -> BoxFuture<'a, StoreResult<u64>> {
        Box::pin(
            self.write_at_leisure("outbox.enqueue", move |tx| async move {
                enqueue(&tx, entries).await
            }),
        )
    }

    fn lease(&self, asked: Lease) -> BoxFuture<'_, StoreResult<Vec<Leased>>> {
        Box::pin(async move {
            // Most looks find nothing, and a look should cost little.
            let is_due = self
                .read("outbox.look", |tx| async move { is_due(&tx, asked).await })
                .await?;
            if !is_due {
                return Ok(Vec::new());
            }
            self.write_at_leisure("outbox.lease", |tx| async move { lease(&tx, asked).await })
                .await
        })
    }

    fn renew<'a>(
        &'a self,
        leased: &'a [Leased],
        until: Timestamp,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(self.write_at_leisure("outbox.renew", move |tx| async move {
            renew(&tx, leased, until).await
        }))
    }

    fn finish<'a>(
        &'a self,
        finished: &'a [Finished],
        now: Timestamp,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(
            self.write_at_leisure("outbox.finish", move |tx| async move {
                finish(&tx, finished, now).await
            }),
        )
    }

    fn list_outbox<'a>(
        &'a self,
        filter: &'a OutboxFilter,
        before: Option<(Timestamp, String)>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<OutboxEntry>>> {
        Box::pin(async move {
            let (at, identifier) = before.unwrap_or((Timestamp::NEVER, String::new()));
            let identifier = identifier.as_str();
            self.read("outbox.list", |tx| async move {
                rows::list(
                    &tx,
                    TABLE,
                    "SELECT outbox.*, slug FROM outbox LEFT JOIN tenants USING (tenant_id)
                 WHERE (outbox.created_at, identifier) < ($1, $2)
                   AND ($4::text IS NULL OR kind = $4) AND ($5::text IS NULL OR outbox.status = $5)
                   AND ($6::uuid IS NULL OR outbox.tenant_id = $6)
                 ORDER BY outbox.created_at DESC, identifier DESC LIMIT $3",
                    params![
                        at.micros(),
                        identifier,
                        rows::limit(limit),
                        filter.kind.map(Kind::as_str),
                        filter.status.map(Status::as_str),
                        filter.tenant.map(|tenant| tenant.uuid()),
                    ],
                    read,
                )
                .await
            })
            .await
        })
    }

    fn replay<'a>(
        &'a self,
        identifier: &'a str,
        longest_lease: Duration,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<Replaying>> {
        Box::pin(self.change("outbox.replay", move |tx| async move {
            replay(&tx, identifier, longest_lease, by).await
        }))
    }

    fn count_outbox(&self) -> BoxFuture<'_, StoreResult<Vec<(Kind, Status, u64)>>> {
        Box::pin(self.read("outbox.count", move |tx| async move {
            rows::list(
                &tx,
                TABLE,
                "SELECT kind, status, count(*) AS count FROM outbox GROUP BY kind, status",
                params![],
                |cells| {
                    let count: i64 = cells.get("count")?;
                    Ok((
                        kind(cells)?,
                        status(cells)?,
                        u64::try_from(count).unwrap_or_default(),
                    ))
                },
            )
            .await
        }))
    }

    fn prune_outbox(&self, before: Timestamp, limit: usize) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(self.write_at_leisure("outbox.prune", move |tx| async move {
            rows::run(
                &tx,
                "DELETE FROM outbox WHERE identifier IN (
                     SELECT identifier FROM outbox WHERE status IN ('sent', 'confirmed') AND finished_at < $1
                     ORDER BY finished_at LIMIT $2
                 )",
                params![before.micros(), rows::limit(limit)],
            ).await
        }))
    }
}

/// In a transaction of the caller's: what is to be told goes in with what it is about.
pub(super) async fn enqueue(tx: &Tx, entries: &[NewEntry]) -> Result<u64, Failed> {
    if entries.is_empty() {
        return Ok(0);
    }
    let column = |of: fn(&NewEntry) -> Option<&str>| entries.iter().map(of).collect::<Vec<_>>();
    let tenants: Vec<Option<Uuid>> = entries
        .iter()
        .map(|entry| entry.tenant.map(|tenant| tenant.uuid()))
        .collect();
    let values: Vec<Option<i64>> = entries.iter().map(|entry| units(entry.value)).collect();
    let created: Vec<i64> = entries.iter().map(|it| it.created_at.micros()).collect();
    let about = |of: fn(About) -> Timestamp| {
        let times = entries.iter().map(|it| it.about.map(|it| of(it).micros()));
        times.collect::<Vec<Option<i64>>>()
    };
    // Each replica takes them in the same order, so that none waits for one that waits for it.
    rows::run(
        tx,
        "WITH given AS (
             SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::uuid[], $5::text[], $6::bigint[], $7::text[],
                                  $8::bigint[], $9::text[], $10::bigint[], $11::bigint[])
                 AS given (identifier, kind, topic, tenant_id, feature_key, value, lane, created_at, payload, about_at,
                           about_period)
         ), added AS (
             INSERT INTO outbox (identifier, kind, topic, tenant_id, feature_key, value, lane, status, next_attempt_at,
                                 created_at, about_at, about_period)
             SELECT identifier, kind, topic, tenant_id, feature_key, value, lane, 'pending', created_at, created_at,
                    about_at, about_period
             FROM given ORDER BY identifier
             ON CONFLICT DO NOTHING RETURNING identifier
         )
         INSERT INTO outbox_payloads (identifier, payload)
         SELECT identifier, payload FROM given JOIN added USING (identifier) ON CONFLICT DO NOTHING",
        params![
            column(|it| Some(&it.identifier)),
            column(|it| Some(it.kind.as_str())),
            column(|it| it.topic.as_deref()),
            tenants,
            column(|it| it.feature.as_ref().map(|feature| feature.as_str())),
            values,
            column(|it| it.lane.as_deref()),
            created,
            column(|it| Some(&it.payload)),
            about(|it| it.at),
            about(|it| it.period_start),
        ],
    )
    .await
}

/// The oldest entry of each lane, which goes from lane to lane: while the other side takes nothing, there are a few
/// hundred lanes and hundreds of thousands of entries behind, all of them due.
pub(super) const HEADS: &str = "
    WITH RECURSIVE heads (lane, identifier, next_attempt_at) AS (
        (
            SELECT lane, identifier, next_attempt_at FROM outbox
            WHERE kind = $1 AND lane IS NOT NULL AND status = 'pending'
            ORDER BY lane, created_at, identifier LIMIT 1
        )
        UNION ALL
        SELECT next.lane, next.identifier, next.next_attempt_at FROM heads CROSS JOIN LATERAL (
            SELECT lane, identifier, next_attempt_at FROM outbox
            WHERE kind = $1 AND lane > heads.lane AND status = 'pending'
            ORDER BY lane, created_at, identifier LIMIT 1
        ) AS next
    )";

/// Whether anything can be leased.
pub(super) const LOOK: &str = "
    SELECT 1 FROM outbox WHERE kind = $1 AND lane IS NULL AND next_attempt_at <= $2
    UNION ALL
    SELECT 1 FROM heads WHERE next_attempt_at <= $2";

async fn is_due(tx: &Tx, asked: Lease) -> Result<bool, Failed> {
    rows::exists(
        tx,
        &format!("{HEADS} {LOOK}"),
        params![asked.kind.as_str(), asked.now.micros()],
    )
    .await
}

/// What another replica is taking at the moment is passed over.
async fn lease(tx: &Tx, asked: Lease) -> Result<Vec<Leased>, Failed> {
    rows::lock_shared(tx, LOCK).await?;
    let mut leased = rows::list(
        tx,
        TABLE,
        &format!(
            "{HEADS}, first AS (
                 SELECT outbox.identifier, outbox.doubt_since, outbox.next_attempt_at
                 FROM outbox JOIN heads ON heads.identifier = outbox.identifier AND heads.next_attempt_at <= $2
                 WHERE outbox.next_attempt_at <= $2
                 ORDER BY outbox.next_attempt_at, outbox.identifier LIMIT $3
                 FOR UPDATE OF outbox SKIP LOCKED
             ), alone AS (
                 SELECT identifier, doubt_since, next_attempt_at FROM outbox
                 WHERE kind = $1 AND lane IS NULL AND next_attempt_at <= $2
                 ORDER BY next_attempt_at, identifier LIMIT $3
                 FOR UPDATE SKIP LOCKED
             ), due AS (
                 SELECT * FROM first UNION ALL SELECT * FROM alone ORDER BY next_attempt_at, identifier LIMIT $3
             )
             UPDATE outbox SET attempts = attempts + 1, next_attempt_at = $4,
                 doubt_since = coalesce(outbox.doubt_since, $2)
             FROM due JOIN outbox_payloads USING (identifier)
             WHERE outbox.identifier = due.identifier
             RETURNING outbox.identifier, topic, tenant_id, feature_key, value, lane, about_at, attempts, due.doubt_since,
                       created_at, payload"
        ),
        params![
            asked.kind.as_str(),
            asked.now.micros(),
            rows::limit(asked.limit),
            asked.until.micros(),
        ],
        |cells| {
            Ok(Leased {
                identifier: cells.get("identifier")?,
                topic: cells.get("topic")?,
                tenant: cells.optional_uuid("tenant_id")?.map(TenantId::new),
                feature: feature(cells)?,
                value: cells.optional_quantity("value")?,
                lane: cells.get("lane")?,
                about_at: cells.optional_time("about_at")?,
                attempts: attempts(cells)?,
                doubt_since: cells.optional_time("doubt_since")?,
                created_at: cells.time("created_at")?,
                payload: cells.get("payload")?,
            })
        },
    )
    .await?;
    leased.sort_by(|a, b| (a.created_at, &a.identifier).cmp(&(b.created_at, &b.identifier)));
    Ok(leased)
}

async fn renew(tx: &Tx, leased: &[Leased], until: Timestamp) -> Result<(), Failed> {
    let identifiers: Vec<&str> = leased.iter().map(|it| it.identifier.as_str()).collect();
    let attempts: Vec<i64> = leased.iter().map(|it| i64::from(it.attempts)).collect();
    rows::run(
        tx,
        "UPDATE outbox SET next_attempt_at = $3
         FROM unnest($1::text[], $2::bigint[]) AS held (identifier, attempts)
         WHERE outbox.identifier = held.identifier AND outbox.attempts = held.attempts AND status = 'pending'
           AND lane IS NULL",
        params![identifiers, attempts, until.micros()],
    )
    .await?;
    Ok(())
}

async fn finish(tx: &Tx, finished: &[Finished], now: Timestamp) -> Result<(), Failed> {
    let mut sent = Vec::new();
    for it in finished {
        if !end(tx, it, now).await? {
            continue;
        }
        enqueue(tx, &it.tell).await?;
        if it.ending == Ending::Sent {
            sent.push(it.identifier.as_str());
        }
    }
    if sent.is_empty() {
        return Ok(());
    }
    rows::run(
        tx,
        "DELETE FROM outbox_payloads WHERE identifier = ANY ($1)",
        params![sent],
    )
    .await?;
    stripe::note_told(tx, &sent).await
}

/// Whether it is written down: an attempt whose lease was lost to another is not.
async fn end(tx: &Tx, finished: &Finished, now: Timestamp) -> Result<bool, Failed> {
    let identifier = finished.identifier.as_str();
    let attempts = i64::from(finished.attempts);
    let (status, error, next, ended_at) = match &finished.ending {
        Ending::Forgotten => {
            let forgotten = rows::run(
                tx,
                "DELETE FROM outbox WHERE identifier = $1 AND attempts = $2 AND status = 'pending'",
                params![identifier, attempts],
            )
            .await?;
            return Ok(forgotten > 0);
        }
        Ending::Retry { at, error } => (Status::Pending, Some(error), Some(at.micros()), None),
        Ending::Sent => (Status::Sent, None, None, Some(now.micros())),
        Ending::Uncertain { error } => (Status::Uncertain, Some(error), None, Some(now.micros())),
        Ending::Dead { error } => (Status::Dead, Some(error), None, Some(now.micros())),
    };
    let changed = rows::run(
        tx,
        "UPDATE outbox SET status = $3, last_error = $4, next_attempt_at = $5, finished_at = $6, doubt_since = $7
         WHERE identifier = $1 AND attempts = $2 AND status = 'pending'",
        params![
            identifier,
            attempts,
            status.as_str(),
            error.map(|error| rows::text(error)),
            next,
            ended_at,
            micros(finished.doubt_since),
        ],
    )
    .await?;
    Ok(changed > 0)
}

async fn replay(
    tx: &Tx,
    identifier: &str,
    longest_lease: Duration,
    by: &Actor,
) -> Result<Replaying, Failed> {
    // A lease that has begun is seen below, and one that begins later sees this.
    rows::lock(tx, LOCK).await?;
    let find = async || {
        rows::find(
            tx,
            TABLE,
            "SELECT outbox.*, slug FROM outbox LEFT JOIN tenants USING (tenant_id) WHERE identifier = $1",
            params![identifier],
            read,
        ).await
    };
    let Some(found) = find().await? else {
        return Ok(Replaying::NotFound);
    };
    if !matches!(found.status, Status::Dead | Status::Uncertain) {
        return Ok(Replaying::NotEnded(found));
    }
    let shown =
        |status: Status| Some(json!({ "kind": found.kind.as_str(), "status": status.as_str() }));
    Change {
        action: "outbox.replay",
        target: identifier,
        before: shown(found.status),
        after: shown(Status::Pending),
    }
    .note(tx, by)
    .await?;
    rows::run(
        tx,
        "UPDATE outbox SET status = 'pending', attempts = 0, finished_at = NULL, next_attempt_at = greatest($2, (
             SELECT max(other.next_attempt_at) FROM outbox AS other
             WHERE other.kind = outbox.kind AND other.lane = outbox.lane AND other.status = 'pending'
               AND other.next_attempt_at <= $3))
         WHERE identifier = $1",
        params![
            identifier,
            by.at.micros(),
            by.at.plus(longest_lease).micros()
        ],
    ).await?;
    Ok(find()
        .await?
        .map_or(Replaying::NotFound, Replaying::Replayed))
}

fn attempts(cells: &Cells<'_>) -> Result<u32, Failed> {
    let attempts: i64 = cells.get("attempts")?;
    cells.check("attempts", u32::try_from(attempts))
}

fn feature(cells: &Cells<'_>) -> Result<Option<FeatureKey>, Failed> {
    let name: Option<String> = cells.get("feature_key")?;
    name.map(|_| cells.parse("feature_key")).transpose()
}

fn kind(cells: &Cells<'_>) -> Result<Kind, Failed> {
    cells.one_of("kind", &Kind::ALL, Kind::as_str)
}

fn status(cells: &Cells<'_>) -> Result<Status, Failed> {
    cells.one_of("status", &Status::ALL, Status::as_str)
}

fn read(cells: &Cells<'_>) -> Result<OutboxEntry, Failed> {
    Ok(OutboxEntry {
        identifier: cells.get("identifier")?,
        kind: kind(cells)?,
        topic: cells.get("topic")?,
        tenant: cells.optional_uuid("tenant_id")?.map(TenantId::new),
        tenant_slug: cells.get("slug")?,
        feature: feature(cells)?,
        value: cells.optional_quantity("value")?,
        status: status(cells)?,
        attempts: attempts(cells)?,
        last_error: cells.get("last_error")?,
        about_at: cells.optional_time("about_at")?,
        next_attempt_at: cells.optional_time("next_attempt_at")?,
        created_at: cells.time("created_at")?,
    })
}
