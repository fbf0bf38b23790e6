//! What a benchmark says: one line a row of design.md §6, and the few sums that lead to it.

use std::time::{Duration, Instant};

/// Prints `row N | what | figure | goal | met`.
pub(crate) fn row(number: u8, what: &str, figure: &str, goal: &str, is_met: bool) {
    let verdict = if is_met { "met" } else { "NOT met" };
    println!("row {number} | {what} | {figure} | {goal} | {verdict}");
}

/// The value below which `share` of the samples lie; sorts them.
pub(crate) fn quantile(samples: &mut [Duration], share: f64) -> Duration {
    assert!(!samples.is_empty(), "nothing was measured");
    samples.sort_unstable();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index below the number of samples"
    )]
    let index = ((samples.len() - 1) as f64 * share) as usize;
    samples[index]
}

pub(crate) fn median(samples: &mut [Duration]) -> Duration {
    quantile(samples, 0.5)
}

/// What a call costs in nanoseconds: the median of `rounds`, each of `calls`.
pub(crate) fn nanos_per_call(rounds: u32, calls: u32, mut call: impl FnMut()) -> f64 {
    let mut samples: Vec<Duration> = (0..rounds)
        .map(|_| {
            let begun = Instant::now();
            (0..calls).for_each(|_| call());
            begun.elapsed()
        })
        .collect();
    median(&mut samples).as_secs_f64() * 1e9 / f64::from(calls)
}

pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Events a second.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts of a benchmark are far below 2^53"
)]
pub(crate) fn rate(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// Processor time that this process has used, user and system (proc(5): fields 14 and 15 of `stat`, 100 a second).
pub(crate) fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux has it");
    let (_, after_name) = stat.rsplit_once(") ").expect("the name is in brackets");
    let ticks: u64 = after_name
        .split(' ')
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().expect("a number of ticks"))
        .sum();
    Duration::from_millis(ticks * 10)
}
