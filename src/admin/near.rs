//! Who is near a limit or over it, as rows: tenants, and single keys and end users of them.
//!
//! Who that may be says a picture of all, which may be a moment old; how they stand is asked of the ledger again.

use std::cmp::Reverse;

use futures_util::future::try_join_all;

use super::{
    chart::Level,
    format::{amount, percent},
    tenant::display_name,
};
use crate::{
    app::App,
    domain::{
        ids::KeyId,
        limit::{LimitState, Scope, Subject},
        names::Slug,
        quantity::Quantity,
        tenant::{ApiKey, TenantRef},
        time::Timestamp,
    },
    http::error::ApiResult,
    services::{
        catalogue::Policy,
        overview::{Near, Picture},
        reports::{CurrentUsage, ReportError},
        standings::{MOST_PARTS_NEAR, PartsNear},
        usage_view::{DEFAULT_WARN_PERCENT, UsageItem, UsageStatus},
    },
};

/// A tenant, a key or an end user near a limit, as a row.
pub(super) struct NearRow {
    pub(super) slug: String,
    pub(super) name: String,
    /// The key or the end user; `None`: the tenant as a whole.
    pub(super) who: Option<String>,
    /// How many more keys or end users are near the same limit, in words; `""`: none.
    pub(super) more: String,
    pub(super) feature: String,
    pub(super) window: &'static str,
    pub(super) used: String,
    pub(super) limit: String,
    pub(super) percent: String,
    pub(super) status: UsageStatus,
    pub(super) level: Level,
    pub(super) resets_at: Option<Timestamp>,
}

/// The `most` nearest of the picture, as they stand now.
pub(super) async fn rows(app: &App, picture: &Picture, most: usize) -> ApiResult<Vec<NearRow>> {
    let near = picture.near.iter().take(most);
    let near = near.filter(|near| near.standing.status != UsageStatus::Ok);
    let mut rows = try_join_all(near.map(|near| tenant(app, near))).await?;
    // Asked together: each is a few reads of the store, one after another. Some may not be near any more.
    let mut found = 0;
    for near in picture.parts_near.chunks(most.max(1)) {
        let parts = try_join_all(near.iter().map(|near| part(app, near))).await?;
        found += parts.iter().flatten().count();
        rows.extend(parts);
        if found >= most {
            break;
        }
    }
    let mut rows: Vec<_> = rows.into_iter().flatten().collect();
    rows.sort_by_key(|(hundredths, _)| Reverse(*hundredths));
    rows.truncate(most);
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// A tenant's key or end user, in words; `None` for the tenant itself.
pub(super) fn who(subject: &Subject, keys: &[ApiKey]) -> Option<String> {
    match subject {
        Subject::Tenant => None,
        Subject::Key(id) => {
            let key = keys.iter().find(|key| key.key_id == *id);
            Some(key.map_or_else(|| id.to_string(), |key| format!("key {}", key.name)))
        }
        Subject::User(user) if user.is_empty() => Some("requests that name no user".to_owned()),
        Subject::User(user) => Some(format!("user {user}")),
    }
}

/// The limit that the tenant is nearest to; `None` if the tenant is gone, or not near any more.
async fn tenant(app: &App, near: &Near) -> ApiResult<Option<(i64, NearRow)>> {
    let Some(policy) = policy(app, &near.slug).await? else {
        return Ok(None);
    };
    let CurrentUsage { policy, states } = app.reports.current(policy, None, None).await?;
    let nearest = states.iter().max_by_key(|state| state.percent_hundredths());
    Ok(nearest.and_then(|state| row(&policy, None, state)))
}

/// The nearest of a tenant's keys or end users; `None` if none of them is near any more.
async fn part(app: &App, near: &PartsNear) -> ApiResult<Option<(i64, NearRow)>> {
    let Some(policy) = policy(app, &near.tenant).await? else {
        return Ok(None);
    };
    let mut keys = Vec::new();
    let limit = &near.standing.limit;
    if limit.scope == Scope::Key {
        let now = app.clock.now();
        keys = app.store.list_keys(policy.tenant.tenant_id).await?;
        keys.retain(|key| key.is_valid_at(now));
    }
    let is_there = |subject: &&Subject| match subject {
        Subject::Key(id) => keys.iter().any(|key| key.key_id == *id),
        Subject::Tenant | Subject::User(_) => true,
    };
    let mut parts = near.parts.iter().filter(is_there);
    let Some(subject) = parts.next() else {
        return Ok(None);
    };
    let (key, user): (Option<KeyId>, Option<&str>) = match subject {
        Subject::Tenant => (None, None),
        Subject::Key(key) => (Some(*key), None),
        Subject::User(user) => (None, Some(&**user)),
    };
    let CurrentUsage { policy, states } = app.reports.current(policy, key, user).await?;
    let state = states.iter().find(|state| {
        let it = &state.limit;
        (it.scope, &it.feature, it.kind) == (limit.scope, &limit.feature, limit.kind)
    });
    let row = state.and_then(|state| row(&policy, who(subject, &keys), state));
    Ok(row.map(|(hundredths, row)| {
        let more = more(limit.scope, parts.count(), near.parts.len());
        (hundredths, NearRow { more, ..row })
    }))
}

/// How many more there are, of `known` in all.
fn more(scope: Scope, more: usize, known: usize) -> String {
    let what = match (scope, more) {
        (_, 0) => return String::new(),
        (Scope::Key, 1) => "key",
        (Scope::Key, _) => "keys",
        (_, 1) => "user",
        (..) => "users",
    };
    let at_least = if known >= MOST_PARTS_NEAR {
        "at least "
    } else {
        ""
    };
    format!("{at_least}{more} more {what} near it")
}

async fn policy(app: &App, slug: &Slug) -> ApiResult<Option<std::sync::Arc<Policy>>> {
    match app.reports.policy(&TenantRef::Slug(slug.clone())).await {
        Ok(policy) => Ok(Some(policy)),
        Err(ReportError::NoTenant(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// With its percent in hundredths; `None` if it is not near.
fn row(policy: &Policy, who: Option<String>, state: &LimitState) -> Option<(i64, NearRow)> {
    let item = UsageItem::of(state, DEFAULT_WARN_PERCENT);
    let hundredths = item.percent?.0;
    if item.status == UsageStatus::Ok {
        return None;
    }
    let feature = item.feature;
    let whole = feature.hard_limit.or(feature.soft_limit);
    let row = NearRow {
        slug: policy.tenant.slug.to_string(),
        name: policy.tenant.name.to_string(),
        who,
        more: String::new(),
        feature: display_name(policy, &feature.feature_key),
        window: feature.window.as_str(),
        used: amount(feature.used, &feature.unit).to_string(),
        limit: amount(whole.unwrap_or(Quantity::ZERO), &feature.unit).to_string(),
        percent: percent(item.percent),
        status: item.status,
        level: Level::of(
            feature.used.get(),
            item.reserved.get(),
            feature.soft_limit.map(Quantity::get),
            whole.map(Quantity::get),
        ),
        resets_at: item.resets_at,
    };
    Some((hundredths, row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_many_more_there_are_is_said_in_words() {
        for (scope, count, known, text) in [
            (Scope::Key, 0, 1, ""),
            (Scope::Key, 1, 2, "1 more key near it"),
            (Scope::User, 7, 8, "7 more users near it"),
            (Scope::User, 49, 50, "at least 49 more users near it"),
        ] {
            assert_eq!(more(scope, count, known), text);
        }
    }
}
