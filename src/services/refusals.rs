//! The node's last refusals, for whoever asks why.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::guard::{Caller, Refusal};
use crate::domain::ids::TenantId;

const KEPT: usize = 10_000;

/// A refused request.
#[derive(Clone, Debug)]
pub struct Refused {
    pub caller: Caller,
    pub model: Option<String>,
    pub refusal: Arc<Refusal>,
}

#[derive(Default)]
pub struct Refusals(Mutex<VecDeque<Arc<Refused>>>);

impl Refusals {
    fn kept(&self) -> MutexGuard<'_, VecDeque<Arc<Refused>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn keep(&self, refused: Refused) -> Arc<Refused> {
        let refused = Arc::new(refused);
        let mut kept = self.kept();
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&refused));
        refused
    }

    /// The last one of a request.
    #[must_use]
    pub fn find(&self, request_id: &str) -> Option<Arc<Refused>> {
        let kept = self.kept();
        let found = kept
            .iter()
            .rev()
            .find(|it| &*it.caller.request_id == request_id);
        found.cloned()
    }

    /// Drops those of an end user.
    pub fn forget_user(&self, tenant: TenantId, user: &str) {
        let is_theirs = |of: &Caller| of.tenant_id == tenant && &*of.user == user;
        self.kept().retain(|it| !is_theirs(&it.caller));
    }
}
