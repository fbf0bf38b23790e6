//! Keeping the journal's snapshot in step: what it holds of each counter when events leave the journal, and what
//! counters a start takes from it.
//!
//! A row of the snapshot, *if it is there*, is the counter's value over all events up to the drained position. A
//! missing row is always safe, since its counter is loaded when it is needed; a wrong one never is. So a row goes
//! whenever it can't be told exactly.

use std::collections::HashSet;

use super::{
    Drained, LocalLedger,
    counter::CounterKey,
    sync::{Mutex, MutexGuard, PoisonError},
    tenant::DATED_AHEAD,
};
use crate::{
    domain::{quantity::Quantity, time::Timestamp, usage::UsageEvent},
    store::usage::Seq,
};

/// What is remembered from one drain to the next. Its lock is held throughout a drain, above all others.
#[derive(Debug, Default)]
pub(super) struct Drainage {
    /// The last event that counters have been told of.
    seq: Seq,
    /// Rows given out since a drain is known to have been written. They must come again with a repeat.
    unconfirmed: HashSet<CounterKey>,
}

impl LocalLedger {
    pub(super) fn drained(&self, events: &[(Seq, UsageEvent)]) -> Drained {
        let (Some((first, _)), Some((upto, _))) = (events.first(), events.last()) else {
            return Drained::default();
        };
        let mut drainage = lock(&self.drainage);
        let is_repeat = *first <= drainage.seq; // the last answer was never written
        if !is_repeat {
            drainage.unconfirmed.clear();
        }
        for (seq, event) in events.iter().filter(|(seq, _)| *seq > drainage.seq) {
            self.with_resident(event.tenant_id, event.admitted_at, |counters| {
                counters.drain(*seq, event.into());
            });
        }
        drainage.seq = drainage.seq.max(*upto);

        let mut answer = Drained::default();
        // A repeat that ends earlier: every counter knows of more than its row may say.
        if *upto == drainage.seq {
            self.collect_changed(*upto, &mut answer);
        }
        self.repeat_unconfirmed(&drainage, *upto, &mut answer);
        // After the counters were visited: what was dropped before its visit is in this list, so its old row goes now.
        answer.removed.extend(self.changes.take_removed());

        // A counter that was dropped after its visit must not keep its row: nobody would update it.
        let removed: HashSet<CounterKey> = answer.removed.drain(..).collect();
        answer.changed.retain(|(key, _)| !removed.contains(key));
        answer.removed.extend(removed);
        let changed = answer.changed.iter().map(|(key, _)| key);
        let given = changed.chain(&answer.removed).cloned();
        drainage.unconfirmed.extend(given);
        answer
    }

    fn collect_changed(&self, upto: Seq, answer: &mut Drained) {
        for id in self.changes.take_dirty() {
            if let Some(tenant) = self.find(id) {
                tenant.lock().take_changed(upto, &mut answer.changed);
            }
        }
    }

    /// Gives again what an answer that was not written gave: as it is now, or the row's removal.
    fn repeat_unconfirmed(&self, drainage: &Drainage, upto: Seq, answer: &mut Drained) {
        let given: HashSet<&CounterKey> = answer.changed.iter().map(|(key, _)| key).collect();
        let missing = drainage.unconfirmed.iter();
        let missing: Vec<&CounterKey> = missing.filter(|key| !given.contains(key)).collect();
        for key in missing {
            let value = (upto == drainage.seq)
                .then(|| self.find(key.tenant))
                .flatten()
                .and_then(|tenant| tenant.lock().row(key, upto));
            match value {
                Some(value) => answer.changed.push((key.clone(), value)),
                None => answer.removed.push(key.clone()),
            }
        }
    }

    pub(super) fn restore(
        &self,
        snapshot: Vec<(CounterKey, Quantity)>,
        undrained: &[(Seq, UsageEvent)],
        covered: Seq,
        now: Timestamp,
    ) {
        lock(&self.drainage).seq = covered;
        self.note_elsewhere(now.plus(DATED_AHEAD));
        for (key, _) in &snapshot {
            // A window that has begun says how far the clock had come, even if it was set back since.
            self.note_elsewhere(key.window.start());
        }
        for (key, value) in snapshot {
            let is_restored = self
                .add_if_room(key.tenant, now)
                .is_some_and(|tenant| tenant.lock().restore(&key, value, covered, now));
            if !is_restored {
                self.changes.add_removed(key);
            }
        }
        for (seq, event) in undrained {
            self.add(event.tenant_id, *seq, event.into(), &|_| None);
        }
    }
}

fn lock(drainage: &Mutex<Drainage>) -> MutexGuard<'_, Drainage> {
    drainage.lock().unwrap_or_else(PoisonError::into_inner)
}
