//! What of recorded usage counts on Stripe's meters, and in which slot.

use std::time::Duration;

use crate::{
    domain::{ids::TenantId, time::Timestamp, usage::UsageEvent, window::Window},
    services::catalogue::Policy,
    store::{
        stripe::{MeterUse, Slot},
        usage::Seq,
    },
};

/// How usage comes together.
#[derive(Clone, Copy, Debug)]
pub struct Metering {
    /// Per tenant, feature and interval Stripe gets one event. At least a second.
    pub interval: Duration,
}

/// What counts of `events`: features with a meter in their tenant's plan.
pub fn uses<'a>(
    events: &[(Seq, UsageEvent)],
    policy_of: impl Fn(TenantId) -> Option<&'a Policy>,
    metering: &Metering,
) -> Vec<MeterUse> {
    let mut uses = Vec::new();
    for (_, event) in events {
        let Some(policy) = policy_of(event.tenant_id) else {
            continue;
        };
        let Some(plan) = &policy.plan else { continue };
        let period = policy.anchors().period.window_at(event.admitted_at);
        for (feature, quantity) in event.quantities.iter() {
            let planned = plan.feature(feature).filter(|it| it.is_metered);
            let Some(meter) = planned.and_then(|it| it.stripe_meter.as_ref()) else {
                continue;
            };
            let (start, due_at) = placed(event.admitted_at, period, metering.interval);
            uses.push(MeterUse {
                event: event.event_id,
                slot: Slot {
                    tenant: event.tenant_id,
                    feature: feature.clone(),
                    meter: meter.clone(),
                    start,
                    period_start: period.start(),
                },
                due_at,
                customer: policy
                    .subscription()
                    .and_then(|it| it.processor_customer_id.clone()),
                quantity,
            });
        }
    }
    uses
}

/// The start of the slot around `at`, and when it is due: an interval after its end, so that requests which began in it
/// and end later are in it too; but with its period, everything of which goes at once.
fn placed(at: Timestamp, period: Window, interval: Duration) -> (Timestamp, Timestamp) {
    let seconds = i64::try_from(interval.as_secs()).unwrap_or(i64::MAX).max(1);
    let floor = Timestamp::from_seconds(at.seconds().div_euclid(seconds) * seconds);
    let due_at = floor.plus(2 * interval).min(period.end());
    (floor.max(period.start()), due_at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_slot_lies_in_its_period_and_is_due_with_its_end() {
        let period = Window::new(at("2026-01-01T00:00:30Z"), at("2026-02-01T00:00:30Z")).unwrap();
        for (used, start, due) in [
            (
                "2026-01-01T00:00:45Z",
                "2026-01-01T00:00:30Z",
                "2026-01-01T00:02:00Z",
            ),
            (
                "2026-01-10T10:20:59Z",
                "2026-01-10T10:20:00Z",
                "2026-01-10T10:22:00Z",
            ),
            (
                "2026-01-31T23:59:59Z",
                "2026-01-31T23:59:00Z",
                "2026-02-01T00:00:30Z",
            ),
            (
                "2026-02-01T00:00:29Z",
                "2026-02-01T00:00:00Z",
                "2026-02-01T00:00:30Z",
            ),
        ] {
            let placed = placed(at(used), period, Duration::from_secs(60));
            assert_eq!(placed, (at(start), at(due)), "{used}");
        }
    }

    proptest! {
        #[test]
        fn every_instant_of_a_period_has_a_slot_within_it(
            start in 0_i64..2_000_000_000, length in 60_i64..100_000_000, offset in 0_i64..100_000_000, interval in 1_u64..3600,
        ) {
            let period = Window::new(Timestamp::from_seconds(start), Timestamp::from_seconds(start + length)).unwrap();
            let used = Timestamp::from_seconds(start + offset % length);
            let (slot, due_at) = placed(used, period, Duration::from_secs(interval));
            prop_assert!(period.contains(slot) && slot <= used);
            prop_assert!(used < due_at && due_at <= period.end());
            prop_assert!(used.since(slot) < Duration::from_secs(interval));
        }
    }
}
