//! What others are to be told of recorded usage: its events, and that limits are to be looked at.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Weak},
};

use async_trait::async_trait;
use uuid::Uuid;

use crate::{
    analytics,
    clock::Clock,
    domain::{ids::TenantId, names::Slug, usage::UsageEvent},
    services::{catalogue::Catalogue, notices, recorder::Teller},
    store::{StoreError, StoreResult, outbox::NewEntry, usage::Seq},
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
}

#[async_trait]
impl Teller for Onward {
    async fn tell(
        &self,
        journal: Uuid,
        events: &[(Seq, UsageEvent)],
    ) -> StoreResult<Vec<NewEntry>> {
        let now = self.clock.now();
        let mut entries = Vec::new();
        if self.analytics == Told::Yes {
            let slugs = self.slugs(events).await?;
            let slug_of = |tenant: TenantId| {
                slugs
                    .get(&tenant)
                    .and_then(|it| it.as_ref())
                    .map(Slug::as_str)
            };
            entries = analytics::batches(journal, events, slug_of, now);
        }
        if self.notices == Told::Yes {
            entries.extend(notices::check_of(journal, events, now));
        }
        Ok(entries)
    }
}

impl Onward {
    async fn slugs(
        &self,
        events: &[(Seq, UsageEvent)],
    ) -> StoreResult<HashMap<TenantId, Option<Slug>>> {
        let gone = || StoreError::Unavailable("shutting down".to_owned());
        let catalogue: Arc<Catalogue> = self.catalogue.upgrade().ok_or_else(gone)?;
        let mut slugs = HashMap::new();
        for (_, event) in events {
            if let Entry::Vacant(unknown) = slugs.entry(event.tenant_id) {
                let policy = catalogue.policy(event.tenant_id).await?;
                unknown.insert(policy.map(|it| it.tenant.slug.clone()));
            }
        }
        Ok(slugs)
    }
}
