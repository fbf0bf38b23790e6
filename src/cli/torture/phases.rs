//! What is done to the gateway, in order: what needs room under the limit first, then up to the limit.

use futures_util::{StreamExt as _, stream};

use super::gateway::{Gateway, Outcome};
use crate::clock;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    HangUps,
    Repeats,
    Parallel,
}

pub(super) const ALL: [Kind; 3] = [Kind::HangUps, Kind::Repeats, Kind::Parallel];

/// Requests of one Idempotency-Key.
pub(super) const SAME: u32 = 3;

impl Kind {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::HangUps => "hang-ups",
            Self::Repeats => "repeats",
            Self::Parallel => "parallel",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) requests: u32,
    pub(super) parallel: u32,
}

impl Plan {
    pub(super) async fn run(self, kind: Kind, gateway: &Gateway) -> anyhow::Result<Vec<Outcome>> {
        // A tenth each for what leaves room, the rest for the limit.
        let few = (self.requests / 10).clamp(1, 100);
        Ok(match kind {
            Kind::HangUps => {
                let asking = stream::iter(0..few).map(|_| gateway.hang_up());
                asking.buffer_unordered(self.at_once()).collect().await
            }
            Kind::Repeats => self.repeats(few, gateway).await,
            Kind::Parallel => {
                let asking = stream::iter(0..self.requests).map(|_| gateway.complete(None));
                asking.buffer_unordered(self.at_once()).collect().await
            }
        })
    }

    /// Each key once alone, then again twice at once: a retry after an answer that got lost on the way.
    async fn repeats(self, keys: u32, gateway: &Gateway) -> Vec<Outcome> {
        let asking = stream::iter(0..keys).map(|_| async {
            let key = clock::new_id().to_string();
            let mut outcomes = vec![gateway.complete(Some(&key)).await];
            let again = (1..SAME).map(|_| gateway.complete(Some(&key)));
            outcomes.extend(futures_util::future::join_all(again).await);
            outcomes
        });
        let all: Vec<Vec<Outcome>> = asking.buffer_unordered(self.at_once()).collect().await;
        all.into_iter().flatten().collect()
    }

    fn at_once(self) -> usize {
        usize::try_from(self.parallel).unwrap_or(usize::MAX)
    }
}
