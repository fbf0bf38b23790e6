//! Usage that is reported after the fact: taken whatever the limits say, since it happened, and counted once.

use std::{sync::Arc, time::Duration};

use uuid::Uuid;

use crate::{
    domain::{
        ids::{EventId, TenantId},
        quantity::Quantity,
        time::Timestamp,
        usage::{Quantities, Source, UsageEvent},
    },
    services::{
        ManualRecord,
        catalogue::{Catalogue, Policy},
        error::AdminError,
        recorder::Recorder,
    },
    store::SharedStore,
    telemetry::{
        events::{self, OvershootCause},
        metrics::Metrics,
    },
};

/// How far ahead of the clock a time may lie (interface.md §3).
const AHEAD: Duration = Duration::from_secs(5 * 60);
/// The namespace of ids made from keys (RFC 9562 §5.5): one of tollgate's own, drawn at random once.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f1c_95b2_2f0e_4d53_9a3f_0a0d_5f7c_11e4);

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reported {
    pub event_id: EventId,
    /// The same key was recorded before; this call added nothing.
    pub is_duplicate: bool,
}

/// Records one by one: a repeat that comes at the same moment must find the first.
pub struct Reporting {
    store: SharedStore,
    catalogue: Arc<Catalogue>,
    recorder: Arc<Recorder>,
    metrics: Arc<Metrics>,
    retention: Duration,
    one_at_a_time: tokio::sync::Mutex<()>,
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
            one_at_a_time: tokio::sync::Mutex::new(()),
        }
    }

    /// Records usage by hand.
    ///
    /// # Errors
    /// [`AdminError::Invalid`] names the field; [`AdminError::Unavailable`]: nothing was written.
    pub async fn record(
        &self,
        policy: &Policy,
        record: &ManualRecord,
        now: Timestamp,
    ) -> Result<Reported, AdminError> {
        self.check(record, now).await?;
        let tenant = policy.tenant.tenant_id;
        let event_id = id_of(tenant, Source::Manual, &record.idempotency_key);
        let _one_at_a_time = self.one_at_a_time.lock().await;
        self.recorder.flush_tenant(tenant).await?;
        if self.store.has_event(event_id).await? {
            return Ok(Reported {
                event_id,
                is_duplicate: true,
            });
        }
        self.see_limits(policy, now).await;
        let quantities = Quantities::default().with(record.feature.clone(), record.quantity);
        let event = UsageEvent {
            event_id,
            request_id: String::new(),
            source: Source::Manual,
            tenant_id: tenant,
            key_id: None,
            user: String::new(),
            model: None,
            quantities: quantities.clone(),
            estimated: false,
            reason: None,
            price_id: None,
            admitted_at: record.at.unwrap_or(now),
            recorded_at: now,
        };
        let settled = self
            .recorder
            .settle(None, event)
            .await
            .map_err(|error| AdminError::Unavailable(error.to_string()))?;
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
        Ok(Reported {
            event_id,
            is_duplicate: false,
        })
    }

    /// Has the ledger read the tenant's counters, so that it can tell by how much this usage passes a limit.
    async fn see_limits(&self, policy: &Policy, now: Timestamp) {
        let Ok(active) = self.catalogue.limits(policy, now).await else {
            return;
        };
        let ledger = self.recorder.ledger();
        if let Err(error) = ledger
            .states(policy.tenant.tenant_id, None, "", &active.limits, now)
            .await
        {
            tracing::debug!(%error, "usage is recorded without a look at its limits");
        }
    }

    async fn check(&self, record: &ManualRecord, now: Timestamp) -> Result<(), AdminError> {
        if record.quantity < Quantity::ZERO {
            return Err(AdminError::invalid(
                "quantity",
                record.quantity,
                "a whole number from 0 to 2^53 - 1",
            ));
        }
        let key = &record.idempotency_key;
        if key.is_empty() || key.len() > 255 || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(AdminError::invalid(
                "idempotency_key",
                key,
                "1-255 visible ASCII characters",
            ));
        }
        if let Some(at) = record
            .at
            .filter(|&at| at < now.minus(self.retention) || at > now.plus(AHEAD))
        {
            let accepted = format!(
                "a time from {} to five minutes ahead",
                now.minus(self.retention).to_whole_second()
            );
            return Err(AdminError::invalid("at", at, accepted));
        }
        let is_known = record.feature.is_built_in()
            || self
                .store
                .list_plans()
                .await?
                .iter()
                .any(|plan| plan.feature(&record.feature).is_some());
        if !is_known {
            return Err(AdminError::invalid(
                "feature_key",
                &record.feature,
                "a feature that a plan defines",
            ));
        }
        Ok(())
    }
}

/// The id of the event that a key stands for: the same key of the same tenant finds itself.
fn id_of(tenant: TenantId, source: Source, key: &str) -> EventId {
    let name = format!("{tenant}\0{source}\0{key}");
    EventId::new(Uuid::new_v5(&NAMESPACE, name.as_bytes()))
}
