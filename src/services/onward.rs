//! What others are to be told of recorded usage: its events, what counts on meters, and that limits are to be looked at.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Weak},
};

use async_trait::async_trait;
use uuid::Uuid;

use crate::{
    analytics,
    billing::stripe::{self, Metering},
    clock::Clock,
    domain::{ids::TenantId, usage::UsageEvent},
    services::{
        catalogue::{Catalogue, Policy},
        notices,
        recorder::Teller,
    },
    store::{
        StoreError, StoreResult,
        usage::{Seq, Tell},
    },
};

/// Whether somebody is there to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Yes,
    No,
}

/// See the module.
pub struct Onward {
    /// It holds the recorder, which holds this.
    pub catalogue: Weak<Catalogue>,
    pub clock: Clock,
    pub analytics: Told,
    pub notices: Told,
    /// `None` if nothing goes to Stripe.
    pub metering: Option<Metering>,
}

type Policies = HashMap<TenantId, Option<Arc<Policy>>>;

#[async_trait]
impl Teller for Onward {
    async fn tell(&self, journal: Uuid, events: &[(Seq, UsageEvent)]) -> StoreResult<Tell> {
        let now = self.clock.now();
        let mut tell = Tell::default();
        if self.analytics == Told::Yes || self.metering.is_some() {
            let policies = self.policies(events).await?;
            if self.analytics == Told::Yes {
                let slug_of = |tenant: TenantId| {
                    let policy = policies.get(&tenant)?.as_ref()?;
                    Some(policy.tenant.slug.as_str())
                };
                tell.entries = analytics::batches(journal, events, slug_of, now);
            }
            if let Some(metering) = &self.metering {
                let policy_of = |tenant: TenantId| policies.get(&tenant).and_then(Option::as_deref);
                tell.meters = stripe::uses(events, policy_of, metering);
            }
        }
        if self.notices == Told::Yes {
            tell.entries.extend(notices::check_of(journal, events, now));
        }
        Ok(tell)
    }
}

impl Onward {
    async fn policies(&self, events: &[(Seq, UsageEvent)]) -> StoreResult<Policies> {
        let gone = || StoreError::Unavailable("shutting down".to_owned());
        let catalogue: Arc<Catalogue> = self.catalogue.upgrade().ok_or_else(gone)?;
        let mut policies = Policies::new();
        for (_, event) in events {
            if let Entry::Vacant(unknown) = policies.entry(event.tenant_id) {
                unknown.insert(catalogue.policy(event.tenant_id).await?);
            }
        }
        Ok(policies)
    }
}
