//! The reservation API: holds for applications that call a model themselves.
//!
//! A reservation is in the store before its answer leaves, and held again at a start, so a crash neither loses nor
//! doubles one. Settling is written down in the store first (so that one idempotency key alone can do it), as an
//! event second, and counted third. A crash in between is made up for at the next start, or by the client's repeat.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use crate::{
    app::tasks::Tasks,
    clock::{self, Clock},
    domain::{
        ids::{ReservationId, TenantId},
        limit::{LimitState, LimitStates},
        reservation::{Reservation, Settlement},
        time::Timestamp,
        usage::{Quantities, Source, UsageEvent, event_id_of},
    },
    journal::JournalError,
    ledger::{Granted, Hold},
    services::{
        catalogue::Catalogue,
        guard::{AdmitError, Caller, Guard, ReserveAsk},
        recorder::Recorder,
    },
    store::{
        SharedStore, StoreError, StoreResult,
        reservations::{Releasing, Settling},
    },
    telemetry::{
        events::{self, Decision, OvershootCause},
        metrics::Metrics,
    },
};

/// Settles of one reservation come one by one: those of reservations that share a place wait for each other too.
const PLACES: usize = 64;
/// How long a reservation that expires now may wait for the next look.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// How long a start waits for a store that it has found and that is busy.
const START_PATIENCE: Duration = Duration::from_secs(15);

/// What an application wants to reserve.
#[derive(Clone, Debug)]
pub struct NewReservation {
    pub caller: Caller,
    pub quantities: Quantities,
    pub ttl: Duration,
    pub model: Option<String>,
}

/// What it got.
pub struct Reserved {
    pub reservation: Reservation,
    pub decision: Decision,
    pub states: LimitStates,
}

/// What a reservation turned out to have used.
#[derive(Clone, Debug)]
pub struct SettleAsk {
    pub tenant: TenantId,
    pub reservation: ReservationId,
    pub quantities: Quantities,
    /// `""` if none is named.
    pub key: String,
}

/// A settled reservation.
pub struct Settled {
    pub reservation: Reservation,
    pub settlement: Settlement,
    /// It was settled before, with the same key; this call added nothing.
    pub is_duplicate: bool,
    /// The limits of who reserved, as they stand now; none with guardrails off, or where they can't be read.
    pub states: Vec<LimitState>,
}

/// Why a reservation could not be made, settled or released.
#[derive(Debug, thiserror::Error)]
pub enum ReservationError {
    #[error(transparent)]
    Admit(#[from] AdmitError),
    #[error("there is no reservation '{0}'")]
    NotFound(ReservationId),
    #[error("reservation '{0}' is settled already")]
    Settled(ReservationId),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopped,
}

/// Where this node's open reservations have their holds.
#[derive(Default)]
struct Open {
    holds: HashMap<ReservationId, (Hold, Timestamp)>,
    by_expiry: BTreeSet<(Timestamp, ReservationId)>,
}

impl Open {
    fn insert(&mut self, hold: Hold, expires_at: Timestamp) {
        self.by_expiry.insert((expires_at, hold.id()));
        self.holds.insert(hold.id(), (hold, expires_at));
    }

    fn take(&mut self, id: ReservationId) -> Option<Hold> {
        let (hold, expires_at) = self.holds.remove(&id)?;
        self.by_expiry.remove(&(expires_at, id));
        Some(hold)
    }
}

/// Makes, settles, releases and expires reservations.
pub struct Reservations {
    store: SharedStore,
    guard: Arc<Guard>,
    catalogue: Arc<Catalogue>,
    recorder: Arc<Recorder>,
    metrics: Arc<Metrics>,
    clock: Clock,
    tasks: Tasks,
    node: String,
    open: Mutex<Open>,
    made: Notify,
    settling: [tokio::sync::Mutex<()>; PLACES],
    expired: AtomicU64,
}

/// What reservations need.
pub struct ReservationParts {
    pub store: SharedStore,
    pub guard: Arc<Guard>,
    pub catalogue: Arc<Catalogue>,
    pub recorder: Arc<Recorder>,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    pub tasks: Tasks,
    /// The name of this node.
    pub node: String,
}

impl Reservations {
    /// Holds again what was reserved before this start, and records what was settled but not recorded then.
    /// To be called before the first request is decided.
    ///
    /// # Errors
    /// [`StoreError`] if the store can't be read, [`JournalError`] if an event can't be written.
    pub async fn open(parts: ReservationParts) -> Result<Arc<Self>, ReservationError> {
        let ReservationParts {
            store,
            guard,
            catalogue,
            recorder,
            metrics,
            clock,
            tasks,
            node,
        } = parts;
        let reservations = Arc::new(Self {
            store,
            guard,
            catalogue,
            recorder,
            metrics,
            clock,
            tasks,
            node,
            open: Mutex::default(),
            made: Notify::new(),
            settling: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            expired: AtomicU64::default(),
        });
        reservations.restore().await?;
        Ok(reservations)
    }

    async fn restore(&self) -> Result<(), ReservationError> {
        let now = self.clock.now();
        let open = at_last(async || self.store.list_open_reservations(now).await).await?;
        for reservation in open {
            let reopened = self.recorder.ledger().reopen(
                Granted {
                    id: reservation.reservation_id,
                    tenant: reservation.tenant_id,
                    key: reservation.key_id,
                    user: &reservation.user,
                    quantities: &reservation.quantities,
                    request_id: &reservation.request_id,
                    admitted_at: reservation.admitted_at,
                },
                now,
            );
            if let Some(hold) = reopened {
                self.lock().insert(hold, reservation.expires_at);
            }
        }
        for reservation in at_last(async || self.store.list_unrecorded_reservations().await).await?
        {
            if let Some(settlement) = reservation.settlement.clone() {
                self.record_once(&reservation, &settlement, None).await?;
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of this node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// How many reservations expired unsettled since the start.
    #[must_use]
    pub fn expired(&self) -> u64 {
        self.expired.load(Ordering::Relaxed)
    }

    /// When the reservation's hold ends, if it is one that this node holds.
    #[must_use]
    pub fn expires_at(&self, id: ReservationId) -> Option<Timestamp> {
        self.lock()
            .holds
            .get(&id)
            .map(|(_, expires_at)| *expires_at)
    }

    /// Holds what is asked until it is settled, released, or its time is over.
    ///
    /// # Errors
    /// [`ReservationError`]: nothing is held.
    pub async fn reserve(
        self: &Arc<Self>,
        ask: NewReservation,
    ) -> Result<Reserved, ReservationError> {
        let this = Arc::clone(self);
        // A task of its own: a client that goes away must not leave a hold that the store does not know.
        let made = self.tasks.spawn(async move { this.make(ask).await });
        made.await.unwrap_or(Err(ReservationError::Stopped))
    }

    async fn make(&self, ask: NewReservation) -> Result<Reserved, ReservationError> {
        let allowed = self
            .guard
            .reserve_exactly(&ReserveAsk {
                caller: &ask.caller,
                model: ask.model.as_deref(),
                quantities: &ask.quantities,
            })
            .await?;
        let id = match &allowed.hold {
            Some(hold) => hold.id(),
            None => ReservationId::new(clock::new_id()),
        };
        let reservation = Reservation {
            reservation_id: id,
            tenant_id: ask.caller.tenant_id,
            key_id: Some(ask.caller.key_id),
            user: ask.caller.user.to_string(),
            model: ask.model,
            request_id: ask.caller.request_id.to_string(),
            node: self.node.clone(),
            quantities: ask.quantities,
            admitted_at: allowed.admitted_at,
            expires_at: allowed.admitted_at.plus(ask.ttl).up_to_whole_second(),
            released_at: None,
            settlement: None,
        };
        self.store.add_reservation(&reservation).await?;
        if let Some(hold) = allowed.hold {
            let ledger = self.recorder.ledger();
            match ledger.keep(hold, reservation.expires_at).await {
                Ok(Some(hold)) => {
                    self.lock().insert(hold, reservation.expires_at);
                    self.made.notify_one();
                }
                Ok(None) => {}
                // It was admitted, and nobody would admit it now.
                Err(error) => {
                    tracing::warn!(%error, reservation = %id, "a reservation is not held any more");
                }
            }
        }
        Ok(Reserved {
            reservation,
            decision: allowed.decision,
            states: allowed.states,
        })
    }

    /// Replaces what is held by what was used; more than was reserved is taken, and so is what comes late.
    ///
    /// # Errors
    /// [`ReservationError::Settled`] if another key settled it; trying again is safe after all others.
    pub async fn settle(self: &Arc<Self>, ask: SettleAsk) -> Result<Settled, ReservationError> {
        let this = Arc::clone(self);
        // A task of its own: what was used is written down, whether its sender waits or not.
        let settled = self.tasks.spawn(async move { this.settle_once(ask).await });
        settled.await.unwrap_or(Err(ReservationError::Stopped))
    }

    async fn settle_once(&self, ask: SettleAsk) -> Result<Settled, ReservationError> {
        let [.., place] = ask.reservation.uuid().into_bytes();
        let _one_by_one = self.settling[usize::from(place) % PLACES].lock().await;
        let settlement = Settlement {
            key: ask.key,
            quantities: ask.quantities,
            at: self.clock.now(),
            event_id: event_id_of(
                ask.tenant,
                Source::Reservation,
                &ask.reservation.to_string(),
            ),
            is_recorded: !self.guard.is_on(), // then there is nothing to record, now or later
        };
        let settling = self
            .store
            .settle_reservation(ask.tenant, ask.reservation, &settlement)
            .await?;
        let (reservation, settlement, is_duplicate) = match settling {
            Settling::NotFound => return Err(ReservationError::NotFound(ask.reservation)),
            Settling::Before(_, before) if before.key != settlement.key => {
                return Err(ReservationError::Settled(ask.reservation));
            }
            Settling::Before(reservation, before) => (reservation, before, true),
            Settling::First(reservation) => (reservation, settlement, false),
        };
        let hold = self.take_hold(reservation.tenant_id, reservation.reservation_id);
        if is_duplicate {
            // Most often there is nothing left to do; not so if the first was cut off by a crash or a full disk.
            self.record_once(&reservation, &settlement, hold).await?;
        } else {
            self.see_limits(&reservation).await;
            self.record(&reservation, &settlement, hold).await?;
        }
        let states = self.states(&reservation).await.unwrap_or_default();
        Ok(Settled {
            reservation,
            settlement,
            is_duplicate,
            states,
        })
    }

    /// Records a settlement unless its event is there.
    async fn record_once(
        &self,
        reservation: &Reservation,
        settlement: &Settlement,
        hold: Option<Hold>,
    ) -> Result<(), ReservationError> {
        if settlement.is_recorded {
            return Ok(());
        }
        self.recorder.flush_tenant(reservation.tenant_id).await?;
        if self.store.has_event(settlement.event_id).await? {
            return Ok(());
        }
        self.record(reservation, settlement, hold).await
    }

    /// The reservation's hold: this node's, or what every node shares.
    fn take_hold(&self, tenant: TenantId, id: ReservationId) -> Option<Hold> {
        let own = self.lock().take(id);
        own.or_else(|| self.recorder.ledger().kept(tenant, id))
    }

    async fn record(
        &self,
        reservation: &Reservation,
        settlement: &Settlement,
        hold: Option<Hold>,
    ) -> Result<(), ReservationError> {
        if settlement.is_recorded {
            return Ok(());
        }
        let event = UsageEvent {
            event_id: settlement.event_id,
            request_id: reservation.request_id.clone(),
            source: Source::Reservation,
            tenant_id: reservation.tenant_id,
            key_id: reservation.key_id,
            user: reservation.user.clone(),
            model: reservation.model.clone(),
            quantities: settlement.quantities.clone(),
            estimated: false,
            reason: None,
            price_id: None,
            admitted_at: reservation.admitted_at,
            recorded_at: self.clock.now(),
        };
        let settled = self.recorder.settle(hold, &event).await?;
        self.catalogue
            .note_settled(reservation.tenant_id, reservation.admitted_at);
        let policy = self.catalogue.policy(reservation.tenant_id).await;
        events::Recorded {
            plan_code: policy
                .ok()
                .flatten()
                .as_ref()
                .map_or("", |it| it.plan_code()),
            quantities: &settlement.quantities,
            estimated: false,
        }
        .emit(&self.metrics);
        events::Overshoot {
            overshoot: &settled.overshoot,
            cause: OvershootCause::AfterTheFact,
        }
        .emit(&self.metrics);
        Ok(())
    }

    /// Has the ledger read the counters, so that it can tell by how much this usage passes a limit.
    async fn see_limits(&self, reservation: &Reservation) {
        if let Err(error) = self.states(reservation).await {
            tracing::debug!(%error, "a reservation is settled without a look at its limits");
        }
    }

    /// Where the limits of who reserved stand now.
    async fn states(
        &self,
        reservation: &Reservation,
    ) -> Result<Vec<LimitState>, crate::services::reports::ReportError> {
        if !self.guard.is_on() {
            return Ok(Vec::new());
        }
        let Some(policy) = self.catalogue.policy(reservation.tenant_id).await? else {
            return Ok(Vec::new());
        };
        let now = self.clock.now();
        let active = self.catalogue.limits(&policy, now).await?;
        let ledger = self.recorder.ledger();
        Ok(ledger
            .states(
                reservation.tenant_id,
                reservation.key_id,
                &reservation.user,
                &active.limits,
                now,
            )
            .await?)
    }

    /// Gives back what a reservation holds; with `tenant`, only if it is that tenant's.
    ///
    /// # Errors
    /// [`ReservationError::Settled`], or [`ReservationError::NotFound`] if there is none, or it was released before.
    pub async fn release(
        self: &Arc<Self>,
        tenant: Option<TenantId>,
        id: ReservationId,
    ) -> Result<(), ReservationError> {
        let this = Arc::clone(self);
        // A task of its own: a client that goes away must not leave a hold that the store calls released.
        let released = self
            .tasks
            .spawn(async move { this.release_once(tenant, id).await });
        released.await.unwrap_or(Err(ReservationError::Stopped))
    }

    async fn release_once(
        &self,
        tenant: Option<TenantId>,
        id: ReservationId,
    ) -> Result<(), ReservationError> {
        let now = self.clock.now();
        match self.store.release_reservation(tenant, id, now).await? {
            Releasing::Released => {
                let own = self.lock().take(id);
                if own.is_none() {
                    self.release_shared(tenant, id).await?;
                }
                Ok(())
            }
            Releasing::Settled => Err(ReservationError::Settled(id)),
            Releasing::NotFound => Err(ReservationError::NotFound(id)),
        }
    }

    /// Gives back what is not held by this process, if it is held at all.
    async fn release_shared(
        &self,
        tenant: Option<TenantId>,
        id: ReservationId,
    ) -> Result<(), ReservationError> {
        let tenant = match tenant {
            Some(tenant) => Some(tenant),
            None => self
                .store
                .find_reservation(id)
                .await?
                .map(|it| it.tenant_id),
        };
        self.recorder.ledger().release(tenant, id).await;
        Ok(())
    }

    /// Waits until something was reserved since this was last waited for. One at a time may wait.
    pub async fn made(&self) {
        self.made.notified().await;
    }

    /// Gives back what expired by now; when to look again, `None` while nothing is reserved.
    pub fn expire(&self) -> Option<Duration> {
        let now = self.clock.now();
        let mut open = self.lock();
        let mut expired = Vec::new();
        let next = loop {
            match open.by_expiry.first().copied() {
                Some((expires_at, id)) if expires_at <= now => expired.extend(open.take(id)),
                Some((expires_at, _)) => break Some(expires_at),
                None => break None,
            }
        };
        drop(open);
        let count = u64::try_from(expired.len()).unwrap_or(u64::MAX);
        self.expired.fetch_add(count, Ordering::Relaxed);
        drop(expired);
        let pause = next?.since(now);
        Some(pause.clamp(Duration::from_millis(1), LONGEST_PAUSE))
    }

    /// Those that hold something now, of every node, as the store knows them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list_open(&self) -> StoreResult<Vec<Reservation>> {
        self.store.list_open_reservations(self.clock.now()).await
    }
}

/// What the store answers once it does.
async fn at_last<T>(read: impl AsyncFn() -> StoreResult<T>) -> StoreResult<T> {
    let until = tokio::time::Instant::now() + START_PATIENCE;
    loop {
        match read().await {
            Err(StoreError::Unavailable(why)) if tokio::time::Instant::now() < until => {
                tracing::debug!(%why, "the start waits for the store");
                tokio::time::sleep(LONGEST_PAUSE).await;
            }
            read => return read,
        }
    }
}
