//! Usage that is reported after the fact: taken whatever the limits say, since it happened, and counted once.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::future::join_all;

use crate::{
    clock,
    domain::{
        administrator::Actor,
        feature::FeatureKey,
        ids::{EventId, KeyId, TenantId},
        quantity::Quantity,
        time::Timestamp,
        usage::{Quantities, Source, UsageEvent, event_id_of},
    },
    services::{
        ManualRecord,
        catalogue::{Catalogue, Policy},
        error::AdminError,
        plans::check_text,
        recorder::Recorder,
    },
    store::{SharedStore, audit::NewAudit},
    telemetry::{
        events::{self, OvershootCause},
        metrics::Metrics,
    },
};

/// How far ahead of the clock a time may lie (interface.md §3).
const AHEAD: Duration = Duration::from_secs(5 * 60);
/// Reports of one tenant come one by one: those of tenants that share a place wait for each other too.
const PLACES: usize = 64;
/// Of how many callers of one report the limits are looked at, so that their overshoot can be told.
const SEEN_AT_ONCE: usize = 50;

/// Usage to be recorded once.
#[derive(Clone, Debug)]
pub struct Report {
    /// The same id again records nothing.
    pub event_id: EventId,
    pub source: Source,
    pub request_id: String,
    pub key_id: Option<KeyId>,
    /// The end user; `""` if it names none.
    pub user: String,
    pub model: Option<String>,
    pub quantities: Quantities,
    /// Decides the windows that it counts in.
    pub at: Timestamp,
    pub reason: Option<String>,
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reported {
    pub event_id: EventId,
    /// The same id was recorded before; this call added nothing.
    pub is_duplicate: bool,
}

/// A change to what was recorded: adds, or takes away.
#[derive(Clone, Debug)]
pub struct Correction {
    pub feature: FeatureKey,
    /// Not zero.
    pub quantity: Quantity,
    pub reason: String,
    /// The event that it corrects, whose window, key, user and model it counts for; `None`: now, and nobody's.
    pub of: Option<EventId>,
    /// The same key again corrects nothing.
    pub idempotency_key: Option<String>,
}

/// Records usage that is reported, each event once.
pub struct Reporting {
    store: SharedStore,
    catalogue: Arc<Catalogue>,
    recorder: Arc<Recorder>,
    metrics: Arc<Metrics>,
    retention: Duration,
    one_by_one: [tokio::sync::Mutex<()>; PLACES],
}

impl Reporting {
    #[must_use]
    pub fn new(
        store: SharedStore,
        catalogue: Arc<Catalogue>,
        recorder: Arc<Recorder>,
        metrics: Arc<Metrics>,
        retention: Duration,
    ) -> Self {
        Self {
            store,
            catalogue,
            recorder,
            metrics,
            retention,
            one_by_one: std::array::from_fn(|_| tokio::sync::Mutex::default()),
        }
    }

    /// Records usage by hand; audited.
    ///
    /// # Errors
    /// [`AdminError::Invalid`] names the field; [`AdminError::Unavailable`]: nothing was counted.
    pub async fn record(
        &self,
        policy: &Policy,
        record: &ManualRecord,
        by: &Actor,
    ) -> Result<Reported, AdminError> {
        self.check(record, by.at).await?;
        let report = Report {
            event_id: event_id_of(
                policy.tenant.tenant_id,
                Source::Manual,
                &record.idempotency_key,
            ),
            source: Source::Manual,
            request_id: String::new(),
            key_id: None,
            user: String::new(),
            model: None,
            quantities: Quantities::default().with(record.feature.clone(), record.quantity),
            at: record.at.unwrap_or(by.at),
            reason: None,
        };
        let audit = NewAudit {
            by: by.clone(),
            action: "usage.record",
            target: policy.tenant.slug.to_string(),
            before: None,
            after: Some(serde_json::json!({
                "event_id": report.event_id,
                "feature_key": record.feature,
                "quantity": record.quantity,
                "at": report.at,
                "idempotency_key": record.idempotency_key,
            })),
        };
        self.record_audited(policy, report, &audit).await
    }

    /// Adds to what was recorded, or takes away; audited.
    ///
    /// # Errors
    /// As [`record`](Self::record); [`AdminError::NotFound`] for an event that is not the tenant's.
    pub async fn correct(
        &self,
        policy: &Policy,
        correction: &Correction,
        by: &Actor,
    ) -> Result<Reported, AdminError> {
        self.check_correction(correction).await?;
        let tenant = policy.tenant.tenant_id;
        let corrected = match correction.of {
            Some(id) => Some(self.find_event(tenant, id).await?),
            None => None,
        };
        let event_id = match &correction.idempotency_key {
            Some(key) => event_id_of(tenant, Source::Correction, key),
            None => EventId::new(clock::new_id()),
        };
        let quantities =
            Quantities::default().with(correction.feature.clone(), correction.quantity);
        let report = Report {
            event_id,
            source: Source::Correction,
            request_id: corrected
                .as_ref()
                .map_or_else(String::new, |it| it.request_id.clone()),
            key_id: corrected.as_ref().and_then(|it| it.key_id),
            user: corrected
                .as_ref()
                .map_or_else(String::new, |it| it.user.clone()),
            model: corrected.as_ref().and_then(|it| it.model.clone()),
            quantities,
            at: corrected.as_ref().map_or(by.at, |it| it.admitted_at),
            reason: Some(correction.reason.clone()),
        };
        let audit = NewAudit {
            by: by.clone(),
            action: "usage.correct",
            target: policy.tenant.slug.to_string(),
            before: None,
            after: Some(serde_json::json!({
                "event_id": event_id,
                "feature_key": correction.feature,
                "quantity": correction.quantity,
                "reason": correction.reason,
                "of": correction.of,
            })),
        };
        self.record_audited(policy, report, &audit).await
    }

    /// Records what an administrator reports, unless it is recorded already.
    async fn record_audited(
        &self,
        policy: &Policy,
        report: Report,
        audit: &NewAudit,
    ) -> Result<Reported, AdminError> {
        let tenant = policy.tenant.tenant_id;
        let event_id = report.event_id;
        let _one_by_one = self.place(tenant).lock().await;
        let is_duplicate = self.is_recorded(tenant, event_id).await?;
        if !is_duplicate {
            // First the audit row: usage that nobody is known to have reported must not be.
            self.store.note(audit).await?;
            self.record_new(policy, vec![report], audit.by.at).await?;
        }
        Ok(Reported {
            event_id,
            is_duplicate,
        })
    }

    async fn find_event(&self, tenant: TenantId, id: EventId) -> Result<UsageEvent, AdminError> {
        self.recorder.flush_tenant(tenant).await?;
        let found = self.store.find_event(id).await?;
        found
            .filter(|event| event.tenant_id == tenant)
            .ok_or_else(|| AdminError::not_found("event", id))
    }

    /// Records what was not recorded before; what became of each, in the order given.
    ///
    /// To be run in a task of its own: dropped halfway, what is written down would not be counted until a restart.
    ///
    /// # Errors
    /// [`AdminError::Unavailable`]: some may be written down. Repeating the call is safe.
    pub async fn report(
        &self,
        policy: &Policy,
        reports: Vec<Report>,
        now: Timestamp,
    ) -> Result<Vec<Reported>, AdminError> {
        let tenant = policy.tenant.tenant_id;
        let _one_by_one = self.place(tenant).lock().await;
        self.recorder.flush_tenant(tenant).await?;
        let ids: Vec<EventId> = reports.iter().map(|report| report.event_id).collect();
        let mut known: HashSet<EventId> = self.store.list_known_events(&ids).await?;
        let mut reported = Vec::with_capacity(reports.len());
        let mut new = Vec::new();
        for report in reports {
            let is_new = known.insert(report.event_id);
            reported.push(Reported {
                event_id: report.event_id,
                is_duplicate: !is_new,
            });
            if is_new {
                new.push(report);
            }
        }
        self.record_new(policy, new, now).await?;
        Ok(reported)
    }

    fn place(&self, tenant: TenantId) -> &tokio::sync::Mutex<()> {
        let [.., place] = tenant.uuid().into_bytes();
        &self.one_by_one[usize::from(place) % PLACES]
    }

    async fn is_recorded(&self, tenant: TenantId, event: EventId) -> Result<bool, AdminError> {
        self.recorder.flush_tenant(tenant).await?;
        Ok(self.store.has_event(event).await?)
    }

    /// Writes events down that share their commits, and counts them.
    async fn record_new(
        &self,
        policy: &Policy,
        reports: Vec<Report>,
        now: Timestamp,
    ) -> Result<(), AdminError> {
        self.see_limits(policy, &reports, now).await;
        let tenant = policy.tenant.tenant_id;
        let recording = reports.into_iter().map(|report| {
            let event = report.into_event(tenant, now);
            self.record_event(policy, event)
        });
        let recorded = join_all(recording).await;
        recorded.into_iter().collect()
    }

    async fn record_event(&self, policy: &Policy, event: UsageEvent) -> Result<(), AdminError> {
        let quantities = event.quantities.clone();
        let admitted_at = event.admitted_at;
        let since = |feature: &FeatureKey| policy.reset_before(feature, admitted_at);
        let settled = self
            .recorder
            .record(event, &since)
            .await
            .map_err(|error| AdminError::Unavailable(error.to_string()))?;
        self.catalogue
            .note_settled(policy.tenant.tenant_id, admitted_at);
        events::Recorded {
            plan_code: policy.plan_code(),
            quantities: &quantities,
            estimated: false,
        }
        .emit(&self.metrics);
        events::Overshoot {
            overshoot: &settled.overshoot,
            cause: OvershootCause::AfterTheFact,
        }
        .emit(&self.metrics);
        Ok(())
    }

    /// Has the ledger read the counters, so that it can tell by how much this usage passes a limit.
    async fn see_limits(&self, policy: &Policy, reports: &[Report], now: Timestamp) {
        let Ok(active) = self.catalogue.limits(policy, now).await else {
            return;
        };
        let whose: HashSet<(Option<KeyId>, &str)> = reports
            .iter()
            .map(|report| (report.key_id, report.user.as_str()))
            .take(SEEN_AT_ONCE)
            .collect();
        let ledger = self.recorder.ledger();
        for (key, user) in whose {
            let seen = ledger.states(policy.tenant.tenant_id, key, user, &active.limits, now);
            if let Err(error) = seen.await {
                tracing::debug!(%error, "usage is recorded without a look at its limits");
            }
        }
    }

    /// The times that reported usage may have at `now`: from the retention back to five minutes ahead.
    #[must_use]
    pub fn times(&self, now: Timestamp) -> std::ops::RangeInclusive<Timestamp> {
        now.minus(self.retention)..=now.plus(AHEAD)
    }

    async fn check_correction(&self, correction: &Correction) -> Result<(), AdminError> {
        if correction.quantity == Quantity::ZERO {
            return Err(AdminError::invalid(
                "quantity",
                correction.quantity,
                "a whole number that is not 0; below 0 takes away",
            ));
        }
        check_text("reason", &correction.reason, 500)?;
        if let Some(key) = &correction.idempotency_key {
            check_key(key)?;
        }
        self.check_feature(&correction.feature).await
    }

    async fn check(&self, record: &ManualRecord, now: Timestamp) -> Result<(), AdminError> {
        if record.quantity < Quantity::ZERO {
            return Err(AdminError::invalid(
                "quantity",
                record.quantity,
                "a whole number from 0 to 2^53 - 1",
            ));
        }
        check_key(&record.idempotency_key)?;
        if let Some(at) = record.at.filter(|at| !self.times(now).contains(at)) {
            let accepted = format!(
                "a time from {} to five minutes ahead",
                now.minus(self.retention).to_whole_second()
            );
            return Err(AdminError::invalid("at", at, accepted));
        }
        self.check_feature(&record.feature).await
    }

    async fn check_feature(&self, feature: &FeatureKey) -> Result<(), AdminError> {
        match self.first_unknown([feature]).await? {
            Some(unknown) => Err(AdminError::invalid(
                "feature_key",
                unknown,
                "a feature that a plan defines",
            )),
            None => Ok(()),
        }
    }

    /// Whether plans define all features named.
    ///
    /// # Errors
    /// [`AdminError::Invalid`] names the first that none defines; [`AdminError::Unavailable`].
    pub async fn check_features(&self, quantities: &Quantities) -> Result<(), AdminError> {
        let features = quantities.iter().map(|(feature, _)| feature);
        match self.first_unknown(features).await? {
            Some(unknown) => Err(AdminError::invalid(
                "quantities",
                unknown,
                "features that a plan defines",
            )),
            None => Ok(()),
        }
    }

    /// Those of `features` that no plan defines; tollgate's own are always known.
    ///
    /// # Errors
    /// [`AdminError::Unavailable`].
    pub async fn unknown_of(
        &self,
        features: HashSet<FeatureKey>,
    ) -> Result<HashSet<FeatureKey>, AdminError> {
        let named: HashSet<FeatureKey> = features
            .into_iter()
            .filter(|it| !it.is_built_in())
            .collect();
        if named.is_empty() {
            return Ok(named);
        }
        let plans = self.store.list_plans().await?;
        let is_known = |feature: &FeatureKey| plans.iter().any(|it| it.feature(feature).is_some());
        Ok(named.into_iter().filter(|it| !is_known(it)).collect())
    }

    /// The first feature that no plan defines; tollgate's own are always known.
    ///
    /// # Errors
    /// [`AdminError::Unavailable`].
    pub async fn first_unknown<'a>(
        &self,
        features: impl IntoIterator<Item = &'a FeatureKey> + Send,
    ) -> Result<Option<&'a FeatureKey>, AdminError> {
        let named: Vec<&FeatureKey> = features
            .into_iter()
            .filter(|feature| !feature.is_built_in())
            .collect();
        if named.is_empty() {
            return Ok(None);
        }
        let plans = self.store.list_plans().await?;
        let is_known = |feature: &FeatureKey| plans.iter().any(|it| it.feature(feature).is_some());
        Ok(named.into_iter().find(|feature| !is_known(feature)))
    }
}

impl Report {
    fn into_event(self, tenant: TenantId, now: Timestamp) -> UsageEvent {
        UsageEvent {
            event_id: self.event_id,
            request_id: self.request_id,
            source: self.source,
            tenant_id: tenant,
            key_id: self.key_id,
            user: self.user,
            model: self.model,
            quantities: self.quantities,
            estimated: false,
            reason: self.reason,
            price_id: None,
            admitted_at: self.at,
            recorded_at: now,
        }
    }
}

fn check_key(key: &str) -> Result<(), AdminError> {
    let is_key = (1..=255).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    if is_key {
        return Ok(());
    }
    Err(AdminError::invalid(
        "idempotency_key",
        key,
        "1-255 visible ASCII characters",
    ))
}
