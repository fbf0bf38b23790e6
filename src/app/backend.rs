//! What commands run against, beside a server and without one.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{App, Parts, data_dir::DataDir};
use crate::{
    clock::Clock,
    config::Loaded,
    control::{Backend, Refresh},
    domain::{
        administrator::Actor,
        ids::{GrantId, ReservationId},
        quantity::Quantity,
        tenant::TenantRef,
        time::Timestamp,
    },
    services::{
        AdminError, ManualRecord, TotalsAsk, UsageOperations,
        operation::Operation,
        report::{ReportAsk, ReportFailed, ReportFiles, ReportSummary},
        reporting::Correction,
        reports::ReportError,
        statement::StatementAsk,
        usage_view::{TotalsBody, UsageBody},
    },
};

/// How many tenants are read at a time where all are shown.
const PAGE: usize = 500;

impl App {
    /// The parts that commands need.
    #[must_use]
    pub fn backend(&self) -> Backend {
        Backend {
            data_dir: self.config.data_dir.clone(),
            store: Arc::clone(&self.store),
            clock: self.clock.clone(),
            administrators: self.administrators.clone(),
            usage: Some(Arc::clone(&self.0) as Arc<dyn UsageOperations>),
            prices: Some(Arc::clone(&self.prices)),
            notices: self.notices.clone(),
            stripe: self.stripe.clone(),
            operation: Arc::clone(&self.0) as Arc<dyn Operation>,
            directory: std::env::current_dir().unwrap_or_default(),
            refresh: Some(Arc::clone(&self.0) as Arc<dyn Refresh>),
        }
    }
}

impl App {
    /// Drops what the store has changed since; returns when that holds for the next request.
    pub async fn refresh(&self) {
        Refresh::refresh(&*self.0).await;
    }
}

#[async_trait]
impl Refresh for Parts {
    async fn refresh(&self) {
        if let Err(error) = self.catalogue.poll().await {
            tracing::debug!(%error, "the catalogue's changes can't be read; the next poll makes up for it");
        }
    }
}

#[async_trait]
impl UsageOperations for Parts {
    async fn usage(
        &self,
        tenant: Option<&TenantRef>,
        _now: Timestamp,
    ) -> Result<Value, AdminError> {
        match tenant {
            Some(tenant) => Ok(json!(UsageBody::of(
                &self.reports.current_of(tenant).await?
            ))),
            None => {
                // Of one page at a time more is in memory than what is answered.
                let (mut items, mut after) = (Vec::new(), None);
                loop {
                    let page = self.reports.current_page(after.as_ref(), PAGE).await?;
                    items.extend(page.tenants.iter().map(|it| json!(UsageBody::of(it))));
                    after = page.last;
                    if after.is_none() {
                        return Ok(json!({ "items": items }));
                    }
                }
            }
        }
    }

    async fn totals(&self, ask: &TotalsAsk, _now: Timestamp) -> Result<Value, AdminError> {
        let policy = self.reports.policy_ever(&ask.tenant).await?;
        let totals = self
            .reports
            .totals(&policy, &ask.features, ask.window, ask.by)
            .await?;
        Ok(json!(TotalsBody::of(&policy, &totals, ask.by)))
    }

    async fn record(&self, record: &ManualRecord, by: &Actor) -> Result<Value, AdminError> {
        let policy = self.reports.policy(&record.tenant).await?;
        let reported = self.reporting.record(&policy, record, by).await?;
        Ok(json!({ "event_id": reported.event_id, "duplicate": reported.is_duplicate }))
    }

    async fn export(
        &self,
        ask: &ReportAsk,
        files: ReportFiles,
        steps: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<ReportSummary, ReportFailed> {
        self.reports.export(ask, files, steps).await
    }

    async fn correct(
        &self,
        tenant: &TenantRef,
        correction: &Correction,
        by: &Actor,
    ) -> Result<Value, AdminError> {
        let policy = self.reports.policy(tenant).await?;
        let reported = self.reporting.correct(&policy, correction, by).await?;
        Ok(json!({ "event_id": reported.event_id, "duplicate": reported.is_duplicate }))
    }

    async fn in_flight(
        &self,
        tenant: Option<&TenantRef>,
        older_than: Duration,
    ) -> Result<Value, AdminError> {
        let items = self.in_flight.list(tenant, older_than).await?;
        Ok(json!({ "items": items }))
    }

    async fn release(&self, id: ReservationId, by: &Actor) -> Result<(), AdminError> {
        self.in_flight.release(id, by).await
    }

    async fn explain(&self, request_id: &str) -> Result<Value, AdminError> {
        let explained = self.explanations.of(request_id).await?;
        explained.ok_or_else(|| AdminError::not_found("request", request_id))
    }

    async fn statement(&self, ask: &StatementAsk) -> Result<Value, AdminError> {
        Ok(json!(self.statements.of(ask).await?))
    }

    async fn grants_left(
        &self,
        tenant: &TenantRef,
        now: Timestamp,
    ) -> Result<Vec<(GrantId, Quantity)>, AdminError> {
        let policy = self.reports.policy(tenant).await?;
        Ok(self.catalogue.grants_left(&policy, now).await?)
    }
}

impl From<ReportError> for AdminError {
    fn from(error: ReportError) -> Self {
        match error {
            ReportError::NoTenant(tenant) => Self::not_found("tenant", tenant),
            ReportError::Store(error) => error.into(),
            ReportError::Ledger(error) => Self::Unavailable(error.to_string()),
        }
    }
}

/// The stores, opened for one command that runs beside no server.
pub struct Local {
    pub backend: Backend,
    app: App,
    data_dir: DataDir,
}

impl Local {
    /// Writes down what is still in memory, and lets go of the data dir.
    pub async fn close(self) {
        self.app.close().await;
        drop(self.backend);
        drop(self.data_dir);
    }
}

/// Opens the stores of `data_dir` for one command.
///
/// # Errors
/// One line for people.
pub async fn open_local(loaded: &Loaded, data_dir: DataDir) -> anyhow::Result<Local> {
    let app = App::open(loaded.config.clone(), Clock::System).await?;
    app.catalogue.poll().await?;
    Ok(Local {
        backend: app.backend(),
        app,
        data_dir,
    })
}
