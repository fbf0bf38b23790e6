//! Usage on its way: into the journal before the answer leaves, from there to the store.
//!
//! One direction, three places: journal (durable, this node), ledger (live totals), store (system of record). An
//! event is written down first and counted second; the drain moves it to the store in batches and only then lets the
//! journal forget it, together with the snapshot of the live totals as they were at that event.

use std::{
    sync::{self, Arc, OnceLock, PoisonError, Weak},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::sync::Mutex;

use crate::{
    clock::{self, Clock},
    domain::{
        administrator::Actor,
        feature::FeatureKey,
        ids::{EventId, TenantId},
        limit::ActiveLimit,
        quantity::Quantity,
        reservation::Reservation,
        time::Timestamp,
        usage::UsageEvent,
        window::Window,
    },
    journal::{Frozen, Journal, JournalError, Snapshot},
    ledger::{
        BaseTotals, CounterKey, Drained, Hold, Ledger, LedgerError, LocalLedger, RedisLedger,
        RedisSettings, Settled, SharedBase, Since, SumsOfEvents,
    },
    services::AdminError,
    store::{
        SharedStore, StoreError, StoreResult,
        maintenance::StoreCopy,
        usage::{Batch, CounterOf, JournalPosition, Recorded, Seq, Tell},
    },
    telemetry::{events, metrics::Metrics},
};

/// How many events one drain moves at most: large enough for SQLite to write 100,000 a second.
pub(crate) const BATCH: usize = 20_000;
/// How often a request that waits for the store looks whether that still answers.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// After so long what is settled is in the store, unless that is away. Redis keeps what a window counted no longer.
const DRAINED_WITHIN: Duration = Duration::from_secs(240);
/// How long a start waits for totals that are shared; then requests get what the fail mode says until they are there.
const SHARED_TOTALS_TIME: Duration = Duration::from_secs(3);
/// How many tenants have their counters in memory at most.
const LEDGER_TENANTS: usize = 100_000;

/// Whether live totals are kept across a restart (`USAGE_GUARDRAIL_CACHE_BACKEND`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepTotals {
    /// In the journal's file, at each drain.
    InJournal,
    /// Not at all: they are summed from the store when first needed.
    Rebuild,
}

/// Where live totals are.
pub enum Totals {
    /// In this process.
    Here(KeepTotals),
    /// In Redis, shared with other nodes.
    Shared(RedisSettings),
}

/// What a step of the drain did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Idle,
    /// There may be more.
    Moved(usize),
}

/// A live total that differs from the store's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    pub counter: CounterKey,
    pub live: Quantity,
    pub stored: Quantity,
}

impl Drift {
    /// By how much, whichever way.
    #[must_use]
    pub fn difference(&self) -> u64 {
        self.live.get().abs_diff(self.stored.get())
    }
}

/// Why the drain could not go on; the events stay in the journal.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Says what others are to be told of usage that comes into the store.
pub trait Teller: Send + Sync {
    /// What goes in with the transaction that records these events of `journal`. Each event is shown once,
    /// unless that transaction failed. Must not wait for the drain, which waits for this.
    ///
    /// # Errors
    /// [`StoreError`]: the events wait in the journal, and are shown again.
    fn tell<'a>(
        &'a self,
        journal: uuid::Uuid,
        events: &'a [(Seq, UsageEvent)],
    ) -> BoxFuture<'a, StoreResult<Tell>>;
}

/// Writes usage down and moves it on.
pub struct Recorder {
    journal: Journal,
    ledger: Ledger,
    store: SharedStore,
    clock: Clock,
    metrics: Arc<Metrics>,
    keep: KeepTotals,
    teller: OnceLock<Arc<dyn Teller>>,
    drain: Mutex<Drain>,
    /// How far the store has this journal's events; `None` if it must be asked.
    recorded: sync::Mutex<Option<Seq>>,
    /// Why the store did not take the last batch; `None` if it did.
    store_fault: sync::Mutex<Option<String>>,
}

/// The drain's own memory, under the lock that lets one drain run at a time.
#[derive(Default)]
struct Drain {
    /// Recorded in the store, but the journal could not be told yet: it must be before anything else is read.
    unmarked: Option<(Seq, Snapshot)>,
}

impl Recorder {
    /// Opens on what the last run left: the snapshot and the events not yet drained are the totals.
    ///
    /// # Errors
    /// [`JournalError`] if the journal can't be read.
    pub async fn open(
        journal: Journal,
        store: SharedStore,
        metrics: Arc<Metrics>,
        totals: Totals,
        clock: Clock,
    ) -> Result<Arc<Self>, JournalError> {
        let keep = match &totals {
            Totals::Here(keep) => *keep,
            Totals::Shared(_) => KeepTotals::Rebuild,
        };
        let recorder = Arc::new_cyclic(|recorder: &Weak<Self>| {
            let stored = Arc::new(StoredTotals(Weak::clone(recorder)));
            Self {
                ledger: match totals {
                    Totals::Here(_) => Ledger::Local(LocalLedger::new(stored, LEDGER_TENANTS)),
                    Totals::Shared(settings) => Ledger::Redis(RedisLedger::open(settings, stored)),
                },
                journal,
                store,
                clock,
                metrics,
                keep,
                teller: OnceLock::new(),
                drain: Mutex::default(),
                recorded: sync::Mutex::default(),
                store_fault: sync::Mutex::default(),
            }
        });
        match keep {
            KeepTotals::InJournal => recorder.restore(recorder.clock.now()).await?,
            KeepTotals::Rebuild => recorder.drop_snapshot().await?,
        }
        if let Ledger::Redis(redis) = &recorder.ledger {
            redis.ready(SHARED_TOTALS_TIME).await;
        }
        Ok(recorder)
    }

    /// A snapshot that is not kept up would be taken for one by a later start that wants it.
    async fn drop_snapshot(&self) -> Result<(), JournalError> {
        let snapshot = self.journal.load_snapshot().await?;
        if snapshot.is_empty() {
            return Ok(());
        }
        let removed = snapshot.into_iter().map(|(counter, _)| counter);
        let snapshot = Snapshot {
            changed: Vec::new(),
            removed: removed.collect(),
        };
        let drained = self.journal.drained();
        self.journal.mark_drained(drained, snapshot).await
    }

    async fn restore(&self, now: Timestamp) -> Result<(), JournalError> {
        let snapshot = self.journal.load_snapshot().await?;
        if snapshot.is_empty() {
            return Ok(());
        }
        let pending = usize::try_from(self.journal.pending()).unwrap_or(usize::MAX);
        let undrained = self.journal.read_undrained(pending).await?;
        self.ledger
            .restore(snapshot, &undrained, self.journal.drained(), now);
        Ok(())
    }

    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Writes a request's usage down, then turns its hold into settled use.
    ///
    /// # Errors
    /// [`JournalError`]: nothing was written, nothing is charged, and the hold is released.
    pub async fn settle(
        &self,
        hold: Option<Hold>,
        event: &UsageEvent,
    ) -> Result<Settled, JournalError> {
        let seq = self.append(event).await?;
        let settled = match hold {
            Some(hold) => hold.settle(seq, event).await,
            None => self.ledger.record(seq, event, &|_| None).await,
        };
        Ok(settled)
    }

    /// Writes usage down that had no hold, and counts it; `since` says from when on limits count that were reset.
    ///
    /// # Errors
    /// [`JournalError`]: nothing was written.
    pub async fn record(
        &self,
        event: UsageEvent,
        since: Since<'_>,
    ) -> Result<Settled, JournalError> {
        let seq = self.append(&event).await?;
        Ok(self.ledger.record(seq, &event, since).await)
    }

    async fn append(&self, event: &UsageEvent) -> Result<Seq, JournalError> {
        let begun = Instant::now();
        let seq = self.journal.append(event).await?;
        self.metrics.committed_in(begun.elapsed());
        Ok(seq)
    }

    /// Moves one batch from the journal to the store.
    ///
    /// # Errors
    /// [`DrainError`]: everything stays where it is; calling again is safe.
    pub async fn step(&self) -> Result<Progress, DrainError> {
        let mut drain = self.drain.lock().await;
        self.mark(&mut drain).await?;
        if self.journal.pending() == 0 {
            return Ok(Progress::Idle);
        }
        let batch = Batch::from(self.journal.read_undrained(BATCH).await?);
        let Some((upto, _)) = batch.last() else {
            return Ok(Progress::Idle);
        };
        let upto = *upto;
        let position = JournalPosition {
            journal: self.journal.id(),
            seq: upto,
        };
        if self.store_fault().is_some() {
            // It may be back as a copy that had not yet got everything; what comes now would hide that.
            self.note_what_the_store_lacks().await;
        }
        let new = self.new_of(&batch).await;
        // Until it is told, and after a failure or if nobody waits for it any more, the store may have it or not.
        *self.lock_recorded() = None;
        let recorded = match new {
            Ok(new) => self.record_batch(batch.clone(), new, position).await,
            Err(error) => Err(error),
        };
        *self.lock_recorded() = recorded.as_ref().ok().map(|_| upto);
        let fault = recorded.as_ref().err().map(StoreError::to_string);
        *self.lock_store_fault() = fault;
        let recorded = recorded?;
        events::Drained { recorded }.emit(&self.metrics);
        let snapshot = match self.keep {
            KeepTotals::InJournal => {
                let Drained { changed, removed } = self.ledger.drained(&batch).await;
                Snapshot { changed, removed }
            }
            KeepTotals::Rebuild => {
                self.ledger.drained(&batch).await;
                Snapshot::default()
            }
        };
        drain.unmarked = Some((upto, snapshot));
        self.mark(&mut drain).await?;
        self.ledger.forgotten(&batch).await;
        Ok(Progress::Moved(batch.len()))
    }

    /// Says of a store that lacks usage which the journal has handed over: nobody can bring that back.
    pub async fn note_what_the_store_lacks(&self) {
        let handed_over = self.journal.drained();
        if let Ok(stored) = self.store.drained(self.journal.id()).await
            && stored < handed_over
        {
            tracing::error!(
                code = "store_lacks_usage",
                stored = stored.0,
                handed_over = handed_over.0,
                "the database lacks usage that the journal has handed over; it is another one, or older"
            );
        }
    }

    /// Those of a batch that the store has not. Events that a run before recorded without marking them come again: others
    /// were told of those, and they count already.
    async fn new_of<'a>(
        &self,
        batch: &'a [(Seq, UsageEvent)],
    ) -> StoreResult<&'a [(Seq, UsageEvent)]> {
        let known = *self.lock_recorded();
        let recorded = match known {
            Some(recorded) => recorded,
            None if self.teller.get().is_none() && matches!(self.ledger, Ledger::Local(_)) => {
                return Ok(batch); // nobody asks
            }
            None => self.store.drained(self.journal.id()).await?,
        };
        *self.lock_recorded() = Some(recorded);
        Ok(&batch[batch.partition_point(|(seq, _)| *seq <= recorded)..])
    }

    async fn record_batch(
        &self,
        batch: Batch,
        new: &[(Seq, UsageEvent)],
        position: JournalPosition,
    ) -> StoreResult<Recorded> {
        let tell = match self.teller.get() {
            Some(teller) if !new.is_empty() => teller.tell(position.journal, new).await?,
            _ => Tell::default(),
        };
        self.ledger.announce(new).await;
        self.store.record(batch, position, tell).await
    }

    /// Has `teller` say what others are to be told of usage; the first one given stays.
    pub fn tell_with(&self, teller: Arc<dyn Teller>) {
        let _ = self.teller.set(teller);
    }

    /// Why usage does not arrive in the store, if it does not: it may be read all the same, as from a full disk.
    #[must_use]
    pub fn store_fault(&self) -> Option<String> {
        self.lock_store_fault().clone()
    }

    fn lock_recorded(&self) -> sync::MutexGuard<'_, Option<Seq>> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_store_fault(&self) -> sync::MutexGuard<'_, Option<String>> {
        self.store_fault
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn mark(&self, drain: &mut Drain) -> Result<(), JournalError> {
        if let Some((upto, snapshot)) = &drain.unmarked {
            self.journal.mark_drained(*upto, snapshot.clone()).await?;
            drain.unmarked = None;
        }
        Ok(())
    }

    /// Moves everything that was written down before the call, so that the store can be asked about it.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub async fn flush(&self) -> Result<(), DrainError> {
        let target = self.journal.last_seq();
        while self.journal.drained() < target {
            if self.step().await? == Progress::Idle {
                break;
            }
        }
        Ok(())
    }

    /// Keeps the present state of journal and store for a backup: every event that was written down before is in
    /// one of them (in both, if the drain was between the two; its id then counts once), and none that comes later.
    ///
    /// # Errors
    /// [`DrainError`] if one of them can't be read.
    pub async fn freeze(&self) -> Result<(Frozen, Box<dyn StoreCopy>), DrainError> {
        // No event moves from one to the other in between. The journal comes first: what its events name is then in
        // the store that is read after it.
        let _drain = self.drain.lock().await;
        let journal = self.journal.freeze()?;
        let store = self.store.begin_copy().await?;
        Ok((journal, store))
    }

    /// Where the tenant's live totals in memory differ from the store's sums of the same events. Windows that begin
    /// before `pruned_before` are left out: their first hour can't be summed any more.
    ///
    /// # Errors
    /// [`DrainError`] if store or journal can't be read.
    pub async fn drift_of(
        &self,
        tenant: TenantId,
        pruned_before: Timestamp,
    ) -> Result<Vec<Drift>, DrainError> {
        if let Ledger::Redis(_) = &self.ledger {
            return self.repaired(tenant, pruned_before).await;
        }
        // While no event moves, both sides end at the same one.
        let mut drain = self.drain.lock().await;
        self.mark(&mut drain).await?;
        if self.keep == KeepTotals::Rebuild {
            return Ok(Vec::new()); // these totals do not follow the drain
        }
        let drained = self.journal.drained();
        let mut live = self.ledger.drained_values(tenant, drained);
        live.retain(|(counter, _)| pruned_before <= counter.window.start());
        let counters: Vec<CounterOf> = live.iter().map(|(key, _)| key.counter()).collect();
        if counters.is_empty() {
            return Ok(Vec::new());
        }
        let journal = self.journal.id();
        let (stored, covered) = self.store.counters(tenant, &counters, journal).await?;
        if covered != drained {
            return Ok(Vec::new()); // the store is another one: that is a fault of its own
        }
        let pairs = live.into_iter().zip(stored);
        Ok(pairs
            .filter(|((_, live), stored)| live != stored)
            .map(|((counter, live), stored)| Drift {
                counter,
                live,
                stored,
            })
            .collect())
    }

    /// Shared totals are set right as soon as they are found to differ: no restart would.
    async fn repaired(
        &self,
        tenant: TenantId,
        pruned_before: Timestamp,
    ) -> Result<Vec<Drift>, DrainError> {
        let repaired = self.ledger.repair(tenant, pruned_before).await;
        let repaired = repaired.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let drifts = repaired.into_iter().map(|it| Drift {
            counter: it.counter,
            live: it.live,
            stored: it.stored,
        });
        Ok(drifts.collect())
    }

    /// What a tenant used of one feature in a window, what is still in the journal included.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if store or journal can't be read.
    pub async fn used(
        &self,
        tenant: TenantId,
        feature: &FeatureKey,
        window: Window,
    ) -> StoreResult<Quantity> {
        self.flush_tenant(tenant).await?;
        let totals = self
            .store
            .totals(tenant, std::slice::from_ref(feature), window, None)
            .await?;
        Ok(totals.totals.iter().map(|total| total.quantity).sum())
    }

    /// The same of a window that has ended; where replicas share their totals, what the journals of the others have is
    /// included, as long as it may not be in the store yet.
    ///
    /// # Errors
    /// As [`used`](Self::used).
    pub async fn used_by_all(
        &self,
        tenant: TenantId,
        feature: &FeatureKey,
        window: Window,
    ) -> StoreResult<Quantity> {
        let now = self.clock.now();
        if matches!(self.ledger, Ledger::Redis(_)) && now.since(window.end()) < DRAINED_WITHIN {
            let limits = [ActiveLimit::unlimited(feature.clone(), window)].into();
            let states = self.ledger.states(tenant, None, "", &limits, now).await;
            if let Ok([state]) = states.as_deref() {
                return Ok(state.settled);
            }
        }
        self.used(tenant, feature, window).await
    }

    /// Forgets an end user: its id is replaced by one that says nothing, in the store and in live totals. Usage that is
    /// recorded meanwhile, and later, counts for the id anew.
    ///
    /// # Errors
    /// `NotFound` if nothing names the user; `Unavailable`: nothing changed, or not all, and trying again is safe.
    pub async fn forget_user(
        &self,
        tenant: TenantId,
        user: &str,
        by: &Actor,
    ) -> Result<(), AdminError> {
        // What was written down before this call is to be in the store.
        self.flush_tenant(tenant).await?;
        let replacement = format!("forgotten-{}", clock::new_id().simple());
        let replaced = self
            .store
            .forget_user(tenant, user, &replacement, by)
            .await?;
        // No drain in between: it would take rows of counters that go now for such as are still there.
        let mut drain = self.drain.lock().await;
        let unavailable = |error: JournalError| AdminError::Unavailable(error.to_string());
        self.mark(&mut drain).await.map_err(unavailable)?;
        let removed = self.ledger.forget_user(tenant, user).await;
        if !removed.is_empty() {
            let snapshot = Snapshot {
                changed: Vec::new(),
                removed,
            };
            self.journal
                .mark_drained(self.journal.drained(), snapshot)
                .await
                .map_err(unavailable)?;
        }
        if replaced == 0 {
            return Err(AdminError::not_found("user", user));
        }
        Ok(())
    }

    /// Whether an event of a tenant is recorded, here or in the store; no if that can't be told: recording it again
    /// adds nothing to the store.
    pub async fn has_event(&self, tenant: TenantId, event: EventId) -> bool {
        let found = async {
            self.flush_tenant(tenant).await?;
            self.store.has_event(event).await
        };
        found.await.unwrap_or_else(|error| {
            tracing::warn!(%error, "whether an event is recorded already can't be told");
            false
        })
    }

    /// As [`flush`](Self::flush), if the tenant has anything in the journal.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if store or journal can't be read.
    pub async fn flush_tenant(&self, tenant: TenantId) -> StoreResult<()> {
        if self.journal.last_seq_of(tenant) > Seq(0) {
            self.flush().await.map_err(|error| match error {
                DrainError::Store(error) => error,
                DrainError::Journal(error) => StoreError::Unavailable(error.to_string()),
            })?;
        }
        Ok(())
    }
}

/// Waits for `work` on the store for as long as that answers. The drain is patient with a store that does not, and has
/// others wait behind it; a request is not.
async fn while_it_answers<T>(
    store: &SharedStore,
    work: impl Future<Output = StoreResult<T>>,
) -> StoreResult<T> {
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(LOOK_AGAIN, &mut work).await {
            Ok(done) => return done,
            Err(_) => store.ping().await?,
        }
    }
}

/// Where the ledger takes a counter from that it does not have: the store, once the tenant's events have arrived there.
struct StoredTotals(Weak<Recorder>);

impl BaseTotals for StoredTotals {
    fn load<'a>(
        &'a self,
        tenant: TenantId,
        counters: &'a [CounterOf],
    ) -> BoxFuture<'a, Result<(Vec<Quantity>, Seq), LedgerError>> {
        Box::pin(async move {
            let recorder = self.recorder()?;
            let journal = recorder.journal.id();
            let flushing = recorder.flush_tenant(tenant);
            while_it_answers(&recorder.store, flushing)
                .await
                .map_err(unavailable)?;
            recorder
                .store
                .counters(tenant, counters, journal)
                .await
                .map_err(unavailable)
        })
    }
}

impl SharedBase for StoredTotals {
    fn sums<'a>(
        &'a self,
        tenant: TenantId,
        counters: &'a [CounterOf],
        events: &'a [EventId],
    ) -> BoxFuture<'a, Result<SumsOfEvents, LedgerError>> {
        Box::pin(async move {
            let recorder = self.recorder()?;
            let store = &recorder.store;
            let journal = recorder.journal.id();
            let mut known = store.list_known_events(events).await.map_err(unavailable)?;
            if counters.is_empty() {
                return Ok((Vec::new(), known));
            }
            loop {
                let (sums, _) = store
                    .counters(tenant, counters, journal)
                    .await
                    .map_err(unavailable)?;
                if events.is_empty() {
                    return Ok((sums, known));
                }
                // What was there before and after was there meanwhile, and so was what was not.
                let after = store.list_known_events(events).await.map_err(unavailable)?;
                if after == known {
                    return Ok((sums, known));
                }
                known = after;
            }
        })
    }

    fn undrained(&self) -> BoxFuture<'_, Result<Vec<UsageEvent>, LedgerError>> {
        Box::pin(async move {
            let recorder = self.recorder()?;
            let journal = &recorder.journal;
            let known = *recorder.lock_recorded();
            let recorded = match known {
                Some(recorded) => recorded,
                None => match recorder.store.drained(journal.id()).await {
                    Ok(recorded) => recorded,
                    // What is in the store must not be counted again; the drain tells what is not.
                    Err(_) => return Ok(Vec::new()),
                },
            };
            let pending = usize::try_from(journal.pending()).unwrap_or(usize::MAX);
            if pending == 0 {
                return Ok(Vec::new());
            }
            let undrained = journal.read_undrained(pending).await;
            let undrained =
                undrained.map_err(|error| LedgerError::Unavailable(error.to_string()))?;
            let undrained = undrained.into_iter().filter(|(seq, _)| *seq > recorded);
            Ok(undrained.map(|(_, event)| event).collect())
        })
    }

    fn last_seq(&self) -> Seq {
        let recorder = self.0.upgrade();
        recorder.map_or(Seq::default(), |recorder| recorder.journal.last_seq())
    }

    fn reservations(&self) -> BoxFuture<'_, Result<Vec<Reservation>, LedgerError>> {
        Box::pin(async move {
            let recorder = self.recorder()?;
            let now = recorder.clock.now();
            let open = recorder.store.list_open_reservations(now).await;
            open.map_err(unavailable)
        })
    }
}

impl StoredTotals {
    fn recorder(&self) -> Result<Arc<Recorder>, LedgerError> {
        let recorder = self.0.upgrade();
        recorder.ok_or_else(|| LedgerError::Unavailable("shutting down".to_owned()))
    }
}

fn unavailable(error: StoreError) -> LedgerError {
    LedgerError::Unavailable(error.to_string())
}
