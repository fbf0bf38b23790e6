//! Several servers on one Postgres database tell Stripe of everything once.

use std::time::Duration;

use futures_util::future::join;
use tollgate::{
    domain::{feature::FeatureKey, tenant::TenantRef, window::Window},
    store::stripe::Which,
};

use super::world::{MINUTE, SECOND, World, at};
use crate::support::{Database, stripe::StripeFault};

const TENANTS: [(&str, &str); 3] = [
    ("acme", "cus_acme"),
    ("other", "cus_other"),
    ("third", "cus_third"),
];

/// What one server does in a round: usage comes in, is drained, handed on and sent.
async fn work(world: &World, round: i64) {
    let mut last = None;
    for (number, (slug, _)) in (1..).zip(TENANTS) {
        let quantity = round * 10 + number;
        let event = world.record(slug, FeatureKey::Messages, quantity, None);
        last.get_or_insert((event.await, quantity));
    }
    if round % 3 == 2 {
        let (event, quantity) = last.unwrap();
        world.correct(-quantity, Some(event)).await;
    }
    if round % 2 == 0 {
        world.inner().hand_on(Which::Due).await.unwrap();
        world.send().await;
    } else {
        world.push().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_drain_and_send_at_once_tell_stripe_of_everything_once() {
    let database = Database::migrated();
    let nodes = World::start_two_on(&database, Duration::from_millis(400)).await;
    let [here, there] = &nodes;
    for (slug, customer) in &TENANTS[1..] {
        here.tenant(slug, "pro", Some(customer)).await;
    }
    there.app.refresh().await;
    let faults = [
        StripeFault::AppliesAndFails,
        StripeFault::Busy(None),
        StripeFault::AppliesAndHangsUp,
        StripeFault::Fails,
        StripeFault::HangsUp,
    ];
    for (round, fault) in (0..20).zip(faults.into_iter().cycle()) {
        here.stripe.next(fault);
        join(work(here, round), work(there, round)).await;
        let passes = if round % 4 == 3 {
            3 * MINUTE
        } else {
            20 * SECOND
        };
        here.clock.advance(passes);
        there.clock.advance(passes);
    }
    join(here.push(), there.push()).await;
    here.finish().await;

    let ever = Window::new(at("2020-01-01T00:00:00Z"), at("2100-01-01T00:00:00Z")).unwrap();
    for (slug, customer) in TENANTS {
        let used = here.total(slug, &FeatureKey::Messages).await;
        assert!(used > 0);
        let at_stripe = here.stripe.sum(customer, "msgs");
        assert_eq!(at_stripe, used, "{slug}: {:#?}", here.entries().await);
        let tenant: TenantRef = slug.parse().unwrap();
        let tenant = here.app.store.find_tenant(&tenant).await.unwrap().unwrap();
        let features = [FeatureKey::Messages];
        let told = there.app.store.told(tenant.tenant_id, &features, ever);
        assert_eq!(told.await.unwrap()[0].get(), used, "{slug}");
    }
    assert_eq!(here.stripe.lock_timeouts(), 0, "one call a lane at a time");
    for it in there.reconcile().await {
        assert_eq!(it.difference.get(), 0, "{it:?}");
    }
}
