//! What black-box tests are written with: the built server, test users whose methods are requests, and an upstream
//! that does as it is told.

pub(in crate::http) mod admin;
pub(in crate::http) mod cli;
pub(in crate::http) mod gate;
pub(in crate::http) mod http;
pub(in crate::http) mod tenant;
pub(in crate::http) mod upstream;

use std::time::Duration;

pub(in crate::http) use self::{
    gate::Tollgate,
    tenant::{hard, soft},
    upstream::FakeOpenAi,
};

/// Whatever a test waits for comes sooner than this, or not at all.
pub(in crate::http) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for `future`; fails the test, naming `what`, if it does not come.
pub(in crate::http) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come within {PATIENCE:?}"))
}

/// Asks again and again until `probe` gives something.
pub(in crate::http) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut probe: impl FnMut() -> F,
) -> T {
    let probing = async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(what, probing).await
}
