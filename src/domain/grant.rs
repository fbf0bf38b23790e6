//! Extra allowances, and how much of them is left.

use super::{
    feature::FeatureKey,
    ids::{GrantId, TenantId},
    quantity::Quantity,
    time::Timestamp,
    window::{Window, WindowKind},
};

/// Extra allowance of one feature for one tenant; raises the hard limits of scope tenant per period, month, lifetime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub grant_id: GrantId,
    pub tenant_id: TenantId,
    pub feature: FeatureKey,
    pub quantity: Quantity,
    pub reason: String,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
}

impl Grant {
    /// When it stops: its expiry, or its revocation if that is earlier.
    #[must_use]
    pub fn ends_at(&self) -> Timestamp {
        self.revoked_at
            .map_or(self.expires_at, |revoked| revoked.min(self.expires_at))
    }

    #[must_use]
    pub fn is_active_at(&self, now: Timestamp) -> bool {
        self.created_at <= now && now < self.ends_at()
    }

    /// Whether grants raise limits of this window.
    #[must_use]
    pub const fn raises(kind: WindowKind) -> bool {
        matches!(
            kind,
            WindowKind::Period | WindowKind::Month | WindowKind::Lifetime
        )
    }
}

/// What was used in one stretch of a window, between two instants at which the set of grants changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The limit's window that the stretch lies in.
    pub window: Window,
    pub start: Timestamp,
    /// What was used from `window.start()` to the end of this stretch.
    pub used_by_end: Quantity,
}

/// What grants do to one limit now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Burned {
    /// What they add to the hard limit in the current window: burned in it already, and left to burn.
    pub granted: Quantity,
    /// What is left of each grant, in the order given, at the start of the current stretch.
    pub remaining: Vec<Quantity>,
}

/// Replays how grants were used up: the plan's allowance first, then the grant that expires first.
///
/// `ended` are the stretches since the first grant began, oldest first, cut at the limit's window bounds and at
/// every begin and end of a grant; `current` is the window of now. What a grant did not lose in one window
/// carries over to the next; what was burned in the current window still counts after its grant expired.
#[must_use]
pub fn replay(
    grants: &[Grant],
    hard: Quantity,
    ended: &[Stretch],
    current: Window,
    now: Timestamp,
) -> Burned {
    let mut by_expiry: Vec<usize> = (0..grants.len()).collect();
    // By the expiry given, not by a revocation: that must not change what was burned before it.
    by_expiry.sort_by_key(|&index| {
        (
            grants[index].expires_at,
            grants[index].created_at,
            grants[index].grant_id,
        )
    });
    let mut remaining: Vec<Quantity> = grants.iter().map(|grant| grant.quantity).collect();
    let mut burned_in = (current, Quantity::ZERO);
    for stretch in ended {
        if burned_in.0 != stretch.window {
            burned_in = (stretch.window, Quantity::ZERO);
        }
        let over = stretch.used_by_end.minus(hard).at_least_zero();
        let mut to_burn = over.minus(burned_in.1).at_least_zero();
        for &index in &by_expiry {
            if grants[index].is_active_at(stretch.start) {
                let burn = to_burn.min(remaining[index]);
                remaining[index] = remaining[index].minus(burn);
                burned_in.1 = burned_in.1.plus(burn);
                to_burn = to_burn.minus(burn);
            }
        }
    }
    let burned = if burned_in.0 == current {
        burned_in.1
    } else {
        Quantity::ZERO
    };
    let left: Quantity = (0..grants.len())
        .filter(|&index| grants[index].is_active_at(now))
        .map(|index| remaining[index])
        .sum();
    Burned {
        granted: burned.plus(left),
        remaining,
    }
}

/// The instants in `(from, now]` at which stretches are cut: ends of windows, begins and ends of grants; sorted.
#[must_use]
pub fn cuts(
    grants: &[Grant],
    from: Timestamp,
    now: Timestamp,
    window_at: impl Fn(Timestamp) -> Window,
) -> Vec<Timestamp> {
    let mut cuts: Vec<Timestamp> = grants
        .iter()
        .flat_map(|grant| [grant.created_at, grant.ends_at()])
        .filter(|&at| from < at && at <= now)
        .collect();
    let mut window = window_at(from);
    while window.end() <= now {
        cuts.push(window.end());
        window = window_at(window.end());
    }
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::ids::{GrantId, TenantId};

    fn grant(id: u128, quantity: i64, from: i64, until: i64) -> Grant {
        Grant {
            grant_id: GrantId::new(uuid::Uuid::from_u128(id)),
            tenant_id: TenantId::new(uuid::Uuid::nil()),
            feature: FeatureKey::Messages,
            quantity: Quantity::new(quantity),
            reason: "test".to_owned(),
            created_at: Timestamp::from_seconds(from),
            expires_at: Timestamp::from_seconds(until),
            revoked_at: None,
        }
    }

    fn window(index: i64) -> Window {
        Window::new(
            Timestamp::from_seconds(index * 100),
            Timestamp::from_seconds(index * 100 + 100),
        )
        .unwrap()
    }

    fn stretch(window_index: i64, start: i64, used: i64) -> Stretch {
        Stretch {
            window: window(window_index),
            start: Timestamp::from_seconds(start),
            used_by_end: Quantity::new(used),
        }
    }

    #[test]
    fn a_revocation_changes_nothing_of_what_was_burned_before_it() {
        let revoked = Grant {
            revoked_at: Some(Timestamp::from_seconds(30)),
            ..grant(1, 1, 10, 90)
        };
        let burned = replay(
            &[revoked, grant(2, 1, 10, 80)],
            Quantity::new(1),
            &[stretch(0, 10, 2)],
            window(0),
            Timestamp::from_seconds(30),
        );
        assert_eq!(burned.remaining, [Quantity::new(1), Quantity::ZERO]);
        assert_eq!(burned.granted, Quantity::new(1));
    }

    #[test]
    fn a_fresh_grant_raises_the_limit_whole() {
        let burned = replay(
            &[grant(1, 50, 10, 90)],
            Quantity::new(100),
            &[],
            window(0),
            Timestamp::from_seconds(20),
        );
        assert_eq!(burned.granted, Quantity::new(50));
    }

    #[test]
    fn what_is_unused_carries_over_to_the_next_window() {
        let ended = [stretch(0, 10, 130)];
        let burned = replay(
            &[grant(1, 50, 10, 500)],
            Quantity::new(100),
            &ended,
            window(1),
            Timestamp::from_seconds(120),
        );
        assert_eq!(
            burned.granted,
            Quantity::new(20),
            "30 of 50 were burned in the window before"
        );
    }

    #[test]
    fn the_grant_that_expires_first_burns_first() {
        let grants = [grant(1, 50, 10, 500), grant(2, 50, 10, 300)];
        let burned = replay(
            &grants,
            Quantity::new(100),
            &[stretch(0, 10, 130)],
            window(1),
            Timestamp::from_seconds(120),
        );
        assert_eq!(burned.remaining, [Quantity::new(50), Quantity::new(20)]);
    }

    #[test]
    fn what_was_burned_still_counts_after_its_grant_expired() {
        let grants = [grant(1, 50, 10, 60)];
        let now = Timestamp::from_seconds(70);
        let burned = replay(
            &grants,
            Quantity::new(100),
            &[stretch(0, 10, 130)],
            window(0),
            now,
        );
        assert_eq!(
            burned.granted,
            Quantity::new(30),
            "30 were burned before it expired, 20 lapsed"
        );
        let unused = replay(
            &grants,
            Quantity::new(100),
            &[stretch(0, 10, 90)],
            window(0),
            now,
        );
        assert_eq!(unused.granted, Quantity::ZERO);
    }

    proptest! {
        #[test]
        fn grants_never_give_more_than_their_sum_and_never_go_below_zero(
            quantities in proptest::collection::vec((0_i64..100, 0_i64..300, 1_i64..300), 0..5),
            uses in proptest::collection::vec(0_i64..300, 3),
            hard in 0_i64..150,
        ) {
            let grants: Vec<Grant> = quantities.iter().enumerate()
                .map(|(i, &(q, from, length))| grant(i as u128, q, from, from + length)).collect();
            let ended: Vec<Stretch> = (0_i64..).zip(&uses)
                .map(|(i, &used)| stretch(i, i * 100, used)).collect();
            let burned = replay(&grants, Quantity::new(hard), &ended, window(3), Timestamp::from_seconds(300));
            let sum: Quantity = grants.iter().map(|g| g.quantity).sum();
            prop_assert!(burned.granted <= sum);
            prop_assert!(burned.remaining.iter().all(|&left| left >= Quantity::ZERO));
        }
    }
}
