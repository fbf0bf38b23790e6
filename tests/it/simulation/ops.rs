//! What may happen, and lists of it made from a seed. An operation names things by number, modulo how many there are,
//! so that any part of a list is a list: that is what makes shrinking simple.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tollgate::{
    domain::{limit::Scope, window::WindowKind},
    store::sqlite::Moment,
};

use super::model::Status;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    ChatWhole,
    ChatStream,
    V1Whole,
    V1Stream,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub(super) tenant: usize,
    pub(super) key: usize,
    pub(super) user: usize,
    pub(super) kind: Kind,
    /// The prompt's length in words.
    pub(super) prompt: usize,
    pub(super) maximum: Option<i64>,
    /// The model that answers ignores its maximum.
    pub(super) is_rude: bool,
    /// It comes with an `Idempotency-Key` of its own.
    pub(super) is_keyed: bool,
}

/// What the model reports at its end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Report {
    True,
    Nothing,
    /// More than it was asked for: so many tokens of input and output on top.
    More(i64, i64),
    Zero,
}

/// How a request in flight ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    /// After so many more words.
    Done(i64, Report),
    BreakOff,
    /// An error from upstream, if nothing came before.
    Refuse,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Jump {
    Millis(i64),
    /// To the very end of the tenant's window.
    ToEnd(usize, WindowKind),
    /// To the last microsecond of it.
    BeforeEnd(usize, WindowKind),
}

#[derive(Clone, Debug)]
pub(super) enum CrashAt {
    Rest,
    /// The journal's power goes after so many writes, while these requests end at once.
    Settle(i64, Vec<(usize, Ending)>),
    Record(Moment),
    /// The same while the journal forgets what it drained.
    Mark(i64),
    /// The same while a reservation is settled, which the store knows by then.
    SettleKept(i64, usize, [i64; 3]),
}

#[derive(Clone, Debug)]
pub(super) enum Op {
    Begin(Ask),
    /// All of these at the same moment.
    Together(Vec<Ask>, Vec<(usize, Ending)>),
    /// So many more words of an answer in flight.
    Words(usize, i64),
    HangUp(usize),
    /// A request with an `Idempotency-Key` is sent again: one in flight, or one that was answered.
    Repeat(usize),
    End(usize, Ending),
    /// Its reservation is released by hand.
    Release(usize),
    /// An application reserves: tenant, key, user, amounts, for so many seconds.
    Reserve(usize, usize, usize, [i64; 3], i64),
    /// A reservation is settled: which, what was used, number of the idempotency key.
    SettleKept(usize, [i64; 3], usize),
    /// A reservation is given back by its application.
    ReleaseKept(usize),
    /// Usage by hand: tenant, feature, quantity, seconds back, number of the idempotency key.
    Report(usize, usize, i64, i64, usize),
    /// A correction: tenant, feature, quantity, number of the idempotency key.
    Correct(usize, usize, i64, usize),
    Drain,
    DrainFails(Moment),
    StoreAway,
    StoreBack,
    Clock(Jump),
    /// A plan's limit: plan, feature, scope, window, hard.
    Limit(usize, usize, Scope, WindowKind, Option<i64>),
    /// A tenant's own: tenant, feature, scope, window, hard, for so many seconds.
    Override(usize, usize, Scope, WindowKind, Option<i64>, Option<i64>),
    /// Tenant, feature, quantity, for so many seconds.
    Grant(usize, usize, i64, i64),
    RevokeGrant(usize, usize),
    Plan(usize, usize),
    Status(usize, Status),
    /// The tenant's limits of a feature count anew.
    Reset(usize, usize),
    /// The tenant's key gets a new secret, and the old one serves no more.
    Rotate(usize, usize),
    Restart,
    Crash(CrashAt),
    /// All that can be compared is compared.
    Check,
}

/// What a list is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    Everything,
    Crashes,
    Windows,
    Concurrency,
}

/// A list of operations, the same for the same seed.
pub(super) fn list(seed: u64, about: About) -> Vec<Op> {
    let mut dice = Dice(StdRng::seed_from_u64(seed));
    let length = dice.0.random_range(8..45);
    (0..length).map(|_| dice.op(about)).collect()
}

struct Dice(StdRng);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    fn between(&mut self, least: i64, most: i64) -> i64 {
        self.0.random_range(least..=most)
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.0.random_range(0..of.len())]
    }

    fn op(&mut self, about: About) -> Op {
        // Requests, their ends, catalogue, time, usage by hand, store and drain, crashes, reservations, checks.
        let weights = match about {
            About::Everything => [30, 30, 12, 8, 6, 10, 4, 12, 4],
            About::Crashes => [30, 26, 4, 3, 4, 14, 16, 12, 3],
            About::Windows => [28, 24, 14, 20, 7, 5, 2, 12, 4],
            About::Concurrency => [40, 40, 4, 2, 4, 6, 2, 4, 2],
        };
        let mut roll = self.0.random_range(0..weights.iter().sum::<usize>());
        let group = weights.iter().position(|&weight| {
            let is_it = roll < weight;
            roll = roll.saturating_sub(weight);
            is_it
        });
        match group {
            Some(0) if about == About::Concurrency || self.below(4) == 0 => self.together(),
            Some(0) => Op::Begin(self.ask()),
            Some(1) => self.progress(),
            Some(2) => self.change(),
            Some(3) => Op::Clock(self.jump()),
            Some(4) if self.below(4) == 0 => {
                let quantity = self.one(&[-9, -2, -1, 1, 5]);
                Op::Correct(self.below(2), self.below(3), quantity, self.below(9))
            }
            Some(4) => {
                let back = if self.below(3) == 0 {
                    self.between(1, 90_000)
                } else {
                    0
                };
                Op::Report(
                    self.below(2),
                    self.below(3),
                    self.between(0, 12),
                    back,
                    self.below(9),
                )
            }
            Some(5) => self.store(),
            Some(6) => self.crash(),
            Some(7) => self.kept(),
            _ => Op::Check,
        }
    }

    /// What a reservation holds, or is settled with: often a little, sometimes more than fits.
    fn amounts(&mut self) -> [i64; 3] {
        [
            self.between(0, 3),
            self.one(&[0, 1, 40, 400]),
            self.one(&[0, 7, 60, 200]),
        ]
    }

    fn kept(&mut self) -> Op {
        match self.below(9) {
            0..4 => {
                let seconds = self.one(&[1, 30, 600, 4_000, 86_400]);
                let (tenant, key, user) = (self.below(2), self.below(2), self.below(3));
                Op::Reserve(tenant, key, user, self.amounts(), seconds)
            }
            8 => Op::ReleaseKept(self.below(64)),
            _ => Op::SettleKept(self.below(64), self.amounts(), self.below(2)),
        }
    }

    fn ask(&mut self) -> Ask {
        Ask {
            tenant: self.below(2),
            key: self.below(2),
            user: self.below(3),
            kind: self.one(&[
                Kind::ChatWhole,
                Kind::ChatStream,
                Kind::V1Whole,
                Kind::V1Stream,
                Kind::V1Stream,
            ]),
            prompt: self.below(30),
            maximum: (self.below(4) > 0).then(|| self.between(1, 60)),
            is_rude: self.below(4) == 0,
            is_keyed: self.below(3) == 0,
        }
    }

    fn together(&mut self) -> Op {
        let asks = self.below(7);
        let ends = self.below(4);
        Op::Together(
            (0..asks).map(|_| self.ask()).collect(),
            (0..ends).map(|_| (self.below(64), self.ending())).collect(),
        )
    }

    fn ending(&mut self) -> Ending {
        let report = match self.below(8) {
            0..4 => Report::True,
            4 | 5 => Report::Nothing,
            6 => Report::More(self.between(0, 200), self.between(0, 40)),
            _ => Report::Zero,
        };
        match self.below(10) {
            0..7 => Ending::Done(self.between(0, 40), report),
            7 | 8 => Ending::BreakOff,
            _ => Ending::Refuse,
        }
    }

    fn progress(&mut self) -> Op {
        let which = self.below(64);
        match self.below(14) {
            12 | 13 => Op::Repeat(which),
            0..3 => Op::Words(which, self.between(1, 30)),
            3 | 4 => Op::HangUp(which),
            5 => Op::Release(which),
            _ => Op::End(which, self.ending()),
        }
    }

    fn place(&mut self) -> (usize, Scope, WindowKind) {
        let scope = self.one(&[Scope::Tenant, Scope::Tenant, Scope::Key, Scope::User]);
        (self.below(3), scope, self.one(&WindowKind::ALL))
    }

    fn hard(&mut self, feature: usize) -> Option<i64> {
        let most = [12, 900, 250][feature];
        (self.below(5) > 0).then(|| self.between(0, most))
    }

    fn change(&mut self) -> Op {
        let tenant = self.below(2);
        let (feature, scope, window) = self.place();
        let hard = self.hard(feature);
        match self.below(15) {
            0..4 => Op::Limit(self.below(2), feature, scope, window, hard),
            4..6 => {
                let seconds = self.one(&[None, Some(20), Some(4_000)]);
                Op::Override(tenant, feature, scope, window, hard, seconds)
            }
            6..8 => {
                let seconds = self.one(&[30, 5_000, 1_000_000, 6_000_000]);
                Op::Grant(
                    tenant,
                    feature,
                    self.between(1, [6, 400, 120][feature]),
                    seconds,
                )
            }
            8 => Op::RevokeGrant(tenant, self.below(8)),
            9 => Op::Plan(tenant, self.below(2)),
            10 | 11 => Op::Reset(tenant, feature),
            12 => Op::Rotate(tenant, self.below(2)),
            _ => Op::Status(
                tenant,
                self.one(&[
                    Status::Active,
                    Status::Active,
                    Status::PastDue,
                    Status::Canceled,
                    Status::Paused,
                ]),
            ),
        }
    }

    fn jump(&mut self) -> Jump {
        let tenant = self.below(2);
        let window = self.one(&[
            WindowKind::Minute,
            WindowKind::Minute,
            WindowKind::Hour,
            WindowKind::Day,
            WindowKind::Week,
            WindowKind::Month,
            WindowKind::Period,
            WindowKind::Period,
        ]);
        match self.below(5) {
            0 => Jump::Millis(self.between(1, 40_000)),
            1 => Jump::Millis(self.between(1, 4_000_000)),
            2 | 3 => Jump::ToEnd(tenant, window),
            _ => Jump::BeforeEnd(tenant, window),
        }
    }

    fn store(&mut self) -> Op {
        match self.below(8) {
            0..4 => Op::Drain,
            4 => Op::DrainFails(Moment::Before),
            5 => Op::DrainFails(Moment::Committed),
            6 => Op::StoreAway,
            _ => Op::StoreBack,
        }
    }

    fn crash(&mut self) -> Op {
        match self.below(7) {
            6 => {
                let (writes, which) = (self.between(0, 6), self.below(64));
                Op::Crash(CrashAt::SettleKept(writes, which, self.amounts()))
            }
            0 => Op::Restart,
            1 => Op::Crash(CrashAt::Rest),
            2 | 3 => {
                let ends = 1 + self.below(3);
                let ends = (0..ends).map(|_| (self.below(64), self.ending())).collect();
                Op::Crash(CrashAt::Settle(self.between(0, 12), ends))
            }
            4 => Op::Crash(CrashAt::Record(
                self.one(&[Moment::Before, Moment::Committed]),
            )),
            _ => Op::Crash(CrashAt::Mark(self.between(0, 12))),
        }
    }
}
