//! Subscriptions as the payment processor has them: what is true of a tenant, whatever order the news came in.
//!
//! Of each of the processor's subscriptions the newest state is kept, and apart from it the newest word on its
//! invoices. What holds for the tenant follows from these alone, so any order of arrival ends the same.

use serde::{Deserialize, Serialize};

use super::{
    ids::TenantId,
    names::PlanCode,
    subscription::{Period, SubscriptionStatus},
    time::Timestamp,
    window::Window,
};

/// A subscription, as an event or a look at it showed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessorSubscription {
    pub subscription_id: String,
    pub customer_id: String,
    pub plan_code: PlanCode,
    pub status: SubscriptionStatus,
    pub created_at: Timestamp,
    pub period_start: Timestamp,
    pub period_end: Timestamp,
    /// What its periods are counted from.
    pub anchor: Option<Timestamp>,
    /// How many months a period has; `None` if it is not made of months.
    pub months: Option<i32>,
}

impl ProcessorSubscription {
    /// The period as it rolls on: from the anchor where that gives the same one, so that one of the 31st does not drift.
    /// `None` if it has no length.
    #[must_use]
    pub fn period(&self) -> Option<Period> {
        let given = Window::new(self.period_start, self.period_end).ok()?;
        let anchored = self
            .anchor
            .zip(self.months)
            .and_then(|(anchor, months)| Period::new(anchor, anchor.plus_months(months)).ok());
        let is_same = |it: &Period| it.window_at(self.period_start) == given;
        anchored
            .filter(is_same)
            .or_else(|| Period::with(given.start(), given.end()).ok())
    }
}

/// What became of the last invoice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payment {
    Paid,
    Failed,
}

impl Payment {
    pub const ALL: [Self; 2] = [Self::Paid, Self::Failed];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Paid => "paid",
            Self::Failed => "failed",
        }
    }
}

/// Where a piece of news stands among others about the same: texts that sort by time, then by what is final, then by
/// the news' own id, so that two of the same second have an order too.
#[must_use]
pub fn order(happened_at: Timestamp, finality: u8, id: &str) -> String {
    format!("{:012}.{finality}.{id}", happened_at.seconds())
}

/// Whether two pieces of news are of the same second, so that their order is a guess.
#[must_use]
pub fn is_tie(a: &str, b: &str) -> bool {
    a != b && second_of(a) == second_of(b)
}

/// The second that an order stands for.
fn second_of(order: &str) -> &str {
    order.split('.').next().unwrap_or_default()
}

/// All that is known of one of the processor's subscriptions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub tenant: Option<TenantId>,
    /// `None`: only its payments are known.
    pub state: Option<ProcessorSubscription>,
    pub state_order: String,
    pub payment: Option<Payment>,
    pub payment_order: String,
}

impl Known {
    /// Its status; news of an invoice changes it only if they are newer than the state.
    fn status_of(&self, state: &ProcessorSubscription) -> SubscriptionStatus {
        use SubscriptionStatus::{Active, Incomplete, PastDue, Trialing, Unpaid};
        if second_of(&self.payment_order) <= second_of(&self.state_order) {
            return state.status;
        }
        match (self.payment, state.status) {
            (Some(Payment::Paid), PastDue | Unpaid | Incomplete) => Active,
            (Some(Payment::Failed), Active | Trialing) => PastDue,
            (_, status) => status,
        }
    }
}

/// The one of a tenant's subscriptions that holds: one that runs before one that is over, else the one made last.
#[must_use]
pub fn current(known: &[Known]) -> Option<ProcessorSubscription> {
    let states = known.iter().filter_map(|known| {
        let state = known.state.as_ref()?;
        Some(ProcessorSubscription {
            status: known.status_of(state),
            ..state.clone()
        })
    });
    states.max_by(|a, b| {
        let rank = |it: &ProcessorSubscription| (!is_over(it.status), it.created_at);
        (rank(a), &a.subscription_id).cmp(&(rank(b), &b.subscription_id))
    })
}

const fn is_over(status: SubscriptionStatus) -> bool {
    matches!(
        status,
        SubscriptionStatus::Canceled | SubscriptionStatus::IncompleteExpired
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn subscription(id: &str, status: SubscriptionStatus, created: i64) -> ProcessorSubscription {
        ProcessorSubscription {
            subscription_id: id.to_owned(),
            customer_id: "cus_1".to_owned(),
            plan_code: "pro".parse().unwrap(),
            status,
            created_at: Timestamp::from_seconds(created),
            period_start: at("2026-02-28T09:00:00Z"),
            period_end: at("2026-03-31T09:00:00Z"),
            anchor: Some(at("2026-01-31T09:00:00Z")),
            months: Some(1),
        }
    }

    #[test]
    fn a_period_of_the_31st_rolls_on_from_its_anchor() {
        let known = subscription("sub_1", SubscriptionStatus::Active, 1);
        let later = known
            .period()
            .unwrap()
            .window_at(at("2026-04-15T00:00:00Z"));
        assert_eq!(later.end(), at("2026-04-30T09:00:00Z"));
        let moved = ProcessorSubscription {
            anchor: Some(at("2026-01-15T09:00:00Z")),
            ..known
        };
        let window = moved.period().unwrap().window_at(moved.period_start);
        assert_eq!(
            window.end(),
            moved.period_end,
            "an anchor of before a change counts no more"
        );
    }

    #[test]
    fn a_subscription_that_is_over_does_not_end_the_one_that_runs() {
        use SubscriptionStatus::{Active, Canceled};
        let known = |state| Known {
            state: Some(state),
            ..Known::default()
        };
        let all = [
            known(subscription("sub_old", Active, 1)),
            known(subscription("sub_new", Canceled, 2)),
        ];
        assert_eq!(current(&all).unwrap().subscription_id, "sub_old");
        let all = [
            known(subscription("sub_old", Active, 1)),
            known(subscription("sub_new", Active, 2)),
        ];
        assert_eq!(current(&all).unwrap().subscription_id, "sub_new");
    }

    #[test]
    fn an_invoice_counts_if_it_is_newer_than_the_state() {
        use SubscriptionStatus::{Active, Canceled, PastDue, Paused};
        for (status, state_at, payment, payment_at, expected) in [
            (PastDue, 10, Payment::Paid, 11, Active),
            (PastDue, 10, Payment::Paid, 10, PastDue),
            (Active, 10, Payment::Failed, 11, PastDue),
            (Active, 12, Payment::Failed, 11, Active),
            (Paused, 10, Payment::Paid, 11, Paused),
            (Canceled, 10, Payment::Paid, 11, Canceled),
        ] {
            let known = Known {
                state: Some(subscription("sub_1", status, 1)),
                state_order: order(Timestamp::from_seconds(state_at), 1, "evt_1"),
                payment: Some(payment),
                payment_order: order(Timestamp::from_seconds(payment_at), 0, "evt_2"),
                tenant: None,
            };
            let found = current(&[known]).unwrap().status;
            assert_eq!(found, expected, "{status} {payment:?} at {payment_at}");
        }
    }

    proptest! {
        #[test]
        fn orders_sort_by_time_first(a in 0_i64..4_000_000_000, b in 0_i64..4_000_000_000, fa in 0_u8..10, fb in 0_u8..10) {
            let order_of = |at, finality| order(Timestamp::from_seconds(at), finality, "evt");
            prop_assert_eq!(order_of(a, fa).cmp(&order_of(b, fb)), (a, fa).cmp(&(b, fb)));
        }
    }
}
