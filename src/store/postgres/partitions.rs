//! The months that usage events are kept in.
//!
//! An event lies in the month that its id begins with, if it is one of version 7: the month follows from the id, so the primary
//! key of all partitions together keeps ids unique. Ids of another version lie in a partition of their own.

use std::{
    collections::BTreeSet,
    ops::Range,
    sync::{Mutex, PoisonError},
};

use uuid::Uuid;

use super::{
    Failed, PostgresStore,
    pool::Tx,
    rows::{self, params},
};
use crate::{
    domain::{ids::EventId, time::Timestamp},
    store::{StoreError, StoreResult},
};

/// Held while partitions are made or dropped, so that replicas do it one after the other.
const LOCK: i64 = 0x746f_6c6c_6d6f_6e74;
/// The time of ids that have none.
const TIMELESS: i64 = -1;

/// The time that an id begins with, ms since 1970; [`TIMELESS`] for one that has none.
pub(super) fn id_time(id: Uuid) -> i64 {
    if id.get_version_num() != 7 {
        return TIMELESS;
    }
    let bytes = id.as_bytes();
    bytes[..6]
        .iter()
        .fold(0, |time, byte| (time << 8) | i64::from(*byte))
}

/// A calendar month in UTC.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Month {
    /// ms since 1970; the first one excluded.
    start: i64,
    end: i64,
    /// Of its table.
    name: String,
}

impl Month {
    fn of(time: i64) -> Self {
        let start = Timestamp::from_micros(time.saturating_mul(1_000)).start_of_month();
        let day = start.to_string();
        let mut parts = day.splitn(3, '-');
        let (year, month) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        Self {
            start: start.micros() / 1_000,
            end: start.plus_months(1).micros() / 1_000,
            name: format!("usage_events_{year}_{month}"),
        }
    }

    fn contains(&self, time: i64) -> bool {
        self.start <= time && time < self.end
    }
}

/// Which months are known to be there.
#[derive(Default)]
pub(super) struct Partitions(Mutex<BTreeSet<Month>>);

impl Partitions {
    /// Those of these ids that are not known to be there.
    fn missing(&self, ids: impl Iterator<Item = Uuid>) -> Vec<Month> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut missing: Vec<Month> = Vec::new();
        let mut last: Option<Range<i64>> = None;
        for time in ids.map(id_time).filter(|time| *time != TIMELESS) {
            if last.as_ref().is_some_and(|month| month.contains(&time)) {
                continue; // nearly always
            }
            let is_there = known.iter().chain(&missing).find(|it| it.contains(time));
            let month = match is_there {
                Some(month) => month.clone(),
                None => {
                    let month = Month::of(time);
                    missing.push(month.clone());
                    month
                }
            };
            last = Some(month.start..month.end);
        }
        missing
    }

    fn add(&self, months: Vec<Month>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(months);
    }

    fn forget(&self) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.clear();
    }
}

impl PostgresStore {
    /// Makes the months that events of these ids belong in, where they are not there.
    pub(super) async fn ensure_months(
        &self,
        ids: impl Iterator<Item = EventId>,
    ) -> StoreResult<()> {
        let missing = self.partitions.missing(ids.map(EventId::uuid));
        if missing.is_empty() {
            return Ok(());
        }
        let months = missing.as_slice();
        self.write_at_leisure("usage.make_months", |tx| async move {
            for month in months {
                make(&tx, month).await?;
            }
            Ok(())
        })
        .await?;
        self.partitions.add(missing);
        Ok(())
    }

    /// Has the months looked for again: another replica may have dropped one that this one knew.
    pub(super) fn forget_months(&self) {
        self.partitions.forget();
    }

    /// Drops one month of which every event is recorded and admitted before `before`; about how many that were. `None` if
    /// there is no such month.
    pub(super) async fn drop_old_month(&self, before: Timestamp) -> StoreResult<Option<u64>> {
        let dropped = self
            .write_at_leisure("usage.drop_month", |tx| async move {
                drop_old_month(&tx, before).await
            })
            .await;
        match dropped {
            // Somebody reads: it will go another time.
            Err(StoreError::Unavailable(why)) if why.contains("(55P03)") => {
                tracing::debug!(%why, "a month of old usage can't be dropped yet");
                Ok(None)
            }
            dropped => {
                let dropped = dropped?;
                if dropped.is_some() {
                    self.forget_months();
                }
                Ok(dropped)
            }
        }
    }
}

/// The parent is not locked against those who read and write: a table is made first and attached then.
pub(super) async fn make_for(tx: &Tx, ids: impl Iterator<Item = Uuid>) -> Result<(), Failed> {
    for month in Partitions::default().missing(ids) {
        make(tx, &month).await?;
    }
    Ok(())
}

async fn make(tx: &Tx, month: &Month) -> Result<(), Failed> {
    rows::lock(tx, LOCK).await?;
    let Month { start, end, name } = month;
    if rows::exists(
        tx,
        "SELECT 1 WHERE to_regclass($1) IS NOT NULL",
        params![name],
    )
    .await?
    {
        return Ok(());
    }
    tx.batch_execute(&format!(
        "CREATE TABLE {name} (LIKE usage_events INCLUDING ALL);
         ALTER TABLE {name} ADD CONSTRAINT {name}_month CHECK (id_time >= {start} AND id_time < {end});
         ALTER TABLE usage_events ATTACH PARTITION {name} FOR VALUES FROM ({start}) TO ({end});
         ALTER TABLE {name} DROP CONSTRAINT {name}_month;"
    ))
    .await?;
    Ok(())
}

/// The months that are there, the oldest first.
async fn list(tx: &Tx) -> Result<Vec<Month>, Failed> {
    let names: Vec<String> = rows::list(
        tx,
        "pg_inherits",
        "SELECT relname::text AS name FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
         WHERE inhparent = 'usage_events'::regclass AND relname ~ '^usage_events_[0-9]{4,}_[0-9]{2}$'
         ORDER BY relname",
        params![],
        |cells| cells.get("name"),
    )
    .await?;
    let month = |name: &String| {
        let day = name.strip_prefix("usage_events_")?.replace('_', "-");
        let start: Timestamp = format!("{day}-01T00:00:00Z").parse().ok()?;
        Some(Month::of(start.micros() / 1_000))
    };
    Ok(names.iter().filter_map(month).collect())
}

async fn drop_old_month(tx: &Tx, before: Timestamp) -> Result<Option<u64>, Failed> {
    rows::lock(tx, LOCK).await?;
    let before_ms = before.micros().div_euclid(1_000);
    for Month { end, name, .. } in list(tx).await? {
        if before_ms < end {
            return Ok(None);
        }
        let is_needed = rows::exists(
            tx,
            &format!("SELECT 1 FROM {name} WHERE recorded_at >= $1 OR admitted_at >= $1 LIMIT 1"),
            params![before.micros()],
        )
        .await?;
        if is_needed {
            continue;
        }
        let rows = rows::find(
            tx,
            "pg_class",
            "SELECT greatest(reltuples, 0)::bigint AS rows FROM pg_class WHERE oid = to_regclass($1)",
            params![name],
            |cells| cells.get::<i64>("rows"),
        )
        .await?;
        // Sums can't cut an hour of before any more.
        rows::run(
            tx,
            "UPDATE usage_horizon SET pruned_until = greatest(pruned_until, $1)",
            params![before.micros()],
        )
        .await?;
        // Whoever reads at length is not waited for: all who come after would wait behind this.
        tx.batch_execute(&format!(
            "SET LOCAL lock_timeout = '500ms';
             ALTER TABLE usage_events DETACH PARTITION {name};
             DROP TABLE {name};"
        ))
        .await?;
        tracing::info!(code = "usage_month_dropped", month = %name, "usage past its retention was dropped");
        return Ok(Some(u64::try_from(rows.unwrap_or(0)).unwrap_or(0)));
    }
    Ok(None)
}

/// Events of ids from this time on, ms since 1970, are deleted row by row; months that begin before `before` go whole.
pub(super) async fn first_by_row(tx: &Tx, before: Timestamp) -> Result<i64, Failed> {
    let before_ms = before.micros().div_euclid(1_000);
    let months = list(tx).await?;
    let due = months.iter().filter(|month| month.start <= before_ms);
    Ok(due.map(|month| month.end).max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().micros() / 1_000
    }

    #[test]
    fn a_month_follows_from_an_id_that_has_a_time() {
        let time = ms("2026-02-28T23:59:59.999Z");
        let id = Uuid::from_u128((u128::try_from(time).unwrap() << 80) | (7 << 76) | (2 << 62) | 5);
        assert_eq!(id_time(id), time);
        let month = Month::of(id_time(id));
        assert_eq!(month.name, "usage_events_2026_02");
        assert_eq!(
            (month.start, month.end),
            (ms("2026-02-01T00:00:00Z"), ms("2026-03-01T00:00:00Z"))
        );
        assert_eq!(id_time(Uuid::from_u128(5)), TIMELESS);
        assert_eq!(id_time(Uuid::new_v5(&Uuid::NAMESPACE_URL, b"x")), TIMELESS);
    }

    #[test]
    fn months_are_asked_for_once() {
        let partitions = Partitions::default();
        let id = |time: i64| {
            Uuid::from_u128((u128::try_from(time).unwrap() << 80) | (7 << 76) | (2 << 62))
        };
        let ids = [
            ms("2026-01-31T00:00:00Z"),
            ms("2026-02-01T00:00:00Z"),
            ms("2026-01-01T00:00:00Z"),
        ];
        let missing = partitions.missing(ids.map(id).into_iter());
        let names: Vec<_> = missing.iter().map(|month| month.name.as_str()).collect();
        assert_eq!(names, ["usage_events_2026_01", "usage_events_2026_02"]);
        partitions.add(missing);
        assert!(partitions.missing(ids.map(id).into_iter()).is_empty());
    }
}
