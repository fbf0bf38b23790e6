//! The file as a crash at any moment would leave it.

use std::ops::Range;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{disk::Change, *};
use crate::torture;

/// What is lost in a crash.
#[derive(Clone, Copy, Debug)]
enum Crash {
    /// `kill -9`: what was written is there.
    Kill,
    /// What was not synced is there or not, in any order, or in part.
    PowerLoss,
}

/// A history of a journal: every change of its disk, and when what was answered.
struct History {
    changes: Vec<Change>,
    /// After how many changes the seqs up to here were answered `Ok`.
    appended: Vec<(usize, Seq)>,
    drained: Vec<(usize, Seq)>,
}

async fn record(durability: Durability) -> History {
    let (_directory, path) = directory();
    let watch = Arc::new(Watch::default());
    let journal = Journal::open_with(&path, watch.opener(durability), &clock()).unwrap();
    let (mut appended, mut drained) = (Vec::new(), Vec::new());
    for round in 0..14_u64 {
        let numbers = journal.last_seq().0 + 1..=journal.last_seq().0 + 1 + round % 4 * 7;
        let appends = numbers.map(|number| journal.append(event(tenant(1), number)));
        for seq in join_all(appends).await {
            appended.push((watch.change_count(), seq.unwrap()));
        }
        if round % 3 == 2 {
            let upto = Seq(journal.drained().0 + 9);
            let snapshot = total(tenant(1), i64::try_from(upto.0).unwrap());
            journal.mark_drained(upto, snapshot).await.unwrap();
            drained.push((watch.change_count(), journal.drained()));
        }
    }
    let changes = watch.changes();
    journal.close().await;
    History {
        changes,
        appended,
        drained,
    }
}

impl History {
    /// The file's bytes after a crash that let the first `count` changes begin.
    fn image(&self, count: usize, crash: Crash, seed: u64) -> Vec<u8> {
        let mut image = Vec::new();
        let begun = &self.changes[..count];
        let safe = match crash {
            Crash::Kill => count,
            Crash::PowerLoss => begun
                .iter()
                .rposition(|change| matches!(change, Change::Sync))
                .unwrap_or(0),
        };
        let mut dice = StdRng::seed_from_u64(seed << 32 | u64::try_from(count).unwrap());
        for (place, change) in begun.iter().enumerate() {
            let unsure = safe <= place;
            match change {
                Change::Sync => {}
                Change::SetLen(_) | Change::Write { .. } if unsure && dice.random_bool(0.4) => {}
                Change::SetLen(len) => image.resize(usize::try_from(*len).unwrap(), 0),
                Change::Write { offset, data } => {
                    let torn = unsure && dice.random_bool(0.3);
                    let kept = if torn { data.len() / 2 } else { data.len() };
                    let begin = usize::try_from(*offset).unwrap();
                    let range: Range<usize> = begin..begin + kept;
                    if image.len() < range.end {
                        image.resize(range.end, 0);
                    }
                    image[range].copy_from_slice(&data[..kept]);
                }
            }
        }
        image
    }

    /// Opens the image, and compares it with what had been answered.
    async fn check(&self, count: usize, crash: Crash, seed: u64, path: &Path) {
        let answered = |answers: &[(usize, Seq)]| {
            let until = answers.partition_point(|(changes, _)| *changes <= count);
            answers[..until].last().map_or(Seq(0), |(_, seq)| *seq)
        };
        let (appended, drained) = (answered(&self.appended), answered(&self.drained));
        fs::write(path, self.image(count, crash, seed)).unwrap();
        let journal = Journal::open(path, Durability::Process, clock()).unwrap();
        let place = format!("{crash:?} after {count} changes, seed {seed}");
        if let Some(moved) = journal.damaged_moved_to() {
            assert_eq!(appended, Seq(0), "{place}: taken for damaged");
            fs::remove_file(moved).unwrap();
        }
        assert!(appended <= journal.last_seq(), "{place}");
        assert!(drained <= journal.drained(), "{place}");

        let events = journal.read_undrained(1_000).await.unwrap();
        let expected: Vec<_> = (journal.drained().0 + 1..=journal.last_seq().0)
            .map(|number| (Seq(number), event(tenant(1), number)))
            .collect();
        assert_eq!(events, expected, "{place}");
        let settled = journal.load_snapshot().await.unwrap();
        let settled = settled.first().map_or(0, |(_, total)| total.get());
        let drained = i64::try_from(journal.drained().0).unwrap();
        assert_eq!(settled, drained, "{place}: totals and rows disagree");
        journal.close().await;
    }
}

async fn crash_at_every_change(durability: Durability, crash: Crash) {
    let (_directory, path) = directory();
    for seed in torture::rounds(1, "CRASHES") {
        let history = record(durability).await;
        for count in 0..=history.changes.len() {
            history.check(count, crash, seed, &path).await;
        }
    }
}

#[tokio::test]
async fn what_was_ok_survives_power_loss_at_any_moment() {
    crash_at_every_change(Durability::Full, Crash::PowerLoss).await;
}

#[tokio::test]
async fn what_was_ok_survives_a_kill_at_any_moment() {
    crash_at_every_change(Durability::Full, Crash::Kill).await;
}

#[tokio::test]
async fn with_process_durability_what_was_ok_survives_a_kill_at_any_moment() {
    crash_at_every_change(Durability::Process, Crash::Kill).await;
}

#[tokio::test]
async fn the_bytes_of_an_open_file_hold_all_that_was_ok() {
    for durability in [Durability::Full, Durability::Process] {
        let (directory, path) = directory();
        let journal = Journal::open(&path, durability, clock()).unwrap();
        for number in 1..=20 {
            journal.append(event(tenant(1), number)).await.unwrap();
            let copy = directory.path().join("copy.redb");
            fs::write(&copy, fs::read(&path).unwrap()).unwrap();
            let copy = Journal::open(&copy, Durability::Process, clock()).unwrap();
            let events = copy.read_undrained(100).await.unwrap();
            assert_eq!(seqs(&events), (1..=number).collect::<Vec<_>>());
            copy.close().await;
        }
    }
}
