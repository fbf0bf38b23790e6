//! What was used: live states of limits, and totals over any window.

use std::sync::Arc;

use crate::{
    clock::Clock,
    domain::{
        feature::FeatureKey,
        ids::KeyId,
        limit::{ActiveLimit, LimitState, Scope},
        names::Slug,
        tenant::TenantRef,
        window::Window,
    },
    ledger::LedgerError,
    services::{
        catalogue::{Catalogue, Policy},
        recorder::Recorder,
    },
    store::{
        SharedStore, StoreError,
        usage::{Dimension, Totals},
    },
};

/// Why usage can't be shown.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("there is no tenant '{0}'")]
    NoTenant(TenantRef),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// A tenant's current windows.
pub struct CurrentUsage {
    pub policy: Arc<Policy>,
    pub states: Vec<LimitState>,
}

/// The current windows of some tenants, by slug.
pub struct CurrentPage {
    pub tenants: Vec<CurrentUsage>,
    /// Where the next page begins behind; `None` on the last.
    pub last: Option<Slug>,
}

/// Reads usage; changes nothing.
#[derive(Clone)]
pub struct Reports {
    pub store: SharedStore,
    pub catalogue: Arc<Catalogue>,
    pub recorder: Arc<Recorder>,
    pub clock: Clock,
}

impl Reports {
    /// The limits of a tenant, and of one key and one user of it where that is who asks.
    ///
    /// # Errors
    /// [`ReportError::Ledger`] or [`ReportError::Store`] if a counter or a limit can't be read.
    pub async fn current(
        &self,
        policy: Arc<Policy>,
        key: Option<KeyId>,
        user: Option<&str>,
    ) -> Result<CurrentUsage, ReportError> {
        let now = self.clock.now();
        let active = self.catalogue.limits(&policy, now).await?;
        let is_asked = |limit: &&ActiveLimit| match limit.scope {
            Scope::Tenant => true,
            Scope::Key => key.is_some(),
            Scope::User => user.is_some(),
        };
        let limits = active.limits.iter().filter(is_asked).cloned().collect();
        let ledger = self.recorder.ledger();
        let states = ledger
            .states(
                policy.tenant.tenant_id,
                key,
                user.unwrap_or(""),
                &limits,
                now,
            )
            .await?;
        Ok(CurrentUsage { policy, states })
    }

    /// The same of one tenant by name.
    ///
    /// # Errors
    /// [`ReportError::NoTenant`], and as [`current`](Self::current).
    pub async fn current_of(&self, tenant: &TenantRef) -> Result<CurrentUsage, ReportError> {
        let policy = self.policy(tenant).await?;
        self.current(policy, None, None).await
    }

    /// The same of at most `most` tenants behind the slug `after`.
    ///
    /// # Errors
    /// As [`current`](Self::current).
    pub async fn current_page(
        &self,
        after: Option<&Slug>,
        most: usize,
    ) -> Result<CurrentPage, ReportError> {
        let listed = self.store.list_tenants(after, most).await?;
        let last = listed.last().map(|tenant| tenant.slug.clone());
        let last = last.filter(|_| listed.len() == most);
        let mut tenants = Vec::with_capacity(listed.len());
        for tenant in listed {
            if let Some(policy) = self.catalogue.policy(tenant.tenant_id).await? {
                tenants.push(self.current(policy, None, None).await?);
            }
        }
        Ok(CurrentPage { tenants, last })
    }

    /// Settled usage of `window`, what is still in the journal included; without `features`, of all that the plan
    /// has or that was ever used.
    ///
    /// # Errors
    /// [`ReportError::Store`] if it can't be read.
    pub async fn totals(
        &self,
        policy: &Policy,
        features: &[FeatureKey],
        window: Window,
        by: Option<Dimension>,
    ) -> Result<Totals, ReportError> {
        let tenant = policy.tenant.tenant_id;
        self.recorder.flush_tenant(tenant).await?;
        let features = if features.is_empty() {
            self.features(policy).await?
        } else {
            features.to_vec()
        };
        Ok(self.store.totals(tenant, &features, window, by).await?)
    }

    /// The tenant with its plan, by name.
    ///
    /// # Errors
    /// [`ReportError::NoTenant`], or [`ReportError::Store`].
    pub async fn policy(&self, tenant: &TenantRef) -> Result<Arc<Policy>, ReportError> {
        self.catalogue
            .policy_of(tenant)
            .await?
            .ok_or_else(|| ReportError::NoTenant(tenant.clone()))
    }

    /// The same of one that was deleted too: its history is kept.
    ///
    /// # Errors
    /// As [`policy`](Self::policy).
    pub async fn policy_ever(&self, tenant: &TenantRef) -> Result<Arc<Policy>, ReportError> {
        match self.policy(tenant).await {
            Err(ReportError::NoTenant(name)) => {
                let former = self.catalogue.former_policy_of(&name).await?;
                former.ok_or(ReportError::NoTenant(name))
            }
            found => found,
        }
    }

    async fn features(&self, policy: &Policy) -> Result<Vec<FeatureKey>, ReportError> {
        let mut features = self
            .store
            .list_used_features(policy.tenant.tenant_id)
            .await?;
        let planned = policy
            .plan
            .iter()
            .flat_map(|plan| &plan.features)
            .filter(|feature| feature.is_metered);
        features.extend(planned.map(|feature| feature.key.clone()));
        features.sort();
        features.dedup();
        Ok(features)
    }
}

/// The unit of a feature: its plan's, else the usual one.
#[must_use]
pub fn unit_of(policy: &Policy, feature: &FeatureKey) -> String {
    policy
        .plan
        .as_ref()
        .and_then(|plan| plan.feature(feature))
        .map_or_else(
            || feature.default_unit().to_owned(),
            |feature| feature.unit.clone(),
        )
}
