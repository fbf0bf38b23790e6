//! The standard library's locks and atomics, except that in a run of `shuttle` each use of one is a place where any
//! other task may go on first. Everywhere else they are the standard library's and nothing more, so that one build of
//! the tests holds both kinds.

use std::sync::{
    LockResult, MutexGuard, RwLockReadGuard, RwLockWriteGuard, TryLockError, TryLockResult,
    atomic::Ordering,
};

/// So often a task looks for a lock that others hold. Who looks longer waits for itself.
const MAX_LOOKS: usize = 100_000;

fn is_stepped() -> bool {
    shuttle::current::try_get_current_task().is_some()
}

fn let_others_go_on() {
    if is_stepped() {
        shuttle::thread::yield_now();
    }
}

/// Takes a lock by `take`, or in a run by `attempt`: all tasks of a run share one thread, which must not block.
fn step<G>(
    take: impl FnOnce() -> LockResult<G>,
    attempt: impl Fn() -> TryLockResult<G>,
) -> LockResult<G> {
    if !is_stepped() {
        return take();
    }
    for _ in 0..MAX_LOOKS {
        shuttle::thread::yield_now();
        match attempt() {
            Ok(guard) => return Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Err(poisoned),
            Err(TryLockError::WouldBlock) => {}
        }
    }
    panic!("a lock is never given back");
}

#[derive(Debug, Default)]
pub(in super::super) struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(in super::super) fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }

    pub(in super::super) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        step(|| self.0.lock(), || self.0.try_lock())
    }
}

#[derive(Debug, Default)]
pub(in super::super) struct RwLock<T>(std::sync::RwLock<T>);

impl<T> RwLock<T> {
    pub(in super::super) fn read(&self) -> LockResult<RwLockReadGuard<'_, T>> {
        step(|| self.0.read(), || self.0.try_read())
    }

    pub(in super::super) fn write(&self) -> LockResult<RwLockWriteGuard<'_, T>> {
        step(|| self.0.write(), || self.0.try_write())
    }
}

macro_rules! atomic {
    ($name:ident, $number:ty) => {
        #[derive(Debug, Default)]
        pub(in super::super) struct $name(std::sync::atomic::$name);

        impl $name {
            pub(in super::super) fn load(&self, order: Ordering) -> $number {
                let_others_go_on();
                self.0.load(order)
            }
        }
    };
}
atomic!(AtomicI64, i64);
atomic!(AtomicU64, u64);

impl AtomicI64 {
    pub(in super::super) fn new(value: i64) -> Self {
        Self(std::sync::atomic::AtomicI64::new(value))
    }

    pub(in super::super) fn store(&self, value: i64, order: Ordering) {
        let_others_go_on();
        self.0.store(value, order);
    }

    pub(in super::super) fn fetch_max(&self, value: i64, order: Ordering) -> i64 {
        let_others_go_on();
        self.0.fetch_max(value, order)
    }
}

impl AtomicU64 {
    pub(in super::super) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        let_others_go_on();
        self.0.fetch_add(value, order)
    }
}
