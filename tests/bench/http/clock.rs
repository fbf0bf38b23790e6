//! One clock for all processes of a run.

use rustix::time::{ClockId, clock_gettime};

/// Microseconds of the monotonic clock, which every process of the machine shares.
pub(crate) fn micros() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let micros = now.tv_sec.saturating_mul(1_000_000) + now.tv_nsec / 1_000;
    u64::try_from(micros).unwrap_or(0)
}
