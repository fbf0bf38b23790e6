//! Whatever happens, in whatever order: in the end Stripe has what was used, no more and no less.

use std::time::Duration;

use proptest::prelude::*;
use tollgate::{domain::feature::FeatureKey, store::stripe::Which};

use super::world::{World, at};
use crate::support::stripe::StripeFault;

#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    /// Of tenant `acme` or `other`, so many seconds ago.
    Use {
        other: bool,
        quantity: i64,
        ago: u64,
    },
    Correct {
        quantity: i64,
    },
    /// Takes the last use of `acme` back.
    TakeBack,
    Pass {
        seconds: u64,
    },
    /// To the next call.
    Fault(StripeFault),
    /// So many of the next attempts are not noted.
    Die {
        attempts: u32,
    },
    HandOn,
    Send,
    Push,
    Confirm,
}

fn fault() -> impl Strategy<Value = StripeFault> {
    prop_oneof![
        Just(StripeFault::Busy(Some("30"))),
        Just(StripeFault::Busy(None)),
        Just(StripeFault::Fails),
        Just(StripeFault::AppliesAndFails),
        Just(StripeFault::HangsUp),
        Just(StripeFault::AppliesAndHangsUp),
        Just(StripeFault::WrongKey),
    ]
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let passing = prop_oneof![5 => 1_u64..90, 2 => 600_u64..7200, 1 => 80_000_u64..100_000];
    prop_oneof![
        6 => (any::<bool>(), 1_i64..50, 0_u64..200).prop_map(|(other, quantity, ago)| Op::Use { other, quantity, ago }),
        1 => (-3_i64..4).prop_filter("not zero", |it| *it != 0).prop_map(|quantity| Op::Correct { quantity }),
        1 => Just(Op::TakeBack),
        4 => passing.prop_map(|seconds| Op::Pass { seconds }),
        4 => fault().prop_map(Op::Fault),
        1 => (1_u32..3).prop_map(|attempts| Op::Die { attempts }),
        2 => Just(Op::HandOn),
        3 => Just(Op::Send),
        2 => Just(Op::Push),
        1 => Just(Op::Confirm),
    ]
}

pub(super) async fn play(ops: &[Op]) {
    let world = World::start().await;
    world.tenant("other", "pro", Some("cus_other")).await;
    let mut last = None;
    for op in ops {
        match *op {
            Op::Use {
                other,
                quantity,
                ago,
            } => {
                let slug = if other { "other" } else { "acme" };
                let used_at = world.clock.now().minus(Duration::from_secs(ago));
                let used_at = used_at.max(at("2026-11-24T12:00:00Z"));
                let event = world
                    .record(slug, FeatureKey::Messages, quantity, Some(used_at))
                    .await;
                if !other {
                    last = Some((event, quantity));
                }
            }
            Op::Correct { quantity } => world.correct(quantity, None).await,
            Op::TakeBack => {
                if let Some((event, quantity)) = last.take() {
                    world.correct(-quantity, Some(event)).await;
                }
            }
            Op::Pass { seconds } => world.clock.advance(Duration::from_secs(seconds)),
            Op::Fault(fault) => world.stripe.next(fault),
            Op::Die { attempts } => world.die(attempts),
            Op::HandOn => {
                world.inner().hand_on(Which::Due).await.unwrap();
            }
            Op::Send => world.send().await,
            Op::Push => {
                world.inner().hand_on(Which::All).await.unwrap();
                world.send().await;
            }
            // Stripe may be in the way of it.
            Op::Confirm => drop(world.inner().confirm_some().await),
        }
    }
    world.finish().await;
    for (slug, customer) in [("acme", "cus_acme"), ("other", "cus_other")] {
        let used = world.total(slug, &FeatureKey::Messages).await;
        assert_eq!(
            world.stripe.sum(customer, "msgs"),
            used,
            "{slug}: {:#?}",
            world.entries().await
        );
    }
    assert_eq!(world.stripe.lock_timeouts(), 0);
    let found = world.reconcile().await;
    for it in found {
        assert_eq!(it.difference.get(), 0, "{it:?}");
    }
}

/// Found by the simulation: it was given up, for it was no longer in time and an attempt had failed.
#[tokio::test]
async fn a_cancel_that_failed_once_and_then_comes_too_late_is_told_as_an_event() {
    let used = Op::Use {
        other: false,
        quantity: 1,
        ago: 0,
    };
    for fault in [StripeFault::Fails, StripeFault::AppliesAndFails] {
        for (first, then) in [(32, 98_424), (79_000, 9_000)] {
            play(&[
                used,
                Op::Push,
                Op::TakeBack,
                Op::Fault(fault),
                Op::Pass { seconds: first },
                Op::Push,
                Op::Pass { seconds: then },
                Op::Push,
            ])
            .await;
        }
    }
}
