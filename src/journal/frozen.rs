//! What is not drained yet at one instant, for a backup; and how a backup's rows are read again.

use std::ops::ControlFlow;

use redb::ReadTransaction;
use uuid::Uuid;

use super::{
    JournalError, row,
    tables::{self, Position},
};
use crate::{domain::usage::UsageEvent, store::usage::Seq};

/// A row of a backup holds at most so many events, so that it is read into little memory.
const EVENTS_OF_ROW: usize = 4096;

/// The undrained events of one instant, whatever is written or drained meanwhile.
pub struct Frozen {
    transaction: ReadTransaction,
    position: Position,
}

impl Frozen {
    pub(super) fn of(transaction: ReadTransaction) -> Result<Self, JournalError> {
        let position = tables::position(&transaction)
            .map_err(|fault| JournalError::Unreadable(fault.to_string()))?;
        Ok(Self {
            transaction,
            position,
        })
    }

    /// The journal's.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.position.id
    }

    /// The last event's.
    #[must_use]
    pub fn last(&self) -> Seq {
        self.position.last
    }

    /// Hands the events to `take` as rows, in order, and gives their number. Blocks.
    ///
    /// # Errors
    /// What `take` says; [`JournalError::Unreadable`].
    pub fn each_row<E: From<JournalError>>(
        &self,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<u64, E> {
        let mut waiting: Vec<Vec<u8>> = Vec::new();
        let mut count = 0;
        let mut outcome = Ok(());
        let read = tables::each_undrained(&self.transaction, |_, event| {
            waiting.push(row::encode_event(&event));
            count += 1;
            if waiting.len() < EVENTS_OF_ROW {
                return ControlFlow::Continue(());
            }
            let row = std::mem::take(&mut waiting);
            outcome = take(&row::encode_row(row.iter().map(Vec::as_slice)));
            if outcome.is_ok() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        outcome?;
        read.map_err(|fault| JournalError::Unreadable(fault.to_string()))?;
        if !waiting.is_empty() {
            take(&row::encode_row(waiting.iter().map(Vec::as_slice)))?;
        }
        Ok(count)
    }
}

/// The events of a row that [`Frozen::each_row`] gave.
///
/// # Errors
/// Why it can't be read: a newer version wrote it, or it is damaged.
pub fn read_row(row: &[u8]) -> Result<Vec<UsageEvent>, String> {
    row::decode_row(row).map_err(|error| error.to_string())
}
