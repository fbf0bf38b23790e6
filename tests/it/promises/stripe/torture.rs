//! Histories made from seeds, the same in every run of the tests; as many as one likes with `make torture`.

use std::{cell::RefCell, fmt::Debug, time::Duration};

use proptest::{
    prelude::*,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};
use rand::{SeedableRng as _, rngs::StdRng};

use super::{simulation, webhooks};
use crate::support::torture::rounds;

thread_local! {
    /// What the pauses of this thread's histories are drawn by.
    static DICE: RefCell<StdRng> = RefCell::new(StdRng::seed_from_u64(0));
}

/// Anything up to `longest`, by the seed of the history that is played.
pub(super) fn pause(longest: Duration) -> Duration {
    let micros = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
    DICE.with_borrow_mut(|dice| Duration::from_micros(dice.random_range(0..=micros)))
}

/// Plays what `histories` makes of each seed; a failure tells the seed and the shortest history found that fails.
fn play_all<H>(name: &'static str, short: u64, histories: &H, play: impl AsyncFn(H::Value))
where
    H: Strategy,
    H::Value: Debug,
{
    for seed in rounds(short, name) {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let config = ProptestConfig {
            cases: 1,
            max_shrink_iters: 60,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        let dice = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let played = TestRunner::new_with_rng(config, dice).run(histories, |history| {
            DICE.with_borrow_mut(|dice| *dice = StdRng::seed_from_u64(seed));
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(play(history));
            Ok(())
        });
        if let Err(failed) = played {
            panic!("seed {seed}: {failed}\nagain: TORTURE_SEED={seed} TORTURE_{name}=1");
        }
    }
}

#[test]
fn stripe_has_what_was_used() {
    let histories = proptest::collection::vec(simulation::op(), 1..40);
    play_all("STRIPE", 24, &histories, async |ops: Vec<_>| {
        simulation::play(&ops).await;
    });
}

#[test]
fn any_order_with_repeats_ends_the_same() {
    let order = Just((0..webhooks::STORY).collect::<Vec<_>>()).prop_shuffle();
    let repeats = proptest::collection::vec(0..webhooks::STORY, 0..8);
    let histories = (order, repeats);
    play_all(
        "STRIPE_WEBHOOKS",
        24,
        &histories,
        async |(order, repeats): (Vec<_>, Vec<_>)| {
            webhooks::play(&order, &repeats).await;
        },
    );
}
