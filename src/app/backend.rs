//! What commands run against, beside a server and without one.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
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

impl Refresh for Parts {
    fn refresh(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Err(error) = self.catalogue.poll().await {
                tracing::debug!(%error, "the catalogue's changes can't be read; the next poll makes up for it");
            }
        })
    }
}

impl UsageOperations for Parts {
    fn usage<'a>(
        &'a self,
        tenant: Option<&'a TenantRef>,
        _now: Timestamp,
    ) -> BoxFuture<'a, Result<Value, AdminError>> {
        Box::pin(async move {
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
        })
    }

    fn totals<'a>(
        &'a self,
        ask: &'a TotalsAsk,
        _now: Timestamp,
    ) -> BoxFuture<'a, Result<Value, AdminError>> {
        Box::pin(async move {
            let policy = self.reports.policy_ever(&ask.tenant).await?;
            let totals = self
                .reports
                .totals(&policy, &ask.features, ask.window, ask.by)
                .await?;
            Ok(json!(TotalsBody::of(&policy, &totals, ask.by)))
        })
    }

    fn record<'a>(
        &'a self,
        record: &'a ManualRecord,
        by: &'a Actor,
    ) -> BoxFuture<'a, Result<Value, AdminError>> {
        Box::pin(async move {
            let policy = self.reports.policy(&record.tenant).await?;
            let reported = self.reporting.record(&policy, record, by).await?;
            Ok(json!({ "event_id": reported.event_id, "duplicate": reported.is_duplicate }))
        })
    }

    fn export<'a>(
        &'a self,
        ask: &'a ReportAsk,
        files: ReportFiles,
        steps: &'a (dyn Fn(u64, u64) + Send + Sync),
    ) -> BoxFuture<'a, Result<ReportSummary, ReportFailed>> {
        Box::pin(self.reports.export(ask, files, steps))
    }

    fn correct<'a>(
        &'a self,
        tenant: &'a TenantRef,
        correction: &'a Correction,
        by: &'a Actor,
    ) -> BoxFuture<'a, Result<Value, AdminError>> {
        Box::pin(async move {
            let policy = self.reports.policy(tenant).await?;
            let reported = self.reporting.correct(&policy, correction, by).await?;
            Ok(json!({ "event_id": reported.event_id, "duplicate": reported.is_duplicate }))
        })
    }

    fn in_flight<'a>(
        &'a self,
        tenant: Option<&'a TenantRef>,
        older_than: Duration,
    ) -> BoxFuture<'a, Result<Value, AdminError>> {
        Box::pin(async move {
            let items = self.in_flight.list(tenant, older_than).await?;
            Ok(json!({ "items": items }))
        })
    }

    fn release<'a>(
        &'a self,
        id: ReservationId,
        by: &'a Actor,
    ) -> BoxFuture<'a, Result<(), AdminError>> {
        Box::pin(self.in_flight.release(id, by))
    }

    fn explain<'a>(&'a self, request_id: &'a str) -> BoxFuture<'a, Result<Value, AdminError>> {
        Box::pin(async move {
            let explained = self.explanations.of(request_id).await?;
            explained.ok_or_else(|| AdminError::not_found("request", request_id))
        })
    }

    fn statement<'a>(&'a self, ask: &'a StatementAsk) -> BoxFuture<'a, Result<Value, AdminError>> {
        Box::pin(async move { Ok(json!(self.statements.of(ask).await?)) })
    }

    fn grants_left<'a>(
        &'a self,
        tenant: &'a TenantRef,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<Vec<(GrantId, Quantity)>, AdminError>> {
        Box::pin(async move {
            let policy = self.reports.policy(tenant).await?;
            Ok(self.catalogue.grants_left(&policy, now).await?)
        })
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
