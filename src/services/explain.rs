//! What became of a request: its limits, what was used of them before and after, and why it was warned or refused.
//!
//! Of settled requests for as long as their events are kept: balances are summed anew, in the order of admission, and
//! limits are those that hold now. Of refusals the node's last 10,000, as they were decided.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Value, json};

use crate::{
    domain::{
        feature::FeatureKey,
        limit::{ActiveLimit, Scope, Subject},
        quantity::Quantity,
        time::Timestamp,
        usage::{Source, UsageEvent},
        window::Window,
    },
    services::{
        AdminError,
        catalogue::{Catalogue, Policy},
        guard::Guard,
        objects::EventObject,
        recorder::Recorder,
        refusals::Refused,
    },
    store::{SharedStore, usage::CounterOf},
};

/// Explains requests.
pub struct Explanations {
    pub store: SharedStore,
    pub catalogue: Arc<Catalogue>,
    pub recorder: Arc<Recorder>,
    pub guard: Arc<Guard>,
}

impl Explanations {
    /// What became of a request; `None` if that is not kept.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn of(&self, request_id: &str) -> Result<Option<Value>, AdminError> {
        // Usage that no request caused, such as a manual record, has an empty id.
        if request_id.trim().is_empty() {
            return Ok(None);
        }
        if let Some(refused) = self.guard.refusals().find(request_id) {
            return self.refused(&refused).await.map(Some);
        }
        let flushed = self.recorder.flush().await;
        flushed.map_err(|error| AdminError::Unavailable(error.to_string()))?;
        let events = self.store.list_events_of_request(request_id).await?;
        let settled = events
            .iter()
            .find(|event| event.source != Source::Correction);
        match settled {
            Some(event) => self.settled(event, &events).await.map(Some),
            None => Ok(None),
        }
    }

    async fn settled(
        &self,
        event: &UsageEvent,
        events: &[UsageEvent],
    ) -> Result<Value, AdminError> {
        let policy = self.catalogue.policy_ever(event.tenant_id).await?;
        let limits = match &policy {
            Some(policy) => self.limits_of(policy, event).await?,
            None => Vec::new(),
        };
        let is_warned = limits.iter().any(|limit| limit["verdict"] == "warned");
        let hold = self.hold_of(event).await?;
        Ok(json!({
            "request_id": event.request_id,
            "outcome": "settled",
            "decision": if is_warned { "soft_limit" } else { "allow" },
            "tenant_slug": policy.as_ref().map(|it| it.tenant.slug.clone()),
            "plan_code": policy.as_ref().and_then(|it| it.subscription()).map(|it| it.plan_code.clone()),
            "key_id": event.key_id,
            "user": event.user,
            "model": event.model,
            "admitted_at": event.admitted_at,
            "recorded_at": event.recorded_at,
            "hold": hold,
            "settled": per_feature(event),
            "estimated": event.estimated,
            "price_id": event.price_id,
            "limits": limits,
            "events": events.iter().map(EventObject::of).collect::<Vec<_>>(),
        }))
    }

    /// What was held for it: known of reservations; a chat's hold is gone with its run.
    async fn hold_of(&self, event: &UsageEvent) -> Result<Option<Value>, AdminError> {
        if event.source != Source::Reservation {
            return Ok(None);
        }
        let found = self.store.find_reservation_of_event(event.event_id).await?;
        Ok(found.map(|reservation| {
            let held: BTreeMap<_, _> = reservation.quantities.iter().collect();
            json!({ "reservation_id": reservation.reservation_id, "quantities": held, "expires_at": reservation.expires_at })
        }))
    }

    async fn limits_of(
        &self,
        policy: &Policy,
        event: &UsageEvent,
    ) -> Result<Vec<Value>, AdminError> {
        let at = event.admitted_at;
        let active = self.catalogue.limits_placed_at(policy, at).await?;
        let applying: Vec<(&ActiveLimit, Subject)> = active
            .limits
            .iter()
            .filter_map(|limit| Some((limit, subject(limit.scope, event)?)))
            .collect();
        let counters: Vec<Option<CounterOf>> = applying
            .iter()
            .map(|(limit, subject)| {
                let window = Window::new(limit.window.start(), at).ok()?;
                Some(CounterOf {
                    subject: subject.clone(),
                    feature: limit.feature.clone(),
                    window,
                })
            })
            .collect();
        let asked: Vec<CounterOf> = counters.iter().flatten().cloned().collect();
        let journal = self.recorder.journal().id();
        let (sums, _) = self
            .store
            .counters(event.tenant_id, &asked, journal)
            .await?;
        let mut sums = sums.into_iter();
        let rows = applying.iter().zip(&counters).map(|((limit, _), counter)| {
            let before = counter.as_ref().and_then(|_| sums.next());
            let before = before.unwrap_or(Quantity::ZERO);
            let used = event.quantities.of(&limit.feature);
            let is_warned = limit.soft.is_some_and(|soft| before >= soft);
            let mut row = limit_row(limit);
            row["used_before"] = json!(before.at_least_zero());
            row["settled"] = json!(used);
            row["used_after"] = json!(before.plus(used).at_least_zero());
            row["verdict"] = json!(if is_warned { "warned" } else { "allowed" });
            row["message"] = if is_warned {
                json!(format!("{before} were used, which is past the soft limit"))
            } else {
                Value::Null
            };
            row
        });
        Ok(rows.collect())
    }

    async fn refused(&self, refused: &Refused) -> Result<Value, AdminError> {
        let refusal = &refused.refusal;
        let policy = self.catalogue.policy_ever(refusal.tenant_id).await?;
        let limits = refusal.states.iter().map(|state| {
            let broken = refusal
                .violations
                .iter()
                .find(|it| same_limit(&it.limit, state.limit));
            let mut row = limit_row(state.limit);
            row["used_before"] = json!(state.settled.at_least_zero());
            row["reserved_before"] = json!(state.reserved);
            row["used_after"] = json!(state.settled.at_least_zero());
            row["requested"] = json!(broken.map(|it| it.requested));
            row["verdict"] = json!(match broken {
                Some(_) => "refused",
                None if state.is_warned() => "warned",
                None => "allowed",
            });
            row["message"] = json!(broken.map(|it| it.message(&refusal.plan_code)));
            row
        });
        Ok(json!({
            "request_id": &*refused.caller.request_id,
            "outcome": "refused",
            "decision": "hard_limit",
            "tenant_slug": policy.as_ref().map(|it| it.tenant.slug.clone()),
            "plan_code": refusal.plan_code,
            "key_id": refused.caller.key_id,
            "user": &*refused.caller.user,
            "model": refused.model,
            "admitted_at": refusal.now,
            "recorded_at": null,
            "hold": null,
            "settled": {},
            "limits": limits.collect::<Vec<_>>(),
            "events": [],
        }))
    }
}

fn subject(scope: Scope, event: &UsageEvent) -> Option<Subject> {
    match scope {
        Scope::Tenant => Some(Subject::Tenant),
        Scope::Key => event.key_id.map(Subject::Key),
        Scope::User => Some(Subject::User(event.user.as_str().into())),
    }
}

fn same_limit(one: &ActiveLimit, other: &ActiveLimit) -> bool {
    (&one.feature, one.scope, one.kind) == (&other.feature, other.scope, other.kind)
}

fn limit_row(limit: &ActiveLimit) -> Value {
    let end: Option<Timestamp> = limit.window.resets_at();
    json!({
        "feature_key": limit.feature,
        "scope": limit.scope,
        "window": limit.kind,
        "unit": &*limit.unit,
        "soft_limit": limit.soft,
        "hard_limit": limit.hard,
        "window_start": limit.window.start(),
        "window_end": end,
    })
}

fn per_feature(event: &UsageEvent) -> BTreeMap<&FeatureKey, Quantity> {
    event.quantities.iter().collect()
}
