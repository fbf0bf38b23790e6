//! What others are to be told of recorded usage: its events, what counts on meters, that limits are to be looked at, and
//! whose grants it has burned late.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::{Arc, Weak},
};

use futures_util::future::BoxFuture;
use uuid::Uuid;

use crate::{
    analytics,
    billing::stripe::{self, Metering},
    clock::Clock,
    domain::{ids::TenantId, time::Timestamp, usage::UsageEvent},
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
    /// Other servers that decide by the same totals.
    pub replicas: Told,
}

type Policies = HashMap<TenantId, Option<Arc<Policy>>>;

impl Teller for Onward {
    fn tell<'a>(
        &'a self,
        journal: Uuid,
        events: &'a [(Seq, UsageEvent)],
    ) -> BoxFuture<'a, StoreResult<Tell>> {
        Box::pin(async move {
            let now = self.clock.now();
            let mut tell = Tell::default();
            let replicas = self.replicas == Told::Yes;
            if self.analytics == Told::Yes || self.metering.is_some() || replicas {
                let policies = self.policies(events).await?;
                if self.analytics == Told::Yes {
                    let slug_of = |tenant: TenantId| {
                        let policy = policies.get(&tenant)?.as_ref()?;
                        Some(policy.tenant.slug.as_str())
                    };
                    tell.entries = analytics::batches(journal, events, slug_of, now);
                }
                if let Some(metering) = &self.metering {
                    let policy_of =
                        |tenant: TenantId| policies.get(&tenant).and_then(Option::as_deref);
                    tell.meters = stripe::uses(events, policy_of, metering);
                }
                if replicas {
                    tell.late = self.late(events, &policies, now)?;
                }
            }
            if self.notices == Told::Yes {
                tell.entries.extend(notices::check_of(journal, events, now));
            }
            Ok(tell)
        })
    }
}

impl Onward {
    /// The tenants of usage that has burned grants by now, although it was admitted in a window that is over.
    fn late(
        &self,
        events: &[(Seq, UsageEvent)],
        policies: &Policies,
        now: Timestamp,
    ) -> StoreResult<Vec<TenantId>> {
        let catalogue = self.catalogue()?;
        let policies = policies.values().flatten();
        let burned = policies.filter_map(|policy| {
            let until = catalogue.burned_until(policy, now)?;
            Some((policy.tenant.tenant_id, until))
        });
        let burned: HashMap<TenantId, Timestamp> = burned.collect();
        if burned.is_empty() {
            return Ok(Vec::new()); // nearly always
        }
        let is_late = |event: &&UsageEvent| {
            let until = burned.get(&event.tenant_id);
            until.is_some_and(|until| event.admitted_at < *until)
        };
        let late = events.iter().map(|(_, event)| event).filter(is_late);
        let late: HashSet<TenantId> = late.map(|event| event.tenant_id).collect();
        Ok(late.into_iter().collect())
    }

    fn catalogue(&self) -> StoreResult<Arc<Catalogue>> {
        let gone = || StoreError::Unavailable("shutting down".to_owned());
        self.catalogue.upgrade().ok_or_else(gone)
    }

    async fn policies(&self, events: &[(Seq, UsageEvent)]) -> StoreResult<Policies> {
        let catalogue = self.catalogue()?;
        let mut policies = Policies::new();
        for (_, event) in events {
            if let Entry::Vacant(unknown) = policies.entry(event.tenant_id) {
                unknown.insert(catalogue.policy_ever(event.tenant_id).await?);
            }
        }
        Ok(policies)
    }
}
