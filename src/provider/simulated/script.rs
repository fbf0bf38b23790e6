//! An answer as steps in time.

use std::{collections::VecDeque, time::Duration};

use futures_util::{Stream, stream};

use crate::provider::ProviderError;

/// What comes next.
pub(super) enum Step<T> {
    Piece(T),
    Wait(Duration),
    /// The connection breaks.
    BreakOff,
}

/// What a piece of a stream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Token,
    Frame,
}

pub(super) fn broken_off() -> ProviderError {
    ProviderError::Broken("the simulated model breaks off, as its name says".to_owned())
}

/// Plays the steps; nothing follows a break.
pub(super) fn play<T: Send + 'static>(
    steps: Vec<Step<T>>,
) -> impl Stream<Item = Result<T, ProviderError>> + Send + 'static {
    stream::unfold(VecDeque::from(steps), |mut steps| async move {
        loop {
            match steps.pop_front()? {
                Step::Piece(piece) => return Some((Ok(piece), steps)),
                Step::Wait(time) => tokio::time::sleep(time).await,
                Step::BreakOff => return Some((Err(broken_off()), VecDeque::new())),
            }
        }
    })
}
