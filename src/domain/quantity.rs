//! How much: whole units of a feature (requests, tokens, micro-dollars, …).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

/// A number of units; negative only in corrections.
///
/// Sums stop at ±(2^53 − 1), the largest integer that every JSON client reads exactly (RFC 8259 §6):
/// a counter at the end of the scale stays there instead of wrapping round to "plenty left".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Quantity(i64);

impl Quantity {
    pub const ZERO: Self = Self(0);
    pub const ONE: Self = Self(1);
    pub const MAX: Self = Self((1 << 53) - 1);

    /// `value`, brought into ±(2^53 − 1).
    #[must_use]
    pub const fn new(value: i64) -> Self {
        if value > Self::MAX.0 {
            Self::MAX
        } else if value < -Self::MAX.0 {
            Self(-Self::MAX.0)
        } else {
            Self(value)
        }
    }

    #[must_use]
    pub fn from_count(count: usize) -> Self {
        i64::try_from(count).map_or(Self::MAX, Self::new)
    }

    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }

    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self::new(self.0 + other.0) // far from the ends of an i64
    }

    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self::new(self.0 - other.0)
    }

    #[must_use]
    pub const fn times(self, factor: i64) -> Self {
        Self::new(self.0.saturating_mul(factor))
    }

    /// `self`, or zero if negative.
    #[must_use]
    pub fn at_least_zero(self) -> Self {
        self.max(Self::ZERO)
    }
}

/// A running sum. Wider than [`Quantity`], whose sums stop at the end of the scale: a reservation that is taken
/// off again must leave exactly what was there before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(i128);

impl Sum {
    pub fn add(&mut self, quantity: Quantity) {
        self.0 += i128::from(quantity.0);
    }

    pub fn take(&mut self, quantity: Quantity) {
        self.0 -= i128::from(quantity.0);
    }

    #[must_use]
    pub fn quantity(self) -> Quantity {
        #[cold]
        fn end_of_scale(is_negative: bool) -> Quantity {
            Quantity(if is_negative {
                -Quantity::MAX.0
            } else {
                Quantity::MAX.0
            })
        }
        match i64::try_from(self.0) {
            Ok(sum) if sum.unsigned_abs() <= Quantity::MAX.0.unsigned_abs() => Quantity(sum),
            _ => end_of_scale(self.0 < 0),
        }
    }
}

impl From<Quantity> for Sum {
    fn from(quantity: Quantity) -> Self {
        Self(i128::from(quantity.0))
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(quantities: I) -> Self {
        quantities.fold(Self::ZERO, Self::plus)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = i64::deserialize(deserializer)?;
        if value.unsigned_abs() > Self::MAX.0.unsigned_abs() {
            return Err(D::Error::custom(format_args!("{value} is beyond 2^53 - 1")));
        }
        Ok(Self(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_stop_at_the_end_of_the_scale_and_never_wrap() {
        assert_eq!(Quantity::MAX.plus(Quantity::ONE), Quantity::MAX);
        assert_eq!(
            Quantity::new(i64::MIN).minus(Quantity::MAX),
            Quantity::new(i64::MIN)
        );
        assert_eq!(Quantity::MAX.times(i64::MAX), Quantity::MAX);
    }

    #[test]
    fn what_is_added_past_the_end_of_the_scale_is_taken_off_exactly() {
        let mut sum = Sum::default();
        sum.add(Quantity::MAX);
        sum.add(Quantity::MAX);
        assert_eq!(sum.quantity(), Quantity::MAX);
        sum.take(Quantity::MAX);
        assert_eq!(sum.quantity(), Quantity::MAX);
        sum.take(Quantity::MAX);
        assert_eq!(sum, Sum::default());
        sum.take(Quantity::MAX);
        sum.take(Quantity::ONE);
        assert_eq!(sum.quantity(), Quantity::new(i64::MIN));
        sum.add(Quantity::new(2));
        assert_eq!(sum.quantity(), Quantity::new(1 - Quantity::MAX.get()));
    }
}
