//! The outbox.

use std::time::Duration;

use futures_util::future::BoxFuture;
use rusqlite::{Transaction, params};
use serde_json::json;

use super::{
    Failed, SqliteStore,
    audit::Change,
    rows::{self, Cells, blob, micros, units},
    stripe,
};
use crate::{
    domain::{administrator::Actor, feature::FeatureKey, ids::TenantId, time::Timestamp},
    store::{
        StoreResult,
        outbox::{
            Ending, Finished, Kind, Lease, Leased, NewEntry, OutboxEntry, OutboxFilter,
            OutboxStore, Replaying, Status,
        },
    },
};

const TABLE: &str = "outbox";

impl OutboxStore for SqliteStore {
    fn enqueue<'a>(&'a self, entries: &'a [NewEntry]) -> BoxFuture<'a, StoreResult<u64>> {
        let entries = entries.to_vec();
        Box::pin(self.write("outbox.enqueue", move |tx| enqueue(tx, &entries)))
    }

    fn lease(&self, asked: Lease) -> BoxFuture<'_, StoreResult<Vec<Leased>>> {
        Box::pin(async move {
            // Most looks find nothing, and a look must not keep the one writer from its work.
            let found = self.read("outbox.look", move |tx| look(tx, asked)).await?;
            if found.is_empty() {
                return Ok(Vec::new());
            }
            self.write("outbox.lease", move |tx| lease(tx, asked, &found))
                .await
        })
    }

    fn renew<'a>(
        &'a self,
        leased: &'a [Leased],
        until: Timestamp,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let held = leased.iter().map(|it| (it.identifier.clone(), it.attempts));
        let held: Vec<(String, u32)> = held.collect();
        Box::pin(self.write("outbox.renew", move |tx| {
            held.iter()
                .try_for_each(|(identifier, attempts)| renew(tx, identifier, *attempts, until))
        }))
    }

    fn finish<'a>(
        &'a self,
        finished: &'a [Finished],
        now: Timestamp,
    ) -> BoxFuture<'a, StoreResult<()>> {
        let finished = finished.to_vec();
        Box::pin(self.write("outbox.finish", move |tx| {
            finished.iter().try_for_each(|it| finish(tx, it, now))
        }))
    }

    fn list_outbox<'a>(
        &'a self,
        filter: &'a OutboxFilter,
        before: Option<(Timestamp, String)>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<OutboxEntry>>> {
        let filter = filter.clone();
        let (at, identifier) = before.unwrap_or((Timestamp::NEVER, String::new()));
        Box::pin(self.read("outbox.list", move |tx| {
            rows::list(
                tx,
                TABLE,
                "SELECT outbox.*, slug FROM outbox LEFT JOIN tenants USING (tenant_id)
                 WHERE (outbox.created_at, identifier) < (?1, ?2)
                   AND (?4 IS NULL OR kind = ?4) AND (?5 IS NULL OR outbox.status = ?5)
                   AND (?6 IS NULL OR outbox.tenant_id = ?6)
                 ORDER BY outbox.created_at DESC, identifier DESC LIMIT ?3",
                params![
                    at.micros(),
                    identifier,
                    rows::limit(limit),
                    filter.kind.map(Kind::as_str),
                    filter.status.map(Status::as_str),
                    filter.tenant.map(|tenant| blob(tenant.uuid())),
                ],
                read,
            )
        }))
    }

    fn replay<'a>(
        &'a self,
        identifier: &'a str,
        longest_lease: Duration,
        by: &'a Actor,
    ) -> BoxFuture<'a, StoreResult<Replaying>> {
        let (identifier, by) = (identifier.to_owned(), by.clone());
        Box::pin(self.write("outbox.replay", move |tx| {
            replay(tx, &identifier, longest_lease, &by)
        }))
    }

    fn count_outbox(&self) -> BoxFuture<'_, StoreResult<Vec<(Kind, Status, u64)>>> {
        Box::pin(self.read("outbox.count", move |tx| {
            rows::list(
                tx,
                TABLE,
                "SELECT kind, status, count(*) AS count FROM outbox GROUP BY kind, status",
                [],
                |cells| {
                    let count: i64 = cells.get("count")?;
                    Ok((
                        kind(cells)?,
                        status(cells)?,
                        u64::try_from(count).unwrap_or_default(),
                    ))
                },
            )
        }))
    }

    fn prune_outbox(&self, before: Timestamp, limit: usize) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(self.write("outbox.prune", move |tx| {
            rows::run(
                tx,
                "DELETE FROM outbox WHERE identifier IN (
                     SELECT identifier FROM outbox WHERE status IN ('sent', 'confirmed') AND finished_at < ?1
                     ORDER BY finished_at LIMIT ?2
                 )",
                params![before.micros(), rows::limit(limit)],
            )
        }))
    }
}

/// In a transaction of the caller's: what is to be told goes in with what it is about.
pub(super) fn enqueue(tx: &Transaction<'_>, entries: &[NewEntry]) -> Result<u64, Failed> {
    let mut added = 0;
    for entry in entries {
        let inserted = rows::run(
            tx,
            "INSERT INTO outbox (identifier, kind, topic, tenant_id, feature_key, value, lane, status, next_attempt_at,
                                 created_at, about_at, about_period)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'pending', ?8, ?8, ?9, ?10) ON CONFLICT DO NOTHING",
            params![
                entry.identifier,
                entry.kind.as_str(),
                entry.topic,
                entry.tenant.map(|tenant| blob(tenant.uuid())),
                entry.feature.as_ref().map(|feature| feature.as_str()),
                units(entry.value),
                entry.lane,
                entry.created_at.micros(),
                entry.about.map(|about| about.at.micros()),
                entry.about.map(|about| about.period_start.micros()),
            ],
        )?;
        if inserted > 0 {
            rows::run(
                tx,
                "INSERT INTO outbox_payloads (identifier, payload) VALUES (?1, ?2)",
                params![entry.identifier, entry.payload],
            )?;
        }
        added += inserted;
    }
    Ok(added)
}

/// What can be leased. It goes from lane to lane by each one's oldest entry: while the other side takes nothing, there
/// are a few hundred lanes and hundreds of thousands of entries behind, all of them due.
pub(super) const LOOK: &str = "
    WITH RECURSIVE heads (lane, identifier, next_attempt_at) AS (
        SELECT * FROM (
            SELECT lane, identifier, next_attempt_at FROM outbox
            WHERE kind = ?1 AND lane IS NOT NULL AND status = 'pending'
            ORDER BY lane, created_at, identifier LIMIT 1
        )
        UNION ALL
        SELECT next.lane, next.identifier, next.next_attempt_at
        FROM heads CROSS JOIN outbox AS next ON next.identifier = (
            SELECT identifier FROM outbox
            WHERE kind = ?1 AND lane > heads.lane AND lane IS NOT NULL AND status = 'pending'
            ORDER BY lane, created_at, identifier LIMIT 1
        )
    )
    SELECT identifier, next_attempt_at FROM heads WHERE next_attempt_at <= ?2
    UNION ALL
    SELECT * FROM (
        SELECT identifier, next_attempt_at FROM outbox
        WHERE kind = ?1 AND lane IS NULL AND next_attempt_at <= ?2
        ORDER BY next_attempt_at, identifier LIMIT ?3
    )
    ORDER BY next_attempt_at, identifier LIMIT ?3";

fn look(tx: &Transaction<'_>, asked: Lease) -> Result<Vec<String>, Failed> {
    rows::list(
        tx,
        TABLE,
        LOOK,
        params![
            asked.kind.as_str(),
            asked.now.micros(),
            rows::limit(asked.limit)
        ],
        |cells| cells.get("identifier"),
    )
}

/// Of what was found a moment ago: another may have been faster, and a replay may have put an older one in its lane.
fn lease(tx: &Transaction<'_>, asked: Lease, found: &[String]) -> Result<Vec<Leased>, Failed> {
    let mut leased = Vec::with_capacity(found.len());
    for identifier in found {
        leased.extend(find_due(tx, identifier, asked.now)?);
    }
    for it in &leased {
        rows::run(
            tx,
            "UPDATE outbox SET attempts = ?2, next_attempt_at = ?3, doubt_since = coalesce(doubt_since, ?4)
             WHERE identifier = ?1",
            params![
                it.identifier,
                it.attempts,
                asked.until.micros(),
                asked.now.micros()
            ],
        )?;
    }
    leased.sort_by(|a, b| (a.created_at, &a.identifier).cmp(&(b.created_at, &b.identifier)));
    Ok(leased)
}

fn find_due(
    tx: &Transaction<'_>,
    identifier: &str,
    now: Timestamp,
) -> Result<Option<Leased>, Failed> {
    rows::find(
        tx,
        TABLE,
        "SELECT identifier, topic, tenant_id, feature_key, value, lane, about_at, attempts + 1 AS attempts, doubt_since,
                created_at, payload
         FROM outbox AS due JOIN outbox_payloads USING (identifier)
         WHERE identifier = ?1 AND next_attempt_at <= ?2 AND (lane IS NULL OR NOT EXISTS (
             SELECT 1 FROM outbox AS ahead
             WHERE ahead.kind = due.kind AND ahead.lane = due.lane AND ahead.status = 'pending'
               AND (ahead.created_at, ahead.identifier) < (due.created_at, due.identifier)
         ))",
        params![identifier, now.micros()],
        |cells| {
            Ok(Leased {
                identifier: cells.get("identifier")?,
                topic: cells.get("topic")?,
                tenant: cells.optional_uuid("tenant_id")?.map(TenantId::new),
                feature: feature(cells)?,
                value: cells.optional_quantity("value")?,
                lane: cells.get("lane")?,
                about_at: cells.optional_time("about_at")?,
                attempts: cells.get("attempts")?,
                doubt_since: cells.optional_time("doubt_since")?,
                created_at: cells.time("created_at")?,
                payload: cells.get("payload")?,
            })
        },
    )
}

fn renew(
    tx: &Transaction<'_>,
    identifier: &str,
    attempts: u32,
    until: Timestamp,
) -> Result<(), Failed> {
    rows::run(
        tx,
        "UPDATE outbox SET next_attempt_at = ?3
         WHERE identifier = ?1 AND attempts = ?2 AND status = 'pending' AND lane IS NULL",
        params![identifier, attempts, until.micros()],
    )?;
    Ok(())
}

fn finish(tx: &Transaction<'_>, finished: &Finished, now: Timestamp) -> Result<(), Failed> {
    let identifier = &finished.identifier;
    let (status, error, next, ended_at) = match &finished.ending {
        Ending::Forgotten => {
            let forgotten = rows::run(
                tx,
                "DELETE FROM outbox WHERE identifier = ?1 AND attempts = ?2 AND status = 'pending'",
                params![identifier, finished.attempts],
            )?;
            if forgotten > 0 {
                enqueue(tx, &finished.tell)?;
            }
            return Ok(());
        }
        Ending::Retry { at, error } => (Status::Pending, Some(error), Some(at.micros()), None),
        Ending::Sent => (Status::Sent, None, None, Some(now.micros())),
        Ending::Uncertain { error } => (Status::Uncertain, Some(error), None, Some(now.micros())),
        Ending::Dead { error } => (Status::Dead, Some(error), None, Some(now.micros())),
    };
    let changed = rows::run(
        tx,
        "UPDATE outbox SET status = ?3, last_error = ?4, next_attempt_at = ?5, finished_at = ?6, doubt_since = ?7
         WHERE identifier = ?1 AND attempts = ?2 AND status = 'pending'",
        params![
            identifier,
            finished.attempts,
            status.as_str(),
            error,
            next,
            ended_at,
            micros(finished.doubt_since)
        ],
    )?;
    if changed == 0 {
        return Ok(());
    }
    enqueue(tx, &finished.tell)?;
    if status == Status::Sent {
        rows::run(
            tx,
            "DELETE FROM outbox_payloads WHERE identifier = ?1",
            [identifier],
        )?;
        stripe::note_told(tx, identifier)?;
    }
    Ok(())
}

fn replay(
    tx: &Transaction<'_>,
    identifier: &str,
    longest_lease: Duration,
    by: &Actor,
) -> Result<Replaying, Failed> {
    let find = || {
        rows::find(
            tx,
            TABLE,
            "SELECT outbox.*, slug FROM outbox LEFT JOIN tenants USING (tenant_id) WHERE identifier = ?1",
            [identifier],
            read,
        )
    };
    let Some(found) = find()? else {
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
    .note(tx, by)?;
    rows::run(
        tx,
        "UPDATE outbox SET status = 'pending', attempts = 0, finished_at = NULL, next_attempt_at = max(?2, coalesce((
             SELECT max(other.next_attempt_at) FROM outbox AS other
             WHERE other.kind = outbox.kind AND other.lane = outbox.lane AND other.status = 'pending'
               AND other.next_attempt_at <= ?3), ?2))
         WHERE identifier = ?1",
        params![
            identifier,
            by.at.micros(),
            by.at.plus(longest_lease).micros()
        ],
    )?;
    Ok(find()?.map_or(Replaying::NotFound, Replaying::Replayed))
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
        attempts: cells.get("attempts")?,
        last_error: cells.get("last_error")?,
        about_at: cells.optional_time("about_at")?,
        next_attempt_at: cells.optional_time("next_attempt_at")?,
        created_at: cells.time("created_at")?,
    })
}
