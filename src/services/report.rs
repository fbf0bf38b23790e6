//! The report of all tenants (interface.md §8): read page by page, written as it is read, so that a million rows need
//! no more memory than one.

mod rows;
mod write;

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use serde::Serialize;
use tokio::sync::mpsc;

use super::{
    AdminError,
    catalogue::Policy,
    recorder::DrainError,
    reports::Reports,
    usage_view::{Percent, UsageStatus, WarnAt},
};
use crate::{
    domain::{
        feature::FeatureKey,
        names::{PlanCode, Slug},
        plan::Plan,
        quantity::Quantity,
        subscription::SubscriptionStatus,
        tenant::{Tenant, TenantRef},
        time::{MICROS_PER_SECOND, Timestamp},
    },
    store::StoreError,
};
use rows::{Placed, TenantRow};
use write::Writer;

/// How many tenants are read at a time; half a page a reader.
const PAGE: usize = 500;
/// How many near or over their limits are named at the end.
const NAMED: usize = 10;

/// What the report is of.
#[derive(Clone, Debug)]
pub struct ReportAsk {
    /// The report as it stood at the end of this instant's second; `None`: as it stands.
    pub as_of: Option<Timestamp>,
    pub period_start: Option<Timestamp>,
    pub period_end: Option<Timestamp>,
    pub tenants: Vec<TenantRef>,
    /// In any case.
    pub plans: Vec<PlanCode>,
    pub features: Vec<FeatureKey>,
    pub who: Who,
    pub warn_at: WarnAt,
}

/// Whose usage is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Active, trialing and past-due subscriptions.
    Active,
    /// Every tenant, those without a subscription too.
    Everybody,
}

/// Where the report is written to; each file is replaced when the report is whole.
#[derive(Clone, Debug, Default)]
pub struct ReportFiles {
    pub json: Option<PathBuf>,
    pub csv: Option<PathBuf>,
}

/// What was written.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ReportSummary {
    pub tenant_count: u64,
    /// Rows: tenants × their features.
    pub feature_count: u64,
    /// The first that are near or over a limit.
    pub flagged: Vec<Flagged>,
}

/// A feature of a tenant that is near or over a limit.
#[derive(Clone, Debug, Serialize)]
pub struct Flagged {
    pub tenant_slug: Slug,
    pub feature_key: FeatureKey,
    pub status: UsageStatus,
    pub unit: Arc<str>,
    pub quantity: Quantity,
    pub soft_limit: Option<Quantity>,
    pub hard_limit: Option<Quantity>,
    /// Of the hard limit, else of the soft one.
    pub percent: Option<Percent>,
}

/// Why there is no report; files that were there before are untouched.
#[derive(Debug, thiserror::Error)]
pub enum ReportFailed {
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("the report can't be written to {}: {cause}", path.display())]
    File {
        path: PathBuf,
        cause: std::io::Error,
    },
}

impl From<StoreError> for ReportFailed {
    fn from(error: StoreError) -> Self {
        Self::Admin(error.into())
    }
}

impl From<DrainError> for ReportFailed {
    fn from(error: DrainError) -> Self {
        Self::Admin(AdminError::Unavailable(error.to_string()))
    }
}

impl ReportAsk {
    fn check(&self) -> Result<(), AdminError> {
        if let (Some(start), Some(end)) = (self.period_start, self.period_end)
            && end <= start
        {
            let accepted = format!("a time after period_start, {start}");
            return Err(AdminError::invalid("period_end", end, accepted));
        }
        Ok(())
    }

    /// The first instant whose usage is left out; `None`: none is.
    fn cut(&self) -> Option<Timestamp> {
        self.as_of.map(|at| {
            // An instant in whole seconds means all of its second: it was taken from a clock that shows no more.
            let step = if at == at.to_whole_second() {
                MICROS_PER_SECOND
            } else {
                1
            };
            Timestamp::from_micros(at.micros().saturating_add(step))
        })
    }

    fn takes(&self, tenant: &Tenant) -> bool {
        let subscription = tenant.subscription.as_ref();
        let is_active = subscription.is_some_and(|subscription| {
            matches!(
                subscription.status,
                SubscriptionStatus::Active
                    | SubscriptionStatus::Trialing
                    | SubscriptionStatus::PastDue
            )
        });
        let is_asked = |code: &PlanCode| {
            subscription.is_some_and(|it| it.plan_code.as_str().eq_ignore_ascii_case(code.as_str()))
        };
        (is_active || self.who == Who::Everybody)
            && (self.plans.is_empty() || self.plans.iter().any(is_asked))
    }
}

impl Reports {
    /// Writes the report. `progress` hears how many tenants of how many are done.
    ///
    /// # Errors
    /// [`ReportFailed`]; a tenant or plan that is asked for and not there is `NotFound`.
    pub async fn export(
        &self,
        ask: &ReportAsk,
        files: ReportFiles,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<ReportSummary, ReportFailed> {
        ask.check()?;
        let plans = self.plans_of(ask).await?;
        let mut tenants = Tenants::of(self, ask).await?;
        // Usage that is still on its way would be missing.
        self.recorder.flush().await?;
        let now = self.clock.now();
        let writer = Writer::start(ask.clone(), files, now);
        let (mut done, total) = (0, tenants.count);
        // While one page is summed, the next is listed, and the one before is written.
        let (listed, mut waiting) = mpsc::channel(1);
        let listing = async move {
            while let Some(page) = tenants.next(self).await? {
                let count = page.len() as u64;
                let page = page.into_iter().filter(|it| ask.takes(it)).collect();
                let at = ask.as_of.unwrap_or(now);
                let placed = self.placed(ask, page, &plans, at).await?;
                if listed.send((count, placed)).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        let summing = async {
            while let Some((count, placed)) = waiting.recv().await {
                done += count;
                if !writer.send(self.rows(ask, placed).await?).await {
                    break; // it has failed, and says why
                }
                progress(done, total.max(done));
            }
            waiting.close();
            Ok::<_, ReportFailed>(())
        };
        tokio::try_join!(listing, summing)?;
        writer.finish().await
    }

    async fn plans_of(
        &self,
        ask: &ReportAsk,
    ) -> Result<HashMap<PlanCode, Arc<Plan>>, ReportFailed> {
        let plans = self.store.list_plans().await?;
        for code in &ask.plans {
            let is_it = |plan: &Plan| plan.code.as_str().eq_ignore_ascii_case(code.as_str());
            if !plans.iter().any(is_it) {
                return Err(AdminError::not_found("plan", code).into());
            }
        }
        let plans = plans.into_iter();
        Ok(plans
            .map(|plan| (plan.code.clone(), Arc::new(plan)))
            .collect())
    }

    /// The tenants with their windows and limits.
    async fn placed(
        &self,
        ask: &ReportAsk,
        tenants: Vec<Tenant>,
        plans: &HashMap<PlanCode, Arc<Plan>>,
        now: Timestamp,
    ) -> Result<Vec<Placed>, ReportFailed> {
        let ids = tenants.iter().map(|tenant| tenant.tenant_id).collect();
        let grants = self.store.list_grants_of(ids).await?;
        let mut placed = Vec::with_capacity(tenants.len());
        for (tenant, grants) in tenants.into_iter().zip(grants) {
            let plan = tenant.subscription.as_ref();
            let plan = plan.and_then(|subscription| plans.get(&subscription.plan_code));
            // A reset changes what limits count, and not the report.
            let policy = Policy::new(tenant, plan.cloned(), grants, Vec::new());
            let limits = self.catalogue.limits(&policy, now).await?;
            placed.push(Placed::new(policy, &limits.limits, ask, now));
        }
        Ok(placed)
    }

    async fn rows(
        &self,
        ask: &ReportAsk,
        placed: Vec<Placed>,
    ) -> Result<Vec<TenantRow>, ReportFailed> {
        let mut asks: Vec<_> = placed.iter().map(|placed| placed.ask(ask)).collect();
        // Two readers: each takes half, since the machine has more than one core and the store more than one reader.
        let second = asks.split_off(asks.len() / 2);
        let (first, second) =
            tokio::join!(self.store.tenant_sums(asks), self.store.tenant_sums(second));
        let sums = first?.into_iter().chain(second?);
        let rows = placed.into_iter().zip(sums);
        Ok(rows.map(|(placed, sums)| placed.row(sums, ask)).collect())
    }
}

/// The tenants asked for, by slug, page by page.
struct Tenants {
    count: u64,
    left: Left,
}

enum Left {
    /// Named ones, found already.
    Named(Vec<Tenant>),
    All {
        after: Option<Slug>,
    },
    Nobody,
}

impl Tenants {
    async fn of(reports: &Reports, ask: &ReportAsk) -> Result<Self, ReportFailed> {
        if ask.tenants.is_empty() {
            return Ok(Self {
                count: reports.store.count_tenants().await?,
                left: Left::All { after: None },
            });
        }
        let mut named = Vec::new();
        for name in &ask.tenants {
            let found = reports.store.find_tenant(name).await?;
            named.push(found.ok_or_else(|| AdminError::not_found("tenant", name))?);
        }
        named.sort_by(|one, other| one.slug.cmp(&other.slug));
        named.dedup_by(|one, other| one.tenant_id == other.tenant_id);
        Ok(Self {
            count: named.len() as u64,
            left: Left::Named(named),
        })
    }

    async fn next(&mut self, reports: &Reports) -> Result<Option<Vec<Tenant>>, ReportFailed> {
        match std::mem::replace(&mut self.left, Left::Nobody) {
            Left::Nobody => Ok(None),
            Left::Named(tenants) => Ok(Some(tenants)),
            Left::All { after } => {
                let page = reports.store.list_tenants(after.as_ref(), PAGE).await?;
                if page.len() == PAGE {
                    let after = page.last().map(|tenant| tenant.slug.clone());
                    self.left = Left::All { after };
                }
                Ok(Some(page))
            }
        }
    }
}
