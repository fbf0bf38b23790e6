//! A tenant's statement: what was there, what came, what was taken away; it adds up line by line.

use std::sync::Arc;

use serde::Serialize;

use crate::{
    clock::Clock,
    domain::{
        feature::FeatureKey,
        quantity::Quantity,
        tenant::TenantRef,
        time::Timestamp,
        window::{Window, WindowKind},
    },
    services::{
        AdminError,
        catalogue::Policy,
        recorder::Recorder,
        reports::{Reports, unit_of},
    },
    store::SharedStore,
};

/// Which part of a tenant's usage is asked for.
#[derive(Clone, Debug)]
pub struct StatementAsk {
    pub tenant: TenantRef,
    /// None: every feature that the tenant's plan has or that it ever used.
    pub features: Vec<FeatureKey>,
    /// `None`: the start of the subscription's current period.
    pub start: Option<Timestamp>,
    /// `None`: its end.
    pub end: Option<Timestamp>,
}

/// Interface.md §8.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Statement {
    pub tenant_slug: String,
    pub period_start: Timestamp,
    pub period_end: Timestamp,
    pub features: Vec<StatementLine>,
}

/// `closing = opening + settled + corrected`; `granted`, `reserved` and `resets` stand beside it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct StatementLine {
    pub feature_key: FeatureKey,
    pub unit: String,
    /// Used in the subscription's period before `period_start`.
    pub opening: Quantity,
    /// Grants made in the period.
    pub granted: Quantity,
    pub settled: Quantity,
    #[schema(value_type = i64)]
    pub corrected: Quantity,
    /// Held by requests in flight, if the period is not over.
    pub reserved: Quantity,
    #[schema(value_type = i64)]
    pub closing: Quantity,
    /// What Stripe was told; exact for billing periods and whole hours. Negative where only corrections were told.
    #[schema(value_type = i64)]
    pub sent_to_stripe: Quantity,
    /// `settled + corrected − sent_to_stripe`.
    #[schema(value_type = i64)]
    pub difference: Quantity,
    pub resets: Vec<StatementReset>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct StatementReset {
    pub at: Timestamp,
    pub reason: String,
}

/// Makes statements.
pub struct Statements {
    pub store: SharedStore,
    pub reports: Reports,
    pub recorder: Arc<Recorder>,
    pub clock: Clock,
}

impl Statements {
    /// # Errors
    /// `NotFound` for the tenant; `Invalid` for an end before the start; `Unavailable`.
    pub async fn of(&self, ask: &StatementAsk) -> Result<Statement, AdminError> {
        let now = self.clock.now();
        let policy = self.reports.policy_ever(&ask.tenant).await?;
        let current = WindowKind::Period.window_at(now, &policy.anchors());
        let start = ask.start.unwrap_or(current.start());
        let end = ask.end.unwrap_or_else(|| current.end().max(start));
        let window = Window::new(start, end)
            .map_err(|_| AdminError::invalid("period_end", end, format!("a time after {start}")))?;
        let totals = self
            .reports
            .totals(&policy, &ask.features, window, None)
            .await?;
        let features: Vec<FeatureKey> = totals
            .totals
            .iter()
            .map(|total| total.feature.clone())
            .collect();
        // As far as events are kept: a bound that cuts a pruned hour is widened to it.
        let window = totals.window;
        let opening = self.opening(&policy, &features, window).await?;
        let tenant = policy.tenant.tenant_id;
        let corrected = self.store.corrections(tenant, &features, window).await?;
        let told = self.store.told(tenant, &features, window).await?;
        let holds = self.recorder.ledger().list_holds();
        let lines = totals.totals.iter().zip(opening).zip(corrected).zip(told);
        let lines = lines.map(|(((total, opening), corrected), told)| {
            let feature = &total.feature;
            let reserved = holds
                .iter()
                .filter(|hold| hold.tenant == tenant && window.contains(hold.since))
                .map(|hold| hold.quantities.of(feature))
                .sum();
            line(
                &policy,
                feature,
                window,
                Sums {
                    opening,
                    settled: total.quantity.minus(corrected),
                    corrected,
                    reserved,
                    told,
                },
            )
        });
        Ok(Statement {
            tenant_slug: policy.tenant.slug.to_string(),
            period_start: window.start(),
            period_end: window.end(),
            features: lines.collect(),
        })
    }

    async fn opening(
        &self,
        policy: &Policy,
        features: &[FeatureKey],
        window: Window,
    ) -> Result<Vec<Quantity>, AdminError> {
        let period = WindowKind::Period.window_at(window.start(), &policy.anchors());
        let Ok(before) = Window::new(period.start(), window.start()) else {
            return Ok(vec![Quantity::ZERO; features.len()]);
        };
        let totals = self.reports.totals(policy, features, before, None).await?;
        Ok(totals.totals.iter().map(|total| total.quantity).collect())
    }
}

struct Sums {
    opening: Quantity,
    settled: Quantity,
    corrected: Quantity,
    reserved: Quantity,
    told: Quantity,
}

fn line(policy: &Policy, feature: &FeatureKey, window: Window, sums: Sums) -> StatementLine {
    let granted = policy.grants().iter();
    let granted = granted.filter(|it| it.feature == *feature && window.contains(it.created_at));
    let resets = policy.resets().iter();
    let resets = resets.filter(|it| it.feature == *feature && window.contains(it.at));
    let sent_to_stripe = sums.told;
    let used = sums.settled.plus(sums.corrected);
    StatementLine {
        feature_key: feature.clone(),
        unit: unit_of(policy, feature),
        opening: sums.opening,
        granted: granted.map(|it| it.quantity).sum(),
        settled: sums.settled,
        corrected: sums.corrected,
        reserved: sums.reserved,
        closing: sums.opening.plus(used),
        sent_to_stripe,
        difference: used.minus(sent_to_stripe),
        resets: resets
            .map(|it| StatementReset {
                at: it.at,
                reason: it.reason.clone(),
            })
            .collect(),
    }
}
