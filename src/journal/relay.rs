//! Hands the answers of a commit to all who wait on one core at once. A runtime of one thread that is woken from another
//! takes a system call for it: one a commit, not one for each who waits.

use std::{
    cell::RefCell,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, oneshot};

use super::JournalError;
use crate::store::usage::Seq;

type Answer = Result<Seq, JournalError>;

thread_local! {
    /// The relay that runs on this thread.
    static HERE: RefCell<Option<Arc<Relay>>> = const { RefCell::new(None) };
}

/// What was answered to those who wait on one thread, until that thread hands it on.
#[derive(Debug, Default)]
struct Relay {
    answers: Mutex<Vec<(oneshot::Sender<Answer>, Answer)>>,
    came: Notify,
}

impl Relay {
    fn answers(&self) -> MutexGuard<'_, Vec<(oneshot::Sender<Answer>, Answer)>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands on what is answered to those who wait on this thread, until it is dropped. For a runtime of one thread: on
/// others, tasks go where the relay is not.
pub async fn relay_answers() {
    /// Without a relay, whoever waits is answered itself.
    struct Running;

    impl Drop for Running {
        fn drop(&mut self) {
            // Where the thread itself ends, there is nothing to take away.
            let _ = HERE.try_with(|here| here.take());
        }
    }

    let relay = Arc::new(Relay::default());
    HERE.set(Some(Arc::clone(&relay)));
    let _running = Running;
    loop {
        relay.came.notified().await;
        let answers = std::mem::take(&mut *relay.answers());
        for (waiter, answer) in answers {
            // Who went away has its event written all the same.
            let _ = waiter.send(answer);
        }
    }
}

/// Where the answer to an append goes.
#[derive(Debug)]
pub(super) struct Waiter {
    sender: oneshot::Sender<Answer>,
    relay: Option<Arc<Relay>>,
}

impl Waiter {
    /// Made by whoever is going to wait, on its own thread.
    pub(super) fn new() -> (Self, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        let relay = HERE.with_borrow(Option::clone);
        (Self { sender, relay }, receiver)
    }

    pub(super) fn refuse(self, error: JournalError) {
        let _ = self.sender.send(Err(error));
    }
}

/// The answers of one commit. Who waits on a core with a relay is woken when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Answers(Vec<Arc<Relay>>);

impl Answers {
    pub(super) fn send(&mut self, waiter: Waiter, seq: Seq) {
        let Some(relay) = waiter.relay else {
            // Who went away has its event written all the same.
            let _ = waiter.sender.send(Ok(seq));
            return;
        };
        relay.answers().push((waiter.sender, Ok(seq)));
        if !self.0.iter().any(|known| Arc::ptr_eq(known, &relay)) {
            self.0.push(relay);
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        for relay in &self.0 {
            relay.came.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
    }

    /// Answers from another thread, as the one that writes does.
    fn answer_elsewhere(waiters: Vec<Waiter>) {
        thread::spawn(move || {
            let mut answers = Answers::default();
            for (number, waiter) in (1..).zip(waiters) {
                answers.send(waiter, Seq(number));
            }
        })
        .join()
        .unwrap();
    }

    async fn wait(receivers: Vec<oneshot::Receiver<Answer>>) -> Vec<Answer> {
        let mut answers = Vec::new();
        for receiver in receivers {
            let answer = tokio::time::timeout(Duration::from_secs(10), receiver);
            answers.push(answer.await.expect("it is answered").unwrap());
        }
        answers
    }

    #[test]
    fn who_waits_beside_a_relay_is_answered_and_so_is_who_does_not() {
        let alone = Waiter::new();
        let runtime = runtime();
        runtime.spawn(relay_answers());
        let (relayed, answers) = runtime.block_on(async {
            tokio::task::yield_now().await;
            let (mut waiters, mut receivers): (Vec<_>, Vec<_>) =
                (0..3).map(|_| Waiter::new()).unzip();
            let relayed = waiters.iter().all(|waiter| waiter.relay.is_some());
            waiters.push(alone.0);
            receivers.push(alone.1);
            answer_elsewhere(waiters);
            (relayed, wait(receivers).await)
        });
        assert!(relayed);
        assert_eq!(answers, (1..=4).map(|it| Ok(Seq(it))).collect::<Vec<_>>());
    }

    #[test]
    fn after_a_relay_has_ended_those_on_its_thread_are_answered_themselves() {
        let runtime = runtime();
        let relaying = runtime.spawn(relay_answers());
        runtime.block_on(async {
            tokio::task::yield_now().await;
            relaying.abort();
            assert!(relaying.await.unwrap_err().is_cancelled());
            let (waiter, receiver) = Waiter::new();
            assert!(waiter.relay.is_none());
            answer_elsewhere(vec![waiter]);
            assert_eq!(wait(vec![receiver]).await, [Ok(Seq(1))]);
        });
    }
}
