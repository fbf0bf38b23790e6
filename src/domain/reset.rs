//! Resets: instants from which limits of a feature count anew, while the usage stays as it is.

use super::{
    feature::FeatureKey,
    time::Timestamp,
    window::{Anchors, Window, WindowKind},
};

/// From `at` on, limits of `feature` count anew until their window ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reset {
    pub feature: FeatureKey,
    pub at: Timestamp,
    pub reason: String,
}

/// What a limit counts in at `at`: the window of its kind, cut at the resets that lie in it.
#[must_use]
pub fn counted_window(
    kind: WindowKind,
    at: Timestamp,
    anchors: &Anchors,
    resets: &[Timestamp],
) -> Window {
    let whole = kind.window_at(at, anchors);
    let within = || {
        resets
            .iter()
            .copied()
            .filter(|reset| whole.start() < *reset && *reset < whole.end())
    };
    let start = within().filter(|reset| *reset <= at).max();
    let end = within().filter(|reset| *reset > at).min();
    Window::new(start.unwrap_or(whole.start()), end.unwrap_or(whole.end())).unwrap_or(whole)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::subscription::Period;

    fn anchors() -> Anchors {
        Anchors {
            period: Period::monthly_from(Timestamp::EPOCH),
            tenant_created_at: Timestamp::EPOCH,
        }
    }

    fn hour(resets: &[i64], at: i64) -> (i64, i64) {
        let resets: Vec<_> = resets
            .iter()
            .map(|it| Timestamp::from_seconds(*it))
            .collect();
        let at = Timestamp::from_seconds(at);
        let window = counted_window(WindowKind::Hour, at, &anchors(), &resets);
        (window.start().seconds(), window.end().seconds())
    }

    #[test]
    fn a_window_is_counted_from_its_last_reset_on() {
        assert_eq!(hour(&[], 100), (0, 3600));
        assert_eq!(hour(&[50], 100), (50, 3600));
        assert_eq!(hour(&[50, 90], 100), (90, 3600));
        assert_eq!(hour(&[100], 100), (100, 3600), "from its instant on");
        assert_eq!(hour(&[101], 100), (0, 101), "before it, as before");
        assert_eq!(hour(&[50], 3700), (3600, 7200), "the next window is whole");
        assert_eq!(
            hour(&[3600], 3600),
            (3600, 7200),
            "a reset at its start cuts nothing"
        );
    }

    proptest! {
        #[test]
        fn counted_windows_tile_time(
            resets in proptest::collection::vec(0_i64..20_000, 0..6),
            at in 0_i64..20_000,
        ) {
            let (start, end) = hour(&resets, at);
            prop_assert!(start <= at && at < end);
            prop_assert_eq!(hour(&resets, end).0, end);
            prop_assert_eq!(hour(&resets, start).1, end);
        }
    }
}
