//! What the ledger is told while events move from this node's journal to the store.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::Ordering,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    Fault, RedisLedger, Script, lock,
    wire::{Count, Event, Question},
};
use crate::{
    domain::{
        ids::{EventId, TenantId},
        usage::UsageEvent,
    },
    store::usage::Seq,
};

/// Events in one call: Redis does nothing else meanwhile.
const EVENTS_AT_ONCE: usize = 200;
/// Calls on their way at once, so that decisions find their lanes free.
const CALLS_AT_ONCE: usize = 16;

/// Tenants whose events came into the store while their bucket was away, so that its counters may lack them.
#[derive(Debug, Default)]
pub(super) struct Dark {
    /// Of the batch that is being written now, or may have been.
    writing: HashSet<TenantId>,
    /// To begin anew as soon as the bucket is back.
    written: HashSet<TenantId>,
    /// Drained, but Redis could not be told to forget them yet.
    unforgotten: HashMap<TenantId, Vec<String>>,
}

impl RedisLedger {
    /// Tells of events that are about to be written to the store: from here on each is counted, and known to be
    /// maybe there. What can't be told is made up for when Redis is back.
    pub(in crate::ledger) async fn announce(&self, events: &[(Seq, UsageEvent)]) {
        let failed = self.tell_events(events.iter().map(|(_, event)| event), true);
        let failed = failed.await;
        if failed.is_empty() {
            self.note_told(events);
        }
        lock(&self.dark).writing.extend(failed);
    }

    /// From here on Redis needs no more of these events than the end of their holds.
    fn note_told(&self, events: &[(Seq, UsageEvent)]) {
        if let Some((last, _)) = events.last() {
            // Whoever looked before this has its call in the lane already, before those that follow.
            let _in_order = self.holds.lock();
            self.told.fetch_max(last.0, Ordering::SeqCst);
        }
    }

    /// Whether a drain has told of this event. To be asked under the lock of the holds, and what is sent by the answer
    /// to be sent under it.
    pub(super) fn is_told(&self, seq: Seq) -> bool {
        seq.0 <= self.told.load(Ordering::SeqCst)
    }

    /// Takes note that the store has them.
    pub(in crate::ledger) async fn recorded(&self, events: &[(Seq, UsageEvent)]) {
        let written = {
            let mut dark = lock(&self.dark);
            let written: Vec<TenantId> = dark.writing.drain().collect();
            dark.written.extend(&written);
            written
        };
        // Where Redis is back already, or only some calls failed.
        let is_back = |tenant: &TenantId| self.bucket(*tenant).term().is_ok();
        let back = written.into_iter().filter(is_back);
        let mut stored: HashMap<TenantId, Vec<Event>> = back.map(|it| (it, Vec::new())).collect();
        if stored.is_empty() {
            return;
        }
        for (_, event) in events {
            if let Some(of_tenant) = stored.get_mut(&event.tenant_id) {
                of_tenant.push(Event::of(event));
            }
        }
        for (tenant, stored) in stored {
            let _alone = self.bucket(tenant).anew.lock().await;
            if self.begin_anew(tenant, &stored).await.is_ok() {
                lock(&self.dark).written.remove(&tenant);
            }
        }
    }

    /// Has totals of a bucket read anew that may lack usage which came into the store while Redis was away.
    pub(super) async fn begin_all_anew(&self, index: usize) -> Result<(), Fault> {
        let _alone = self.buckets[index].anew.lock().await;
        let tenants: Vec<TenantId> = {
            let mut dark = lock(&self.dark);
            let all = dark.written.union(&dark.writing).copied();
            let meant: Vec<TenantId> = all.filter(|it| self.bucket_index(*it) == index).collect();
            // Now, so that what comes into the store meanwhile is noted anew.
            for tenant in &meant {
                dark.written.remove(tenant);
            }
            meant
        };
        let calls = tenants.clone().into_iter();
        let calls = calls.map(|tenant| async move { self.begin_anew(tenant, &[]).await });
        let calls = stream::iter(calls).buffer_unordered(CALLS_AT_ONCE);
        let done: Result<(), Fault> = calls.try_collect().await;
        if done.is_err() {
            lock(&self.dark).written.extend(tenants);
        }
        done
    }

    /// Takes note that the journal has forgotten them.
    pub(in crate::ledger) async fn forget(&self, events: &[(Seq, UsageEvent)]) {
        self.note_told(events); // where not all could be told: those tenants have begun anew, or will
        let mut by_tenant = std::mem::take(&mut lock(&self.dark).unforgotten);
        for (_, event) in events {
            let ids = by_tenant.entry(event.tenant_id).or_default();
            ids.push(event.event_id.to_string());
        }
        let _nobody_tells = self.telling.write().await;
        let calls = by_tenant.into_iter().map(|(tenant, ids)| async move {
            match self
                .ask(tenant, Script::Forget, &Question::named(&ids))
                .await
            {
                Ok(_) => None,
                Err(_) => Some((tenant, ids)),
            }
        });
        let failed: Vec<_> = stream::iter(calls)
            .buffer_unordered(CALLS_AT_ONCE)
            .filter_map(|failed| async { failed })
            .collect()
            .await;
        let mut dark = lock(&self.dark);
        // Of a tenant that begins anew everything is looked through then.
        let to_repeat = failed.into_iter();
        let to_repeat: Vec<_> = to_repeat
            .filter(|(tenant, _)| !dark.written.contains(tenant))
            .collect();
        dark.unforgotten.extend(to_repeat);
    }

    /// Tells of events, those of each tenant in order; gives the tenants of which not all could be told.
    pub(super) async fn tell_events<'a>(
        &self,
        events: impl Iterator<Item = &'a UsageEvent>,
        drain: bool,
    ) -> HashSet<TenantId> {
        let mut by_tenant: HashMap<TenantId, Vec<Event>> = HashMap::new();
        for event in events {
            let told = by_tenant.entry(event.tenant_id).or_default();
            told.push(Event::of(event));
        }
        let calls = by_tenant.into_iter().map(|(tenant, events)| async move {
            for events in events.chunks(EVENTS_AT_ONCE) {
                if let Err(fault) = self.tell_some(tenant, events, drain).await {
                    return Some((tenant, fault));
                }
            }
            None
        });
        let failed: Vec<(TenantId, Fault)> = stream::iter(calls)
            .buffer_unordered(CALLS_AT_ONCE)
            .filter_map(|failed| async { failed })
            .collect()
            .await;
        if let Some((_, fault)) = failed.first() {
            let tenants = failed.len();
            tracing::debug!(%fault, tenants, "usage is counted in Redis when that is back");
        }
        failed.into_iter().map(|(tenant, _)| tenant).collect()
    }

    /// Mostly they are counted already. One that is not may have been recorded by another node, which has done with it:
    /// then the store has it.
    async fn tell_some(
        &self,
        tenant: TenantId,
        events: &[Event],
        drain: bool,
    ) -> Result<(), Fault> {
        let count = |events, only_here| {
            let count = Count {
                events,
                drain,
                only_here,
                ..Count::default()
            };
            count.question()
        };
        let told = self
            .ask(tenant, Script::Count, &count(events, true))
            .await?;
        if told.absent.is_empty() {
            return Ok(());
        }
        let _telling = self.telling.read().await;
        let ids: Vec<EventId> = told
            .absent
            .iter()
            .filter_map(|id| id.parse().ok())
            .collect();
        let known = self.base.sums(tenant, &[], &ids).await;
        let (_, known) = known.map_err(|error| Fault::Away(error.to_string()))?;
        let is_new = |event: &&Event| {
            let is_absent = told.absent.iter().any(|id| id == event.id());
            is_absent && event.id().parse().is_ok_and(|id| !known.contains(&id))
        };
        let new: Vec<Event> = events.iter().filter(is_new).cloned().collect();
        if new.is_empty() {
            return Ok(());
        }
        self.ask(tenant, Script::Count, &count(&new, false))
            .await
            .map(drop)
    }
}
