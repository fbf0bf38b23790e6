//! Where many tenants stand against their limits, by what the store has: for lists and for what a change would do.
//!
//! The ledger knows it to the request, but only of who is active; asking it for all tenants would have it load them.

use std::{collections::HashMap, sync::Arc};

use super::{
    AdminError,
    catalogue::Policy,
    reports::Reports,
    usage_view::{DEFAULT_WARN_PERCENT, Percent, UsageStatus},
};
use crate::{
    domain::{
        feature::FeatureKey,
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
        usage::{Dimension, HeaviestAsk, TenantAsk},
    },
};

/// How many tenants are read at a time.
const PAGE: usize = 500;
/// Of how many tenants it is worked out what a change of their plan would do.
const MOST_PREVIEWED: usize = 20_000;
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
    pub feature: FeatureKey,
    pub window: WindowKind,
    /// Of whom the next request would be refused.
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
    pub tenants: usize,
    pub is_complete: bool,
    /// Limits of scope tenant that would refuse somebody, or refuse somebody now.
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
        let ids = tenants.iter().map(|tenant| tenant.tenant_id).collect();
        let grants = self.store.list_grants_of(ids).await?;
        let (mut placed, mut asks) = (Vec::new(), Vec::new());
        for (tenant, grants) in tenants.into_iter().zip(grants) {
            let resets = self.store.list_resets(tenant.tenant_id).await?;
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

    /// Whose keys and end users are near a limit that counts each of them, in the order of `tenants`.
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
                limits.push((&it.tenant.slug, limit));
            }
        }
        if asks.is_empty() {
            return Ok(Vec::new());
        }
        let heaviest = self.store.heaviest(asks).await?;
        let found = limits.into_iter().zip(heaviest);
        let near = found.filter_map(|((slug, limit), used)| {
            let most = used.first()?.1;
            let parts = used.into_iter().filter_map(|(who, _)| match limit.scope {
                Scope::Tenant => None,
                Scope::Key => who.parse().ok().map(Subject::Key),
                Scope::User => Some(Subject::User(who.into())),
            });
            Some(PartsNear {
                tenant: slug.clone(),
                standing: standing(limit.clone(), most),
                parts: parts.collect(),
            })
        });
        Ok(near.collect())
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
            preview.tenants += page.len();
            let before = self.standings(page.clone(), &now).await?;
            let later = self.standings(page, &then).await?;
            for (before, later) in before.iter().zip(&later) {
                preview.note(before, later);
            }
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
    fn note(&mut self, before: &TenantStandings, later: &TenantStandings) {
        let is_over = |standing: &&Standing| standing.status == UsageStatus::HardLimitExceeded;
        let key = |standing: &Standing| (standing.limit.feature.clone(), standing.limit.kind);
        let was: Vec<_> = before.standings.iter().filter(is_over).map(key).collect();
        let will: Vec<_> = later.standings.iter().filter(is_over).map(key).collect();
        for place in &was {
            self.limit(place).over_now += 1;
        }
        for place in &will {
            let limit = self.limit(place);
            limit.over += 1;
            if !was.contains(place) && limit.named.len() < NAMED {
                limit.named.push(later.tenant.slug.clone());
            }
        }
    }

    fn limit(&mut self, (feature, window): &(FeatureKey, WindowKind)) -> &mut LimitPreview {
        let is_it = |it: &LimitPreview| it.feature == *feature && it.window == *window;
        let index = self.limits.iter().position(is_it).unwrap_or_else(|| {
            self.limits.push(LimitPreview {
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
