//! Forgetting an end user, piece by piece: a user of millions of events must not keep everybody's usage from being
//! written meanwhile.
//!
//! A piece is a span of whole hours, and takes events and rollups of those hours together: at every moment rollups are
//! the sums of their events, and all sums are as they were.

use rusqlite::{Transaction, params};

use super::{
    Failed, SqliteStore,
    audit::Change,
    rows::{self, blob},
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
#[derive(Clone)]
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

impl SqliteStore {
    /// How many events, rollups, keys, reservations and notices it was.
    pub(super) async fn forget(&self, what: Forgetting, by: Actor) -> StoreResult<u64> {
        let first = what.clone();
        let begun = self
            .write("usage.forget_user", move |tx| begin(tx, &first, &by))
            .await?;
        let Some(mut replaced) = begun else {
            return Ok(0);
        };
        let mut next = Some(START);
        while let Some(start) = next {
            let what = what.clone();
            let piece = self
                .write("usage.forget_user_piece", move |tx| {
                    take_piece(tx, &what, start, PIECE)
                })
                .await?;
            replaced += piece.replaced;
            next = piece.next;
        }
        Ok(replaced)
    }
}

/// Says in the audit log that it is done, and sees to all that is little; `None` if nothing names the user.
fn begin(tx: &Transaction<'_>, what: &Forgetting, by: &Actor) -> Result<Option<u64>, Failed> {
    let stored = tenants::get(tx, what.tenant)?;
    let is_used = tenant_sums::features(tx, what.tenant)?
        .iter()
        .map(|feature| {
            rows::exists(
                tx,
                "SELECT 1 FROM usage_rollups
                 WHERE tenant_id = ?1 AND feature_key = ?2 AND dimension = 'user' AND value = ?3",
                params![blob(what.tenant.uuid()), feature.as_str(), what.user],
            )
        })
        .try_fold(false, |found, exists| Ok::<_, Failed>(found || exists?))?;
    let is_named = is_used
        || rows::exists(
            tx,
            "SELECT 1 FROM keys WHERE tenant_id = ?1 AND end_user = ?2",
            params![blob(what.tenant.uuid()), what.user],
        )?;
    if !is_named {
        return Ok(None);
    }
    Change {
        action: "user.forget",
        target: stored.slug.as_str(),
        before: None,
        after: Some(serde_json::json!({ "replaced_by": what.replacement })),
    }
    .note(tx, by)?;
    let places = params![blob(what.tenant.uuid()), what.user, what.replacement];
    let little = [
        "UPDATE keys SET end_user = ?3 WHERE tenant_id = ?1 AND end_user = ?2",
        "UPDATE reservations SET end_user = ?3 WHERE tenant_id = ?1 AND end_user = ?2",
        "UPDATE notices SET subject = ?3 WHERE tenant_id = ?1 AND scope = 'user' AND subject = ?2",
    ];
    let replaced = little
        .iter()
        .map(|statement| rows::run(tx, statement, places))
        .sum::<Result<u64, Failed>>()?;
    Ok(Some(replaced))
}

/// Whole hours from `start` on, of which at least one is taken, and about `most` events looked at.
fn take_piece(
    tx: &Transaction<'_>,
    what: &Forgetting,
    start: i64,
    most: usize,
) -> Result<Piece, Failed> {
    let tenant = blob(what.tenant.uuid());
    let first_left = rows::find(
        tx,
        "usage_events",
        "SELECT admitted_at FROM usage_events WHERE tenant_id = ?1 AND admitted_at >= ?2
         ORDER BY admitted_at LIMIT 1 OFFSET ?3",
        params![tenant, start, rows::limit(most)],
        |cells| cells.get::<i64>("admitted_at"),
    )?;
    let next = first_left.map(|at| match hour_before(at) {
        hour if hour > start => hour,
        hour => hour_after(hour.saturating_add(1)),
    });
    let end = next.unwrap_or(i64::MAX);
    let mut replaced = rows::run(
        tx,
        "UPDATE usage_events SET end_user = ?3
         WHERE tenant_id = ?1 AND end_user = ?2 AND admitted_at >= ?4 AND admitted_at < ?5",
        params![tenant, what.user, what.replacement, start, end],
    )?;
    for feature in tenant_sums::features(tx, what.tenant)? {
        replaced += rows::run(
            tx,
            "UPDATE usage_rollups SET value = ?3
             WHERE tenant_id = ?1 AND feature_key = ?6 AND dimension = 'user' AND value = ?2
               AND hour >= ?4 AND hour < ?5",
            params![
                tenant,
                what.user,
                what.replacement,
                start,
                end,
                feature.as_str()
            ],
        )?;
    }
    Ok(Piece { replaced, next })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::usage::Tell;
    use crate::{
        clock::new_id,
        domain::{
            feature::FeatureKey,
            ids::EventId,
            quantity::Quantity,
            tenant::Tenant,
            time::Timestamp,
            usage::{Quantities, Source, UsageEvent},
            window::Window,
        },
        store::{
            catalogue::CatalogueStore as _,
            usage::{Dimension, JournalPosition, Seq, UsageStore as _},
        },
    };

    fn event(tenant: TenantId, user: &str, at: &str) -> UsageEvent {
        let at: Timestamp = at.parse().unwrap();
        UsageEvent {
            event_id: EventId::new(new_id()),
            request_id: String::new(),
            source: Source::Chat,
            tenant_id: tenant,
            key_id: None,
            user: user.to_owned(),
            model: None,
            quantities: Quantities::default()
                .with(FeatureKey::Messages, Quantity::ONE)
                .with("pages".parse().unwrap(), Quantity::new(3)),
            estimated: false,
            reason: None,
            price_id: None,
            admitted_at: at,
            recorded_at: at,
        }
    }

    #[tokio::test]
    async fn every_piece_leaves_rollups_and_events_agreeing_and_the_last_leaves_no_name() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("tollgate.db")).unwrap();
        let by = Actor {
            name: "ada".to_owned(),
            address: None,
            at: Timestamp::EPOCH,
        };
        let acme = Tenant {
            tenant_id: TenantId::new(new_id()),
            slug: "acme".parse().unwrap(),
            name: "Acme".parse().unwrap(),
            created_at: Timestamp::EPOCH,
            subscription: None,
            overrides: vec![],
        };
        store.create_tenant(&acme, &by).await.unwrap();
        let tenant = acme.tenant_id;
        // One hour with more events than a piece looks at, one without any of the user's, and one of a single event.
        let events = [
            event(tenant, "bob", "2026-01-01T10:00:00Z"),
            event(tenant, "eve", "2026-01-01T10:10:00Z"),
            event(tenant, "bob", "2026-01-01T10:59:59Z"),
            event(tenant, "eve", "2026-01-01T11:00:00Z"),
            event(tenant, "eve", "2026-01-01T12:00:00Z"),
            event(tenant, "bob", "2026-01-03T00:00:00Z"),
        ];
        let drained = JournalPosition {
            journal: new_id(),
            seq: Seq(6),
        };
        store
            .record(events.as_slice().into(), drained, Tell::default())
            .await
            .unwrap();
        let what = Forgetting {
            tenant,
            user: "bob".to_owned(),
            replacement: "forgotten-1".to_owned(),
        };
        let window = Window::new(Timestamp::EPOCH, Timestamp::NEVER).unwrap();
        let users = async || {
            let features = [FeatureKey::Messages];
            let totals = store.totals(tenant, &features, window, Some(Dimension::User));
            let totals = totals.await.unwrap().totals;
            let user = |total: crate::store::usage::Total| {
                (total.by.unwrap_or_default(), total.quantity.get())
            };
            totals.into_iter().map(user).collect::<Vec<_>>()
        };
        let mut pieces = vec![];
        let mut next = Some(START);
        while let Some(start) = next {
            let what = what.clone();
            let piece = store
                .write("test", move |tx| take_piece(tx, &what, start, 2))
                .await
                .unwrap();
            assert_eq!(store.check_rollups().await, Ok(vec![]));
            let sum: i64 = users().await.iter().map(|(_, count)| count).sum();
            assert_eq!(sum, 6);
            pieces.push(piece.replaced);
            next = piece.next;
        }
        assert!(pieces.len() >= 3, "{pieces:?}");
        // Three events, and for two hours a rollup of each of two features.
        assert_eq!(pieces.iter().sum::<u64>(), 3 + 4, "{pieces:?}");
        assert_eq!(
            users().await,
            [("eve".to_owned(), 3), ("forgotten-1".to_owned(), 3)]
        );
    }
}
