//! Notices to people and programs: which limits are near, reached, passed or open again (interface.md §10).
//!
//! Nothing here is on a request's way. What usage brought about is looked at once it is in the store: an entry of the
//! outbox, written with the usage itself, asks for that (`check`), so that no crash loses it. What was told is a row
//! that changes in the transaction which puts the notice into the outbox: of any number of replicas one tells it, once.
//! Refusals come over a queue that never blocks; one that finds no room is told of by the next.

mod check;
mod event;
mod judge;
mod send;

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use quick_cache::sync::Cache;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, mpsc};

pub use self::{
    check::{CheckSender, check_of},
    event::DeadEntry,
    send::NoticeSender,
};
use self::{
    event::{Data, Standing},
    judge::{Mark, Verdict, judge, used_before},
};
use crate::{
    clock::{self, Clock},
    domain::{
        feature::FeatureKey,
        ids::{KeyId, TenantId},
        limit::{ActiveLimit, LimitState, LimitType, Scope, Subject, Violation},
        quantity::Quantity,
        time::Timestamp,
        window::WindowKind,
    },
    ledger::LedgerError,
    services::{
        catalogue::{Catalogue, Policy},
        recorder::Recorder,
        refusals::Refused,
    },
    store::{
        SharedStore, StoreError, StoreResult,
        notices::{NoticeChange, NoticeKey, Told},
        outbox::{Kind, NewEntry},
    },
    web::{CloudEvent, Posted, Poster},
};

/// How many things that were told are remembered, which spares the store.
const REMEMBERED: usize = 100_000;
/// How many refusals wait to be looked at.
const QUEUE: usize = 4_096;
/// How many ended windows are looked at in one step.
const ENDED: usize = 100;

const WINDOW_RESET: &str = "window_reset";

/// Why notices could not be made; they are when it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum NoticeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Where notices go.
#[derive(Clone, Debug)]
struct Address {
    url: String,
    /// Stands for it in the store: an address may hold a secret.
    name: String,
}

impl Address {
    fn new(url: &str) -> Self {
        let hash = Sha256::digest(url.as_bytes());
        Self {
            url: url.to_owned(),
            name: hash[..8].iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    /// Without what may be secret.
    fn shown(&self) -> String {
        let parsed = reqwest::Url::parse(&self.url).ok();
        let origin = parsed.map(|url| url.origin().ascii_serialization());
        format!("{}/…", origin.unwrap_or_default())
    }
}

/// What notices stand on.
pub struct NoticeParts {
    pub store: SharedStore,
    pub catalogue: Arc<Catalogue>,
    pub recorder: Arc<Recorder>,
    pub poster: Arc<Poster>,
    pub clock: Clock,
    /// Percentages at which a notice goes out, unless the plan's feature has its own.
    pub thresholds: Vec<u16>,
    /// `http` or `https`.
    pub addresses: Vec<String>,
}

/// Makes notices.
pub struct Notices {
    parts: NoticeParts,
    addresses: Vec<Address>,
    /// What is known to be told, and of which limit.
    known: Cache<NoticeKey, Quantity>,
    /// What was used of a limit when it was last looked at.
    last_used: Cache<Place, Quantity>,
    /// Refusals that were queued, by their hash.
    heard: Cache<u64, ()>,
    queue: mpsc::Sender<Heard>,
    queued: Mutex<Queued>,
}

/// A limit in a window.
type Place = (TenantId, Subject, FeatureKey, WindowKind, Timestamp);

/// Something that a request ran into.
enum Heard {
    Refused(Arc<Refused>),
    Inactive {
        tenant: TenantId,
        status: &'static str,
        at: Timestamp,
    },
}

struct Queued {
    receiver: mpsc::Receiver<Heard>,
    /// Taken out, but the store was away.
    waiting: Option<Heard>,
}

/// What an address answered to a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tested {
    pub address: String,
    /// Why it did not take the test.
    pub failure: Option<String>,
}

impl Notices {
    #[must_use]
    pub fn new(parts: NoticeParts) -> Arc<Self> {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let addresses = parts.addresses.iter().map(|url| Address::new(url));
        Arc::new(Self {
            addresses: addresses.collect(),
            parts,
            known: Cache::new(REMEMBERED),
            last_used: Cache::new(REMEMBERED),
            heard: Cache::new(REMEMBERED),
            queue,
            queued: Mutex::new(Queued {
                receiver,
                waiting: None,
            }),
        })
    }

    /// Takes note of a refused request. Never waits.
    pub fn refused(&self, refused: &Arc<Refused>) {
        let violations = &refused.refusal.violations;
        let spent = violations
            .iter()
            .filter(|it| !it.is_by_reservations_alone());
        let hashes: Vec<u64> = spent
            .map(|it| {
                hash_of(
                    &key_of_limit(
                        refused.refusal.tenant_id,
                        &subject_of(it, refused),
                        &it.limit,
                        Mark::Limit,
                    ),
                    it.limit_value,
                )
            })
            .collect();
        self.hear(&hashes, || Heard::Refused(Arc::clone(refused)));
    }

    /// Takes note of a request that was refused since the subscription does not run. Never waits.
    pub fn inactive(&self, policy: &Policy, status: &'static str, at: Timestamp) {
        let tenant = policy.tenant.tenant_id;
        let hash = hash_of(&key_of_subscription(policy, status, at).0, Quantity::ZERO);
        self.hear(&[hash], || Heard::Inactive { tenant, status, at });
    }

    fn hear(&self, hashes: &[u64], heard: impl FnOnce() -> Heard) {
        if hashes.iter().all(|hash| self.heard.get(hash).is_some()) {
            return;
        }
        if self.queue.try_send(heard()).is_ok() {
            for hash in hashes {
                self.heard.insert(*hash, ());
            }
        }
    }

    /// Makes notices of what was heard, and of windows that ended.
    ///
    /// # Errors
    /// [`NoticeError`]: what is left is made by the next call.
    pub async fn step(&self) -> Result<(), NoticeError> {
        self.tell_heard().await?;
        self.tell_ended().await
    }

    async fn tell_heard(&self) -> Result<(), NoticeError> {
        let mut queued = self.queued.lock().await;
        loop {
            if queued.waiting.is_none() {
                queued.waiting = queued.receiver.try_recv().ok();
            }
            match &queued.waiting {
                None => return Ok(()),
                Some(Heard::Refused(refused)) => while !self.tell_refused(refused).await? {},
                Some(Heard::Inactive { tenant, status, at }) => {
                    self.tell_inactive(*tenant, status, *at).await?;
                }
            }
            queued.waiting = None;
        }
    }

    /// No if somebody was faster with something about the same limit: then it is to be looked at anew.
    async fn tell_refused(&self, refused: &Refused) -> Result<bool, NoticeError> {
        let refusal = &refused.refusal;
        let Some(policy) = self.parts.catalogue.policy(refusal.tenant_id).await? else {
            return Ok(true);
        };
        let now = self.parts.clock.now();
        let mut changes = Vec::new();
        let spent = refusal.violations.iter();
        for violation in spent.filter(|it| !it.is_by_reservations_alone()) {
            let subject = subject_of(violation, refused);
            let key = key_of_limit(refusal.tenant_id, &subject, &violation.limit, Mark::Limit);
            let rows = self
                .parts
                .store
                .list_told(refusal.tenant_id, &subject, refusal.now)
                .await?;
            let told = rows
                .iter()
                .find(|(it, _)| *it == key)
                .map(|(_, told)| *told);
            let value = violation.limit_value;
            let before = self.before(&key, value, &rows);
            let seen = told.map(|it| it.limit);
            if judge(Mark::Limit, value, seen, before, true) != Verdict::Tell {
                continue;
            }
            let standing = Standing {
                limit: &violation.limit,
                subject: &subject,
                value,
                limit_type: violation.limit_type,
                used: violation.settled,
                reserved: violation.reserved,
                requested: Some(violation.requested),
            };
            changes.push(self.tell(&policy, key, Mark::Limit, seen, &standing, now));
        }
        self.make(changes).await
    }

    async fn tell_inactive(
        &self,
        tenant: TenantId,
        status: &'static str,
        at: Timestamp,
    ) -> Result<(), NoticeError> {
        let Some(policy) = self.parts.catalogue.policy(tenant).await? else {
            return Ok(());
        };
        let now = self.parts.clock.now();
        let (key, window_end) = key_of_subscription(&policy, status, at);
        let data = Data::of_subscription(&policy, status);
        let event = "tollgate.usage.subscription_inactive";
        let change = NoticeChange {
            entries: self.entries(event, key.about(), None, &data, now),
            key,
            seen: None,
            becomes: Some(Told {
                window_end,
                limit: Quantity::ZERO,
                used: Quantity::ZERO,
                at: now,
            }),
        };
        self.make(vec![change]).await?;
        Ok(())
    }

    async fn tell_ended(&self) -> Result<(), NoticeError> {
        let now = self.parts.clock.now();
        loop {
            let ended = self.parts.store.list_ended(now, ENDED).await?;
            let is_more = ended.len() >= ENDED;
            let mut changes = Vec::with_capacity(ended.len());
            for (key, told) in ended {
                let policy = self.parts.catalogue.policy(key.tenant).await?;
                let key = NoticeKey {
                    mark: WINDOW_RESET.to_owned(),
                    ..key
                };
                let entries = match (&policy, &key.feature) {
                    (Some(policy), Some(feature)) => {
                        let data = Data::of_reset(policy, &key, feature, told);
                        self.entries("tollgate.usage.window_reset", key.about(), None, &data, now)
                    }
                    _ => Vec::new(), // the tenant is gone
                };
                changes.push(NoticeChange {
                    key,
                    seen: None,
                    becomes: Some(Told { at: now, ..told }),
                    entries,
                });
            }
            self.make(changes).await?;
            if !is_more {
                return Ok(());
            }
        }
    }

    /// Looks at the limits of a tenant, one of its keys and one of its users, as they stand at `at`. Whether there may
    /// be more to tell about: something is reserved that would reach it, or somebody was faster.
    async fn look(
        &self,
        policy: &Policy,
        limits: &Arc<[ActiveLimit]>,
        key: Option<KeyId>,
        user: &str,
        at: Timestamp,
    ) -> Result<bool, NoticeError> {
        let tenant = policy.tenant.tenant_id;
        let ledger = self.parts.recorder.ledger();
        let states = ledger.states(tenant, key, user, limits, at).await?;
        let now = self.parts.clock.now();
        let mut rows: HashMap<Subject, Vec<(NoticeKey, Told)>> = HashMap::new();
        let (mut changes, mut is_open) = (Vec::new(), false);
        for state in &states {
            let limit = &state.limit;
            let subject = match (limit.scope, key) {
                (Scope::Tenant, _) => Subject::Tenant,
                (Scope::Key, Some(key)) => Subject::Key(key),
                (Scope::Key, None) => continue,
                (Scope::User, _) => Subject::User(user.into()),
            };
            let place = place_of(tenant, key, user, limit);
            let is_looked_at = place.is_some_and(|it| self.last_used.get(&it).is_some());
            for (mark, value) in self.marks(policy, limit) {
                let is_due = mark != Mark::Limit && mark.is_reached(state.settled, value);
                is_open |= !is_due && mark != Mark::Limit && mark.is_reached(state.taken(), value);
                let key = key_of_limit(tenant, &subject, limit, mark);
                let is_known = match self.known.get(&key) {
                    Some(known) => known == value,
                    // A first look may find what was told by another, or before a start.
                    None => !is_due && is_looked_at,
                };
                if is_known {
                    continue;
                }
                if !rows.contains_key(&subject) {
                    let told = self.parts.store.list_told(tenant, &subject, at).await?;
                    rows.insert(subject.clone(), told);
                }
                let rows = rows.get(&subject).map_or(&[][..], Vec::as_slice);
                changes.extend(self.judged(
                    policy,
                    state,
                    &subject,
                    (mark, value, is_due),
                    key,
                    rows,
                    now,
                ));
            }
        }
        is_open |= !self.make(changes).await?;
        for state in &states {
            if let Some(place) = place_of(tenant, key, user, &state.limit) {
                self.last_used.insert(place, state.settled);
            }
        }
        Ok(is_open)
    }

    /// What is to be changed about one mark, if anything is.
    #[expect(
        clippy::too_many_arguments,
        reason = "one mark of one limit, and all that bears on it"
    )]
    fn judged(
        &self,
        policy: &Policy,
        state: &LimitState,
        subject: &Subject,
        (mark, value, is_due): (Mark, Quantity, bool),
        key: NoticeKey,
        rows: &[(NoticeKey, Told)],
        now: Timestamp,
    ) -> Option<NoticeChange> {
        let told = rows
            .iter()
            .find(|(it, _)| *it == key)
            .map(|(_, told)| *told);
        let seen = told.map(|it| it.limit);
        match judge(mark, value, seen, self.before(&key, value, rows), is_due) {
            Verdict::Nothing => {
                match seen {
                    Some(_) => self.known.insert(key, value),
                    None => {
                        self.known.remove(&key);
                    }
                }
                None
            }
            Verdict::Tell => {
                let limit_type = match mark {
                    Mark::SoftLimit => LimitType::SoftLimit,
                    _ if state.limit.hard.is_none() => LimitType::SoftLimit,
                    _ => LimitType::HardLimit,
                };
                let standing = Standing {
                    limit: &state.limit,
                    subject,
                    value,
                    limit_type,
                    used: state.settled,
                    reserved: state.reserved,
                    requested: None,
                };
                Some(self.tell(policy, key, mark, seen, &standing, now))
            }
            Verdict::Rearm => Some(NoticeChange {
                key,
                seen,
                becomes: None,
                entries: Vec::new(),
            }),
            Verdict::Adjust => Some(NoticeChange {
                key,
                seen,
                becomes: told.map(|told| Told {
                    limit: value,
                    ..told
                }),
                entries: Vec::new(),
            }),
        }
    }

    /// What can be told of a limit, each with the value that it is about.
    fn marks(&self, policy: &Policy, limit: &ActiveLimit) -> Vec<(Mark, Quantity)> {
        let planned = policy
            .plan
            .as_ref()
            .and_then(|plan| plan.feature(&limit.feature));
        let own = planned.and_then(|feature| feature.alert_thresholds.as_ref());
        let thresholds = own.unwrap_or(&self.parts.thresholds);
        let of_whole = limit.hard.or(limit.soft);
        let thresholds = thresholds
            .iter()
            .filter_map(|percent| Some((Mark::Threshold(*percent), of_whole?)));
        thresholds
            .chain(limit.soft.map(|soft| (Mark::SoftLimit, soft)))
            .chain(limit.hard.map(|hard| (Mark::Limit, hard)))
            .chain(limit.hard.map(|hard| (Mark::Overshoot, hard)))
            .collect()
    }

    /// What was used when the limit was last looked at, which counts where it was raised to `value` since.
    fn before(&self, key: &NoticeKey, value: Quantity, rows: &[(NoticeKey, Told)]) -> Quantity {
        let place = key.feature.clone().map(|feature| {
            let subject = key.subject.clone();
            (key.tenant, subject, feature, key.window, key.window_start)
        });
        let looked = place.and_then(|place| self.last_used.get(&place));
        let is_same = |it: &NoticeKey| {
            (&it.feature, it.window, it.window_start)
                == (&key.feature, key.window, key.window_start)
        };
        let told = rows.iter().filter(|(it, _)| is_same(it));
        looked.unwrap_or_else(|| used_before(told.map(|(_, told)| told), value))
    }

    fn tell(
        &self,
        policy: &Policy,
        key: NoticeKey,
        mark: Mark,
        seen: Option<Quantity>,
        standing: &Standing<'_>,
        now: Timestamp,
    ) -> NoticeChange {
        let data = Data::of_limit(policy, mark, standing, now);
        let value = match mark {
            Mark::Threshold(percent) => Some(Quantity::new(i64::from(percent))),
            Mark::SoftLimit | Mark::Limit | Mark::Overshoot => None,
        };
        NoticeChange {
            entries: self.entries(mark.event_type(), key.about(), value, &data, now),
            key,
            seen,
            becomes: Some(Told {
                window_end: standing.limit.window.end(),
                limit: standing.value,
                used: standing.used,
                at: now,
            }),
        }
    }

    /// What is to be sent of usage that Stripe can't be told of; goes in with the entry's ending, so it is told once.
    pub fn of_dead_entry(
        &self,
        policy: &Policy,
        dead: &DeadEntry<'_>,
        now: Timestamp,
    ) -> Vec<NewEntry> {
        let data = Data::of_dead_entry(policy, dead);
        let about = (policy.tenant.tenant_id, Some(dead.feature.clone()));
        self.entries("tollgate.usage.stripe_entry_dead", about, None, &data, now)
    }

    /// One entry an address, of one event.
    fn entries(
        &self,
        event_type: &str,
        (tenant, feature): (TenantId, Option<FeatureKey>),
        value: Option<Quantity>,
        data: &Data,
        now: Timestamp,
    ) -> Vec<NewEntry> {
        let id = format!("ntc_{}", clock::new_id().simple());
        let subject = tenant.to_string();
        let event = CloudEvent::new(&id, event_type, Some(&subject), now, data);
        let body = serde_json::to_string(&event).expect("a notice is plain strings and numbers");
        let entries = self.addresses.iter().map(|address| NewEntry {
            identifier: format!("{id}.{}", address.name),
            kind: Kind::Notice,
            topic: Some(event_type.to_owned()),
            tenant: Some(tenant),
            feature: feature.clone(),
            value,
            lane: None,
            about: None,
            payload: send::Payload {
                to: address.name.clone(),
                id: id.clone(),
                body: body.clone(),
            }
            .to_json(),
            created_at: now,
        });
        entries.collect()
    }

    /// Makes changes, and remembers them. Whether all were made: with the others, somebody was faster.
    async fn make(&self, changes: Vec<NoticeChange>) -> Result<bool, NoticeError> {
        if changes.is_empty() {
            return Ok(true);
        }
        let made = self.parts.store.change_told(&changes).await?;
        let all_made = made.iter().all(|it| *it);
        for (change, is_made) in changes.into_iter().zip(made) {
            match change.becomes {
                Some(told) if is_made => self.known.insert(change.key, told.limit),
                Some(_) | None => {
                    if let Some(seen) = change.seen {
                        self.heard.remove(&hash_of(&change.key, seen));
                    }
                    self.known.remove(&change.key);
                }
            }
        }
        Ok(all_made)
    }

    /// Sends a test to every address at once, past the outbox.
    pub async fn test(&self) -> Vec<Tested> {
        let now = self.parts.clock.now();
        let mut tested = Vec::with_capacity(self.addresses.len());
        for address in &self.addresses {
            let id = format!("ntc_{}", clock::new_id().simple());
            let data = json!({ "code": "alert_test", "message": "This is a test: notices of tollgate arrive here." });
            let event = CloudEvent::new(&id, "tollgate.alert.test", None, now, data);
            let body = serde_json::to_vec(&event).expect("a test is plain strings");
            let posted = self
                .parts
                .poster
                .post(&address.url, send::message(&id, body), now)
                .await;
            tested.push(Tested {
                address: address.shown(),
                failure: match posted {
                    Posted::Taken => None,
                    Posted::NotTaken { error, .. } | Posted::Gone { error } => Some(error),
                },
            });
        }
        tested
    }

    /// The limits in force at `at`, which is now or was a while ago.
    async fn limits_at(&self, policy: &Policy, at: Timestamp) -> StoreResult<Arc<[ActiveLimit]>> {
        let catalogue = &self.parts.catalogue;
        let active = catalogue.limits(policy, self.parts.clock.now()).await?;
        if active.limits.iter().all(|limit| limit.window.contains(at)) {
            return Ok(Arc::clone(&active.limits));
        }
        Ok(catalogue.limits_placed_at(policy, at).await?.limits)
    }
}

fn subject_of(violation: &Violation, refused: &Refused) -> Subject {
    match violation.limit.scope {
        Scope::Tenant => Subject::Tenant,
        Scope::Key => Subject::Key(refused.caller.key_id),
        Scope::User => Subject::User(Arc::clone(&refused.caller.user)),
    }
}

fn key_of_limit(tenant: TenantId, subject: &Subject, limit: &ActiveLimit, mark: Mark) -> NoticeKey {
    NoticeKey {
        tenant,
        subject: subject.clone(),
        feature: Some(limit.feature.clone()),
        window: limit.kind,
        window_start: limit.window.start(),
        mark: mark.name(),
    }
}

/// Once per status and period; with the period's end.
fn key_of_subscription(policy: &Policy, status: &str, at: Timestamp) -> (NoticeKey, Timestamp) {
    let period = policy.anchors().period.window_at(at);
    let key = NoticeKey {
        tenant: policy.tenant.tenant_id,
        subject: Subject::Tenant,
        feature: None,
        window: WindowKind::Period,
        window_start: period.start(),
        mark: format!("subscription:{status}"),
    };
    (key, period.end())
}

fn place_of(
    tenant: TenantId,
    key: Option<KeyId>,
    user: &str,
    limit: &ActiveLimit,
) -> Option<Place> {
    let subject = match limit.scope {
        Scope::Tenant => Subject::Tenant,
        Scope::Key => Subject::Key(key?),
        Scope::User => Subject::User(user.into()),
    };
    Some((
        tenant,
        subject,
        limit.feature.clone(),
        limit.kind,
        limit.window.start(),
    ))
}

fn hash_of(key: &NoticeKey, limit: Quantity) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, limit).hash(&mut hasher);
    hasher.finish()
}
