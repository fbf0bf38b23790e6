//! The N-th call on the files of a running server fails: nothing is answered uncounted, and it heals in place.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;

use crate::support::{Answer, Calls, Fault, FaultyDisk, How, Serve, Tenant, Tollgate, torture};

const JOURNAL: &str = "/cache.redb";
/// With its log and index.
const STORE: &str = "/tollgate.db";

/// The calls of which each of the first so many is the first to fail.
const CALLS: u64 = 300;
const KINDS: [(Calls, How); 7] = [
    (Calls::WRITE, How::Broken),
    (Calls::WRITE, How::Full),
    (Calls::WRITE, How::Short),
    (Calls::SYNC, How::Broken),
    (Calls::SYNC, How::Full),
    (Calls::ALL, How::Broken),
    (Calls::ALL, How::Full),
];
/// [`CALLS`] of each of [`KINDS`]. A prime is as good as a shuffle: counting by it comes to each once.
const FAULTS: u64 = CALLS * KINDS.len() as u64;
const STRIDE: u64 = 1_231;
/// So many calls that the fault lasts until the disk is healed.
const LASTING: u64 = 1 << 40;
/// How many failures of a lasting fault are waited for: more than the tries of one commit.
const SEEN_OF_LASTING: u64 = 8;
const LONGEST: Duration = Duration::from_secs(60);

/// Fault `number` of [`FAULTS`], in an order that mixes calls and kinds; every fourth lasts.
fn fault(number: u64, path: &'static str) -> Fault {
    let place = number * STRIDE % FAULTS;
    let (calls, how) = KINDS[usize::try_from(place / CALLS).unwrap()];
    Fault {
        path,
        calls,
        how,
        good: place % CALLS,
        bad: [1, 2, 7, LASTING][usize::try_from(number % 4).unwrap()],
    }
}

/// A server on a faulty disk, and what it has answered.
struct Bench {
    disk: FaultyDisk,
    gate: Tollgate,
    acme: Tenant,
    answered: i64,
}

impl Bench {
    async fn start(serve: Serve) -> Self {
        let disk = FaultyDisk::build();
        let gate = disk.under(serve).start().await;
        let acme = gate.tenant("acme").create().await;
        Self {
            disk,
            gate,
            acme,
            answered: 0,
        }
    }

    /// Asks in every way at once, then for totals, which brings the usage to the store.
    async fn ask(&mut self) {
        let stream = json!({ "stream": true, "max_tokens": 8 });
        let whole = json!({ "max_tokens": 8 });
        let asked = [stream, whole.clone(), whole].map(|more| self.acme.complete(more));
        let (answers, native) =
            futures_util::future::join(join_all(asked), self.acme.chat("hi")).await;
        for answer in answers.into_iter().chain([native]) {
            self.answered += i64::from(is_answered(&answer));
        }
        let totals = self.acme.get(TOTALS).await;
        assert!(matches!(totals.status, 200 | 503), "{}", totals.text);
    }

    /// Asks until the fault has happened and the server is well again.
    async fn survive(&mut self, fault: Fault) {
        self.disk.arm(fault);
        // Between two tries to heal the journal waits up to a second, so this is bounded by time: how often one can
        // ask meanwhile is the machine's.
        let begun = Instant::now();
        while self.disk.failed() < fault.bad.min(SEEN_OF_LASTING) {
            self.ask().await;
            assert!(begun.elapsed() < LONGEST, "{fault:?} never came");
        }
        // A short write is no error: the rest is written by the next.
        if fault.bad == LASTING && fault.how != How::Short {
            self.is_told(fault).await;
        }
        self.disk.heal();
        self.gate.is_ready().await;
        let before = self.answered;
        self.ask().await;
        assert_eq!(self.answered, before + 4, "{fault:?}: healed in place");
        let used = self.acme.used("messages").await;
        let total = self.acme.total("messages").await;
        assert_eq!(
            (used, total),
            (self.answered, self.answered),
            "{fault:?}: counted is what was answered"
        );
        assert!(
            !self.gate.log().contains("panicked"),
            "{fault:?}: {}",
            self.gate.log()
        );
    }

    /// A fault that lasts is seen: `/readyz` names the part.
    async fn is_told(&mut self, fault: Fault) {
        let part = if fault.path == JOURNAL {
            "journal"
        } else {
            "store"
        };
        loop {
            let ready = self.gate.get("/readyz").await.json();
            if ready["parts"][part]["status"] != "ok" {
                let expected = if part == "journal" {
                    "not_ready"
                } else {
                    "degraded"
                };
                assert_eq!(ready["status"], expected, "{fault:?}");
                return;
            }
            // What is not asked to write does not notice.
            self.ask().await;
        }
    }

    /// After a restart too: what was answered is what live totals, store, events and rollups say.
    async fn finish(self) {
        let gate = self.gate.restart().await;
        let acme = self.acme.at(&gate);
        let counted = (acme.used("messages").await, acme.total("messages").await);
        assert_eq!(counted, (self.answered, self.answered));
        let settings = gate.settings(); // keeps the data dir
        gate.finish().await;
        assert_eq!(settings.stored_events(), self.answered);
    }
}

const TOTALS: &str = "/api/v1/usage/totals?feature_key=messages&period_start=2020-01-01T00:00:00Z&period_end=2100-01-01T00:00:00Z";

/// Whether the client has its answer; else it must have been told that usage can't be written down.
fn is_answered(answer: &Answer) -> bool {
    if answer.status == 200 {
        let is_stream = answer.header("content-type") == Some("text/event-stream");
        let is_whole = !is_stream || answer.text.ends_with("data: [DONE]\n\n");
        assert!(
            is_whole || answer.text.contains("usage_store_unavailable"),
            "{}",
            answer.text
        );
        return is_whole;
    }
    let told = (answer.status, answer.code());
    assert_eq!(
        told,
        (503, "usage_store_unavailable".to_owned()),
        "{}",
        answer.text
    );
    false
}

async fn whichever_call_fails(path: &'static str, name: &'static str) {
    let mut bench = Bench::start(Tollgate::serve()).await;
    for seed in torture::rounds(6, name) {
        bench.survive(fault(seed, path)).await;
    }
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_call_on_the_journal_fails_nothing_is_answered_uncounted_and_it_heals_in_place() {
    whichever_call_fails(JOURNAL, "JOURNAL_DISK_FAULTS").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_call_on_the_store_fails_every_answer_arrives_there_once_it_works_again() {
    whichever_call_fails(STORE, "STORE_DISK_FAULTS").await;
}

/// A directory that power loss takes out of the one above is lost with all that is in it.
#[tokio::test]
async fn a_new_data_dir_is_synced_into_the_directory_above() {
    let disk = FaultyDisk::build();
    let serve = disk.under(Tollgate::serve());
    disk.arm(Fault {
        path: "/.tmp", // as temporary directories are called
        calls: Calls::SYNC,
        how: How::Broken,
        good: 0,
        bad: LASTING,
    });
    let ended = serve
        .clone()
        .try_start()
        .await
        .err()
        .expect("it must not start");
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("data dir"), "{}", ended.stderr);
    disk.heal();
    serve.start().await.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_a_failing_disk_says_so_or_heals_and_the_next_one_finds_everything() {
    let mut bench = Bench::start(Tollgate::serve()).await;
    for seed in torture::rounds(10, "START_FAULTS") {
        bench.ask().await;
        bench.gate.kill9();
        let path = [JOURNAL, STORE][usize::try_from(seed % 2).unwrap()];
        // A start opens few times, and reads and writes more often.
        let (calls, good) = match seed / 2 % 2 {
            0 => (Calls::OPEN, seed / 4 % 8),
            _ => (Calls::ALL, seed / 4 * 7 % 100),
        };
        bench.disk.arm(Fault {
            path,
            calls,
            how: How::Broken,
            good,
            bad: LASTING,
        });
        let started = bench.gate.settings().try_start().await;
        bench.disk.heal();
        match started {
            Ok(gate) => bench.gate = gate,
            Err(ended) => {
                let told = format!("seed {seed}: {}", ended.stderr);
                assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{told}");
                assert!(ended.stderr.contains(path), "{told}");
                assert!(!ended.stderr.contains("panicked"), "{told}");
                bench.gate = bench.gate.settings().start().await;
            }
        }
        bench.gate.is_ready().await;
        bench.acme = bench.acme.at(&bench.gate);
        let used = bench.acme.used("messages").await;
        assert_eq!(used, bench.answered, "seed {seed}");
    }
    bench.finish().await;
}

/// Stopping writes the store's log back into its file and takes the log away: the one time that happens to a small store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_call_fails_while_the_stores_log_is_written_back_the_next_start_finds_everything()
{
    let mut bench = Bench::start(Tollgate::serve()).await;
    let mut failed = 0;
    for seed in torture::rounds(12, "CHECKPOINT_FAULTS") {
        bench.ask().await;
        // What is drained is in the log; a stop then has little else to do than to write it back.
        let answered = bench.answered;
        assert_eq!(bench.acme.total("messages").await, answered);
        let (calls, how) = KINDS[usize::try_from(seed % 7).unwrap()];
        bench.disk.arm(Fault {
            path: STORE,
            calls,
            how,
            good: seed * 13 % 60,
            bad: [1, 2, 7, LASTING][usize::try_from(seed % 4).unwrap()],
        });
        let code = bench.gate.terminate().await;
        failed += u64::from(bench.disk.failed() > 0);
        bench.disk.heal();
        let log = bench.gate.log();
        assert!(matches!(code, 0 | 1), "seed {seed}: exit {code}: {log}");
        assert!(!log.contains("panicked"), "seed {seed}: {log}");
        bench.gate = bench.gate.settings().start().await;
        bench.acme = bench.acme.at(&bench.gate);
        let counted = (
            bench.acme.used("messages").await,
            bench.acme.total("messages").await,
        );
        assert_eq!(counted, (answered, answered), "seed {seed}");
    }
    assert!(failed > 0, "no fault came while anything was written back");
    bench.finish().await;
}
