//! A real binary, a real upstream, and test users whose methods are requests.

mod answer;
mod faulty_disk;
mod gate;
pub(crate) mod postgres;
mod prometheus;
mod receiver;
mod redis;
mod shifted_clock;
pub(crate) mod stripe;
mod tenant;
pub(crate) mod torture;
mod upstream;
mod wire;

use std::{future::Future, time::Duration};

pub(crate) use self::{
    answer::Answer,
    faulty_disk::{Calls, Fault, FaultyDisk, How},
    gate::{CliRun, Serve, Tollgate},
    postgres::{Certificates, Cluster, Database},
    prometheus::{Prometheus, in_repository, promtool},
    receiver::{Post, Receiver, Says},
    redis::{RedisCluster, RedisServer, free_port},
    shifted_clock::ShiftedClock,
    tenant::{Tenant, hard, soft},
    upstream::{Ends, FakeOpenAi, Frames, Reply, usage},
    wire::Wire,
};

/// Longer than anything takes on a busy machine: a test that gets here has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What databases of tests are copied from.
async fn bring_up_to_date(url: &str) {
    let url = url.parse().expect("an address");
    let store = tollgate::store::postgres::PostgresStore::open(&url).await;
    drop(store.expect("the schema is brought up to date"));
}

/// Waits until `condition` gives something; looks again after each short pause.
pub(crate) async fn eventually<T, F>(what: &str, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "not within {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
