//! The audit log.

use futures_util::future::BoxFuture;
use rusqlite::{Transaction, params};
use serde_json::Value;

use super::{
    Failed, SqliteStore,
    rows::{self, Cells, micros},
};
use crate::{
    domain::administrator::Actor,
    store::{
        StoreResult,
        audit::{AuditEntry, AuditFilter, AuditStore, NewAudit},
    },
};

impl AuditStore for SqliteStore {
    fn list_audit(
        &self,
        before_id: Option<i64>,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<AuditEntry>>> {
        Box::pin(self.read("audit.list", move |tx| {
            rows::list(
                tx,
                "audit_log",
                "SELECT * FROM audit_log WHERE audit_id < ?1 ORDER BY audit_id DESC LIMIT ?2",
                params![before_id.unwrap_or(i64::MAX), rows::limit(limit)],
                read_entry,
            )
        }))
    }

    fn search_audit<'a>(
        &'a self,
        filter: &'a AuditFilter,
        before_id: Option<i64>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<AuditEntry>>> {
        let filter = filter.clone();
        Box::pin(self.read_much("audit.search", move |tx| {
            rows::list(
                tx,
                "audit_log",
                "SELECT * FROM audit_log
                 WHERE audit_id < ?1 AND (?3 IS NULL OR actor = ?3) AND (?4 IS NULL OR target = ?4)
                   AND (?5 IS NULL OR action = ?5 OR substr(action, 1, length(?5) + 1) = ?5 || '.')
                   AND (?6 IS NULL OR at >= ?6) AND (?7 IS NULL OR at < ?7)
                 ORDER BY audit_id DESC LIMIT ?2",
                params![
                    before_id.unwrap_or(i64::MAX),
                    rows::limit(limit),
                    filter.actor,
                    filter.target,
                    filter.action,
                    micros(filter.since),
                    micros(filter.until),
                ],
                read_entry,
            )
        }))
    }

    fn note<'a>(&'a self, entry: &'a NewAudit) -> BoxFuture<'a, StoreResult<()>> {
        let entry = entry.clone();
        Box::pin(self.write("audit.note", move |tx| {
            Change {
                action: entry.action,
                target: &entry.target,
                before: entry.before,
                after: entry.after,
            }
            .note(tx, &entry.by)
        }))
    }
}

fn read_entry(cells: &Cells<'_>) -> Result<AuditEntry, Failed> {
    Ok(AuditEntry {
        id: cells.get("audit_id")?,
        by: Actor {
            name: cells.get("actor")?,
            address: cells.get("address")?,
            at: cells.time("at")?,
        },
        action: cells.get("action")?,
        target: cells.get("target")?,
        before: cells.optional_json("before")?,
        after: cells.optional_json("after")?,
    })
}

/// A change as the audit log tells it. Its row goes in **before** the change: the change feed takes its time from it.
pub(super) struct Change<'a> {
    pub(super) action: &'static str,
    pub(super) target: &'a str,
    pub(super) before: Option<Value>,
    pub(super) after: Option<Value>,
}

impl Change<'_> {
    pub(super) fn note(self, tx: &Transaction<'_>, by: &Actor) -> Result<(), Failed> {
        rows::run(
            tx,
            "INSERT INTO audit_log (at, actor, address, action, target, before, after)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                by.at.micros(),
                by.name,
                by.address,
                self.action,
                self.target,
                self.before.map(|value| value.to_string()),
                self.after.map(|value| value.to_string()),
            ],
        )?;
        Ok(())
    }
}
