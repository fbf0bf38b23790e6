//! Where many tenants stand against their limits, by what the store has: for lists and for what a change would do.
//!
//! The ledger knows it to the request, but only of who is active; asking it for all tenants would have it load them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    AdminError,
    catalogue::Policy,
    reports::Reports,
    usage_view::{DEFAULT_WARN_PERCENT, Percent, UsageStatus},
};
use crate::{
    domain::{
        feature::FeatureKey,
        ids::{KeyId, TenantId},
        limit::{ActiveLimit, Scope, Subject},
        names::{PlanCode, Slug},
        plan::Plan,
        quantity::Quantity,
        tenant::Tenant,
        time::Timestamp,
        window::WindowKind,
    },
    store::{
        StoreResult,
        catalogue::TenantSearch,
        usage::{Dimension, HeaviestAsk, TenantAsk, UsedBy},
    },
};

/// How many tenants are read at a time.
const PAGE: usize = 500;
/// Of how many tenants it is worked out what a change of their plan would do.
const MOST_PREVIEWED: u64 = 20_000;
/// How many of those that it would refuse are named.
const NAMED: usize = 5;

/// How many keys or end users near one limit are known of.
pub const MOST_PARTS_NEAR: usize = 50;

/// All plans by their code.
pub type Plans = HashMap<PlanCode, Arc<Plan>>;

/// Where a tenant stands against one limit of scope tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub limit: ActiveLimit,
    /// Settled, and in the store.
    pub used: Quantity,
    pub status: UsageStatus,
    /// Of the hard limit, else of the soft one.
    pub percent: Option<Percent>,
}

/// A tenant, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantStandings {
    pub tenant: Tenant,
    pub standings: Vec<Standing>,
    /// Limits that count each key or each end user by itself.
    pub of_each: Vec<ActiveLimit>,
}

/// Those of a tenant's keys, or of its end users, who are near a limit that counts each of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartsNear {
    pub tenant: Slug,
    /// The nearest, by what the store has.
    pub standing: Standing,
    /// Who is near it, the nearest first; at most [`MOST_PARTS_NEAR`].
    pub parts: Vec<Subject>,
}

impl TenantStandings {
    /// The limit that it is nearest to, or farthest over.
    #[must_use]
    pub fn nearest(&self) -> Option<&Standing> {
        let percent = |standing: &&Standing| standing.percent.map(|percent| percent.0);
        self.standings.iter().max_by_key(percent)
    }
}

/// What a change to a plan would do to one of its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitPreview {
    pub scope: Scope,
    pub feature: FeatureKey,
    pub window: WindowKind,
    /// Of how many tenants the next request would be refused; those of one of their keys or users, if it counts each.
    pub over: usize,
    /// Of whom it is refused already.
    pub over_now: usize,
    /// The first of those whom only the change would refuse.
    pub named: Vec<Slug>,
}

/// What a change to a plan would do at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanPreview {
    /// Tenants on the plan, as far as they were looked at.
    pub tenants: u64,
    pub is_complete: bool,
    /// Limits that would refuse somebody, or refuse somebody now.
    pub limits: Vec<LimitPreview>,
}

impl Reports {
    /// All plans, as [`standings`](Self::standings) wants them.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn plans(&self) -> StoreResult<Plans> {
        let plans = self.store.list_plans().await?.into_iter();
        Ok(plans
            .map(|plan| (plan.code.clone(), Arc::new(plan)))
            .collect())
    }

    /// Where each of `tenants` stands now against its limits of scope tenant, were `plans` the plans.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn standings(
        &self,
        tenants: Vec<Tenant>,
        plans: &Plans,
    ) -> StoreResult<Vec<TenantStandings>> {
        let now = self.clock.now();
        let ids: Vec<TenantId> = tenants.iter().map(|tenant| tenant.tenant_id).collect();
        let (grants, resets) = tokio::try_join!(
            self.store.list_grants_of(ids.clone()),
            self.store.list_resets_of(ids)
        )?;
        let (mut placed, mut asks) = (Vec::new(), Vec::new());
        for ((tenant, grants), resets) in tenants.into_iter().zip(grants).zip(resets) {
            let subscription = tenant.subscription.as_ref();
            let plan = subscription.and_then(|subscription| plans.get(&subscription.plan_code));
            let policy = Policy::new(tenant, plan.cloned(), grants, resets);
            let limits = self.catalogue.limits(&policy, now).await?;
            let all = limits.limits.iter().cloned();
            let (limits, of_each): (Vec<ActiveLimit>, Vec<ActiveLimit>) =
                all.partition(|limit| limit.scope == Scope::Tenant);
            asks.push(TenantAsk {
                tenant: policy.tenant.tenant_id,
                features: limits
                    .iter()
                    .map(|limit| (limit.feature.clone(), limit.window))
                    .collect(),
                others: None,
            });
            placed.push((policy.tenant, limits, of_each));
        }
        let sums = self.store.tenant_sums(asks).await?;
        let placed = placed.into_iter().zip(sums);
        let stand = placed.map(|((tenant, limits, of_each), sums)| TenantStandings {
            tenant,
            of_each,
            standings: limits
                .into_iter()
                .zip(sums)
                .map(|(limit, sum)| standing(limit, sum.quantity.at_least_zero()))
                .collect(),
        });
        Ok(stand.collect())
    }

    /// Whose keys and end users are near a limit that counts each of them, in the order of `tenants`. Keys that can't
    /// be used any more are left out.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn parts_near(&self, tenants: &[TenantStandings]) -> StoreResult<Vec<PartsNear>> {
        let (mut limits, mut asks) = (Vec::new(), Vec::new());
        for it in tenants {
            for limit in &it.of_each {
                let by = match limit.scope {
                    Scope::Tenant => continue,
                    Scope::Key => Dimension::Key,
                    Scope::User => Dimension::User,
                };
                let Some(at_least) = near_from(limit) else {
                    continue;
                };
                asks.push(HeaviestAsk {
                    tenant: it.tenant.tenant_id,
                    feature: limit.feature.clone(),
                    window: limit.window,
                    by,
                    at_least,
                    most: MOST_PARTS_NEAR,
                });
                limits.push((&it.tenant, limit));
            }
        }
        if asks.is_empty() {
            return Ok(Vec::new());
        }
        let heaviest = self.store.heaviest(asks).await?;
        let found = limits.into_iter().zip(heaviest);
        let found: Vec<_> = found.filter(|(_, used)| !used.is_empty()).collect();
        let of_keys = found
            .iter()
            .filter(|((_, limit), _)| limit.scope == Scope::Key);
        let keys = self
            .keys_in_use(of_keys.map(|((tenant, _), _)| tenant.tenant_id).collect())
            .await?;
        let mut near = Vec::new();
        for ((tenant, limit), used) in found {
            let used = in_use(limit.scope, used, &keys);
            let Some((_, most)) = used.first() else {
                continue;
            };
            near.push(PartsNear {
                tenant: tenant.slug.clone(),
                standing: standing(limit.clone(), *most),
                parts: used.into_iter().map(|(subject, _)| subject).collect(),
            });
        }
        Ok(near)
    }

    /// Those keys of `tenants` that can be used.
    async fn keys_in_use(&self, tenants: Vec<TenantId>) -> StoreResult<HashSet<KeyId>> {
        let now = self.clock.now();
        let keys = match tenants.is_empty() {
            true => Vec::new(),
            false => self.store.list_keys_of(tenants).await?,
        };
        let valid = keys
            .into_iter()
            .flatten()
            .filter(|key| key.is_valid_at(now));
        Ok(valid.map(|key| key.key_id).collect())
    }

    /// What would become of the plan's tenants, were it `changed`.
    ///
    /// # Errors
    /// `NotFound` for the plan; `Unavailable`.
    pub async fn preview(&self, changed: &Plan) -> Result<PlanPreview, AdminError> {
        let now = self.plans().await?;
        if !now.contains_key(&changed.code) {
            return Err(AdminError::not_found("plan", &changed.code));
        }
        let mut then = now.clone();
        then.insert(changed.code.clone(), Arc::new(changed.clone()));
        let search = TenantSearch {
            plan: Some(changed.code.clone()),
            ..TenantSearch::default()
        };
        let mut preview = PlanPreview {
            tenants: 0,
            is_complete: true,
            limits: Vec::new(),
        };
        let mut after: Option<Slug> = None;
        loop {
            let page = self
                .store
                .search_tenants(&search, after.as_ref(), PAGE)
                .await?;
            let is_last = page.len() < PAGE;
            after = page.last().map(|tenant| tenant.slug.clone());
            preview.tenants += page.len() as u64;
            let before = self.standings(page.clone(), &now).await?;
            let later = self.standings(page, &then).await?;
            let was = over(&before, &self.parts_near(&before).await?);
            let will = over(&later, &self.parts_near(&later).await?);
            preview.note(&was, &will);
            if is_last {
                break;
            }
            if preview.tenants >= MOST_PREVIEWED {
                preview.is_complete = false;
                break;
            }
        }
        Ok(preview)
    }
}

impl PlanPreview {
    fn note(&mut self, was: &[(Slug, Place)], will: &[(Slug, Place)]) {
        for (_, place) in was {
            self.limit(place).over_now += 1;
        }
        let known: HashSet<&(Slug, Place)> = was.iter().collect();
        for it in will {
            let limit = self.limit(&it.1);
            limit.over += 1;
            if !known.contains(it) && limit.named.len() < NAMED {
                limit.named.push(it.0.clone());
            }
        }
    }

    fn limit(&mut self, (scope, feature, window): &Place) -> &mut LimitPreview {
        let is_it = |it: &LimitPreview| {
            it.scope == *scope && it.feature == *feature && it.window == *window
        };
        let index = self.limits.iter().position(is_it).unwrap_or_else(|| {
            self.limits.push(LimitPreview {
                scope: *scope,
                feature: feature.clone(),
                window: *window,
                over: 0,
                over_now: 0,
                named: Vec::new(),
            });
            self.limits.len() - 1
        });
        &mut self.limits[index]
    }
}

/// Whose use counts against a limit of `scope`: end users, or those of the keys that are among `keys`.
fn in_use(scope: Scope, used: Vec<UsedBy>, keys: &HashSet<KeyId>) -> Vec<(Subject, Quantity)> {
    let subject = |id: String| match scope {
        Scope::Key => {
            let key = id.parse().ok().filter(|key| keys.contains(key));
            key.map(Subject::Key)
        }
        Scope::Tenant | Scope::User => Some(Subject::User(id.into())),
    };
    let used = used.into_iter();
    used.filter_map(|(id, used)| Some((subject(id)?, used)))
        .collect()
}

/// Which limit of a plan.
type Place = (Scope, FeatureKey, WindowKind);

/// Whose next request a limit would refuse, be it that of one of its keys or users.
fn over(tenants: &[TenantStandings], parts: &[PartsNear]) -> Vec<(Slug, Place)> {
    let of_tenants = tenants.iter().flat_map(|it| {
        let of_each = it.standings.iter();
        of_each.map(|standing| (&it.tenant.slug, standing))
    });
    let of_parts = parts.iter().map(|it| (&it.tenant, &it.standing));
    let is_over =
        |(_, standing): &(&Slug, &Standing)| standing.status == UsageStatus::HardLimitExceeded;
    let over = of_tenants.chain(of_parts).filter(is_over);
    let placed = over.map(|(slug, standing)| {
        let limit = &standing.limit;
        let place = (limit.scope, limit.feature.clone(), limit.kind);
        (slug.clone(), place)
    });
    placed.collect()
}

/// From which use on somebody is near `limit`; `None` if nobody can be.
fn near_from(limit: &ActiveLimit) -> Option<Quantity> {
    let of = limit.soft.or(limit.hard)?;
    limit
        .hard
        .or(limit.soft)
        .filter(|it| *it > Quantity::ZERO)?;
    // Rounded up: a share that rounds up to the threshold has not reached it.
    let part = i128::from(of.get()) * i128::from(DEFAULT_WARN_PERCENT);
    let part = i64::try_from((part + 99).div_euclid(100)).unwrap_or(i64::MAX);
    Some(Quantity::new(part.max(1)))
}

fn standing(limit: ActiveLimit, used: Quantity) -> Standing {
    Standing {
        status: UsageStatus::of(used, limit.soft, limit.hard, DEFAULT_WARN_PERCENT),
        percent: limit
            .hard
            .or(limit.soft)
            .and_then(|limit| Percent::of(used, limit)),
        used,
        limit,
    }
}

/// When the window of `standing` begins anew; `None` for one that never ends.
#[must_use]
pub fn resets_at(standing: &Standing) -> Option<Timestamp> {
    standing.limit.window.resets_at()
}
