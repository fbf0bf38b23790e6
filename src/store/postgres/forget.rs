//! Forgetting an end user, piece by piece: a user of millions of events must not keep everybody's usage from being
//! written meanwhile.
//!
//! A piece is a span of whole hours, and takes events and rollups of those hours together: at every moment rollups are
//! the sums of their events, and all sums are as they were.

use super::{
    Failed, PostgresStore,
    audit::Change,
    pool::Tx,
    rows::{self, params},
    tenant_sums, tenants,
};
use crate::{
    domain::{administrator::Actor, ids::TenantId},
    store::{
        StoreResult,
        rollups::{hour_after, hour_before},
    },
};

/// How many events of the tenant one piece looks at, unless more are of one hour. 20,000 take some 50 ms.
const PIECE: usize = 20_000;
/// Before every hour.
const START: i64 = i64::MIN;

/// Whose name goes, and what comes in its place.
pub(super) struct Forgetting {
    pub(super) tenant: TenantId,
    pub(super) user: String,
    pub(super) replacement: String,
}

/// What became of a piece.
struct Piece {
    replaced: u64,
    /// Where the next one starts; `None` after the last.
    next: Option<i64>,
}

impl PostgresStore {
    /// How many events, rollups, keys, reservations and notices it was.
    pub(super) async fn forget(&self, what: &Forgetting, by: &Actor) -> StoreResult<u64> {
        let begun = self.change("usage.forget_user", |tx| async move {
            begin(&tx, what, by).await
        });
        let Some(mut replaced) = begun.await? else {
            return Ok(0);
        };
        let mut next = Some(START);
        while let Some(start) = next {
            let piece = self.write_at_leisure("usage.forget_user_piece", |tx| async move {
                take_piece(&tx, what, start, PIECE).await
            });
            let piece = piece.await?;
            replaced += piece.replaced;
            next = piece.next;
        }
        Ok(replaced)
    }
}

/// Says in the audit log that it is done, and sees to all that is little; `None` if nothing names the user.
async fn begin(tx: &Tx, what: &Forgetting, by: &Actor) -> Result<Option<u64>, Failed> {
    let stored = tenants::get(tx, what.tenant).await?;
    let is_named = rows::exists(
        tx,
        "SELECT 1 FROM usage_rollups
         WHERE tenant_id = $1 AND feature_key = ANY ($3) AND dimension = 'user' AND value = $2
         UNION ALL
         SELECT 1 FROM keys WHERE tenant_id = $1 AND end_user = $2
         LIMIT 1",
        params![
            what.tenant.uuid(),
            what.user,
            features(tx, what.tenant).await?
        ],
    )
    .await?;
    if !is_named {
        return Ok(None);
    }
    Change {
        action: "user.forget",
        target: stored.slug.as_str(),
        before: None,
        after: Some(serde_json::json!({ "replaced_by": what.replacement })),
    }
    .note(tx, by)
    .await?;
    let places = params![what.tenant.uuid(), what.user, what.replacement];
    let little = [
        "UPDATE keys SET end_user = $3 WHERE tenant_id = $1 AND end_user = $2",
        "UPDATE reservations SET end_user = $3 WHERE tenant_id = $1 AND end_user = $2",
        "UPDATE notices SET subject = $3 WHERE tenant_id = $1 AND scope = 'user' AND subject = $2",
    ];
    let mut replaced = 0;
    for statement in little {
        replaced += rows::run(tx, statement, places).await?;
    }
    Ok(Some(replaced))
}

async fn features(tx: &Tx, tenant: TenantId) -> Result<Vec<String>, Failed> {
    let used = tenant_sums::features(tx, &[tenant]).await?;
    Ok(used
        .iter()
        .map(|(_, feature)| feature.to_string())
        .collect())
}

/// Whole hours from `start` on, of which at least one is taken, and about `most` events looked at.
async fn take_piece(tx: &Tx, what: &Forgetting, start: i64, most: usize) -> Result<Piece, Failed> {
    // Nobody adds to rollups meanwhile: usage of an hour, its event not yet in sight, would be renamed in the one and not
    // in the other.
    tx.batch_execute("LOCK TABLE usage_rollups IN SHARE ROW EXCLUSIVE MODE")
        .await?;
    let tenant = what.tenant.uuid();
    let first_left = rows::find(
        tx,
        "usage_events",
        "SELECT admitted_at FROM usage_events WHERE tenant_id = $1 AND admitted_at >= $2
         ORDER BY admitted_at LIMIT 1 OFFSET $3",
        params![tenant, start, rows::limit(most)],
        |cells| cells.get::<i64>("admitted_at"),
    )
    .await?;
    let next = first_left.map(|at| match hour_before(at) {
        hour if hour > start => hour,
        hour => hour_after(hour.saturating_add(1)),
    });
    let end = next.unwrap_or(i64::MAX);
    let events = rows::run(
        tx,
        "UPDATE usage_events SET end_user = $3
         WHERE tenant_id = $1 AND end_user = $2 AND admitted_at >= $4 AND admitted_at < $5",
        params![tenant, what.user, what.replacement, start, end],
    )
    .await?;
    let rollups = rows::run(
        tx,
        "UPDATE usage_rollups SET value = $3
         WHERE tenant_id = $1 AND feature_key = ANY ($6) AND dimension = 'user' AND value = $2
           AND hour >= $4 AND hour < $5",
        params![
            tenant,
            what.user,
            what.replacement,
            start,
            end,
            features(tx, what.tenant).await?
        ],
    )
    .await?;
    Ok(Piece {
        replaced: events + rollups,
        next,
    })
}
