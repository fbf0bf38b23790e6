//! What grants add to limits, and what is left of them: the rules of `domain::grant` on what the store knows.

use std::sync::Arc;

use crate::{
    domain::{
        feature::FeatureKey,
        grant::{self, Grant, Stretch},
        ids::{GrantId, TenantId},
        limit::{Limit, Scope},
        quantity::Quantity,
        reset::counted_window,
        time::Timestamp,
        window::{Anchors, Window, WindowKind},
    },
    services::recorder::Recorder,
    store::StoreResult,
};

/// A tenant's grants of one feature against one of its limits.
pub(super) struct Granting<'a> {
    pub recorder: &'a Arc<Recorder>,
    pub tenant: TenantId,
    pub anchors: Anchors,
    pub feature: &'a FeatureKey,
    /// Resets of it.
    pub resets: Vec<Timestamp>,
    /// Those of `feature` that have begun.
    pub grants: Vec<Grant>,
}

/// Whether grants raise this limit.
#[must_use]
pub(super) fn raises(limit: &Limit) -> bool {
    limit.scope == Scope::Tenant && limit.hard.is_some() && Grant::raises(limit.window)
}

impl Granting<'_> {
    /// What the grants add to `hard` in the window of now.
    ///
    /// # Errors
    /// Where grants were burned earlier, what was used then is read from the store, which may be away.
    pub(super) async fn added_to(
        &self,
        hard: Quantity,
        kind: WindowKind,
        now: Timestamp,
    ) -> StoreResult<Quantity> {
        if self.grants.is_empty() {
            return Ok(Quantity::ZERO);
        }
        let (ended, _) = self.ended_stretches(kind, now).await?;
        Ok(grant::replay(&self.grants, hard, &ended, self.window_at(kind, now), now).granted)
    }

    /// Usage before this has burned grants by `now`; usage since then burns them later.
    pub(super) fn burned_until(&self, kind: WindowKind, now: Timestamp) -> Timestamp {
        if self.grants.is_empty() {
            return Timestamp::EPOCH;
        }
        let begun = self.begun();
        let cuts = grant::cuts(&self.grants, begun, now, |at| self.window_at(kind, at));
        cuts.last().copied().unwrap_or(begun)
    }

    /// What is left of each grant now.
    ///
    /// # Errors
    /// As [`added_to`](Self::added_to).
    pub(super) async fn left(
        &self,
        hard: Quantity,
        kind: WindowKind,
        now: Timestamp,
    ) -> StoreResult<Vec<(GrantId, Quantity)>> {
        if self.grants.is_empty() {
            return Ok(Vec::new());
        }
        let (mut stretches, start) = self.ended_stretches(kind, now).await?;
        let window = self.window_at(kind, now);
        if let Ok(until_now) = Window::new(window.start(), now) {
            stretches.push(Stretch {
                window,
                start,
                used_by_end: self
                    .recorder
                    .used(self.tenant, self.feature, until_now)
                    .await?,
            });
        }
        let replayed = grant::replay(&self.grants, hard, &stretches, window, now);
        Ok(self
            .grants
            .iter()
            .map(|grant| grant.grant_id)
            .zip(replayed.remaining)
            .collect())
    }

    /// What a limit counts in: what was burned before a reset is not counted again after it.
    fn window_at(&self, kind: WindowKind, at: Timestamp) -> Window {
        counted_window(kind, at, &self.anchors, &self.resets)
    }

    fn begun(&self) -> Timestamp {
        self.grants
            .iter()
            .map(|grant| grant.created_at)
            .min()
            .unwrap_or(Timestamp::EPOCH)
    }

    /// The stretches that have ended, and where the current one starts: a grant made since burns from there.
    async fn ended_stretches(
        &self,
        kind: WindowKind,
        now: Timestamp,
    ) -> StoreResult<(Vec<Stretch>, Timestamp)> {
        let window_at = |at| self.window_at(kind, at);
        let mut stretches = Vec::new();
        let mut start = self.begun();
        for cut in grant::cuts(&self.grants, start, now, window_at) {
            let window = window_at(start);
            let until_cut =
                Window::new(window.start(), cut).expect("a cut lies behind its window's start");
            stretches.push(Stretch {
                window,
                start,
                used_by_end: self
                    .recorder
                    .used_by_all(self.tenant, self.feature, until_cut)
                    .await?,
            });
            start = cut;
        }
        Ok((stretches, start))
    }
}
