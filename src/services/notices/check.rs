//! Has the limits looked at that recorded usage counts in.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{NoticeError, Notices};
use crate::{
    domain::{
        ids::{KeyId, TenantId},
        limit::Scope,
        time::Timestamp,
        usage::UsageEvent,
        window::Window,
    },
    services::outbox::{Outcome, Sender},
    store::{
        outbox::{Kind, Leased, NewEntry},
        usage::Seq,
    },
};

/// How soon usage that was recorded is looked at.
const EVERY: Duration = Duration::from_millis(250);
const CHECKS: usize = 16;
/// For a request that is settling at this moment.
const AGAIN: Duration = Duration::from_secs(1);

/// Whose usage was recorded.
#[derive(Debug, Serialize, Deserialize)]
struct Touched {
    tenant: TenantId,
    key: Option<KeyId>,
    user: String,
    /// When the last of it in its hour was admitted.
    at: Timestamp,
}

/// What asks to look at the limits that these events count in.
#[must_use]
pub fn check_of(journal: Uuid, events: &[(Seq, UsageEvent)], now: Timestamp) -> Option<NewEntry> {
    let [(first, _), .., (last, _)] = events else {
        let (only, _) = events.first()?;
        return Some(entry(journal, [*only, *only], events, now));
    };
    Some(entry(journal, [*first, *last], events, now))
}

fn entry(
    journal: Uuid,
    [first, last]: [Seq; 2],
    events: &[(Seq, UsageEvent)],
    now: Timestamp,
) -> NewEntry {
    let mut touched: HashMap<(TenantId, Option<KeyId>, &str, Timestamp), Timestamp> =
        HashMap::new();
    for (_, event) in events {
        let hour = Window::hour_of(event.admitted_at).start();
        let at = touched
            .entry((event.tenant_id, event.key_id, &event.user, hour))
            .or_insert(event.admitted_at);
        *at = event.admitted_at.max(*at);
    }
    let touched = touched
        .into_iter()
        .map(|((tenant, key, user, _), at)| Touched {
            tenant,
            key,
            user: user.to_owned(),
            at,
        });
    let touched: Vec<Touched> = touched.collect();
    NewEntry {
        identifier: format!("chk_{}_{}_{}", journal.simple(), first.0, last.0),
        kind: Kind::NoticeCheck,
        topic: None,
        tenant: None,
        feature: None,
        value: None,
        lane: None,
        about: None,
        payload: serde_json::to_string(&touched).expect("ids and times are plain strings"),
        created_at: now,
    }
}

/// Looks, and forgets.
pub struct CheckSender(pub Arc<Notices>);

impl CheckSender {
    /// Whether it is to be looked at once more.
    async fn check(&self, touched: Vec<Touched>) -> Result<bool, NoticeError> {
        let notices = &self.0;
        let mut by_hour: BTreeMap<(TenantId, Timestamp), Vec<Touched>> = BTreeMap::new();
        for it in touched {
            let hour = Window::hour_of(it.at).start();
            by_hour.entry((it.tenant, hour)).or_default().push(it);
        }
        let mut is_open = false;
        for ((tenant, _), touched) in by_hour {
            let Some(policy) = notices.parts.catalogue.policy(tenant).await? else {
                continue;
            };
            let Some(at) = touched.iter().map(|it| it.at).max() else {
                continue;
            };
            let limits = notices.limits_at(&policy, at).await?;
            if limits.iter().all(|limit| limit.scope == Scope::Tenant) {
                is_open |= notices.look(&policy, &limits, None, "", at).await?;
                continue;
            }
            for it in touched {
                is_open |= notices.look(&policy, &limits, it.key, &it.user, at).await?;
            }
        }
        Ok(is_open)
    }
}

impl Sender for CheckSender {
    fn kind(&self) -> Kind {
        Kind::NoticeCheck
    }

    fn most_attempts(&self) -> u32 {
        u32::MAX
    }

    fn batch(&self) -> usize {
        CHECKS
    }

    fn pause(&self) -> Duration {
        EVERY
    }

    fn send<'a>(&'a self, entries: &'a [Leased], _now: Timestamp) -> BoxFuture<'a, Vec<Outcome>> {
        Box::pin(async move {
            let mut outcomes = Vec::with_capacity(entries.len());
            for entry in entries {
                let touched = match serde_json::from_str(&entry.payload) {
                    Ok(touched) => touched,
                    Err(error) => {
                        let error = format!("can't be read: {error}");
                        outcomes.push(Outcome::Dead { error });
                        continue;
                    }
                };
                outcomes.push(match self.check(touched).await {
                    // An event is written down a moment before it counts: a second look finds it.
                    Ok(true) if entry.attempts == 1 => Outcome::Retry {
                        after: Some(AGAIN),
                        error: "requests are in flight".to_owned(),
                    },
                    Ok(_) => Outcome::Forget,
                    Err(error) => Outcome::Retry {
                        after: Some(AGAIN),
                        error: error.to_string(),
                    },
                });
            }
            outcomes
        })
    }
}
