//! Every lock, atomic and shared pointer of the ledger comes from here, so that a test can put its own in their place.

#[cfg(test)]
mod stepped;

#[cfg(test)]
pub(super) use self::stepped::{AtomicI64, AtomicU64, Mutex, RwLock};
pub(super) use std::sync::{Arc, MutexGuard, PoisonError, Weak, atomic::Ordering};
#[cfg(not(test))]
pub(super) use std::sync::{
    Mutex, RwLock,
    atomic::{AtomicI64, AtomicU64},
};
