//! Whether something is to be told: the rule, without clock or store.

use crate::{domain::quantity::Quantity, store::notices::Told};

/// What of a limit can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Percent of the limit.
    Threshold(u16),
    SoftLimit,
    /// A request was refused.
    Limit,
    /// More was used than the limit allows.
    Overshoot,
}

impl Mark {
    /// As it is kept in the store.
    pub(super) fn name(self) -> String {
        match self {
            Self::Threshold(percent) => format!("threshold:{percent}"),
            Self::SoftLimit => "soft_limit".to_owned(),
            Self::Limit => "limit".to_owned(),
            Self::Overshoot => "overshoot".to_owned(),
        }
    }

    /// The CloudEvents type.
    pub(super) const fn event_type(self) -> &'static str {
        match self {
            Self::Threshold(_) => "tollgate.usage.threshold_reached",
            Self::SoftLimit => "tollgate.usage.soft_limit_reached",
            Self::Limit => "tollgate.usage.limit_reached",
            Self::Overshoot => "tollgate.usage.overshoot",
        }
    }

    pub(super) fn is_reached(self, used: Quantity, limit: Quantity) -> bool {
        match self {
            Self::Threshold(percent) => {
                let needed = i128::from(limit.get()) * i128::from(percent);
                limit > Quantity::ZERO && i128::from(used.get()) * 100 >= needed
            }
            Self::SoftLimit | Self::Limit => used >= limit,
            Self::Overshoot => used > limit,
        }
    }
}

/// What is to be done about a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Nothing,
    Tell,
    /// It was told of a lower limit, which was since raised above what was used: it may be told again.
    Rearm,
    /// It was told of another limit, and stands.
    Adjust,
}

/// What was used when something was last told of a limit below `limit`: what was told of `limit` itself came after the
/// raise.
pub(super) fn used_before<'a>(told: impl Iterator<Item = &'a Told>, limit: Quantity) -> Quantity {
    let earlier = told.filter(|told| told.limit < limit);
    earlier
        .map(|told| told.used)
        .max()
        .unwrap_or(Quantity::ZERO)
}

/// `told`: the limit that it was told of, if it was. `before`: what was used when the limit was last looked at, which
/// counts where it was raised in between. `is_due`: it would be told now, if it never was.
pub(super) fn judge(
    mark: Mark,
    limit: Quantity,
    told: Option<Quantity>,
    before: Quantity,
    is_due: bool,
) -> Verdict {
    match told {
        None if is_due => Verdict::Tell,
        None => Verdict::Nothing,
        Some(told) if told == limit => Verdict::Nothing,
        Some(told) if told < limit && !mark.is_reached(before, limit) => {
            if is_due {
                Verdict::Tell
            } else {
                Verdict::Rearm
            }
        }
        Some(_) => Verdict::Adjust,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::Timestamp;

    #[test]
    fn a_mark_is_reached_at_its_percentage_and_not_a_unit_before() {
        let reached =
            |mark: Mark, used, limit| mark.is_reached(Quantity::new(used), Quantity::new(limit));
        for (mark, below, at, limit) in [
            (Mark::Threshold(80), 159, 160, 200),
            (Mark::Threshold(33), 0, 1, 3),
            (Mark::Threshold(100), 2, 3, 3),
            (Mark::Threshold(150), 299, 300, 200),
            (Mark::SoftLimit, 149, 150, 150),
            (Mark::Overshoot, 200, 201, 200),
        ] {
            assert!(!reached(mark, below, limit), "{mark:?} at {below}");
            assert!(reached(mark, at, limit), "{mark:?} at {at}");
        }
        assert!(
            !reached(Mark::Threshold(80), 0, 0),
            "nothing is no share of nothing"
        );
        let most = Quantity::MAX.get();
        assert!(reached(Mark::Threshold(1000), most, most / 10));
    }

    #[test]
    fn what_was_told_of_the_raised_limit_says_nothing_of_the_time_before() {
        let told = [(100, 85), (100, 100), (120, 120)].map(|(limit, used)| Told {
            window_end: Timestamp::NEVER,
            limit: Quantity::new(limit),
            used: Quantity::new(used),
            at: Timestamp::EPOCH,
        });
        for (limit, expected) in [(120, 100), (150, 120), (100, 0)] {
            let before = used_before(told.iter(), Quantity::new(limit));
            assert_eq!(before.get(), expected, "raised to {limit}");
        }
    }

    #[test]
    fn a_raised_limit_rearms_what_is_below_it_and_nothing_else() {
        let judged = |percent, limit, told: Option<i64>, before, used| {
            let (limit, used) = (Quantity::new(limit), Quantity::new(used));
            let mark = Mark::Threshold(percent);
            let is_due = mark.is_reached(used, limit);
            judge(
                mark,
                limit,
                told.map(Quantity::new),
                Quantity::new(before),
                is_due,
            )
        };
        for (percent, limit, told, before, used, expected) in [
            (80, 100, None, 0, 79, Verdict::Nothing),
            (80, 100, None, 79, 80, Verdict::Tell),
            (80, 100, Some(100), 80, 81, Verdict::Nothing),
            // Corrected down and up again: told once.
            (80, 100, Some(100), 10, 90, Verdict::Nothing),
            // 100 used, the limit raised to 110: 80 % stands, 100 % may come again.
            (80, 110, Some(100), 100, 101, Verdict::Adjust),
            (100, 110, Some(100), 100, 101, Verdict::Rearm),
            // Raised and reached again between two looks.
            (100, 110, Some(100), 100, 110, Verdict::Tell),
            (80, 200, Some(100), 150, 165, Verdict::Tell),
            // Lowered: what was told stands, and counts for the new limit.
            (80, 50, Some(100), 80, 81, Verdict::Adjust),
            (80, 100, Some(50), 70, 71, Verdict::Rearm),
        ] {
            assert_eq!(
                judged(percent, limit, told, before, used),
                expected,
                "{percent} % of {limit}, told of {told:?}, {before} → {used}"
            );
        }
    }
}
