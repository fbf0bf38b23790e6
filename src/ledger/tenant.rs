//! The counters and open holds of one tenant, behind one short lock.
//!
//! Two invariants carry the exactness:
//! - A counter's `reserved` is the sum of what the open holds that belong to it were granted. Which those are follows
//!   from subject, feature and window alone, so a counter that appears while requests are in flight begins with them.
//! - Every event whose settling, recording or draining has reached this tenant was admitted at or before
//!   `latest_event_at`. So a window that starts after it holds nothing but what will still come by: it begins at zero
//!   without a load. Everything else is loaded.

use std::time::Duration;

use tokio::sync::watch;

use super::{
    LedgerAsk, LedgerError, LocalLedger, OnViolation, Over,
    amounts::{Judgement, judge},
    counter::{Counter, CounterKey, LoadEnd},
    hold::{Held, Holder, OpenHold, OpenHolds, RequestId},
    subjects::{OfWho, SubjectRef, Subjects, Who},
    sync::{Arc, AtomicI64, AtomicU64, Mutex, MutexGuard, Ordering, PoisonError, Weak},
};
use crate::{
    domain::{
        ids::{ReservationId, TenantId},
        limit::{ActiveLimit, LimitStates, sort_violations},
        quantity::Quantity,
        time::Timestamp,
        usage::{Quantities, UsageEvent},
    },
    store::usage::{CounterOf, Seq},
};

/// How far ahead of the present events may be dated: five minutes (interface.md §3), and one for clocks read earlier.
pub(super) const DATED_AHEAD: Duration = Duration::from_secs(6 * 60);

/// How long a counter stays after its window, for settles of requests that were admitted in it.
const KEPT_AFTER_END: Duration = Duration::from_secs(5 * 60);

pub(super) struct Tenant {
    pub(super) id: TenantId,
    /// Where it is, for what a hold does in the end.
    pub(super) ledger: Weak<LocalLedger>,
    pub(super) tally: Arc<Tally>,
    /// When a request last looked at it, in µs.
    used_at: AtomicI64,
    counters: Mutex<TenantCounters>,
}

impl Tenant {
    /// `latest_event_at`: no event of it that is durable now, or settled before it is added, lies after this.
    pub(super) fn new(
        id: TenantId,
        ledger: &LocalLedger,
        latest_event_at: Timestamp,
        now: Timestamp,
    ) -> Self {
        Self {
            id,
            ledger: Weak::clone(&ledger.this),
            tally: Arc::clone(&ledger.tally),
            used_at: AtomicI64::new(now.micros()),
            counters: Mutex::new(TenantCounters {
                id,
                subjects: Subjects::default(),
                holds: OpenHolds::default(),
                latest_event_at,
                dirty: Vec::new(),
                changes: Arc::clone(&ledger.changes),
                max_members: ledger.max_members,
                loading: 0,
                swept_at: now,
                is_evicted: false,
            }),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, TenantCounters> {
        // A panic elsewhere must not take the tenant down with it: no update here is left half done.
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn touch(&self, now: Timestamp) {
        self.used_at.store(now.micros(), Ordering::Relaxed);
    }

    pub(super) fn used_at(&self) -> i64 {
        self.used_at.load(Ordering::Relaxed)
    }
}

/// How many holds a ledger has seen begin and end.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) opened: AtomicU64,
    pub(super) settled: AtomicU64,
    pub(super) released: AtomicU64,
}

/// What the next drain has to know; a lock below those of tenants.
#[derive(Debug, Default)]
pub(super) struct Changes(Mutex<ChangeLists>);

#[derive(Debug, Default)]
struct ChangeLists {
    dirty: Vec<TenantId>,
    removed: Vec<CounterKey>,
}

impl Changes {
    fn lists(&self) -> MutexGuard<'_, ChangeLists> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add_dirty(&self, tenant: TenantId) {
        self.lists().dirty.push(tenant);
    }

    pub(super) fn take_dirty(&self) -> Vec<TenantId> {
        std::mem::take(&mut self.lists().dirty)
    }

    pub(super) fn add_removed(&self, key: CounterKey) {
        self.lists().removed.push(key);
    }

    pub(super) fn take_removed(&self) -> Vec<CounterKey> {
        std::mem::take(&mut self.lists().removed)
    }
}

/// Usage as the counters see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage<'a> {
    pub(super) who: Who<'a>,
    pub(super) at: Timestamp,
    pub(super) quantities: &'a Quantities,
}

impl<'a> From<&'a UsageEvent> for Usage<'a> {
    fn from(event: &'a UsageEvent) -> Self {
        Self {
            who: Who {
                key: event.key_id,
                user: &event.user,
            },
            at: event.admitted_at,
            quantities: &event.quantities,
        }
    }
}

/// What must happen before the counters of a request can be looked at.
pub(super) enum Missing {
    /// Nothing: they have just been made.
    Nothing,
    /// Somebody else reads one of them.
    Wait(LoadEnd),
    /// The caller has to read these; others wait until the sender is dropped.
    Load(Vec<CounterOf>, watch::Sender<Option<LedgerError>>),
}

/// What was decided about a request.
pub(super) enum Decided {
    Held { held: Arc<Held>, slot: usize },
    Over(Box<Over>),
}

pub(super) struct TenantCounters {
    id: TenantId,
    subjects: Subjects,
    pub(super) holds: OpenHolds,
    latest_event_at: Timestamp,
    /// Counters whose snapshot rows are out of date. While there are any, `changes` names this tenant.
    dirty: Vec<CounterOf>,
    changes: Arc<Changes>,
    max_members: usize,
    /// Counters being read.
    loading: usize,
    swept_at: Timestamp,
    /// No longer in the ledger: who finds this must look the tenant up again.
    is_evicted: bool,
}

impl TenantCounters {
    pub(super) fn is_evicted(&self) -> bool {
        self.is_evicted
    }

    /// Where the limits that apply to `who` stand.
    ///
    /// # Errors
    /// What has to happen first.
    pub(super) fn look(
        &mut self,
        who: Who<'_>,
        limits: &Arc<[ActiveLimit]>,
        now: Timestamp,
    ) -> Result<LimitStates, Missing> {
        if self.is_evicted {
            return Err(Missing::Nothing); // to be found anew
        }
        match states(&mut self.subjects.of_request(who), who, limits) {
            Some(states) => Ok(states),
            None => Err(self.prepare(who, limits, now)),
        }
    }

    /// Holds what `ask` wants under all of its limits, or nothing.
    ///
    /// # Errors
    /// What has to happen before that can be decided.
    pub(super) fn reserve(
        &mut self,
        ask: &LedgerAsk<'_>,
        new_id: impl FnOnce() -> ReservationId,
    ) -> Result<Decided, Missing> {
        if self.is_evicted {
            return Err(Missing::Nothing); // to be found anew
        }
        let who = Who {
            key: ask.key,
            user: ask.user,
        };
        let mut counters = self.subjects.of_request(who);
        let Some(mut states) = states(&mut counters, who, ask.limits) else {
            return Err(self.prepare(who, ask.limits, ask.now));
        };
        let Judgement {
            granted,
            mut violations,
        } = judge(ask.wants, &states, ask.soft, ask.on_violation);
        if !violations.is_empty() {
            sort_violations(&mut violations);
            if ask.on_violation == OnViolation::Refuse {
                return Ok(Decided::Over(Box::new(Over { violations, states })));
            }
        }
        states.update(|limit, standing| {
            standing.reserved = standing.reserved.plus(granted.of(&limit.feature));
        });
        counters.visit(ask.now, |counter| {
            counter.reserved.add(granted.of(&counter.feature));
        });
        let held = Arc::new(Held {
            id: new_id(),
            request_id: RequestId::from_slice(ask.request_id.as_bytes()),
            holder: Holder {
                key: ask.key,
                user: self.user(ask.user),
            },
            admitted_at: ask.now,
            granted,
            states,
            violations,
        });
        let slot = self.holds.insert(Arc::clone(&held));
        Ok(Decided::Held { held, slot })
    }

    /// Makes the counters of `limits` that are missing: at zero where that is certain, else to be read.
    #[cold]
    fn prepare(&mut self, who: Who<'_>, limits: &[ActiveLimit], now: Timestamp) -> Missing {
        self.sweep(who, now);
        self.make_room();
        let (sender, end) = watch::channel(None);
        let (mut to_load, mut others) = (Vec::new(), None);
        for limit in limits {
            let Some(subject) = who.in_scope(limit.scope) else {
                continue;
            };
            if let Some(counter) = self.subjects.find(subject, &limit.feature, limit.window) {
                others = others.or_else(|| counter.load_end());
                continue;
            }
            let (feature, window) = (limit.feature.clone(), limit.window);
            if window.start() > self.latest_event_at {
                self.insert(subject, Counter::zero(feature, window));
            } else {
                to_load.push(CounterOf {
                    subject: subject.into(),
                    feature: feature.clone(),
                    window,
                });
                self.insert(subject, Counter::loading(feature, window, end.clone()));
            }
        }
        match others {
            _ if !to_load.is_empty() => {
                self.loading += to_load.len();
                Missing::Load(to_load, sender)
            }
            Some(end) => Missing::Wait(end),
            None => Missing::Nothing,
        }
    }

    fn insert(&mut self, subject: SubjectRef<'_>, mut counter: Counter) {
        let (feature, window) = (counter.feature.clone(), counter.window);
        self.holds.held_in(subject, &feature, window, |granted| {
            counter.reserved.add(granted);
        });
        self.subjects.insert(subject, counter);
    }

    /// Adds a counter from its row of the snapshot; false if its window is long over.
    pub(super) fn restore(
        &mut self,
        key: &CounterKey,
        value: Quantity,
        covered: Seq,
        now: Timestamp,
    ) -> bool {
        if is_long_over(key.window.end(), now) {
            return false;
        }
        let counter = Counter::saved(key.feature.clone(), key.window, value, covered);
        self.insert((&key.subject).into(), counter);
        true
    }

    /// Ends a load with the sums read.
    pub(super) fn install(&mut self, counters: Vec<CounterOf>, sums: &[Quantity], covered: Seq) {
        self.loading -= counters.len();
        for (of, &sum) in counters.into_iter().zip(sums) {
            let subject = SubjectRef::from(&of.subject);
            if let Some(counter) = self.subjects.find_mut(subject, &of.feature, of.window) {
                counter.install(sum, covered);
                self.add_dirty(of);
            }
        }
    }

    /// Ends a load without its sums: the counters go, as if it had never begun.
    pub(super) fn abandon(&mut self, counters: &[CounterOf]) {
        self.loading -= counters.len();
        for of in counters {
            self.subjects.remove_if((&of.subject).into(), |counter| {
                counter.is_loading() && counter.is_of(&of.feature, of.window)
            });
        }
    }

    /// A copy of a user's name; `None` for `""`.
    pub(super) fn user(&self, user: &str) -> Option<Arc<str>> {
        let copy = || {
            self.subjects
                .known_user(user)
                .unwrap_or_else(|| user.into())
        };
        (!user.is_empty()).then(copy)
    }

    /// Adds an open hold to every counter it belongs to; gives its place.
    pub(super) fn open(&mut self, held: Arc<Held>) -> usize {
        let mut counters = self.subjects.of_who(held.holder.who());
        counters.visit(held.admitted_at, |counter| {
            counter.reserved.add(held.granted.of(&counter.feature));
        });
        self.holds.insert(held)
    }

    /// Takes a hold off every counter it belongs to. `None` if it has ended before.
    pub(super) fn end(&mut self, slot: usize, id: ReservationId) -> Option<OpenHold> {
        let hold = self.holds.remove(slot, id)?;
        let held = &*hold.held;
        self.give_back(held.holder.who(), held.admitted_at, &held.granted);
        Some(hold)
    }

    /// Takes what was granted to a hold off every counter it belongs to.
    pub(super) fn give_back(&mut self, who: Who<'_>, admitted_at: Timestamp, granted: &Quantities) {
        let mut counters = self.subjects.of_who(who);
        counters.visit(admitted_at, |counter| {
            counter.reserved.take(granted.of(&counter.feature));
        });
    }

    /// Adds the durable event of a request whose hold, if it was still open, is `granted`, and brings `states` up to
    /// date; one whose counter is gone keeps its last values.
    pub(super) fn settle_hold(
        &mut self,
        granted: Option<&Quantities>,
        seq: Seq,
        usage: Usage<'_>,
        states: &mut LimitStates,
    ) {
        self.latest_event_at = self.latest_event_at.max(usage.at);
        let mut counters = self.subjects.of_who(usage.who);
        counters.visit(usage.at, |counter| {
            if let Some(granted) = granted {
                counter.reserved.take(granted.of(&counter.feature));
            }
            counter.settle(seq, usage.quantities.of(&counter.feature));
        });
        states.update(|limit, standing| {
            let counter = counters.of_limit(limit);
            if let Some(counter) = counter.filter(|it| !it.is_loading()) {
                *standing = counter.standing();
            }
        });
    }

    /// Adds a durable event to every counter it belongs to; `seen` is told of each.
    pub(super) fn settle(&mut self, seq: Seq, usage: Usage<'_>, mut seen: impl FnMut(&Counter)) {
        self.latest_event_at = self.latest_event_at.max(usage.at);
        let mut counters = self.subjects.of_who(usage.who);
        counters.visit(usage.at, |counter| {
            let used = usage.quantities.of(&counter.feature);
            if used != Quantity::ZERO {
                counter.settle(seq, used);
                seen(counter);
            }
        });
    }

    /// Notes an event that is in the store now in every counter it belongs to.
    pub(super) fn drain(&mut self, seq: Seq, usage: Usage<'_>) {
        // It may come before its settle: a window that it lies in must not begin at zero from now on.
        self.latest_event_at = self.latest_event_at.max(usage.at);
        for subject in usage.who.subjects() {
            let mut changed = Vec::new();
            for counter in self.subjects.of_mut(subject) {
                let used = usage.quantities.of(&counter.feature);
                let belongs = counter.window.contains(usage.at) && used != Quantity::ZERO;
                if belongs && counter.drain(seq, used) {
                    changed.push((counter.feature.clone(), counter.window));
                }
            }
            for (feature, window) in changed {
                self.add_dirty(CounterOf {
                    subject: subject.into(),
                    feature,
                    window,
                });
            }
        }
    }

    fn add_dirty(&mut self, counter: CounterOf) {
        if self.dirty.is_empty() {
            self.changes.add_dirty(self.id);
        }
        self.dirty.push(counter);
    }

    /// Appends the snapshot rows that are out of date and can be told for `upto`; the rest stays for a later call.
    pub(super) fn take_changed(&mut self, upto: Seq, changed: &mut Vec<(CounterKey, Quantity)>) {
        for of in std::mem::take(&mut self.dirty) {
            let subject = SubjectRef::from(&of.subject);
            let counter = self.subjects.find_mut(subject, &of.feature, of.window);
            let Some(counter) = counter.filter(|counter| counter.is_dirty) else {
                continue; // dropped since, or listed twice
            };
            match counter.drained_at(upto) {
                Some(value) => {
                    counter.is_dirty = false;
                    counter.is_saved = true;
                    changed.push((CounterKey::new(self.id, of), value));
                }
                None => self.add_dirty(of),
            }
        }
    }

    /// The value of a snapshot row for `upto`; `None` if it can't be told.
    pub(super) fn row(&self, key: &CounterKey, upto: Seq) -> Option<Quantity> {
        let subject = SubjectRef::from(&key.subject);
        self.subjects
            .find(subject, &key.feature, key.window)?
            .drained_at(upto)
    }

    /// Every counter with its value for `upto`, where that can be told.
    pub(super) fn rows(&self, upto: Seq) -> Vec<(CounterKey, Quantity)> {
        let mut rows = Vec::new();
        for subject in self.subjects.list() {
            for counter in self.subjects.of((&subject).into()) {
                let key = CounterKey {
                    tenant: self.id,
                    subject: subject.clone(),
                    feature: counter.feature.clone(),
                    window: counter.window,
                };
                rows.extend(counter.drained_at(upto).map(|value| (key, value)));
            }
        }
        rows
    }

    /// Marks the tenant as gone, unless somebody uses it; its rows of the snapshot go too. Gives its latest event.
    pub(super) fn evict(&mut self) -> Option<Timestamp> {
        if !self.holds.is_empty() || self.loading > 0 {
            return None;
        }
        self.is_evicted = true;
        for subject in self.subjects.list() {
            self.drop_counters((&subject).into(), |_| true);
        }
        Some(self.latest_event_at)
    }

    /// Drops all counters of a user and names their rows of the snapshot; `Err` while one of them is being read.
    /// Reservations come back with a counter that is made anew.
    pub(super) fn forget_user(&mut self, user: &str) -> Result<Vec<CounterKey>, LoadEnd> {
        let subject = SubjectRef::User(user);
        let counters = self.subjects.of(subject);
        if let Some(loading) = counters.iter().find_map(Counter::load_end) {
            return Err(loading);
        }
        let rows = counters.iter().map(|counter| CounterKey {
            tenant: self.id,
            subject: subject.into(),
            feature: counter.feature.clone(),
            window: counter.window,
        });
        let rows = rows.collect();
        self.subjects.remove_if(subject, |_| true);
        Ok(rows)
    }

    /// Drops counters whose windows are long over: the caller's at every call, everybody's now and then.
    fn sweep(&mut self, who: Who<'_>, now: Timestamp) {
        let is_over = |it: &Counter| is_long_over(it.window.end(), now) && it.is_idle();
        for subject in who.subjects() {
            self.drop_counters(subject, is_over);
        }
        let is_due = now < self.swept_at || now.since(self.swept_at) >= KEPT_AFTER_END;
        if is_due && self.subjects.members() > 0 {
            self.swept_at = now;
            for subject in self.subjects.list() {
                self.drop_counters((&subject).into(), is_over);
            }
        }
    }

    /// Keeps the number of keys and users with counters bounded: past the bound a tenth goes, the longest unused.
    fn make_room(&mut self) {
        // The caller's own key and user may come to those that are here.
        let over = (self.subjects.members() + 2).saturating_sub(self.max_members);
        if over > 0 && self.subjects.members() > 0 {
            let count = over.max(self.max_members / 10);
            for subject in self.subjects.longest_unused(count) {
                self.drop_counters((&subject).into(), |_| true);
            }
        }
    }

    /// Drops counters; their snapshot rows must go before this lock does, or a drain in between would leave them
    /// behind.
    fn drop_counters(&mut self, subject: SubjectRef<'_>, is_over: impl Fn(&Counter) -> bool) {
        let (id, changes) = (self.id, &self.changes);
        self.subjects.remove_if(subject, |counter| {
            let goes = is_over(counter);
            if goes && counter.is_saved {
                changes.add_removed(CounterKey {
                    tenant: id,
                    subject: subject.into(),
                    feature: counter.feature.clone(),
                    window: counter.window,
                });
            }
            goes
        });
    }
}

/// Where the limits that apply to `who` stand; `None` if a counter of them is missing or not read yet.
fn states(
    counters: &mut OfWho<'_>,
    who: Who<'_>,
    limits: &Arc<[ActiveLimit]>,
) -> Option<LimitStates> {
    LimitStates::of(limits, |_, limit| {
        if who.in_scope(limit.scope).is_none() {
            return Some(None);
        }
        let counter = counters.of_limit(limit)?;
        if counter.is_loading() {
            return None;
        }
        counter.hard = limit.hard;
        Some(Some(counter.standing()))
    })
}

fn is_long_over(end: Timestamp, now: Timestamp) -> bool {
    end < now.minus(KEPT_AFTER_END)
}
