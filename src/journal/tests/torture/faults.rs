//! A disk that fails and heals: what was `Ok` stays, what was `Err` is not there, and no restart is needed.

use std::time::{Duration, Instant};

use super::{
    super::disk::{Call, Disk, Fault, How},
    *,
};
use crate::torture;

/// Waits until `condition` holds.
async fn until(mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(20), "never came");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn open_on(disk: &Disk, path: &Path) -> Journal {
    Journal::open_with(path, disk.opener(Durability::Full), &clock()).unwrap()
}

/// Appends `count` events at once; gives those that were taken, and how many were refused.
async fn append_together(
    journal: &Journal,
    next: &mut u64,
    count: u64,
) -> (Vec<(Seq, UsageEvent)>, usize) {
    let numbers = *next..*next + count;
    *next += count;
    let appends = numbers.map(|number| async move {
        let event = event(tenant(1), number);
        (journal.append(event.clone()).await, event)
    });
    let mut taken = Vec::new();
    let mut refused = 0;
    for (answer, event) in join_all(appends).await {
        match answer {
            Ok(seq) => taken.push((seq, event)),
            Err(_) => refused += 1,
        }
    }
    (taken, refused)
}

/// The disk fails so, and is well again: what is on it at the end? Gives how many events were refused.
async fn survives(faults: Vec<Fault>) -> usize {
    let (_directory, path) = directory();
    let disk = Disk::default();
    let journal = open_on(&disk, &path);
    let mut next = 1;
    let (mut taken, mut refused) = append_together(&journal, &mut next, 3).await;

    disk.fail(faults.clone());
    let mut round = 0_u64;
    while !disk.is_healed() {
        round += 1;
        assert!(round < 20_000, "{faults:?} never came");
        let (more, lost) = append_together(&journal, &mut next, 1 + round % 3).await;
        taken.extend(more);
        refused += lost;
        if round % 4 == 3 {
            // May fail, and may be done all the same: the total it sets is right either way.
            let upto = Seq(journal.drained().0 + 5);
            let snapshot = total(
                tenant(1),
                i64::try_from(upto.0.min(journal.last_seq().0)).unwrap(),
            );
            let _ = journal.mark_drained(upto, snapshot).await;
        }
        if lost > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    until(|| journal.status() == JournalStatus::Ok).await;
    // Before anything else is written: a row of refused events would be overwritten by the next append.
    let healed = journal.read_undrained(usize::MAX).await.unwrap();
    let kept = taken.iter().filter(|(seq, _)| journal.drained() < *seq);
    assert!(healed.iter().eq(kept), "{faults:?}");
    assert_eq!(journal.pending(), u64::try_from(healed.len()).unwrap());
    let (more, lost) = append_together(&journal, &mut next, 2).await;
    assert_eq!(lost, 0, "healed in place ({faults:?})");
    taken.extend(more);
    let seen = journal.read_undrained(usize::MAX).await.unwrap();
    // What the disk was never made to write is gone with the power.
    let left = Disk::holding(disk.synced());
    journal.close().await;

    let journal = open_on(&left, &path);
    assert_eq!(journal.damaged_moved_to(), None, "{faults:?}");
    taken.retain(|(seq, _)| journal.drained() < *seq);
    let found = journal.read_undrained(usize::MAX).await.unwrap();
    assert!(found == taken && seen == found, "{faults:?}");
    let settled = journal.load_snapshot().await.unwrap();
    let settled = settled.first().map_or(0, |(_, total)| total.get());
    let last = i64::try_from(journal.last_seq().0).unwrap();
    assert_eq!(settled + i64::try_from(found.len()).unwrap(), last);
    journal.close().await;
    refused
}

/// The calls of which each of the first so many fails once.
const CALLS: u64 = 300;
const KINDS: [(Call, How); 10] = [
    (Call::Change, How::Broken),
    (Call::Change, How::Full),
    (Call::Change, How::Short),
    (Call::Write, How::Broken),
    (Call::Write, How::Full),
    (Call::Write, How::Short),
    (Call::Sync, How::Broken),
    (Call::Sync, How::Full),
    (Call::Read, How::Broken),
    (Call::Open, How::Broken),
];
/// One is retried at once; more make the journal refuse, and try again with pauses.
const BADS: [u64; 4] = [1, 2, 3, 7];
/// How many there are. A prime is as good as a shuffle: counting by it comes to each once.
const FAULTS: u64 = CALLS * KINDS.len() as u64 * BADS.len() as u64;
const STRIDE: u64 = 7_919;

/// Fault `number` of [`FAULTS`], in an order that mixes calls and kinds.
fn fault(number: u64) -> Vec<Fault> {
    let place = number * STRIDE % FAULTS;
    let (good, rest) = (place % CALLS, place / CALLS);
    let (call, how) = KINDS[usize::try_from(rest).unwrap() % KINDS.len()];
    let bad = BADS[usize::try_from(rest).unwrap() / KINDS.len()];
    let fault = |call, good, bad| Fault {
        call,
        how,
        good,
        bad,
    };
    match call {
        // It opens and reads only when something has failed.
        Call::Read | Call::Open => vec![fault(Call::Write, good, 1), fault(call, 0, bad)],
        Call::Change | Call::Write | Call::Sync => vec![fault(call, good, bad)],
    }
}

#[tokio::test]
async fn whichever_call_of_the_disk_fails_ok_is_kept_and_err_is_not() {
    const AT_ONCE: u64 = 100;
    let mut refused = 0;
    // Together, since most of the time goes into the pauses between attempts to reopen.
    for seed in torture::rounds(2, "JOURNAL_FAULTS") {
        let numbers = seed * AT_ONCE..(seed + 1) * AT_ONCE;
        let each = join_all(numbers.map(|number| survives(fault(number)))).await;
        refused += each.iter().sum::<usize>();
    }
    assert_ne!(refused, 0, "longer faults are told");
}

#[tokio::test]
async fn one_failed_change_of_the_disk_loses_nothing_and_refuses_nothing() {
    let one = |good| Fault {
        bad: 1,
        ..Fault::for_ever(good)
    };
    let refused = join_all((0..30).map(|good| survives(vec![one(good)]))).await;
    assert_eq!(refused, [0; 30]);
}

#[tokio::test]
async fn a_failing_journal_refuses_at_once_and_heals_without_a_restart() {
    let (_directory, path) = directory();
    let disk = Disk::default();
    let journal = open_on(&disk, &path);
    journal.append(event(tenant(1), 1)).await.unwrap();

    disk.fail([Fault::for_ever(0)]);
    let error = journal.append(event(tenant(1), 2)).await.unwrap_err();
    assert!(error.to_string().contains("os error 5"), "{error}");
    let JournalStatus::Failing { detail } = journal.status() else {
        panic!("a failing disk must be seen");
    };
    assert!(detail.contains("os error 5"), "{detail}");

    let mut refused = Box::pin(journal.append(event(tenant(1), 3)));
    let answer = futures_util::poll!(&mut refused);
    assert!(
        matches!(
            answer,
            std::task::Poll::Ready(Err(JournalError::Failing(_)))
        ),
        "{answer:?}"
    );
    let mark = journal.mark_drained(Seq(1), Snapshot::default()).await;
    assert!(matches!(mark, Err(JournalError::Failing(_))), "{mark:?}");

    disk.heal();
    until(|| journal.status() == JournalStatus::Ok).await;
    assert_eq!(journal.append(event(tenant(1), 4)).await, Ok(Seq(2)));
    let events = journal.read_undrained(9).await.unwrap();
    assert_eq!(
        events,
        [(Seq(1), event(tenant(1), 1)), (Seq(2), event(tenant(1), 4))]
    );
}

#[tokio::test]
async fn a_process_that_ends_while_its_disk_fails_has_kept_what_was_ok() {
    for good in 0..40 {
        let (_directory, path) = directory();
        let disk = Disk::default();
        let journal = open_on(&disk, &path);
        let mut next = 1;
        let (mut taken, _) = append_together(&journal, &mut next, 3).await;
        disk.fail([Fault::for_ever(good)]);
        while journal.status() == JournalStatus::Ok {
            let (more, _) = append_together(&journal, &mut next, 2).await;
            taken.extend(more);
        }
        journal.close().await;

        disk.heal();
        let left = Disk::holding(disk.synced());
        let journal = open_on(&left, &path);
        let mut found = journal.read_undrained(1_000).await.unwrap();
        assert_eq!(journal.damaged_moved_to(), None);
        found.truncate(taken.len());
        assert_eq!(found, taken, "{good} good changes");
    }
}

#[tokio::test]
async fn a_file_that_was_replaced_is_not_written_to() {
    let (_directory, path) = directory();
    let (disk, other) = (Disk::default(), Disk::default());
    let journal = open_on(&disk, &path);
    journal.append(event(tenant(1), 1)).await.unwrap();
    let (_elsewhere, path) = self::directory();
    open_on(&other, &path).close().await;
    disk.replace(other.bytes());

    disk.fail([Fault {
        how: How::Full,
        bad: 1,
        ..Fault::for_ever(0)
    }]);
    let error = journal.append(event(tenant(1), 2)).await.unwrap_err();
    assert!(error.to_string().contains("another file"), "{error}");
    journal.close().await;
    let left = open_on(&Disk::holding(disk.bytes()), &path);
    assert_eq!(left.pending(), 0);
}
