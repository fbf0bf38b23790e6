//! Compares what was used with what Stripe sums up: confirms what is there, and gives each difference its reason.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use serde::Serialize;

use super::{
    CallError, Stripe, StripeError,
    meters::{Meter, minutes_around, summary},
};
use crate::{
    domain::{
        feature::FeatureKey,
        names::Slug,
        quantity::Quantity,
        tenant::{Tenant, TenantRef},
        time::Timestamp,
        window::Window,
    },
    services::AdminError,
    store::stripe::{MeterSums, Unconfirmed, lane},
};

/// Stripe sums up after a while: what was sent later than this ago is not looked for yet.
const SETTLES: Duration = Duration::from_secs(300);
/// How many lanes one step looks at, and how many calls run at once.
const LANES: usize = 100;
const AT_ONCE: usize = 4;
const LOOK_AGAIN_EVERY: Duration = Duration::from_secs(3600);
const LOOKED_AT: usize = 1_000;
/// How many tenants are read from the store at once.
const PAGE: usize = 500;

/// What is to be compared.
#[derive(Clone, Debug, Default)]
pub struct ReconcileAsk {
    /// `None`: all.
    pub tenant: Option<TenantRef>,
    /// `None`: each subscription's current period up to now.
    pub window: Option<Window>,
}

/// What a tenant used of the features of one meter, on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reconciled {
    pub tenant_slug: String,
    pub meter: String,
    pub feature_keys: Vec<FeatureKey>,
    /// Stripe's customer; null: the tenant has none.
    pub customer: Option<String>,
    pub window_start: Timestamp,
    pub window_end: Timestamp,
    /// Settled and corrected.
    pub used: Quantity,
    pub at_stripe: Quantity,
    /// `used − at_stripe`, the sum of the reasons' quantities.
    pub difference: Quantity,
    pub reasons: Vec<Difference>,
}

/// A part of a difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub reason: &'static str,
    pub quantity: Quantity,
    pub detail: &'static str,
}

/// How far confirming has come.
#[derive(Default)]
pub(super) struct Confirming {
    after: String,
    looked_again: Option<Timestamp>,
}

impl Stripe {
    /// Confirms what Stripe shows, some lanes at a time, and has another look at what is uncertain from time to time.
    /// How many entries were confirmed.
    ///
    /// # Errors
    /// [`StripeError`]: the next call goes on.
    pub async fn confirm_some(&self) -> Result<u64, StripeError> {
        let mut confirming = self.confirming.lock().await;
        let now = self.now();
        let looked = confirming.looked_again;
        if looked.is_none_or(|at| at.plus(LOOK_AGAIN_EVERY) <= now) {
            confirming.looked_again = Some(now);
            self.parts.store.look_again(now, LOOKED_AT).await?;
        }
        let lanes = self
            .parts
            .store
            .list_unconfirmed(now.minus(SETTLES), &confirming.after, LANES)
            .await?;
        confirming.after = match lanes.last() {
            Some(last) if lanes.len() >= LANES => last.lane.clone(),
            Some(_) | None => String::new(),
        };
        let mut confirmed = 0;
        for lanes in lanes.chunks(AT_ONCE) {
            let each = lanes.iter().map(|it| self.confirm_lane(it, now));
            for done in join_all(each).await {
                confirmed += done?;
            }
        }
        Ok(confirmed)
    }

    async fn confirm_lane(&self, sent: &Unconfirmed, now: Timestamp) -> Result<u64, StripeError> {
        let Some((customer, event_name)) = sent.lane.split_once('/') else {
            return Ok(0);
        };
        let Some(meter) = self.meters.find(&self.client, event_name, now).await? else {
            return Ok(0);
        };
        let window = minutes_around(sent.first, sent.last);
        let store = &self.parts.store;
        let ours = store.lane_sums(&sent.lane, window, "").await?.sent;
        let theirs = match summary(&self.client, &meter, customer, window).await {
            Ok(theirs) => theirs,
            // The customer may be deleted: that is none of the others' business.
            Err(CallError::Refused { message, .. }) => {
                tracing::debug!(lane = sent.lane, message, "Stripe shows no sums");
                return Ok(0);
            }
            Err(error) => return Err(error.into()),
        };
        if theirs != ours {
            tracing::debug!(lane = sent.lane, %ours, %theirs, "Stripe's sum is another");
            return Ok(0);
        }
        Ok(store.confirm(&sent.lane, window, now).await?)
    }

    /// Compares every meter of the tenants asked for.
    ///
    /// # Errors
    /// `NotFound` for the tenant; what Stripe or the store says.
    pub async fn reconcile(&self, ask: &ReconcileAsk) -> Result<Vec<Reconciled>, ReconcileError> {
        let flushed = self.parts.recorder.flush().await;
        flushed.map_err(|error| AdminError::Unavailable(error.to_string()))?;
        let mut all = Vec::new();
        if let Some(asked) = &ask.tenant {
            let tenant = match self.parts.store.find_tenant(asked).await? {
                Some(tenant) => Some(tenant),
                None => {
                    let former = self.parts.store.find_former(asked).await?;
                    former.map(|it| it.tenant)
                }
            };
            let tenant = tenant.ok_or_else(|| AdminError::not_found("tenant", asked))?;
            self.reconcile_tenant(&tenant, ask, &mut all).await?;
            return Ok(all);
        }
        let mut after: Option<Slug> = None;
        loop {
            let page = self.parts.store.list_tenants(after.as_ref(), PAGE).await?;
            for tenant in &page {
                self.reconcile_tenant(tenant, ask, &mut all).await?;
            }
            match page.last() {
                Some(last) if page.len() >= PAGE => after = Some(last.slug.clone()),
                Some(_) | None => break,
            }
        }
        self.reconcile_former(ask, &mut all).await?;
        Ok(all)
    }

    /// Compares tenants that were deleted, but for those that were gone before what is compared began.
    async fn reconcile_former(
        &self,
        ask: &ReconcileAsk,
        all: &mut Vec<Reconciled>,
    ) -> Result<(), ReconcileError> {
        let now = self.now();
        let mut after: Option<Slug> = None;
        loop {
            let page = self.parts.store.list_former(after.as_ref(), PAGE).await?;
            for (tenant, deleted_at) in &page {
                let period = tenant.subscription.as_ref().map(|it| it.period);
                let window = ask.window.or(period.map(|it| it.window_at(now)));
                if window.is_some_and(|window| window.start() <= *deleted_at) {
                    self.reconcile_tenant(tenant, ask, all).await?;
                }
            }
            match page.last() {
                Some((last, _)) if page.len() >= PAGE => after = Some(last.slug.clone()),
                Some(_) | None => return Ok(()),
            }
        }
    }

    async fn reconcile_tenant(
        &self,
        tenant: &Tenant,
        ask: &ReconcileAsk,
        all: &mut Vec<Reconciled>,
    ) -> Result<(), ReconcileError> {
        let Some(subscription) = &tenant.subscription else {
            return Ok(());
        };
        let plan = self.parts.store.find_plan(&subscription.plan_code).await?;
        let mut meters: BTreeMap<&str, Vec<FeatureKey>> = BTreeMap::new();
        for feature in plan.iter().flat_map(|plan| &plan.features) {
            if let Some(meter) = feature
                .stripe_meter
                .as_deref()
                .filter(|_| feature.is_metered)
            {
                meters.entry(meter).or_default().push(feature.key.clone());
            }
        }
        let now = self.now();
        let period = subscription.period.window_at(now);
        let up_to_now = Window::new(period.start(), now.max(period.start().plus(SECOND)));
        let window = ask.window.or(up_to_now.ok()).unwrap_or(period);
        for (event_name, features) in meters {
            let meter = self.meters.find(&self.client, event_name, now).await?;
            let customer = subscription.processor_customer_id.as_deref();
            let mut used = Quantity::ZERO;
            let mut ours = MeterSums::default();
            let totals = self
                .parts
                .store
                .totals(tenant.tenant_id, &features, window, None)
                .await?;
            for total in &totals.totals {
                used = used.plus(total.quantity);
            }
            for feature in &features {
                let sums = self
                    .parts
                    .store
                    .meter_sums(tenant.tenant_id, feature, window)
                    .await?;
                ours = plus(ours, sums);
            }
            let at_stripe = match (&meter, customer) {
                (Some(meter), Some(customer)) => self.at_stripe(meter, customer, window).await?,
                _ => Quantity::ZERO,
            };
            all.push(Reconciled {
                tenant_slug: tenant.slug.to_string(),
                meter: event_name.to_owned(),
                feature_keys: features,
                customer: customer.map(str::to_owned),
                window_start: window.start(),
                window_end: window.end(),
                used,
                at_stripe,
                difference: used.minus(at_stripe),
                reasons: reasons(used, at_stripe, &ours, customer.is_some(), meter.is_some()),
            });
        }
        Ok(())
    }

    /// What Stripe has of a window: of the whole minutes around it, less what we told it of the rest of these.
    async fn at_stripe(
        &self,
        meter: &Meter,
        customer: &str,
        window: Window,
    ) -> Result<Quantity, StripeError> {
        let last = window.end().minus(MICRO);
        let around = minutes_around(window.start(), last);
        let lane = lane(customer, &meter.event_name);
        let mut sum = summary(&self.client, meter, customer, around).await?;
        for (start, end) in [
            (around.start(), window.start()),
            (window.end(), around.end()),
        ] {
            if let Ok(rest) = Window::new(start, end) {
                let rest = self.parts.store.lane_sums(&lane, rest, "").await?;
                sum = sum.minus(rest.sent);
            }
        }
        Ok(sum)
    }
}

const SECOND: Duration = Duration::from_secs(1);
const MICRO: Duration = Duration::from_micros(1);

fn plus(a: MeterSums, b: MeterSums) -> MeterSums {
    MeterSums {
        waiting: a.waiting.plus(b.waiting),
        pending: a.pending.plus(b.pending),
        uncertain: a.uncertain.plus(b.uncertain),
        dead: a.dead.plus(b.dead),
        unconfirmed: a.unconfirmed.plus(b.unconfirmed),
        told: a.told.plus(b.told),
    }
}

/// Each part of `used − at_stripe`; their sum is all of it.
fn reasons(
    used: Quantity,
    at_stripe: Quantity,
    ours: &MeterSums,
    has_customer: bool,
    has_meter: bool,
) -> Vec<Difference> {
    let mut reasons = Vec::new();
    let mut add = |reason, quantity: Quantity, detail| {
        if quantity != Quantity::ZERO {
            reasons.push(Difference {
                reason,
                quantity,
                detail,
            });
        }
    };
    if has_customer {
        add(
            "waiting",
            ours.waiting,
            "comes together, and goes within minutes; `tollgate stripe push` sends it now",
        );
    } else {
        add(
            "no_customer",
            ours.waiting,
            "the tenant has no customer at Stripe; set it with `tollgate tenant subscribe --processor-customer-id`",
        );
    }
    if has_meter {
        add(
            "pending",
            ours.pending,
            "is on its way; `tollgate stripe outbox list` shows what holds it up",
        );
    } else {
        add("no_meter", ours.pending, "Stripe has no such meter");
    }
    add(
        "dead",
        ours.dead,
        "was given up; mend what `tollgate stripe outbox list --status dead` says, then replay it",
    );
    let accounted = [
        ours.waiting,
        ours.pending,
        ours.dead,
        ours.uncertain,
        ours.told,
    ];
    let accounted: Quantity = accounted.into_iter().sum();
    add(
        "not_told",
        used.minus(accounted),
        "was recorded while Stripe was off, before the feature had its meter, or came in with a restore",
    );
    // What was told and is not there, or the other way round.
    let missing = ours.told.minus(at_stripe);
    if missing >= Quantity::ZERO {
        add(
            "uncertain",
            ours.uncertain,
            "whether it arrived is not known; Stripe's sums decide",
        );
        let settling = missing.min(ours.unconfirmed.at_least_zero());
        add(
            "not_counted_yet",
            settling,
            "was sent; Stripe sums up after a while",
        );
        add(
            "missing_at_stripe",
            missing.minus(settling),
            "was sent and is not in Stripe's sums: was it canceled, or does the meter count otherwise?",
        );
    } else {
        let surplus = Quantity::ZERO.minus(missing);
        let arrived = surplus.min(ours.uncertain.at_least_zero());
        add(
            "uncertain",
            ours.uncertain.minus(arrived),
            "whether it arrived is not known; Stripe's sums decide",
        );
        add(
            "not_ours",
            arrived.minus(surplus),
            "Stripe has more than was sent from here: another program tells this meter",
        );
    }
    reasons
}

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Stripe(#[from] StripeError),
    #[error(transparent)]
    Admin(#[from] AdminError),
}

impl From<crate::store::StoreError> for ReconcileError {
    fn from(error: crate::store::StoreError) -> Self {
        Self::Admin(error.into())
    }
}

impl From<CallError> for ReconcileError {
    fn from(error: CallError) -> Self {
        Self::Stripe(error.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sums(numbers: [i64; 6]) -> MeterSums {
        let [waiting, pending, uncertain, dead, unconfirmed, told] = numbers.map(Quantity::new);
        MeterSums {
            waiting,
            pending,
            uncertain,
            dead,
            unconfirmed,
            told,
        }
    }

    fn named(used: i64, at_stripe: i64, ours: [i64; 6]) -> Vec<(&'static str, i64)> {
        let (used, at_stripe) = (Quantity::new(used), Quantity::new(at_stripe));
        let reasons = reasons(used, at_stripe, &sums(ours), true, true);
        reasons
            .iter()
            .map(|it| (it.reason, it.quantity.get()))
            .collect()
    }

    #[test]
    fn each_difference_has_its_reason() {
        for (used, at_stripe, ours, expected) in [
            (10, 10, [0, 0, 0, 0, 0, 10], vec![]),
            (10, 0, [10, 0, 0, 0, 0, 0], vec![("waiting", 10)]),
            (10, 4, [0, 6, 0, 0, 0, 4], vec![("pending", 6)]),
            (10, 4, [0, 0, 0, 6, 0, 4], vec![("dead", 6)]),
            (10, 4, [0, 0, 0, 0, 0, 4], vec![("not_told", 6)]),
            (10, 4, [0, 0, 0, 0, 6, 10], vec![("not_counted_yet", 6)]),
            (10, 4, [0, 0, 0, 0, 0, 10], vec![("missing_at_stripe", 6)]),
            (10, 4, [0, 0, 6, 0, 0, 4], vec![("uncertain", 6)]),
            (10, 10, [0, 0, 6, 0, 0, 4], vec![]),
            (10, 13, [0, 0, 0, 0, 0, 10], vec![("not_ours", -3)]),
            (
                20,
                5,
                [1, 2, 0, 3, 4, 10],
                vec![
                    ("waiting", 1),
                    ("pending", 2),
                    ("dead", 3),
                    ("not_told", 4),
                    ("not_counted_yet", 4),
                    ("missing_at_stripe", 1),
                ],
            ),
        ] {
            assert_eq!(
                named(used, at_stripe, ours),
                expected,
                "{used} {at_stripe} {ours:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn the_reasons_add_up(used in 0_i64..1000, at_stripe in 0_i64..1000, ours in proptest::array::uniform6(0_i64..300)) {
            let sum: i64 = named(used, at_stripe, ours).iter().map(|(_, quantity)| quantity).sum();
            prop_assert_eq!(sum, used - at_stripe);
        }
    }
}
