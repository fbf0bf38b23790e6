//! How long a test with a long form goes on, and from which seed. `make torture` runs the long forms of all tests in
//! modules called `torture`; here are the variables that it sets.
//!
//! The library's own tests use this file too (`src/lib.rs`).

use std::{
    env, thread,
    time::{Duration, Instant},
};

/// The rounds of a test called `name`, each a seed: `TORTURE_{name}` many; else what fits into `TORTURE_SECONDS`;
/// else `short`. The first is `TORTURE_SEED`, else 1, and each next one is one more.
///
/// A failed round runs again alone with `TORTURE_SEED=seed TORTURE_{name}=1`.
pub(crate) fn rounds(short: u64, name: &'static str) -> Rounds {
    let begun = Instant::now();
    let seconds = number("TORTURE_SECONDS").map(Duration::from_secs);
    let (count, deadline) = match (number(&format!("TORTURE_{name}")), seconds) {
        (Some(count), _) => (count, None),
        (None, Some(seconds)) => (u64::MAX, Some(begun + seconds)),
        (None, None) => (short, None),
    };
    let first = number("TORTURE_SEED").unwrap_or(1);
    Rounds {
        name,
        first,
        next: first,
        left: count,
        deadline,
        begun,
    }
}

/// See [`rounds`]. Tells its seeds when dropped.
pub(crate) struct Rounds {
    name: &'static str,
    first: u64,
    next: u64,
    left: u64,
    deadline: Option<Instant>,
    begun: Instant,
}

impl Iterator for Rounds {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let is_over = self.deadline.is_some_and(|it| it <= Instant::now());
        if self.left == 0 || is_over {
            return None;
        }
        self.left -= 1;
        self.next = self.next.wrapping_add(1);
        Some(self.next.wrapping_sub(1))
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        let Self { name, first, .. } = self;
        let count = self.next.wrapping_sub(*first);
        let last = self.next.wrapping_sub(1);
        if thread::panicking() {
            eprintln!(
                "{name}: failed in round {count}; again: TORTURE_SEED={last} TORTURE_{name}=1"
            );
        } else {
            let took = self.begun.elapsed();
            eprintln!("{name}: {count} rounds, seeds {first} to {last}, in {took:.1?}");
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let value = env::var(variable).ok().filter(|it| !it.is_empty())?;
    let number = value.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable} is {value:?}: write a whole number")))
}
