//! The counters of one tenant by whom they count: the tenant itself, each of its keys, each of its users.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use smallvec::SmallVec;

use super::{counter::Counter, sync::Arc};
use crate::domain::{
    feature::FeatureKey,
    ids::KeyId,
    limit::{ActiveLimit, Scope, Subject},
    time::Timestamp,
    window::Window,
};

/// A [`Subject`] that borrows its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SubjectRef<'a> {
    Tenant,
    Key(KeyId),
    User(&'a str),
}

impl<'a> From<&'a Subject> for SubjectRef<'a> {
    fn from(subject: &'a Subject) -> Self {
        match subject {
            Subject::Tenant => Self::Tenant,
            Subject::Key(key) => Self::Key(*key),
            Subject::User(user) => Self::User(user),
        }
    }
}

impl From<SubjectRef<'_>> for Subject {
    fn from(subject: SubjectRef<'_>) -> Self {
        match subject {
            SubjectRef::Tenant => Self::Tenant,
            SubjectRef::Key(key) => Self::Key(key),
            SubjectRef::User(user) => Self::User(user.into()),
        }
    }
}

/// By whom usage was caused within a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who<'a> {
    pub(super) key: Option<KeyId>,
    pub(super) user: &'a str,
}

impl<'a> Who<'a> {
    /// Everyone whose counters the usage belongs to.
    pub(super) fn subjects(self) -> impl Iterator<Item = SubjectRef<'a>> {
        [
            Some(SubjectRef::Tenant),
            self.key.map(SubjectRef::Key),
            Some(SubjectRef::User(self.user)),
        ]
        .into_iter()
        .flatten()
    }

    /// Whom a limit of `scope` counts here; `None` if it does not apply.
    pub(super) fn in_scope(self, scope: Scope) -> Option<SubjectRef<'a>> {
        match scope {
            Scope::Tenant => Some(SubjectRef::Tenant),
            Scope::Key => self.key.map(SubjectRef::Key),
            Scope::User => Some(SubjectRef::User(self.user)),
        }
    }
}

/// Hashes ids: random bits that nobody outside chooses, so that folding them is enough.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        // The odd constant is 2^64 divided by the golden ratio (Knuth, TAOCP 3, §6.4): it spreads to the high bits.
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_usize(&mut self, _length: usize) {} // all ids are equally long

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32) // tables take their slot from the low bits
    }
}

pub(super) type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;

/// The counters of one key or user.
#[derive(Debug, Default)]
struct Member {
    counters: Vec<Counter>,
    /// The tick of the last request that looked at them.
    used: u64,
}

impl Member {
    fn used_at(&mut self, tick: u64) -> &mut [Counter] {
        self.used = tick;
        &mut self.counters
    }
}

/// The counters that one request's usage may belong to, each subject looked up once.
pub(super) struct OfWho<'a> {
    tenant: &'a mut [Counter],
    key: &'a mut [Counter],
    user: &'a mut [Counter],
}

impl OfWho<'_> {
    /// The counter that `limit` counts in.
    #[inline]
    pub(super) fn of_limit(&mut self, limit: &ActiveLimit) -> Option<&mut Counter> {
        let counters = match limit.scope {
            Scope::Tenant => &mut *self.tenant,
            Scope::Key => &mut *self.key,
            Scope::User => &mut *self.user,
        };
        counters
            .iter_mut()
            .find(|it| it.is_of(&limit.feature, limit.window))
    }

    /// Calls `visit` with every counter that usage admitted at `at` belongs to.
    #[inline]
    pub(super) fn visit(&mut self, at: Timestamp, mut visit: impl FnMut(&mut Counter)) {
        for counters in [&mut *self.tenant, &mut *self.key, &mut *self.user] {
            for counter in counters {
                if counter.window.contains(at) {
                    visit(counter);
                }
            }
        }
    }
}

/// Counters are few a subject (features × windows), so lists are searched from the front.
#[derive(Debug, Default)]
pub(super) struct Subjects {
    /// In place: as many as a plan that meters messages, tokens and cost has.
    tenant: SmallVec<[Counter; 4]>,
    keys: IdMap<KeyId, Member>,
    users: HashMap<Arc<str>, Member>,
    tick: u64,
}

impl Subjects {
    pub(super) fn of(&self, subject: SubjectRef<'_>) -> &[Counter] {
        match subject {
            SubjectRef::Tenant => &self.tenant,
            SubjectRef::Key(key) => self.keys.get(&key).map_or(&[], |it| &it.counters),
            SubjectRef::User(user) => self.users.get(user).map_or(&[], |it| &it.counters),
        }
    }

    pub(super) fn of_mut(&mut self, subject: SubjectRef<'_>) -> &mut [Counter] {
        match subject {
            SubjectRef::Tenant => &mut self.tenant,
            SubjectRef::Key(key) => match self.keys.get_mut(&key) {
                Some(member) => &mut member.counters,
                None => &mut [],
            },
            SubjectRef::User(user) => match self.users.get_mut(user) {
                Some(member) => &mut member.counters,
                None => &mut [],
            },
        }
    }

    /// [`of_who`](Self::of_who) for a request, which marks its key and user as in use now.
    pub(super) fn of_request(&mut self, who: Who<'_>) -> OfWho<'_> {
        self.tick += 1;
        let tick = self.tick;
        let key = who.key.and_then(|key| self.keys.get_mut(&key));
        let user = self.users.get_mut(who.user);
        OfWho {
            tenant: &mut self.tenant,
            key: key.map_or(&mut [], |it| it.used_at(tick)),
            user: user.map_or(&mut [], |it| it.used_at(tick)),
        }
    }

    /// The counters that usage by `who` may belong to.
    pub(super) fn of_who(&mut self, who: Who<'_>) -> OfWho<'_> {
        let key = who.key.and_then(|key| self.keys.get_mut(&key));
        let user = self.users.get_mut(who.user);
        OfWho {
            tenant: &mut self.tenant,
            key: key.map_or(&mut [], |it| &mut it.counters),
            user: user.map_or(&mut [], |it| &mut it.counters),
        }
    }

    pub(super) fn find(
        &self,
        subject: SubjectRef<'_>,
        feature: &FeatureKey,
        window: Window,
    ) -> Option<&Counter> {
        self.of(subject).iter().find(|it| it.is_of(feature, window))
    }

    pub(super) fn find_mut(
        &mut self,
        subject: SubjectRef<'_>,
        feature: &FeatureKey,
        window: Window,
    ) -> Option<&mut Counter> {
        self.of_mut(subject)
            .iter_mut()
            .find(|it| it.is_of(feature, window))
    }

    pub(super) fn insert(&mut self, subject: SubjectRef<'_>, counter: Counter) {
        let tick = self.tick;
        let member = match subject {
            SubjectRef::Tenant => return self.tenant.push(counter),
            SubjectRef::Key(key) => self.keys.entry(key).or_default(),
            SubjectRef::User(user) => self.users.entry(user.into()).or_default(),
        };
        member.used = tick;
        member.counters.push(counter);
    }

    /// A user's name as it is kept here, so that a request of a known user needs no copy.
    pub(super) fn known_user(&self, user: &str) -> Option<Arc<str>> {
        self.users
            .get_key_value(user)
            .map(|(name, _)| Arc::clone(name))
    }

    /// Drops counters of `subject` that `is_over` tells, and the subject with its last one.
    pub(super) fn remove_if(
        &mut self,
        subject: SubjectRef<'_>,
        mut is_over: impl FnMut(&Counter) -> bool,
    ) {
        match subject {
            SubjectRef::Tenant => self.tenant.retain(|it| !is_over(it)),
            SubjectRef::Key(key) => {
                if let Some(member) = self.keys.get_mut(&key) {
                    member.counters.retain(|it| !is_over(it));
                    if member.counters.is_empty() {
                        self.keys.remove(&key);
                    }
                }
            }
            SubjectRef::User(user) => {
                if let Some(member) = self.users.get_mut(user) {
                    member.counters.retain(|it| !is_over(it));
                    if member.counters.is_empty() {
                        self.users.remove(user);
                    }
                }
            }
        }
    }

    pub(super) fn list(&self) -> Vec<Subject> {
        let keys = self.keys.keys().map(|key| Subject::Key(*key));
        let users = self
            .users
            .keys()
            .map(|user| Subject::User(Arc::clone(user)));
        std::iter::once(Subject::Tenant)
            .chain(keys)
            .chain(users)
            .collect()
    }

    pub(super) fn members(&self) -> usize {
        self.keys.len() + self.users.len()
    }

    /// At most `count` keys and users that can be dropped, the longest unused first; never one of the current tick.
    pub(super) fn longest_unused(&self, count: usize) -> Vec<Subject> {
        let may_go = |member: &Member| {
            member.used < self.tick && member.counters.iter().all(Counter::is_idle)
        };
        let keys = self.keys.iter().filter(|(_, member)| may_go(member));
        let users = self.users.iter().filter(|(_, member)| may_go(member));
        let mut idle: Vec<(u64, Subject)> = keys
            .map(|(key, member)| (member.used, Subject::Key(*key)))
            .chain(users.map(|(user, member)| (member.used, Subject::User(Arc::clone(user)))))
            .collect();
        idle.sort_unstable_by_key(|(used, _)| *used);
        idle.into_iter()
            .take(count)
            .map(|(_, subject)| subject)
            .collect()
    }
}
