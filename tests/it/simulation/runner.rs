//! Runs lists of operations, and shortens those that fail.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    ops::{self, About, Op},
    play::{Step, World},
    world::Setting,
};
use crate::support::torture::rounds;

/// How long a failing list is shortened at most.
const SHRINK_FOR: Duration = Duration::from_secs(40);

/// The program as this seed sets it up.
fn setting(seed: u64) -> Setting {
    Setting {
        fails: if seed.is_multiple_of(3) {
            "closed"
        } else {
            "open"
        },
        totals: if seed.is_multiple_of(5) {
            "memory"
        } else {
            "redb"
        },
        threads: if seed.is_multiple_of(4) { 2 } else { 1 },
    }
}

/// Plays a list to its end.
pub(super) fn play(setting: Setting, list: &[Op]) -> Step {
    let played = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(setting);
        for (index, op) in list.iter().enumerate() {
            world
                .play(op)
                .map_err(|why| format!("operation {index}, {op:?}: {why}"))?;
        }
        world.finish().map_err(|why| format!("at the end: {why}"))
    }));
    played.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("a panic: {}", text.unwrap_or_default()))
    })
}

/// Plays the lists of many seeds on all cores; a failure is told by the shortest list that was found to fail.
pub(super) fn simulate(short: u64, name: &'static str, about: About) {
    let rounds = Mutex::new(rounds(short, name));
    let has_failed = AtomicBool::new(false);
    let failure = Mutex::new(None);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|threads| {
        for _ in 0..cores {
            threads.spawn(|| {
                while !has_failed.load(Ordering::SeqCst) {
                    let Some(seed) = rounds.lock().unwrap().next() else {
                        return;
                    };
                    let list = ops::list(seed, about);
                    if let Err(why) = play(setting(seed), &list)
                        && !has_failed.swap(true, Ordering::SeqCst)
                    {
                        *failure.lock().unwrap() = Some((seed, list, why));
                    }
                }
            });
        }
    });
    if let Some((seed, list, why)) = failure.into_inner().unwrap() {
        let (list, why) = shorten(setting(seed), list, why);
        let setting = setting(seed);
        let list: String = list.iter().map(|op| format!("    {op:?},\n")).collect();
        panic!(
            "seed {seed} ({about:?}): {why}\nplay({setting:?}, &[\n{list}])\nagain: TORTURE_SEED={seed} TORTURE_{name}=1"
        );
    }
}

/// Takes out what is not needed for a failure: halves first, then ever smaller parts.
fn shorten(setting: Setting, mut list: Vec<Op>, mut why: String) -> (Vec<Op>, String) {
    let begun = Instant::now();
    let mut size = list.len();
    while size > 0 {
        let mut at = 0;
        while at < list.len() && begun.elapsed() < SHRINK_FOR {
            let mut shorter = list.clone();
            shorter.drain(at..(at + size).min(list.len()));
            match play(setting, &shorter) {
                Err(still) => (list, why) = (shorter, still),
                Ok(()) => at += size,
            }
        }
        size /= 2;
    }
    (list, why)
}
