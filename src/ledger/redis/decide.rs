//! Reserving, settling, looking and giving back.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, Ordering},
};

use super::{
    Fault, Open, RedisHold, RedisLedger, Reply, Script, State, Status, Term,
    wire::{self, Count, Decide, Event, Mode},
};
use crate::{
    domain::{
        ids::{KeyId, ReservationId, TenantId},
        limit::{ActiveLimit, LimitState, LimitStates, SoftLimitMode, Standing, sort_violations},
        quantity::Quantity,
        time::Timestamp,
        usage::{Quantities, UsageEvent},
    },
    ledger::{
        Hold, LedgerAsk, LedgerError, OnViolation, Over, Reserved, Settled, Since,
        amounts::{judge, least_of, whole_of},
        local::overshoot,
        subjects::Who,
    },
    store::usage::{CounterOf, Seq},
};

/// After so many amounts that were lowered to what was left, and were gone when they were asked for, the least that
/// the request is content with is asked for: that is held or refused, whoever else asks meanwhile.
const LOWERED_TRIES: usize = 8;
/// Counters that go again as soon as they are read would have a request go round for ever.
const MOST_LOADS: usize = 16;

/// Gives back what a request may hold that did not live to see the answer.
struct Doubt<'a> {
    ledger: &'a RedisLedger,
    tenant: TenantId,
    id: ReservationId,
    is_over: bool,
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.ledger.release_later(self.tenant, self.id);
        }
    }
}

impl RedisLedger {
    pub(in crate::ledger) async fn reserve(
        &self,
        ask: &LedgerAsk<'_>,
    ) -> Result<Reserved, LedgerError> {
        self.note_now(ask.now);
        let who = Who {
            key: ask.key,
            user: ask.user,
        };
        let (places, limits) = wire::limits_of(who, ask.limits, ask.soft);
        let id = self.new_id(ask.now);
        let (id_text, key, user) = (
            id.to_string(),
            wire::key_name(ask.key),
            wire::user_name(ask.user),
        );
        let mut amounts = whole_of(ask.wants);
        let (mut lowered, mut loads) = (0, 0);
        loop {
            let decide = Decide {
                mode: match ask.on_violation {
                    OnViolation::Refuse => Mode::Hold,
                    OnViolation::Note => Mode::Force,
                },
                key: &key,
                user: &user,
                limits: &limits,
                wants: &amounts,
                id: &id_text,
                node: &self.node,
                request: ask.request_id,
            };
            self.check_live(ask.tenant)?;
            let mut doubt = Doubt {
                ledger: self,
                tenant: ask.tenant,
                id,
                is_over: false,
            };
            let question = decide.question();
            let asked = self.send(ask.tenant, Script::Decide, &question)?;
            let term = asked.term.clone();
            let reply = asked.answer().await?;
            let stands = reply.all_stand(&limits);
            let states = states_of(ask.limits, &places, &stands);
            match reply.status {
                Status::Held => {
                    self.apart.note(ask.tenant, &limits, &stands);
                    let hold = Granting {
                        id,
                        amounts,
                        states,
                        limits,
                        admitted_at: self.admitted_at(&reply, ask.now),
                    };
                    let hold = self.granted(ask, hold, &term)?;
                    doubt.is_over = true;
                    return Ok(Reserved::Held(hold));
                }
                Status::Over => {
                    doubt.is_over = true;
                    self.apart.note(ask.tenant, &limits, &stands);
                    let judgement = judge(ask.wants, &states, ask.soft, OnViolation::Refuse);
                    if !judgement.violations.is_empty() {
                        let mut violations = judgement.violations;
                        sort_violations(&mut violations);
                        return Ok(Reserved::Over(Box::new(Over { violations, states })));
                    }
                    lowered += 1;
                    amounts = match lowered {
                        ..=LOWERED_TRIES => judgement.granted,
                        _ => least_of(ask.wants),
                    };
                    if lowered > LOWERED_TRIES + 1 {
                        let why = "the least that fits was not held";
                        return Err(LedgerError::Unavailable(why.to_owned()));
                    }
                }
                Status::Load => {
                    doubt.is_over = true;
                    loads += 1;
                    if loads > MOST_LOADS {
                        return Err(gone_again());
                    }
                    let missing = missing_of(who, ask.limits, &places, &reply);
                    self.load(ask.tenant, missing, reply).await?;
                }
                Status::Time => {
                    doubt.is_over = true;
                    return Ok(Reserved::Elsewhen(reply.now()));
                }
                _ => return Err(unexpected(&reply)),
            }
        }
    }

    /// Nothing is decided on while it is rebuilt: what others hold may not be told yet.
    fn check_live(&self, tenant: TenantId) -> Result<(), LedgerError> {
        match &*self.bucket(tenant).state() {
            State::Live(_) => Ok(()),
            State::Down(fault) => Err(fault.clone().into()),
            State::Rebuilding(_) => {
                Err(Fault::Away("its totals are being rebuilt".to_owned()).into())
            }
        }
    }

    fn admitted_at(&self, reply: &Reply, asked_at: Timestamp) -> Timestamp {
        match self.time {
            super::Time::Server => reply.now(),
            super::Time::Given(_) => asked_at,
        }
    }

    fn granted(&self, ask: &LedgerAsk<'_>, granting: Granting, term: &Term) -> Result<Hold, Fault> {
        let Granting {
            id,
            amounts,
            mut states,
            limits,
            admitted_at,
        } = granting;
        let violations = match ask.on_violation {
            OnViolation::Refuse => Vec::new(),
            OnViolation::Note => {
                let judgement = judge(ask.wants, &states, ask.soft, OnViolation::Note);
                let mut violations = judgement.violations;
                sort_violations(&mut violations);
                violations
            }
        };
        states.update(|limit, standing| {
            standing.reserved = standing.reserved.plus(amounts.of(&limit.feature));
        });
        let open = Arc::new(Open {
            id,
            tenant: ask.tenant,
            key: ask.key,
            user: ask.user.to_owned(),
            request_id: ask.request_id.to_owned(),
            admitted_at,
            granted: amounts,
            is_detached: AtomicBool::new(false),
        });
        self.keep_open(&open, term)?;
        Ok(Hold::Redis(Box::new(RedisHold {
            ledger: Weak::clone(&self.this),
            open,
            states,
            violations,
            limits,
            is_ended: false,
        })))
    }

    /// From here on the hold is told again to a bucket that was lost. One that was lost since it held this may have been
    /// told everything before, and knows nothing of it.
    pub(super) fn keep_open(&self, open: &Arc<Open>, term: &Term) -> Result<(), Fault> {
        let mut holds = self.holds.lock();
        if self.bucket(open.tenant).is_past(term) {
            return Err(Fault::Away("its totals are being rebuilt".to_owned()));
        }
        holds.insert(open.id, Arc::clone(open));
        Ok(())
    }

    /// Counts the event of a request in place of what it holds. If Redis does not answer, the drain tells it again.
    ///
    /// A drain may have told of the event before this: it is durable, and its request has only just been woken. Then it
    /// counts already, and is perhaps known no more, so that here only the hold ends.
    pub(super) async fn settle(
        &self,
        hold: &mut RedisHold,
        seq: Seq,
        event: &UsageEvent,
    ) -> Settled {
        let (asked, was_own) = {
            // Under this lock a renewal is either in the lane before, or does not know of it any more.
            let mut holds = self.holds.lock();
            let was_own = holds.remove(&hold.open.id).is_some();
            let count = Count {
                hold: Some(hold.open.id),
                events: &[Event::of(event)],
                only_here: self.is_told(seq),
                ..Count::default()
            };
            let question = count.question();
            let asked = self.send(event.tenant_id, Script::Count, &question);
            (asked, was_own)
        };
        let reply = match asked {
            Ok(asked) => asked.answer().await,
            Err(fault) => Err(fault),
        };
        // One that outlives its node is nobody's own, and may be settled by several at once.
        if was_own || reply.as_ref().is_ok_and(|reply| reply.ended > 0) {
            self.tally.settled.fetch_add(1, Ordering::Relaxed);
        }
        let mut states = std::mem::take(&mut hold.states);
        let used = &event.quantities;
        match &reply {
            Ok(reply) => {
                let mut limits = hold.limits.iter();
                states.update(|_, standing| {
                    let stands = limits
                        .next()
                        .and_then(|limit| Some((limit, reply.stands(limit)?)));
                    if let Some((limit, (settled, reserved))) = stands {
                        let limit = std::slice::from_ref(limit);
                        self.apart
                            .note(event.tenant_id, limit, &[(settled, reserved)]);
                        *standing = standing_of(settled, reserved);
                    }
                });
            }
            Err(fault) => {
                tracing::debug!(%fault, "usage is counted when it is drained");
                // The event may be counted by another call than the one that ends the hold.
                super::lock(&self.unreleased).push((event.tenant_id, hold.open.id));
                self.apart.record(self.base.last_seq(), event);
                let granted = &hold.open.granted;
                states.update(|limit, standing| {
                    let feature = &limit.feature;
                    standing.settled = standing.settled.plus(used.of(feature));
                    standing.reserved = standing.reserved.minus(granted.of(feature));
                });
            }
        }
        if states.is_empty() {
            let overshoot = reply.map_or_else(
                |_| Quantities::default(),
                |it| judged(event, &it, &|_| None),
            );
            return Settled { states, overshoot };
        }
        let overshoot = overshoot(used, || {
            states
                .iter()
                .filter_map(|it| Some((&it.limit.feature, it.settled, it.limit.hard?)))
        });
        Settled { states, overshoot }
    }

    pub(in crate::ledger) async fn record(
        &self,
        seq: Seq,
        event: &UsageEvent,
        since: Since<'_>,
    ) -> Settled {
        let asked = {
            let _in_order = self.holds.lock(); // as in `settle`
            let count = Count {
                events: &[Event::of(event)],
                only_here: self.is_told(seq),
                ..Count::default()
            };
            self.send(event.tenant_id, Script::Count, &count.question())
        };
        let told = match asked {
            Ok(asked) => asked.answer().await,
            Err(fault) => Err(fault),
        };
        match told {
            Ok(reply) => Settled {
                states: LimitStates::default(),
                overshoot: judged(event, &reply, since),
            },
            Err(fault) => {
                tracing::debug!(%fault, "usage is counted when it is drained");
                self.apart.record(self.base.last_seq(), event);
                Settled::default()
            }
        }
    }

    pub(in crate::ledger) async fn states(
        &self,
        tenant: TenantId,
        key: Option<KeyId>,
        user: &str,
        limits: &Arc<[ActiveLimit]>,
        now: Timestamp,
    ) -> Result<Vec<LimitState>, LedgerError> {
        self.note_now(now);
        let who = Who { key, user };
        let (places, wire_limits) = wire::limits_of(who, limits, SoftLimitMode::Warn);
        let (key, user) = (wire::key_name(key), wire::user_name(user));
        let look = Decide {
            mode: Mode::Look,
            key: &key,
            user: &user,
            limits: &wire_limits,
            wants: &Quantities::default(),
            id: "",
            node: "",
            request: "",
        };
        let look = look.question();
        for _ in 0..MOST_LOADS {
            let reply = self.ask(tenant, Script::Decide, &look).await?;
            match reply.status {
                Status::Seen => {
                    let stands = reply.all_stand(&wire_limits);
                    self.apart.note(tenant, &wire_limits, &stands);
                    return Ok(states_of(limits, &places, &stands).to_vec());
                }
                Status::Load => {
                    let missing = missing_of(who, limits, &places, &reply);
                    self.load(tenant, missing, reply).await?;
                }
                _ => return Err(unexpected(&reply)),
            }
        }
        Err(gone_again())
    }

    /// Gives back what one of this node's requests holds, and does not wait for it.
    pub(super) fn give_back(&self, open: &Open) {
        let mut holds = self.holds.lock();
        if holds.remove(&open.id).is_some() {
            self.tally.released.fetch_add(1, Ordering::Relaxed);
        }
        // Whoever asks next finds it in the lane behind this.
        self.release_later(open.tenant, open.id);
    }

    pub(super) fn release_later(&self, tenant: TenantId, id: ReservationId) {
        let release = Count {
            hold: Some(id),
            ..Count::default()
        };
        match self.call(tenant, Script::Count, &release.question()) {
            Ok(call) => drop(self.put(tenant, call, Some((tenant, id)))),
            Err(_away) => super::lock(&self.unreleased).push((tenant, id)),
        }
    }

    /// Ends a hold by hand: this node's by its id alone, any other if its tenant is known. Whether it was open.
    pub(in crate::ledger) async fn release(
        &self,
        tenant: Option<TenantId>,
        id: ReservationId,
    ) -> bool {
        let own = self.holds.remove(id);
        let Some(tenant) = own.as_ref().map(|open| open.tenant).or(tenant) else {
            return false;
        };
        let release = Count {
            hold: Some(id),
            by_hand: own.is_none(),
            ..Count::default()
        };
        let release = release.question();
        let released = match self.ask(tenant, Script::Count, &release).await {
            Ok(reply) => reply.ended > 0 || own.is_some(),
            Err(fault) => {
                tracing::debug!(%fault, "a hold is given back when its lease is over");
                super::lock(&self.unreleased).push((tenant, id));
                own.is_some()
            }
        };
        if released {
            self.tally.released.fetch_add(1, Ordering::Relaxed);
        }
        released
    }

    /// Has a hold last until `deadline` whatever becomes of this node; any node may settle or release it then.
    pub(in crate::ledger) async fn hand_over(
        &self,
        mut hold: Box<RedisHold>,
        deadline: Timestamp,
    ) -> Result<(), LedgerError> {
        let asked = {
            let mut holds = self.holds.lock();
            holds.remove(&hold.open.id);
            let renew = wire::Renew {
                holds: &[hold.open.wire("")],
                deadline: Some(deadline.micros()),
                outlives: true,
            };
            self.send(hold.open.tenant, Script::Renew, &renew.question())
        };
        asked?.answer().await?;
        hold.is_ended = true;
        Ok(())
    }

    /// A hold that was handed over, to be settled or dropped by this node.
    pub(in crate::ledger) fn take_over(&self, tenant: TenantId, id: ReservationId) -> Hold {
        Hold::Redis(Box::new(RedisHold {
            ledger: Weak::clone(&self.this),
            open: Arc::new(Open {
                id,
                tenant,
                key: None,
                user: String::new(),
                request_id: String::new(),
                admitted_at: Timestamp::EPOCH,
                granted: Quantities::default(),
                is_detached: AtomicBool::new(false),
            }),
            states: LimitStates::default(),
            violations: Vec::new(),
            limits: Vec::new(),
            is_ended: false,
        }))
    }
}

/// What a hold is made of.
struct Granting {
    id: ReservationId,
    amounts: Quantities,
    states: LimitStates,
    limits: Vec<wire::Limit>,
    admitted_at: Timestamp,
}

pub(super) fn micros(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// `places`: of those that apply, in order, and `stands` what each of them stands at.
fn states_of(limits: &Arc<[ActiveLimit]>, places: &[usize], stands: &[(i64, i64)]) -> LimitStates {
    let mut theirs = places.iter().zip(stands).peekable();
    let states = LimitStates::of(limits, |place, _| {
        let its_own = theirs.next_if(|(of, _)| **of == place);
        Some(its_own.map(|(_, (settled, reserved))| standing_of(*settled, *reserved)))
    });
    states.unwrap_or_default()
}

fn standing_of(settled: i64, reserved: i64) -> Standing {
    Standing {
        settled: Quantity::new(settled),
        reserved: Quantity::new(reserved),
    }
}

/// The counters that are to be read, each with the hard limit that it is seen under.
fn missing_of(
    who: Who<'_>,
    limits: &[ActiveLimit],
    places: &[usize],
    reply: &Reply,
) -> Vec<(CounterOf, i64)> {
    let missing = reply.missing.iter().filter_map(|index| places.get(*index));
    let mut counters: Vec<(CounterOf, i64)> = Vec::new();
    for limit in missing.map(|place| &limits[*place]) {
        let Some(subject) = who.in_scope(limit.scope) else {
            continue;
        };
        let counter = CounterOf {
            subject: subject.into(),
            feature: limit.feature.clone(),
            window: limit.window,
        };
        if !counters.iter().any(|(known, _)| *known == counter) {
            counters.push((counter, limit.hard.map_or(wire::NONE, Quantity::get)));
        }
    }
    counters
}

fn judged(event: &UsageEvent, reply: &Reply, since: Since<'_>) -> Quantities {
    crate::ledger::local::overshoot_of(&event.quantities, &reply.judged(event, since))
}

fn gone_again() -> LedgerError {
    LedgerError::Unavailable("counters go as soon as they are read".to_owned())
}

fn unexpected(reply: &Reply) -> LedgerError {
    let status = reply.status;
    LedgerError::Unavailable(format!("Redis answered out of turn: {status:?}"))
}
