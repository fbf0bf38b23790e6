//! The ledger that replicas share: totals and holds in Redis, or a Redis Cluster, decided on by Lua scripts.
//!
//! A tenant's keys begin with `tg:2:{BUCKET}:TENANT:`, where 2 is the version of layout and scripts together (another
//! version is another set of keys), and `{BUCKET}` the hash tag that puts them into one slot:
//!
//! | key | holds |
//! | --- | --- |
//! | the root itself | the tenant: epoch, incarnation, drain sequence, instant of the latest event, when something is due, its counters; open holds by id |
//! | `k:KEY`, `u:USER` | the counters of a key, a user, with the incarnation |
//! | `d` | deadlines of holds that were renewed, or outlasted a lease without it |
//! | `e` | events that are counted: surely not in the store, or maybe there, since their journals are being drained; marked with the incarnation |
//! | `f` | events that two nodes may record, for a while after they were forgotten |
//! | `s` | which keys and users have counters |
//!
//! Any of these may be lost alone (a server may evict): the incarnation tells that events or counters of others are not
//! those of the tenant, a hold says itself whether its deadline must be in `d`, and what a lost tenant held its nodes
//! hold again when they renew it.
//!
//! Three invariants carry the exactness:
//! - Every script leaves a counter's `reserved` the sum of what open holds hold in it, and `settled` the sum of the
//!   store's events and of those in `e` that are not in the store.
//! - An event is marked in `e` before the store has it ([`RedisLedger::announce`] comes before `UsageStore::record`),
//!   and leaves it after its journal has forgotten it ([`RedisLedger::forget`]). So telling an event again counts nothing,
//!   and who reads sums knows which events to look for in them (`lua/install.lua`).
//! - What Redis forgets, some node knows: its open holds and undrained events. A lost bucket decides nothing until
//!   every living node has told them again (`lua/watch.lua`). Counters themselves are read from the store when needed,
//!   and not before that.
//!
//! Redis's clock decides: a hold is admitted when its script runs, and a window that does not hold that instant is
//! refused. Nothing here waits longer than 250 ms for Redis, and nobody waits at all once it is known to be away.

mod answers;
mod apart;
mod bucket;
mod decide;
mod drain;
mod examine;
mod heartbeat;
mod holds;
mod link;
mod load;
mod reply;
mod scripts;
mod wire;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use secrecy::SecretString;
use tokio::sync::oneshot;
use uuid::Uuid;

pub use self::{
    answers::{Claimed, Keep, Shared},
    examine::{Servers, look_at_servers},
    holds::RedisHold,
};
use self::{
    apart::Apart,
    bucket::{Bucket, State, Term},
    holds::{Holds, Open},
    link::{Answer, Fault, Job, Lane, Link, PATIENCE, Unreleased},
    load::Loads,
    reply::{Reply, Status},
    scripts::{Call, Head, Script},
    wire::Question,
};
use super::{EndedCounts, HoldInfo, InFlight, LedgerError, hold::id_of_hold};
use crate::{
    clock::{self, Clock},
    domain::{
        ids::{EventId, ReservationId, TenantId},
        quantity::Quantity,
        reservation::Reservation,
        time::Timestamp,
        usage::UsageEvent,
    },
    store::usage::{CounterOf, Seq},
};

/// How long a node may be silent before what it holds is given back.
pub const LEASE: Duration = Duration::from_secs(30);
/// A call that arrives later than this does nothing: who made it has given up, and acted on that.
const WANTED_FOR: Duration = Duration::from_secs(2);
/// Over how many lanes the tenants of a single server are spread.
const LANES: usize = 4;

/// What the ledger needs to know.
pub struct RedisSettings {
    /// One server, or some of a cluster's.
    pub urls: Vec<SecretString>,
    /// A manual clock takes the place of Redis's.
    pub clock: Clock,
    pub lease: Duration,
    /// The name of this node.
    pub node: String,
}

/// Sums of counters, and which of some events are in them.
pub type SumsOfEvents = (Vec<Quantity>, HashSet<EventId>);

/// What the system of record and this node's journal know.
pub trait SharedBase: Send + Sync {
    /// Sums of counters over what the store has, in the order asked, and which of `events` are in them: of one instant.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`] if they can't be read now.
    fn sums<'a>(
        &'a self,
        tenant: TenantId,
        counters: &'a [CounterOf],
        events: &'a [EventId],
    ) -> BoxFuture<'a, Result<SumsOfEvents, LedgerError>>;

    /// The events of this node's journal that are surely not in the store.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`] if the journal can't be read now.
    fn undrained(&self) -> BoxFuture<'_, Result<Vec<UsageEvent>, LedgerError>>;

    /// The last event of this node's journal.
    fn last_seq(&self) -> Seq;

    /// Open reservations of the reservation API, of every node.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`] if the store can't be read now.
    fn reservations(&self) -> BoxFuture<'_, Result<Vec<Reservation>, LedgerError>>;
}

/// Whose clock decides.
enum Time {
    Server,
    /// What was given last, in µs.
    Given(AtomicI64),
}

#[derive(Debug, Default)]
struct Tally {
    settled: AtomicU64,
    released: AtomicU64,
    reaped: AtomicU64,
    expired: AtomicU64,
}

pub struct RedisLedger {
    this: Weak<Self>,
    base: Arc<dyn SharedBase>,
    link: Arc<Link>,
    buckets: Arc<[Arc<Bucket>]>,
    lanes: Vec<Lane>,
    time: Time,
    clock: Clock,
    lease: Duration,
    /// Another one for each process, so that a restarted node is another node.
    node: String,
    seed: Uuid,
    numbers: AtomicU64,
    holds: Holds,
    loads: Loads,
    apart: Apart,
    /// Holds that ended while their bucket was away.
    unreleased: Unreleased,
    /// Claims of keyed requests whose end Redis has not heard of.
    owed: Mutex<answers::Owed>,
    /// The last event that a drain has told of.
    told: AtomicU64,
    /// Held by whoever tells of events after a look into the store, and alone by whoever forgets some: one that was
    /// recorded and forgotten between look and telling would be counted twice.
    telling: tokio::sync::RwLock<()>,
    dark: Mutex<drain::Dark>,
    tally: Tally,
}

impl RedisLedger {
    /// Starts to connect; [`ready`](Self::ready) waits for that. Must be called in a runtime.
    #[must_use]
    pub fn open(settings: RedisSettings, base: Arc<dyn SharedBase>) -> Arc<Self> {
        let RedisSettings {
            urls,
            clock,
            lease,
            node,
        } = settings;
        let link = Arc::new(Link::new(urls));
        let count = if link.is_cluster() {
            bucket::IN_CLUSTER
        } else {
            1
        };
        let buckets: Arc<[Arc<Bucket>]> = (0..count)
            .map(|index| Arc::new(Bucket::new(index)))
            .collect();
        let unreleased = Unreleased::default();
        let lanes = (0..count.max(LANES)).map(|lane| {
            let bucket = Arc::clone(&buckets[lane % count]);
            link::start_lane(Arc::clone(&link), bucket, Arc::clone(&unreleased))
        });
        let lanes = lanes.collect();
        let ledger = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            base,
            link,
            lanes,
            time: match &clock {
                Clock::Manual(manual) => Time::Given(AtomicI64::new(manual.now().micros())),
                Clock::System | Clock::Shared(_) => Time::Server,
            },
            clock,
            lease,
            node: format!("{node}/{}", clock::new_id().simple()),
            seed: clock::new_id(),
            numbers: AtomicU64::new(0),
            holds: Holds::default(),
            loads: Loads::default(),
            apart: Apart::new(),
            unreleased,
            owed: Mutex::default(),
            told: AtomicU64::new(0),
            telling: tokio::sync::RwLock::default(),
            dark: Mutex::default(),
            tally: Tally::default(),
            buckets,
        });
        heartbeat::start(&ledger);
        ledger
    }

    /// Waits until every bucket can be decided on, or for `patience`.
    pub async fn ready(&self, patience: Duration) {
        let all = async {
            for bucket in self.buckets.iter() {
                loop {
                    let turned = bucket.turned.notified();
                    tokio::pin!(turned);
                    turned.as_mut().enable();
                    if matches!(*bucket.state(), State::Live(_)) {
                        break;
                    }
                    turned.await;
                }
            }
        };
        drop(tokio::time::timeout(patience, all).await);
    }

    /// By the clock that it follows.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// What is wrong, if anything is.
    pub(super) fn fault(&self) -> Option<String> {
        let states = self.buckets.iter().map(|bucket| bucket.state());
        let down = states.clone().filter_map(|state| match &*state {
            State::Down(fault) => Some(fault.to_string()),
            State::Rebuilding(_) | State::Live(_) => None,
        });
        let down: Vec<String> = down.collect();
        match down.first() {
            Some(fault) if down.len() == self.buckets.len() => Some(fault.clone()),
            Some(fault) => Some(format!(
                "{fault} (for {} of {} parts of the tenants)",
                down.len(),
                self.buckets.len()
            )),
            None => states
                .into_iter()
                .any(|state| matches!(&*state, State::Rebuilding(_)))
                .then(|| "its totals are being rebuilt".to_owned()),
        }
    }

    fn bucket_index(&self, tenant: TenantId) -> usize {
        place_of(tenant, self.buckets.len())
    }

    fn bucket(&self, tenant: TenantId) -> &Arc<Bucket> {
        &self.buckets[self.bucket_index(tenant)]
    }

    fn lane(&self, tenant: TenantId) -> &Lane {
        match self.buckets.len() {
            1 => &self.lanes[place_of(tenant, self.lanes.len())],
            _ => &self.lanes[self.bucket_index(tenant)],
        }
    }

    /// A version 7 id of the time, this ledger's random bits and a running number.
    fn new_id(&self, now: Timestamp) -> ReservationId {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        id_of_hold(now, self.seed, number)
    }

    /// A name that nobody had.
    fn fresh(&self) -> String {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        format!("{}-{number:x}", self.seed.simple())
    }

    fn given_now(&self) -> i64 {
        match &self.time {
            Time::Server => wire::NONE,
            Time::Given(now) => now.load(Ordering::SeqCst),
        }
    }

    /// Where the caller's clock decides, that is what it says now.
    fn note_now(&self, now: Timestamp) {
        if let Time::Given(given) = &self.time {
            given.store(now.micros(), Ordering::SeqCst);
        }
    }

    fn not_after(&self) -> i64 {
        match (&self.time, &self.clock) {
            // Only a clock that was compared with Redis's can say when something is late there.
            (Time::Server, Clock::Shared(_)) => self.clock.now().plus(WANTED_FOR).micros(),
            _ => wire::NONE,
        }
    }

    fn call(
        &self,
        tenant: TenantId,
        script: Script,
        question: &Question,
    ) -> Result<(Term, Call), Fault> {
        let bucket = self.bucket(tenant);
        let term = bucket.term()?;
        let head = Head {
            marker: &bucket.marker,
            epoch: &term.epoch,
            root: &bucket.root(tenant),
            fresh: wire::number_of(&self.fresh()),
            now: self.given_now(),
            not_after: self.not_after(),
            lease: decide::micros(self.lease),
        };
        let call = script.call(&head, question);
        Ok((term, call))
    }

    /// Puts a call into its lane: from here on it is carried out in its turn, whether anybody waits for it or not.
    fn send(
        &self,
        tenant: TenantId,
        script: Script,
        question: &Question,
    ) -> Result<Asked<'_>, Fault> {
        let call = self.call(tenant, script, question)?;
        Ok(self.put(tenant, call, None))
    }

    fn put(
        &self,
        tenant: TenantId,
        (term, call): (Term, Call),
        gives_back: Option<(TenantId, ReservationId)>,
    ) -> Asked<'_> {
        let (reply, receiver) = oneshot::channel();
        let job = Job {
            call,
            term: Some(term.clone()),
            reply,
            gives_back,
        };
        drop(self.lane(tenant).send(job)); // without a lane nobody answers
        Asked {
            ledger: self,
            tenant,
            term,
            receiver,
        }
    }

    async fn ask(
        &self,
        tenant: TenantId,
        script: Script,
        question: &Question,
    ) -> Result<Reply, Fault> {
        self.send(tenant, script, question)?.answer().await
    }

    fn note_reaped(&self, reply: &Reply) {
        if reply.reaped > 0 {
            self.tally.reaped.fetch_add(reply.reaped, Ordering::Relaxed);
        }
        if reply.expired > 0 {
            let expired = &self.tally.expired;
            expired.fetch_add(reply.expired, Ordering::Relaxed);
        }
    }

    pub(super) fn in_flight(&self) -> InFlight {
        let mut in_flight = InFlight::default();
        for open in self.holds.lock().values() {
            in_flight.held += 1;
            in_flight.detached += u64::from(open.is_detached.load(Ordering::Relaxed));
            let oldest = in_flight.oldest.unwrap_or(open.admitted_at);
            in_flight.oldest = Some(oldest.min(open.admitted_at));
        }
        in_flight
    }

    pub(super) fn list_holds(&self) -> Vec<HoldInfo> {
        let mut holds: Vec<HoldInfo> = self.holds.lock().values().map(|it| it.info()).collect();
        holds.sort_unstable_by_key(|hold| (hold.since, hold.id));
        holds
    }

    pub(super) fn ended(&self) -> EndedCounts {
        EndedCounts {
            settled: self.tally.settled.load(Ordering::Relaxed),
            released: self.tally.released.load(Ordering::Relaxed),
            reaped: self.tally.reaped.load(Ordering::Relaxed),
            expired: self.tally.expired.load(Ordering::Relaxed),
        }
    }

    pub(super) fn tenants(&self) -> Vec<TenantId> {
        self.apart.tenants()
    }

    /// Open holds of this node by their tenants, for those of a bucket (`None`: of all).
    fn holds_by_tenant(
        &self,
        holds: &HashMap<ReservationId, Arc<Open>>,
        bucket: Option<usize>,
    ) -> HashMap<TenantId, Vec<wire::Held>> {
        let mut by_tenant: HashMap<TenantId, Vec<wire::Held>> = HashMap::new();
        let of_bucket = |open: &&Arc<Open>| {
            bucket.is_none_or(|bucket| self.bucket_index(open.tenant) == bucket)
        };
        for open in holds.values().filter(of_bucket) {
            let held = by_tenant.entry(open.tenant).or_default();
            held.push(open.wire(&self.node));
        }
        by_tenant
    }
}

/// A call that has been put into its lane.
struct Asked<'a> {
    ledger: &'a RedisLedger,
    tenant: TenantId,
    term: Term,
    receiver: oneshot::Receiver<Answer>,
}

impl Asked<'_> {
    async fn answer(self) -> Result<Reply, Fault> {
        let answer = match tokio::time::timeout(PATIENCE, self.receiver).await {
            Ok(Ok(answer)) => answer?,
            Ok(Err(_lane_is_gone)) => return Err(Fault::Away("the server stops".to_owned())),
            Err(_elapsed) => {
                self.ledger.bucket(self.tenant).fail(&Fault::TimedOut);
                return Err(Fault::TimedOut);
            }
        };
        let reply = unpacked(&answer)?;
        if reply.status == Status::Epoch {
            // The heartbeat finds out what became of it.
            self.ledger.bucket(self.tenant).wake.notify_one();
            return Err(Fault::Away("its totals are being rebuilt".to_owned()));
        }
        if reply.status == Status::Late {
            self.ledger.bucket(self.tenant).fail(&Fault::TimedOut);
            return Err(Fault::TimedOut);
        }
        self.ledger.note_reaped(&reply);
        Ok(reply)
    }
}

fn place_of(tenant: TenantId, places: usize) -> usize {
    let [.., high, low] = tenant.uuid().into_bytes(); // random in every version of UUID
    usize::from(u16::from_be_bytes([high, low])) % places
}

fn unpacked(answer: &[u8]) -> Result<Reply, Fault> {
    Reply::read(answer)
        .map_err(|error| Fault::Refused(format!("an answer that can't be read: {error}")))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TimedOut => write!(f, "Redis gave no answer within {} ms", PATIENCE.as_millis()),
            Self::Away(why) => write!(f, "Redis is away: {why}"),
            Self::Refused(why) => write!(f, "Redis refused: {why}"),
        }
    }
}

impl From<Fault> for LedgerError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::TimedOut => Self::TimedOut,
            Fault::Away(_) | Fault::Refused(_) => Self::Unavailable(fault.to_string()),
        }
    }
}

#[cfg(test)]
mod claims;
#[cfg(test)]
mod history;
#[cfg(test)]
mod layout;
#[cfg(test)]
mod returning;
#[cfg(test)]
mod tests;
