//! Every lock, atomic and shared pointer of the ledger comes from here, so that a test can put its own in their place.

pub(super) use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
    atomic::{AtomicI64, AtomicU64, Ordering},
};
