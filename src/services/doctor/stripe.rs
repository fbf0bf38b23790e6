//! Stripe: the key, the meters, and what could not be told.

use super::{Doctor, Finding};
use crate::{
    billing::stripe::Stripe,
    domain::time::Timestamp,
    store::{
        StoreResult,
        outbox::{Kind, Status},
        webhooks::WebhookStatus,
    },
};

/// Usage that waits for longer than this is held up.
const LONG: std::time::Duration = std::time::Duration::from_secs(6 * 3600);

impl Doctor<'_> {
    pub(super) async fn stripe(&self) -> Vec<Finding> {
        let check = "stripe";
        let Some(stripe) = self.stripe else {
            let off = "not in use: ENABLE_STRIPE_USAGE is false";
            return vec![Finding::skipped(check, off)];
        };
        let mut findings = vec![self.meters(stripe).await];
        if self.config.stripe_webhook_secrets.is_empty() {
            findings.push(Finding::warning(
                "stripe-webhooks",
                "not taken: STRIPE_WEBHOOK_SECRET is not set",
                "set it to the secret of Stripe's endpoint for POST /webhooks/stripe, or run `tollgate stripe sync` now and then",
            ));
        }
        match self.told().await {
            Ok(found) => findings.extend(found),
            Err(error) => findings.push(Finding::error(
                check,
                error.to_string(),
                "mend the store first",
            )),
        }
        findings
    }

    async fn meters(&self, stripe: &Stripe) -> Finding {
        let check = "stripe";
        let plans = match self.store.list_plans().await {
            Ok(plans) => plans,
            Err(error) => return Finding::error(check, error.to_string(), "mend the store first"),
        };
        let features = plans.iter().flat_map(|plan| &plan.features);
        let has_meter = features
            .filter(|it| it.is_metered)
            .any(|it| it.stripe_meter.is_some());
        if !has_meter {
            return Finding::warning(
                check,
                "on, but no plan's feature has a meter: nothing is told to Stripe",
                "set one with `tollgate plan feature set CODE KEY --stripe-meter EVENT_NAME`",
            );
        }
        match stripe.meter_faults(&plans).await {
            Ok(faults) if faults.is_empty() => Finding::ok(
                check,
                "the key is taken, and every meter can be told of usage",
            ),
            Ok(faults) => Finding::error(
                check,
                faults.join("; "),
                "mend the meter at Stripe, or name another with `tollgate plan feature set --stripe-meter`",
            ),
            Err(error) => Finding::error(
                check,
                error.to_string(),
                "check STRIPE_SECRET_KEY, STRIPE_API_BASE and the network between here and there",
            ),
        }
    }

    async fn told(&self) -> StoreResult<Vec<Finding>> {
        let check = "stripe-outbox";
        let mut findings = Vec::new();
        let count_of = |counts: &[(Kind, Status, u64)], asked: Status| {
            let found = counts
                .iter()
                .find(|(kind, status, _)| *kind == Kind::StripeMeterEvent && *status == asked);
            found.map_or(0, |(.., count)| *count)
        };
        let counts = self.store.count_outbox().await?;
        let (dead, uncertain) = (
            count_of(&counts, Status::Dead),
            count_of(&counts, Status::Uncertain),
        );
        if dead + uncertain > 0 {
            findings.push(Finding::error(
                check,
                format!("given up: {dead} entries; uncertain: {uncertain}"),
                "see `tollgate stripe outbox list --status dead`, mend what it says, then `tollgate stripe outbox replay`",
            ));
        }
        let (waiting, oldest) = self.store.count_waiting().await?;
        let now: Timestamp = self.clock.now();
        if let Some(oldest) = oldest.filter(|oldest| oldest.plus(LONG) < now) {
            findings.push(Finding::warning(
                check,
                format!("usage waits since {oldest}, {waiting} intervals in all"),
                "`tollgate stripe reconcile` says why: most often a tenant has no customer at Stripe",
            ));
        }
        let unmatched = Some(WebhookStatus::Unmatched);
        if !self
            .store
            .list_webhooks(unmatched, None, 1)
            .await?
            .is_empty()
        {
            findings.push(Finding::warning(
                "stripe-webhooks",
                "some events are about a tenant or plan that is not known",
                "see `tollgate stripe webhook list --status unmatched`, mend what it says, then `tollgate stripe webhook replay`",
            ));
        }
        if findings.is_empty() {
            findings.push(Finding::ok(check, "nothing is given up or held up"));
        }
        Ok(findings)
    }
}
