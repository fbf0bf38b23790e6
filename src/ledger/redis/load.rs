//! Reading counters from the store: one reader a tenant and node at a time; others wait for its end.

use std::{collections::HashMap, sync::Mutex};

use tokio::sync::watch;

use super::{
    Fault, RedisLedger, Reply, Script, Status, lock, reply,
    wire::{self, Base, Install, Question},
};
use crate::{
    domain::{ids::TenantId, limit::Subject, quantity::Quantity, time::Timestamp},
    ledger::{CounterKey, LedgerError, Repaired},
    store::usage::CounterOf,
};

/// Events that the store is asked for at once.
const EVENTS_AT_ONCE: usize = 1000;
/// Events that Redis is told of at once, which does nothing else meanwhile.
const STORED_AT_ONCE: usize = 200;
/// How often sums are read again that changed while they were read.
const TRIES: usize = 16;

/// `None` until it has failed; the sender is gone when it has ended well, or was given up.
type End = watch::Receiver<Option<LedgerError>>;

/// The tenants that are being read.
#[derive(Debug, Default)]
pub(super) struct Loads(Mutex<HashMap<TenantId, End>>);

/// The right to read, and the duty to tell those who wait.
struct Reading<'a> {
    loads: &'a Loads,
    tenant: TenantId,
    failure: watch::Sender<Option<LedgerError>>,
}

enum Turn<'a> {
    Mine(Reading<'a>),
    Another(End),
}

impl Loads {
    fn turn(&self, tenant: TenantId) -> Turn<'_> {
        let mut reading = lock(&self.0);
        if let Some(end) = reading.get(&tenant) {
            return Turn::Another(end.clone());
        }
        let (failure, end) = watch::channel(None);
        reading.insert(tenant, end);
        Turn::Mine(Reading {
            loads: self,
            tenant,
            failure,
        })
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        lock(&self.loads.0).remove(&self.tenant); // before the sender goes, which wakes those who wait
    }
}

impl RedisLedger {
    /// Puts counters in place; `seen` is what Redis said when it missed them. `Ok`: look again.
    pub(super) async fn load(
        &self,
        tenant: TenantId,
        counters: Vec<(CounterOf, i64)>,
        seen: Reply,
    ) -> Result<(), LedgerError> {
        match self.loads.turn(tenant) {
            Turn::Another(mut end) => match end.wait_for(Option::is_some).await {
                Ok(failure) => Err(failure.clone().unwrap_or(LedgerError::TimedOut)),
                Err(_sender_gone) => Ok(()),
            },
            Turn::Mine(reading) => {
                let read = self.install(tenant, &counters, seen, false).await;
                if let Err(error) = &read {
                    reading.failure.send_replace(Some(error.clone()));
                }
                read.map(drop)
            }
        }
    }

    /// Reads sums and has them put in place, or right; gives the differences found.
    async fn install(
        &self,
        tenant: TenantId,
        counters: &[(CounterOf, i64)],
        mut seen: Reply,
        repair: bool,
    ) -> Result<Vec<Repaired>, LedgerError> {
        let asked: Vec<CounterOf> = counters
            .iter()
            .map(|(counter, _)| counter.clone())
            .collect();
        for _ in 0..TRIES {
            // What waits is not in the store, unless its node wrote it there while Redis was away.
            let maybe_stored = seen.maybe_stored();
            let (sums, known) = self.base.sums(tenant, &asked, &maybe_stored).await?;
            if sums.len() != asked.len() {
                let (came, wanted) = (sums.len(), asked.len());
                return Err(LedgerError::Unavailable(format!(
                    "{came} sums came for {wanted} counters"
                )));
            }
            let bases = counters.iter().zip(&sums).map(|((counter, hard), sum)| {
                let base = sum.plus(reply::not_in_store(counter, &seen.draining, &known));
                Base::of(counter, *hard, base)
            });
            let is_stored = |id: &&String| id.parse().is_ok_and(|id| known.contains(&id));
            let install = Install {
                inc: seen.inc,
                drains: seen.drains,
                counters: bases.collect(),
                stored: seen.waiting.iter().filter(is_stored).collect(),
                repair,
            };
            let install = Question {
                needs_live: true, // until all is told, what the store lacks may be what nobody will tell of later
                ..Question::named(&install)
            };
            let reply = self.ask(tenant, Script::Install, &install).await?;
            match reply.status {
                Status::Done => {
                    let of = |(index, live, stored): (usize, i64, i64)| Repaired {
                        counter: CounterKey::new(tenant, asked[index].clone()),
                        live: Quantity::new(live),
                        stored: Quantity::new(stored),
                    };
                    return Ok(reply.drift.into_iter().map(of).collect());
                }
                _ => seen = reply,
            }
        }
        Err(LedgerError::Unavailable(
            "the totals changed whenever they were read".to_owned(),
        ))
    }

    /// Compares a tenant's counters with what store and undrained events say, and sets right what differs. Windows
    /// that begin before `pruned_before` are left out: their first hour can't be summed any more.
    pub(in crate::ledger) async fn repair(
        &self,
        tenant: TenantId,
        pruned_before: Timestamp,
    ) -> Result<Vec<Repaired>, LedgerError> {
        let seen = self.peek(tenant, &wire::Peek::default()).await?;
        let counters: Vec<(CounterOf, i64)> = seen
            .counters
            .iter()
            .filter_map(|(name, feature, start, end, hard)| {
                Some((counter_of(name, feature, (*start, *end))?, *hard))
            })
            .filter(|(counter, _)| pruned_before <= counter.window.start())
            .collect();
        if counters.is_empty() {
            return Ok(Vec::new());
        }
        self.install(tenant, &counters, seen, true).await
    }

    /// Drops what names an end user; counters are read anew when they are needed.
    pub(in crate::ledger) async fn forget_user(&self, tenant: TenantId, user: &str) {
        let peek = wire::Peek {
            forget: &wire::user_name(user),
            ..wire::Peek::default()
        };
        if let Err(fault) = self.peek(tenant, &peek).await {
            tracing::warn!(%fault, "a user's live totals stay until their windows are over");
        }
    }

    /// Drops a tenant's counters, after events of it came into the store that Redis was not told of: they are read anew
    /// when they are needed. `stored`: events that are in the store now, and in the journal too; nobody counts them
    /// again.
    pub(super) async fn begin_anew(
        &self,
        tenant: TenantId,
        stored: &[wire::Event],
    ) -> Result<(), Fault> {
        let seen = self.peek(tenant, &wire::Peek::default()).await?;
        // What is in the store and counts here is known no more once its node's journal has forgotten it.
        for ids in seen.maybe_stored().chunks(EVENTS_AT_ONCE) {
            let stored = self.base.sums(tenant, &[], ids).await;
            let (_, stored) = stored.map_err(|error| Fault::Away(error.to_string()))?;
            let events: Vec<String> = stored.iter().map(ToString::to_string).collect();
            let _nobody_tells = self.telling.write().await;
            self.ask(tenant, Script::Forget, &Question::named(&events))
                .await?;
        }
        let parts = stored.chunks(STORED_AT_ONCE);
        let none: &[wire::Event] = &[];
        for stored in std::iter::once(none).chain(parts) {
            let peek = wire::Peek {
                anew: true,
                stored,
                ..wire::Peek::default()
            };
            self.peek(tenant, &peek).await?;
        }
        Ok(())
    }

    async fn peek(&self, tenant: TenantId, peek: &wire::Peek<'_>) -> Result<Reply, Fault> {
        self.ask(tenant, Script::Peek, &peek.question()).await
    }
}

/// A counter by its subject's name, its feature's, and the bounds of its window, as scripts know them.
fn counter_of(subject: &str, feature: &str, (start, end): (i64, i64)) -> Option<CounterOf> {
    let subject = match subject.split_once(':') {
        None => Subject::Tenant,
        Some(("k", key)) => Subject::Key(key.parse().ok()?),
        Some((_, user)) => Subject::User(user.into()),
    };
    Some(CounterOf {
        subject,
        feature: feature.parse().ok()?,
        window: wire::window_of(start, end)?,
    })
}
