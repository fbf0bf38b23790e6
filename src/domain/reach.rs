//! Limits that no request can touch, since another always comes first or nothing is ever counted there.

use super::{
    feature::FeatureKey,
    limit::{Limit, Scope, SoftLimitMode},
    quantity::Quantity,
    window::WindowKind,
};

/// A limit that can't be touched, as a line for people: which, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Untouchable {
    pub feature: FeatureKey,
    pub why: String,
}

/// Looks through the metered features of a plan, or of a tenant with its overrides in place.
pub fn untouchable<'a>(
    features: impl IntoIterator<Item = (&'a FeatureKey, &'a [Limit])>,
    soft_mode: SoftLimitMode,
) -> Vec<Untouchable> {
    let mut found = Vec::new();
    for (feature, limits) in features {
        let limited: Vec<&Limit> = limits
            .iter()
            .filter(|limit| limit.soft.is_some() || limit.hard.is_some())
            .collect();
        let mut add = |why: String| {
            found.push(Untouchable {
                feature: feature.clone(),
                why,
            });
        };
        if limited.is_empty() {
            continue;
        }
        for limit in &limited {
            if let Some(why) = within_itself(limit, soft_mode) {
                add(format!("{}: {why}", name(limit)));
            }
            if let Some((hard, first)) = comes_first(limit, &limited) {
                add(format!(
                    "{} hard limit {hard}: the {} limit of {} is always reached first",
                    name(limit),
                    name(first),
                    first.hard.unwrap_or(Quantity::ZERO),
                ));
            }
        }
    }
    found
}

/// Such as `tenant per day`.
fn name(limit: &Limit) -> String {
    match limit.window {
        WindowKind::Lifetime => format!("{} for a lifetime", limit.scope),
        window => format!("{} per {window}", limit.scope),
    }
}

fn within_itself(limit: &Limit, soft_mode: SoftLimitMode) -> Option<String> {
    let (soft, hard) = (limit.soft?, limit.hard?);
    match soft_mode {
        SoftLimitMode::Warn if soft >= hard => Some(format!(
            "soft limit {soft} never warns: at that point the hard limit {hard} refuses"
        )),
        SoftLimitMode::Block if soft < hard => Some(format!(
            "hard limit {hard} is never reached: USAGE_GUARDRAIL_SOFT_LIMIT_MODE=block refuses at the soft limit {soft}"
        )),
        SoftLimitMode::Warn | SoftLimitMode::Block => None,
    }
}

/// A limit that is used up before `limit` is, whatever the requests: it counts all that `limit` counts, for at least
/// as long, and allows no more. Where a grant may raise it, it may come second.
fn comes_first<'a>(limit: &Limit, all: &[&'a Limit]) -> Option<(Quantity, &'a Limit)> {
    let hard = limit.hard?;
    let is_first = |other: &&&Limit| {
        let counts_more = (other.scope, other.window) != (limit.scope, limit.window)
            && (other.scope == limit.scope || other.scope == Scope::Tenant)
            && holds(other.window, limit.window);
        let is_raised = other.scope == Scope::Tenant
            && matches!(
                other.window,
                WindowKind::Period | WindowKind::Month | WindowKind::Lifetime
            )
            && limit.scope != Scope::Tenant;
        counts_more && !is_raised && other.hard.is_some_and(|other| other <= hard)
    };
    all.iter().find(is_first).map(|other| (hard, *other))
}

/// Whether each window of kind `inner` lies in one of kind `outer`. A period may begin at any instant, and cut even a
/// minute.
fn holds(outer: WindowKind, inner: WindowKind) -> bool {
    use WindowKind::{Day, Hour, Lifetime, Minute, Month, Period, Week};
    match outer {
        Minute => inner == Minute,
        Hour => matches!(inner, Minute | Hour),
        Day => matches!(inner, Minute | Hour | Day),
        Week => matches!(inner, Minute | Hour | Day | Week),
        Month => matches!(inner, Minute | Hour | Day | Month),
        Period => inner == Period,
        Lifetime => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(scope: Scope, window: WindowKind, soft: i64, hard: i64) -> Limit {
        let some = |value: i64| (value >= 0).then(|| Quantity::new(value));
        Limit {
            scope,
            window,
            soft: some(soft),
            hard: some(hard),
        }
    }

    fn said(feature: &FeatureKey, limits: &[Limit], mode: SoftLimitMode) -> String {
        let found = untouchable([(feature, limits)], mode);
        let lines: Vec<_> = found.into_iter().map(|one| one.why).collect();
        lines.join("\n")
    }

    #[test]
    fn what_can_be_touched_is_not_named() {
        use Scope::{Key, Tenant, User};
        for limits in [
            &[limit(Tenant, WindowKind::Period, 150, 200)][..],
            &[limit(Tenant, WindowKind::Period, -1, -1)],
            // A burst of a minute is smaller than what a day allows.
            &[
                limit(Tenant, WindowKind::Minute, -1, 10),
                limit(Tenant, WindowKind::Day, -1, 100),
            ],
            // Two windows that cut each other.
            &[
                limit(Tenant, WindowKind::Week, -1, 100),
                limit(Tenant, WindowKind::Month, -1, 100),
            ],
            // A period that begins at noon: a day may lie in two.
            &[
                limit(Tenant, WindowKind::Day, -1, 100),
                limit(Tenant, WindowKind::Period, -1, 100),
            ],
            &[
                limit(User, WindowKind::Day, -1, 100),
                limit(Key, WindowKind::Day, -1, 100),
            ],
        ] {
            let said = said(&FeatureKey::Messages, limits, SoftLimitMode::Warn);
            assert_eq!(said, "", "{limits:?}");
        }
    }

    #[test]
    fn what_no_request_can_touch_is_named_with_the_reason() {
        use Scope::{Tenant, User};
        let warn = SoftLimitMode::Warn;
        let messages = FeatureKey::Messages;
        for (feature, limits, mode, why) in [
            (
                &messages,
                &[limit(Tenant, WindowKind::Period, 200, 200)][..],
                warn,
                "tenant per period: soft limit 200 never warns",
            ),
            (
                &messages,
                &[limit(Tenant, WindowKind::Period, 150, 200)],
                SoftLimitMode::Block,
                "hard limit 200 is never reached",
            ),
            (
                &messages,
                &[
                    limit(Tenant, WindowKind::Minute, -1, 100),
                    limit(Tenant, WindowKind::Day, -1, 100),
                ],
                warn,
                "tenant per minute hard limit 100: the tenant per day limit of 100 is always reached first",
            ),
            (
                &messages,
                &[
                    limit(User, WindowKind::Hour, -1, 50),
                    limit(Tenant, WindowKind::Hour, -1, 20),
                ],
                warn,
                "user per hour hard limit 50: the tenant per hour limit of 20 is always reached first",
            ),
        ] {
            let said = said(feature, limits, mode);
            assert!(said.contains(why), "{said:?} does not say {why:?}");
        }
    }
}
