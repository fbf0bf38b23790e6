//! How much of what a request wants it gets: the rules of design.md §3, on values.

use super::{Amount, Named, OnViolation, Want};
use crate::domain::{
    feature::FeatureKey,
    limit::{ActiveLimit, LimitState, LimitStates, SoftLimitMode, Violation},
    price::Rates,
    quantity::Quantity,
    usage::Quantities,
};

/// What a request gets, and the limits that stand against it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Judgement {
    /// Per feature; not to be held if anything is violated and violations refuse.
    pub(super) granted: Quantities,
    pub(super) violations: Vec<Violation>,
}

/// Judges all wants of a request against the limits as they stand without it.
///
/// A violation's `requested` is the least that would have been admitted, so that "would fit, were it not for
/// requests in flight" and "never fits" are said of what tollgate would really have let through.
pub(super) fn judge(
    wants: &[Want],
    states: &LimitStates,
    soft: SoftLimitMode,
    on_violation: OnViolation,
) -> Judgement {
    let whole = whole_of(wants);
    let fits = |state: LimitState<&ActiveLimit>| {
        let quantity = whole.of(&state.limit.feature);
        quantity == Quantity::ZERO || state.has_room_for(quantity, soft)
    };
    if states.iter().all(fits) {
        return Judgement {
            granted: whole,
            violations: Vec::new(),
        };
    }
    judge_each(wants, states, soft, on_violation)
}

/// All that is wanted.
pub(super) fn whole_of(wants: &[Want]) -> Quantities {
    let mut whole = Quantities::default();
    for want in wants {
        let quantity = whole_amount(&want.amount, &whole);
        whole.add(want.feature.clone(), quantity);
    }
    whole
}

/// Feature by feature, where not all of everything fits: what does not is lowered or refused, and what costs money
/// leaves less for what comes after it.
#[cold]
fn judge_each(
    wants: &[Want],
    states: &LimitStates,
    soft: SoftLimitMode,
    on_violation: OnViolation,
) -> Judgement {
    let mut judgement = Judgement::default();
    let money = Money::of(wants, states, soft);
    for want in wants {
        let of_feature = || {
            states
                .iter()
                .filter(|state| state.limit.feature == want.feature)
        };
        let range = Range::of(want, wants, &judgement.granted);
        let most = money.most(want, wants, &judgement.granted);
        let fits = |quantity: Quantity| {
            quantity == Quantity::ZERO
                || (quantity <= most
                    && of_feature().all(|state| state.has_room_for(quantity, soft)))
        };
        let granted = if fits(range.whole) {
            range.whole
        } else if fits(range.least) {
            let room = of_feature().filter_map(|state| state.room(soft)).min();
            let room = room.unwrap_or(range.whole).min(most);
            match on_violation {
                OnViolation::Refuse => range.lowered(&want.amount, room),
                OnViolation::Note => range.whole,
            }
        } else {
            let broken = of_feature().filter_map(|state| state.admit(range.least, soft));
            judgement.violations.extend(broken);
            range.whole
        };
        judgement.granted.add(want.feature.clone(), granted);
    }
    judgement
}

/// The least of everything that the request is content with.
pub(super) fn least_of(wants: &[Want]) -> Quantities {
    let none = Quantities::default();
    wants
        .iter()
        .map(|want| (want.feature.clone(), Range::of(want, wants, &none).least))
        .collect()
}

/// What a request's cost allows of its input and output.
///
/// Where even the least of both costs too much they are not lowered: the limit on cost refuses, and says so.
struct Money {
    /// What is left under the tightest limit on cost, if there is a price and such a limit, and the least fits.
    room: Option<(Rates, Quantity)>,
}

impl Money {
    fn of(wants: &[Want], states: &LimitStates, soft: SoftLimitMode) -> Self {
        let priced = wants.iter().find_map(|want| match want.amount {
            Amount::Priced(rates) => Some((rates, &want.feature)),
            Amount::Exact(_) | Amount::UpTo { .. } | Amount::Output { .. } => None,
        });
        let room = priced.and_then(|(rates, feature)| {
            let of_cost = states
                .iter()
                .filter(|state| state.limit.feature == *feature);
            let room = of_cost.filter_map(|state| state.room(soft)).min()?;
            (least_cost(&rates, wants) <= room).then_some((rates, room))
        });
        Self { room }
    }

    /// The most of `want` that can be paid for beside what was granted before it and the least of what comes after.
    fn most(&self, want: &Want, wants: &[Want], granted: &Quantities) -> Quantity {
        let Some((rates, room)) = &self.room else {
            return Quantity::MAX;
        };
        let tokens = match want.feature {
            FeatureKey::InputTokens => rates.input_within(*room, least_output(wants)),
            FeatureKey::OutputTokens => {
                rates.output_within(*room, granted.of(&FeatureKey::InputTokens))
            }
            FeatureKey::Messages | FeatureKey::Cost | FeatureKey::Named(_) => None,
        };
        tokens.unwrap_or(Quantity::MAX)
    }
}

/// What the least costs that the request is content with.
fn least_cost(rates: &Rates, wants: &[Want]) -> Quantity {
    rates.at_most(least(wants, &FeatureKey::InputTokens), least_output(wants))
}

fn least_output(wants: &[Want]) -> Quantity {
    least(wants, &FeatureKey::OutputTokens)
}

fn least(wants: &[Want], feature: &FeatureKey) -> Quantity {
    let of_feature = wants.iter().find(|want| want.feature == *feature);
    of_feature.map_or(Quantity::ZERO, |want| {
        Range::of(want, wants, &Quantities::default()).least
    })
}

/// All that an amount wants; `granted` is what the wants before it get.
fn whole_amount(amount: &Amount, granted: &Quantities) -> Quantity {
    match *amount {
        Amount::Exact(quantity) => quantity.at_least_zero(),
        Amount::UpTo { want, .. } => answers_of(want, 1),
        Amount::Output {
            per_answer,
            answers,
            ..
        } => answers_of(per_answer, answers.max(1)),
        Amount::Priced(rates) => rates.at_most(
            granted.of(&FeatureKey::InputTokens),
            granted.of(&FeatureKey::OutputTokens),
        ),
    }
}

/// `answers` times `each`, or times the most of which the product is still a multiple of `answers`.
fn answers_of(each: Quantity, answers: i64) -> Quantity {
    let each = each.at_least_zero();
    if answers == 1 {
        return each;
    }
    let most = Quantity::new(Quantity::MAX.get() / answers);
    each.min(most).times(answers)
}

/// The most and the least that an amount is content with.
struct Range {
    whole: Quantity,
    least: Quantity,
    /// Both are multiples of this.
    answers: i64,
}

impl Range {
    /// `granted`: what the wants before this one get.
    fn of(want: &Want, wants: &[Want], granted: &Quantities) -> Self {
        let whole = whole_amount(&want.amount, granted);
        let at_least = |floor: Quantity, answers: i64| {
            answers_of(floor.max(Quantity::ONE), answers).min(whole)
        };
        let (least, answers) = match want.amount {
            Amount::Exact(_) => (whole, 1),
            Amount::UpTo { floor, .. } => (at_least(floor, 1), 1),
            Amount::Output { answers, floor, .. } => {
                let answers = answers.max(1);
                (at_least(floor, answers), answers)
            }
            Amount::Priced(rates) => (least_cost(&rates, wants), 1),
        };
        Self {
            whole,
            least,
            answers,
        }
    }

    /// What of `room` to take where the whole does not fit, but the least does.
    fn lowered(&self, amount: &Amount, room: Quantity) -> Quantity {
        let target = match *amount {
            Amount::Output {
                named: Named::ByDefault,
                reservation,
                ..
            } => reservation.max(Quantity::new(room.get() / 4)).min(room),
            Amount::Exact(_) | Amount::UpTo { .. } | Amount::Output { .. } | Amount::Priced(_) => {
                room
            }
        };
        Quantity::new(target.get() / self.answers)
            .times(self.answers)
            .clamp(self.least, self.whole)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::{
        feature::FeatureKey,
        limit::{LimitType, Scope},
        price::LongPrompt,
        time::Timestamp,
        window::{Window, WindowKind},
    };

    fn state(soft: Option<i64>, hard: Option<i64>, settled: i64, reserved: i64) -> LimitState {
        LimitState {
            limit: ActiveLimit {
                feature: FeatureKey::OutputTokens,
                unit: "tokens".into(),
                scope: Scope::Tenant,
                kind: WindowKind::Lifetime,
                window: Window::new(Timestamp::EPOCH, Timestamp::NEVER).unwrap(),
                soft: soft.map(Quantity::new),
                hard: hard.map(Quantity::new),
                granted: Quantity::ZERO,
                is_own: false,
            },
            settled: Quantity::new(settled),
            reserved: Quantity::new(reserved),
        }
    }

    fn output(per_answer: i64, answers: i64, named: Named) -> Amount {
        Amount::Output {
            per_answer: Quantity::new(per_answer),
            answers,
            named,
            floor: Quantity::new(16),
            reservation: Quantity::new(4096),
        }
    }

    fn up_to(want: i64, floor: i64) -> Amount {
        Amount::UpTo {
            want: Quantity::new(want),
            floor: Quantity::new(floor),
        }
    }

    fn exact(quantity: i64) -> Amount {
        Amount::Exact(Quantity::new(quantity))
    }

    fn judge_one(amount: Amount, states: &[LimitState], on_violation: OnViolation) -> Judgement {
        let want = Want {
            feature: FeatureKey::OutputTokens,
            amount,
        };
        judge(
            &[want],
            &states.iter().cloned().collect(),
            SoftLimitMode::Warn,
            on_violation,
        )
    }

    /// The quantity granted, or the one said to be requested in the refusal.
    fn outcome(amount: Amount, states: &[LimitState]) -> Result<i64, i64> {
        let judgement = judge_one(amount, states, OnViolation::Refuse);
        match judgement.violations.first() {
            None => Ok(judgement.granted.of(&FeatureKey::OutputTokens).get()),
            Some(violation) => Err(violation.requested.get()),
        }
    }

    #[test]
    fn amounts_are_granted_lowered_or_refused_by_what_is_left() {
        let left = |left: i64| vec![state(None, Some(1_000_000), 1_000_000 - left, 0)];
        for (amount, states, expected) in [
            (exact(10), left(10), Ok(10)),
            (exact(10), left(9), Err(10)),
            (exact(0), left(0), Ok(0)),
            (exact(-3), left(0), Ok(0)),
            (exact(10), vec![], Ok(10)),
            (up_to(100, 16), left(100), Ok(100)),
            (up_to(100, 16), left(99), Ok(99)),
            (up_to(100, 16), left(16), Ok(16)),
            (up_to(100, 16), left(15), Err(16)),
            (up_to(10, 16), left(9), Err(10)),
            (up_to(10, 0), left(0), Err(1)),
            (up_to(0, 16), left(0), Ok(0)),
            (output(1000, 1, Named::ByClient), left(1000), Ok(1000)),
            (output(1000, 1, Named::ByClient), left(999), Ok(999)),
            (output(1000, 3, Named::ByClient), left(2999), Ok(2997)),
            (output(1000, 3, Named::ByClient), left(48), Ok(48)),
            (output(1000, 3, Named::ByClient), left(47), Err(48)),
            (output(5, 1, Named::ByClient), left(5), Ok(5)),
            (output(5, 1, Named::ByClient), left(4), Err(5)),
            (
                output(128_000, 1, Named::ByDefault),
                left(128_000),
                Ok(128_000),
            ),
            // A quarter of what is left where that is more than the reservation, else the reservation, else all.
            (
                output(128_000, 1, Named::ByDefault),
                left(100_000),
                Ok(25_000),
            ),
            (output(128_000, 1, Named::ByDefault), left(10_000), Ok(4096)),
            (output(128_000, 1, Named::ByDefault), left(3000), Ok(3000)),
            (output(128_000, 3, Named::ByDefault), left(10_000), Ok(4095)),
            (output(128_000, 1, Named::ByDefault), left(15), Err(16)),
            // Many answers: the floor of each counts, although the reservation alone would not give it.
            (
                output(128_000, 1000, Named::ByDefault),
                left(16_000),
                Ok(16_000),
            ),
            (
                output(i64::MAX, 3, Named::ByClient),
                vec![],
                Ok((1 << 53) - 2),
            ),
        ] {
            assert_eq!(
                outcome(amount.clone(), &states),
                expected,
                "{amount:?} {states:?}"
            );
        }
    }

    #[test]
    fn the_tightest_of_several_limits_decides_and_only_broken_ones_are_named() {
        let states = [
            state(None, Some(1000), 0, 0),
            state(None, Some(500), 0, 100),
            state(None, None, 9000, 0),
        ];
        assert_eq!(outcome(output(1000, 1, Named::ByClient), &states), Ok(400));
        let judgement = judge_one(exact(450), &states, OnViolation::Refuse);
        assert_eq!(judgement.violations.len(), 1);
        let violation = &judgement.violations[0];
        assert_eq!(violation.limit_value, Quantity::new(500));
        assert_eq!(violation.reserved, Quantity::new(100));
        assert!(violation.is_by_reservations_alone());
    }

    #[test]
    fn an_output_that_could_be_lowered_never_counts_as_larger_than_its_limit() {
        let states = [state(None, Some(1000), 995, 0)];
        let judgement = judge_one(
            output(128_000, 1, Named::ByDefault),
            &states,
            OnViolation::Refuse,
        );
        assert!(!judgement.violations[0].is_larger_than_limit());
    }

    /// gpt-4o: 2.5 micro-dollars a token of input, 10 a token of output.
    fn priced() -> Amount {
        Amount::Priced(Rates {
            input: Quantity::new(2_500_000),
            cached_input: Some(Quantity::new(1_250_000)),
            cache_write: None,
            output: Quantity::new(10_000_000),
            long_prompt: None,
        })
    }

    /// Granted input, output and cost, or the features refused.
    fn with_cost(
        input: Amount,
        output: Amount,
        limits: &[(FeatureKey, i64)],
        on_violation: OnViolation,
    ) -> Result<[i64; 3], Vec<FeatureKey>> {
        let wants = [
            (FeatureKey::InputTokens, input),
            (FeatureKey::OutputTokens, output),
            (FeatureKey::Cost, priced()),
        ];
        let wants = wants.map(|(feature, amount)| Want { feature, amount });
        let states = limits.iter().map(|(feature, hard)| {
            let mut state = state(None, Some(*hard), 0, 0);
            state.limit.feature = feature.clone();
            state
        });
        let judgement = judge(&wants, &states.collect(), SoftLimitMode::Warn, on_violation);
        let of = |feature| judgement.granted.of(&feature).get();
        if judgement.violations.is_empty() {
            use FeatureKey::{Cost, InputTokens, OutputTokens};
            return Ok([of(InputTokens), of(OutputTokens), of(Cost)]);
        }
        let violations = judgement.violations.into_iter();
        Err(violations.map(|broken| broken.limit.feature).collect())
    }

    #[test]
    fn an_output_is_lowered_to_what_can_be_paid_for() {
        use FeatureKey::{Cost, InputTokens, OutputTokens};
        let named = || output(1_000, 1, Named::ByClient);
        let default = || output(128_000, 1, Named::ByDefault);
        let ask =
            |input, output, limits: &[_]| with_cost(input, output, limits, OnViolation::Refuse);
        // Without a limit on it, cost is held all the same: it counts.
        assert_eq!(ask(exact(100), named(), &[]), Ok([100, 1_000, 10_250]));
        assert_eq!(
            ask(exact(100), named(), &[(Cost, 10_250)]),
            Ok([100, 1_000, 10_250])
        );
        assert_eq!(
            ask(exact(100), named(), &[(Cost, 10_249)]),
            Ok([100, 999, 10_240])
        );
        assert_eq!(ask(exact(100), named(), &[(Cost, 410)]), Ok([100, 16, 410]));
        assert_eq!(ask(exact(100), named(), &[(Cost, 409)]), Err(vec![Cost]));
        // By default to the larger of the reservation and a quarter of what can be paid for.
        assert_eq!(
            ask(exact(100), default(), &[(Cost, 100_250)]),
            Ok([100, 4_096, 41_210])
        );
        assert_eq!(
            ask(exact(100), default(), &[(Cost, 400_250)]),
            Ok([100, 10_000, 100_250])
        );
        // The tighter of both limits decides, and both are named where both are broken.
        let both = [(OutputTokens, 500), (Cost, 10_249)];
        assert_eq!(ask(exact(100), named(), &both), Ok([100, 500, 5_250]));
        let both = [(InputTokens, 50), (Cost, 100)];
        assert_eq!(
            ask(exact(100), named(), &both),
            Err(vec![InputTokens, Cost])
        );
        // Input that is not known is lowered too, and leaves room for the least of output.
        assert_eq!(
            ask(up_to(128_000, 100), named(), &[(Cost, 2_660)]),
            Ok([1_000, 16, 2_660])
        );
        let noted = with_cost(exact(100), named(), &[(Cost, 500)], OnViolation::Note);
        assert_eq!(noted, Ok([100, 1_000, 10_250]), "nothing is lowered");
    }

    #[test]
    fn answers_share_what_can_be_paid_for() {
        let three = output(1_000, 3, Named::ByClient);
        let granted = with_cost(
            exact(0),
            three,
            &[(FeatureKey::Cost, 10_000)],
            OnViolation::Refuse,
        );
        assert_eq!(granted, Ok([0, 999, 9_990]));
    }

    #[test]
    fn where_violations_are_only_noted_nothing_is_lowered() {
        let states = [state(None, Some(1000), 900, 0)];
        let lowered = judge_one(output(1000, 1, Named::ByClient), &states, OnViolation::Note);
        assert_eq!(lowered.granted.of(&FeatureKey::OutputTokens).get(), 1000);
        assert_eq!(lowered.violations, []);

        let refused = judge_one(exact(101), &states, OnViolation::Note);
        assert_eq!(refused.granted.of(&FeatureKey::OutputTokens).get(), 101);
        assert_eq!(refused.violations.len(), 1);
    }

    #[test]
    fn a_soft_limit_that_blocks_is_a_ceiling_like_a_hard_one() {
        let states = LimitStates::from_iter([state(Some(50), Some(100), 40, 0)]);
        let want = |amount| {
            [Want {
                feature: FeatureKey::OutputTokens,
                amount,
            }]
        };
        let warned = judge(
            &want(exact(11)),
            &states,
            SoftLimitMode::Warn,
            OnViolation::Refuse,
        );
        assert_eq!(warned.violations, []);
        let blocked = judge(
            &want(exact(11)),
            &states,
            SoftLimitMode::Block,
            OnViolation::Refuse,
        );
        assert_eq!(blocked.violations[0].limit_type, LimitType::SoftLimit);
        let lowered = judge(
            &want(up_to(60, 1)),
            &states,
            SoftLimitMode::Block,
            OnViolation::Refuse,
        );
        assert_eq!(lowered.granted.of(&FeatureKey::OutputTokens).get(), 10);
    }

    fn amounts() -> impl Strategy<Value = Amount> {
        let quantity = || prop_oneof![0_i64..300, Just(1 << 52)].prop_map(Quantity::new);
        prop_oneof![
            quantity().prop_map(Amount::Exact),
            (quantity(), quantity()).prop_map(|(want, floor)| Amount::UpTo { want, floor }),
            (quantity(), 1_i64..9, any::<bool>(), 0_i64..40, 0_i64..100).prop_map(
                |(per_answer, answers, by_client, floor, reservation)| Amount::Output {
                    per_answer,
                    answers,
                    named: if by_client {
                        Named::ByClient
                    } else {
                        Named::ByDefault
                    },
                    floor: Quantity::new(floor),
                    reservation: Quantity::new(reservation),
                }
            ),
        ]
    }

    fn states() -> impl Strategy<Value = Vec<LimitState>> {
        let one = (proptest::option::of(0_i64..500), 0_i64..600, 0_i64..200)
            .prop_map(|(hard, settled, reserved)| state(None, hard, settled, reserved));
        proptest::collection::vec(one, 0..4)
    }

    /// Small ones, so that rounding up to a micro-dollar matters; with rates for long prompts or without.
    fn any_rates() -> impl Strategy<Value = Rates> {
        let rate = || (0_i64..3_000_000).prop_map(Quantity::new);
        let long = (1_i64..400, rate(), rate()).prop_map(|(above, input, output)| LongPrompt {
            above_input_tokens: Quantity::new(above),
            input,
            cached_input: None,
            cache_write: None,
            output,
        });
        (rate(), rate(), proptest::option::of(long)).prop_map(|(input, output, long_prompt)| {
            Rates {
                input,
                cached_input: None,
                cache_write: None,
                output,
                long_prompt,
            }
        })
    }

    fn states_of_all() -> impl Strategy<Value = Vec<LimitState>> {
        let of = |feature: FeatureKey| {
            let one = (0_i64..900, -20_i64..600, 0_i64..100);
            let one = one.prop_map(move |(hard, settled, reserved)| {
                let mut state = state(None, Some(hard), settled, reserved);
                state.limit.feature = feature.clone();
                state
            });
            proptest::collection::vec(one, 0..3)
        };
        let [messages, input, output, cost] = FeatureKey::BUILT_IN.clone().map(of);
        (messages, input, output, cost)
            .prop_map(|(a, b, c, d)| [a, b, c, d].into_iter().flatten().collect())
    }

    proptest! {
        #[test]
        fn where_all_fits_it_is_what_feature_by_feature_would_give(
            messages in 0_i64..3,
            input in amounts(),
            output in amounts(),
            rates in proptest::option::of(any_rates()),
            states in states_of_all(),
            refuses in any::<bool>(),
        ) {
            use FeatureKey::{Cost, InputTokens, Messages, OutputTokens};
            let priced = rates.map(|rates| (Cost, Amount::Priced(rates)));
            let wants: Vec<Want> = [
                (Messages, exact(messages)),
                (InputTokens, input),
                (OutputTokens, output),
            ]
            .into_iter()
            .chain(priced)
            .map(|(feature, amount)| Want { feature, amount })
            .collect();
            let states = states.into_iter().collect();
            let on_violation = if refuses { OnViolation::Refuse } else { OnViolation::Note };
            let soft = SoftLimitMode::Warn;
            prop_assert_eq!(
                judge(&wants, &states, soft, on_violation),
                judge_each(&wants, &states, soft, on_violation)
            );
        }

        #[test]
        fn what_is_granted_fits_under_every_limit(amount in amounts(), states in states()) {
            let judgement = judge_one(amount.clone(), &states, OnViolation::Refuse);
            if judgement.violations.is_empty() {
                let granted = judgement.granted.of(&FeatureKey::OutputTokens);
                prop_assert!(granted >= Quantity::ZERO);
                for state in states.iter().filter(|_| granted > Quantity::ZERO) {
                    prop_assert!(state.admit(granted, SoftLimitMode::Warn).is_none());
                }
                if let Amount::Output { answers, .. } = amount {
                    prop_assert_eq!(granted.get() % answers, 0);
                }
            }
        }

        #[test]
        fn nothing_is_refused_whose_least_would_fit(amount in amounts(), states in states()) {
            let judgement = judge_one(amount, &states, OnViolation::Refuse);
            for violation in &judgement.violations {
                prop_assert!(violation.requested > Quantity::ZERO);
                let taken = violation.settled.plus(violation.reserved);
                prop_assert!(taken.plus(violation.requested) > violation.limit_value);
            }
        }
    }
}
