//! What notices were sent.

use futures_util::future::BoxFuture;
use rusqlite::{Transaction, params};

use super::{
    Failed, SqliteStore, outbox,
    rows::{self, Cells, blob},
};
use crate::{
    domain::{
        feature::FeatureKey,
        ids::TenantId,
        limit::{Scope, Subject},
        time::Timestamp,
        window::WindowKind,
    },
    store::{
        StoreResult,
        notices::{NoticeChange, NoticeKey, NoticeStore, Told},
    },
};

const TABLE: &str = "notices";

impl NoticeStore for SqliteStore {
    fn list_told<'a>(
        &'a self,
        tenant: TenantId,
        subject: &'a Subject,
        at: Timestamp,
    ) -> BoxFuture<'a, StoreResult<Vec<(NoticeKey, Told)>>> {
        let subject = subject.clone();
        Box::pin(self.read("notices.list_told", move |tx| {
            rows::list(
                tx,
                TABLE,
                "SELECT * FROM notices WHERE tenant_id = ?1 AND scope = ?2 AND subject = ?3
                   AND window_start <= ?4 AND ?4 < window_end",
                params![
                    blob(tenant.uuid()),
                    subject.scope().as_str(),
                    name_of(&subject),
                    at.micros()
                ],
                read,
            )
        }))
    }

    fn change_told<'a>(
        &'a self,
        changes: &'a [NoticeChange],
    ) -> BoxFuture<'a, StoreResult<Vec<bool>>> {
        let changes = changes.to_vec();
        Box::pin(self.write("notices.change_told", move |tx| {
            changes.iter().map(|change| make(tx, change)).collect()
        }))
    }

    fn list_ended(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<(NoticeKey, Told)>>> {
        Box::pin(self.read("notices.list_ended", move |tx| {
            rows::list(
                tx,
                TABLE,
                "SELECT *, min(mark) FROM notices AS told
                 WHERE window_end <= ?1 AND feature_key <> '' AND NOT EXISTS (
                     SELECT 1 FROM notices AS ended
                     WHERE ended.mark = 'window_reset' AND ended.window_end = told.window_end
                       AND (ended.tenant_id, ended.scope, ended.subject, ended.feature_key, ended.window)
                         = (told.tenant_id, told.scope, told.subject, told.feature_key, told.window)
                 )
                 GROUP BY tenant_id, scope, subject, feature_key, window, window_end
                 ORDER BY window_end LIMIT ?2",
                params![now.micros(), rows::limit(limit)],
                read,
            )
        }))
    }

    fn prune_told(&self, before: Timestamp, limit: usize) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(self.write("notices.prune_told", move |tx| {
            rows::run(
                tx,
                "DELETE FROM notices
                 WHERE (tenant_id, scope, subject, feature_key, window, window_start, mark) IN (
                     SELECT tenant_id, scope, subject, feature_key, window, window_start, mark
                     FROM notices WHERE window_end < ?1 ORDER BY window_end LIMIT ?2
                 )",
                params![before.micros(), rows::limit(limit)],
            )
        }))
    }
}

fn make(tx: &Transaction<'_>, change: &NoticeChange) -> Result<bool, Failed> {
    let key = &change.key;
    let (tenant, scope) = (blob(key.tenant.uuid()), key.subject.scope().as_str());
    let (subject, feature) = (name_of(&key.subject), feature_of(key));
    let (window, start) = (key.window.as_str(), key.window_start.micros());
    const IT: &str =
        "tenant_id = ?1 AND scope = ?2 AND subject = ?3 AND feature_key = ?4 AND window = ?5
                      AND window_start = ?6 AND mark = ?7";
    let changed = match (change.seen, change.becomes) {
        (None, None) => 0,
        (None, Some(told)) => rows::run(
            tx,
            "INSERT INTO notices (tenant_id, scope, subject, feature_key, window, window_start, mark, window_end,
                                  limit_value, used, told_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT DO NOTHING",
            params![
                tenant,
                scope,
                subject,
                feature,
                window,
                start,
                key.mark,
                told.window_end.micros(),
                told.limit.get(),
                told.used.get(),
                told.at.micros(),
            ],
        )?,
        (Some(seen), None) => rows::run(
            tx,
            &format!("DELETE FROM notices WHERE {IT} AND limit_value = ?8"),
            params![
                tenant,
                scope,
                subject,
                feature,
                window,
                start,
                key.mark,
                seen.get()
            ],
        )?,
        (Some(seen), Some(told)) => rows::run(
            tx,
            &format!(
                "UPDATE notices SET window_end = ?9, limit_value = ?10, used = ?11, told_at = ?12
                 WHERE {IT} AND limit_value = ?8"
            ),
            params![
                tenant,
                scope,
                subject,
                feature,
                window,
                start,
                key.mark,
                seen.get(),
                told.window_end.micros(),
                told.limit.get(),
                told.used.get(),
                told.at.micros(),
            ],
        )?,
    };
    if changed > 0 {
        outbox::enqueue(tx, &change.entries)?;
    }
    Ok(changed > 0)
}

fn name_of(subject: &Subject) -> String {
    match subject {
        Subject::Tenant => String::new(),
        Subject::Key(key) => key.to_string(),
        Subject::User(user) => user.to_string(),
    }
}

fn feature_of(key: &NoticeKey) -> &str {
    key.feature.as_ref().map_or("", FeatureKey::as_str)
}

fn read(cells: &Cells<'_>) -> Result<(NoticeKey, Told), Failed> {
    let scopes = [Scope::Tenant, Scope::Key, Scope::User];
    let subject = match cells.one_of("scope", &scopes, Scope::as_str)? {
        Scope::Tenant => Subject::Tenant,
        Scope::Key => Subject::Key(cells.parse("subject")?),
        Scope::User => Subject::User(cells.get::<String>("subject")?.into()),
    };
    let feature: String = cells.get("feature_key")?;
    let key = NoticeKey {
        tenant: TenantId::new(cells.uuid("tenant_id")?),
        subject,
        feature: if feature.is_empty() {
            None
        } else {
            Some(cells.parse("feature_key")?)
        },
        window: cells.one_of("window", &WindowKind::ALL, WindowKind::as_str)?,
        window_start: cells.time("window_start")?,
        mark: cells.get("mark")?,
    };
    let told = Told {
        window_end: cells.time("window_end")?,
        limit: cells.quantity("limit_value")?,
        used: cells.quantity("used")?,
        at: cells.time("told_at")?,
    };
    Ok((key, told))
}
