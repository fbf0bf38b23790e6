//! The whole gate at a glance: what was used and decided, and who is near a limit.
//!
//! Sums of all tenants are kept by hour as usage is recorded, so that asking for them costs the same with one tenant
//! and with a million. Who is near a limit takes a look at every tenant: a picture of the nearest is taken in the
//! background while somebody asks for it, and nothing is done while nobody does.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;

use super::{
    AdminError,
    reports::Reports,
    standings::{PartsNear, Standing, TenantStandings},
    usage_view::UsageStatus,
};
use crate::{
    clock::Clock,
    domain::{
        feature::FeatureKey,
        names::{DisplayName, PlanCode, Slug},
        quantity::Quantity,
        time::Timestamp,
        window::Window,
    },
    store::{
        SharedStore, StoreResult,
        trends::{Decisions, UsedInHour},
    },
    telemetry::{events::Decision, metrics::Metrics},
};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How many tenants are read at a time.
const PAGE: usize = 500;
/// How many of those nearest to a limit are kept.
const MOST_NEAR: usize = 500;
/// A picture is at least this new, …
const FRESH: Duration = Duration::from_secs(1);
/// … or as much older as it takes to spend no more than a twentieth of a core on taking it.
const PAUSE: u32 = 20;
/// A picture that takes less is waited for.
const QUICK: Duration = Duration::from_millis(5);
/// So long the very first picture is waited for, and one in place of what is not quite new,
const FIRST: Duration = Duration::from_millis(100);
/// and so long one in place of what nobody would want to see: who comes in the morning must not find last night's.
const PATIENCE: Duration = Duration::from_secs(1);
/// From here on it is that old.
const STALE: Duration = Duration::from_secs(10);

/// What was used and decided in some stretch of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// By feature, those that were used.
    pub used: BTreeMap<FeatureKey, Quantity>,
    pub decisions: Decisions,
}

impl Sums {
    /// 0 if it was not used.
    #[must_use]
    pub fn of(&self, feature: &FeatureKey) -> Quantity {
        self.used.get(feature).copied().unwrap_or(Quantity::ZERO)
    }

    #[must_use]
    pub fn tokens(&self) -> Quantity {
        self.of(&FeatureKey::InputTokens)
            .plus(self.of(&FeatureKey::OutputTokens))
    }
}

/// One UTC hour of the whole gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HourOfAll {
    pub hour: Timestamp,
    pub messages: Quantity,
    pub refused: u64,
}

/// What the whole gate did; days and months are UTC's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    pub today: Sums,
    /// Yesterday, as far into the day as it is now, to the whole hour.
    pub yesterday: Sums,
    /// Where that ends.
    pub yesterday_until: Timestamp,
    /// When the month began.
    pub month_start: Timestamp,
    pub month: Sums,
    /// The month before, as far into it as it is now, to the whole hour.
    pub last_month: Sums,
    pub last_month_start: Timestamp,
    /// Where what is summed of it ends.
    pub last_month_until: Timestamp,
    /// The last 48 hours, the present one last.
    pub hours: Vec<HourOfAll>,
}

/// A tenant that is near a limit, or over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Near {
    pub slug: Slug,
    pub name: DisplayName,
    pub plan_code: Option<PlanCode>,
    /// The limit that it is nearest to.
    pub standing: Standing,
}

/// All tenants at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    /// False: not all were looked at yet.
    pub is_complete: bool,
    pub tenants: u64,
    /// How many are subscribed to each plan.
    pub of_plan: BTreeMap<PlanCode, u64>,
    /// Of how many the worst of their limits has each status but `ok`.
    pub of_status: BTreeMap<UsageStatus, u64>,
    /// The nearest first; at most 500.
    pub near: Vec<Near>,
    /// Of keys and end users, the nearest first; at most 500.
    pub parts_near: Vec<PartsNear>,
}

/// A picture, and what it took.
struct Taken {
    picture: Arc<Picture>,
    at: Timestamp,
    took: Duration,
}

/// Looks at the whole gate.
pub struct Overview {
    store: SharedStore,
    reports: Reports,
    metrics: Arc<Metrics>,
    clock: Clock,
    taken: ArcSwapOption<Taken>,
    /// One picture is taken at a time.
    taking: tokio::sync::Mutex<()>,
    /// Decisions that the store has of this process.
    kept: Mutex<Decisions>,
}

impl Overview {
    #[must_use]
    pub fn new(store: SharedStore, reports: Reports, metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self {
            store,
            reports,
            metrics,
            clock,
            taken: ArcSwapOption::empty(),
            taking: tokio::sync::Mutex::new(()),
            kept: Mutex::default(),
        }
    }

    /// Adds what was decided since the last step to the present hour.
    ///
    /// # Errors
    /// `Unavailable`: the next step makes up for it.
    pub async fn keep_decisions(&self) -> StoreResult<()> {
        let since = self.decided_since();
        if since == Decisions::default() {
            return Ok(());
        }
        let hour = Window::hour_of(self.clock.now()).start();
        self.store.add_decisions(hour, since).await?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = add(*kept, since);
        Ok(())
    }

    /// What was decided and is not in the store yet.
    fn decided_since(&self) -> Decisions {
        let kept = *self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let since = |decision, kept| self.metrics.decided(decision).saturating_sub(kept);
        Decisions {
            allow: since(Decision::Allow, kept.allow),
            soft_limit: since(Decision::SoftLimit, kept.soft_limit),
            hard_limit: since(Decision::HardLimit, kept.hard_limit),
        }
    }

    /// What the gate did until now.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn figures(&self) -> Result<Figures, AdminError> {
        let now = self.clock.now();
        let hour = Window::hour_of(now);
        let today = day_of(now);
        let month = now.start_of_month();
        let last_month = month.minus(DAY).start_of_month();
        let first_hour = hour.start().minus(47 * HOUR);
        let asked = window(last_month.min(first_hour), hour.end());
        let (used, decided) = tokio::join!(
            self.store.used_by_hour(asked),
            self.store.decisions_by_hour(asked)
        );
        let (used, mut decided) = (used?, decided?);
        decided.push((hour.start(), self.decided_since()));

        let sums = |start: Timestamp, end: Timestamp| sums_of(&used, &decided, start, end);
        // As far into the stretch before as it is now, but not into the present one.
        let as_far =
            |start: Timestamp, before: Timestamp| before.plus(hour.end().since(start)).min(start);
        let yesterday_until = as_far(today, today.minus(DAY));
        let last_month_until = as_far(month, last_month);
        let hours = (0..48).map(|index| {
            let start = first_hour.plus(HOUR * index);
            let of_hour = sums(start, start.plus(HOUR));
            HourOfAll {
                hour: start,
                messages: of_hour.of(&FeatureKey::Messages),
                refused: of_hour.decisions.hard_limit,
            }
        });
        Ok(Figures {
            hours: hours.collect(),
            today: sums(today, hour.end()),
            yesterday: sums(today.minus(DAY), yesterday_until),
            yesterday_until,
            month_start: month,
            month: sums(month, hour.end()),
            last_month: sums(last_month, last_month_until),
            last_month_start: last_month,
            last_month_until,
        })
    }

    /// All tenants, as they stood a moment ago; where a new picture takes long it is not waited for to its end, and
    /// there the next time.
    ///
    /// # Errors
    /// `Unavailable`, if there is no picture yet.
    pub async fn picture(
        self: &Arc<Self>,
        tasks: &crate::app::tasks::Tasks,
    ) -> StoreResult<Arc<Picture>> {
        let now = self.clock.now();
        let taken = self.taken.load_full();
        let Some(taken) = taken else {
            let this = Arc::clone(self);
            let first = tasks.spawn(async move { this.take().await });
            return match tokio::time::timeout(FIRST, first).await {
                Ok(Ok(taken)) => taken,
                // It goes on being taken, and is there the next time.
                Ok(Err(_)) | Err(_) => Ok(Arc::default()),
            };
        };
        if now.since(taken.at) < FRESH.max(taken.took * PAUSE) {
            return Ok(Arc::clone(&taken.picture));
        }
        if taken.took < QUICK {
            return self.take().await;
        }
        let this = Arc::clone(self);
        let next = tasks.spawn(async move {
            let next = this.take().await;
            if let Err(error) = &next {
                tracing::debug!(%error, "tenants can't be looked at");
            }
            next
        });
        let patience = if now.since(taken.at) < STALE {
            FIRST
        } else {
            PATIENCE
        };
        if taken.took > patience {
            return Ok(Arc::clone(&taken.picture)); // it would not be there in time
        }
        Ok(match tokio::time::timeout(patience, next).await {
            Ok(Ok(Ok(next))) => next,
            Ok(Ok(Err(_)) | Err(_)) | Err(_) => Arc::clone(&taken.picture),
        })
    }

    async fn take(&self) -> StoreResult<Arc<Picture>> {
        let asked_at = self.clock.now();
        let _turn = self.taking.lock().await;
        if let Some(taken) = self.taken.load_full()
            && taken.at >= asked_at
        {
            return Ok(Arc::clone(&taken.picture)); // while this one waited for its turn
        }
        let at = self.clock.now();
        let plans = self.reports.plans().await?;
        let mut picture = Picture::default();
        let mut after: Option<Slug> = None;
        loop {
            let page = self.store.list_tenants(after.as_ref(), PAGE).await?;
            let is_last = page.len() < PAGE;
            after = page.last().map(|tenant| tenant.slug.clone());
            let tenants = self.reports.standings(page, &plans).await?;
            picture.add_parts(self.reports.parts_near(&tenants).await?);
            for tenant in tenants {
                picture.add(tenant);
            }
            if is_last {
                break;
            }
        }
        picture.keep_nearest(MOST_NEAR);
        picture.is_complete = true;
        let picture = Arc::new(picture);
        self.taken.store(Some(Arc::new(Taken {
            picture: Arc::clone(&picture),
            at,
            took: self.clock.now().since(at),
        })));
        Ok(picture)
    }
}

impl Picture {
    fn add(&mut self, of: TenantStandings) {
        self.tenants += 1;
        let plan_code = of
            .tenant
            .subscription
            .as_ref()
            .map(|it| it.plan_code.clone());
        if let Some(code) = &plan_code {
            *self.of_plan.entry(code.clone()).or_default() += 1;
        }
        let worst = of.standings.iter().map(|standing| standing.status).max();
        if let Some(worst) = worst.filter(|worst| *worst != UsageStatus::Ok) {
            *self.of_status.entry(worst).or_default() += 1;
        }
        let nearest = of.nearest().cloned();
        let Some(standing) = nearest.filter(|it| it.percent.is_some_and(|percent| percent.0 > 0))
        else {
            return;
        };
        self.near.push(Near {
            slug: of.tenant.slug,
            name: of.tenant.name,
            plan_code,
            standing,
        });
        if self.near.len() >= 4 * MOST_NEAR {
            self.keep_nearest(MOST_NEAR);
        }
    }

    fn add_parts(&mut self, near: Vec<PartsNear>) {
        self.parts_near.extend(near);
        if self.parts_near.len() >= 4 * MOST_NEAR {
            self.keep_nearest(MOST_NEAR);
        }
    }

    fn keep_nearest(&mut self, most: usize) {
        let percent = |of: &Standing| std::cmp::Reverse(of.percent.map_or(0, |it| it.0));
        self.near.sort_by(|one, other| {
            let by_percent = percent(&one.standing).cmp(&percent(&other.standing));
            by_percent.then_with(|| one.slug.cmp(&other.slug))
        });
        self.near.truncate(most);
        self.parts_near.sort_by(|one, other| {
            let by_percent = percent(&one.standing).cmp(&percent(&other.standing));
            by_percent.then_with(|| one.tenant.cmp(&other.tenant))
        });
        self.parts_near.truncate(most);
    }
}

/// The UTC day's start.
fn day_of(at: Timestamp) -> Timestamp {
    let month = at.start_of_month();
    let days = u32::try_from(at.since(month).as_secs() / DAY.as_secs()).unwrap_or(0);
    month.plus(DAY * days)
}

fn window(start: Timestamp, end: Timestamp) -> Window {
    Window::new(start, end).unwrap_or_else(|_| Window::hour_of(start))
}

fn sums_of(
    used: &[UsedInHour],
    decided: &[(Timestamp, Decisions)],
    start: Timestamp,
    end: Timestamp,
) -> Sums {
    let is_in = |hour: Timestamp| start <= hour && hour < end;
    let mut sums = Sums::default();
    for it in used.iter().filter(|it| is_in(it.hour)) {
        let sum = sums
            .used
            .entry(it.feature.clone())
            .or_insert(Quantity::ZERO);
        *sum = sum.plus(it.quantity);
    }
    for (_, more) in decided.iter().filter(|(hour, _)| is_in(*hour)) {
        sums.decisions = add(sums.decisions, *more);
    }
    sums
}

fn add(one: Decisions, other: Decisions) -> Decisions {
    Decisions {
        allow: one.allow + other.allow,
        soft_limit: one.soft_limit + other.soft_limit,
        hard_limit: one.hard_limit + other.hard_limit,
    }
}
