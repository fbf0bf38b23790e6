//! What is in flight: chat requests of this node, and reservations of every node.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;
use serde_json::json;

use crate::{
    app::tasks::Tasks,
    clock::Clock,
    domain::{
        administrator::Actor,
        feature::FeatureKey,
        ids::{ReservationId, TenantId},
        quantity::Quantity,
        tenant::TenantRef,
        time::Timestamp,
        usage::Quantities,
    },
    services::{
        AdminError,
        recorder::Recorder,
        reservations::{ReservationError, Reservations},
    },
    store::{SharedStore, audit::NewAudit},
};

/// One request in flight, or one reservation that is not settled yet (interface.md §4).
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct InFlightObject {
    pub reservation_id: ReservationId,
    pub tenant_slug: String,
    pub request_id: String,
    #[schema(value_type = Object)]
    pub quantities: BTreeMap<FeatureKey, Quantity>,
    pub age_seconds: u64,
    /// Null for a chat request: it ends with its run.
    pub expires_at: Option<Timestamp>,
    pub node: String,
}

/// Shows and ends what is in flight.
pub struct InFlight {
    pub store: SharedStore,
    pub recorder: Arc<Recorder>,
    pub reservations: Arc<Reservations>,
    pub tasks: Tasks,
    pub clock: Clock,
}

struct Held {
    id: ReservationId,
    tenant: TenantId,
    request_id: String,
    quantities: Quantities,
    since: Timestamp,
    expires_at: Option<Timestamp>,
    node: String,
}

impl InFlight {
    /// The oldest first; with `tenant` only its own, and only what is at least as old as `older_than`.
    ///
    /// # Errors
    /// `NotFound` for the tenant; `Unavailable`.
    pub async fn list(
        &self,
        tenant: Option<&TenantRef>,
        older_than: Duration,
    ) -> Result<Vec<InFlightObject>, AdminError> {
        let now = self.clock.now();
        let only = match tenant {
            Some(tenant) => {
                let found = self.store.find_tenant(tenant).await?;
                let found = found.ok_or_else(|| AdminError::not_found("tenant", tenant))?;
                Some(found.tenant_id)
            }
            None => None,
        };
        let mut held = self.held().await?;
        held.retain(|it| only.is_none_or(|tenant| tenant == it.tenant));
        held.retain(|it| now.since(it.since) >= older_than);
        held.sort_by_key(|it| (it.since, it.id));
        let mut slugs: HashMap<TenantId, String> = HashMap::new();
        let mut objects = Vec::with_capacity(held.len());
        for it in held {
            let tenant_slug = match slugs.get(&it.tenant) {
                Some(slug) => slug.clone(),
                None => {
                    let slug = self.slug(it.tenant).await?;
                    slugs.insert(it.tenant, slug.clone());
                    slug
                }
            };
            objects.push(InFlightObject {
                reservation_id: it.id,
                tenant_slug,
                request_id: it.request_id,
                quantities: it
                    .quantities
                    .iter()
                    .map(|(feature, quantity)| (feature.clone(), quantity))
                    .collect(),
                age_seconds: now.since(it.since).as_secs(),
                expires_at: it.expires_at,
                node: it.node,
            });
        }
        Ok(objects)
    }

    /// The slug of a tenant, which may be deleted: what it had in flight is still held.
    async fn slug(&self, tenant: TenantId) -> Result<String, AdminError> {
        let name = TenantRef::Id(tenant);
        let slug = match self.store.find_tenant(&name).await? {
            Some(found) => Some(found.slug),
            None => self
                .store
                .find_former(&name)
                .await?
                .map(|it| it.tenant.slug),
        };
        Ok(slug.map_or_else(|| tenant.to_string(), |slug| slug.to_string()))
    }

    async fn held(&self) -> Result<Vec<Held>, AdminError> {
        let open = self.reservations.list_open().await?;
        let mut held: Vec<Held> = open
            .into_iter()
            .map(|it| Held {
                id: it.reservation_id,
                tenant: it.tenant_id,
                request_id: it.request_id,
                quantities: it.quantities,
                since: it.admitted_at,
                expires_at: Some(it.expires_at),
                node: it.node,
            })
            .collect();
        let stored: std::collections::HashSet<_> = held.iter().map(|it| it.id).collect();
        let holds = self.recorder.ledger().list_holds();
        let chats = holds.into_iter().filter(|hold| !stored.contains(&hold.id));
        held.extend(chats.map(|hold| Held {
            id: hold.id,
            tenant: hold.tenant,
            request_id: hold.request_id,
            quantities: hold.quantities,
            since: hold.since,
            expires_at: None,
            node: self.reservations.node().to_owned(),
        }));
        Ok(held)
    }

    /// Gives back what is held, by hand; if it is settled later, its usage counts all the same. Audited.
    ///
    /// # Errors
    /// `NotFound` if nothing of that id is in flight; `Unavailable`.
    pub async fn release(
        self: &Arc<Self>,
        id: ReservationId,
        by: &Actor,
    ) -> Result<(), AdminError> {
        let (this, by) = (Arc::clone(self), by.clone());
        // A task of its own: what was released is in the audit log, whether its sender waits or not.
        let released = self
            .tasks
            .spawn(async move { this.release_once(id, &by).await });
        released
            .await
            .unwrap_or_else(|_| Err(AdminError::Unavailable("the server stops".to_owned())))
    }

    async fn release_once(&self, id: ReservationId, by: &Actor) -> Result<(), AdminError> {
        let not_found = || AdminError::not_found("reservation in flight", id);
        // What another replica holds of a chat is not known here.
        let held = self.list(None, Duration::ZERO).await?;
        let held = held.into_iter().find(|it| it.reservation_id == id);
        match self.reservations.release(None, id).await {
            Ok(()) => {}
            Err(ReservationError::NotFound(_)) => {
                if !self.recorder.ledger().release(None, id).await {
                    return Err(not_found());
                }
            }
            Err(ReservationError::Settled(_)) => return Err(not_found()),
            Err(error) => return Err(AdminError::Unavailable(error.to_string())),
        }
        let entry = NewAudit {
            by: by.clone(),
            action: "reservation.release",
            target: id.to_string(),
            before: held.map(|it| {
                json!({
                    "tenant_slug": it.tenant_slug,
                    "request_id": it.request_id,
                    "quantities": it.quantities,
                })
            }),
            after: None,
        };
        Ok(self.store.note(&entry).await?)
    }
}
