//! A Stripe of which anything may become a call, under load, and a server that is killed again and again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::{
    promises::stripe::served::{billed, serve, sums_agree},
    support::{PATIENCE, Tenant, Tollgate, stripe::FakeStripe, torture},
};

const TENANTS: [&str; 3] = ["one", "two", "three"];
const CLIENTS: usize = 4;
/// Long enough for a few intervals.
const LOAD: Duration = Duration::from_millis(2_500);

async fn load(tenant: Tenant, stop: Arc<AtomicBool>) {
    let body = json!({ "message": "hi" });
    while !stop.load(Ordering::SeqCst) && tenant.try_post("/api/v1/chat", &body).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What is still to be sent after a push.
async fn left(gate: &Tollgate) -> Value {
    let pending = ["stripe", "outbox", "list", "--status", "pending"];
    gate.cli(&["stripe", "push"]).await;
    gate.cli_json(&pending).await["items"].take()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_kills_and_failures_stripe_gets_what_was_used() {
    let stripe = FakeStripe::start().await;
    let mut gate = serve(&stripe).await;
    let mut tenants = Vec::new();
    for slug in TENANTS {
        tenants.push(billed(&gate, slug, 1_000_000).await);
    }
    let (mut kills, begun) = (0, Instant::now());
    for seed in torture::rounds(3, "STRIPE") {
        stripe.chaos(Some(seed));
        let stop = Arc::new(AtomicBool::new(false));
        let clients = tenants.iter().flat_map(|tenant| vec![tenant; CLIENTS]);
        let clients = clients.map(|it| tokio::spawn(load(it.at(&gate), Arc::clone(&stop))));
        let clients: Vec<_> = clients.collect();
        tokio::time::sleep(LOAD).await;
        gate.kill9();
        stop.store(true, Ordering::SeqCst);
        for client in join_all(clients).await {
            client.unwrap();
        }
        gate = gate.restart().await;
        kills += 1;
    }
    stripe.chaos(None);
    // What a kill left leased comes back when its lease ends, what failed after its pause: pauses double, so the last
    // may be longer than all before.
    let deadline = Instant::now() + 5 * PATIENCE + 3 * begun.elapsed();
    loop {
        let left = left(&gate).await;
        if left == json!([]) {
            break;
        }
        assert!(Instant::now() < deadline, "it is never all sent: {left}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let mut used = 0;
    for (slug, tenant) in TENANTS.iter().zip(&tenants) {
        let tenant = tenant.at(&gate);
        used += tenant.total("messages").await;
        sums_agree(&stripe, &tenant, &format!("cus_{slug}")).await;
    }
    assert_eq!(stripe.lock_timeouts(), 0);
    let found = gate.cli_json(&["stripe", "reconcile"]).await;
    for item in found["items"].as_array().unwrap() {
        assert_eq!(item["difference"], 0, "{item}");
    }
    let (events, calls) = (stripe.events().len(), stripe.calls());
    eprintln!(
        "{used} chats, {kills} kills: {calls} calls, {events} meter events, and both sides agree"
    );
    gate.finish().await;
}
