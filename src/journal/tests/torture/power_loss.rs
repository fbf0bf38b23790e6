//! The bytes that a crash at any moment would leave, and what a journal that is opened on them says.

use std::collections::HashMap;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    super::disk::{Change, Disk},
    *,
};
use crate::torture;

/// The sizes in which disks write: what is smaller is there whole or not at all, but for the last that was written.
const SECTORS: [usize; 2] = [512, 4096];
/// How often each moment is tried with each size.
const TRIES: usize = 2;

/// What a crash leaves of the changes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    /// As after `kill -9`.
    All,
    /// Any of their sectors of this size, later ones without earlier ones too; one may be torn.
    Sectors(usize),
}

/// What was asked of a journal and answered by it, up to some moment.
#[derive(Clone, Copy, Debug, Default)]
struct Answered {
    /// Appends up to this number were begun.
    begun: u64,
    appended: Seq,
    drained: Seq,
}

/// A journal's life: the disk it began with, each change of it, and after how many changes what was answered.
struct History {
    base: Vec<u8>,
    changes: Vec<Change>,
    answers: Vec<(usize, Answered)>,
}

/// Event `number` is the one with that seq: its content follows from it.
fn numbered(number: u64) -> UsageEvent {
    let owner = u8::try_from(number % 3).unwrap();
    let mut event = event(tenant(owner), number);
    event.user = "u".repeat(usize::try_from(number * 37 % 128).unwrap());
    event
}

/// The totals as of `upto`: one a tenant that has any, and one that comes and goes.
fn totals(upto: u64) -> HashMap<CounterKey, Quantity> {
    let count = |owner: u64| (1..=upto).filter(|number| number % 3 == owner).count();
    let mut totals: HashMap<_, _> = (0..3)
        .map(|owner| (counter(tenant(owner)), count(owner.into())))
        .collect();
    totals.insert(counter(tenant(9)), usize::from(upto.is_multiple_of(2)));
    totals.retain(|_, count| *count > 0);
    let quantity = |count: usize| Quantity::new(i64::try_from(count).unwrap());
    totals
        .into_iter()
        .map(|(key, count)| (key, quantity(count)))
        .collect()
}

fn snapshot(upto: u64) -> Snapshot {
    let totals = totals(upto);
    let counters = [0, 1, 2, 9].map(|owner| counter(tenant(owner)));
    Snapshot {
        removed: counters
            .into_iter()
            .filter(|key| !totals.contains_key(key))
            .collect(),
        changed: totals.into_iter().collect(),
    }
}

/// Lets a journal live on `disk` for some rounds of appends and marks.
async fn live(
    disk: &Disk,
    path: &Path,
    durability: Durability,
    rounds: u64,
    dice: &mut StdRng,
) -> History {
    let base = disk.bytes();
    let journal = Journal::open_with(path, disk.opener(durability), &clock()).unwrap();
    let mut now = Answered {
        begun: journal.last_seq().0,
        appended: journal.last_seq(),
        drained: journal.drained(),
    };
    let mut answers = vec![(disk.change_count(), now)];
    for _ in 0..rounds {
        let first = now.appended.0 + 1;
        now.begun += dice.random_range(1..40);
        answers.push((disk.change_count(), now));
        let appends = (first..=now.begun).map(|number| journal.append(numbered(number)));
        let upto = dice.random_range(0..=now.appended.0);
        let mark = async {
            if now.drained.0 < upto {
                journal.mark_drained(Seq(upto), snapshot(upto)).await
            } else {
                Ok(())
            }
        };
        // Unconstrained, or tokio may put some off when the task has done much, and they would come in another order.
        let work = futures_util::future::join(join_all(appends), mark);
        let (seqs, marked) = tokio::task::unconstrained(work).await;
        let seqs: Vec<_> = seqs.into_iter().map(Result::unwrap).collect();
        assert_eq!(seqs, (first..=now.begun).map(Seq).collect::<Vec<_>>());
        marked.unwrap();
        now.appended = Seq(now.begun);
        now.drained = journal.drained();
        answers.push((disk.change_count(), now));
    }
    let changes = disk.changes();
    journal.close().await;
    History {
        base,
        changes,
        answers,
    }
}

/// The moment of a crash.
struct Moment<'a> {
    /// Shared by all moments between two syncs.
    synced: Arc<Vec<u8>>,
    unsynced: &'a [Change],
    answered: Answered,
    told: String,
}

impl History {
    /// Every moment before, between and after the changes.
    fn moments(&self) -> Vec<Moment<'_>> {
        let mut synced = Arc::new(self.base.clone());
        let mut first_unsynced = 0;
        let moment = |count: usize| {
            if count > 0 && matches!(self.changes[count - 1], Change::Sync) {
                let mut bytes = (*synced).clone();
                let changes = &self.changes[first_unsynced..count];
                changes.iter().for_each(|change| change.apply(&mut bytes));
                (synced, first_unsynced) = (Arc::new(bytes), count);
            }
            let until = self.answers.partition_point(|answer| answer.0 <= count);
            let answered = self.answers[..until].last().map(|answer| answer.1);
            Moment {
                synced: Arc::clone(&synced),
                unsynced: &self.changes[first_unsynced..count],
                answered: answered.unwrap_or_default(),
                told: format!("after {count} of {} changes", self.changes.len()),
            }
        };
        (0..=self.changes.len()).map(moment).collect()
    }
}

impl Moment<'_> {
    fn bytes(&self, left: Left, dice: &mut StdRng) -> Vec<u8> {
        let mut bytes = self.synced.to_vec();
        let chance = [0.1, 0.5, 0.9][dice.random_range(0..3)];
        for change in self.unsynced {
            match (left, change) {
                (Left::Nothing, _) => {}
                (Left::All, change) => change.apply(&mut bytes),
                (Left::Sectors(size), Change::Write { offset, data }) => {
                    keep_some(&mut bytes, *offset, data, size, chance, dice);
                }
                (Left::Sectors(_), Change::SetLen(_) | Change::Sync) => {
                    if dice.random_bool(chance) {
                        change.apply(&mut bytes);
                    }
                }
            }
        }
        bytes
    }
}

/// Writes some sectors of `data`; the last of them perhaps not to its end.
fn keep_some(
    bytes: &mut [u8],
    offset: usize,
    data: &[u8],
    size: usize,
    chance: f64,
    dice: &mut StdRng,
) {
    let mut begin = 0;
    while begin < data.len() {
        let whole = (offset + begin + 1).next_multiple_of(size) - offset;
        let end = whole.min(data.len());
        let is_last = end == data.len();
        let torn = is_last && dice.random_bool(0.2);
        let kept = if torn {
            dice.random_range(begin..end)
        } else {
            end
        };
        // What lies beyond the length that the disk knows is not there.
        if dice.random_bool(chance)
            && let Some(sector) = bytes.get_mut(offset + begin..offset + kept)
        {
            sector.copy_from_slice(&data[begin..kept]);
        }
        begin = end;
    }
}

/// Opens a journal on `bytes`, and compares it with what had been answered.
async fn check(bytes: Vec<u8>, answered: Answered, path: &Path, told: &str) {
    let disk = Disk::holding(bytes);
    let journal = Journal::open_with(path, disk.opener(Durability::Full), &clock())
        .unwrap_or_else(|error| panic!("{told}: {error}"));
    if let Some(moved) = journal.damaged_moved_to() {
        assert_eq!(answered.appended, Seq(0), "{told}: taken for damaged");
        fs::remove_file(moved).unwrap();
    }
    let (drained, last) = (journal.drained(), journal.last_seq());
    assert!(
        answered.appended <= last,
        "{told}: lost after {last:?}, {answered:?}"
    );
    assert!(
        last.0 <= answered.begun,
        "{told}: {last:?} was never appended, {answered:?}"
    );
    assert!(answered.drained <= drained, "{told}: {answered:?}");

    let events = journal.read_undrained(usize::MAX).await.unwrap();
    let expected: Vec<_> = (drained.0 + 1..=last.0)
        .map(|number| (Seq(number), numbered(number)))
        .collect();
    assert!(
        events == expected,
        "{told}: {:?} after {drained:?}",
        seqs(&events)
    );
    let found: HashMap<_, _> = journal.load_snapshot().await.unwrap().into_iter().collect();
    let expected = if drained == Seq(0) {
        HashMap::new()
    } else {
        totals(drained.0)
    };
    assert_eq!(found, expected, "{told}: totals and rows disagree");
    journal.close().await;
}

/// What a crash of a journal leaves, and what a crash of the recovery from that leaves.
struct Crashes {
    directory: TempDir,
    dice: StdRng,
    count: u64,
    while_recovering: u64,
}

impl Crashes {
    fn new(seed: u64) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            dice: StdRng::seed_from_u64(seed),
            count: 0,
            while_recovering: 0,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("cache.redb")
    }

    async fn history(&mut self, durability: Durability) -> History {
        let (disk, path) = (Disk::default(), self.path());
        let rounds = self.dice.random_range(2..12);
        live(&disk, &path, durability, rounds, &mut self.dice).await
    }

    async fn at_every_moment(&mut self, history: &History) {
        let path = self.path();
        for moment in history.moments() {
            for left in [Left::Nothing, Left::All] {
                let bytes = moment.bytes(left, &mut self.dice);
                let told = format!("{left:?} {}", moment.told);
                check(bytes, moment.answered, &path, &told).await;
                self.count += 1;
            }
            for size in SECTORS.repeat(TRIES) {
                let left = Left::Sectors(size);
                let bytes = moment.bytes(left, &mut self.dice);
                let told = format!("{left:?} {}", moment.told);
                if self.dice.random_bool(0.1) {
                    self.while_recovering(bytes.clone(), moment.answered, &told)
                        .await;
                }
                check(bytes, moment.answered, &path, &told).await;
                self.count += 1;
            }
        }
    }

    /// The journal comes back, goes on for a moment, and the power is cut again somewhere in that.
    async fn while_recovering(&mut self, bytes: Vec<u8>, answered: Answered, told: &str) {
        let path = self.path();
        let disk = Disk::holding(bytes);
        let mut history = live(&disk, &path, Durability::Full, 1, &mut self.dice).await;
        history.answers.insert(0, (0, answered));
        let moments = history.moments();
        for _ in 0..4 {
            let moment = &moments[self.dice.random_range(0..moments.len())];
            let bytes = moment.bytes(Left::Sectors(512), &mut self.dice);
            let told = format!("{told}, and again {}", moment.told);
            check(bytes, moment.answered, &path, &told).await;
            self.while_recovering += 1;
        }
    }
}

#[tokio::test]
async fn what_was_ok_survives_power_loss_at_any_moment() {
    for seed in torture::rounds(4, "POWER_LOSS") {
        let mut crashes = Crashes::new(seed);
        let history = crashes.history(Durability::Full).await;
        crashes.at_every_moment(&history).await;
        let (count, recovering) = (crashes.count, crashes.while_recovering);
        eprintln!("seed {seed}: {count} power losses, {recovering} more while recovering from one");
    }
}

#[tokio::test]
async fn with_process_durability_what_was_ok_survives_a_kill_at_any_moment() {
    for seed in torture::rounds(3, "JOURNAL_KILLS") {
        let mut crashes = Crashes::new(seed);
        let path = crashes.path();
        let history = crashes.history(Durability::Process).await;
        for moment in history.moments() {
            let bytes = moment.bytes(Left::All, &mut crashes.dice);
            check(bytes, moment.answered, &path, &moment.told).await;
        }
    }
}

/// With either durability: `kill -9` takes nothing that was written.
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
