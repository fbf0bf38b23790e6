//! Factors by which a provider's reported token counts are multiplied before they are recorded.

use std::{fmt, str::FromStr};

use wildmatch::WildMatch;

use super::quantity::Quantity;

/// Decimals kept of a factor.
const DECIMALS: usize = 6;
const SCALE: i64 = 1_000_000;
const LARGEST_FACTOR: i64 = 1_000 * SCALE;

/// Which count of a request a rule or a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    Input,
    Output,
}

/// Rules in the order given; the first that matches a model and direction is the one that counts.
///
/// Written as `MODEL_GLOB[:input|:output]=FACTOR,…` with globs of `*` and `?`; a rule without a direction is for
/// both. A model name may hold colons itself (`llama3:8b`): only a last part `:input` or `:output` is a direction.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calibration(Vec<Rule>);

#[derive(Clone, Debug, PartialEq)]
struct Rule {
    model: WildMatch,
    /// `None`: both.
    direction: Option<Direction>,
    factor: Factor,
}

/// A decimal with at most [`DECIMALS`] decimals, in millionths: `1.08` is 1,080,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Factor(i64);

impl Calibration {
    /// `reported` × the factor of the first rule that matches, rounded half up.
    #[must_use]
    pub fn apply(&self, model: &str, direction: Direction, reported: Quantity) -> Quantity {
        self.factor(model, direction)
            .map_or(reported, |factor| factor.times(reported))
    }

    /// The most that is recorded of `count` tokens: at least `count`, since what a tokenizer has counted, where the
    /// provider reports nothing, is not multiplied.
    #[must_use]
    pub fn at_most(&self, model: &str, direction: Direction, count: Quantity) -> Quantity {
        self.factor(model, direction)
            .map_or(count, |factor| factor.times_at_most(count))
    }

    /// The largest count of which no more than `recorded` is recorded; of several such counts together no more than
    /// as many times `recorded`.
    #[must_use]
    pub fn within(&self, model: &str, direction: Direction, recorded: Quantity) -> Quantity {
        self.factor(model, direction)
            .map_or(recorded, |factor| factor.within(recorded))
    }

    fn factor(&self, model: &str, direction: Direction) -> Option<Factor> {
        let applies = |rule: &&Rule| {
            rule.direction.is_none_or(|only| only == direction) && rule.model.matches(model)
        };
        self.0.iter().find(applies).map(|rule| rule.factor)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Factor {
    fn times(self, quantity: Quantity) -> Quantity {
        self.scaled(quantity, SCALE / 2)
    }

    fn times_at_most(self, quantity: Quantity) -> Quantity {
        self.at_least_one().scaled(quantity, SCALE - 1)
    }

    fn within(self, quantity: Quantity) -> Quantity {
        let count = i128::from(quantity.get()) * i128::from(SCALE);
        saturated(count.div_euclid(i128::from(self.at_least_one().0)))
    }

    fn at_least_one(self) -> Self {
        Self(self.0.max(SCALE))
    }

    fn scaled(self, quantity: Quantity, rounding: i64) -> Quantity {
        // 2^53 × 10^9 fits an i128 many times over.
        let scaled = i128::from(quantity.get()) * i128::from(self.0) + i128::from(rounding);
        saturated(scaled.div_euclid(i128::from(SCALE)))
    }
}

fn saturated(count: i128) -> Quantity {
    i64::try_from(count).map_or(Quantity::MAX, Quantity::new)
}

/// Which rule can't be read, and why.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("rule '{rule}' {fault}")]
pub struct InvalidCalibration {
    rule: String,
    fault: &'static str,
}

impl FromStr for Calibration {
    type Err = InvalidCalibration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rules = text.split(',').map(str::trim).map(|rule| {
            rule.parse().map_err(|fault| InvalidCalibration {
                rule: rule.to_owned(),
                fault,
            })
        });
        rules.collect::<Result<_, _>>().map(Self)
    }
}

impl FromStr for Rule {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A model's name may hold '=', a factor can't.
        let (target, factor) = text.rsplit_once('=').ok_or("has no '='")?;
        let (model, direction) = match target.rsplit_once(':') {
            Some((model, "input")) => (model, Some(Direction::Input)),
            Some((model, "output")) => (model, Some(Direction::Output)),
            _ => (target, None),
        };
        if model.trim().is_empty() {
            return Err("names no model");
        }
        Ok(Self {
            model: WildMatch::new(model.trim()),
            direction,
            factor: factor.trim().parse()?,
        })
    }
}

impl FromStr for Factor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FAULT: &str = "has no decimal number from 0 to 1000 with up to 6 decimals";
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !is_digits(whole) || !is_digits(decimals) || decimals.len() > DECIMALS {
            return Err(FAULT);
        }
        let whole: i64 = whole.parse().map_err(|_| FAULT)?;
        let millionths: i64 = format!("{decimals:0<DECIMALS$}")
            .parse()
            .map_err(|_| FAULT)?;
        let factor = whole
            .checked_mul(SCALE)
            .and_then(|scaled| scaled.checked_add(millionths));
        factor
            .filter(|factor| *factor <= LARGEST_FACTOR)
            .map(Self)
            .ok_or(FAULT)
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Input => "input",
            Self::Output => "output",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn applied(rules: &str, model: &str, direction: Direction, reported: i64) -> i64 {
        let rules: Calibration = rules.parse().unwrap();
        rules.apply(model, direction, Quantity::new(reported)).get()
    }

    #[test]
    fn the_first_matching_rule_of_a_direction_wins() {
        let rules = "llama-*:output=1.08, llama-*=2, *:input=0.5";
        for (model, direction, expected) in [
            ("llama-8b", Direction::Output, 108),
            ("llama-8b", Direction::Input, 200),
            ("gpt-5.1", Direction::Input, 50),
            ("gpt-5.1", Direction::Output, 100),
        ] {
            assert_eq!(
                applied(rules, model, direction, 100),
                expected,
                "{model} {direction}"
            );
        }
    }

    #[test]
    fn counts_are_rounded_half_up() {
        for (factor, reported, expected) in [
            ("0.5", 1, 1),
            ("0.5", 3, 2),
            ("1.08", 6, 6),
            ("1.08", 7, 8),
            ("0", 9, 0),
            ("0.000001", 499_999, 0),
        ] {
            let rules = format!("*={factor}");
            assert_eq!(
                applied(&rules, "m", Direction::Output, reported),
                expected,
                "{factor} × {reported}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_held_is_enough_for_what_is_recorded(
            millionths in 0_i64..=5_000_000,
            count in 0_i64..1_000_000,
            answers in 1_i64..9,
        ) {
            let rules = format!("*={}.{:06}", millionths / SCALE, millionths % SCALE);
            let rules: Calibration = rules.parse().unwrap();
            let (count, of) = (Quantity::new(count), Direction::Output);
            let held = rules.at_most("m", of, count);
            prop_assert!(rules.apply("m", of, count) <= held && count <= held);
            prop_assert!(rules.within("m", of, held) >= count, "nothing of it has to be lowered");
            let most = rules.within("m", of, count);
            let reported = most.times(answers);
            prop_assert!(rules.apply("m", of, reported) <= count.times(answers));
            prop_assert!(reported <= count.times(answers), "as counted by a tokenizer");
        }
    }

    #[test]
    fn a_models_own_colon_is_no_direction() {
        assert_eq!(applied("llama3:8b=2", "llama3:8b", Direction::Input, 5), 10);
        assert_eq!(
            applied("llama3:8b:input=2", "llama3:8b", Direction::Output, 5),
            5
        );
    }

    #[test]
    fn a_rule_that_cannot_be_read_is_named() {
        for rule in [
            "",
            "llama",
            "=2",
            "a=",
            "a=-1",
            "a=1e3",
            "a=1.0000001",
            "a=1001",
            "a=.5",
            ":input=1",
            "a=1,,b=2",
        ] {
            let error = rule.parse::<Calibration>().unwrap_err();
            assert!(error.to_string().starts_with("rule '"), "{rule}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_factor_of_one_changes_nothing(reported in 0..=Quantity::MAX.get()) {
            prop_assert_eq!(applied("*=1.000000", "any", Direction::Input, reported), reported);
        }

        #[test]
        fn the_result_is_within_half_a_unit(reported in 0_i64..1_000_000_000, millionths in 0_i64..=1_000_000_000) {
            let factor = format!("{}.{:06}", millionths / SCALE, millionths % SCALE);
            let result = applied(&format!("*={factor}"), "any", Direction::Input, reported);
            let exact = i128::from(reported) * i128::from(millionths);
            let off = i128::from(result) * i128::from(SCALE) - exact;
            prop_assert!(-i128::from(SCALE / 2) < off && off <= i128::from(SCALE / 2));
        }
    }
}
