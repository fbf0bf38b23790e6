//! Keys, tenants and plans as requests see them: immutable entries read through a bounded cache.
//!
//! Requests only read. A change anywhere moves the store's version; [`Catalogue::poll`] drops what changed, so that
//! it holds within a fraction of a second. Memory is bounded by the tenants that are active, not by all.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use quick_cache::sync::Cache;
use tokio::sync::Mutex;

use crate::{
    clock::Clock,
    domain::{
        feature::FeatureKey,
        grant::Grant,
        ids::{GrantId, KeyId, TenantId},
        limit::{ActiveLimit, Limit, Override, Scope},
        names::PlanCode,
        plan::{Plan, PlanFeature},
        quantity::Quantity,
        reset::{Reset, counted_window},
        subscription::{Period, Subscription},
        tenant::{ApiKey, Tenant, TenantRef},
        time::Timestamp,
        window::{Anchors, WindowKind},
    },
    services::{
        grants::{self, Granting},
        recorder::Recorder,
    },
    store::{
        SharedStore, StoreResult,
        catalogue::{Changed, TenantPolicy},
        keys::SecretHash,
    },
    telemetry::{events, metrics::Metrics},
};

/// How many keys, and as many tenants, are held at most.
const CAPACITY: usize = 100_000;
const PLANS: usize = 10_000;
const UNKNOWN_KEYS: usize = 10_000;
/// A key that is made elsewhere serves here within a second, whatever the poll does.
const UNKNOWN_FOR: Duration = Duration::from_secs(1);

/// An entry, and when it was read.
#[derive(Clone)]
struct Cached<T> {
    value: T,
    read_at: Timestamp,
}

/// What a request finds out about its tenant.
pub struct Policy {
    pub tenant: Tenant,
    /// The plan of the current subscription; `None` without a subscription, or where its plan is not defined.
    pub plan: Option<Arc<Plan>>,
    grants: Vec<Grant>,
    resets: Vec<Reset>,
    active: ArcSwapOption<ActiveLimits>,
    burning: Burning,
}

/// What grants have burned is summed from usage before an instant: usage of before that comes later changes it.
#[derive(Default)]
struct Burning {
    /// In µs; set before anything is summed.
    until: AtomicI64,
    /// How often usage of before that came.
    late: AtomicU64,
}

/// The limits in force, for as long as no window turns and no grant or override begins or ends.
pub struct ActiveLimits {
    from: Timestamp,
    until: Timestamp,
    pub limits: Arc<[ActiveLimit]>,
}

impl Policy {
    /// Of what was read elsewhere; `grants` and `resets` are all of the tenant's.
    pub(super) fn new(
        tenant: Tenant,
        plan: Option<Arc<Plan>>,
        grants: Vec<Grant>,
        resets: Vec<Reset>,
    ) -> Self {
        Self {
            tenant,
            plan,
            grants,
            resets,
            active: ArcSwapOption::empty(),
            burning: Burning::default(),
        }
    }

    #[must_use]
    pub fn subscription(&self) -> Option<&Subscription> {
        self.tenant.subscription.as_ref()
    }

    /// The plan's code, if the tenant is subscribed to one.
    #[must_use]
    pub fn plan_code(&self) -> &str {
        self.subscription()
            .map_or("", |subscription| subscription.plan_code.as_str())
    }

    /// As [`plan_code`](Self::plan_code), to be kept.
    #[must_use]
    pub fn shared_plan_code(&self) -> Arc<str> {
        self.subscription()
            .map(|subscription| subscription.plan_code.to_shared())
            .unwrap_or_default()
    }

    /// Where the tenant's windows are anchored; without a subscription, a monthly period from its creation.
    #[must_use]
    pub fn anchors(&self) -> Anchors {
        let created_at = self.tenant.created_at;
        Anchors {
            period: self.subscription().map_or_else(
                || Period::monthly_from(created_at),
                |subscription| subscription.period,
            ),
            tenant_created_at: created_at,
        }
    }

    /// Whether the tenant's plan has limits of a feature, or it has one of its own.
    #[must_use]
    pub fn meters(&self, feature: &FeatureKey) -> bool {
        let planned = self.plan.as_ref().and_then(|plan| plan.feature(feature));
        planned.is_some_and(|feature| feature.is_metered)
    }

    #[must_use]
    pub fn grants(&self) -> &[Grant] {
        &self.grants
    }

    /// All resets, the oldest first.
    #[must_use]
    pub fn resets(&self) -> &[Reset] {
        &self.resets
    }

    fn resets_of(&self, feature: &FeatureKey) -> Vec<Timestamp> {
        let of_feature = self.resets.iter().filter(|reset| reset.feature == *feature);
        of_feature.map(|reset| reset.at).collect()
    }

    /// When limits of a feature were last reset before usage admitted at `at`.
    #[must_use]
    pub fn reset_before(&self, feature: &FeatureKey, at: Timestamp) -> Option<Timestamp> {
        let resets = self.resets_of(feature).into_iter();
        resets.filter(|reset| *reset <= at).max()
    }

    /// The limits of a feature at `now`, overrides in their place; one without any is counted per period.
    fn limits_of(&self, feature: &PlanFeature, now: Timestamp) -> Vec<Limit> {
        let mut limits = feature.limits.clone();
        for own in self.own_limits(&feature.key, now) {
            limits.retain(|plan| (plan.scope, plan.window) != (own.scope, own.window));
            limits.push(*own);
        }
        if limits.is_empty() {
            limits.push(Limit {
                scope: Scope::Tenant,
                window: WindowKind::Period,
                soft: None,
                hard: None,
            });
        }
        limits.sort_by_key(|limit| (limit.scope, std::cmp::Reverse(limit.window)));
        limits
    }

    /// The tenant's own limits of a feature that are in force.
    fn own_limits(&self, feature: &FeatureKey, now: Timestamp) -> impl Iterator<Item = &Limit> {
        let is_in_force = move |own: &&Override| {
            own.feature == *feature && own.until.is_none_or(|until| now < until)
        };
        let own = self.tenant.overrides.iter().filter(is_in_force);
        own.flat_map(|own| &own.limits)
    }
}

/// The cache in front of the store.
pub struct Catalogue {
    store: SharedStore,
    recorder: Arc<Recorder>,
    clock: Clock,
    metrics: Arc<Metrics>,
    ttl: Duration,
    keys: Cache<SecretHash, Cached<Arc<ApiKey>>>,
    /// Secrets that nobody has, and when that was found: whoever tries many, or one again and again, costs the store
    /// little. The oldest go where there are too many.
    unknown: Cache<SecretHash, Timestamp>,
    policies: Cache<TenantId, Cached<Arc<Policy>>>,
    plans: Cache<PlanCode, Arc<Plan>>,
    /// The version of the store that the caches are up to.
    version: AtomicI64,
    /// The latest instant, in µs, that usage of any tenant's grants was summed up to.
    burned_until: AtomicI64,
    /// Counts what was dropped: an entry read before a drop must not be kept after it.
    drops: AtomicU64,
    polling: Mutex<()>,
}

impl Catalogue {
    #[must_use]
    pub fn new(
        store: SharedStore,
        recorder: Arc<Recorder>,
        clock: Clock,
        metrics: Arc<Metrics>,
        ttl: Duration,
    ) -> Self {
        Self {
            store,
            recorder,
            clock,
            metrics,
            ttl,
            keys: Cache::new(CAPACITY),
            unknown: Cache::new(UNKNOWN_KEYS),
            policies: Cache::new(CAPACITY),
            plans: Cache::new(PLANS),
            version: AtomicI64::new(0),
            burned_until: AtomicI64::default(),
            drops: AtomicU64::new(0),
            polling: Mutex::new(()),
        }
    }

    /// The key with this secret; `None` if there is none. Validity in time is the caller's to check.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`](crate::store::StoreError) if it is not in the cache while the store is away.
    pub async fn key(
        &self,
        secret: SecretHash,
        now: Timestamp,
    ) -> StoreResult<Option<Arc<ApiKey>>> {
        let cached = self.keys.get(&secret);
        if let Some(key) = cached
            .as_ref()
            .filter(|cached| self.is_fresh(cached.read_at, now))
        {
            self.metrics.cache_hit();
            return Ok(Some(Arc::clone(&key.value)));
        }
        if cached.is_none() && self.is_known_unknown(secret, now) {
            self.metrics.cache_hit();
            return Ok(None);
        }
        self.metrics.cache_miss();
        let drops = self.drops.load(Ordering::SeqCst);
        match self.store.find_caller(secret, now).await {
            Ok(Some((key, policy))) => {
                let value = Arc::new(key);
                if self.drops.load(Ordering::SeqCst) == drops {
                    self.keys.insert(
                        secret,
                        Cached {
                            value: Arc::clone(&value),
                            read_at: now,
                        },
                    );
                }
                // The request that asks for the key asks for its tenant's policy next.
                if let Some(policy) = policy {
                    self.keep_policy(policy, now, drops);
                }
                Ok(Some(value))
            }
            Ok(None) => {
                self.keys.remove(&secret);
                if self.drops.load(Ordering::SeqCst) == drops {
                    self.unknown.insert(secret, now);
                }
                Ok(None)
            }
            Err(error) => self.stale(cached, error).map(Some),
        }
    }

    fn is_known_unknown(&self, secret: SecretHash, now: Timestamp) -> bool {
        let found_at = self.unknown.get(&secret);
        found_at.is_some_and(|at| now.since(at) < UNKNOWN_FOR.min(self.ttl))
    }

    /// The tenant with plan and grants; `None` if there is no such tenant.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`](crate::store::StoreError) if it is not in the cache while the store is away.
    pub async fn policy(&self, tenant: TenantId) -> StoreResult<Option<Arc<Policy>>> {
        let now = self.clock.now();
        let cached = self.policies.get(&tenant);
        if let Some(policy) = cached
            .as_ref()
            .filter(|cached| self.is_fresh(cached.read_at, now))
        {
            self.metrics.cache_hit();
            return Ok(Some(Arc::clone(&policy.value)));
        }
        self.metrics.cache_miss();
        let drops = self.drops.load(Ordering::SeqCst);
        match self.store.find_policy(tenant).await {
            Ok(Some(policy)) => Ok(Some(self.keep_policy(policy, now, drops))),
            Ok(None) => Ok(None),
            Err(error) => self.stale(cached, error).map(Some),
        }
    }

    /// The tenant that `name` means, with plan and grants.
    ///
    /// # Errors
    /// As [`policy`](Self::policy).
    pub async fn policy_of(&self, name: &TenantRef) -> StoreResult<Option<Arc<Policy>>> {
        match self.store.find_tenant(name).await? {
            Some(tenant) => self.policy(tenant.tenant_id).await,
            None => Ok(None),
        }
    }

    /// A tenant that was deleted, with what is kept of it. Never cached: nobody is decided on by it.
    ///
    /// # Errors
    /// The store may be away.
    pub async fn former_policy_of(&self, name: &TenantRef) -> StoreResult<Option<Arc<Policy>>> {
        let former = self.store.find_former(name).await?;
        let policy = |it: TenantPolicy| {
            let plan = it.plan.map(Arc::new);
            Policy::new(it.tenant, plan, it.grants, it.resets)
        };
        Ok(former.map(|it| Arc::new(policy(it))))
    }

    /// Of a tenant that may be deleted by now: its last requests may end after it.
    ///
    /// # Errors
    /// As [`policy`](Self::policy).
    pub async fn policy_ever(&self, tenant: TenantId) -> StoreResult<Option<Arc<Policy>>> {
        match self.policy(tenant).await? {
            Some(policy) => Ok(Some(policy)),
            None => self.former_policy_of(&TenantRef::Id(tenant)).await,
        }
    }

    /// The limits of `policy` in force at `now`.
    ///
    /// # Errors
    /// Where grants were burned in earlier windows, what was used then is read from the store, which may be away.
    pub async fn limits(&self, policy: &Policy, now: Timestamp) -> StoreResult<Arc<ActiveLimits>> {
        if let Some(active) = policy
            .active
            .load_full()
            .filter(|it| it.from <= now && now < it.until)
        {
            return Ok(active);
        }
        let late = policy.burning.late.load(Ordering::SeqCst);
        let active = Arc::new(Box::pin(self.place_limits(policy, now)).await?);
        policy.active.store(Some(Arc::clone(&active)));
        if policy.burning.late.load(Ordering::SeqCst) != late {
            policy.active.store(None); // it came while the sums were read, and may not be in them
        }
        Ok(active)
    }

    /// Takes note of durable usage that was admitted at `at`. If limits were placed since then that count what grants
    /// have burned by then, they are placed again.
    pub fn note_settled(&self, tenant: TenantId, at: Timestamp) {
        if at.micros() >= self.burned_until.load(Ordering::SeqCst) {
            return; // nearly always
        }
        let Some(Cached { value: policy, .. }) = self.policies.get(&tenant) else {
            return;
        };
        if at.micros() < policy.burning.until.load(Ordering::SeqCst) {
            policy.burning.late.fetch_add(1, Ordering::SeqCst);
            policy.active.store(None);
        }
    }

    /// To be called before usage up to `until` is summed: whoever settles after the sum then finds it here.
    fn note_burning(&self, policy: &Policy, until: Timestamp) {
        let micros = until.micros();
        policy.burning.until.fetch_max(micros, Ordering::SeqCst);
        self.burned_until.fetch_max(micros, Ordering::SeqCst);
    }

    /// Drops what changed in the store since the last call, and says how many entries that were.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`](crate::store::StoreError): nothing is dropped, the next call makes up for it.
    pub async fn poll(&self) -> StoreResult<usize> {
        let _one_at_a_time = self.polling.lock().await;
        let changes = self
            .store
            .changes_since(self.version.load(Ordering::SeqCst))
            .await?;
        if !changes.changed.is_empty() {
            // Counted before and after: whoever read before the first or is reading between keeps nothing.
            self.drops.fetch_add(1, Ordering::SeqCst);
            for changed in &changes.changed {
                self.drop_changed(changed);
            }
            self.drops.fetch_add(1, Ordering::SeqCst);
        }
        self.version.store(changes.version, Ordering::SeqCst);
        Ok(changes.changed.len())
    }

    fn drop_changed(&self, changed: &Changed) {
        match changed {
            Changed::Plan(code) => {
                self.policies
                    .retain(|_, cached| cached.value.plan_code() != code.as_str());
            }
            Changed::Tenant(tenant) => {
                self.policies.remove(tenant);
            }
            Changed::Key(key) => self.drop_key(*key),
            Changed::Everything => {
                self.unknown.clear();
                self.policies.clear();
                self.keys.clear();
            }
        }
    }

    fn drop_key(&self, key: KeyId) {
        self.keys.retain(|_, cached| cached.value.key_id != key);
        // It may have a secret now that was tried before.
        self.unknown.clear();
    }

    fn is_fresh(&self, read_at: Timestamp, now: Timestamp) -> bool {
        now.since(read_at) < self.ttl
    }

    /// What was read earlier, while the store is away: better a plan that may be old than none.
    fn stale<T>(
        &self,
        cached: Option<Cached<T>>,
        error: crate::store::StoreError,
    ) -> StoreResult<T> {
        let cached = cached.ok_or(error)?;
        events::StaleCatalogue.emit(&self.metrics);
        Ok(cached.value)
    }

    /// Puts what was read at `now` into the cache, unless something was dropped since `drops` was read.
    fn keep_policy(&self, read: TenantPolicy, now: Timestamp, drops: u64) -> Arc<Policy> {
        let plan = read.plan.map(|plan| self.share(plan));
        let policy = Arc::new(Policy::new(read.tenant, plan, read.grants, read.resets));
        if self.drops.load(Ordering::SeqCst) == drops {
            self.policies.insert(
                policy.tenant.tenant_id,
                Cached {
                    value: Arc::clone(&policy),
                    read_at: now,
                },
            );
        }
        policy
    }

    /// One copy of a plan for all its tenants.
    fn share(&self, plan: Plan) -> Arc<Plan> {
        match self.plans.get(&plan.code) {
            Some(known) if *known == plan => known,
            _ => {
                let features = plan.features.iter().map(|feature| &feature.key);
                self.metrics.touch_plan(plan.code.as_str(), features);
                let plan = Arc::new(plan);
                self.plans.insert(plan.code.clone(), Arc::clone(&plan));
                plan
            }
        }
    }

    /// The limits of `policy` as they would have been at `at`, by what the plan, overrides and grants are now.
    ///
    /// # Errors
    /// As [`limits`](Self::limits).
    pub async fn limits_placed_at(
        &self,
        policy: &Policy,
        at: Timestamp,
    ) -> StoreResult<ActiveLimits> {
        self.place_limits(policy, at).await
    }

    async fn place_limits(&self, policy: &Policy, now: Timestamp) -> StoreResult<ActiveLimits> {
        let anchors = policy.anchors();
        let mut until = Timestamp::NEVER;
        let mut limits = Vec::new();
        let features = policy
            .plan
            .iter()
            .flat_map(|plan| &plan.features)
            .filter(|feature| feature.is_metered);
        for feature in features {
            let resets = policy.resets_of(&feature.key);
            for limit in policy.limits_of(feature, now) {
                let window = counted_window(limit.window, now, &anchors, &resets);
                until = until.min(window.end());
                let granted = match limit.hard.filter(|_| grants::raises(&limit)) {
                    Some(hard) => {
                        let granting = self.granting(policy, &feature.key, now);
                        self.note_burning(policy, granting.burned_until(limit.window, now));
                        granting.added_to(hard, limit.window, now).await?
                    }
                    None => Quantity::ZERO,
                };
                let is_own = policy
                    .own_limits(&feature.key, now)
                    .any(|own| (own.scope, own.window) == (limit.scope, limit.window));
                limits.push(ActiveLimit {
                    feature: feature.key.clone(),
                    unit: feature.unit.as_str().into(),
                    scope: limit.scope,
                    kind: limit.window,
                    window,
                    soft: limit.soft,
                    hard: limit.hard.map(|hard| hard.plus(granted)),
                    granted,
                    is_own,
                });
            }
        }
        let own_ends = policy.tenant.overrides.iter().filter_map(|own| own.until);
        let grant_turns = policy
            .grants
            .iter()
            .flat_map(|grant| [grant.created_at, grant.ends_at()]);
        for turn in own_ends.chain(grant_turns).filter(|turn| *turn > now) {
            until = until.min(turn);
        }
        Ok(ActiveLimits {
            from: now,
            until,
            limits: limits.into(),
        })
    }

    /// The grants of a feature that have begun, against the tenant's windows.
    fn granting<'a>(
        &'a self,
        policy: &Policy,
        feature: &'a FeatureKey,
        now: Timestamp,
    ) -> Granting<'a> {
        let has_begun = |grant: &&Grant| grant.feature == *feature && grant.created_at <= now;
        Granting {
            recorder: &self.recorder,
            tenant: policy.tenant.tenant_id,
            anchors: policy.anchors(),
            feature,
            resets: policy.resets_of(feature),
            grants: policy.grants.iter().filter(has_begun).cloned().collect(),
        }
    }

    /// Usage of a tenant before this has burned grants by `now`; `None`: it has none.
    #[must_use]
    pub fn burned_until(&self, policy: &Policy, now: Timestamp) -> Option<Timestamp> {
        let planned = policy.plan.as_ref().filter(|_| !policy.grants.is_empty())?;
        let features = planned.features.iter().filter(|it| it.is_metered);
        let until = features.flat_map(|feature| {
            let granting = self.granting(policy, &feature.key, now);
            let raised = policy.limits_of(feature, now).into_iter();
            let raised = raised.filter(grants::raises);
            raised.map(move |limit| granting.burned_until(limit.window, now))
        });
        until.max()
    }

    /// What is left of each grant of a tenant that has begun, by the first of its limits that grants raise.
    ///
    /// # Errors
    /// As [`limits`](Self::limits).
    pub async fn grants_left(
        &self,
        policy: &Policy,
        now: Timestamp,
    ) -> StoreResult<Vec<(GrantId, Quantity)>> {
        let mut left = Vec::new();
        let mut features: Vec<&FeatureKey> =
            policy.grants.iter().map(|grant| &grant.feature).collect();
        features.sort();
        features.dedup();
        for key in features {
            let granting = self.granting(policy, key, now);
            let planned = policy.plan.as_ref().and_then(|plan| plan.feature(key));
            let raised = planned.and_then(|feature| {
                policy
                    .limits_of(feature, now)
                    .into_iter()
                    .find(grants::raises)
            });
            match raised.and_then(|limit| Some((limit.hard?, limit.window))) {
                Some((hard, kind)) => left.extend(granting.left(hard, kind, now).await?),
                None => left.extend(
                    granting
                        .grants
                        .iter()
                        .map(|grant| (grant.grant_id, grant.quantity)),
                ),
            }
        }
        Ok(left)
    }
}
