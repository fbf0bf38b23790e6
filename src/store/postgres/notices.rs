//! What notices were sent.

use futures_util::future::BoxFuture;

use super::{
    Failed, PostgresStore, outbox,
    pool::Tx,
    rows::{self, Cells, params},
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

impl NoticeStore for PostgresStore {
    fn list_told<'a>(
        &'a self,
        tenant: TenantId,
        subject: &'a Subject,
        at: Timestamp,
    ) -> BoxFuture<'a, StoreResult<Vec<(NoticeKey, Told)>>> {
        Box::pin(self.read("notices.list_told", move |tx| async move {
            rows::list(
                &tx,
                TABLE,
                "SELECT * FROM notices WHERE tenant_id = $1 AND scope = $2 AND subject = $3
                   AND window_start <= $4 AND $4 < window_end",
                params![
                    tenant.uuid(),
                    subject.scope().as_str(),
                    name_of(subject),
                    at.micros()
                ],
                read,
            )
            .await
        }))
    }

    fn change_told<'a>(
        &'a self,
        changes: &'a [NoticeChange],
    ) -> BoxFuture<'a, StoreResult<Vec<bool>>> {
        Box::pin(
            self.write_at_leisure("notices.change_told", move |tx| async move {
                let mut made = Vec::with_capacity(changes.len());
                for change in changes {
                    made.push(make(&tx, change).await?);
                }
                Ok(made)
            }),
        )
    }

    fn list_ended(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<(NoticeKey, Told)>>> {
        Box::pin(self.read_at_leisure("notices.list_ended", move |tx| async move {
            rows::list(
                &tx,
                TABLE,
                "SELECT * FROM (
                     SELECT DISTINCT ON (tenant_id, scope, subject, feature_key, \"window\", window_end) *
                     FROM notices AS told
                     WHERE window_end <= $1 AND feature_key <> '' AND NOT EXISTS (
                         SELECT 1 FROM notices AS ended
                         WHERE ended.mark = 'window_reset' AND ended.window_end = told.window_end
                           AND (ended.tenant_id, ended.scope, ended.subject, ended.feature_key, ended.\"window\")
                             = (told.tenant_id, told.scope, told.subject, told.feature_key, told.\"window\")
                     )
                     ORDER BY tenant_id, scope, subject, feature_key, \"window\", window_end, mark
                 ) AS ended ORDER BY window_end LIMIT $2",
                params![now.micros(), rows::limit(limit)],
                read,
            ).await
        }))
    }

    fn prune_told(&self, before: Timestamp, limit: usize) -> BoxFuture<'_, StoreResult<u64>> {
        Box::pin(
            self.write_at_leisure("notices.prune_told", move |tx| async move {
                rows::run(
                    &tx,
                    "DELETE FROM notices
                 WHERE (tenant_id, scope, subject, feature_key, \"window\", window_start, mark) IN (
                     SELECT tenant_id, scope, subject, feature_key, \"window\", window_start, mark
                     FROM notices WHERE window_end < $1 ORDER BY window_end LIMIT $2
                 )",
                    params![before.micros(), rows::limit(limit)],
                )
                .await
            }),
        )
    }
}

async fn make(tx: &Tx, change: &NoticeChange) -> Result<bool, Failed> {
    let key = &change.key;
    let (tenant, scope) = (key.tenant.uuid(), key.subject.scope().as_str());
    let (subject, feature) = (name_of(&key.subject), feature_of(key));
    let (window, start) = (key.window.as_str(), key.window_start.micros());
    const IT: &str =
        "tenant_id = $1 AND scope = $2 AND subject = $3 AND feature_key = $4 AND \"window\" = $5
                      AND window_start = $6 AND mark = $7";
    let changed = match (change.seen, change.becomes) {
        (None, None) => 0,
        (None, Some(told)) => rows::run(
            tx,
            "INSERT INTO notices (tenant_id, scope, subject, feature_key, \"window\", window_start, mark, window_end,
                                  limit_value, used, told_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING",
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
        ).await?,
        (Some(seen), None) => rows::run(
            tx,
            &format!("DELETE FROM notices WHERE {IT} AND limit_value = $8"),
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
        ).await?,
        (Some(seen), Some(told)) => rows::run(
            tx,
            &format!(
                "UPDATE notices SET window_end = $9, limit_value = $10, used = $11, told_at = $12
                 WHERE {IT} AND limit_value = $8"
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
        ).await?,
    };
    if changed > 0 {
        outbox::enqueue(tx, &change.entries).await?;
    }
    Ok(changed > 0)
}

fn name_of(subject: &Subject) -> String {
    match subject {
        Subject::Tenant => String::new(),
        Subject::Key(key) => key.to_string(),
        Subject::User(user) => rows::text(user).into_owned(),
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
