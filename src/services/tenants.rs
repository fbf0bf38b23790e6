//! Tenants, their subscriptions, overrides and grants: what may be changed, and how.

use crate::{
    clock,
    domain::{
        administrator::Actor,
        feature::FeatureKey,
        grant::Grant,
        ids::{GrantId, TenantId},
        limit::{Limit, Override, Scope},
        names::{DisplayName, PlanCode, Slug},
        quantity::Quantity,
        reset::Reset,
        subscription::{Period, Subscription, SubscriptionStatus},
        tenant::{Tenant, TenantRef},
        time::Timestamp,
        window::WindowKind,
    },
    store::{SharedStore, StoreError, StoreResult, versions},
};

use super::{
    AdminError,
    plans::{ATTEMPTS, Change, check_limits, check_text, merge_limit},
};

/// How many tenants are read from the store at once.
const PAGE: usize = 500;

/// A tenant to be made.
#[derive(Clone, Debug)]
pub struct NewTenant {
    pub slug: Slug,
    pub name: DisplayName,
    pub plan_code: Option<PlanCode>,
}

/// What a change does to a subscription's status; a new subscription is active unless it says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StatusChange {
    #[default]
    Keep,
    /// Keeps it, but one that is over for good begins again as active.
    Revive,
    Set(SubscriptionStatus),
}

impl StatusChange {
    fn apply(self, current: Option<SubscriptionStatus>) -> SubscriptionStatus {
        use SubscriptionStatus::{Active, Canceled, IncompleteExpired};
        match (self, current) {
            (Self::Set(status), _) => status,
            (Self::Revive, Some(Canceled | IncompleteExpired)) => Active,
            (Self::Keep | Self::Revive, current) => current.unwrap_or(Active),
        }
    }
}

/// A change to a tenant's subscription; fields left out stay.
#[derive(Clone, Debug, Default)]
pub struct SubscriptionChange {
    pub plan_code: Option<PlanCode>,
    pub status: StatusChange,
    pub period_start: Option<Timestamp>,
    pub period_end: Option<Timestamp>,
    pub processor_customer_id: Change<String>,
}

impl SubscriptionChange {
    /// The subscription after the change. Without dates a new one starts at `now`'s whole second and lasts a month.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn apply(
        &self,
        current: Option<&Subscription>,
        now: Timestamp,
    ) -> Result<Subscription, AdminError> {
        let plan_code = self
            .plan_code
            .clone()
            .or_else(|| current.map(|it| it.plan_code.clone()));
        let plan_code =
            plan_code.ok_or_else(|| AdminError::missing("plan_code", "the code of a plan"))?;
        let status = self.status.apply(current.map(|it| it.status));
        let unchanged = current.filter(|it| it.status == status);
        let customer = current.and_then(|it| it.processor_customer_id.clone());
        let processor_customer_id = self.processor_customer_id.apply(customer);
        if let Some(id) = &processor_customer_id {
            check_text("processor_customer_id", id, 255)?;
        }
        Ok(Subscription {
            plan_code,
            status,
            status_since: unchanged.map_or(now, |it| it.status_since),
            period: self.period(current, now)?,
            processor_customer_id,
        })
    }

    fn period(&self, current: Option<&Subscription>, now: Timestamp) -> Result<Period, AdminError> {
        let (start, end) = match (self.period_start, self.period_end, current) {
            (None, None, Some(current)) => return Ok(current.period),
            (None, None, None) => return Ok(Period::monthly_from(now)),
            (Some(start), Some(end), _) => (start, end),
            // One bound alone moves that bound of the period as it stands.
            (start, end, Some(current)) => {
                let period = current.period.window_at(now);
                (start.unwrap_or(period.start()), end.unwrap_or(period.end()))
            }
            (Some(start), None, None) => (start, start.plus_months(1)),
            (None, Some(end), None) => (end.plus_months(-1), end),
        };
        if let Some(current) = current {
            let stands = current.period.window_at(start);
            if (stands.start(), stands.end()) == (start, end) {
                return Ok(current.period); // written back as it is shown
            }
        }
        Period::with(start, end).map_err(|_| {
            AdminError::invalid(
                "current_period_end",
                end,
                format!("a time after the start, {start}"),
            )
        })
    }
}

/// A change to a tenant's own limit of one feature, scope and window.
#[derive(Clone, Debug)]
pub struct OverrideChange {
    pub feature: FeatureKey,
    pub scope: Scope,
    pub window: WindowKind,
    pub soft: Change<Quantity>,
    pub hard: Change<Quantity>,
    pub until: Change<Timestamp>,
}

impl OverrideChange {
    /// The override after the change. One that has ended is forgotten first; a value that neither it nor the
    /// change names is unlimited, since an override stands in place of the plan's limit, not on top of it.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn apply(
        &self,
        current: Option<&Override>,
        now: Timestamp,
    ) -> Result<Override, AdminError> {
        if self.soft == Change::Keep && self.hard == Change::Keep && self.until == Change::Keep {
            return Err(AdminError::invalid(
                "limits",
                "",
                "a soft or a hard limit, a number or none",
            ));
        }
        let holds = current.filter(|it| it.until.is_none_or(|until| now < until));
        let mut limits = holds.map_or_else(Vec::new, |it| it.limits.clone());
        merge_limit(
            &mut limits,
            (self.scope, self.window),
            &self.soft,
            &self.hard,
        );
        if limits.is_empty() {
            return Err(AdminError::invalid(
                "limits",
                "",
                "a soft or a hard limit, a number or none",
            ));
        }
        let until = self.until.apply(holds.and_then(|it| it.until));
        let changed = Override {
            feature: self.feature.clone(),
            limits,
            until,
        };
        check_override(&changed, now)?;
        Ok(changed)
    }
}

fn check_override(own: &Override, now: Timestamp) -> Result<(), AdminError> {
    check_limits(&own.limits)?;
    match own.until {
        Some(until) if until <= now => Err(AdminError::invalid(
            "until",
            until,
            format!("a time after now, {now}"),
        )),
        _ => Ok(()),
    }
}

/// A grant to be made.
#[derive(Clone, Debug)]
pub struct NewGrant {
    pub feature: FeatureKey,
    pub quantity: Quantity,
    pub reason: String,
    /// `None`: the end of the subscription's current period.
    pub expires_at: Option<Timestamp>,
}

impl NewGrant {
    fn check(&self, tenant: &Tenant, now: Timestamp) -> Result<Timestamp, AdminError> {
        if self.quantity < Quantity::ONE {
            let accepted = "a whole number from 1 to 2^53 - 1";
            return Err(AdminError::invalid("quantity", self.quantity, accepted));
        }
        check_text("reason", &self.reason, 500)?;
        match (self.expires_at, &tenant.subscription) {
            (Some(at), _) if at <= now => Err(AdminError::invalid(
                "expires_at",
                at,
                format!("a time after now, {now}"),
            )),
            (Some(at), _) => Ok(at),
            (None, Some(subscription)) => Ok(subscription.period.window_at(now).end()),
            (None, None) => {
                let accepted = "a time: the tenant has no subscription whose period could end it";
                Err(AdminError::missing("expires_at", accepted))
            }
        }
    }
}

/// Reading, changing and writing what somebody else may write in between: again, unless the client asked for a version.
struct Attempts {
    asked: Option<i64>,
    left: usize,
}

impl Attempts {
    fn of(asked: Option<i64>) -> Self {
        Self {
            asked,
            left: ATTEMPTS,
        }
    }

    /// The version that is to be there still when it is written: the client's, else the one that was read.
    fn expected(&self, read: i64) -> Option<i64> {
        self.asked.or(Some(read))
    }

    /// Whether it is written.
    ///
    /// # Errors
    /// Any failure but a conflict that another attempt may settle.
    fn are_over(&mut self, written: StoreResult<()>) -> Result<bool, AdminError> {
        match written {
            Err(StoreError::VersionConflict { .. }) if self.asked.is_none() && self.left > 1 => {
                self.left -= 1;
                Ok(false)
            }
            written => Ok(written.map(|()| true)?),
        }
    }
}

/// The tenants, as they are kept.
#[derive(Clone)]
pub struct Tenants {
    store: SharedStore,
    expected: Option<i64>,
}

impl Tenants {
    #[must_use]
    pub fn new(store: SharedStore) -> Self {
        Self {
            store,
            expected: None,
        }
    }

    /// Changes are made only to what still has this version ([`versions`]): the tenant, or
    /// the override where one is changed; else they are a `VersionConflict`.
    #[must_use]
    pub fn expecting(self, expected: Option<i64>) -> Self {
        Self { expected, ..self }
    }

    /// # Errors
    /// `AlreadyExists` for a slug that is, or was, taken; `NotFound` for the plan; `Invalid` for a slug that would be
    /// taken for an id.
    pub async fn create(&self, new: NewTenant, by: &Actor) -> Result<Tenant, AdminError> {
        if new.slug.as_str().parse::<TenantId>().is_ok() {
            let accepted = "a slug that does not look like a tenant's id";
            return Err(AdminError::invalid("slug", &new.slug, accepted));
        }
        let subscription = new.plan_code.map(|plan_code| SubscriptionChange {
            plan_code: Some(plan_code),
            ..SubscriptionChange::default()
        });
        let subscription = subscription
            .map(|change| change.apply(None, by.at))
            .transpose()?;
        let tenant = Tenant {
            tenant_id: TenantId::new(clock::new_id()),
            slug: new.slug,
            name: new.name,
            created_at: by.at,
            subscription,
            overrides: vec![],
        };
        self.store.create_tenant(&tenant, by).await?;
        Ok(tenant)
    }

    /// # Errors
    /// `NotFound`.
    pub async fn get(&self, tenant: &TenantRef) -> Result<Tenant, AdminError> {
        let found = self.store.find_tenant(tenant).await?;
        found.ok_or_else(|| AdminError::not_found("tenant", tenant))
    }

    /// A page of tenants by slug.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn list(
        &self,
        after: Option<&Slug>,
        limit: usize,
    ) -> Result<Vec<Tenant>, AdminError> {
        Ok(self.store.list_tenants(after, limit).await?)
    }

    /// All tenants by slug.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn list_all(&self) -> Result<Vec<Tenant>, AdminError> {
        let mut all: Vec<Tenant> = vec![];
        loop {
            let page = self
                .list(all.last().map(|tenant| &tenant.slug), PAGE)
                .await?;
            let is_last = page.len() < PAGE;
            all.extend(page);
            if is_last {
                return Ok(all);
            }
        }
    }

    /// # Errors
    /// `NotFound`.
    pub async fn rename(
        &self,
        tenant: &TenantRef,
        name: DisplayName,
        by: &Actor,
    ) -> Result<Tenant, AdminError> {
        let found = self.get(tenant).await?;
        if found.name == name && self.expected.is_none() {
            return Ok(found);
        }
        self.store
            .rename_tenant(found.tenant_id, &name, self.expected, by)
            .await?;
        Ok(Tenant { name, ..found })
    }

    /// Hides a tenant from everything but its history; its keys end at once.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete(&self, tenant: &TenantRef, by: &Actor) -> Result<(), AdminError> {
        let found = self.get(tenant).await?;
        let deleted = self.store.delete_tenant(found.tenant_id, self.expected, by);
        Ok(deleted.await?)
    }

    /// # Errors
    /// `NotFound` for the tenant or the plan; `Invalid`.
    pub async fn subscribe(
        &self,
        tenant: &TenantRef,
        change: &SubscriptionChange,
        by: &Actor,
    ) -> Result<Tenant, AdminError> {
        let mut attempts = Attempts::of(self.expected);
        loop {
            let found = self.get(tenant).await?;
            let subscription = change.apply(found.subscription.as_ref(), by.at)?;
            let seen = attempts.expected(versions::tenant(&found));
            let written = self
                .store
                .set_subscription(found.tenant_id, &subscription, seen, by)
                .await;
            if attempts.are_over(written)? {
                return Ok(Tenant {
                    subscription: Some(subscription),
                    ..found
                });
            }
        }
    }

    /// Ends the subscription at once; one that is canceled already stays as it is.
    ///
    /// # Errors
    /// `NotFound` for the tenant or a subscription.
    pub async fn cancel(&self, tenant: &TenantRef, by: &Actor) -> Result<Tenant, AdminError> {
        let found = self.get(tenant).await?;
        match &found.subscription {
            None => Err(AdminError::not_found("subscription of tenant", tenant)),
            Some(it) if it.status == SubscriptionStatus::Canceled => Ok(found),
            Some(_) => {
                let cancel = SubscriptionChange {
                    status: StatusChange::Set(SubscriptionStatus::Canceled),
                    ..SubscriptionChange::default()
                };
                self.subscribe(tenant, &cancel, by).await
            }
        }
    }

    /// # Errors
    /// `NotFound` for the tenant; `Invalid`.
    pub async fn set_limit(
        &self,
        tenant: &TenantRef,
        change: &OverrideChange,
        by: &Actor,
    ) -> Result<Tenant, AdminError> {
        let mut attempts = Attempts::of(self.expected);
        loop {
            let found = self.get(tenant).await?;
            let own = override_of(&found, &change.feature);
            let changed = change.apply(own, by.at)?;
            check_override(&changed, by.at)?;
            let seen = attempts.expected(own.map_or(versions::ABSENT, versions::override_));
            let written = self
                .store
                .set_override(found.tenant_id, &changed, seen, by)
                .await;
            if attempts.are_over(written)? {
                return self.get(tenant).await;
            }
        }
    }

    /// Replaces the override of one feature whole.
    ///
    /// # Errors
    /// `NotFound` for the tenant; `Invalid`.
    pub async fn put_override(
        &self,
        tenant: &TenantRef,
        own: &Override,
        by: &Actor,
    ) -> Result<Tenant, AdminError> {
        check_override(own, by.at)?;
        let found = self.get(tenant).await?;
        self.store
            .set_override(found.tenant_id, own, self.expected, by)
            .await?;
        self.get(tenant).await
    }

    /// Takes the override of one feature away, or only its limit of one scope and window.
    ///
    /// # Errors
    /// `NotFound` for the tenant, the override or the limit.
    pub async fn remove_limit(
        &self,
        tenant: &TenantRef,
        feature: &FeatureKey,
        limit: Option<(Scope, WindowKind)>,
        by: &Actor,
    ) -> Result<Tenant, AdminError> {
        let missing = || AdminError::not_found("limit", format!("{feature} of tenant {tenant}"));
        let mut attempts = Attempts::of(self.expected);
        loop {
            let found = self.get(tenant).await?;
            let own = override_of(&found, feature).ok_or_else(missing)?;
            let is_kept =
                |kept: &&Limit| limit.is_some_and(|gone| gone != (kept.scope, kept.window));
            let kept: Vec<Limit> = own.limits.iter().filter(is_kept).copied().collect();
            if kept.len() == own.limits.len() {
                return Err(missing());
            }
            let (id, seen) = (found.tenant_id, attempts.expected(versions::override_(own)));
            let written = if kept.is_empty() {
                let removed = self.store.remove_override(id, feature, seen, by).await;
                removed.map(|_| ())
            } else {
                let rest = Override {
                    limits: kept,
                    ..own.clone()
                };
                self.store.set_override(id, &rest, seen, by).await
            };
            if attempts.are_over(written)? {
                return self.get(tenant).await;
            }
        }
    }

    /// # Errors
    /// `NotFound` for the tenant; `Invalid`.
    pub async fn add_grant(
        &self,
        tenant: &TenantRef,
        new: NewGrant,
        by: &Actor,
    ) -> Result<(Grant, Tenant), AdminError> {
        let tenant = self.get(tenant).await?;
        let grant = Grant {
            grant_id: GrantId::new(clock::new_id()),
            tenant_id: tenant.tenant_id,
            expires_at: new.check(&tenant, by.at)?,
            feature: new.feature,
            quantity: new.quantity,
            reason: new.reason,
            created_at: by.at,
            revoked_at: None,
        };
        self.store.add_grant(&grant, by).await?;
        Ok((grant, tenant))
    }

    /// Whether the tenant's plan meters a feature: else nothing limits it, whatever grants and own limits there are.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn is_metered(
        &self,
        tenant: &Tenant,
        feature: &FeatureKey,
    ) -> Result<bool, AdminError> {
        let plan = match &tenant.subscription {
            Some(subscription) => self.store.find_plan(&subscription.plan_code).await?,
            None => None,
        };
        let planned = plan.as_ref().and_then(|plan| plan.feature(feature));
        Ok(planned.is_some_and(|planned| planned.is_metered))
    }

    /// Has the limits of a feature count anew from `by.at` until their windows end; usage stays as it is.
    ///
    /// # Errors
    /// `NotFound` for the tenant; `Invalid` for a feature that its plan does not meter, or the reason.
    pub async fn reset(
        &self,
        tenant: &TenantRef,
        feature: FeatureKey,
        reason: String,
        by: &Actor,
    ) -> Result<(Reset, Tenant), AdminError> {
        check_text("reason", &reason, 500)?;
        let tenant = self.get(tenant).await?;
        if !self.is_metered(&tenant, &feature).await? {
            let accepted = format!("a feature that the plan of tenant '{}' meters", tenant.slug);
            return Err(AdminError::invalid("feature_key", feature, accepted));
        }
        let reset = Reset {
            feature,
            at: by.at,
            reason,
        };
        self.store.add_reset(tenant.tenant_id, &reset, by).await?;
        Ok((reset, tenant))
    }

    /// All grants, ended ones included, oldest first.
    ///
    /// # Errors
    /// `NotFound` for the tenant.
    pub async fn list_grants(
        &self,
        tenant: &TenantRef,
    ) -> Result<(Vec<Grant>, Tenant), AdminError> {
        let tenant = self.get(tenant).await?;
        Ok((self.store.list_grants(tenant.tenant_id).await?, tenant))
    }

    /// As [`revoke_grant`](Self::revoke_grant), but a grant that was revoked before is not there any more.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn end_grant(&self, grant: GrantId, by: &Actor) -> Result<(), AdminError> {
        let (ended, _) = self.revoke_grant(grant, by).await?;
        match ended.revoked_at {
            Some(at) if at == by.at => Ok(()),
            _ => Err(AdminError::not_found("grant", grant)),
        }
    }

    /// # Errors
    /// `NotFound`.
    pub async fn revoke_grant(
        &self,
        grant: GrantId,
        by: &Actor,
    ) -> Result<(Grant, Tenant), AdminError> {
        let grant = self.store.revoke_grant(grant, by).await?;
        let tenant = self.get(&TenantRef::Id(grant.tenant_id)).await?;
        Ok((grant, tenant))
    }
}

fn override_of<'a>(tenant: &'a Tenant, feature: &FeatureKey) -> Option<&'a Override> {
    tenant.overrides.iter().find(|own| own.feature == *feature)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn subscribed(plan: &str) -> SubscriptionChange {
        SubscriptionChange {
            plan_code: Some(plan.parse().unwrap()),
            ..SubscriptionChange::default()
        }
    }

    #[test]
    fn a_new_subscription_starts_at_the_whole_second_and_lasts_a_month() {
        let now = at("2026-01-31T10:00:00.7Z");
        let subscription = subscribed("starter").apply(None, now).unwrap();
        let period = subscription.period.window_at(now);
        assert_eq!(
            (period.start(), period.end()),
            (at("2026-01-31T10:00:00Z"), at("2026-02-28T10:00:00Z"))
        );
        assert_eq!(subscription.status, SubscriptionStatus::Active);
    }

    #[test]
    fn another_plan_keeps_period_status_and_customer() {
        let start = at("2026-01-01T00:00:00Z");
        let first = SubscriptionChange {
            status: StatusChange::Set(SubscriptionStatus::Trialing),
            processor_customer_id: Change::Set("cus_1".to_owned()),
            ..subscribed("starter")
        };
        let first = first.apply(None, start).unwrap();
        let second = subscribed("pro")
            .apply(Some(&first), at("2026-01-20T00:00:00Z"))
            .unwrap();
        assert_eq!(
            second,
            Subscription {
                plan_code: "pro".parse().unwrap(),
                ..first
            }
        );
    }

    #[test]
    fn a_change_of_status_is_dated_and_a_repeat_is_not() {
        let (one, two) = (at("2026-01-01T00:00:00Z"), at("2026-01-02T00:00:00Z"));
        let past_due = SubscriptionChange {
            status: StatusChange::Set(SubscriptionStatus::PastDue),
            ..SubscriptionChange::default()
        };
        let active = subscribed("starter").apply(None, one).unwrap();
        let due = past_due.apply(Some(&active), two).unwrap();
        assert_eq!((active.status_since, due.status_since), (one, two));
        assert_eq!(
            past_due
                .apply(Some(&due), at("2026-01-03T00:00:00Z"))
                .unwrap()
                .status_since,
            two
        );
    }

    #[test]
    fn only_a_subscription_that_is_over_is_revived() {
        use SubscriptionStatus::{Active, Canceled, IncompleteExpired, PastDue, Paused};
        for (current, expected) in [
            (Canceled, Active),
            (IncompleteExpired, Active),
            (PastDue, PastDue),
            (Paused, Paused),
        ] {
            assert_eq!(
                StatusChange::Revive.apply(Some(current)),
                expected,
                "{current}"
            );
            assert_eq!(StatusChange::Keep.apply(Some(current)), current);
        }
        assert_eq!(StatusChange::Keep.apply(None), Active);
    }

    #[test]
    fn a_subscription_needs_a_plan_and_an_end_after_its_start() {
        let now = at("2026-01-01T00:00:00Z");
        let no_plan = SubscriptionChange::default().apply(None, now).unwrap_err();
        assert_eq!(
            no_plan.to_string(),
            "plan_code is missing; write the code of a plan"
        );
        let backwards = SubscriptionChange {
            period_start: Some(now),
            period_end: Some(now),
            ..subscribed("starter")
        };
        let error = backwards.apply(None, now).unwrap_err().to_string();
        assert!(
            error.starts_with("current_period_end is '2026-01-01T00:00:00Z'; write a time after"),
            "{error}"
        );
    }

    fn limit(hard: Change<Quantity>) -> OverrideChange {
        OverrideChange {
            feature: FeatureKey::Messages,
            scope: Scope::Tenant,
            window: WindowKind::Period,
            soft: Change::Keep,
            hard,
            until: Change::Keep,
        }
    }

    #[test]
    fn an_override_merges_into_the_one_that_holds_and_not_into_one_that_ended() {
        let now = at("2026-01-01T00:00:00Z");
        let five = Change::Set(Quantity::new(5));
        let ends = OverrideChange {
            until: Change::Set(at("2026-01-02T00:00:00Z")),
            ..limit(five)
        };
        let first = ends.apply(None, now).unwrap();
        let soft = OverrideChange {
            soft: Change::Set(Quantity::new(3)),
            ..limit(Change::Keep)
        };
        let both = soft.apply(Some(&first), now).unwrap();
        assert_eq!(
            (both.limits[0].soft, both.limits[0].hard),
            (Some(Quantity::new(3)), Some(Quantity::new(5)))
        );
        assert_eq!(both.until, first.until);
        let later = soft
            .apply(Some(&first), at("2026-01-02T00:00:00Z"))
            .unwrap();
        assert_eq!((later.limits[0].hard, later.until), (None, None));
    }

    #[test]
    fn an_override_may_lift_a_limit_and_must_say_something() {
        let now = at("2026-01-01T00:00:00Z");
        let lifted = limit(Change::Clear).apply(None, now).unwrap();
        assert_eq!((lifted.limits.len(), lifted.limits[0].hard), (1, None));
        assert!(matches!(
            limit(Change::Keep).apply(None, now),
            Err(AdminError::Invalid {
                field: "limits",
                ..
            })
        ));
        let past = OverrideChange {
            until: Change::Set(now),
            ..limit(Change::Clear)
        };
        assert!(matches!(
            past.apply(None, now),
            Err(AdminError::Invalid { field: "until", .. })
        ));
    }

    #[test]
    fn a_grant_without_expiry_lasts_to_the_end_of_the_current_period() {
        let start = at("2026-01-15T00:00:00Z");
        let tenant = |subscription| Tenant {
            tenant_id: TenantId::new(uuid::Uuid::nil()),
            slug: "acme".parse().unwrap(),
            name: "Acme".parse().unwrap(),
            created_at: start,
            subscription,
            overrides: vec![],
        };
        let grant = |quantity, reason: &str, expires_at| NewGrant {
            feature: FeatureKey::Messages,
            quantity: Quantity::new(quantity),
            reason: reason.to_owned(),
            expires_at,
        };
        let subscription = subscribed("starter").apply(None, start).unwrap();
        let (now, acme) = (at("2026-03-01T00:00:00Z"), tenant(Some(subscription)));
        assert_eq!(
            grant(1, "r", None).check(&acme, now),
            Ok(at("2026-03-15T00:00:00Z"))
        );
        for (bad, field) in [
            (grant(0, "r", None), "quantity"),
            (grant(1, "", None), "reason"),
            (grant(1, "r", Some(now)), "expires_at"),
        ] {
            let error = bad.check(&acme, now).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
        assert!(grant(1, "r", None).check(&tenant(None), now).is_err());
    }
}
