//! Where the keys and the end users of one tenant stand against the limits that count each of them.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    catalogue::Policy,
    reports::{ReportError, Reports},
};
use crate::{
    domain::{
        ids::KeyId,
        limit::{LimitState, Scope, Subject},
    },
    store::usage::Dimension,
};

/// A key or an end user, and where it stands against one limit.
pub struct SubjectState {
    pub subject: Subject,
    pub state: LimitState,
}

impl Reports {
    /// Where each of `keys` stands against the limits per key, and against each limit per user those `most` users who
    /// used most of it; the one nearest to its limit first.
    ///
    /// Who the users are is what the store knows; how they stand is the ledger's.
    ///
    /// # Errors
    /// As [`current`](Self::current).
    pub async fn subjects(
        &self,
        policy: &Arc<Policy>,
        keys: &[KeyId],
        most: usize,
    ) -> Result<Vec<SubjectState>, ReportError> {
        let active = self.catalogue.limits(policy, self.clock.now()).await?;
        let of = |scope| {
            active
                .limits
                .iter()
                .filter(move |limit| limit.scope == scope)
        };
        let mut subjects: Vec<Subject> = Vec::new();
        if of(Scope::Key).next().is_some() {
            subjects.extend(keys.iter().copied().map(Subject::Key));
        }
        let mut users: BTreeSet<String> = BTreeSet::new();
        for limit in of(Scope::User) {
            let feature = std::slice::from_ref(&limit.feature);
            let by = Some(Dimension::User);
            let mut totals = self.totals(policy, feature, limit.window, by).await?.totals;
            totals.sort_by_key(|total| std::cmp::Reverse(total.quantity));
            users.extend(totals.into_iter().take(most).filter_map(|total| total.by));
        }
        subjects.extend(users.into_iter().map(|user| Subject::User(user.into())));

        let mut found = Vec::new();
        for subject in subjects {
            let (key, user) = match &subject {
                Subject::Tenant => (None, None),
                Subject::Key(key) => (Some(*key), None),
                Subject::User(user) => (None, Some(&**user)),
            };
            let current = self.current(Arc::clone(policy), key, user).await?;
            let own = current.states.into_iter();
            let own = own.filter(|state| state.limit.scope == subject.scope());
            found.extend(own.map(|state| SubjectState {
                subject: subject.clone(),
                state,
            }));
        }
        found.sort_by_key(|it| std::cmp::Reverse(it.state.percent_hundredths()));
        Ok(found)
    }
}
