//! The heartbeat of each bucket: whether it is there and in order; and what is told it when it was not.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    Fault, Head, Job, PATIENCE, Question, RedisLedger, Reply, Script, bucket::State,
    decide::micros, link::Hold, lock, unpacked, wire,
};
use crate::{clock::Clock, domain::ids::TenantId};

const BEAT_EVERY: Duration = Duration::from_millis(500);
/// While a bucket is rebuilt, so that it does not take longer than it must.
const REBUILD_BEAT: Duration = Duration::from_millis(50);
/// While a bucket is away.
const KNOCK_EVERY: Duration = Duration::from_millis(100);
/// A rebuild waits for all nodes to have their heartbeat, and for those that live no longer than this.
const REBUILD_LEAST: Duration = Duration::from_millis(1200);
const REBUILD_MOST: Duration = Duration::from_secs(5);
/// A node that was silent for so long is not waited for.
const ALIVE_FOR: Duration = Duration::from_secs(3);
/// A connection that answers nothing for so many beats is made anew.
const HOPELESS: u32 = 4;
/// What took longer to come says too little of what time it is.
const EXACT_WITHIN: Duration = Duration::from_millis(40);

/// Starts the heartbeats and the renewal of holds; they end with the ledger.
#[expect(
    clippy::disallowed_methods,
    reason = "they end with the ledger, which they do not keep"
)]
pub(super) fn start(ledger: &Arc<RedisLedger>) {
    for index in 0..ledger.buckets.len() {
        tokio::spawn(beat(Arc::downgrade(ledger), index));
    }
    tokio::spawn(renew(Arc::downgrade(ledger), ledger.lease / 3));
}

async fn beat(ledger: Weak<RedisLedger>, index: usize) {
    loop {
        let Some(strong) = ledger.upgrade() else {
            return;
        };
        let bucket = Arc::clone(&strong.buckets[index]);
        let pause = strong.beat(index).await;
        drop(strong);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = bucket.wake.notified() => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn renew(ledger: Weak<RedisLedger>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(ledger) = ledger.upgrade() else {
            return;
        };
        if let Err(fault) = ledger.renew(None).await {
            tracing::debug!(%fault, "leases can't be renewed now");
        }
    }
}

impl RedisLedger {
    /// One heartbeat; how long until the next.
    async fn beat(&self, index: usize) -> Duration {
        let bucket = &self.buckets[index];
        let (began, outages) = (Instant::now(), bucket.outages());
        let reply = match self.heartbeat(index).await {
            Ok(reply) => reply,
            Err(fault) => {
                bucket.still_fails(&fault);
                if bucket.note_miss().is_multiple_of(HOPELESS) {
                    self.link.reset().await;
                }
                return KNOCK_EVERY;
            }
        };
        bucket.misses.store(0, Ordering::Relaxed);
        self.compare_clocks(&reply, began.elapsed());
        let epoch: Arc<str> = reply.epoch.as_str().into();
        let is_new = {
            let mut memory = bucket.lock();
            if reply.is_live {
                memory.peers.clone_from(&reply.nodes);
            } else {
                // An emptied bucket knows fewer than lived.
                let new = reply.nodes.iter().filter(|it| !memory.peers.contains(it));
                let new: Vec<String> = new.cloned().collect();
                memory.peers.extend(new);
            }
            memory.told != reply.epoch
        };
        let was_down = std::mem::take(&mut bucket.lock().was_down);
        if is_new || was_down {
            if !bucket.turn(State::Rebuilding(Arc::clone(&epoch)), outages) {
                bucket.lock().was_down = true;
                return Duration::ZERO;
            }
            if let Err(fault) = self.tell(index, is_new).await {
                tracing::debug!(%fault, "Redis could not be told everything yet");
                bucket.lock().was_down = true;
                return REBUILD_BEAT;
            }
            bucket.lock().told.clone_from(&reply.epoch);
            if !reply.is_live {
                return Duration::ZERO; // to say so
            }
        }
        let state = if reply.is_live {
            State::Live(epoch)
        } else {
            State::Rebuilding(epoch)
        };
        let is_news = *bucket.state() != state;
        if !bucket.turn(state, outages) {
            return Duration::ZERO;
        }
        if is_news && reply.is_live {
            self.apart.end();
        }
        if !reply.is_live {
            return REBUILD_BEAT;
        }
        if self.tell_ends(index).await {
            BEAT_EVERY
        } else {
            Duration::ZERO
        }
    }

    async fn heartbeat(&self, index: usize) -> Result<Reply, Fault> {
        let bucket = &self.buckets[index];
        let memory = bucket.lock().clone();
        let fresh = self.fresh();
        let head = Head {
            marker: &bucket.marker,
            epoch: "",
            root: &bucket.prefix,
            fresh: wire::NONE,
            now: wire::NONE,
            not_after: wire::NONE,
            lease: micros(self.lease),
        };
        let watch = wire::Watch {
            node: &self.node,
            fresh: &fresh,
            peers: &memory.peers,
            told: &memory.told,
            least: micros(REBUILD_LEAST),
            most: micros(REBUILD_MOST),
            alive: micros(ALIVE_FOR),
            known: micros(super::LEASE),
        };
        let (sender, receiver) = oneshot::channel();
        let job = Job {
            call: Script::Watch.call(&head, &Question::named(&watch)),
            term: None,
            reply: sender,
            gives_back: None,
        };
        drop(self.lanes[index].send(job));
        match tokio::time::timeout(2 * PATIENCE, receiver).await {
            Ok(Ok(answer)) => unpacked(&answer?),
            Ok(Err(_lane_is_gone)) => Err(Fault::Away("the server stops".to_owned())),
            Err(_elapsed) => Err(Fault::TimedOut),
        }
    }

    /// Follows Redis's clock, where this machine's is another.
    fn compare_clocks(&self, reply: &Reply, took: Duration) {
        if let Clock::Shared(clock) = &self.clock
            && took <= EXACT_WITHIN
        {
            clock.follow(reply.now());
        }
    }

    /// Tells a bucket all that this node knows and it may not: after it was away, and, once `is_new`, after it was lost.
    async fn tell(&self, index: usize, is_new: bool) -> Result<(), Fault> {
        // Collected before anything is told, given back after all of it: what they were used for counts by then.
        let of_bucket = |hold: &mut Hold| self.bucket_index(hold.0) == index;
        let unreleased: Vec<Hold> = lock(&self.unreleased).extract_if(.., of_bucket).collect();
        let told = self.tell_what_is_open(index, is_new).await;
        if told.is_err() {
            lock(&self.unreleased).extend(unreleased);
            return told;
        }
        for (tenant, id) in unreleased {
            self.release_later(tenant, id);
        }
        Ok(())
    }

    async fn tell_what_is_open(&self, index: usize, is_new: bool) -> Result<(), Fault> {
        let of_bucket = |tenant: TenantId| self.bucket_index(tenant) == index;
        let unavailable = |error: crate::ledger::LedgerError| Fault::Away(error.to_string());
        self.renew(Some(index)).await?;
        let events = self.base.undrained().await.map_err(unavailable)?;
        let events = events.iter().filter(|event| of_bucket(event.tenant_id));
        if !self.tell_events(events, false).await.is_empty() {
            return Err(Fault::Away("not all usage could be told".to_owned()));
        }
        if is_new {
            self.hold_reservations(index).await?;
        }
        self.begin_all_anew(index).await
    }

    /// Holds again what the reservation API has open, by the store. What is settled or released meanwhile is given back.
    async fn hold_reservations(&self, index: usize) -> Result<(), Fault> {
        let unavailable = |error: crate::ledger::LedgerError| Fault::Away(error.to_string());
        let open = match self.base.reservations().await {
            Ok(open) => open,
            Err(error) => {
                // Better a few reservations that are not held than no decision while both are away.
                tracing::warn!(%error, "reservations can't be held again");
                return Ok(());
            }
        };
        let open = open.into_iter();
        let open: Vec<_> = open
            .filter(|it| self.bucket_index(it.tenant_id) == index)
            .collect();
        for reservation in &open {
            let rest = (
                "",
                reservation.key_id,
                &*reservation.user,
                &*reservation.request_id,
            );
            let held = wire::Held::new(
                reservation.reservation_id,
                reservation.admitted_at,
                &reservation.quantities,
                rest,
            );
            let renew = wire::Renew {
                holds: &[held],
                deadline: Some(reservation.expires_at.micros()),
                outlives: true,
            };
            self.ask(reservation.tenant_id, Script::Renew, &renew.question())
                .await?;
        }
        if open.is_empty() {
            return Ok(());
        }
        let still = self.base.reservations().await.map_err(unavailable)?;
        let ended = open.iter().filter(|it| {
            let id = it.reservation_id;
            !still.iter().any(|still| still.reservation_id == id)
        });
        for reservation in ended {
            self.release_later(reservation.tenant_id, reservation.reservation_id);
        }
        Ok(())
    }

    /// Puts off the deadlines of this node's holds, of one bucket or of all.
    pub(super) async fn renew(&self, bucket: Option<usize>) -> Result<(), Fault> {
        let asked: Vec<_> = {
            let holds = self.holds.lock();
            let by_tenant = self.holds_by_tenant(&holds, bucket).into_iter();
            let asked = by_tenant.map(|(tenant, holds)| {
                let renew = wire::Renew {
                    holds: &holds,
                    deadline: None,
                    outlives: false,
                };
                self.send(tenant, Script::Renew, &renew.question())
            });
            asked.collect()
        };
        let mut failed = None;
        for asked in asked {
            let answer = match asked {
                Ok(asked) => asked.answer().await,
                Err(fault) => Err(fault),
            };
            match answer {
                // Released by hand on another node.
                Ok(reply) => {
                    for id in reply.released.iter().filter_map(|id| id.parse().ok()) {
                        self.holds.remove(id);
                    }
                }
                Err(fault) => failed = Some(fault),
            }
        }
        failed.map_or(Ok(()), Err)
    }
}
