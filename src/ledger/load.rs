//! Reading missing counters from the system of record, outside of all locks.
//!
//! The counters stand in the tenant as *loading* meanwhile and collect what is settled and drained; others that need
//! them wait. If the future that reads is dropped, they are taken away again and one of those who wait reads them.

use tokio::sync::watch;

use super::{BaseTotals, LedgerError, counter::LoadEnd, sync::Arc, tenant::Tenant};
use crate::{
    domain::quantity::Quantity,
    store::usage::{CounterOf, Seq},
};

pub(super) struct Load {
    tenant: Arc<Tenant>,
    /// Empty once the load has ended.
    counters: Vec<CounterOf>,
    failure: watch::Sender<Option<LedgerError>>,
}

impl Load {
    pub(super) fn new(
        tenant: Arc<Tenant>,
        counters: Vec<CounterOf>,
        failure: watch::Sender<Option<LedgerError>>,
    ) -> Self {
        Self {
            tenant,
            counters,
            failure,
        }
    }

    /// Reads the counters and puts their sums in place.
    pub(super) async fn run(mut self, base: &dyn BaseTotals) -> Result<(), LedgerError> {
        match self.read(base).await {
            Ok((sums, covered)) => {
                let counters = std::mem::take(&mut self.counters);
                self.tenant.lock().install(counters, &sums, covered);
                Ok(())
            }
            Err(error) => {
                self.abandon();
                self.failure.send_replace(Some(error.clone()));
                Err(error)
            }
        }
    }

    async fn read(&self, base: &dyn BaseTotals) -> Result<(Vec<Quantity>, Seq), LedgerError> {
        let (sums, covered) = base.load(self.tenant.id, &self.counters).await?;
        if sums.len() != self.counters.len() {
            return Err(LedgerError::Unavailable(format!(
                "{} sums came for {} counters",
                sums.len(),
                self.counters.len()
            )));
        }
        Ok((sums, covered))
    }

    fn abandon(&mut self) {
        let counters = std::mem::take(&mut self.counters);
        if !counters.is_empty() {
            self.tenant.lock().abandon(&counters);
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.abandon(); // before the sender goes, which wakes those who wait
    }
}

/// Waits for somebody else's load. `Ok`: look again.
pub(super) async fn wait_for(mut end: LoadEnd) -> Result<(), LedgerError> {
    match end.wait_for(Option::is_some).await {
        Ok(failure) => Err(failure
            .clone()
            .unwrap_or_else(|| LedgerError::Unavailable("reading the totals failed".to_owned()))),
        Err(_sender_gone) => Ok(()),
    }
}
