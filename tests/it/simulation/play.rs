//! Plays a list of operations on the program, and judges each by the model.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use http::StatusCode;
use rand::seq::SliceRandom as _;
use rand::{SeedableRng as _, rngs::StdRng};
use secrecy::ExposeSecret as _;
use serde_json::Value;
use tollgate::{
    clock::ManualClock,
    domain::{ids::GrantId, limit::Scope, quantity::Quantity, time::Timestamp, window::WindowKind},
    services::{
        ManualRecord, UsageOperations as _,
        keys::Keys,
        plans::{Change, Plans},
        reporting::Correction,
        tenants::{NewGrant, OverrideChange, StatusChange, SubscriptionChange, Tenants},
    },
};

use super::{
    faults::StoreState,
    kept::Kept,
    model::{self, Amounts, Decision, Grant, Limit, Model, Status, Tenant, Usage, Who},
    ops::{Ask, CrashAt, Ending, Jump, Op, Report},
    provider::Piece,
    world::{
        self, Begun, Life, PATIENCE, PLANS, Run, Secrets, Setting, TEMPLATE, actor, feature,
        tenant_ref,
    },
};

/// Answers are kept for 24 hours; in microseconds, with some to spare.
const REPEATED_WITHIN: i64 = 23 * 3_600 * 1_000_000;

pub(super) type Step = Result<(), String>;

macro_rules! ensure {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err(format!($($why)+));
        }
    };
}
pub(super) use ensure;

/// The plans to begin with.
pub(super) fn plans() -> [Vec<Limit>; 2] {
    let limit = |feature, scope, window, hard| Limit {
        feature,
        scope,
        window,
        hard: Some(hard),
    };
    [
        vec![
            limit(0, Scope::Tenant, WindowKind::Period, 10),
            limit(0, Scope::User, WindowKind::Minute, 3),
            limit(1, Scope::Tenant, WindowKind::Hour, 900),
            limit(2, Scope::Tenant, WindowKind::Period, 250),
        ],
        vec![
            limit(0, Scope::Key, WindowKind::Hour, 6),
            limit(0, Scope::Tenant, WindowKind::Lifetime, 40),
            limit(1, Scope::Tenant, WindowKind::Month, 4_000),
            limit(2, Scope::User, WindowKind::Day, 150),
        ],
    ]
}

pub(super) struct World {
    pub(super) setting: Setting,
    pub(super) model: Model,
    pub(super) runs: Vec<Run>,
    /// Ids of usage that was reported by hand, and the model's name of it.
    pub(super) reported: BTreeMap<String, String>,
    /// How far settled use must have gone past limits in this life, at least and at most; `None` once it can't be told.
    pub(super) overshoot: Option<(Amounts, Amounts)>,
    /// How many events the journal has.
    pub(super) events: u64,
    /// Reservations of applications.
    pub(super) kept: Vec<Kept>,
    life: Option<Life>,
    clock: Arc<ManualClock>,
    directory: tempfile::TempDir,
    grants: [Vec<GrantId>; 2],
    secrets: Secrets,
    /// Requests with a key that have their answer, and when they began.
    answered: Vec<(String, Ask, i64, String)>,
    pub(super) next: usize,
    pub(super) is_away: bool,
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(life) = self.life.take() {
            life.kill();
        }
    }
}

impl World {
    pub(super) fn new(setting: Setting) -> Self {
        let created_at = model::micros("2026-01-31T07:00:00Z");
        let now = created_at + 1_000_000;
        let tenant = |plan| Tenant {
            created_at,
            is_monthly: plan == 0,
            plan,
            status: (Status::Active, created_at),
            overrides: BTreeMap::new(),
            grants: Vec::new(),
            resets: Vec::new(),
        };
        let model = Model {
            now,
            tenants: vec![tenant(0), tenant(1)],
            plans: plans().to_vec(),
            ..Model::default()
        };
        let directory = world::fresh_directory();
        let clock = ManualClock::at(Timestamp::from_micros(now));
        let secrets = world::secrets();
        let life = Life::open(directory.path(), &clock, setting, secrets.clone());
        Self {
            setting,
            model,
            runs: Vec::new(),
            reported: BTreeMap::new(),
            overshoot: Some(([0; 3], [0; 3])),
            events: 0,
            kept: Vec::new(),
            life: Some(life),
            clock,
            directory,
            grants: [Vec::new(), Vec::new()],
            secrets,
            answered: Vec::new(),
            next: 1,
            is_away: false,
        }
    }

    pub(super) fn life(&self) -> &Life {
        self.life.as_ref().expect("a world lives")
    }

    pub(super) fn is_away(&self) -> bool {
        self.is_away
    }

    pub(super) fn play(&mut self, op: &Op) -> Step {
        match op {
            Op::Begin(ask) => self.begin(*ask),
            Op::Together(asks, ends) => self.together(asks, ends),
            Op::Words(which, words) => self.with_run(*which, |world, run| world.words(run, *words)),
            Op::HangUp(which) => self.with_run(*which, Self::hang_up),
            Op::Repeat(which) => self.repeat(*which),
            Op::End(which, ending) => self.with_run(*which, |world, run| world.end(run, *ending)),
            Op::Release(which) => self.with_run(*which, Self::release),
            Op::Reserve(tenant, key, user, amounts, seconds) => {
                self.reserve((*tenant, *key, *user), *amounts, *seconds)
            }
            Op::SettleKept(which, amounts, key) => self.settle_kept(*which, *amounts, *key),
            Op::ReleaseKept(which) => self.release_kept(*which),
            Op::Report(tenant, feature, quantity, back, key) => {
                self.report((*tenant, *key), *feature, *quantity, *back)
            }
            Op::Correct(tenant, feature, quantity, key) => {
                self.correct((*tenant, *key), *feature, *quantity)
            }
            Op::Drain => self.drain(None),
            Op::DrainFails(moment) => self.drain(Some(StoreState::FailsNextRecord(*moment))),
            Op::StoreAway => self.set_away(StoreState::Away),
            Op::StoreBack => self.set_away(StoreState::Up),
            Op::Clock(jump) => self.jump(*jump),
            Op::Restart => self.restart(),
            Op::Crash(at) => self.crash(at),
            Op::Check => self.check(),
            Op::Rotate(tenant, key) if !self.is_away => self.rotate(*tenant, *key),
            _ if self.is_away => Ok(()), // nothing can be changed while the store is away
            change => self.change(change),
        }?;
        self.glance()
    }

    /// Ends all that runs, and compares everything.
    pub(super) fn finish(mut self) -> Step {
        self.end_all()?;
        self.set_away(StoreState::Up)?;
        self.check()?;
        self.end_kept()?;
        let in_flight = self.life().app.recorder.ledger().in_flight();
        ensure!(in_flight.held == 0, "{in_flight:?} at the end");
        self.life()
            .until("no task is left", |app| app.tasks.tracker().is_empty())
    }

    fn end_all(&mut self) -> Step {
        while !self.runs.is_empty() {
            self.with_run(0, |world, run| {
                world.end(run, Ending::Done(3, Report::True))
            })?;
        }
        Ok(())
    }

    fn with_run(
        &mut self,
        which: usize,
        act: impl FnOnce(&mut Self, Run) -> Result<Option<Run>, String>,
    ) -> Step {
        if self.runs.is_empty() {
            return Ok(());
        }
        let which = which % self.runs.len();
        let run = self.runs.swap_remove(which);
        if let Some(run) = act(self, run)? {
            self.runs.push(run);
        }
        Ok(())
    }

    fn send(&mut self, ask: Ask) -> Run {
        let name = format!("run-{}", self.next);
        self.next += 1;
        self.life().send(name, ask, self.model.now)
    }

    /// What is held for a run.
    fn held(&self, run: &Run) -> Option<Amounts> {
        let holds = self.life().app.recorder.ledger().list_holds();
        let hold = holds.into_iter().find(|hold| hold.request_id == run.name)?;
        Some([0, 1, 2].map(|index| hold.quantities.of(&feature(index)).get()))
    }

    fn hold(&mut self, run: &mut Run, amounts: Amounts) {
        run.is_held = true;
        run.limits = self.model.limits(run.who);
        let usage = Usage {
            who: run.who,
            at: run.at,
            amounts,
            estimated: false,
        };
        self.model.holds.insert(run.name.clone(), usage);
    }

    fn begin(&mut self, ask: Ask) -> Step {
        let mut run = self.send(ask);
        let expected = self.model.decide(run.who, run.need);
        let begun = run.begun(self.life())?;
        let held = self.held(&run);
        let may_pass = self.is_away && self.setting.fails == "open";
        let is_right = match (&begun, held, expected) {
            (Begun::Called(maximum), Some(held), Decision::Held(amounts)) => {
                held == amounts && *maximum == maximum_of(&run, amounts[2])
            }
            (Begun::Called(_), None, _) => may_pass,
            (Begun::Refused(StatusCode::SERVICE_UNAVAILABLE, _), _, _) => self.is_away,
            (Begun::Refused(status, code), _, Decision::Spent) => {
                is_429(*status, code, "usage_limit_exceeded")
            }
            (Begun::Refused(status, code), _, Decision::Reserved) => {
                is_429(*status, code, "usage_limit_reserved")
            }
            (Begun::Refused(status, _), _, Decision::Inactive) => {
                *status == StatusCode::PAYMENT_REQUIRED
            }
            _ => false,
        };
        ensure!(
            is_right,
            "{} of {:?} needs {:?} and must be {expected:?}, but is {begun:?}, held {held:?}",
            run.name,
            run.who,
            run.need
        );
        if let Begun::Called(maximum) = begun {
            run.maximum = maximum;
            if let Some(amounts) = held {
                self.hold(&mut run, amounts);
            }
            self.runs.push(run);
        }
        Ok(())
    }

    /// Requests begin while others end: who is refused must not fit with everything else held, who is admitted must
    /// fit with everything that ends ended.
    fn together(&mut self, asks: &[Ask], ends: &[(usize, Ending)]) -> Step {
        let mut ending = Vec::new();
        for (which, how) in ends {
            if !self.runs.is_empty() {
                let which = which % self.runs.len();
                ending.push((self.runs.swap_remove(which), *how));
            }
        }
        let mut dice = StdRng::seed_from_u64(u64::try_from(self.next).unwrap());
        let mut begun: Vec<Run> = Vec::new();
        let mut ended: Vec<(Run, Option<Usage>)> = Vec::new();
        let mut turns = vec![true; asks.len()];
        turns.extend(vec![false; ending.len()]);
        turns.shuffle(&mut dice);
        let mut asks = asks.iter();
        for is_ask in turns {
            if is_ask {
                let ask = asks.next().expect("as many turns as asks");
                begun.push(self.send(*ask));
            } else {
                let (mut run, how) = ending.pop().expect("as many turns as ends");
                let usage = say(&mut run, how);
                ended.push((run, usage));
            }
        }
        let before = self.model.clone();
        let mut refused = Vec::new();
        for mut run in begun {
            match run.begun(self.life())? {
                Begun::Called(maximum) => {
                    run.maximum = maximum;
                    if let Some(amounts) = self.held(&run) {
                        self.hold(&mut run, amounts);
                    } else {
                        ensure!(
                            self.is_away && self.setting.fails == "open",
                            "{} runs unheld",
                            run.name
                        );
                    }
                    self.runs.push(run);
                }
                Begun::Refused(status, code) => refused.push((run, status, code)),
            }
        }
        self.settle_all(ended)?;
        self.judge_together(&before, &refused)
    }

    fn judge_together(&self, before: &Model, refused: &[(Run, StatusCode, String)]) -> Step {
        // As much as could be counted at any moment: what ends is counted twice, held and used.
        let mut most = self.model.clone();
        most.holds.extend(before.holds.clone());
        for (run, status, code) in refused {
            let is_right = match most.decide(run.who, run.need) {
                Decision::Held(_) => self.is_away && *status == StatusCode::SERVICE_UNAVAILABLE,
                Decision::Inactive => *status == StatusCode::PAYMENT_REQUIRED || self.is_away,
                Decision::Spent | Decision::Reserved => {
                    *status == StatusCode::TOO_MANY_REQUESTS || self.is_away
                }
            };
            ensure!(
                is_right,
                "{} is refused, {status} {code}, and would fit: {:?}",
                run.name,
                run.need
            );
        }
        // As little as could be counted when the last of them was admitted.
        let mut least = self.model.clone();
        for (name, usage) in &mut least.events {
            if !before.events.contains_key(name) {
                // Nothing is held of what was released by hand, or passed without a decision.
                let held = before.holds.get(name).map_or([0; 3], |hold| hold.amounts);
                usage.amounts = [0, 1, 2].map(|feature| usage.amounts[feature].min(held[feature]));
            }
        }
        for run in self.runs.iter().filter(|run| {
            self.model.holds.contains_key(&run.name) && !before.holds.contains_key(&run.name)
        }) {
            for placed in least.limits(run.who) {
                let (used, held) = least.counted(run.who, &placed);
                ensure!(
                    used + held <= placed.hard,
                    "{} takes {placed:?} to {used} and {held} held",
                    run.name
                );
            }
        }
        Ok(())
    }

    fn words(&mut self, mut run: Run, words: i64) -> Result<Option<Run>, String> {
        let before = run.words;
        let is_cut = say_words(&mut run, words);
        if is_cut {
            let usage = usage_of(&run, run.estimate, run.words, true);
            self.settle_all(vec![(run, Some(usage))])?;
            return Ok(None);
        }
        if run.is_stream() && !run.is_gone && before < run.words {
            let words = run.words;
            run.sees(self.life(), words)?;
            ensure!(
                !run.client.has_ended,
                "{} has ended: {}",
                run.name,
                run.client.text
            );
        }
        Ok(Some(run))
    }

    fn hang_up(&mut self, mut run: Run) -> Result<Option<Run>, String> {
        if run.is_gone || (!run.is_held && run.words == 0) {
            return Ok(Some(run));
        }
        run.hang_up(self.life());
        // One with a key goes on as if its client were there: its repeat gets the answer.
        let is_read_on = run.is_stream() && run.words > 0 && !run.ask.is_keyed;
        if is_read_on && self.held(&run).is_some() {
            let name = run.name.clone();
            self.life()
                .until("the guard knows that the client has gone", |app| {
                    let holds = app.recorder.ledger().list_holds();
                    holds
                        .iter()
                        .any(|hold| hold.request_id == name && hold.is_detached)
                })?;
        }
        Ok(Some(run))
    }

    fn end(&mut self, mut run: Run, ending: Ending) -> Result<Option<Run>, String> {
        let usage = say(&mut run, ending);
        self.settle_all(vec![(run, usage)])?;
        Ok(None)
    }

    /// Waits until these have ended, and counts what they used.
    fn settle_all(&mut self, mut ended: Vec<(Run, Option<Usage>)>) -> Step {
        for (run, usage) in ended.iter_mut().filter(|(run, _)| !run.is_gone) {
            run.sees_end(self.life())?;
            let is_answered = run.is_answered();
            let must_be = usage.is_some_and(|_| !run.line.is_broken());
            ensure!(
                is_answered == must_be,
                "{} sees {:?} {}",
                run.name,
                run.client.head,
                run.client.text
            );
        }
        let settled: Vec<_> = ended
            .iter()
            .filter_map(|(run, usage)| Some((run, (*usage)?)))
            .collect();
        self.events += u64::try_from(settled.len()).unwrap();
        if ended.iter().any(|(run, _)| run.is_gone) {
            let events = self.events;
            self.life().until("nothing of it is left", |app| {
                let holds = app.recorder.ledger().list_holds();
                let is_held =
                    |(run, _): &(Run, _)| holds.iter().any(|hold| hold.request_id == run.name);
                app.recorder.journal().last_seq().0 >= events && !ended.iter().any(is_held)
            })?;
        }
        for (run, _) in &ended {
            if run.ask.is_keyed && !run.is_gone && run.is_answered() {
                let answer = run.client.text.clone();
                self.answered
                    .push((run.name.clone(), run.ask, run.at, answer));
            }
        }
        self.overshoot = overshoot(self.overshoot, &self.model, &settled);
        let settled: Vec<_> = settled
            .into_iter()
            .map(|(run, usage)| (run.name.clone(), usage))
            .collect();
        self.model.events.extend(settled);
        for (run, _) in &ended {
            self.model.holds.remove(&run.name);
        }
        for (run, _) in ended.iter().filter(|(run, _)| run.is_gone) {
            self.comes_to_be_shown(run.who)?;
        }
        Ok(())
    }

    /// Of a request whose client has gone nobody is told when it is counted: soon after it is written down.
    fn comes_to_be_shown(&self, who: Who) -> Step {
        let begun = Instant::now();
        loop {
            let compared = self.compare_usage(who);
            if compared.is_ok() || begun.elapsed() > PATIENCE {
                return compared;
            }
            self.life().rt.block_on(tokio::task::yield_now());
        }
    }

    /// A repeat gets the first answer, and is told of one in flight; it never reaches the model.
    fn repeat(&mut self, which: usize) -> Step {
        let now = self.model.now;
        self.answered
            .retain(|(_, _, at, _)| now - at < REPEATED_WITHIN);
        let in_flight = self
            .runs
            .iter()
            .filter(|run| run.ask.is_keyed && !run.is_gone);
        let mut known: Vec<(&str, Ask, Option<&str>)> = in_flight
            .map(|run| (run.name.as_str(), run.ask, None))
            .collect();
        known.extend(
            self.answered
                .iter()
                .map(|(name, ask, _, answer)| (name.as_str(), *ask, Some(answer.as_str()))),
        );
        if known.is_empty() {
            return Ok(());
        }
        let (name, ask, answer) = known[which % known.len()];
        let (status, is_replay, text) = self.life().repeat(name, ask);
        let is_right = match answer {
            Some(answer) => status == StatusCode::OK && is_replay && text == answer,
            None => status == StatusCode::CONFLICT && text.contains("idempotency_key_in_use"),
        };
        // A key that is not in the cache can't be looked up while the store is away.
        let may_fail = self.is_away && status == StatusCode::SERVICE_UNAVAILABLE;
        ensure!(
            is_right || may_fail,
            "the repeat of {name} must get {answer:?}, and gets {status}, replayed: {is_replay}: {text}"
        );
        Ok(())
    }

    fn release(&mut self, mut run: Run) -> Result<Option<Run>, String> {
        if run.is_held && self.model.holds.remove(&run.name).is_some() {
            let ledger = self.life().app.recorder.ledger();
            let hold = ledger
                .list_holds()
                .into_iter()
                .find(|hold| hold.request_id == run.name);
            let hold = hold.ok_or_else(|| format!("{} holds nothing", run.name))?;
            ensure!(
                ledger.release(None, hold.id).now_or_never() == Some(true),
                "{} can't be released",
                run.name
            );
            run.limits.clear(); // its counters may be dropped before it settles
            self.overshoot = None;
        }
        Ok(Some(run))
    }

    fn report(
        &mut self,
        (tenant, key): (usize, usize),
        feature_index: usize,
        quantity: i64,
        back: i64,
    ) -> Step {
        let name = format!("report-{tenant}-{key}");
        let at = self.model.now - back * 1_000_000;
        let record = ManualRecord {
            tenant: tenant_ref(tenant),
            feature: feature(feature_index),
            quantity: Quantity::new(quantity),
            idempotency_key: name.clone(),
            at: (back > 0).then(|| Timestamp::from_micros(at)),
        };
        let (life, by) = (self.life(), actor(self.clock.now()));
        let recorded = life.rt.block_on(life.app.record(&record, &by));
        if self.is_away {
            ensure!(
                recorded.is_err(),
                "{name} is recorded without a store: {recorded:?}"
            );
            return Ok(());
        }
        let recorded = recorded.map_err(|error| format!("{name}: {error}"))?;
        let mut amounts = [0; 3];
        amounts[feature_index] = quantity;
        self.note_reported(name, tenant, at, amounts, &recorded)
    }

    fn correct(&mut self, (tenant, key): (usize, usize), index: usize, quantity: i64) -> Step {
        let name = format!("correction-{tenant}-{key}");
        let correction = Correction {
            feature: feature(index),
            quantity: Quantity::new(quantity),
            reason: "simulated".to_owned(),
            of: None,
            idempotency_key: Some(name.clone()),
        };
        let (life, by) = (self.life(), actor(self.clock.now()));
        let corrected = life
            .rt
            .block_on(life.app.correct(&tenant_ref(tenant), &correction, &by));
        if self.is_away {
            ensure!(corrected.is_err(), "{name} without a store: {corrected:?}");
            return Ok(());
        }
        let corrected = corrected.map_err(|error| format!("{name}: {error}"))?;
        let mut amounts = [0; 3];
        amounts[index] = quantity;
        self.note_reported(name, tenant, self.model.now, amounts, &corrected)
    }

    /// What was reported counts, unless it was before.
    fn note_reported(
        &mut self,
        name: String,
        tenant: usize,
        at: i64,
        amounts: Amounts,
        answer: &Value,
    ) -> Step {
        let is_known = self.model.events.contains_key(&name);
        ensure!(
            answer["duplicate"] == is_known,
            "{name}, known: {is_known}: {answer}"
        );
        if !is_known {
            let who = Who {
                tenant,
                key: None,
                user: "",
            };
            let usage = Usage {
                who,
                at,
                amounts,
                estimated: false,
            };
            self.events += 1;
            self.model.events.insert(name.clone(), usage);
            let id = answer["event_id"].as_str().unwrap_or_default().to_owned();
            self.reported.insert(id, name);
        }
        Ok(())
    }

    /// The old secret is refused at once, the new one serves, and what the key used stays its own.
    fn rotate(&mut self, tenant: usize, key: usize) -> Step {
        let by = actor(self.clock.now());
        let (id, _) = TEMPLATE.keys[tenant][key];
        let life = self.life.as_mut().expect("a world lives");
        let keys = Keys::new(life.app.store.clone());
        let rotated = life.rt.block_on(keys.rotate(id, Duration::ZERO, &by));
        let rotated = rotated.map_err(|error| error.to_string())?;
        life.rt
            .block_on(life.app.catalogue.poll())
            .map_err(|error| error.to_string())?;
        let (status, _) = life.get((tenant, key, ""), "/api/v1/usage");
        ensure!(
            status == StatusCode::UNAUTHORIZED,
            "the old secret of key {key} of {tenant}: {status}"
        );
        rotated
            .secret
            .expose_secret()
            .clone_into(&mut self.secrets[tenant][key]);
        life.secrets.clone_from(&self.secrets);
        Ok(())
    }

    fn drain(&mut self, fault: Option<StoreState>) -> Step {
        let life = self.life();
        let is_pending = life.app.recorder.journal().pending() > 0;
        if let Some(fault) = fault.filter(|_| !self.is_away) {
            life.power.set_store(fault);
        }
        let drained = life.rt.block_on(life.app.recorder.step());
        let must_fail = is_pending && (self.is_away || fault.is_some());
        // A mark that failed is made up for first: then there may be nothing left that the store is asked for.
        ensure!(
            drained.is_ok() != must_fail,
            "pending {is_pending}, {fault:?}: {drained:?}"
        );
        self.set_away(if self.is_away {
            StoreState::Away
        } else {
            StoreState::Up
        })
    }

    fn set_away(&mut self, state: StoreState) -> Step {
        self.life().power.set_store(state);
        self.is_away = state == StoreState::Away;
        Ok(())
    }

    fn jump(&mut self, jump: Jump) -> Step {
        let end_of = |tenant: usize, kind| {
            model::window(kind, self.model.now, &self.model.tenants[tenant]).1
        };
        let to = match jump {
            Jump::Millis(millis) => self.model.now + millis * 1000,
            Jump::ToEnd(tenant, kind) => end_of(tenant, kind),
            Jump::BeforeEnd(tenant, kind) => end_of(tenant, kind) - 1,
        };
        if to < model::micros("2055-01-01T00:00:00Z") {
            self.model.now = to;
            self.clock.set(Timestamp::from_micros(to));
        }
        self.expire_kept();
        Ok(())
    }

    /// Changes the catalogue, as the command line and the page do.
    fn change(&mut self, op: &Op) -> Step {
        let (now, by) = (self.model.now, actor(self.clock.now()));
        let life = self.life.as_ref().expect("a world lives");
        let app = &life.app;
        let (plans, tenants) = (
            Plans::new(app.store.clone()),
            Tenants::new(app.store.clone()),
        );
        let model = &mut self.model;
        let after = |seconds: i64| now + seconds * 1_000_000;
        let done = match *op {
            Op::Limit(plan, feature, scope, window, hard) => {
                let limit = Limit {
                    feature,
                    scope,
                    window,
                    hard,
                };
                model.plans[plan]
                    .retain(|it| (it.feature, it.scope, it.window) != (feature, scope, window));
                model.plans[plan].extend(hard.map(|_| limit));
                let code = PLANS[plan].parse().unwrap();
                life.rt
                    .block_on(plans.set_feature(&code, &world::change_of(&limit), &by))
                    .map(drop)
            }
            Op::Override(tenant, index, scope, window, hard, seconds) => {
                let limit = Limit {
                    feature: index,
                    scope,
                    window,
                    hard,
                };
                let own = model.tenants[tenant].overrides.entry(index).or_default();
                if own.1.is_some_and(|until| until <= now) {
                    *own = (Vec::new(), None);
                }
                own.0.retain(|it| (it.scope, it.window) != (scope, window));
                own.0.push(limit);
                own.1 = seconds.map(after).or(own.1);
                let until = seconds.map_or(Change::Keep, |it| {
                    Change::Set(Timestamp::from_micros(after(it)))
                });
                let change = OverrideChange {
                    feature: feature(index),
                    scope,
                    window,
                    soft: Change::Keep,
                    hard: hard.map_or(Change::Clear, |hard| Change::Set(Quantity::new(hard))),
                    until,
                };
                life.rt
                    .block_on(tenants.set_limit(&tenant_ref(tenant), &change, &by))
                    .map(drop)
            }
            Op::Grant(tenant, index, quantity, seconds) => {
                let end = after(seconds);
                let grant = NewGrant {
                    feature: feature(index),
                    quantity: Quantity::new(quantity),
                    reason: "simulated".to_owned(),
                    expires_at: Some(Timestamp::from_micros(end)),
                };
                model.tenants[tenant].grants.push(Grant {
                    feature: index,
                    quantity,
                    begin: now,
                    end,
                });
                let added = life
                    .rt
                    .block_on(tenants.add_grant(&tenant_ref(tenant), grant, &by));
                added.map(|(grant, _)| self.grants[tenant].push(grant.grant_id))
            }
            Op::RevokeGrant(tenant, which) if !self.grants[tenant].is_empty() => {
                let which = which % self.grants[tenant].len();
                let end = &mut model.tenants[tenant].grants[which].end;
                *end = now.min(*end);
                life.rt
                    .block_on(tenants.revoke_grant(self.grants[tenant][which], &by))
                    .map(drop)
            }
            Op::Plan(tenant, plan) => {
                model.tenants[tenant].plan = plan;
                let change = SubscriptionChange {
                    plan_code: Some(PLANS[plan].parse().unwrap()),
                    ..SubscriptionChange::default()
                };
                life.rt
                    .block_on(tenants.subscribe(&tenant_ref(tenant), &change, &by))
                    .map(drop)
            }
            Op::Reset(tenant, index) if !model.tenants[tenant].resets.contains(&(index, now)) => {
                model.tenants[tenant].resets.push((index, now));
                let why = "simulated".to_owned();
                life.rt
                    .block_on(tenants.reset(&tenant_ref(tenant), feature(index), why, &by))
                    .map(drop)
            }
            Op::Status(tenant, status) => {
                let current = &mut model.tenants[tenant].status;
                if current.0 != status {
                    *current = (status, now);
                }
                let change = SubscriptionChange {
                    status: StatusChange::Set(status_of(status)),
                    ..SubscriptionChange::default()
                };
                life.rt
                    .block_on(tenants.subscribe(&tenant_ref(tenant), &change, &by))
                    .map(drop)
            }
            _ => Ok(()),
        };
        done.map_err(|error| format!("{op:?}: {error}"))?;
        life.rt
            .block_on(app.catalogue.poll())
            .map(drop)
            .map_err(|error| error.to_string())
    }

    fn restart(&mut self) -> Step {
        self.end_all()?;
        self.set_away(StoreState::Up)?;
        let life = self.life.take().expect("a world lives");
        life.rt.block_on(life.app.close());
        life.kill();
        self.open()
    }

    fn open(&mut self) -> Step {
        self.life = Some(Life::open(
            self.directory.path(),
            &self.clock,
            self.setting,
            self.secrets.clone(),
        ));
        self.overshoot = Some(([0; 3], [0; 3]));
        self.is_away = false;
        Ok(())
    }

    fn crash(&mut self, at: &CrashAt) -> Step {
        let mut unsure = Vec::new();
        match at {
            CrashAt::Rest => {}
            CrashAt::SettleKept(writes, which, amounts) => {
                self.settle_into_the_dark(*writes, *which, *amounts);
            }
            CrashAt::Settle(writes, ends) => {
                self.life().power.cut_after(*writes);
                unsure = self.end_without_knowing(ends)?;
            }
            CrashAt::Record(moment) => {
                self.life()
                    .power
                    .set_store(StoreState::DiesAtNextRecord(*moment));
                self.step_into_the_dark();
            }
            CrashAt::Mark(writes) => {
                self.life().power.cut_after(*writes);
                self.step_into_the_dark();
            }
        }
        self.life.take().expect("a world lives").kill();
        self.runs.clear();
        self.answered.clear(); // whether a kept answer outlives a crash is not said
        self.only_kept_is_held();
        self.open()?;
        self.resolve(unsure)
    }

    /// A drain that may die.
    fn step_into_the_dark(&self) {
        let life = self.life();
        drop(life.rt.block_on(life.app.recorder.step()));
    }

    /// Lets requests end while the power may go: those that are answered are counted; those that are not, perhaps.
    fn end_without_knowing(
        &mut self,
        ends: &[(usize, Ending)],
    ) -> Result<Vec<(String, Usage)>, String> {
        let mut ended = Vec::new();
        for (which, ending) in ends {
            if !self.runs.is_empty() {
                let which = which % self.runs.len();
                let mut run = self.runs.swap_remove(which);
                let usage = say(&mut run, *ending);
                ended.push((run, usage));
            }
        }
        let mut unsure = Vec::new();
        for (mut run, usage) in ended {
            if !run.is_gone {
                run.sees_end(self.life())?;
            }
            let Some(usage) = usage else { continue };
            if !run.is_gone && run.is_answered() {
                self.model.events.insert(run.name, usage);
            } else {
                unsure.push((run.name, usage));
            }
        }
        Ok(unsure)
    }
}

/// The maximum that goes upstream.
fn maximum_of(run: &Run, granted: i64) -> Option<i64> {
    match run.need.named {
        Some(named) => Some(named.min(granted)),
        None => (granted < 128_000).then_some(granted),
    }
}

fn is_429(status: StatusCode, code: &str, expected: &str) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS && code == expected
}

fn status_of(status: Status) -> tollgate::domain::subscription::SubscriptionStatus {
    use tollgate::domain::subscription::SubscriptionStatus as Real;
    match status {
        Status::Active => Real::Active,
        Status::PastDue => Real::PastDue,
        Status::Canceled => Real::Canceled,
        Status::Paused => Real::Paused,
    }
}

fn usage_of(run: &Run, input: i64, output: i64, estimated: bool) -> Usage {
    Usage {
        who: run.who,
        at: run.at,
        amounts: [1, input, output],
        estimated,
    }
}

/// Has the model say more words, as many as its maximum lets it; whether it was cut off at that.
fn say_words(run: &mut Run, words: i64) -> bool {
    let left = run.maximum.map_or(i64::MAX, |maximum| maximum - run.words);
    let words = if run.ask.is_rude {
        words
    } else {
        words.min(left)
    };
    if words > 0 {
        run.line.say(Piece::Words(words));
    }
    let is_cut = run.is_stream() && words > left;
    run.words += if is_cut { left + 1 } else { words.max(0) };
    is_cut
}

/// Has the model end as told, and says what the run is charged; `None`: nothing.
fn say(run: &mut Run, ending: Ending) -> Option<Usage> {
    let (words, report) = match ending {
        Ending::Done(words, report) => (words, report),
        Ending::BreakOff | Ending::Refuse => {
            let is_refused = matches!(ending, Ending::Refuse);
            run.line.break_off(if is_refused {
                Piece::Refuse
            } else {
                Piece::BreakOff
            });
            let is_charged = run.is_stream() && run.words > 0;
            return is_charged.then(|| usage_of(run, run.estimate, run.words, true));
        }
    };
    // Where a client has gone before the first word, when that is noticed decides: not here.
    let is_unsure = run.is_gone && run.words == 0 && run.is_stream();
    if say_words(run, if is_unsure { words.max(1) } else { words }) {
        return Some(usage_of(run, run.estimate, run.words, true));
    }
    let reported = match report {
        Report::True => Some((run.estimate, run.words)),
        Report::Nothing => None,
        Report::More(input, output) => Some((run.estimate + input, run.words + output)),
        Report::Zero => Some((0, 0)),
    };
    if let Some((input, output)) = reported {
        run.line.say(Piece::Usage { input, output });
    }
    run.line.say(Piece::End);
    Some(match reported {
        Some((input, output)) => usage_of(run, input, output, false),
        None => usage_of(run, run.estimate, run.words, true),
    })
}

/// The least and the most overshoot that these cause, in whatever order they settle.
fn overshoot(
    before: Option<(Amounts, Amounts)>,
    model: &Model,
    settled: &[(&Run, Usage)],
) -> Option<(Amounts, Amounts)> {
    let (least, most) = before?;
    if settled.iter().any(|(run, _)| !run.is_held) {
        return None; // passed without a decision: judged by whatever counters are there
    }
    let orders: &[&[usize]] = match settled.len() {
        0 => return before,
        1 => &[&[0]],
        2 => &[&[0, 1], &[1, 0]],
        _ => &[
            &[0, 1, 2],
            &[0, 2, 1],
            &[1, 0, 2],
            &[1, 2, 0],
            &[2, 0, 1],
            &[2, 1, 0],
        ],
    };
    let sums: Vec<Amounts> = orders
        .iter()
        .map(|order| {
            let mut model = model.clone();
            let mut sum = [0; 3];
            for &index in *order {
                let (run, usage) = &settled[index];
                let past = model.overshoot(usage, &run.limits);
                sum = [0, 1, 2].map(|feature| sum[feature] + past[feature]);
                model.events.insert(run.name.clone(), *usage);
            }
            sum
        })
        .collect();
    let of = |feature: usize| sums.iter().map(move |sum| sum[feature]);
    Some((
        [0, 1, 2].map(|feature| least[feature] + of(feature).min().unwrap_or(0)),
        [0, 1, 2].map(|feature| most[feature] + of(feature).max().unwrap_or(0)),
    ))
}
